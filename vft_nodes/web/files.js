// Token files: upload them by a button or by dropping them on the canvas.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const SUFFIX = ".vft";
const MOST_HEADER = 1 << 24; // bytes; a workflow takes some 10,000
const isTokens = (file) => file.name.toLowerCase().endsWith(SUFFIX);

function tell(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: 6000 });
}

/** Upload a token file into ComfyUI's input folder; the name to choose in Load Tokens. */
async function upload(file) {
  const body = new FormData();
  body.append("image", file); // ComfyUI's field for every kind of upload
  body.append("type", "input");
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (answer.status !== 200) throw new Error(`${answer.status} ${answer.statusText}`);
  const { name, subfolder } = await answer.json();
  return subfolder ? `${subfolder}/${name}` : name;
}

/** Let a Load Tokens node read the file of this name. */
function choose(node, name) {
  const widget = node.widgets.find((w) => w.name === "file");
  const values = widget.options.values;
  if (Array.isArray(values) && !values.includes(name)) widget.options.values = [name, ...values];
  widget.value = name;
  widget.callback?.(name);
  node.graph?.setDirtyCanvas(true, true);
}

async function uploadTo(node, file) {
  try {
    choose(node, await upload(file));
  } catch (error) {
    tell("error", `${file.name} was not uploaded`, error.message);
  }
}

/** The button of Load Tokens. */
export function addUpload(node) {
  const pick = () => {
    const input = document.createElement("input");
    Object.assign(input, { type: "file", accept: SUFFIX });
    input.onchange = () => uploadTo(node, input.files[0]);
    input.click();
  };
  const button = node.addWidget("button", "upload_vft", null, pick, { serialize: false });
  button.label = "choose .vft file to upload";
  button.serialize = false;
}

/** The workflow that Save Tokens wrote into a token file, or null. A .vft file is a safetensors
 * file: the length of its header in eight bytes, then the header as JSON. */
export async function workflowIn(file) {
  try {
    const size = new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true);
    if (size > MOST_HEADER) return null;
    const header = JSON.parse(await file.slice(8, 8 + Number(size)).text());
    return JSON.parse(header.__metadata__?.workflow ?? "null");
  } catch {
    return null; // no token file after all: the node says so when it runs
  }
}

/** A `drop` event: token files become Load Tokens nodes; with Shift the workflow in it opens. */
export async function openDropped(event) {
  const files = [...(event.dataTransfer?.files ?? [])];
  if (!files.length || !files.every(isTokens)) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  const [x, y] = app.canvas.convertEventToCanvasOffset(event);
  const shift = event.shiftKey; // an event is spent after the first await
  if (shift && files.length === 1) {
    const workflow = await workflowIn(files[0]);
    if (workflow) return app.loadGraphData(workflow, true, true, files[0].name.slice(0, -4));
    tell("warn", files[0].name, "holds no workflow; a Load Tokens node reads it instead");
  }
  const graph = app.canvas.graph;
  const target = graph.getNodeOnPos(x, y);
  if (target?.comfyClass === "VFTLoadTokens" && files.length === 1) {
    return uploadTo(target, files[0]);
  }
  for (const [i, file] of files.entries()) {
    const node = LiteGraph.createNode("VFTLoadTokens");
    node.pos = [x + 30 * i, y + 30 * i];
    graph.add(node);
    await uploadTo(node, file);
    if (!shift && (await workflowIn(file))) {
      tell("info", file.name, "carries a workflow: drop it with Shift held to open that");
    }
  }
}
