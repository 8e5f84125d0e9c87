// What is known of the tokens that a node gave out in its last run, and what can be reckoned from
// it: {latent_frames, budget, frames, fps, size: [h, w]}, the `vft_grid` of an `executed` message.
// Where latent frames differ also {bars, holding}: their mean budgets over time, at most 96 numbers,
// and how many of them hold a first token, a second, and so on.

import { sourceOf } from "./graphs.js";

const grids = new WeakMap();

export function noteGrid(node, grid) {
  grids.set(node, grid);
}

/** The grid that `node` gave out, or undefined before its first run. */
export function ownGrid(node) {
  return grids.get(node);
}

/** The grid that reaches the input `name` of `node`, or undefined. */
export function incomingGrid(node, name) {
  const source = sourceOf(node, name);
  return source && grids.get(source);
}

// A 3D-grid tokenizer gives every latent frame one token per 16×16 pixels: the comparison of the
// paper, where 672 tokens (21 latent frames × 32, at 256 px) are 8 times fewer than its 5,376.
const GRID_CELL = 16;

/** Tokens of a conventional 3D grid for one latent frame. */
export function gridTokens(grid) {
  const [height, width] = grid.size;
  return (height / GRID_CELL) * (width / GRID_CELL);
}

/** "1.3 kB", as the nodes' Python side words it. */
export function inBytes(count) {
  return count < 1000 ? `${count} B` : `${(count / 1000).toFixed(1)} kB`;
}

/** "8× below a 3D grid" for `budget` tokens per latent frame. */
export function againstGrid(grid, budget) {
  const ratio = gridTokens(grid) / budget;
  if (ratio === 1) return "as many as a 3D grid";
  const times = ratio > 1 ? ratio : 1 / ratio;
  return `${Number(times.toFixed(1))}× ${ratio > 1 ? "below" : "above"} a 3D grid`;
}

/** Tokens of a clip whose latent frames keep `budget` each, or what they hold. */
export function idsWithin(grid, budget) {
  if (!grid.holding) return grid.latent_frames * budget;
  return grid.holding.slice(0, budget).reduce((sum, count) => sum + count, 0);
}

/** The budget over time as bars in `element`; nothing where it is the same for all. */
export function drawBars(element, grid) {
  const bars = grid?.bars ?? [];
  element.title = bars.length ? `tokens per latent frame over time, up to ${grid.budget}` : "";
  element.replaceChildren(
    ...bars.map((bar) => {
      const column = document.createElement("i");
      column.style.height = `${(100 * bar) / grid.budget}%`;
      return column;
    }),
  );
}
