"""Read and write video with PyAV, frame by frame: memory does not grow with the length."""

import errno
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import NamedTuple
from uuid import uuid4

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type

from ..errors import InputError
from .hdr import HLG, PQ, add_tone_map
from .pictures import fit_picture, read_picture

logger = logging.getLogger(__name__)

AHEAD = 8  # frames that may wait for the encoder

UNKNOWN_RATE = Fraction(25)  # frames per second of single pictures and of files that do not tell
SUFFIXES = (".mp4", ".mov", ".mkv")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Sound that these containers carry as it is, by the names of FFmpeg's decoders; the rest becomes AAC.
COPIED_SOUND = {"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "libopus", "flac"}
NOT_IN_MOV = {"opus", "libopus", "flac"}
# Chroma at full resolution and exact rounding: without them swscale is off by 2/255 even on flat colours.
SCALING = "flags=bicubic+accurate_rnd+full_chroma_int"
BT709 = 1  # the number of its matrix, primaries and transfer curve in H.273
LIMITED_RANGE = 1
# Metadata that is not UTF-8 must not stop a video; av 19 does not ask any more.
TOLERANT = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
UNSPECIFIED_MATRIX = 2


class Frame(NamedTuple):
    pixels: np.ndarray  # uint8 (H,W,3) RGB
    time: Fraction  # seconds from the first frame


def _filters(frame: av.VideoFrame, scale: str, pixel_format: str, transfer: int = 0) -> av.filter.Graph:
    """FFmpeg's scale filter for frames like `frame`, and a tone map where `transfer` is PQ or HLG. The graph, not
    `VideoFrame.reformat`, because its options mean the same in every PyAV version."""
    graph = av.filter.Graph()
    source = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1"
        f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
    )
    nodes = [graph.add("scale", f"{scale}:{SCALING}")]
    if transfer in (PQ, HLG):
        nodes += [graph.add("format", "rgb48le"), add_tone_map(graph, transfer)]
    nodes += [graph.add("format", pixel_format), graph.add("buffersink")]
    graph.link_nodes(source, *nodes).configure()
    return graph


def _upright(pixels: np.ndarray, matrix: bytes | None) -> np.ndarray:
    """Turned and mirrored as the file's display matrix says, in steps of a right angle."""
    if matrix is None:
        return pixels
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32)  # x is shown at a x + c y, y at b x + d y
    if abs(a) < abs(b):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name.lower())]


def _stamp(item: av.Packet | av.VideoFrame, container: av.container.InputContainer) -> int | None:
    """When `item` is shown, in its time base. AVI stores no display times, and FFmpeg's guesses for B-frames are out
    of order; its decoding times are in order, and late by the same for all frames."""
    return item.dts if container.format.name == "avi" else item.pts


class VideoReader:
    """The frames of a video, an animated GIF, a single picture or a folder of pictures, one after the other; a context
    manager.

    Frames are turned upright as the file says, and HDR becomes an ordinary picture. A folder's pictures come in the
    natural order of their names, 25 a second; those of another shape than the first are fitted into it over white.
    Every coded frame comes out, also those that an MP4 edit list hides. A file that is cut off or damaged gives what
    can be decoded, and then `problem` says in one sentence what happened.

    Raises `InputError` on opening what is missing, not a video, or has no frame that can be decoded.
    """

    width: int  # of the first frame; later frames are scaled to it
    height: int
    frame_rate: Fraction  # average, frames per second
    frame_count: int | None  # an estimate for progress; None where the file does not tell
    has_audio: bool
    time_base: Fraction  # seconds; unless the file is damaged, all times are multiples of it
    problem: str | None

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()  # absolute, so that FFmpeg takes no part of the name for a protocol
        self.problem = None
        self._graph: av.filter.Graph | None = None
        self._graph_key: tuple | None = None
        self._container: av.container.InputContainer | None = None
        self._frames: Iterator[Frame]
        if not self.path.exists():
            raise InputError(f"{path} does not exist; give the path of a video.")
        if self.path.is_dir():
            self._open_folder()
            return
        try:
            # Unknown options are ignored by the formats that have no edit lists.
            self._container = av.open(str(self.path), options={"ignore_editlist": "1"}, **TOLERANT)
        except av.FFmpegError as error:
            raise InputError(
                f"{path} cannot be read as a video ({error.strerror}); give a complete video file, a GIF or a picture."
            ) from error
        try:
            self._open()
        except BaseException:
            self._container.close()
            raise

    def _open_folder(self) -> None:
        files = [file for file in self.path.iterdir() if file.suffix.lower() in PICTURES]
        files.sort(key=lambda file: _natural(file.name))
        if not files:
            raise InputError(f"{self.path} is a folder without pictures; give one with PNG, JPEG or WebP files.")
        first = read_picture(files[0])
        self.height, self.width = first.shape[:2]
        self.frame_rate, self.frame_count, self.has_audio = UNKNOWN_RATE, len(files), False
        self.time_base = 1 / UNKNOWN_RATE
        rest = (fit_picture(read_picture(file), self.width, self.height, "pad") for file in files[1:])
        self._frames = (Frame(pixels, i / UNKNOWN_RATE) for i, pixels in enumerate(chain([first], rest)))

    def _open(self) -> None:
        kind = self._container.format.name
        if kind == "image2" or kind.endswith("_pipe"):  # Pillow knows orientation and odd pixel formats better
            pixels = read_picture(self.path)
            self.frame_rate, self.frame_count, self.has_audio = UNKNOWN_RATE, 1, False
            self.time_base = 1 / UNKNOWN_RATE
            self._frames = iter([Frame(pixels, Fraction(0))])
            self.height, self.width = pixels.shape[:2]
            return
        # FFmpeg draws plain text as a video of a terminal.
        streams = () if kind == "tty" else self._container.streams.video
        if not streams or streams[0].codec_context is None:
            raise InputError(f"{self.path} has no video in it that can be read; give a video file, a GIF or a picture.")
        self._stream = streams[0]
        self.time_base = self._stream.time_base
        self.frame_rate = self._stream.average_rate or self._stream.guessed_rate or UNKNOWN_RATE
        self.frame_count = self._stream.frames or None
        if self.frame_count is None and (duration := self._declared_duration()):
            self.frame_count = max(1, round(duration * self.frame_rate))
        self.has_audio = bool(self._container.streams.audio)
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise InputError(f"{self.path} has no frame that can be decoded; give a complete video file.")
        self._frames = _with_first(first, self._frames)

    def _declared_duration(self) -> Fraction | None:
        if self._stream.duration:
            return self._stream.duration * self.time_base
        if self._container.duration:
            return Fraction(self._container.duration, av.time_base)
        return None

    def _packets(self) -> Iterator[av.Packet | None]:
        """The packets of the video stream, then None."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except av.FFmpegError as error:
                self._read_error = error.strerror
                break
            if packet.size == 0:
                break
            yield packet
        yield None

    def _decode(self) -> Iterator[Frame]:
        # PyAV's default of slice threads stays: with frame threads an error takes good frames with it.
        decoder = self._stream.codec_context
        start = last = end = None  # first pts; time of the last frame; pts where the last packet ends
        count = damaged = 0
        self._read_error = None
        for packet in self._packets():
            if packet is not None:
                damaged += packet.is_corrupt
                if packet.pts is not None:
                    end = max(end or packet.pts, packet.pts + (packet.duration or 0))
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError:
                damaged += 1
                continue
            for frame in frames:
                stamp = _stamp(frame, self._container)
                if start is None:
                    start = stamp or 0
                    self._coded_size = frame.width, frame.height
                    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
                    matrix = None if matrix is None else bytes(matrix)
                time = None if stamp is None else (stamp - start) * self.time_base
                if last is None:
                    time = Fraction(0)
                elif time is None or time <= last:
                    time = last + 1 / self.frame_rate
                count, last = count + 1, time
                pixels = _upright(self._to_rgb(frame), matrix)
                self.height, self.width = pixels.shape[:2]
                yield Frame(pixels, time)
        if start is None:
            return
        # Half a second: where only the whole file declares a duration, its sound may last a little longer.
        length, duration = (end or start) - start, self._declared_duration()
        if self._read_error or (end and duration and duration - length * self.time_base > Fraction(1, 2)):
            reason = f" ({self._read_error})" if self._read_error else ""
            of = f" of {float(duration):.2f}" if duration else ""
            self.problem = (
                f"{self.path} breaks off{reason}: {count} frames, {float(last):.2f}{of} s, could be read and are used."
            )
        elif damaged:
            self.problem = f"{self.path} is damaged in {damaged} places: the {count} frames that decode are used."

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        alpha = any(component.is_alpha for component in frame.format.components)
        transfer = int(self._stream.codec_context.color_trc)
        key = frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range), transfer
        if key != self._graph_key:
            scale = "{}:{}".format(*self._coded_size)
            if frame.colorspace == UNSPECIFIED_MATRIX:  # the usual rule: HD is BT.709, SD is BT.601
                scale += f":in_color_matrix={'bt709' if frame.width >= 1280 or frame.height > 576 else 'bt601'}"
            self._graph, self._graph_key = _filters(frame, scale, "rgba" if alpha else "rgb24", transfer), key
        frame.pts = None  # the graph only converts; its clock is not the file's
        self._graph.push(frame)
        pixels = self._graph.pull().to_ndarray()
        if alpha:
            colour, opacity = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
            pixels = ((colour * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
        return pixels

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        return next(self._frames)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._frames = iter(())
        if self._container is not None:
            self._container.close()


def _with_first(first: Frame, rest: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    del first
    yield from rest


class VideoWriter:
    """H.264 in MP4, MOV or MKV (8-bit 4:2:0, BT.709 in limited range), with the sound of another file; a context
    manager.

    Frames are encoded in a thread of its own, a few behind. The file grows under a hidden name beside `path` and takes
    that name at the end. An exception inside the `with`
    leaves nothing; `KeyboardInterrupt` leaves a playable file of what was written.

    `time_base` is the unit of the times in the file: with the source's own (`VideoReader.time_base`) they come back
    exactly. MKV always counts in milliseconds. `audio_start` is the second of that file, from its first
    frame, at which this video begins. `crf` is x264's constant quality, 0 (lossless) to 51.

    Raises `InputError` before any work where `path` cannot be written or `audio_from` not be read, and later where
    the disk is full.
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
        self._last: Fraction | None = None
        self._held: av.Packet | None = None
        self._graph: av.filter.Graph | None = None
        self._sound: _Sound | None = None
        self._container: av.container.OutputContainer | None = None
        self._frames: Queue[tuple[np.ndarray, Fraction] | None] = Queue(AHEAD)
        self._encoder: Thread | None = None
        self._failure: BaseException | None = None
        self._temporary = self.path.with_name(f".{self.path.stem}-{uuid4().hex[:8]}{self.path.suffix}")
        with self._disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.touch()
        try:
            options = {} if self.path.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
            self._container = av.open(str(self._temporary), "w", options=options)
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
                self._sound = _Sound.open(Path(audio_from), self._container, self.path.suffix.lower(), audio_start)
        except BaseException:
            self._discard()
            raise

    def write(self, pixels: np.ndarray, time: Fraction) -> None:
        """Add a frame, uint8 (H,W,3) RGB, shown from `time` seconds; times must increase."""
        if pixels.shape != self._shape or pixels.dtype != np.uint8:
            raise ValueError(f"A frame must be uint8 {self._shape}, not {pixels.dtype} {pixels.shape}.")
        if self._last is not None and time <= self._last:
            raise ValueError(f"The time of a frame, {time} s, must be after that of the frame before, {self._last} s.")
        if self._encoder is None:
            self._encoder = Thread(target=self._encode_all, daemon=True)
            self._encoder.start()
        self._frames.put((pixels.copy(), time))
        self._count, self._last = self._count + 1, time
        if self._failure is not None:
            self._wait()

    def _encode_all(self) -> None:
        """The encoder's thread. After a failure it only empties the queue, so that nobody waits for room in it."""
        while (item := self._frames.get()) is not None:
            if self._failure is None:
                try:
                    self._encode(*item)
                except BaseException as error:
                    self._failure = error

    def _encode(self, pixels: np.ndarray, time: Fraction) -> None:
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        if self._graph is None:
            self._graph = _filters(frame, "out_color_matrix=bt709:out_range=tv", "yuv420p")
        self._graph.push(frame)
        frame = self._graph.pull()
        frame.pts, frame.time_base = round(time / self.time_base), self.time_base
        self._mux(self._stream.encode(frame))
        if self._sound:
            self._sound.mux_until(time)

    def _wait(self) -> None:
        """Let the encoder come to its end; raises what it failed with."""
        if self._encoder is not None:
            self._frames.put(None)
            self._encoder.join()
            self._encoder = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            with self._disk_errors():
                raise failure

    def _mux(self, packets: Iterable[av.Packet]) -> None:
        for packet in packets:  # one behind, because the last one has to be given its duration
            if self._held is not None:
                self._container.mux(self._held)
            self._held = packet

    def _end(self) -> Fraction:
        """Where the last frame ends: so that the whole has the average rate, but after one to four frames, for a
        source of variable rate may be cut anywhere."""
        held = self._count / self.frame_rate - self._last
        return self._last + min(max(held, 1 / self.frame_rate), 4 / self.frame_rate)

    def finish(self) -> None:
        """Complete the file and give it its name; without a frame, leave nothing."""
        if self._container is None:
            return
        if self._last is None:
            self._discard()
            return
        try:
            self._wait()
            with self._disk_errors():
                self._mux(self._stream.encode(None))
                end = self._end()
                self._held.duration = round((end - self._last) / self._held.time_base)
                self._container.mux(self._held)
                if self._sound:
                    self._sound.mux_until(end, last=True)
                    self._sound.close()
                self._container.close()
                os.replace(self._temporary, self.path)
                self._container = None
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
        if self._container is not None:
            with suppress(OSError, av.FFmpegError):  # closing writes the end of a file that is thrown away
                self._container.close()
            self._container = None
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


class _Sound:
    """The first audio stream of a file, moved so that time 0 is `begin` seconds after the first video frame of it."""

    @classmethod
    def open(cls, source: Path, output: av.container.OutputContainer, suffix: str, begin: Fraction) -> "_Sound | None":
        """None where `source` has no sound that can be read."""
        try:
            container = av.open(str(source.absolute()), **TOLERANT)
        except av.FFmpegError as error:
            raise InputError(f"The sound of {source} cannot be read ({error.strerror}); give another file.") from error
        if not container.streams.audio:
            container.close()
            return None
        if container.streams.audio[0].codec_context is None:
            logger.warning("the sound of %s is of an unknown kind and is left out", source)
            container.close()
            return None
        return cls(source, container, output, suffix, begin)

    def __init__(
        self,
        source: Path,
        container: av.container.InputContainer,
        output: av.container.OutputContainer,
        suffix: str,
        begin: Fraction,
    ):
        self._source, self._input, self._output = source, container, output
        self._stream = container.streams.audio[0]
        self._start = self._video_start() + begin
        name = self._stream.codec_context.name
        if name in COPIED_SOUND and not (suffix == ".mov" and name in NOT_IN_MOV):
            self._target = output.add_stream_from_template(self._stream)
            self._packets = self._copied()
        else:
            self._target = output.add_stream("aac", rate=48000)
            self._target.codec_context.layout = "stereo"
            self._packets = self._encoded()
        self._next = None

    def _video_start(self) -> Fraction:
        """Seconds, in the clock of the sound, of the first frame that VideoReader gives. The packets of a second,
        plain opening tell it: they count from what an edit list shows, and those before it are negative."""
        with av.open(str(self._source.absolute()), **TOLERANT) as container:
            if container.streams.video:
                for packet in container.demux(container.streams.video[0]):
                    stamp = _stamp(packet, container)
                    if packet.is_keyframe and stamp is not None:
                        return stamp * packet.time_base
        return (self._stream.start_time or 0) * self._stream.time_base

    def _read(self) -> Iterator[av.Packet]:
        packets = self._input.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except av.FFmpegError as error:
                logger.warning("the sound of %s breaks off (%s)", self._source, error.strerror)
                return
            if packet.size == 0:
                return
            yield packet

    def _copied(self) -> Iterator[av.Packet]:
        for packet in self._read():
            time = packet.dts if packet.pts is None else packet.pts
            if time is None:
                continue
            packet.pts = packet.dts = time - round(self._start / packet.time_base)
            # One packet more than is heard: codecs that overlap need it, and the edit list hides it.
            if packet.pts + 2 * (packet.duration or 0) > 0 or packet.pts >= 0:
                packet.stream = self._target
                yield packet

    def _encoded(self) -> Iterator[av.Packet]:
        for packet in self._read():
            try:
                frames = packet.decode()
            except av.FFmpegError:
                logger.warning("a piece of the sound of %s cannot be decoded and is left out", self._source)
                continue
            for frame in frames:
                if frame.pts is None:
                    continue
                frame.pts -= round(self._start / frame.time_base)
                if (frame.pts * frame.time_base + Fraction(frame.samples, frame.sample_rate)) > 0:
                    yield from self._target.encode(frame)
        yield from self._target.encode(None)

    def mux_until(self, end: Fraction, *, last: bool = False) -> None:
        """Write the packets that end by `end` seconds; with `last`, also the beginning of the one that goes on."""
        while (packet := self._next or next(self._packets, None)) is not None:
            self._next = packet
            ticks = int(end / packet.time_base)
            if packet.pts + (packet.duration or 0) > ticks:
                if not last or packet.pts >= ticks:
                    return
                packet.duration = ticks - packet.pts
            self._output.mux(packet)
            self._next = None

    def close(self) -> None:
        self._input.close()
