"""Frames that say nothing about the driver's face: the last good motion is held, and blended back afterwards.

Whether a frame is good follows from what is known anyway: the keypoints, the angles of the head, and the picture at
32 x 32. The networks have no output for "this is a face", so an ordinary picture without one may pass, unless a
detector has looked at it.
"""

from collections.abc import Sequence
from enum import IntEnum
from itertools import groupby

import torch
from torch import Tensor

from ..device import resize
from ..errors import InputError
from ..networks.head_pose import HeadPose
from .keypoints import dots_inside, has_face_box, transform_keypoints
from .motion import Motion

THUMBNAIL = 32  # pixels on a side
FLAT = 0.02  # standard deviation of a thumbnail, of 1; frames of a person have 0.2
CUT = 0.15  # mean difference between the thumbnails of two frames, of 1; frames of one shot differ by 0.03 at most
FEWEST_DOTS = 3  # of the seven keypoints, inside the picture
TURNED_AWAY = 75  # degrees between where the head looks and the camera
MISSES = 3  # frames in a row without a face that are taken for an error of the detector
BLEND = 4  # frames from the held motion back to the driver's


class Reason(IntEnum):
    """Why a frame's motion is not its own."""

    GOOD = 0
    NO_FACE = 1
    NO_PICTURE = 2
    TURNED_AWAY = 3
    SCENE_CUT = 4

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


class Hold:
    """Takes the motion of driving frames piece by piece, and returns it with bad frames held.

    Good frames keep every bit, except for the four after held ones, which are blended. Frames before the first good
    one wait for it and get its motion. The result does not depend on how the frames are cut into pieces.

    A detector misses a face now and then, and whether it finds the face in the next frames is not known yet. So up to
    `MISSES` frames after one with a face keep their own motion. Later ones are held, with the motion of the last frame
    that had a face. Before the first face every miss counts.
    """

    def __init__(self) -> None:
        self._waiting: list[Reason] = []  # frames before the first good one
        self._missed = MISSES  # frames in a row in which the detector found no face
        self._shown: Motion | None = None  # the last motion given out, but for frames that the detector missed
        self._anchor: Motion | None = None  # the held motion that is blended back from
        self._blended = 0  # frames since it was held
        self._thumbnail: Tensor | None = None  # of the last frame with a picture
        self._was_cut = False

    def push(self, motion: Motion, frames: Tensor, has_face: Sequence[bool] | None = None) -> Motion:
        """Takes the next frames.

        Args:
            motion: of F frames, as extracted.
            frames: (F, 3, H, W) in [0, 1], or their `thumbnails`.
            has_face: whether a detector found a face in each frame; None without a detector.

        Returns:
            The motion that is ready, with `held` set. Nothing is ready before the first good frame.
        """
        ready = []
        for i, (reason, thumbnail) in enumerate(zip(_judge(motion), thumbnails(frames), strict=True)):
            self._missed = 0 if has_face is None or has_face[i] else self._missed + 1
            reason = Reason.NO_FACE if self._missed > MISSES else reason
            reason, is_cut = self._look(reason, thumbnail)
            ready += self._next(motion[i : i + 1], reason, is_cut)
        return Motion.cat(ready) if ready else motion[:0]

    def finish(self) -> None:
        """After the last frame: raises InputError if none was good."""
        if self._waiting:
            reasons = {str(reason): self._waiting.count(reason) for reason in Reason if reason in self._waiting}
            found = ", ".join(f"{reason} in {count}" for reason, count in reasons.items())
            raise InputError(
                f"none of the {len(self._waiting)} driving frames shows a face ({found}): give a video with one face, "
                "large in the picture."
            )

    def _look(self, reason: Reason, thumbnail: Tensor) -> tuple[Reason, bool]:
        """The reason with what the picture adds to it, and whether the picture differs much from the one before."""
        if thumbnail.std() < FLAT:
            return Reason.NO_PICTURE, False
        before, self._thumbnail = self._thumbnail, thumbnail
        is_cut = before is not None and (thumbnail - before).abs().mean().item() > CUT
        # Pictures that differ one by one are no video with cuts, but a series of photos: each counts for itself.
        reason = reason or (Reason.SCENE_CUT if is_cut and not self._was_cut else Reason.GOOD)
        return reason, is_cut

    def _next(self, own: Motion, reason: Reason, is_cut: bool) -> list[Motion]:
        in_series = is_cut and self._was_cut
        self._was_cut = is_cut
        if self._shown is None:
            if reason not in (Reason.GOOD, Reason.SCENE_CUT):
                self._waiting.append(reason)
                return []
            waited, self._waiting, self._shown = self._waiting, [], own
            return [*(own.marked(before) for before in waited), own]
        if reason:
            self._anchor, self._blended = self._shown, 0
            return [self._shown.marked(reason)]
        shown = own
        if self._anchor is not None:
            self._blended += 1
            if self._blended > BLEND or in_series:
                self._anchor = None
            else:
                shown = _blend(self._anchor, own, self._blended / (BLEND + 1))
        if not self._missed:
            self._shown = shown
        return [shown]


def thumbnails(frames: Tensor) -> Tensor:
    """All that `Hold` sees of frames (F, 3, H, W): (F, 3, 32, 32) on the CPU. Thumbnails come back as they are."""
    return resize(frames, (THUMBNAIL, THUMBNAIL), "area").cpu()


def _judge(motion: Motion) -> list[Reason]:
    """The reason for each frame, from the networks' outputs."""
    keypoints = transform_keypoints(motion.pose)
    has_face = has_face_box(keypoints) & (dots_inside(keypoints) >= FEWEST_DOTS)
    pitch, yaw, _ = motion.pose.angles.deg2rad().unbind(-1)
    away = (pitch.cos() * yaw.cos()).clamp(-1, 1).acos().rad2deg() > TURNED_AWAY
    return [
        Reason.NO_FACE if not face else Reason.TURNED_AWAY if turned else Reason.GOOD
        for face, turned in zip(has_face.tolist(), away.tolist(), strict=True)
    ]


def _blend(held: Motion, own: Motion, weight: float) -> Motion:
    pose = (torch.lerp(a, b, weight) for a, b in zip(vars(held.pose).values(), vars(own.pose).values(), strict=True))
    return Motion(HeadPose(*pose), torch.lerp(held.tokens, own.tokens, weight), own.boxes)


def describe_held(held: Tensor) -> str:
    """`Motion.held` in words, with frames counted from 0; empty if nothing was held."""
    runs, first = [], 0
    for code, group in groupby(held.tolist()):
        last = first + len(list(group)) - 1
        if code:
            runs.append(f"{first} to {last} ({Reason(code)})" if last > first else f"{first} ({Reason(code)})")
        first = last + 1
    count = int(held.count_nonzero())
    return f"held the last good motion in {count} of {len(held)} frames: {', '.join(runs)}" if runs else ""
