// Camera, video file and microphone of this computer.

const CAMERA = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };
const MICROPHONE = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
const LONGEST_DELAY = 30; // seconds

export async function openCamera(deviceId) {
  const chosen = deviceId ? { deviceId: { exact: deviceId } } : {};
  return navigator.mediaDevices.getUserMedia({ video: { ...CAMERA, ...chosen } });
}

// Plays the file over and over; returns its pictures as a stream.
export async function openVideo(element, file) {
  element.srcObject = null;
  element.src = URL.createObjectURL(file);
  element.loop = true;
  await element.play();
  return element.captureStream();
}

// Fills the two choices, and keeps what was chosen.
export async function listDevices(cameras, microphones) {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  fill(cameras, "videoinput", "Camera", [], devices);
  fill(microphones, "audioinput", "Microphone", [new Option("None", "")], devices);
}

function fill(select, kind, name, first, devices) {
  const chosen = select.value;
  const found = devices.filter((device) => device.kind === kind);
  const options = found.map(({ label, deviceId }, i) => new Option(label || `${name} ${i + 1}`, deviceId || "default"));
  select.replaceChildren(...first, ...options);
  if ([...select.options].some(({ value }) => value === chosen)) select.value = chosen;
}

// The camera's pictures go to the worker. Without MediaStreamTrackProcessor the page takes them, while it is visible.
export function sendPictures(stream, element, worker) {
  const [track] = stream.getVideoTracks();
  if (globalThis.MediaStreamTrackProcessor) {
    const { readable } = new MediaStreamTrackProcessor({ track, maxBufferSize: 1 });
    worker.postMessage({ type: "camera", stream: readable }, [readable]);
    return;
  }
  const grab = async () => {
    if (track.readyState === "ended") return;
    const bitmap = await createImageBitmap(element);
    worker.postMessage({ type: "picture", bitmap }, [bitmap]);
    element.requestVideoFrameCallback(grab);
  };
  element.requestVideoFrameCallback(grab);
}

// A microphone that is sent to the worker, and that can be heard with a delay.
export class Microphone {
  static async open(deviceId, worker) {
    const chosen = deviceId && deviceId !== "default" ? { deviceId: { exact: deviceId } } : {};
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { ...MICROPHONE, ...chosen } });
    const context = new AudioContext({ latencyHint: "interactive" });
    await context.audioWorklet.addModule("sound.js");
    return new Microphone(stream, context, worker);
  }

  constructor(stream, context, worker) {
    this.stream = stream;
    this.context = context;
    this.inputLatency = stream.getAudioTracks()[0].getSettings().latency ?? 0; // seconds
    const source = context.createMediaStreamSource(stream);
    const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
    const { port1, port2 } = new MessageChannel();
    node.port.postMessage(port1, [port1]);
    const latency = this.inputLatency * 1000;
    worker.postMessage({ type: "sound", port: port2, rate: context.sampleRate, latency }, [port2]);
    source.connect(node);
    this.line = new DelayNode(context, { maxDelayTime: LONGEST_DELAY });
    this.volume = new GainNode(context, { gain: 0 });
    source.connect(this.line).connect(this.volume).connect(context.destination);
  }

  // ms from the microphone to the loudspeaker
  set delay(ms) {
    const { context, line, inputLatency } = this;
    const seconds = Math.max(0, ms / 1000 - inputLatency - (context.outputLatency || context.baseLatency));
    if (Math.abs(line.delayTime.value - seconds) > 0.01) line.delayTime.setTargetAtTime(seconds, context.currentTime, 0.1);
  }

  set isHeard(on) {
    this.volume.gain.value = on ? 1 : 0;
  }

  close() {
    for (const track of this.stream.getTracks()) track.stop();
    this.context.close();
  }
}
