// The buttons that download the weights and convert them: what they do is the user's own act, in no workflow.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { loadTexts } from "./texts.js";

const BUTTONS = {
  PersonaLiveLoadModel: [["Download weights", "official"], ["Convert to half the size", "convert"]],
  PersonaLiveCropPortrait: [["Download yunet", "yunet"]],
  PersonaLiveCropDriving: [["Download yunet", "yunet"]],
  PersonaLiveAssembleVideo: [["Download TAESD", "taesd"]],
};
function element(name, text = "", ...children) {
  const made = Object.assign(document.createElement(name), { textContent: text });
  made.append(...children);
  return made;
}

async function ask(task) {
  const sent = task && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ task }) };
  const answer = await api.fetchApi("/personalive/weights", sent);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function size(bytes) {
  return bytes < 1e8 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

async function openDialog(title, task) {
  const texts = await loadTexts();
  const text = element("p"), bar = element("progress"), start = element("button", "Start");
  const stop = element("button", "Stop"), close = element("button", "Close"), list = element("ul");
  const dialog = element("dialog", "", element("h3", title), element("p", texts[task]), list, text, bar, start, " ", stop, " ", close);
  Object.assign(dialog.style, { maxWidth: "44rem", overflowWrap: "anywhere" });
  const show = ({ job, ...missing }) => {
    const files = missing[task] ?? [];
    list.replaceChildren(...files.map((f) => element("li", `${f.address} (${size(f.size)}) → ${f.folder}`)));
    const running = Boolean(job?.running);
    start.disabled = running || (task !== "convert" && !files.length);
    stop.disabled = !running;
    bar.hidden = !running;
    if (job?.total) Object.assign(bar, { max: job.total, value: job.done });
    else bar.removeAttribute("value");
    const total = size(files.reduce((sum, f) => sum + f.size, 0));
    if (running) text.textContent = job.total ? `${job.text}: ${size(job.done)} / ${size(job.total)}` : job.text;
    else if (job?.task === task) text.textContent = job.text;
    else if (task !== "convert") text.textContent = files.length ? `${texts.missing} ${total}` : texts.complete;
  };
  const act = (what) => ask(what).then(show, (error) => { text.textContent = String(error); });
  const timer = setInterval(() => act(), 1000);
  start.onclick = () => act(task);
  stop.onclick = () => act("stop");
  close.onclick = () => dialog.close();
  dialog.onclose = () => { clearInterval(timer); dialog.remove(); };
  document.body.append(dialog);
  dialog.showModal();
  await act();
}

function addButtons(node, buttons) {
  for (const [title, task] of buttons) {
    const button = node.addWidget("button", title, null, () => openDialog(title, task), { serialize: false });
    button.serialize = false;
  }
}

app.registerExtension({
  name: "personalive.weights",
  nodeCreated(node) {
    if (BUTTONS[node.comfyClass]) addButtons(node, BUTTONS[node.comfyClass]);
    else if (node.subgraph) setTimeout(() => { // once it is configured: older pages make its widgets anew then
      const inside = node.subgraph.nodes.some((inner) => inner.comfyClass === "PersonaLiveLoadModel");
      if (inside) addButtons(node, BUTTONS.PersonaLiveLoadModel.slice(0, 1));
    });
  },
});
