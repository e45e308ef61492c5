"""The head pose that the motion extractor finds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class HeadPose:
    """The head in each of F frames, in float32."""

    angles: Tensor  # (F, 3): pitch, yaw, roll in degrees
    translation: Tensor  # (F, 3)
    scale: Tensor  # (F, 1)
    keypoints: Tensor  # (F, 21, 3): canonical, before rotation, scale and translation

    def __len__(self) -> int:
        return len(self.angles)

    def __getitem__(self, frames: slice | list[int]) -> "HeadPose":
        return HeadPose(*(x[frames] for x in vars(self).values()))

    def to(self, device: torch.device | str) -> "HeadPose":
        return HeadPose(*(x.to(device) for x in vars(self).values()))

    @staticmethod
    def cat(poses: Sequence["HeadPose"]) -> "HeadPose":
        """Concatenates the frames of several poses."""
        return HeadPose(*(torch.cat(x) for x in zip(*(vars(pose).values() for pose in poses), strict=True)))
