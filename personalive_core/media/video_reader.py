"""Read video with PyAV, frame by frame: memory does not grow with the length."""

import logging
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type

from ..errors import InputError
from .filters import TOLERANT, conversion_graph, display_time
from .pictures import fit_picture, read_picture

logger = logging.getLogger(__name__)


UNKNOWN_RATE = Fraction(25)  # frames per second of single pictures and of files that do not tell
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
UNSPECIFIED_MATRIX = 2


class Frame(NamedTuple):
    pixels: np.ndarray  # uint8 (H,W,3) RGB
    time: Fraction  # seconds from the first frame


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
                stamp = display_time(frame, self._container)
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
            self._graph, self._graph_key = conversion_graph(frame, scale, "rgba" if alpha else "rgb24", transfer), key
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
