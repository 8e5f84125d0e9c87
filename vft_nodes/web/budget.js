// The budget of Truncate Prefix and of the priors: buttons in powers of two for the ordinary
// number field, and a line that says what the budget means, before anything has run.

import { againstGrid, idsWithin, inBytes, incomingGrid, ownGrid } from "./grid.js";
import { keepFresh } from "./live.js";
import { modelOf } from "./models.js";
import { panelOf } from "./panel.js";

export const BUDGET_NODES = ["VFTTruncate", "VFTTextToTokens", "VFTClassToTokens", "VFTRefine"];
const PER_FRAME = "tokens per frame"; // the first choice of Truncate Prefix's `by`
const LARGEST = 256; // tokens per latent frame that any published tokenizer has

/** The powers of two to offer: per latent frame all from `least` to `most`, else those around
 * `budget`. */
export function choices(by, budget, most = LARGEST, least = 1) {
  if (by === "information") return [];
  const powers = (from, to) => {
    const all = [];
    for (let k = from; k <= to; k *= 2) all.push(k);
    return all.filter((k) => k >= least);
  };
  if (by === PER_FRAME) return powers(1, most);
  const near = 2 ** Math.floor(Math.log2(Math.max(1, budget)));
  return powers(Math.max(1, near / 8), near * 8);
}

/** What a budget means: {text, warning}. `grid` is of the tokens it is taken from, or undefined;
 * `truncates`: it cannot be more than there is; `most`: it cannot be more than a prior writes, or
 * undefined; `held`: it must be more than what tokens that are refined hold, or undefined;
 * `adaptive`: one for each latent frame. */
export function describe(by, budget, keepBits, grid, truncates, most, held, adaptive) {
  if (adaptive && truncates && grid?.holding) {
    return { text: "adaptive needs all tokens of the clip: these were cut already", warning: true };
  }
  if (by === "information") {
    return { text: `as few as keep ${Math.round(100 * keepBits)} % of the bits` };
  }
  if (budget > most) {
    return { text: `too many: this prior writes up to ${most} per frame`, warning: true };
  }
  if (budget <= held) {
    return { text: `too few: these tokens hold ${held} per frame already`, warning: true };
  }
  let perFrame = budget;
  if (by !== PER_FRAME) {
    const most = by === "bytes" ? Math.floor(budget / 2) : budget;
    const tokens = `${most.toLocaleString("en")} tokens`;
    if (!grid) return { text: `at most ${tokens} · ${inBytes(2 * most)}` };
    const frames = grid.latent_frames;
    if (most < frames) {
      const least = by === "bytes" ? inBytes(2 * frames) : `${frames} tokens`;
      return { text: `too few: this clip needs at least ${least}`, warning: true };
    }
    if (adaptive) return spread(grid, Math.min(most, idsWithin(grid, grid.budget)));
    perFrame = 1;
    while (perFrame < grid.budget && idsWithin(grid, perFrame + 1) <= most) perFrame += 1;
  }
  if (!grid) return { text: `${perFrame} per latent frame · ${inBytes(2 * perFrame)} each` };
  if (truncates && perFrame > grid.budget) {
    return { text: `too many: these tokens hold ${grid.budget} per frame`, warning: true };
  }
  const count = idsWithin(grid, perFrame);
  if (adaptive) return spread(grid, count);
  const named = grid.holding ? `at most ${perFrame}` : `${perFrame}`;
  const parts = [`${named} per frame`, `${count.toLocaleString("en")} tokens`];
  const mean = count / grid.latent_frames;
  return { text: [...parts, inBytes(2 * count), againstGrid(grid, mean)].join(" · ") };
}

/** `count` tokens, of which each latent frame gets what it is worth. */
function spread(grid, count) {
  const mean = Number((count / grid.latent_frames).toFixed(1));
  const parts = [`${mean} per frame on average`, `${count.toLocaleString("en")} tokens`];
  return { text: [...parts, inBytes(2 * count), againstGrid(grid, mean)].join(" · ") };
}

function refresh(node) {
  const value = (name) => node.widgets.find((widget) => widget.name === name)?.value;
  const { chips, line } = panelOf(node);
  // Another node may give the budget: then only a run can tell.
  const slot = node.findInputSlot("budget");
  if (slot >= 0 && node.isInputConnected(slot)) {
    chips.replaceChildren();
    line.textContent = "";
    return;
  }
  const truncates = node.comfyClass === "VFTTruncate";
  const [by, budget] = [value("by") ?? PER_FRAME, Number(value("budget"))];
  const incoming = incomingGrid(node, "tokens");
  const held = truncates ? undefined : incoming?.budget;
  const most = truncates ? incoming?.budget : modelOf(node, "prior")?.registers;
  chips.replaceChildren(
    ...choices(by, budget, most, (held ?? 0) + 1).map((k) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = k < 10_000 ? k : k.toLocaleString("en", { notation: "compact" });
      button.ariaPressed = k === budget;
      // On pointerup already: the page looks for changes, to undo them, on mouseup. A click still
      // comes from the keyboard.
      button.onpointerup = button.onclick = () => choose(node, k);
      return button;
    }),
  );
  const own = ownGrid(node); // what came of the tokens that are not known
  const grid = incoming ?? (own && { ...own, holding: undefined });
  const adaptive = value("adaptive") === true;
  const limits = truncates ? [!!incoming, undefined, undefined, adaptive] : [false, most, held];
  const { text, warning } = describe(by, budget, value("keep_bits"), grid, ...limits);
  line.textContent = text;
  line.classList.toggle("vft-warning", !!warning);
}

function choose(node, budget) {
  const widget = node.widgets.find((w) => w.name === "budget");
  widget.value = budget;
  widget.callback?.(budget); // as the number field itself would: undo history, and our own line
  node.graph?.setDirtyCanvas(true, true);
}

/** Buttons and line for a node with a widget `budget`. */
export function addBudget(node) {
  keepFresh(node, ["by", "budget", "keep_bits", "adaptive"], refresh);
}
