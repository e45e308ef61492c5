// The bare picture, for OBS's browser source: connects again for ever. ?label=0 hides the label, ?delay=800 holds the
// delay at 800 ms, which needs the clock of the driver's computer.

const parameters = new URLSearchParams(location.search);
const picture = document.querySelector("#picture");
const problem = document.querySelector("#problem");
document.querySelector("#label").hidden = parameters.get("label") === "0";

const canvas = picture.transferControlToOffscreen();
const worker = new Worker("worker.js", { type: "module" });
const url = new URL("ws", location.href.replace(/^http/, "ws"));
url.search = url.hash = "";
worker.postMessage({ type: "open", url: url.href, role: "viewer", token: location.hash.slice(1), canvas }, [canvas]);
if (parameters.has("delay")) worker.postMessage({ type: "hold", delay: Number(parameters.get("delay")) });
worker.onmessage = ({ data }) => {
  if (data.type === "portrait" || (data.type === "playout" && data.shown)) picture.classList.add("has-picture");
  if (data.type === "message" && data.message.type === "welcome") problem.textContent = "";
  if (data.type === "message" && data.message.type === "refused") problem.textContent = data.message.text;
};
