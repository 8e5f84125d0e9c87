// Choices that cannot run on this machine: /object_info tells which and why. They stay in their list,
// as the workflow may come from another machine, and are marked there; the node says why.

import { keepFresh } from "./live.js";
import { panelOf } from "./panel.js";

const refused = {}; // class of a node -> widget -> choice -> why

/** Remember what a node's entry of /object_info says of choices that cannot run. */
export function noteRefused(definition) {
  const inputs = { ...definition?.input?.required, ...definition?.input?.optional };
  const told = Object.entries(inputs)
    .map(([name, spec]) => [name, spec[1]?.vft_refused])
    .filter(([, choices]) => choices && Object.keys(choices).length);
  if (told.length) refused[definition.name] = Object.fromEntries(told);
  else delete refused[definition?.name];
}

/** What stands on a node of that class whose widgets have these values. */
export function describeRefused(kind, value) {
  return Object.entries(refused[kind] ?? {})
    .filter(([name, choices]) => choices[value(name)])
    .map(([name, choices]) => `${name} ${value(name)} does not run here: ${choices[value(name)]}`)
    .join("\n");
}

function refresh(node) {
  const value = (name) => node.widgets.find((w) => w.name === name)?.value;
  panelOf(node).auto.textContent = describeRefused(node.comfyClass, value);
}

/** Marks in the lists of a node, and the line below them. */
export function addRefused(node) {
  const lists = refused[node.comfyClass];
  if (!lists) return;
  for (const widget of node.widgets.filter((w) => lists[w.name])) {
    widget.options.getOptionLabel = (choice) =>
      lists[widget.name][choice] ? `${choice} (not here)` : (choice ?? "");
  }
  keepFresh(node, Object.keys(lists), refresh);
}
