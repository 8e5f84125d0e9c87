// Colours of our sockets and wires.

const COLOURS = { VFT_TOKENIZER: "#c9a2ff", VFT_PRIOR: "#ffb454", VFT_TOKENS: "#4fd6be" };

/** Our colours for `canvas` and for Nodes 2.0, unless the user's palette names these types. */
export function colourSockets(canvas) {
  // A palette that is loaded later empties the entries of types it does not know: an empty entry
  // means ours.
  for (const map of [canvas.default_connection_color_byType, canvas.constructor.link_type_colors]) {
    for (const [type, colour] of Object.entries(COLOURS)) {
      let chosen = map[type];
      Object.defineProperty(map, type, {
        get: () => chosen || colour,
        set: (value) => (chosen = value),
        enumerable: true,
        configurable: true,
      });
    }
  }
  // Nodes 2.0: a palette writes these on the root element itself, which wins over a style sheet.
  const style = document.createElement("style");
  const rules = Object.entries(COLOURS).map(([type, c]) => `--color-datatype-${type}: ${c};`);
  style.textContent = `:root { ${rules.join(" ")} }`;
  document.head.append(style);
}
