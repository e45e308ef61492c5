"""Read video with PyAV, frame by frame: memory does not grow with the length."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
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

DEFAULT_FRAME_RATE = Fraction(25)  # frames per second of single pictures and of files that do not tell
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
UNSPECIFIED_MATRIX = 2


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
        time: Seconds from the first frame.
    """

    pixels: np.ndarray
    time: Fraction


@dataclass(frozen=True)
class VideoMetadata:
    """What is known of a video before its frames are read.

    Attributes:
        width: Of the first frame, upright, in pixels; later frames are scaled to it.
        height: The same.
        frame_rate: Average, in frames per second.
        frame_count: An estimate, for progress; None where the file does not tell.
        has_audio: Whether there is an audio stream.
        time_base: Seconds; unless the file is damaged, all times are multiples of it.
    """

    width: int
    height: int
    frame_rate: Fraction
    frame_count: int | None
    has_audio: bool
    time_base: Fraction


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
    """Reads the frames of a video, an animated GIF, a picture or a folder of pictures: an iterator of `Frame` and a
    context manager.

    Frames are turned upright as the file says, and HDR becomes an ordinary picture. A folder's pictures come in the
    natural order of their names, 25 a second; those of another shape than the first are fitted into it over white.
    Every coded frame comes out, also those that an MP4 edit list hides.

    Args:
        path: A video file, a picture or a folder of pictures.

    Attributes:
        path: The same, absolute.
        metadata: Size, frame rate and the like.
        problem: One sentence, after the last frame, where the file is cut off or damaged and only what can be decoded
            was read; else None.

    Raises:
        InputError: `path` is missing, is not a video, or has no frame that can be decoded. Also from the iterator,
            where a later picture of a folder cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()  # absolute, so that FFmpeg takes no part of the name for a protocol
        self.problem: str | None = None
        self._opened = ExitStack()
        self._graph_key: tuple | None = None
        self._read_error: str | None = None
        self._frames: Iterator[Frame]
        if not self.path.exists():
            raise InputError(f"{path} does not exist; give the path of a video.")
        if self.path.is_dir():
            files = [file for file in self.path.iterdir() if file.suffix.lower() in PICTURES]
            if not files:
                raise InputError(f"{path} is a folder without pictures; give one with PNG, JPEG or WebP files.")
            self._set_pictures(sorted(files, key=lambda file: _natural(file.name)))
            return
        try:
            # Unknown options are ignored by the formats that have no edit lists.
            container = av.open(str(self.path), options={"ignore_editlist": "1"}, **TOLERANT)
        except av.FFmpegError as error:
            raise InputError(
                f"{path} cannot be read as a video ({error.strerror}); give a complete video file, a GIF or a picture."
            ) from error
        with ExitStack() as stack:
            stack.enter_context(container)
            kind = container.format.name
            if kind == "image2" or kind.endswith("_pipe"):  # Pillow knows orientation and odd pixel formats better
                self._set_pictures([self.path])
            else:
                self._set_video(container)
                self._opened = stack.pop_all()

    def _set_pictures(self, files: list[Path]) -> None:
        first = read_picture(files[0])
        height, width = first.shape[:2]
        rate = DEFAULT_FRAME_RATE
        self.metadata = VideoMetadata(width, height, rate, len(files), False, 1 / rate)
        rest = (fit_picture(read_picture(file), width, height, "pad") for file in files[1:])
        self._frames = (Frame(pixels, i / rate) for i, pixels in enumerate(chain([first], rest)))

    def _set_video(self, container: av.container.InputContainer) -> None:
        # FFmpeg draws plain text as a video of a terminal.
        streams = () if container.format.name == "tty" else container.streams.video
        if not streams or streams[0].codec_context is None:
            raise InputError(f"{self.path} has no video in it that can be read; give a video file, a GIF or a picture.")
        stream = streams[0]
        rate = stream.average_rate or stream.guessed_rate or DEFAULT_FRAME_RATE
        count, duration = stream.frames or None, _declared_duration(container)
        if count is None and duration:
            count = max(1, round(duration * rate))
        self._frames = self._decode(container, rate)
        first = next(self._frames, None)
        if first is None:
            raise InputError(f"{self.path} has no frame that can be decoded; give a complete video file.")
        height, width = first.pixels.shape[:2]
        self.metadata = VideoMetadata(width, height, rate, count, bool(container.streams.audio), stream.time_base)
        self._frames = chain(iter([first]), self._frames)  # iter: a list would keep the picture

    def _packets(self, container: av.container.InputContainer) -> Iterator[av.Packet | None]:
        """The packets of the video stream, then None."""
        packets = container.demux(container.streams.video[0])
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

    def _decode(self, container: av.container.InputContainer, rate: Fraction) -> Iterator[Frame]:
        # PyAV's default of slice threads stays: with frame threads an error takes good frames with it.
        stream = container.streams.video[0]
        decoder = stream.codec_context
        start: int | None = None  # first pts
        end: int | None = None  # pts where the last packet ends
        last = Fraction(-1)  # time of the last frame
        count = damaged = 0
        for packet in self._packets(container):
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
                stamp = display_time(frame, container)
                if start is None:
                    start = stamp or 0
                    coded_size = frame.width, frame.height
                    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
                    matrix = None if matrix is None else bytes(matrix)
                time = last if stamp is None else (stamp - start) * stream.time_base
                if count == 0:
                    time = Fraction(0)
                elif time <= last:
                    time = last + 1 / rate
                count, last = count + 1, time
                yield Frame(_upright(self._to_rgb(frame, coded_size, int(decoder.color_trc)), matrix), time)
        if start is None:
            return
        # Half a second: where only the whole file declares a duration, its sound may last a little longer.
        length, duration = (end or start) - start, _declared_duration(container)
        if self._read_error or (end and duration and duration - length * stream.time_base > Fraction(1, 2)):
            reason = f" ({self._read_error})" if self._read_error else ""
            of = f" of {float(duration):.2f}" if duration else ""
            self.problem = (
                f"{self.path} breaks off{reason}: {count} frames, {float(last):.2f}{of} s, could be read and are used."
            )
        elif damaged:
            self.problem = f"{self.path} is damaged in {damaged} places: the {count} frames that decode are used."

    def _to_rgb(self, frame: av.VideoFrame, size: tuple[int, int], transfer: int) -> np.ndarray:
        alpha = any(component.is_alpha for component in frame.format.components)
        key = frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range), transfer
        if key != self._graph_key:
            scale = "{}:{}".format(*size)
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
        """Close the file; no more frames come."""
        self._frames = iter(())
        self._opened.close()


def _declared_duration(container: av.container.InputContainer) -> Fraction | None:
    stream = container.streams.video[0]
    if stream.duration:
        return stream.duration * stream.time_base
    return Fraction(container.duration, av.time_base) if container.duration else None
