"""Write video with PyAV, frame by frame: memory does not grow with the length."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from queue import Queue
from threading import Thread
from uuid import uuid4

import av
import av.filter
import numpy as np

from ..errors import InputError
from .audio import AudioCopier
from .filters import conversion_graph

AHEAD = 8  # frames that may wait for the encoder
SUFFIXES = (".mp4", ".mov", ".mkv")
BT709 = 1  # the number of its matrix, primaries and transfer curve in H.273
LIMITED_RANGE = 1


class VideoWriter:
    """Writes H.264 in MP4, MOV or MKV (8-bit 4:2:0, BT.709 in limited range), with the sound of another file; a context
    manager.

    A thread of its own encodes, a few frames behind. The file grows under a hidden name beside `path` and takes that
    name at the end. An exception inside the `with` leaves nothing; `KeyboardInterrupt` leaves a playable file of what
    was written.

    Args:
        path: The file to write; its folder is made where it is missing.
        width: In pixels, even.
        height: In pixels, even.
        frame_rate: Average, in frames per second.
        time_base: Unit of the times in the file, in seconds; with the source's own (`VideoMetadata.time_base`) its
            times come back exactly. MKV always counts in milliseconds.
        audio_from: An audio or video file to copy the sound from, where it has any.
        audio_start: Where in `audio_from` this video begins, in seconds from its first video frame.
        crf: x264's constant rate factor, from 0 (lossless) to 51.

    Raises:
        InputError: `path` cannot be written or `audio_from` not be read, before any work; the disk is full, from
            `write` or `finish`.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        frame_rate: Fraction,
        *,
        time_base: Fraction = Fraction(1, 90000),
        audio_from: str | Path | None = None,
        audio_start: Fraction = Fraction(0),
        crf: int = 18,
    ):
        self.path = Path(path).absolute()
        if self.path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} cannot be written: the name must end in one of {', '.join(SUFFIXES)}.")
        if width % 2 or height % 2:
            raise InputError(f"A video of {width} x {height} pixels cannot be written; give an even width and height.")
        if self.path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a video file.")
        self.frame_rate, self.time_base = Fraction(frame_rate), Fraction(time_base)
        self._shape = height, width, 3
        self._count = 0
        self._last = Fraction(-1)  # time of the last frame
        self._held: list[av.Packet] = []
        self._graph = conversion_graph(
            av.VideoFrame(width, height, "rgb24"), "out_color_matrix=bt709:out_range=tv", "yuv420p"
        )
        self._sound: AudioCopier | None = None
        self._frames: Queue[tuple[np.ndarray, Fraction] | None] = Queue(AHEAD)
        self._encoder: Thread | None = None
        self._failure: BaseException | None = None
        self._temporary = self.path.with_name(f".{self.path.stem}-{uuid4().hex[:8]}{self.path.suffix}")
        options = {} if self.path.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
        self._container = av.open(str(self._temporary), "w", options=options)  # writes nothing yet
        self._is_open = True
        with self._disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.touch()
        try:
            self._stream = self._container.add_stream("libx264", rate=self.frame_rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self._stream.time_base = self._stream.codec_context.time_base = self.time_base
            # veryfast keeps up with any model on two cores. No B-frames: then decoding order is display order, and
            # the variable frame durations in the file are exactly those given.
            self._stream.options = {"preset": "veryfast", "crf": str(crf), "bf": "0"}
            encoder = self._stream.codec_context
            encoder.thread_type = "FRAME"  # PyAV's default of slices leaves most cores idle at these sizes
            encoder.color_range = LIMITED_RANGE
            encoder.colorspace = encoder.color_primaries = encoder.color_trc = BT709
            if audio_from is not None:
                self._sound = AudioCopier.open(Path(audio_from), self._container, self.path.suffix.lower(), audio_start)
        except BaseException:
            self._discard()
            raise

    def write(self, pixels: np.ndarray, time: Fraction) -> None:
        """Add a frame; it is copied.

        Args:
            pixels: uint8 (H, W, 3) RGB of the video's size.
            time: When it is shown, in seconds from the beginning; 0 or more, and more than for the frame before.

        Raises:
            ValueError: The picture or the time is not so.
            InputError: The disk is full.
        """
        if pixels.shape != self._shape or pixels.dtype != np.uint8:
            raise ValueError(f"A frame must be uint8 {self._shape}, not {pixels.dtype} {pixels.shape}.")
        if time < 0 or time <= self._last:
            raise ValueError(f"The time of a frame, {time} s, must be 0 or more and after that of the frame before.")
        if self._encoder is None:
            self._encoder = Thread(target=self._encode_all, daemon=True)
            self._encoder.start()
        self._frames.put((pixels.copy(), time))
        self._count, self._last = self._count + 1, time
        if self._failure is not None:
            self._wait()

    def _encode_all(self) -> None:
        """The encoder's thread. After a failure it only empties the queue, so that `write` never waits for room."""
        while (item := self._frames.get()) is not None:
            if self._failure is None:
                try:
                    self._encode(*item)
                except BaseException as error:
                    self._failure = error

    def _encode(self, pixels: np.ndarray, time: Fraction) -> None:
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self._graph.push(frame)
        frame = self._graph.pull()
        frame.pts, frame.time_base = round(time / self.time_base), self.time_base
        self._mux(self._stream.encode(frame))
        if self._sound:
            self._sound.mux_until(time)

    def _wait(self) -> None:
        """Let the encoder finish; raises what it failed with."""
        if self._encoder is not None:
            self._frames.put(None)
            self._encoder.join()
            self._encoder = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            with self._disk_errors():
                raise failure

    def _mux(self, packets: Iterable[av.Packet]) -> None:
        self._held += packets
        while len(self._held) > 1:  # one behind, because the last one has to be given its duration
            self._container.mux(self._held.pop(0))

    def _end(self) -> Fraction:
        """Where the last frame ends. The whole then has the average rate; but the frame lasts for one to four, because
        a source of variable rate may be cut anywhere."""
        held = self._count / self.frame_rate - self._last
        return self._last + min(max(held, 1 / self.frame_rate), 4 / self.frame_rate)

    def finish(self) -> None:
        """Complete the file and give it its name; without a frame, leave nothing. The end of the `with` does it.

        Raises:
            InputError: The disk is full.
        """
        if not self._is_open:
            return
        if not self._count:
            self._discard()
            return
        try:
            self._wait()
            with self._disk_errors():
                self._mux(self._stream.encode(None))
                end = self._end()
                (packet,) = self._held
                packet.duration = round((end - self._last) / packet.time_base)
                self._container.mux(packet)
                if self._sound:
                    self._sound.mux_until(end, last=True)
                    self._sound.close()
                self._container.close()
                os.replace(self._temporary, self.path)
                self._is_open = False
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        if self._encoder is not None:
            self._failure = self._failure or InterruptedError()  # what is still in the queue is not wanted
            self._frames.put(None)
            self._encoder.join()
            self._encoder = None
        if self._sound:
            self._sound.close()
        self._is_open = False
        with suppress(OSError, av.FFmpegError):  # closing writes the end of a file that is thrown away
            self._container.close()
        with suppress(OSError):  # where there can be no file, there is none to remove
            self._temporary.unlink()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._discard()
            if error.errno == errno.ENOSPC:
                raise InputError(
                    f"{self.path} cannot be written: the disk is full; make room and try again."
                ) from error
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}); choose another place with enough room."
            ) from error

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.finish()
        else:
            self._discard()
