"""Motion as it is wanted: how much of it the portrait takes, and in which frames, how fast, how often."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..networks.head_pose import HeadPose
from .keypoints import retarget
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


def smooth_pose(motion: Motion, frames: float) -> Motion:
    """Angles, translation and scale averaged over time, without lag: a Gaussian with a standard deviation of so many
    frames, cut off at 3 of them; at the ends over the frames that there are. 0 changes nothing; tokens stay."""
    if not frames:
        return motion
    reach = math.ceil(3 * frames)
    weights = torch.exp(-((torch.arange(-reach, reach + 1) / frames) ** 2) / 2)

    def smooth(x: Tensor) -> Tensor:
        signal = torch.cat([x, torch.ones(len(x), 1)], dim=1).T[:, None]  # the ones count how much weight was there
        total = F.conv1d(signal, weights[None, None], padding=reach)[:, 0].T
        return total[:, :-1] / total[:, -1:]

    pose = motion.pose
    pose = HeadPose(smooth(pose.angles), smooth(pose.translation), smooth(pose.scale), pose.keypoints)
    return replace(motion, pose=pose)


def _times(frames: int, rate: Fraction, new_rate: Fraction) -> list[Fraction]:
    """Where the frames at the new rate lie between those at the old one."""
    count = max(1, round(frames / rate * new_rate))
    return [min(i * rate / new_rate, Fraction(frames - 1)) for i in range(count)]


def nearest_frames(frames: int, rate: Fraction, new_rate: Fraction) -> list[int]:
    """For each frame at the new rate the number of the nearest of `frames` at the old one."""
    return [math.floor(time + Fraction(1, 2)) for time in _times(frames, rate, new_rate)]


def change_rate(motion: Motion, rate: Fraction, new_rate: Fraction) -> Motion:
    """The same performance at another number of frames per second: as long, to the nearest frame. Every new frame lies
    between two old ones, and is mixed from them; which of them was held and where the face was is the nearer one's."""
    if new_rate == rate:
        return motion
    times = _times(len(motion), rate, new_rate)
    before = [math.floor(time) for time in times]
    after = [min(index + 1, len(motion) - 1) for index in before]
    weights = torch.tensor([float(time - index) for time, index in zip(times, before, strict=True)])

    def mix(x: Tensor) -> Tensor:
        return torch.lerp(x[before], x[after], weights.view(-1, *[1] * (x.ndim - 1)))

    nearest = motion[nearest_frames(len(motion), rate, new_rate)]
    return replace(nearest, pose=HeadPose(*map(mix, vars(motion.pose).values())), tokens=mix(motion.tokens))


def loop_order(frames: int, times: int, back_and_forth: bool) -> list[int]:
    """The frames of something that is played so many times: from the beginning each time, or forwards and backwards in
    turn without repeating the frames where it turns."""
    if not back_and_forth:
        return list(range(frames)) * times
    order = list(range(frames))
    for i in range(1, times):
        order += range(1, frames) if i % 2 == 0 else range(frames - 2, -1, -1)
    return order


def trim(motion: Motion, start: int, count: int) -> Motion:
    """`count` frames from frame `start` on; 0 is all that follow. InputError if there are none."""
    trimmed = motion[start : start + count if count else None]
    if not len(trimmed):
        raise InputError(f"the motion has {len(motion)} frames and none from {start} on: lower 'start'.")
    return trimmed


@dataclass(frozen=True)
class Performance:
    """The motion of a driver, and how it is to be used; nothing of what the driver looks like.

    frame_rate: frames per second; source: the name of the video; neutral: the frame that counts as normal, as motion
    of one frame, None for the first.
    """

    motion: Motion
    frame_rate: Fraction
    source: str = ""
    strength: Strength = PUBLISHED
    neutral: Motion | None = None

    def adjusted(
        self,
        strength: Strength = PUBLISHED,
        *,
        start: int = 0,
        count: int = 0,
        neutral: int | None = None,
        smoothing: float = 0.0,
        frame_rate: Fraction | None = None,
        times: int = 1,
        back_and_forth: bool = False,
    ) -> "Performance":
        """Trim, smooth, change the frame rate, loop: in this order, each as the functions above; the defaults change
        nothing. `neutral` is the frame that counts as normal, counted in the trimmed motion; None leaves it as it is.
        InputError where a number makes no sense."""
        strength.check()
        motion = smooth_pose(trim(self.motion, start, count), smoothing)
        normal = self.neutral
        if neutral is not None:
            if neutral >= len(motion):
                raise InputError(f"the neutral frame is {neutral}, and the motion ends at {len(motion) - 1}: lower it.")
            normal = motion[neutral : neutral + 1]
        rate = frame_rate or self.frame_rate
        motion = change_rate(motion, self.frame_rate, rate)
        motion = motion[loop_order(len(motion), times, back_and_forth)] if times > 1 else motion
        return Performance(motion, rate, self.source, strength, normal)

    def retargeted(self, reference: Motion, frames: slice) -> Motion:
        """What of these frames reaches the networks for a portrait with this motion."""
        neutral = self.motion[:1] if self.neutral is None else self.neutral
        return retarget_motion(reference, self.motion[frames], neutral, self.strength)
