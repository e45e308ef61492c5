"""A performance: the motion of a driver, and how it is used: how strongly, which frames, how fast, how often."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..limits import MOTION_FRAMES
from ..networks.head_pose import HeadPose
from .keypoints import retarget
from .motion import Motion

MAX_STRENGTH = 3.0
MIN_FRAME_RATE, MAX_FRAME_RATE = 1, 240  # frames per second
MAX_SMOOTHING = 100.0  # frames
MAX_LOOP = 10_000
MAX_INDEX = 10**9  # of a driving frame
JITTER = Fraction(2, 1000)  # seconds: containers that count in milliseconds round that much


@dataclass(frozen=True)
class Strength:
    """How much of the driver's motion the portrait takes. The defaults are the published values and change no bit.

    0 is the portrait's own, 1 the driver's, 1.5 half as much again, up to 3. The published model turns the head and
    moves the face as the driver does, translates the head by half of the driver's movement, and keeps its size: hence
    `scale` is 0.

    Args:
        expression: of the face.
        rotation: of the head.
        translation: of the head in the picture; 1 is the published half of the driver's movement.
        scale: of the head, nearer and further.
        relative: expression and rotation are the portrait's own plus the driver's change since the neutral frame;
            otherwise they are the driver's own.
    """

    expression: float = 1.0
    rotation: float = 1.0
    translation: float = 1.0
    scale: float = 0.0
    relative: bool = False

    def check(self) -> None:
        """Raises InputError unless every strength is from 0 to 3."""
        for name in ("expression", "rotation", "translation", "scale"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_STRENGTH:
                raise InputError(f"{name} is {value:g}, but must be from 0 (portrait) to {MAX_STRENGTH:g}.")

    def on(self, earlier: "Strength") -> "Strength":
        """This strength on top of an earlier one: half of a half is a quarter, and the defaults change nothing."""
        return Strength(
            self.expression * earlier.expression,
            self.rotation * earlier.rotation,
            self.translation * earlier.translation,
            self.scale + earlier.scale,
            self.relative or earlier.relative,
        )


PUBLISHED = Strength()


def retarget_motion(reference: Motion, driving: Motion, neutral: Motion, strength: Strength = PUBLISHED) -> Motion:
    """The motion that the networks get: every value is portrait + strength x (driver - portrait).

    Args:
        reference: the portrait's motion, one frame.
        driving: the driver's motion, F frames.
        neutral: the driver's motion in the neutral frame (published: the first), one frame. Translation and scale
            follow the driver's change since then.
        strength: how much of the driver's motion is taken.

    Returns:
        F frames: the portrait's head pose and motion tokens, moved.
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
            translation=_lerp(reference.pose.translation, pose.translation, strength.translation),
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
    """Averages angles, translation and scale over time, without lag; motion tokens stay as they are.

    Args:
        motion: F frames.
        frames: standard deviation of the Gaussian, which is cut off at three of them; 0 changes nothing. At the ends
            the average is over the frames that exist.
    """
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


def parse_frame_rate(text: str) -> Fraction:
    """Reads a frame rate such as 25, 29.97 or 30000/1001.

    Raises:
        InputError: the text is no number, or has an exponent: 1e999999999 would take hours to compute.
    """
    try:
        if len(text) > 50 or "e" in text.lower():
            raise ValueError
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"the frame rate is {text[:50]!r}, but must be a number such as 25, 29.97 or 30000/1001."
        ) from error


def frame_times(frames: int, rate: Fraction) -> list[Fraction]:
    """The times in seconds of so many frames at a constant rate."""
    return [i / rate for i in range(frames)]


def has_constant_rate(times: Sequence[Fraction]) -> bool:
    """Whether the frames are equally far apart, but for what milliseconds round."""
    steps = [after - before for before, after in pairwise(times)]
    return all(abs(step - steps[0]) <= JITTER for step in steps)


def _neighbours(times: Sequence[Fraction], new_times: Sequence[Fraction]) -> list[tuple[int, Fraction]]:
    """For each new time the frame before it, and how far it lies towards the next frame, in [0, 1)."""
    found = []
    for time in new_times:
        time = min(max(time, times[0]), times[-1])
        before = bisect_right(times, time) - 1
        length = times[before + 1] - times[before] if before + 1 < len(times) else Fraction(1)
        found.append((before, (time - times[before]) / length))
    return found


def nearest_frames(times: Sequence[Fraction], new_times: Sequence[Fraction]) -> list[int]:
    """For each new time the number of the nearest frame; both in seconds, in order."""
    return [before + math.floor(weight + Fraction(1, 2)) for before, weight in _neighbours(times, new_times)]


def resample(motion: Motion, times: Sequence[Fraction], new_times: Sequence[Fraction]) -> Motion:
    """The same motion at other times.

    Args:
        motion: F frames.
        times: when each of them is shown, in seconds, in order.
        new_times: when the frames of the result are shown.

    Returns:
        A frame for each new time, interpolated between the two around it. Whether it was held, and its face box, are
        the nearest frame's.
    """
    neighbours = _neighbours(times, new_times)
    before = [index for index, _ in neighbours]
    after = [min(index + 1, len(motion) - 1) for index in before]
    weights = torch.tensor([float(weight) for _, weight in neighbours])

    def interpolate(x: Tensor) -> Tensor:
        return torch.lerp(x[before], x[after], weights.view(-1, *[1] * (x.ndim - 1)))

    nearest = motion[nearest_frames(times, new_times)]
    pose = HeadPose(*map(interpolate, vars(motion.pose).values()))
    return replace(nearest, pose=pose, tokens=interpolate(motion.tokens))


def loop_order(frames: int, loop: int, back_and_forth: bool) -> list[int]:
    """The order of the frames of something that is played `loop` times: from the beginning each time, or forwards and
    backwards in turn without repeating the frames where it turns."""
    if not back_and_forth:
        return list(range(frames)) * loop
    order = list(range(frames))
    for i in range(1, loop):
        order += range(1, frames) if i % 2 == 0 else range(frames - 2, -1, -1)
    return order


def trim(motion: Motion, start: int, count: int) -> Motion:
    """`count` frames from frame `start` on; a count of 0 is all that follow. Raises InputError if there are none."""
    trimmed = motion[start : start + count if count else None]
    if not len(trimmed):
        raise InputError(f"the motion has {len(motion)} frames and none from {start} on: lower 'start'.")
    return trimmed


@dataclass(frozen=True)
class Adjustment:
    """What to change about a performance, in this order; the defaults change nothing.

    Args:
        strength: on top of the performance's own, see `Strength.on`.
        start: frames to cut off at the beginning.
        count: frames to keep at most; 0 is all.
        smoothing: see `smooth_pose`.
        neutral: number of the neutral frame, counted after trimming; None leaves it as it is.
        frame_rate: frames per second of the result, which stays as long as it is; None keeps the rate and the times.
        loop: how many times it is played.
        back_and_forth: every second time backwards.
    """

    strength: Strength = PUBLISHED
    start: int = 0
    count: int = 0
    smoothing: float = 0.0
    neutral: int | None = None
    frame_rate: Fraction | None = None
    loop: int = 1
    back_and_forth: bool = False

    def check(self) -> None:
        """Raises InputError where a number makes no sense."""
        self.strength.check()
        limits = {
            "start": (0, MAX_INDEX),
            "count": (0, MAX_INDEX),
            "smoothing": (0, MAX_SMOOTHING),
            "neutral": (0, math.inf),
            "frame_rate": (MIN_FRAME_RATE, MAX_FRAME_RATE),
            "loop": (1, MAX_LOOP),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                allowed = f"{low} or more" if high == math.inf else f"from {low} to {high:.10g}"
                given = value if isinstance(value, int) else f"{float(value):g}"
                raise InputError(f"{name.replace('_', ' ')} is {given}, but must be {allowed}.")

    @property
    def keeps_frames(self) -> bool:
        """Whether the result has the frames of the driver, each once at its own time."""
        return self.frame_rate is None and self.loop == 1

    @property
    def needs_all_frames(self) -> bool:
        """Whether the last frame has to be known before the first can be used."""
        return not self.keeps_frames or bool(self.smoothing) or self.neutral is not None


@dataclass(frozen=True)
class Performance:
    """The motion of a driver, and how it is to be used; nothing of what the driver looks like.

    Args:
        motion: F frames.
        frame_rate: frames per second; the average where the rate varies.
        source: name of the video.
        strength: how much of the motion the portrait takes.
        neutral: motion of the neutral frame, one frame; None is the first.
        times: seconds at which the frames are shown, from 0 on, where the rate varies; None where it is constant.
    """

    motion: Motion
    frame_rate: Fraction
    source: str = ""
    strength: Strength = PUBLISHED
    neutral: Motion | None = None
    times: tuple[Fraction, ...] | None = None

    @classmethod
    def extracted(cls, motion: Motion, frame_rate: Fraction, source: str, times: Sequence[Fraction]) -> "Performance":
        """Of a video whose frames are shown at these times, in seconds."""
        return cls(motion, frame_rate, source, times=None if has_constant_rate(times) else tuple(times))

    @property
    def frame_times(self) -> Sequence[Fraction]:
        """Seconds at which each frame is shown."""
        return self.times or frame_times(len(self.motion), self.frame_rate)

    def adjusted(self, adjustment: Adjustment) -> "Performance":
        """Raises InputError where a number of the adjustment makes no sense for this performance."""
        adjustment.check()
        strength = adjustment.strength.on(self.strength)
        strength.check()
        motion = smooth_pose(trim(self.motion, adjustment.start, adjustment.count), adjustment.smoothing)
        neutral = self.neutral
        if adjustment.neutral is not None:
            if adjustment.neutral >= len(motion):
                raise InputError(
                    f"the neutral frame is {adjustment.neutral}, and the motion ends at {len(motion) - 1}: lower it."
                )
            neutral = motion[adjustment.neutral : adjustment.neutral + 1]
        times = self._trimmed_times(adjustment)
        new_times = self._new_times(adjustment)
        if new_times != times:
            motion = resample(motion, times, new_times)
        if adjustment.loop > 1:
            motion = motion[loop_order(len(motion), adjustment.loop, adjustment.back_and_forth)]
        return Performance(
            motion,
            adjustment.frame_rate or self.frame_rate,
            self.source,
            strength,
            neutral,
            tuple(times) if self.times and adjustment.keeps_frames else None,
        )

    def nearest_frames(self, adjustment: Adjustment) -> list[int]:
        """For each frame of `adjusted(adjustment)` the number of the nearest frame of this performance."""
        nearest = nearest_frames(self._trimmed_times(adjustment), self._new_times(adjustment))
        order = loop_order(len(nearest), adjustment.loop, adjustment.back_and_forth)
        return [adjustment.start + nearest[i] for i in order]

    def _trimmed_times(self, adjustment: Adjustment) -> list[Fraction]:
        start, count = adjustment.start, adjustment.count
        times = self.frame_times[start : start + count if count else None]
        return [time - times[0] for time in times]

    def _new_times(self, adjustment: Adjustment) -> list[Fraction]:
        """Before looping. A loop is of constant rate, and so is what gets a new one."""
        times, rate = self._trimmed_times(adjustment), adjustment.frame_rate or self.frame_rate
        if adjustment.keeps_frames:
            return times
        frames = max(1, round((times[-1] + 1 / self.frame_rate) * rate))
        if frames * adjustment.loop > MOTION_FRAMES and (rate, adjustment.loop) != (self.frame_rate, 1):
            raise InputError(
                f"the result would have {frames * adjustment.loop} frames, and {MOTION_FRAMES} are the most: lower "
                "loop or frame rate."
            )
        is_at_rate = rate == self.frame_rate and (self.times is None or has_constant_rate(times))
        return times if is_at_rate else frame_times(frames, rate)

    def at_constant_rate(self) -> "Performance":
        """The same at `frame_rate`, interpolated where its own rate varies; a live session may have made less than one
        frame a second."""
        rate = max(self.frame_rate, Fraction(MIN_FRAME_RATE))
        return self if self.times is None else self.adjusted(Adjustment(frame_rate=rate))

    def retargeted(self, reference: Motion, frames: slice) -> Motion:
        """What the networks get of these frames for a portrait with this motion, one frame."""
        neutral = self.motion[:1] if self.neutral is None else self.neutral
        return retarget_motion(reference, self.motion[frames], neutral, self.strength)
