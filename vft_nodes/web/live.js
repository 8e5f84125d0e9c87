// What nodes say of their own values, kept true while these and the graph around them change.

const live = new Map(); // node -> functions that write anew what is said of it

/** Call `refresh(node)` now, whenever one of the widgets `names` changes, and with `refreshAll`. */
export function keepFresh(node, names, refresh) {
  for (const widget of node.widgets.filter((w) => names.includes(w.name))) {
    const own = widget.callback;
    widget.callback = function (...args) {
      const result = own?.apply(this, args);
      refresh(node);
      return result;
    };
  }
  if (!live.has(node)) {
    live.set(node, []);
    const removed = node.onRemoved;
    node.onRemoved = function (...args) {
      live.delete(node);
      return removed?.apply(this, args);
    };
  }
  live.get(node).push(refresh);
  refresh(node);
}

/** All anew: a run, a connection or a list of models has changed what is known. */
export function refreshAll() {
  for (const [node, all] of live) for (const refresh of all) refresh(node);
}
