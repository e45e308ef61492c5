// What the page says: one short text a state, and what would make a slow computer faster.

const SLOW = 1000; // ms of delay: more, and the page says what would help
const SMALL_DECODER = 0.1; // of the time of the full one
const ALONE = 0.5; // of the time that decoding takes beside the next window
const DIM = 15; // camera pictures a second

export const CAMERA_PROBLEMS = {
  NotAllowedError:
    "The browser may not use the camera. Allow it with the camera symbol beside the address, then press Start again.",
  NotReadableError:
    "The camera is in use by another program, or switched off. Close that program, then press Start again.",
  NotFoundError: "No camera was found. Connect one and press Start again, or use a video file instead.",
  OverconstrainedError: "The chosen camera is not connected. Choose another one, then press Start again.",
  ended: "The camera was disconnected, or the browser took it away. Press Start again.",
  file: "The browser cannot play this video file. Use an MP4 (H.264) or WebM file.",
};

export const MICROPHONE_PROBLEM =
  "The microphone cannot be used, so there is no sound. Allow it with the symbol beside the address, or choose another.";

export const MUST_STAY_VISIBLE =
  "In this browser the tab must stay visible while you are live. Chrome and Edge go on in the background.";

export const NO_LINK =
  "This address lacks its key. Open the whole link, with everything after #, that `personalive live` printed.";

// Why the camera cannot be used at this address.
export function insecure({ hostname, port, hash }) {
  const local = port || "80";
  return (
    "The browser gives a camera only to https and to this computer's own address.\n" +
    `From here, run  ssh -L ${local}:127.0.0.1:${local} ${hostname}\n` +
    `and open  http://127.0.0.1:${local}/${hash.slice(0, 5)}…\n` +
    "Or start the server with --tls-cert and --tls-key. The link for viewers works without either."
  );
}

// {text, tone, act?: [label, what]}
export function describe({ link, refused, session, camera, isDriving, isInHost }) {
  if (refused?.reason === "busy") return alert(refused.text, ["Take over", "takeOver"]);
  if (refused?.reason === "taken_over") {
    return alert("Another page has taken over.", ["Take it back", "takeOver"]);
  }
  if (refused) return alert(refused.text);
  if (link === "lost") return alert("The connection is lost. Reconnecting…");
  if (link === "connecting" || !session) return calm("Connecting…");
  if (session.state === "error") return alert(session.message, ["Start again", "restart"]);
  if (session.state === "stopped" && !isDriving) return calm("Stopped.");
  if (session.state === "off") {
    return calm(isInHost ? "Waiting for the Live node: run it in ComfyUI." : "Stopped. Press Start to begin again.");
  }
  if (session.state === "loading") {
    return calm(session.message ? `Loading: ${session.message}` : "Loading the model…");
  }
  if (session.video) {
    if (session.state === "live") return calm(`Live, driven by ${session.video}.`);
    if (session.state === "ready" || session.state === "stalled") return calm(`${session.video} has ended.`);
  }
  if (camera) return alert(camera);
  if (!isDriving) return calm("Ready. Press Start and look straight at the camera.");
  return {
    ready: calm("Waiting for the camera's first pictures…"),
    calibrating: calm("Look straight at the camera, with a calm face."),
    live: calm("Live."),
    "face lost": alert(`No face for ${Math.max(1, Math.round(session.lost))} s: the last movement is held.`),
    stalled: alert("No pictures from the camera. Is it covered, unplugged or used by another program?"),
    paused: calm("Paused. Press Space to go on."),
    stopped: calm("Stopped."),
  }[session.state];
}

const calm = (text, act) => ({ text, act, tone: "calm" });
const alert = (text, act) => ({ text, act, tone: "alert" });

// A frame waits for the window's start, passes four windows, and is decoded and played evenly; in ms.
const expected = (period, window, decode, early) => (early ? 2.75 : 3.75) * period + window + decode;

// What would make the delay shorter, with the delay that is then to be expected; nothing where it is short.
export function advise({ period, window, decode, early, fps_in, fps_made, state }, size, delay) {
  if (state !== "live") return [];
  const lines = [];
  if (fps_in > 0 && fps_in < DIM) {
    lines.push(`The camera gives only ${Math.round(fps_in)} pictures a second. More light often helps.`);
  }
  if (!(delay > SLOW) || !period) return lines;
  const [p, w, d] = [period * 1000, window * 1000, decode * 1000];
  const about = (p, w, d, early) => `about ${(expected(p, w, d, early) / 1000).toFixed(1)} s`;
  const help = early ? [] : [`choose “Less delay” (${about(p, w, d, true)})`];
  if (d > 0.1 * p) {
    const saved = d * ALONE * (1 - SMALL_DECODER);
    help.push(`use a small decoder (${about(Math.max(w, p - saved), w, d - saved, early)})`);
  }
  for (const side of [384, 256].filter((side) => side < Math.min(...size))) {
    const part = side ** 2 / (size[0] * size[1]);
    help.push(`use ${side} x ${side} pixels (${about(p * part, w * part, d * part, early)})`);
  }
  const now = `${Math.round(fps_made)} pictures a second are made; the delay is ${(delay / 1000).toFixed(1)} s.`;
  lines.push(help.length ? [`${now} For less:`, ...help].join("\n") : now);
  return lines;
}
