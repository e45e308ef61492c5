// Colours of the sockets and links of our types. The page clears those that its palettes do not name: these stay.
import { app } from "../../scripts/app.js";

const COLOURS = {
  PERSONALIVE_MODEL: "#9f7bff",
  PERSONALIVE_REFERENCE: "#35c9b0",
  PERSONALIVE_MOTION: "#ff8f5a",
  PERSONALIVE_CROP: "#b8c75a",
  PERSONALIVE_DRIVING_CROP: "#d7b48a",
};

function keep(colours) {
  for (const [type, ours] of Object.entries(COLOURS)) {
    let chosen = "";
    Object.defineProperty(colours, type, {
      get: () => chosen || ours,
      set: (colour) => { chosen = colour; },
      enumerable: true,
      configurable: true,
    });
  }
}

app.registerExtension({
  name: "personalive.colours",
  setup() {
    keep(app.canvas.default_connection_color_byType);
    keep(app.canvas.constructor.link_type_colors);
    const rules = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
    const style = document.createElement("style"); // for Vue nodes
    style.textContent = `:root { ${rules.join(" ")} }`;
    document.head.append(style);
  },
});
