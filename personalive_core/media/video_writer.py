"""Write video with PyAV, frame by frame: memory does not grow with the length, and what was written is not lost."""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from io import BytesIO
from itertools import chain, pairwise
from pathlib import Path
from queue import Queue
from threading import Thread

import av
import av.filter
import numpy as np

from ..errors import InputError
from .audio import AudioCopier
from .filters import conversion_graph

OLDEST_PYAV = 15  # earlier ones set up an encoder where packets are copied, and then write none of their bytes
AHEAD = 8  # frames that may wait for the encoder
SEGMENT = 48  # frames to an encoder: each begins anew, so that a resumed run codes every frame as an unbroken one does
SUFFIXES = (".mp4", ".mov", ".mkv")
BT709 = 1  # the number of its matrix, primaries and transfer curve in H.273
LIMITED_RANGE = 1
FRAGMENTED = {
    "movflags": "frag_every_frame+empty_moov+default_base_moof+frag_discont+skip_trailer",
    "flush_packets": "1",
    "avoid_negative_ts": "disabled",  # else the times of every segment begin at zero
}


def check_pyav() -> None:
    """Raises InputError if PyAV is too old for `VideoWriter`, and would make videos without pictures."""
    if int(av.__version__.partition(".")[0]) < OLDEST_PYAV:
        raise InputError(
            f"PyAV {av.__version__} cannot write these videos: update it to {OLDEST_PYAV} or newer with  "
            "pip install -U av  and start again."
        )


def partial_path(path: Path) -> Path:
    """Where a video grows until it is finished: beside it, under a hidden name."""
    return path.with_name(f".{path.name}.partial.mp4")


def find_partial(path: Path) -> Path | None:
    """What a run that ended early wrote of a video.

    Returns:
        A file that plays; None where there is none.

    Raises:
        InputError: Another run is writing this video now.
    """
    partial = partial_path(path)
    if not partial.is_file() or not partial.stat().st_size:
        return None
    _PartialFile(path).close()
    return partial


class _PartialFile:
    """A fragmented MP4, which plays however far it has grown; while it is open, no other run can open it."""

    def __init__(self, target: Path):
        path, is_free = partial_path(target), True
        if sys.platform == "win32":
            with suppress(FileNotFoundError):
                try:
                    os.rename(path, path)  # refused while any program has the file open
                except PermissionError:
                    is_free = False
        self._file = path.open("a+b", buffering=0)
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_free = False
            except OSError:
                pass  # a disk that has no locks
        if not is_free:
            self._file.close()
            raise InputError(f"{target} is being written by another run: wait for its end, or give another name.")
        self.size = self._file.seek(0, os.SEEK_END)

    def append(self, data: bytes) -> None:
        """All of it or, where the disk is full, nothing."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self.size)
            raise
        self.size += len(data)

    def cut(self, frames: int) -> None:
        """Keeps so many frames, each of which is a fragment. ValueError: it has fewer."""
        position = 0
        while frames:
            self._file.seek(position)
            header = self._file.read(8)
            position += max(8, int.from_bytes(header[:4], "big"))
            if position > self.size:
                raise ValueError(f"{self._file.name} lacks {frames} frames")
            frames -= header[4:] == b"mdat"
        self._file.truncate(position)
        self.size = position

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Segment:
    """An encoder for the next frames of a video, each of which becomes a fragment."""

    def __init__(self, partial: _PartialFile, width: int, height: int, rate: Fraction, time_base: Fraction, crf: int):
        self._partial = partial
        self._buffer, self._taken = BytesIO(), 0
        self._container = av.open(self._buffer, "w", format="mp4", options=FRAGMENTED)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = time_base
        # veryfast keeps up with any model on two cores. No B-frames: then decoding order is display order, and
        # the variable frame durations in the file are exactly those given.
        self._stream.options = {"preset": "veryfast", "crf": str(crf), "bf": "0"}
        encoder = self._stream.codec_context
        encoder.thread_type = "FRAME"  # PyAV's default of slices leaves most cores idle at these sizes
        encoder.color_range = LIMITED_RANGE
        encoder.colorspace = encoder.color_primaries = encoder.color_trc = BT709

    def encode(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        self._append()

    def end(self) -> None:
        try:
            self.encode(None)
        finally:
            self._container.close()  # before PyAV up to 17 does it, whose buffer may be gone then
        self._append()

    def _append(self) -> None:
        """What is complete of the muxer's output, but only one header for the whole file."""
        position = self._buffer.tell()
        self._buffer.seek(self._taken)
        data, wanted = self._buffer.read(), []
        self._buffer.seek(position)
        while len(data) >= (size := int.from_bytes(data[:4], "big")) > 0:
            if self._partial.size == 0 or data[4:8] in (b"moof", b"mdat"):
                wanted.append(data[:size])
            data, self._taken = data[size:], self._taken + size
        self._partial.append(b"".join(wanted))


class VideoWriter:
    """Writes H.264 in MP4, MOV or MKV (8-bit 4:2:0, BT.709 in limited range), with the sound of another file; a context
    manager.

    A thread of its own encodes, a few frames behind. The video grows under a hidden name beside `path`
    (`partial_path`), without sound, as a fragmented MP4 that plays at any moment; at the end it is copied into an
    ordinary file with sound, which takes the name. An exception inside the `with` leaves nothing, unless the video is
    resumable; `KeyboardInterrupt` leaves a playable file of what was written.

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
        resumable: An exception leaves the growing file.
        resume_at: Frames that are kept of what an earlier run left, a multiple of `SEGMENT`; the rest is written again.

    Attributes:
        saved: Frames of the whole segments that are in the growing file; a run can be resumed there.

    Raises:
        InputError: `path` cannot be written, another run is writing it, `audio_from` cannot be read, or PyAV is too
            old, before any work; the disk is full, from `write` or `finish`.
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
        resumable: bool = False,
        resume_at: int = 0,
    ):
        check_pyav()
        self.path = Path(path).absolute()
        if self.path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} cannot be written: the name must end in one of {', '.join(SUFFIXES)}.")
        if width % 2 or height % 2:
            raise InputError(f"A video of {width} x {height} pixels cannot be written; give an even width and height.")
        if self.path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a video file.")
        self.frame_rate, self.time_base = Fraction(frame_rate), Fraction(time_base)
        self.saved = self._count = self._resumed = resume_at
        self._resumable = resumable
        self._shape, self._crf = (height, width, 3), crf
        self._last = Fraction(-1)  # time of the last frame
        self._last_end: Fraction | None = None  # its end, where that is known
        self._graph = conversion_graph(
            av.VideoFrame(width, height, "rgb24"), "out_color_matrix=bt709:out_range=tv", "yuv420p"
        )
        self._audio_from, self._audio_start = audio_from, audio_start
        self._frames: Queue[tuple[np.ndarray, Fraction] | None] = Queue(AHEAD)
        self._encoder: Thread | None = None
        self._segment: _Segment | None = None
        self._encoded = resume_at
        self._failure: BaseException | None = None
        self._partial: _PartialFile | None = None
        self._joined: list[tuple[Path, Fraction]] = []  # videos that this one is made of, and when they begin
        if audio_from is not None:
            kind = "matroska" if self.path.suffix.lower() == ".mkv" else "mp4"
            with av.open(BytesIO(), "w", format=kind) as unused:  # names sound that cannot be read
                if sound := self._open_sound(unused):
                    sound.close()
        with self._disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._partial = _PartialFile(self.path)
            self._partial.cut(resume_at)

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

    def join(self, paths: Sequence[Path]) -> int:
        """Make the video of finished ones, one after the other, in place of `write`.

        They must come from a writer with these settings, and stay until `finish`. They are not coded again. Each is
        shown when the one before it ends.

        Returns:
            How many frames they have.
        """
        joined, begin, frames = list[tuple[Path, Fraction]](), Fraction(0), 0
        for path in paths:
            with av.open(str(path)) as source:
                video = source.streams.video[0]
                joined.append((path, begin))
                begin += video.duration * video.time_base
                frames += video.frames
        self._joined, self._count = joined, frames
        return frames

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
        if self._segment is None:
            assert self._partial is not None
            height, width, _ = self._shape
            self._segment = _Segment(self._partial, width, height, self.frame_rate, self.time_base, self._crf)
        self._segment.encode(frame)
        self._encoded += 1
        if self._encoded % SEGMENT == 0:
            self._end_segment()

    def _end_segment(self) -> None:
        if self._segment is not None:
            segment, self._segment = self._segment, None
            segment.end()
            self.saved = self._encoded

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

    def _end(self, last: Fraction) -> Fraction:
        """When the last frame ends, which is shown at `last`. Where that is not known, the whole has the average rate;
        but the frame lasts for one to four, because a source of variable rate may be cut anywhere."""
        if self._last_end is not None:
            return self._last_end
        held = self._count / self.frame_rate - last
        return last + min(max(held, 1 / self.frame_rate), 4 / self.frame_rate)

    def sync(self) -> None:
        """See that what is in the growing file outlasts a power cut."""
        if self._partial:
            self._partial.sync()

    def finish(self, audio_from: Path | None = None, end: Fraction | None = None) -> None:
        """Complete the file and give it its name; without a frame, leave nothing. The end of the `with` does it.

        Args:
            audio_from: A file to copy the sound from that was not there before.
            end: When the last frame ends, in seconds; without it the video gets its average rate.

        Raises:
            InputError: The disk is full, or `audio_from` cannot be read.
        """
        if self._partial is None:
            return
        self._audio_from, self._last_end = audio_from or self._audio_from, end
        if self._count == self._resumed:
            self.discard()
            return
        temporary = partial_path(self.path).with_suffix(f".new{self.path.suffix}")  # ours alone, as that one is
        try:
            self._wait()
            with self._disk_errors():
                self._end_segment()
                self._copy_to(temporary)
                os.replace(temporary, self.path)
        except BaseException:
            self.discard()
            with suppress(OSError):
                temporary.unlink()
            raise
        self._resumable = False
        self.discard()

    def _copy_to(self, path: Path) -> None:
        """The growing file, or what is joined, as an ordinary one with the sound."""
        options = {} if path.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
        parts = self._joined or [(partial_path(self.path), Fraction(0))]
        with av.open(str(parts[0][0])) as source, av.open(str(path), "w", options=options) as target:
            video = target.add_stream_from_template(source.streams.video[0])
            video.time_base = self.time_base
            sound, end = self._open_sound(target), Fraction(0)
            for packet, following in pairwise(chain(_packets(parts), [None])):
                time = packet.pts * packet.time_base
                end = following.pts * following.time_base if following else self._end(time)
                packet.duration, packet.stream = round((end - time) / packet.time_base), video
                target.mux(packet)
                if sound:
                    sound.mux_until(time)
            if sound:
                sound.mux_until(end, last=True)
                sound.close()

    def _open_sound(self, target: av.container.OutputContainer) -> AudioCopier | None:
        if self._audio_from is None:
            return None
        return AudioCopier.open(Path(self._audio_from), target, self.path.suffix.lower(), self._audio_start)

    def discard(self) -> None:
        """Close the growing file, and remove it unless it is kept for another run. After `finish` there is none."""
        if self._partial is None:
            return
        if self._encoder is not None:
            if not self._resumable:
                self._failure = self._failure or InterruptedError()  # what is still in the queue is not wanted
            self._frames.put(None)
            self._encoder.join()
            self._encoder = None
        with suppress(OSError, av.FFmpegError):
            self._end_segment()
        self._partial.close()
        if not (self._resumable and self._partial.size):
            with suppress(OSError):
                partial_path(self.path).unlink()
        self._partial = None

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.discard()
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
            self.discard()


def _packets(parts: list[tuple[Path, Fraction]]) -> Iterator[av.Packet]:
    """The videos' packets, one video after the other, each from the time in seconds at which it begins."""
    for path, begin in parts:
        with av.open(str(path)) as source:
            for packet in source.demux(video=0):
                if packet.size:
                    packet.pts = packet.dts = packet.pts + round(begin / packet.time_base)
                    yield packet
