// The tab "Live" at the side: the live page in a frame, or in a window of its own.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { loadTexts } from "./texts.js";

const PAGE = new URL("../../personalive/live/", import.meta.url);
const BUTTON = {
  margin: "8px",
  padding: "6px",
  font: "inherit",
  cursor: "pointer",
  color: "var(--input-text)",
  background: "var(--comfy-input-bg)",
  border: "1px solid var(--border-color)",
  borderRadius: "6px",
};

async function link() {
  const answer = await api.fetchApi("/personalive/live/token", { method: "POST" });
  if (!answer.ok) throw new Error(await answer.text());
  const { token } = await answer.json();
  return `${PAGE}#${token}`;
}

function make(tag, properties, style) {
  const element = Object.assign(document.createElement(tag), properties);
  Object.assign(element.style, style);
  return element;
}

function paragraph(text) {
  return make("p", { textContent: text }, { margin: "12px" });
}

async function render(container) {
  Object.assign(container.style, { display: "flex", flexDirection: "column", height: "100%" });
  const button = make("button", { type: "button" }, BUTTON);
  let texts, url;
  try {
    [texts, url] = await Promise.all([loadTexts(), link()]);
  } catch (error) {
    container.replaceChildren(paragraph(error.message));
    return;
  }

  // One page drives at a time, so the frame goes when the window comes.
  function showHere() {
    const frame = make(
      "iframe",
      { src: url, title: "PersonaLive Live", allow: "camera; microphone; clipboard-write; fullscreen" },
      { border: "none", flex: "1" },
    );
    button.textContent = "Open in its own window";
    button.onclick = showThere;
    container.replaceChildren(button, frame);
  }

  function showThere() {
    container.replaceChildren(button, paragraph(texts.window));
    button.textContent = "Show it here";
    button.onclick = showHere;
    window.open(url, "personalive-live");
  }

  showHere();
}

app.extensionManager.registerSidebarTab({
  id: "personalive-live",
  icon: "pi pi-video",
  title: "PersonaLive Live",
  label: "Live", // under the icon is room for one short word
  tooltip: "PersonaLive Live: a camera moves the portrait",
  type: "custom",
  render,
});
