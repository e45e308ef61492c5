"""Driving frames in parts, whose motion several workers extract at the same time.

What the networks say of a frame depends on earlier ones only where it shows no face: the crop for its tokens is then
taken from the face box before it. `Hold` never uses such tokens, and needs no more of the pictures than thumbnails. So
each part is extracted for itself, and `Hold` goes over all frames when the parts are joined.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..config import CHUNK
from .extraction import ExtractedChunk
from .hold import Hold, thumbnails
from .motion import Motion, MotionRecord, TensorRecord

PUSH = 1024  # frames that `Hold` gets together, because each push has a cost of its own
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """What one of several workers extracts: every `count`-th chunk, from number `index` on.

    So all frames are in just one part, however many there are, which only reading them tells. The networks get them in
    the same fours as from a single worker.
    """

    index: int
    count: int

    def has(self, number: int) -> bool:
        """Whether the driving frame of this number, from 0, belongs to it."""
        return number // CHUNK % self.count == self.index

    def of(self, frames: Iterable[T]) -> Iterator[T]:
        """Those of all driving frames that belong to it."""
        return (frame for number, frame in enumerate(frames) if self.has(number))


def record_part(chunks: Iterable[ExtractedChunk]) -> dict[str, Tensor]:
    """What `join_parts` needs of a part.

    Args:
        chunks: Of its frames, extracted without hold.

    Returns:
        Tensors by name, 15 KB a frame, on the CPU; none if the part has no frame.
    """
    record = TensorRecord()
    for chunk in chunks:
        record.append(chunk.motion.tensors() | {"thumbnails": thumbnails(chunk.pixels)})
    return {key: value.clone() for key, value in record.tensors().items()}


def join_parts(parts: Sequence[dict[str, Tensor]]) -> Motion:
    """The motion of all frames with hold, bit for bit as from a single worker.

    Args:
        parts: From `record_part`, in order.

    Raises:
        InputError: No frame shows a face.
    """
    filled = [part for part in parts if part]
    joined = {key: torch.cat([part[key] for part in filled]) for key in filled[0]}
    owners = torch.arange(len(joined["thumbnails"])) // CHUNK % len(parts)
    places = owners.argsort(stable=True).argsort()  # of the video's frames in the parts, one after the other
    joined = {key: value[places] for key, value in joined.items()}
    motion, hold, record = Motion.of_tensors(joined), Hold(), MotionRecord()
    for i in range(0, len(motion), PUSH):
        record.append(hold.push(motion[i : i + PUSH], joined["thumbnails"][i : i + PUSH]))
    hold.finish()
    return record.motion()
