"""Records a live session: its frames, the driver's sound and the driver's motion, all by their capture times."""

import os
import threading
import wave
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..limits import MOTION_FRAMES
from ..media.video_writer import VideoWriter, partial_path
from ..motion.motion import Motion, MotionRecord
from ..motion.motion_file import SUFFIX, save_motion
from ..motion.performance import Performance, Strength
from .session import DrivenMotion, LiveChunk

WAITING = 8  # windows that may wait to be written: a disk may pause
SOUND_WAITING = 512  # pieces of sound, likewise: at least five seconds
NOMINAL_RATE = Fraction(30)  # frames per second, as long as the true rate is not known
TIME_BASE = Fraction(1, 90000)  # seconds
CLOCKS = 0.01  # seconds that sound may be off before it is put right
GAP = 0.1  # seconds that are a gap, and not the unsteady times of a microphone
SMOOTHING = 0.02  # how much of each piece's deviation counts: the times of single pieces are not exact
MAX_SILENCE = 3600.0  # seconds of silence that are written for a gap
SAMPLE_RATES = 8000, 192000  # Hz, the lowest and the highest


class Recording:
    """Writes `live_TIMESTAMP.mp4` on a thread of its own, and at the end `live_TIMESTAMP.motion.safetensors` beside it.

    It begins with the first motion that comes, and with the frames and the sound of that moment. What `take_*` get is
    written later; they never wait. A kill leaves the hidden file that `VideoWriter` writes, which plays.

    Args:
        folder: Where to; it is made where it is missing.
        size: Width and height of the frames.

    Attributes:
        path: Of the video.
        dropped: Frames that came faster than they could be written.
        problem: One sentence, when nothing more is written because the disk is full; else None.

    Raises:
        InputError: Nothing can be written there.
    """

    def __init__(self, folder: Path, size: tuple[int, int]):
        self.path = _new_path(folder)
        self.dropped = 0
        self.problem: str | None = None
        self._begin: float | None = None  # capture time of the first motion
        self._last: Fraction | None = None  # time of the last frame
        self._record, self._motion_times = MotionRecord(), list[float]()
        # What a full disk leaves stays, as of a run that can be resumed.
        self._video = VideoWriter(self.path, *size, NOMINAL_RATE, time_base=TIME_BASE, resumable=True)
        self._sound: _Sound | None = None
        self._changed = threading.Condition()
        self._chunks: deque[LiveChunk] = deque()
        self._pieces: deque[tuple[float, bytes, int]] = deque()
        self._is_finished = False
        self._thread = threading.Thread(target=self._write_all, name="recording", daemon=True)
        self._thread.start()

    # -------------------------------------------------------------------------------------------- from any thread

    def take_chunk(self, chunk: LiveChunk) -> None:
        """The frames of a window."""
        with self._changed:
            self._chunks.append(chunk)
            if len(self._chunks) > WAITING:
                self.dropped += len(self._chunks.popleft().times)
            self._changed.notify_all()

    def take_motion(self, driven: DrivenMotion) -> None:
        """The motion of a window."""
        with self._changed:
            if self._begin is None:
                self._begin = driven.times[0]
            if len(self._motion_times) + len(driven.times) <= MOTION_FRAMES:
                self._record.append(driven.motion)
                self._motion_times += driven.times

    def take_sound(self, time: float, samples: bytes, rate: int) -> None:
        """A piece of sound.

        Args:
            time: When its first sample was captured, in seconds on the camera's clock.
            samples: int16 little endian, one channel.
            rate: In Hz, for the whole recording that of the first piece.

        Raises:
            ValueError: It is no such sound.
        """
        if len(samples) % 2 or not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
            raise ValueError(f"sound of {len(samples)} bytes at {rate} Hz")
        with self._changed:
            self._pieces.append((time, samples, rate))
            if len(self._pieces) > SOUND_WAITING:
                self._pieces.popleft()
            self._changed.notify_all()

    def stats(self) -> dict[str, Any]:
        """The name, the length so far, frames that were dropped, and what is wrong."""
        return {
            "name": self.path.name,
            "seconds": float(self._last or 0),
            "dropped": self.dropped,
            "problem": self.problem,
        }

    def finish(self, neutral: Motion | None, strength: Strength) -> dict[str, Any]:
        """Completes the files, and waits for that.

        Args:
            neutral: The driver's motion that counts as normal, for the motion file.
            strength: How much of the motion was taken, likewise.

        Returns:
            `name` and `motion`, the names of the two files, None for one that is not there; `text`, one sentence.
        """
        with self._changed:
            self._is_finished = True
            self._changed.notify_all()
        self._thread.join()
        if self._sound:
            self._sound.close()
        if self._last is not None and self.problem is None:
            self._guard(lambda: self._video.finish(self._sound.path if self._sound else None))
        self._video.discard()
        partial = partial_path(self.path)
        if not self.path.exists() and partial.exists():  # the disk is full; what is there plays as it is
            os.replace(partial, self.path)
        motion = self._save_motion(neutral, strength)
        if self._sound and (self.problem is None or not self._sound.frames):
            with suppress(OSError):
                self._sound.path.unlink()
        if not self.path.exists():
            return {"name": None, "motion": motion, "text": self.problem or "Nothing was recorded: no frame came."}
        text = f"{self.path.name} is {float(self._last or 0):.1f} seconds long."
        if self.dropped:
            text += f" {self.dropped} frames are missing because they came faster than they could be written."
        return {"name": self.path.name, "motion": motion, "text": f"{text} {self.problem}" if self.problem else text}

    # ------------------------------------------------------------------------------------------- in its own thread

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._chunks or self._pieces or self._is_finished)
                chunk = self._chunks.popleft() if self._chunks else None
                pieces = []
                if self._begin is not None:  # until then it is not known what sound belongs to it
                    pieces, self._pieces = list(self._pieces), deque()
                elif not chunk and not self._is_finished:
                    self._changed.wait(0.1)
                if self._is_finished and not chunk and not pieces:
                    return
            if self.problem is None:
                self._guard(lambda chunk=chunk, pieces=pieces: self._write(chunk, pieces))  # type: ignore[misc]

    def _write(self, chunk: LiveChunk | None, pieces: list[tuple[float, bytes, int]]) -> None:
        begin = self._begin
        if begin is None:
            return
        for time, samples, rate in pieces:
            self._sound = self._sound or _Sound(self.path.with_suffix(".wav"), rate, begin)
            self._sound.write(time, samples, rate)
        for pixels, time in zip(chunk.pictures, chunk.times, strict=True) if chunk else ():
            stamp = round((time - begin) / TIME_BASE) * TIME_BASE
            if stamp >= 0 and (self._last is None or stamp > self._last):
                self._video.write(pixels, stamp)
                self._last = stamp

    def _guard(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (InputError, OSError) as error:
            self.problem = f"The recording ended early: {error}"

    def _save_motion(self, neutral: Motion | None, strength: Strength) -> str | None:
        """The name of the file."""
        if not self._motion_times or self._begin is None:
            return None
        times = [Fraction(time - self._begin).limit_denominator(10**6) for time in self._motion_times]
        rate = Fraction(round((len(times) - 1) / (times[-1] or 1) * 1000) or 1000, 1000)
        performance = Performance.extracted(self._record.motion(), rate, self.path.name, times)
        performance = replace(performance, strength=strength, neutral=neutral)
        path = self.path.with_suffix(SUFFIX)
        try:
            save_motion(performance, path)
        except InputError as error:
            self.problem = self.problem or str(error)
            return None
        return path.name


class _Sound:
    """A WAV file whose first sample belongs to the first frame, with silence where nothing came."""

    def __init__(self, path: Path, rate: int, begin: float):
        self.path, self.frames = path, 0
        self._rate, self._begin = rate, begin
        self._late = 0.0  # seconds that the sound's own clock is behind the camera's, smoothed
        self._file = wave.open(str(path), "wb")  # noqa: SIM115 it is closed by `close`
        self._file.setparams((1, 2, rate, 0, "NONE", ""))

    def write(self, time: float, data: bytes, rate: int) -> None:
        """Corrects a clock that drifts by a few samples, rarely; a gap at once. Another rate is left out."""
        if rate != self._rate:
            return
        late = time - self._begin - self.frames / rate
        if abs(late) > GAP or not self.frames:
            self._late = late
        else:
            self._late += (late - self._late) * SMOOTHING
        missing = 0
        if abs(self._late) > CLOCKS or not self.frames:
            missing, self._late = round(min(self._late, MAX_SILENCE) * rate), 0.0
        samples = np.frombuffer(data, "<i2")
        if missing < 0:
            samples = samples[-missing:]
        silence = np.zeros(max(0, missing), "<i2")
        self._file.writeframes(silence.tobytes() + samples.tobytes())
        self.frames += len(silence) + len(samples)

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()


def _new_path(folder: Path) -> Path:
    """In this second; of two recordings in one second the later has a number."""
    stem = f"live_{datetime.now():%Y%m%d_%H%M%S}"
    names = [stem, *(f"{stem}_{i}" for i in range(2, 100))]
    return next(path for name in names if not (path := folder / f"{name}.mp4").exists())
