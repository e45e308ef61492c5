// The microphone, on the audio thread: int16 mono in pieces of 1024 samples, each with the time of its first sample.

const PIECE = 1024;

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(PIECE);
    this.filled = 0;
    this.port.onmessage = ({ data }) => (this.receiver = data);
  }

  process([channels]) {
    if (!channels.length || !this.receiver) return true;
    for (let i = 0; i < channels[0].length; i++) {
      if (!this.filled) this.begun = (currentFrame + i) / sampleRate;
      let sample = 0;
      for (const channel of channels) sample += channel[i] / channels.length;
      this.piece[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled === PIECE) {
        this.receiver.postMessage({ begun: this.begun * 1000, samples: this.piece }, [this.piece.buffer]);
        this.piece = new Int16Array(PIECE);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
