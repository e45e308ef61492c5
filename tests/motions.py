"""Made-up motion, and whether two are the same to the bit."""

import torch

from personalive_core.motion.motion import Motion
from personalive_core.networks.head_pose import HeadPose
from seeded import normal


def motion_of(tag: str, frames: int) -> Motion:
    pose = HeadPose(
        normal(f"{tag}/angles", frames, 3) * 10,
        normal(f"{tag}/t", frames, 3) / 10,
        1 + normal(f"{tag}/s", frames, 1) / 10,
        normal(f"{tag}/kp", frames, 21, 3) / 4,
    )
    return Motion(pose, normal(f"{tag}/tokens", frames, 32, 16), torch.zeros(frames, 4, dtype=torch.long))


def same(a: Motion, b: Motion) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))
