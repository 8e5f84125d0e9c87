// What is known of a model before it is loaded: the loaders' lists in /object_info carry it, from the
// files' headers. Tokenizers: {registers, fps, sampling: {quality: {steps, guidance}}}; priors:
// {registers, frames, temperature, guidance: [[from this budget on, scale], ...]}.

import { sourceOf } from "./graphs.js";

export const LOADERS = { VFTLoadTokenizer: "tokenizer", VFTLoadPrior: "prior" }; // their lists

const known = {};

/** Remember what a node's entry of /object_info says of models. */
export function noteModels(definition) {
  const list = LOADERS[definition?.name];
  if (list) known[list] = definition.input.required[list]?.[1]?.vft_models ?? {};
}

/** The facts of the model that reaches the input `name` of `node`; undefined if another node than a
 * loader gives it, or one whose own choice comes from elsewhere; if its file tells none (damaged,
 * half downloaded, or as published). */
export function modelOf(node, name) {
  const loader = sourceOf(node, name);
  const list = LOADERS[loader?.comfyClass];
  if (!list) return undefined;
  const slot = loader.findInputSlot(list);
  if (slot >= 0 && loader.isInputConnected(slot)) return undefined;
  const file = loader.widgets.find((w) => w.name === list).value;
  const facts = known[list]?.[file] ?? known[list]?.[String(file).replaceAll("\\", "/")];
  return facts?.registers ? facts : undefined;
}
