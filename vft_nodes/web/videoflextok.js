// The front end of the VideoFlexTok nodes, for the legacy canvas and for Nodes 2.0 alike.
// ComfyUI imports every .js file of this folder; only this one registers anything.

import { app } from "../../scripts/app.js";
import { addAuto, AUTO_NODES } from "./auto.js";
import { addBudget, BUDGET_NODES } from "./budget.js";
import { colourSockets } from "./colours.js";
import { addUpload, openDropped } from "./files.js";
import { allNodes, keptOutput } from "./graphs.js";
import { drawBars, noteGrid } from "./grid.js";
import { refreshAll } from "./live.js";
import { LOADERS, noteModels } from "./models.js";
import { panelOf, replaceFormer, showResult } from "./panel.js";
import { addRefused, noteRefused } from "./refused.js";

/** Run `more` after the node's own `method`, keeping what that returns. */
function after(node, method, more) {
  const own = node[method];
  node[method] = function (...args) {
    const result = own?.apply(this, args);
    more.apply(this, args);
    return result;
  };
}

const SETTLED = 100; // ms after which the page has drawn what it was told

const isOurs = (node) => !!node.comfyClass?.startsWith("VFT");

/** What an `executed` message brought for a node. */
function show(node, output) {
  if (output.vft_grid) {
    noteGrid(node, output.vft_grid[0]);
    drawBars(panelOf(node).chart, output.vft_grid[0]);
  }
  if (output.text) showResult(node, [output.text].flat().join("\n"));
}

/** What all nodes had given out, those inside of subgraphs too. */
function showKept() {
  for (const node of allNodes().filter(isOurs)) {
    const output = keptOutput(node);
    if (output) show(node, output);
  }
  refreshAll();
}

app.registerExtension({
  name: "VideoFlexTok",

  setup() {
    colourSockets(app.canvas);
    // Capturing, because the page's own handler refuses files that it does not know.
    window.addEventListener("drop", openDropped, { capture: true });
  },

  beforeRegisterNodeDef(_, definition) {
    noteModels(definition);
    if (isOurs({ comfyClass: definition?.name })) noteRefused(definition);
  },

  // The key R: the lists of models anew.
  refreshComboInNodes(definitions) {
    Object.keys(LOADERS).forEach((name) => noteModels(definitions[name]));
    refreshAll();
  },

  // Undo and a change of tabs make all nodes anew; the page has kept what they had given out, and
  // has it at hand then or a little later.
  afterConfigureGraph() {
    setTimeout(() => {
      showKept();
      setTimeout(() => {
        showKept(); // pages of 2025 connect the nodes of subgraphs last
        if (!app.extensionManager.setting.get("Comfy.VueNodes.Enabled")) return;
        app.canvas.graph.nodes.filter(isOurs).forEach(replaceFormer);
      }, SETTLED);
    });
  },
  onNodeOutputsUpdated() {
    setTimeout(showKept);
  },

  nodeCreated(node) {
    if (!isOurs(node)) return;
    if (node.comfyClass === "VFTLoadTokens") {
      addUpload(node);
      panelOf(node); // now: Nodes 2.0 of 2025 draws none that comes after a changed list of files
    }
    if (BUDGET_NODES.includes(node.comfyClass)) addBudget(node);
    if (AUTO_NODES.includes(node.comfyClass)) addAuto(node);
    addRefused(node);
    const list = node.widgets?.find((w) => w.name === LOADERS[node.comfyClass]);
    if (list) after(list, "callback", refreshAll);
    after(node, "onExecuted", (output) => {
      if (output) show(node, output);
      refreshAll();
    });
    after(node, "onConfigure", refreshAll);
    after(node, "onConnectionsChange", refreshAll);
  },
});
