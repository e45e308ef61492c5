"""Motion: what is known of driving frames, and a growing record of it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..networks.head_pose import HeadPose


@dataclass(frozen=True)
class Motion:
    """What is known of F driving frames: 2.4 KB each, float32 on the CPU, for any portrait and any output size.

    Args:
        pose: head poses.
        tokens: (F, 32, 16) motion tokens.
        boxes: (F, 4) face boxes x1, y1, x2, y2 on a grid of 512 x 512.
        held: (F,) uint8, 0 where a frame's motion is its own, else why it is not (`hold.Reason`).
    """

    pose: HeadPose
    tokens: Tensor
    boxes: Tensor
    held: Tensor = None  # type: ignore[assignment]  # all zero where not given

    def __post_init__(self) -> None:
        if self.held is None:
            object.__setattr__(self, "held", torch.zeros(len(self.tokens), dtype=torch.uint8))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: slice | list[int]) -> "Motion":
        return Motion(self.pose[index], self.tokens[index], self.boxes[index], self.held[index])

    @staticmethod
    def cat(motions: "list[Motion]") -> "Motion":
        return Motion(
            HeadPose.cat([m.pose for m in motions]),
            torch.cat([m.tokens for m in motions]),
            torch.cat([m.boxes for m in motions]),
            torch.cat([m.held for m in motions]),
        )

    def marked(self, reason: int) -> "Motion":
        """The same motion, marked as held in every frame for this reason."""
        return replace(self, held=torch.full_like(self.held, reason))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, to be stored; `of_tensors` is the way back."""
        own = {"tokens": self.tokens, "boxes": self.boxes, "held": self.held}
        return own | {f"pose.{key}": x for key, x in vars(self.pose).items()}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> "Motion":
        pose = {key.removeprefix("pose."): x for key, x in tensors.items() if key.startswith("pose.")}
        return cls(HeadPose(**pose), tensors["tokens"], tensors["boxes"], tensors["held"])


class TensorRecord:
    """Collects tensors by name that come in pieces, each in one buffer that doubles when it is full.

    A list of the pieces fragments the C library's heap: small tensors that stay lie between large ones that go. That
    took 5 GB for 1600 frames, in place of 4 MB.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._frames = 0

    def append(self, tensors: dict[str, Tensor]) -> None:
        """Adds a piece. The first dimension of all tensors is that of the frames."""
        frames = self._frames
        for key, value in tensors.items():
            frames = self._frames + len(value)
            buffer = self._tensors.get(key)
            if buffer is None or len(buffer) < frames:
                larger = value.new_empty(max(1024, 2 * frames), *value.shape[1:])
                if buffer is not None:
                    larger[: self._frames] = buffer[: self._frames]
                self._tensors[key] = buffer = larger
            buffer[self._frames : frames] = value
        self._frames = frames

    def tensors(self) -> dict[str, Tensor]:
        """All of them so far; empty before the first piece."""
        return {key: value[: self._frames] for key, value in self._tensors.items()}


class MotionRecord:
    """Collects motion that comes in pieces."""

    def __init__(self) -> None:
        self._record = TensorRecord()

    def append(self, motion: Motion) -> None:
        self._record.append(motion.tensors())

    def motion(self) -> Motion:
        """All of it so far, at least one frame."""
        return Motion.of_tensors(self._record.tensors())
