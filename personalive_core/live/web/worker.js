// All that must go on while the tab is hidden: camera frames out, results in and shown, and the connection.

import { Playout } from "./playout.js";

const VERSION = 1;
const [CAMERA, RESULT, PORTRAIT, SOUND] = [1, 2, 3, 4];
const HEADER = 24; // bytes
const SHORT_SIDE = 512; // pixels of a camera frame that is sent
const QUALITY = 0.9;
const MAX_BUFFERED = 200_000; // bytes on their way to the server: more, and camera frames are dropped
const TICK = 4;
const DECODED_AHEAD = 100; // ms before a frame is due
const SILENT = 6000; // ms without a message: the connection is dead
const [FIRST_WAIT, LONGEST_WAIT] = [250, 4000]; // ms until the next attempt to connect
const RATES_OVER = 2000;

const playout = new Playout();
const camera = { reader: null, isDriving: false, sent: 0, dropped: 0 };
const id = String(crypto.getRandomValues(new Uint32Array(4))); // a page that comes back takes its own place
let options; // {url, role, token}
let screen; // of the results
let socket = null;
let isWelcome = false;
let wait = FIRST_WAIT;
let heard = 0;
let isTakingOver = false;
let isRecording = false;
const sequence = {}; // by kind
let drawn = []; // times

const now = () => performance.timeOrigin + performance.now();
const tell = (type, data = {}) => postMessage({ type, ...data });

const handlers = {
  open(data) {
    options = data;
    screen = data.canvas.getContext("2d", { alpha: false });
    connect();
    setInterval(tick, TICK);
    setInterval(watch, 250);
  },
  takeOver() {
    isTakingOver = true;
    connect();
  },
  send: ({ message }) => sendText(message),
  portrait: ({ data }) => sendBinary(PORTRAIT, now(), new Uint8Array(data)),
  drive: ({ on }) => (camera.isDriving = on),
  hold: ({ delay }) => (playout.held = delay),
  camera: ({ stream }) => capture(stream.getReader()),
  async picture({ bitmap }) {
    await sendPicture(bitmap, bitmap.width, bitmap.height, now());
    tell("pictureTaken");
  },
  sound({ port, rate, latency }) {
    const clock = new SourceClock();
    port.onmessage = ({ data: { begun, samples } }) => {
      const length = (samples.length / rate) * 1000;
      const time = clock.time(begun + length, now()) - length - latency;
      if (isRecording) sendBinary(SOUND, time, new Uint8Array(samples.buffer), rate);
    };
  },
};
onmessage = ({ data }) => handlers[data.type](data);

// ---------------------------------------------------------------------------------------------------- connection

function connect() {
  const mine = (socket = new WebSocket(options.url));
  mine.binaryType = "arraybuffer";
  mine.onopen = () => {
    const { role, token } = options;
    mine.send(
      JSON.stringify({ type: "hello", role, token, version: VERSION, page: id, take_over: isTakingOver }),
    );
  };
  mine.onmessage = ({ data }) => {
    heard = now();
    if (typeof data === "string") receiveText(JSON.parse(data));
    else receiveBinary(data);
  };
  mine.onclose = lost;
  heard = now();
}

function receiveText(message) {
  if (message.type === "welcome") {
    [isWelcome, isTakingOver, wait] = [true, false, FIRST_WAIT];
  } else if (message.type === "refused" && options.role === "viewer") {
    wait = LONGEST_WAIT; // and again, for ever: nobody sits at a viewer in OBS
  } else if (message.type === "refused" || message.type === "taken_over") {
    forget();
  }
  if (message.recording !== undefined) isRecording = message.recording !== null;
  tell("message", { message });
}

function lost() {
  forget();
  tell("lost", { wait });
  setTimeout(connect, wait);
  wait = Math.min(2 * wait, LONGEST_WAIT);
}

function forget() {
  socket.onclose = socket.onmessage = null;
  socket.close();
  isWelcome = isTakingOver = false;
}

function sendText(message) {
  if (isWelcome) socket.send(JSON.stringify(message));
}

function sendBinary(kind, time, data, reserved = 0) {
  if (!isWelcome || socket.readyState !== WebSocket.OPEN) return;
  const bytes = new Uint8Array(HEADER + data.length);
  const header = new DataView(bytes.buffer);
  header.setUint8(0, VERSION);
  header.setUint8(1, kind);
  sequence[kind] = (sequence[kind] ?? -1) + 1;
  header.setUint32(4, sequence[kind], true);
  header.setFloat64(8, time, true);
  header.setUint32(20, reserved, true);
  bytes.set(data, HEADER);
  socket.send(bytes);
}

function receiveBinary(buffer) {
  const header = new DataView(buffer);
  const kind = header.getUint8(1);
  const data = new Blob([new Uint8Array(buffer, HEADER)], { type: "image/jpeg" });
  if (kind === RESULT) {
    const frame = { seq: header.getUint32(4, true), capture: header.getFloat64(8, true), data, isReady: false };
    playout.push(frame, now());
  } else if (kind === PORTRAIT) {
    tell("portrait", { data });
    if (!drawn.length) createImageBitmap(data).then(draw);
  }
}

function watch() {
  if (isWelcome && now() - heard > SILENT) lost();
  while (drawn[0] < now() - RATES_OVER) drawn.shift();
  tell("playout", {
    delay: playout.delay,
    made: playout.made,
    shown: playout.shown,
    skipped: playout.skipped,
    waiting: playout.waiting.length,
    rate: (drawn.length * 1000) / RATES_OVER,
    sent: camera.sent,
    unsent: camera.dropped,
  });
}

// ------------------------------------------------------------------------------------------------------- results

function tick() {
  const time = now();
  for (const frame of playout.waiting) {
    if (!frame.decoding && frame.capture + playout.delay - DECODED_AHEAD <= time) decode(frame);
  }
  const left = playout.tick(time);
  const shown = left.pop();
  for (const frame of left) frame.bitmap?.close();
  if (shown) {
    draw(shown.bitmap);
    drawn.push(time);
  }
}

async function decode(frame) {
  frame.decoding = true;
  frame.bitmap = await createImageBitmap(frame.data);
  frame.isReady = true;
}

function draw(bitmap) {
  const { canvas } = screen;
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  }
  screen.drawImage(bitmap, 0, 0);
  bitmap.close();
}

// -------------------------------------------------------------------------------------------------------- camera

// A source's time stamps, in ms, on our clock: whatever came with the least lag is taken to have come at once.
class SourceClock {
  #offset = Infinity;

  time(stamp, arrival) {
    const offset = arrival - stamp;
    const hasBegunAnew = offset > this.#offset + 500;
    this.#offset = hasBegunAnew ? offset : Math.min(offset, this.#offset + 0.05); // clocks drift apart
    return stamp + this.#offset;
  }
}

async function capture(reader) {
  const clock = new SourceClock();
  camera.reader = reader;
  while (true) {
    const { value: frame, done } = await reader.read();
    if (done) break;
    if (camera.reader === reader) {
      const time = clock.time(frame.timestamp / 1000, now());
      await sendPicture(frame, frame.displayWidth, frame.displayHeight, time);
    }
    frame.close();
  }
  if (camera.reader === reader) tell("cameraEnded");
}

const scaled = new OffscreenCanvas(1, 1);
const scaler = scaled.getContext("2d", { alpha: false, willReadFrequently: true });

async function sendPicture(picture, width, height, time) {
  if (!camera.isDriving || !isWelcome) return;
  if (socket.bufferedAmount >= MAX_BUFFERED) {
    camera.dropped += 1;
    return;
  }
  const scale = Math.min(1, SHORT_SIDE / Math.min(width, height));
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (scaled.width !== w || scaled.height !== h) [scaled.width, scaled.height] = [w, h];
  scaler.drawImage(picture, 0, 0, w, h);
  const blob = await scaled.convertToBlob({ type: "image/jpeg", quality: QUALITY });
  sendBinary(CAMERA, time, new Uint8Array(await blob.arrayBuffer()));
  camera.sent += 1;
}
