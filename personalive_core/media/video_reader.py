"""Read video with PyAV, frame by frame: memory does not grow with the length."""

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

from ..errors import InputError
from ..files import check_file
from ..limits import FASTEST_VIDEO, FRAME_PIXELS
from .filters import conversion_graph, display_time, open_container
from .pictures import fit_picture, read_animation, read_picture

DEFAULT_FRAME_RATE = Fraction(25)  # frames per second of single pictures and of files that do not tell
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff")
AT_A_TIME = 8  # frames that are decoded together, as long as a file is not damaged
UNSPECIFIED_MATRIX = 2
SKIPPED = np.empty((0, 0, 3), np.uint8)


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        pixels: uint8 (H, W, 3) RGB; (0, 0, 3) where the frame was skipped.
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
        frame_count: An estimate, for progress.
        has_audio: Whether there is an audio stream.
        time_base: Seconds; unless the file is damaged, all times are multiples of it.
    """

    width: int
    height: int
    frame_rate: Fraction
    frame_count: int
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


class _Decoded(NamedTuple):
    """A frame as it is decoded, its time in seconds from the first one, and its transfer curve's number in H.273."""

    frame: av.VideoFrame
    time: Fraction
    transfer: int


class _DamagedError(Exception):
    """Something of a video is damaged."""


class VideoReader:
    """Reads the frames of a video, an animation, a picture or a folder of pictures: an iterator of `Frame` and a
    context manager.

    The frames are those that a player shows: without what an MP4 edit list hides, upright, with square pixels,
    deinterlaced, and HDR as an ordinary picture. A folder's pictures come in the natural order of their names, 25 a
    second; those of another shape than the first are fitted into it over white. Hidden files are passed over.

    Args:
        path: A video file, an animated GIF, PNG, WebP or AVIF, a picture or a folder of pictures.
        wanted: Whether the frame of this number, from 0, is used. Others may be skipped: those of a video are decoded,
            but not converted to RGB.

    Attributes:
        path: The same, absolute.
        metadata: Size, frame rate and the like.
        problem: One sentence, after the last frame, where the file or a picture of the folder is cut off or damaged and
            only what can be decoded was read; else None.

    Raises:
        InputError: `path` is missing, is not a video, or has no frame that can be decoded.
    """

    def __init__(self, path: str | Path, wanted: Callable[[int], bool] = lambda number: True):
        self.path = Path(path).absolute()
        self.problem: str | None = None
        self._wanted = wanted
        self._opened = ExitStack()
        self._read_error: str | None = None
        self._frames: Iterator[Frame]
        if os.path.isdir(path):
            self._set_folder()
            return
        check_file(path, "video")  # as it was given: an absolute path is no URL
        container = self._open_file()
        with ExitStack() as stack:
            stack.enter_context(container)
            kind = container.format.name
            is_avif = container.metadata.get("major_brand") in ("avif", "avis")
            # Pillow knows orientation, odd pixel formats and animations better.
            if kind.endswith("_pipe") or kind == "image2" or (is_avif and ".avif" in Image.registered_extensions()):
                self._set_picture()
            else:
                self._set_video(container)
                self._opened = stack.pop_all()

    def _open_file(self) -> av.container.InputContainer:
        try:
            return open_container(self.path, "video file")
        except av.FFmpegError as error:
            raise InputError(
                f"{self.path} cannot be read as a video ({error.strerror}); give a complete video file, a GIF or a "
                "picture."
            ) from error

    def _set_folder(self) -> None:
        files = [x for x in self.path.iterdir() if x.suffix.lower() in PICTURES and not x.name.startswith(".")]
        if not files:
            raise InputError(f"{self.path} is a folder without pictures; give one with PNG, JPEG or WebP files.")
        pictures = self._readable(sorted(files, key=lambda file: _natural(file.name)))
        first = next(pictures, None)
        if first is None:
            raise InputError(f"{self.path} is a folder of which no picture can be read; save the pictures again.")
        height, width = first.shape[:2]
        rate = DEFAULT_FRAME_RATE
        self.metadata = VideoMetadata(width, height, rate, len(files), False, 1 / rate)
        rest = (fit_picture(picture, width, height, "pad") for picture in pictures)
        self._frames = (Frame(pixels, i / rate) for i, pixels in enumerate(chain([first], rest)))

    def _readable(self, files: list[Path]) -> Iterator[np.ndarray]:
        unreadable = []
        for file in files:
            try:
                yield read_picture(file)
            except InputError:
                unreadable.append(file.name)
        if unreadable:
            names = ", ".join(unreadable[:5]) + (", ..." if len(unreadable) > 5 else "")
            count = f"{len(unreadable)} of the {len(files)} pictures"
            self.problem = f"{count} in {self.path} cannot be read and are left out: {names}."

    def _set_picture(self) -> None:
        """Of a file that Pillow reads, with one frame or several."""
        times = [0]  # milliseconds: where the frames begin, and where the last one ends
        with suppress(InputError):
            for _, duration in read_animation(self.path):
                times.append(times[-1] + duration)
        self._frames = self._animation(times)
        first = next(self._frames)
        height, width = first.pixels.shape[:2]
        count, rate, time_base = len(times) - 1, DEFAULT_FRAME_RATE, 1 / DEFAULT_FRAME_RATE
        if count > 1:
            rate, time_base = Fraction(1000 * count, times[-1]), Fraction(1, 1000)
        self.metadata = VideoMetadata(width, height, rate, count, False, time_base)
        self._frames = chain(iter([first]), self._frames)

    def _animation(self, times: list[int]) -> Iterator[Frame]:
        count = 0
        try:
            for (pixels, _), time in zip(read_animation(self.path), times, strict=False):
                yield Frame(pixels, Fraction(time, 1000))
                count += 1
        except InputError:
            if not count:
                raise
            self.problem = f"{self.path} is damaged or cut off: {count} frames could be read and are used."

    def _set_video(self, container: av.container.InputContainer) -> None:
        streams = container.streams.video
        if not streams or streams[0].codec_context is None:
            raise InputError(f"{self.path} has no video in it that can be read; give a video file, a GIF or a picture.")
        stream = streams[0]
        if stream.width * stream.height > FRAME_PIXELS:
            size = f"{stream.width} x {stream.height} pixels"
            raise InputError(
                f"{self.path} is {size}, and more than {FRAME_PIXELS} are not read: make it smaller first."
            )
        rate, count = self._rate_and_count(stream)
        self._frames = self._convert(stream, self._decode(container, rate))
        first = next(self._frames, None)
        if first is None:
            raise InputError(f"{self.path} has no frame that can be decoded; give a complete video file.")
        height, width = first.pixels.shape[:2]
        self.metadata = VideoMetadata(width, height, rate, count, bool(container.streams.audio), stream.time_base)
        self._frames = chain(iter([first]), self._frames)  # iter: a list would keep the picture

    def _rate_and_count(self, stream: av.VideoStream) -> tuple[Fraction, int]:
        """Average frames per second and number of frames: as declared, or from the packets, which are not decoded,
        where the file does not declare them or an edit list changes them."""
        rate = stream.average_rate or stream.guessed_rate
        if rate and rate > FASTEST_VIDEO:
            rate = None
        if rate and stream.frames and stream.duration:
            declared = stream.frames / rate
            if abs(declared - stream.duration * stream.time_base) <= 2 / rate:
                return rate, stream.frames
        with self._open_file() as container, suppress(av.FFmpegError):
            stamps, count = set[int](), 0
            for packet in container.demux(container.streams.video[0]):
                if packet.size and not packet.is_discard:
                    count += 1
                    if (stamp := display_time(packet, container)) is not None:
                        stamps.add(stamp)
        if len(stamps) > 1:
            span = (max(stamps) - min(stamps)) * stream.time_base
            if rate and "mpeg" in stream.container.format.name:  # where a packet may hold a single field
                return rate, round(span * rate) + 1
            measured = (len(stamps) - 1) / span
            # Not to be exact, for containers round times, and codecs have packets that show nothing.
            if not rate or abs(measured / rate - 1) > Fraction(1, 10):
                rate = measured.limit_denominator(1001)  # 0 where damaged times lie hours apart
        return rate or DEFAULT_FRAME_RATE, count

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

    def _decode(self, container: av.container.InputContainer, rate: Fraction) -> Iterator[_Decoded]:
        """The frames that can be decoded and are shown, with their times from the first on.

        Several frames are decoded at a time. Where a file is damaged this loses good ones beside the bad ones, even
        silently, and what stands in for bad ones varies. So from there on they are decoded one at a time. Damage may
        show only with the next frames, and each frame waits for so many.
        """
        given, waiting = 0, deque[_Decoded]()
        with suppress(_DamagedError):
            for decoded in self._decode_once(container, rate, is_strict=True):
                waiting.append(decoded)
                if len(waiting) > AT_A_TIME:
                    given += 1
                    yield waiting.popleft()
            yield from waiting
            return
        with self._open_file() as again:
            yield from islice(self._decode_once(again, rate, is_strict=False), given, None)

    def _decode_once(
        self, container: av.container.InputContainer, rate: Fraction, is_strict: bool
    ) -> Iterator[_Decoded]:
        """As `_decode`. If it is strict, several frames at a time, which have to be those of the packets one after the
        other: _DamagedError is raised before one that is not."""
        stream = container.streams.video[0]
        options = {"max_pixels": str(FRAME_PIXELS)}
        if is_strict:
            stream.thread_type, stream.thread_count = "AUTO", AT_A_TIME
            options["err_detect"] = "explode"  # FFmpeg's name for reporting what could be passed over
        stream.codec_context.options = options
        start: int | None = None  # first pts
        end: int | None = None  # pts where the last packet ends
        last = Fraction(-1)  # time of the last frame
        coming = list[int]()  # a heap: pts of packets whose frames have not come
        count = damaged = 0
        for packet in self._packets(container):
            if packet is not None:
                if is_strict and (packet.is_corrupt or packet.pts is None):
                    raise _DamagedError
                if is_strict and not packet.is_discard:
                    heappush(coming, packet.pts)
                damaged += packet.is_corrupt
                if packet.pts is not None and not packet.is_discard:
                    end = max(end or packet.pts, packet.pts + (packet.duration or 0))
            try:
                frames = stream.codec_context.decode(packet)
            except av.FFmpegError as error:
                if is_strict:
                    raise _DamagedError from error
                damaged += 1
                continue
            for frame in frames:
                if is_strict and (frame.is_corrupt or not coming or frame.pts != heappop(coming)):
                    raise _DamagedError
                stamp = display_time(frame, container)
                if start is None:
                    start = stamp or 0
                time = last if stamp is None else (stamp - start) * stream.time_base
                if count == 0:
                    time = Fraction(0)
                elif time <= last:
                    time = last + 1 / rate
                count, last = count + 1, time
                yield _Decoded(frame, time, int(stream.codec_context.color_trc))
        if coming:
            raise _DamagedError
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

    def _convert(self, stream: av.VideoStream, decoded: Iterator[_Decoded]) -> Iterator[Frame]:
        """The frames as RGB, upright, with square pixels, all of the size of the first."""
        graph = graph_key = size = matrix = None
        interlaced = False
        times = deque[Fraction]()  # of the frames in the graph
        for number, (frame, time, transfer) in enumerate(decoded):
            if size is None:
                aspect = stream.sample_aspect_ratio or 1
                if abs(aspect - 1) < 0.01 or not 1 / 4 <= aspect <= 4:  # square but for rounding, or absurd
                    aspect = 1
                size = round(frame.width * aspect), frame.height
                matrix = frame.side_data.get(Type.DISPLAYMATRIX)
                matrix = None if matrix is None else bytes(matrix)
            interlaced = interlaced or frame.interlaced_frame
            # The first frame tells the size. A deinterlacer needs every frame.
            if number and not interlaced and not self._wanted(number):
                yield Frame(SKIPPED, time)
                continue
            alpha = any(component.is_alpha for component in frame.format.components)
            kind = frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range)
            if (*kind, transfer, interlaced) != graph_key:
                yield from _pull(graph, None, times, matrix)
                graph_key = *kind, transfer, interlaced
                scale = "{}:{}".format(*size)
                if frame.colorspace == UNSPECIFIED_MATRIX:  # the usual rule: HD is BT.709, SD is BT.601
                    scale += f":in_color_matrix={'bt709' if frame.width >= 1280 or frame.height > 576 else 'bt601'}"
                target = "rgba" if alpha else "rgb24"
                graph = conversion_graph(frame, scale, target, transfer, deinterlace=interlaced)
            times.append(time)
            frame.pts = None  # the graph only converts; its clock is not the file's
            yield from _pull(graph, frame, times, matrix)
        yield from _pull(graph, None, times, matrix)

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


def _pull(
    graph: av.filter.Graph | None, frame: av.VideoFrame | None, times: deque[Fraction], matrix: bytes | None
) -> Iterator[Frame]:
    """What comes out of the graph for another frame, or for the end."""
    if graph is None or not (frame or times):
        return
    graph.push(frame)
    with suppress(BlockingIOError, EOFError):
        while times:
            pixels = graph.pull().to_ndarray()
            if pixels.shape[2] == 4:
                colour, opacity = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
                pixels = ((colour * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
            yield Frame(_upright(pixels, matrix), times.popleft())


def _declared_duration(container: av.container.InputContainer) -> Fraction | None:
    stream = container.streams.video[0]
    if stream.duration:
        return stream.duration * stream.time_base
    if tag := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):  # Matroska
        hours, minutes, seconds = map(Fraction, tag.groups())
        return 3600 * hours + 60 * minutes + seconds
    return Fraction(container.duration, av.time_base) if container.duration else None
