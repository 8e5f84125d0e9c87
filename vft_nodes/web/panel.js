// One area at the foot of a node for what we show on it. It is a DOM widget, which both the legacy
// canvas and Nodes 2.0 draw; it comes last and is never saved, so the positions of a workflow's
// `widgets_values` are those of the node's inputs.

const STYLE = `
.vft-panel { box-sizing: border-box; width: 100%; overflow: hidden auto;
  font: 11px/15px Inter, Arial, sans-serif; color: var(--input-text, #ddd); }
.vft-panel .vft-content { padding: 2px 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
.vft-panel .vft-chips { display: flex; gap: 3px; margin-bottom: 3px; }
.vft-panel .vft-chips:empty { display: none; }
.vft-panel .vft-chips button { flex: 1 1 0; min-width: 0; padding: 1px 0; font: inherit;
  cursor: pointer; border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px;
  background: var(--comfy-input-bg, #222); color: inherit; }
.vft-panel .vft-chips button:hover { border-color: #c9a2ff; }
.vft-panel .vft-chips button[aria-pressed="true"] { background: #6b46a8; color: #fff; }
.vft-panel .vft-line.vft-warning { color: #ffb454; }
.vft-panel .vft-chart { display: flex; align-items: flex-end; gap: 1px; height: 28px; margin: 3px 0; }
.vft-panel .vft-chart:empty { display: none; }
.vft-panel .vft-chart i { flex: 1 1 0; min-width: 0; background: #4fd6be; }
.vft-panel .vft-auto { font-size: 10px; line-height: 14px; color: var(--descrip-text, #999); }
.vft-panel .vft-result { font-size: 10px; line-height: 14px; color: var(--descrip-text, #999);
  user-select: text; }
`;

const MARGIN = 6; // px around the area on the legacy canvas

const panels = new WeakMap(); // node -> its panel
const owners = new WeakMap(); // a panel's root element -> node

function addStyle() {
  if (document.getElementById("vft-style")) return;
  const style = document.createElement("style");
  style.id = "vft-style";
  style.textContent = STYLE;
  document.head.append(style);
}

/** The panel of a node, made at the first call: {chips, line, auto, chart, result}, five elements. */
export function panelOf(node) {
  if (panels.has(node)) return panels.get(node);
  addStyle();
  const part = (name) => {
    const element = document.createElement("div");
    element.className = `vft-${name}`;
    return element;
  };
  const [root, content] = [part("panel"), part("content")];
  const panel = { root, result: part("result") };
  for (const name of ["chips", "line", "auto", "chart"]) panel[name] = part(name);
  content.append(panel.chips, panel.line, panel.auto, panel.chart, panel.result);
  root.append(content);

  let height = 0;
  const widget = node.addDOMWidget("vft_panel", "vft_panel", root, {
    serialize: false, // not in the API prompt
    hideOnZoom: false,
    margin: MARGIN,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: () => (height ? height + 2 * MARGIN : 0),
  });
  widget.serialize = false; // not in the workflow
  const grow = () => {
    // Until it has its place on the page it is narrow, and its text many lines high.
    if (root.offsetWidth < node.size[0] / 2 || content.offsetHeight === height) return;
    height = content.offsetHeight;
    const [, needed] = node.computeSize();
    if (node.size[1] < needed) node.setSize([node.size[0], needed]);
    node.graph?.setDirtyCanvas(true, true);
  };
  new ResizeObserver(grow).observe(content);
  panels.set(node, panel);
  owners.set(root, node);
  return panel;
}

/** Nodes 2.0 goes on showing the panel of the node that an undo has replaced by `node`: put this
 * one's in its place. */
export function replaceFormer(node) {
  const root = panels.get(node)?.root;
  if (!root || root.isConnected) return;
  for (const former of document.querySelectorAll(".vft-panel")) {
    if (owners.get(former)?.id === node.id) former.replaceWith(root);
  }
}

/** Show what a run said. It stays until the next run, and is not saved. */
export function showResult(node, text) {
  panelOf(node).result.textContent = text;
}
