// The front end of the VideoFlexTok nodes, for the legacy canvas and for Nodes 2.0 alike.
// ComfyUI imports every .js file of this folder; only this one registers anything.

import { app } from "../../scripts/app.js";
import { addBudget, BUDGET_NODES, refreshBudgets } from "./budget.js";
import { colourSockets } from "./colours.js";
import { addUpload, openDropped } from "./files.js";
import { noteGrid } from "./grid.js";
import { showResult } from "./panel.js";

/** Run `more` after the node's own `method`, keeping what that returns. */
function after(node, method, more) {
  const own = node[method];
  node[method] = function (...args) {
    const result = own?.apply(this, args);
    more.apply(this, args);
    return result;
  };
}

app.registerExtension({
  name: "VideoFlexTok",

  setup() {
    colourSockets(app.canvas);
    // Capturing, because the page's own handler refuses files that it does not know.
    window.addEventListener("drop", openDropped, { capture: true });
  },

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("VFT")) return;
    if (node.comfyClass === "VFTLoadTokens") addUpload(node);
    if (BUDGET_NODES.includes(node.comfyClass)) addBudget(node);
    after(node, "onExecuted", (output) => {
      if (output?.vft_grid) noteGrid(node, output.vft_grid[0]);
      if (output?.text) showResult(node, [output.text].flat().join("\n"));
      refreshBudgets();
    });
    after(node, "onConfigure", refreshBudgets);
    after(node, "onConnectionsChange", refreshBudgets);
  },
});
