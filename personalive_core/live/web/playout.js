// When results are shown: each at its capture time plus one delay, so that frames which come four at once play evenly.
// The delay follows how late frames come. playout.py does the same, and both pass the same test vectors.
// All times are in ms. Capture and arrival may be on different clocks, whose offset then becomes a part of the delay.

const OVER = 3000; // the frames whose lateness counts
const QUANTILE = 0.98;
const MARGIN = 5;
const JUMP = 60; // a delay that is this much too short is mended at once
const FOLLOW = 1; // at most, a tick
const RISE = 0.05; // of what the delay is too short, a tick
const FALL = 0.005; // of what it is too long
const ANOTHER_CLOCK = 5000; // no delay changes by so much from frame to frame
const MAX_WAITING = 512; // frames

export class Playout {
  constructor() {
    this.delay = null; // before the first frame
    this.held = null; // a delay that is kept whatever comes
    this.made = this.shown = this.skipped = 0; // made = shown + skipped + waiting.length
    this.waiting = []; // in the order in which they came
    this.lateness = []; // [arrival, arrival - capture] of the last frames
    this.newest = null; // seq
  }

  // frame: {seq, capture, isReady, ...}, isReady once it can be shown. Gaps in seq count as skipped.
  push(frame, arrival) {
    const late = arrival - frame.capture;
    const dropped = this.newest !== null && frame.seq > this.newest ? frame.seq - this.newest - 1 : 0;
    this.newest = frame.seq;
    this.made += dropped + 1;
    this.skipped += dropped;
    if (this.delay !== null && Math.abs(late - this.delay) > ANOTHER_CLOCK && this.held === null) {
      this.skipped += this.waiting.length;
      this.waiting = [];
      this.lateness = [];
      this.delay = null;
    }
    this.lateness.push([arrival, late]);
    this.delay ??= late + MARGIN;
    this.waiting.push(frame);
    if (this.waiting.length > MAX_WAITING) {
      this.waiting.shift();
      this.skipped += 1;
    }
  }

  // What leaves the queue now: the last one is to be shown, the others came too late for that.
  tick(now) {
    this.#follow(now);
    let due = 0;
    for (let i = 0; i < this.waiting.length; i++) {
      if (this.waiting[i].isReady && this.waiting[i].capture + this.delay <= now) due = i + 1;
    }
    if (due) {
      this.shown += 1;
      this.skipped += due - 1;
    }
    return this.waiting.splice(0, due);
  }

  #follow(now) {
    if (this.held !== null) this.delay = this.held;
    while (this.lateness.length > 1 && this.lateness[0][0] < now - OVER) this.lateness.shift();
    if (!this.lateness.length || this.held !== null) return;
    const sorted = this.lateness.map(([, late]) => late).sort((a, b) => a - b);
    const short = sorted[Math.ceil(QUANTILE * sorted.length) - 1] + MARGIN - this.delay;
    if (short > JUMP) this.delay += short;
    else this.delay += Math.max(-FOLLOW, Math.min(FOLLOW, short * (short > 0 ? RISE : FALL)));
  }
}
