// Our sentences in the user's language, from locales/*/main.json. The names of buttons stay English, as in the help pages.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const ENGLISH = {
  official: "PersonaLive's weights are for research use: read the terms of the repositories first.",
  yunet: "YuNet finds faces. It comes from OpenCV's repository on the Hugging Face hub.",
  taesd: "TAESD decodes faster and softer than the VAE. It comes from its author's repository on the Hugging Face hub.",
  convert: "This writes the six .pth files again as .safetensors in half precision (5.3 GB). They load faster and are used "
    + "from then on.",
  missing: "Still to download:",
  complete: "All files are there.",
  window: "Live is in its own window.",
};

export async function loadTexts() {
  const translations = await api.getCustomNodesI18n();
  return { ...ENGLISH, ...translations[app.extensionManager.setting.get("Comfy.Locale")]?.personalive };
}
