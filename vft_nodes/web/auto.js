// Values that mean "what suits the model": the node says which these are, and what they come to.

import { keepFresh } from "./live.js";
import { modelOf } from "./models.js";
import { panelOf } from "./panel.js";

const zero = (value) => Number(value) === 0;
const negative = (value) => Number(value) < 0;
const recipe = (model, value) => model.sampling[value("quality") ?? "normal"];
const decoding = {
  steps: [zero, (model, value) => `${recipe(model, value).steps} steps`],
  guidance: [zero, (model, value) => `guidance ${recipe(model, value).guidance}`],
};
const writing = {
  guidance: [zero, (model, value) => `guidance ${scaleFor(model, value("budget"))}`],
  temperature: [negative, (model) => `temperature ${model.temperature}`],
};
// Class of a node -> the input its model comes by; its widgets: when they are automatic, in words.
const AUTOMATIC = {
  VFTEncode: ["tokenizer", { fps: [zero, (model) => `${model.fps} fps`] }],
  VFTDecode: ["tokenizer", decoding],
  VFTBudgetSweep: ["tokenizer", decoding],
  VFTTextToTokens: [
    "prior",
    { ...writing, frames: [zero, (model) => `${model.frames} frames`] },
  ],
  VFTClassToTokens: ["prior", writing],
  VFTRefine: ["prior", writing],
};

export const AUTO_NODES = Object.keys(AUTOMATIC);

/** A prior's guidance scale for a budget: the last one that begins at or below it. */
function scaleFor(model, budget) {
  return model.guidance.filter(([from]) => from <= budget).at(-1)?.[1];
}

/** "auto: 8 steps · guidance 1.5"; without `model` the names alone; "" if nothing is automatic.
 * `value(name)` gives a widget's value, undefined for one that is connected. */
export function describeAuto(kind, model, value) {
  const words = Object.entries(AUTOMATIC[kind][1])
    .filter(([name, [isAuto]]) => value(name) !== undefined && isAuto(value(name)))
    .map(([name, [, told]]) => (model ? told(model, value) : name));
  return words.length ? `auto: ${words.join(" · ")}` : "";
}

function refresh(node) {
  const value = (name) => {
    const slot = node.findInputSlot(name);
    if (slot >= 0 && node.isInputConnected(slot)) return undefined;
    return node.widgets.find((w) => w.name === name)?.value;
  };
  const model = modelOf(node, AUTOMATIC[node.comfyClass][0]);
  panelOf(node).auto.textContent = describeAuto(node.comfyClass, model, value);
}

/** On the legacy canvas the field itself says "auto" in place of the number. */
function showInField(widget, isAuto) {
  let shown;
  for (let p = widget; p && !shown; p = Object.getPrototypeOf(p)) {
    shown = Object.getOwnPropertyDescriptor(p, "_displayValue")?.get;
  }
  if (!shown) return; // another kind of page: the line says it
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get() {
      return isAuto(this.value) ? "auto" : shown.call(this);
    },
  });
}

/** The line of automatic values for a node of AUTO_NODES. */
export function addAuto(node) {
  const widgets = AUTOMATIC[node.comfyClass][1];
  for (const widget of node.widgets) {
    if (widgets[widget.name]) showInField(widget, widgets[widget.name][0]);
  }
  keepFresh(node, [...Object.keys(widgets), "budget", "quality"], refresh);
}
