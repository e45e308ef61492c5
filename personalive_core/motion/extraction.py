"""From driving frames to motion: head poses from the whole frame, motion tokens from the face crop."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..config import CHUNK
from ..device import resize, to_pixels
from ..errors import InputError
from ..networks.motion_encoder import MotionEncoder
from ..networks.motion_extractor import MotionExtractor
from .hold import Hold
from .keypoints import crop_faces, face_boxes, fill_empty_boxes, transform_keypoints
from .motion import Motion

T = TypeVar("T")


class DrivingFrame(NamedTuple):
    """A driving picture as the networks get it.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        has_face: whether it shows a face, as far as is known.
        time: seconds from the first driving frame.
        overview: draws the whole frame that it was cropped from, with the square, uint8 (H, W, 3); None without crop.
    """

    pixels: np.ndarray
    has_face: bool = True
    time: Fraction = Fraction(0)
    overview: Callable[[], np.ndarray] | None = None

    def mirrored(self) -> "DrivingFrame":
        """Left and right exchanged."""
        overview = self.overview
        return self._replace(
            pixels=np.ascontiguousarray(self.pixels[:, ::-1]), overview=overview and (lambda: overview()[:, ::-1])
        )


def trim_frames(
    frames: Iterable[tuple[np.ndarray, Fraction]], start: int = 0, count: int = 0
) -> tuple[Fraction, Iterator[tuple[np.ndarray, Fraction]]]:
    """Leaves out frames at the beginning and the end of a video.

    Args:
        frames: pictures uint8 (H, W, 3), each with its time in seconds.
        start: how many to leave out first.
        count: how many to use at most; 0 is all.

    Returns:
        The time of the first frame that is used, and the frames, with times counted from there.

    Raises:
        InputError: there is no frame from `start` on.
    """
    used = islice(frames, start, start + count if count else None)
    first = next(used, None)
    if first is None:
        raise InputError(f"there are no driving frames from frame {start} on: lower 'start' or choose another video.")
    begin = first[1]
    return begin, ((pixels, time - begin) for pixels, time in chain([first], used))


@contextmanager
def read_ahead(frames: Iterable[T], count: int = 4 * CHUNK) -> Iterator[Iterator[T]]:
    """The same frames, of which a thread reads so many before they are asked for. The end of the `with` waits for it.

    Args:
        frames: in use by nobody else meanwhile.
        count: how many; all of them may be in memory.
    """
    reading, end = iter(frames), object()
    with ThreadPoolExecutor(1) as thread:

        def read() -> Iterator[T]:
            coming = deque(thread.submit(next, reading, end) for _ in range(count))
            while (frame := coming.popleft().result()) is not end:
                coming.append(thread.submit(next, reading, end))
                yield frame  # type: ignore[misc]

        yield read()


def driving_frames(
    frames: Iterable[tuple[np.ndarray, Fraction]],
    crop: Callable[[np.ndarray], DrivingFrame] = DrivingFrame,
    mirror: bool = False,
) -> Iterator[DrivingFrame]:
    """Pictures with their times, as `trim_frames` gives them, cropped and mirrored."""
    for pixels, time in frames:
        frame = crop(pixels)._replace(time=time)
        yield frame.mirrored() if mirror else frame


@dataclass(frozen=True)
class ExtractedChunk:
    """Up to four driving frames, and what became known with them.

    Args:
        frames: as they came.
        pixels: (F, 3, H, W) in [0, 1], float32, on the networks' device.
        boxes: (F, 4) their own face boxes, see `Motion`.
        motion: of the frames that are ready, in order: held where they show no face, see `hold.Hold`. Frames before
            the first face come only with it.
    """

    frames: list[DrivingFrame]
    pixels: Tensor
    boxes: Tensor
    motion: Motion


def extract_motions(
    extractor: MotionExtractor,
    encoder: MotionEncoder,
    frames: Iterable[DrivingFrame],
    device: torch.device | str,
    *,
    hold: bool = True,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[ExtractedChunk]:
    """Extracts the motion of driving frames, four at a time, as they come.

    Args:
        extractor: on `device`.
        encoder: on `device`.
        frames: all of one size.
        device: where the networks are.
        hold: whether the last good motion stands in for frames without a face.
        context: is entered around the work of each chunk; a CUDA stream, for example.

    Returns:
        The chunks; the motion in them has as many frames as there are driving frames.

    Raises:
        InputError: there is no frame, or with `hold` none with a face.
    """
    coming, holding, own = iter(frames), Hold(), None
    while chunk := list(islice(coming, CHUNK)):
        with torch.inference_mode(), context():
            pixels = to_pixels(np.stack([frame.pixels for frame in chunk]), device)
            own = extract_motion(extractor, encoder, pixels, own)
            ready = holding.push(own, pixels, [frame.has_face for frame in chunk]) if hold else own
        yield ExtractedChunk(chunk, pixels, own.boxes, ready)
    if own is None:
        raise InputError("there are no driving frames: give a video or a picture with at least one.")
    holding.finish()


def extract_motion(
    extractor: MotionExtractor, encoder: MotionEncoder, frames: Tensor, previous: Motion | None = None
) -> Motion:
    """Extracts the motion of frames.

    Args:
        extractor: finds the head pose in the whole frame.
        encoder: makes motion tokens of the face crop.
        frames: (F, 3, H, W) in [0, 1], float32, on the networks' device. They go through the networks four at a time,
            the last one again where there are fewer. So the result does not depend on how many come at once, and a GPU
            need not be prepared for another shape, which took 0.8 s.
        previous: the motion before these frames; a frame without a usable face box takes the box before it.

    Returns:
        The motion of the F frames, on the CPU.
    """
    motions = []
    for chunk in frames.split(CHUNK):
        small = resize(chunk, (extractor.config.image_size,) * 2, "area")
        pose = extractor(_filled(small.to(extractor.get_dtype()))).to("cpu")[: len(chunk)]
        boxes = fill_empty_boxes(face_boxes(transform_keypoints(pose)), previous.boxes[-1] if previous else None)
        faces = crop_faces(chunk, boxes, encoder.config.image_size)
        tokens = encoder(_filled(faces.to(encoder.get_dtype())))[0].float().to("cpu")[: len(chunk)]
        previous = Motion(pose, tokens, boxes)
        motions.append(previous)
    return Motion.cat(motions)


def _filled(frames: Tensor) -> Tensor:
    """As many as go through the networks, with the last one repeated."""
    return torch.cat([frames, frames[-1:].expand(CHUNK - len(frames), -1, -1, -1)])
