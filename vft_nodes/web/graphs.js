// The graph that was opened and the subgraphs in it: their nodes, and what is connected to what
// across their borders.

import { app } from "../../scripts/app.js";

const BORDER = -10; // the id under which a subgraph's own inputs stand at the start of its links

/** All nodes, those inside of subgraphs too. */
export function allNodes() {
  const root = app.graph.rootGraph ?? app.graph;
  return [root, ...(root.subgraphs?.values() ?? [])].flatMap((graph) => graph.nodes);
}

/** The node that stands for a subgraph in the graph around it. Used twice, a subgraph has one set of
 * nodes for both: they show what the first gives. */
function outsideOf(graph) {
  return allNodes().find((node) => node.subgraph === graph);
}

/** A node's name in a run: "4:12" for node 12 in the subgraph that node 4 stands for. */
function nameInRun(node) {
  const outside = outsideOf(node.graph);
  return outside ? `${nameInRun(outside)}:${node.id}` : `${node.id}`;
}

/** What the page has kept of a node's last run: the `output` of its `executed` message. Pages of
 * 2025 keep it under the name in the run after a change of tabs, others by the subgraph's id. */
export function keptOutput(node) {
  const kept = app.nodeOutputs ?? {};
  return kept[`${node.graph.id}:${node.id}`] ?? kept[nameInRun(node)];
}

/** The node whose output reaches the input `name` of `node`, through reroutes and the borders of
 * subgraphs; undefined if there is none. */
export function sourceOf(node, name) {
  const slot = node.graph ? node.findInputSlot(name) : -1; // a new node is in no graph yet
  return slot < 0 ? undefined : behind(node, slot);
}

function behind(node, slot) {
  const link = node.inputs[slot]?.link;
  return link == null ? undefined : start(node.graph, node.graph.getLink(link));
}

function start(graph, link) {
  if (!link) return undefined;
  if (Number(link.origin_id) === BORDER) {
    const outside = outsideOf(graph);
    return outside && behind(outside, link.origin_slot);
  }
  const node = graph.getNodeById(link.origin_id);
  if (!node) return undefined;
  if (node.subgraph) {
    const output = node.subgraph.outputs[link.origin_slot];
    return start(node.subgraph, output?.getLinks()[0]);
  }
  return node.type === "Reroute" ? behind(node, 0) : node;
}
