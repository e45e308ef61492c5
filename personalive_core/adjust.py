"""Motion as it is wanted: how much of it the portrait takes, and in which frames, how fast, how often."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .keypoints import HeadPose, retarget
from .motion import Motion

LARGEST_STRENGTH = 3.0


@dataclass(frozen=True)
class Strength:
    """How much of the driver's motion the portrait takes: 0 is the portrait's own, 1 the driver's, 1.5 half as much
    again. The values here are the published ones, and change no bit.

    The published model turns the head and moves the face exactly as the driver does, shifts the head by half of the
    driver's movement, and leaves its size alone: hence scale is 0. With `relative`, expression and rotation are the
    portrait's own plus the driver's change since the neutral frame; without, they are the driver's own.
    """

    expression: float = 1.0
    rotation: float = 1.0
    shift: float = 1.0
    scale: float = 0.0
    relative: bool = False

    def check(self) -> None:
        """InputError unless every strength is from 0 to 3."""
        for name in ("expression", "rotation", "shift", "scale"):
            value = getattr(self, name)
            if not 0 <= value <= LARGEST_STRENGTH:
                raise InputError(f"{name} is {value}, but must be from 0 (portrait) to {LARGEST_STRENGTH:g}.")


PUBLISHED = Strength()


def retarget_motion(reference: Motion, driving: Motion, neutral: Motion, strength: Strength = PUBLISHED) -> Motion:
    """What reaches the networks for the F frames of `driving`: the portrait's head pose, and motion tokens.

    `reference` is the portrait's motion and `neutral` that of the driver's frame which counts as normal (published:
    the first), one frame each. Every value is portrait + strength x (driver - portrait). For the translation the
    driver's is what `retarget` gives; for the scale it is the portrait's times the driver's change since `neutral`.
    """
    pose = retarget(reference.pose, driving.pose, neutral.pose)
    angles, tokens = pose.angles, driving.tokens
    if strength.relative:
        angles = reference.pose.angles + (angles - neutral.pose.angles)
        tokens = reference.tokens + (tokens - neutral.tokens)
    if strength.scale:
        grown = reference.pose.scale * (driving.pose.scale / neutral.pose.scale)
        pose = HeadPose(pose.angles, pose.translation, _lerp(pose.scale, grown, strength.scale), pose.keypoints)
    return Motion(
        HeadPose(
            angles=_lerp(reference.pose.angles, angles, strength.rotation),
            translation=_lerp(reference.pose.translation, pose.translation, strength.shift),
            scale=pose.scale,
            keypoints=pose.keypoints,
        ),
        _lerp(reference.tokens, tokens, strength.expression),
        driving.boxes,
        driving.held,
    )


def _lerp(portrait: Tensor, driver: Tensor, strength: float) -> Tensor:
    """Exact at 0 and 1."""
    return driver if strength == 1 else torch.lerp(portrait.expand_as(driver), driver, strength)
