// The page: what is pressed goes to the worker, and what the worker tells is shown.

import { Microphone, listDevices, openCamera, openVideo, sendPictures } from "./devices.js";
import { CAMERA_PROBLEMS, MICROPHONE_PROBLEM, MUST_STAY_VISIBLE, NO_LINK, advise, describe, insecure } from "./words.js";

const MAX_SIDE = 1024; // pixels of a portrait that is sent
const STRENGTH = { expression: 1, rotation: 1, translation: 1, scale: 0, relative: false };
const NOTICE_FOR = 15_000; // ms
const ADVICE_FOR = 5000; // ms
const SETTLED = 1000; // ms after a change here until the server's settings are shown again
const MAX_IDLE = 6; // messages

const $ = (id) => document.getElementById(id);
const strengths = [...$("strengths").querySelectorAll("input")];
const token = location.hash.slice(1);
const worker = new Worker("worker.js", { type: "module" });

const page = { link: "connecting", refused: null, session: null, camera: "", isDriving: false };
page.isInHost = location.pathname !== "/"; // in ComfyUI, where a node begins the session
let size = [512, 512]; // of the result
let stream = null; // of the camera
let microphone = null;
let portrait = null; // bytes of the one that was sent last
let before = null; // the session's state before, on this connection
let received = 0; // camera frames, by the server's count
let idle = 0; // messages since the session ended
let isLeaving = false; // Stop was pressed, and the session goes on for a moment
let changed = 0; // when a setting was changed here
let advised = 0; // when `advice` was made
let advice = [];
let delay = null;
let viewerToken = "";
const passing = new Map(); // notices that go by themselves: text -> when

const tell = (type, data = {}, transferred = []) => worker.postMessage({ type, ...data }, transferred);
const send = (message) => tell("send", { message });

// ---------------------------------------------------------------------------------------------- from the worker

worker.onmessage = ({ data }) => fromWorker[data.type](data);

const fromWorker = {
  message: ({ message }) => fromServer[message.type]?.(message),
  lost() {
    if (page.refused) return;
    page.link = "lost";
    render();
  },
  portrait: ({ data }) => showPortrait(data),
  playout(now) {
    delay = now.delay;
    $("fps-shown").textContent = now.rate.toFixed(0);
    $("skipped").textContent = now.skipped;
    $("made").textContent = now.made;
    Object.assign($("now").dataset, now); // what the tests read
    for (const id of ["delay", "delay-now"]) setText($(id), delay === null ? "–" : Math.round(delay));
    $("copy-delay").disabled = delay === null;
    if (microphone && delay !== null) microphone.delay = delay;
  },
  cameraEnded() {
    page.camera = CAMERA_PROBLEMS.ended;
    leave();
  },
};

const fromServer = {
  welcome(message) {
    Object.assign(page, { link: "open", refused: null });
    viewerToken = message.viewer_token;
    before = null;
    showLink();
  },
  refused({ reason, text }) {
    page.refused = { reason, text: reason === "insecure" ? insecure(location) : text };
    render();
  },
  taken_over() {
    page.refused = { reason: "taken_over" };
    render();
  },
  state: takeSession,
  stats: takeSession,
  problem: ({ text }) => notice(text),
  recorded: ({ text, name }) => notice(text ?? `Recorded: ${name}`),
};

function takeSession(session) {
  page.session = session;
  const isNew = session.received < received; // the server was started again
  received = session.received ?? received;
  size = session.size ?? size;
  const { state } = session;
  if (page.isDriving && isNew) {
    send({ type: "set", strength: strength(), early: $("early").checked, mirror: $("mirror").checked });
    if (portrait) tell("portrait", { data: portrait });
  }
  if (session.video && !idle && state !== "stopped" && !isLeaving) page.isDriving = true;
  if (page.isDriving && state === "ready" && before !== "ready" && !session.video) send({ type: "start" });
  isLeaving &&= state !== "stopped" && state !== "off";
  idle = state === "stopped" || state === "off" ? idle + 1 : 0;
  if (page.isDriving && idle > MAX_IDLE) leave();
  before = state;
  if (session.strength && !isNew && performance.now() - changed > SETTLED) showSettings(session);
  render();
}

// ------------------------------------------------------------------------------------------------------- display

function render() {
  const { session, isDriving } = page;
  const { text, tone, act } = describe(page);
  setText($("status"), text);
  $("status-box").dataset.tone = tone;
  const isLoading = page.link === "open" && session?.state === "loading";
  $("progress").hidden = !isLoading;
  if (isLoading) $("progress").value = session.progress;
  $("act").hidden = !act;
  if (act) [$("act").textContent, $("act").dataset.act] = act;

  const isOn = isDriving && page.link === "open";
  $("start").hidden = isDriving;
  const isUnready = !session || session.state === "error" || (session.state === "off" && page.isInHost);
  $("start").disabled = page.link !== "open" || isUnready;
  for (const id of ["pause", "calibrate", "record", "stop"]) $(id).hidden = !isDriving;
  for (const id of ["pause", "calibrate", "record"]) $(id).disabled = !isOn;
  if (!session) return;
  $("camera-box").hidden = Boolean(session.video);
  showNotices(session);
  if (session.state === "off") return;
  setText($("pause").firstChild, session.state === "paused" ? "Go on " : "Pause ");
  $("record").setAttribute("aria-pressed", Boolean(session.recording));
  setText($("record"), session.recording ? "Stop recording" : "Record");
  $("on-air").hidden = !session.recording;
  if (session.recording) setText($("on-air"), `● Recording ${clock(session.recording.seconds)}`);
  setText($("fps-in"), session.fps_in.toFixed(0));
  setText($("fps-made"), session.fps_made.toFixed(0));
  setText($("dropped"), session.dropped);
  setText($("received"), session.received);
  setText($("viewers"), session.viewers ?? 0);
  drawDots(session);
}

function setText(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

function showNotices(session) {
  const time = performance.now();
  if (time - advised > ADVICE_FOR) [advised, advice] = [time, page.isDriving ? advise(session, size, delay) : []];
  for (const [text, when] of passing) if (time - when > NOTICE_FOR) passing.delete(text);
  const texts = [...passing.keys(), ...advice];
  if (session.recording?.problem) texts.push(session.recording.problem);
  if (session.waiting_jobs) {
    const jobs = session.waiting_jobs === 1 ? "1 other job waits" : `${session.waiting_jobs} other jobs wait`;
    texts.push(`${jobs} in ComfyUI until you stop.`);
  }
  if (page.isDriving && !globalThis.MediaStreamTrackProcessor) texts.push(MUST_STAY_VISIBLE);
  if ([...$("notices").children].map((item) => item.textContent).join() === texts.join()) return;
  $("notices").replaceChildren(
    ...texts.map((text) => Object.assign(document.createElement("li"), { textContent: text })),
  );
}

function notice(text) {
  passing.set(text, performance.now());
  if (page.session) showNotices(page.session);
}

function drawDots({ state, keypoints }) {
  const canvas = $("dots");
  canvas.hidden = state !== "calibrating";
  if (canvas.hidden || !keypoints?.length) return;
  [canvas.width, canvas.height] = [canvas.clientWidth, canvas.clientHeight];
  const context = canvas.getContext("2d");
  context.fillStyle = "#63c3a5";
  for (const [x, y] of keypoints) {
    context.beginPath();
    context.arc(x * canvas.width, y * canvas.height, 4, 0, 2 * Math.PI);
    context.fill();
  }
}

async function showPortrait(blob) {
  const bitmap = await createImageBitmap(blob);
  const canvas = $("portrait");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
}

function showSettings({ strength, early, mirror }) {
  for (const input of strengths) {
    if (input.type === "checkbox") input.checked = strength[input.name];
    else input.value = strength[input.name];
  }
  [$("early").checked, $("mirror").checked] = [early, mirror];
  showValues();
}

function showValues() {
  for (const input of strengths) {
    const output = input.parentElement.querySelector("output");
    if (output) setText(output, Number(input.value).toFixed(2));
  }
  $("preview").classList.toggle("is-mirrored", $("mirror").checked);
}

function showLink() {
  const url = new URL("view", location.href);
  url.search = "";
  if (!$("label").checked) url.searchParams.set("label", 0);
  if ($("hold").checked) url.searchParams.set("delay", $("hold-at").value);
  url.hash = viewerToken;
  $("view-link").value = url.href;
}

// -------------------------------------------------------------------------------------------- camera, microphone

async function start(file = null) {
  page.camera = "";
  idle = 0;
  closeCamera();
  if (page.session?.video) {
    page.isDriving = true;
    send({ type: "start" });
    render();
    return;
  }
  try {
    if (!file && !navigator.mediaDevices) throw new DOMException("", "SecurityError");
    stream = file ? await openVideo($("camera"), file) : await openCamera($("camera-choice").value);
  } catch (error) {
    const says = file ? CAMERA_PROBLEMS.file : CAMERA_PROBLEMS[error.name];
    page.camera = error.name === "SecurityError" ? insecure(location) : (says ?? `The camera failed: ${error.message}`);
    leave();
    return;
  }
  if (!file) {
    $("camera").srcObject = stream;
    $("camera").play();
    await listDevices($("camera-choice"), $("microphone-choice"));
    $("camera-choice").value = stream.getVideoTracks()[0].getSettings().deviceId ?? "";
  }
  $("preview").classList.add("is-on");
  sendPictures(stream, $("camera"), worker);
  if (!page.isDriving) {
    page.isDriving = true;
    tell("drive", { on: true });
    if (page.session?.state !== "loading") send({ type: "start" });
  }
  openMicrophone();
  render();
}

// Camera and microphone off; the session stays as it is.
function leave() {
  page.isDriving = false;
  tell("drive", { on: false });
  closeCamera();
  microphone?.close();
  microphone = null;
  render();
}

function closeCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  $("camera").pause();
  $("camera").srcObject = null;
  if ($("camera").src) {
    URL.revokeObjectURL($("camera").src);
    $("camera").removeAttribute("src");
  }
  $("preview").classList.remove("is-on");
}

async function openMicrophone() {
  microphone?.close();
  microphone = null;
  const chosen = $("microphone-choice").value;
  $("hear").disabled = !chosen;
  if (!chosen || !page.isDriving) return;
  try {
    microphone = await Microphone.open(chosen, worker);
    microphone.isHeard = $("hear").checked;
    await listDevices($("camera-choice"), $("microphone-choice"));
  } catch {
    notice(MICROPHONE_PROBLEM);
  }
}

async function takePortrait(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // turned as EXIF says
  } catch {
    notice(`${file.name} is no picture that the browser can read: use JPEG, PNG or WebP.`);
    return;
  }
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { alpha: false });
  context.fillStyle = "#fff"; // behind transparent pictures
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
  portrait = await blob.arrayBuffer();
  tell("portrait", { data: portrait });
}

// ------------------------------------------------------------------------------------------------------ controls

const strength = () =>
  Object.fromEntries(strengths.map(({ name, type, checked, value }) => [name, type === "checkbox" ? checked : +value]));

function set(settings) {
  changed = performance.now();
  showValues();
  send({ type: "set", ...settings });
}

const actions = {
  restart: () => send({ type: "restart" }),
  takeOver() {
    page.refused = null;
    page.link = "connecting";
    tell("takeOver");
    render();
  },
};

const pause = () => send({ type: "pause", on: page.session?.state !== "paused" });
const calibrate = () => send({ type: "calibrate" });
const tellHold = () => tell("hold", { delay: $("hold").checked ? Number($("hold-at").value) : null });

async function copy(button, text) {
  await navigator.clipboard.writeText(text);
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1500);
}

function listen() {
  $("start").onclick = () => start();
  $("stop").onclick = () => {
    send({ type: "stop" });
    isLeaving = true;
    leave();
  };
  $("pause").onclick = pause;
  $("calibrate").onclick = calibrate;
  $("record").onclick = () => send({ type: "record", on: !page.session?.recording });
  $("act").onclick = () => actions[$("act").dataset.act]();

  for (const input of strengths) input.oninput = () => set({ strength: strength() });
  $("reset").onclick = () => {
    showSettings({ strength: STRENGTH, early: $("early").checked, mirror: $("mirror").checked });
    set({ strength: STRENGTH });
  };
  $("early").onchange = () => set({ early: $("early").checked });
  $("mirror").onchange = () => set({ mirror: $("mirror").checked });

  $("hold").onchange = $("hold-at").oninput = () => {
    tellHold();
    showLink();
  };
  $("label").onchange = showLink;
  $("copy-delay").onclick = () => copy($("copy-delay"), $("delay").textContent);
  $("copy-link").onclick = () => copy($("copy-link"), $("view-link").value);
  $("view-link").onfocus = () => $("view-link").select();

  $("camera-choice").onchange = () => page.isDriving && start();
  $("microphone-choice").onchange = openMicrophone;
  $("hear").onchange = () => microphone && (microphone.isHeard = $("hear").checked);
  $("video-file").onchange = ({ target }) => target.files[0] && start(target.files[0]);
  $("portrait-file").onchange = ({ target }) => target.files[0] && takePortrait(target.files[0]);
  navigator.mediaDevices?.addEventListener("devicechange", () =>
    listDevices($("camera-choice"), $("microphone-choice")),
  );

  addEventListener("keydown", (event) => {
    const { target, key, ctrlKey, metaKey, altKey, repeat } = event;
    if (ctrlKey || metaKey || altKey || repeat || !page.isDriving) return;
    if (key.toLowerCase() === "c" && !target.matches("select, #hold-at, #view-link")) calibrate();
    if (key === " " && !target.matches("button, input, select")) {
      event.preventDefault();
      pause();
    }
  });

  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("is-dropping");
  });
  addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) document.body.classList.remove("is-dropping");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("is-dropping");
    const [file] = event.dataTransfer.files;
    if (file?.type.startsWith("video/")) start(file);
    else if (file) takePortrait(file);
  });
}

// --------------------------------------------------------------------------------------------------------- begin

listen();
showValues();
listDevices($("camera-choice"), $("microphone-choice"));
if (token) {
  const url = new URL("ws", location.href.replace(/^http/, "ws"));
  url.search = url.hash = "";
  const canvas = $("picture").transferControlToOffscreen();
  tell("open", { url: url.href, role: "driver", token, canvas }, [canvas]);
} else {
  page.refused = { reason: "token", text: NO_LINK };
}
if (!navigator.mediaDevices) page.camera = insecure(location);
render();
