"""The options of `animate` for motion: where it comes from, how much of it is taken, what is kept of it."""

import argparse
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..media.contact_sheet import ContactSheet
from ..media.video_reader import VideoReader
from ..motion.extraction import DrivingFrame, trim_frames
from ..motion.hold import describe_held
from ..motion.motion import Motion, MotionRecord
from ..motion.motion_file import load_motion, save_motion
from ..motion.performance import (
    MAX_FRAME_RATE,
    MAX_LOOP,
    MAX_SMOOTHING,
    MAX_STRENGTH,
    MIN_FRAME_RATE,
    PUBLISHED,
    Adjustment,
    Performance,
    Strength,
    parse_frame_rate,
    retarget_motion,
)
from ..sampling.keyframes import MAX_KEYFRAMES, KeyframeSettings
from .outputs import save_picture

CLOCK = Fraction(1, 90000)  # seconds: MPEG's own unit of time


def add_motion_options(animate: argparse.ArgumentParser) -> None:
    driver = animate.add_mutually_exclusive_group(required=True)
    driver.add_argument(
        "--driving-video",
        type=Path,
        metavar="FILE",
        help="video, GIF, picture or folder of pictures that gives the motion",
    )
    driver.add_argument("--motion", type=Path, metavar="FILE", help="motion that --save-motion wrote, in its place")

    motion = animate.add_argument_group(
        "motion", f"How much of the motion the portrait takes: 0 is its own, 1 the driver's, {MAX_STRENGTH:g} at most."
    )
    for name, default, what in (
        ("expression", PUBLISHED.expression, "the face"),
        ("head-rotation", PUBLISHED.rotation, "turns of the head"),
        ("head-translation", PUBLISHED.translation, "movement of the head in the picture"),
        ("head-scale", PUBLISHED.scale, "size of the head, nearer and further"),
    ):
        motion.add_argument(f"--{name}", type=float, default=default, metavar="X", help=what)
    motion.add_argument(
        "--relative", action="store_true", help="expression and rotation as changes since the neutral frame"
    )
    motion.add_argument("--neutral", type=int, metavar="N", help="number of the neutral frame; without it the first")
    motion.add_argument("--start", type=int, default=0, metavar="N", help="driving frames to skip first")
    motion.add_argument(
        "--smoothing",
        type=float,
        default=0.0,
        metavar="N",
        help=f"calm the head over about N frames, {MAX_SMOOTHING:g} at most",
    )
    motion.add_argument("--mirror", action="store_true", help="exchange left and right of the driving video")
    motion.add_argument(
        "--frame-rate",
        metavar="FPS",
        help=f"frames per second of the result, {MIN_FRAME_RATE} to {MAX_FRAME_RATE}; without it the driver's",
    )
    motion.add_argument(
        "--loop", type=int, default=1, metavar="N", help=f"play it N times, {MAX_LOOP} at most; a loop has no sound"
    )
    motion.add_argument("--back-and-forth", action="store_true", help="with --loop: every second time backwards")
    motion.add_argument("--no-hold", action="store_true", help="take frames without a face as they are")
    motion.add_argument("--save-motion", type=Path, metavar="FILE", help="keep the motion for other portraits")
    motion.add_argument("--sheet", type=Path, metavar="FILE", help="draw driver, keypoints and result into a picture")

    long = animate.add_argument_group("long takes", "Against drift.")
    long.add_argument(
        "--keyframes",
        type=int,
        default=KeyframeSettings.limit,
        metavar="N",
        help=f"keyframes to keep at most, up to {MAX_KEYFRAMES}",
    )
    long.add_argument(
        "--keyframe-threshold",
        type=float,
        default=KeyframeSettings.threshold,
        metavar="X",
        help="how far the motion tokens of a new keyframe must be from all others",
    )
    long.add_argument(
        "--return-every",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds after which keyframes are dropped and the portrait stands in their place; 0 is never",
    )


def adjustment_of(options: argparse.Namespace) -> Adjustment:
    """What the options change about the driver's motion. Raises InputError where one cannot be."""
    if options.max_frames < 0:
        raise InputError(f"--max-frames is {options.max_frames}, but must be 0 (all frames) or more.")
    if options.back_and_forth and options.loop == 1:
        raise InputError("--back-and-forth does nothing without --loop: add --loop 2 or more, or leave it out.")
    for flag in ("mirror", "crop_driving", "no_hold"):
        if options.motion and getattr(options, flag):
            name = flag.replace("_", "-")
            raise InputError(f"--{name} needs the driving video, and --motion has none: use it with --save-motion.")
    adjustment = Adjustment(
        Strength(
            options.expression, options.head_rotation, options.head_translation, options.head_scale, options.relative
        ),
        start=options.start,
        count=options.max_frames,
        smoothing=options.smoothing,
        neutral=options.neutral,
        frame_rate=None if options.frame_rate is None else parse_frame_rate(options.frame_rate),
        loop=options.loop,
        back_and_forth=options.back_and_forth,
    )
    adjustment.check()
    return adjustment


@dataclass(frozen=True)
class Driver:
    """What drives: frames of a video with their times, or a performance from a file, already adjusted.

    frame_rate and time_base are the source's; count is the number of frames, None where the file does not tell; the
    sound is that of `audio_from` from the second `audio_start` on; left_out is how many frames --max-frames cuts off.
    """

    name: str
    frame_rate: Fraction
    count: int | None
    frames: Iterable[tuple[np.ndarray, Fraction]] = ()
    performance: Performance | None = None
    time_base: Fraction = CLOCK
    audio_from: Path | None = None
    audio_start: Fraction = Fraction(0)
    video: VideoReader | None = None
    left_out: int | None = 0

    def result_rate(self, adjustment: Adjustment) -> Fraction:
        return adjustment.frame_rate or self.frame_rate

    def result_time_base(self, adjustment: Adjustment) -> Fraction:
        """The source's own clock where the frames keep their times, else one in which the new times are exact."""
        if self.performance is None and adjustment.keeps_frames:
            return self.time_base
        return Fraction(1, self.result_rate(adjustment).numerator)

    def result_count(self, adjustment: Adjustment) -> int | None:
        """How many frames to expect."""
        if self.count is None:
            return None
        used = max(1, self.count - adjustment.start)
        used = min(used, adjustment.count or used)
        return round(used / self.frame_rate * self.result_rate(adjustment)) * adjustment.loop


@contextmanager
def open_driver(
    options: argparse.Namespace, adjustment: Adjustment, wanted: Callable[[int], bool] = lambda number: True
) -> Iterator[Driver]:
    """Opens the driving video or motion file.

    Args:
        options: Of `animate`.
        adjustment: What they change about the motion.
        wanted: Whether the driving frame of this number, from 0 for the first one that is used, needs its pixels.

    Raises:
        InputError: The file cannot be read, or has no frame to use.
    """
    if options.motion:
        whole = load_motion(options.motion)
        performance = whole.adjusted(adjustment)
        left_out = _left_out(len(whole.motion), adjustment)
        yield Driver(performance.source, performance.frame_rate, None, performance=performance, left_out=left_out)
        return
    start = adjustment.start
    with VideoReader(options.driving_video, lambda number: number >= start and wanted(number - start)) as video:
        begin, frames = trim_frames(video, start, adjustment.count)
        metadata = video.metadata
        has_audio = metadata.has_audio and adjustment.loop == 1
        yield Driver(
            options.driving_video.name,
            metadata.frame_rate,
            metadata.frame_count,
            frames,
            time_base=metadata.time_base,
            audio_from=options.driving_video if has_audio else None,
            audio_start=begin,
            video=video,
            left_out=_left_out(metadata.frame_count, adjustment),
        )


def _left_out(frames: int | None, adjustment: Adjustment) -> int | None:
    if adjustment.count == 0:
        return 0
    return None if frames is None else max(0, frames - adjustment.start - adjustment.count)


class Recorder:
    """Watches a run and keeps what is asked for: the frames' times, the motion for a file, the contact sheet."""

    def __init__(self, save_motion: Path | None, sheet: Path | None, keeps_frames: bool):
        self.times: deque[Fraction] = deque()  # of the driving frames whose results are still to come
        self._motion_file, self._sheet_file = save_motion, sheet
        self._sheet = ContactSheet() if sheet else None
        self._keeps_frames = keeps_frames
        self._record, self._all_times = MotionRecord(), list[Fraction]()
        self._held = bytearray()
        self._results = 0

    def tensors(self) -> dict[str, Tensor]:
        """What cannot be had again in a run that goes on: the sheet's results."""
        return {str(i): torch.from_numpy(tile) for i, tile in self._sheet.results().items()} if self._sheet else {}

    def resume(self, results: int, tensors: dict[str, Tensor]) -> None:
        """Goes on after so many results, with the `tensors` from then; frames and motion come from their beginning."""
        self._results = results
        for i, tile in sorted((int(key), tile.numpy()) for key, tile in tensors.items()):
            if self._sheet:
                self._sheet.add_result(i, tile)

    def frames(self, frames: Iterable[DrivingFrame]) -> Iterator[DrivingFrame]:
        """The same frames."""
        for i, frame in enumerate(frames):
            self.times.append(frame.time)
            if self._motion_file:
                self._all_times.append(frame.time)
            if self._sheet and self._keeps_frames:
                self._sheet.add_driver_crop(i, frame.pixels)
                if frame.overview and self._sheet.wants(i):
                    self._sheet.add_driving_frame(i, frame.overview())
            yield frame

    def motions(
        self, motions: Iterable[Motion], portrait: Motion, strength: Strength, neutral: Motion | None
    ) -> Iterator[Motion]:
        """The same motion; the sheet shows what the networks get of it."""
        index = 0
        for motion in motions:
            if self._motion_file:
                self._record.append(motion)
            self._held += bytes(motion.held.tolist())
            for i in range(len(motion)):
                neutral = motion[:1] if neutral is None else neutral
                if self._sheet and self._sheet.wants(index):
                    retargeted = retarget_motion(portrait, motion[i : i + 1], neutral, strength)
                    self._sheet.add_keypoints(index, retargeted)
                index += 1
            yield motion

    def result(self, pixels: np.ndarray) -> None:
        """The next finished frame, uint8 (H, W, 3)."""
        if self._sheet:
            self._sheet.add_result(self._results, pixels)
        self._results += 1

    def write(self, performance: Performance | None, name: str, frame_rate: Fraction, strength: Strength) -> None:
        """Says which frames were held, and writes the files that were asked for, of the frames that are done. Without a
        whole performance it is made of what was recorded."""
        done = self._results
        if held := describe_held(torch.tensor(list(self._held[:done]))):
            print(held, file=sys.stderr)
        try:
            if self._motion_file:
                if performance is None:
                    motion, times = self._record.motion()[:done], self._all_times[:done]
                    performance = replace(Performance.extracted(motion, frame_rate, name, times), strength=strength)
                finished = replace(
                    performance, motion=performance.motion[:done], times=performance.times and performance.times[:done]
                )
                save_motion(finished, self._motion_file)
        finally:
            if self._sheet and self._sheet_file:
                save_picture(self._sheet.image(), self._sheet_file)
