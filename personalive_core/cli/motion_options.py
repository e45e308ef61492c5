"""The command line's options for motion: where it comes from, how much of it is taken, what is kept of it."""

import argparse
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import InputError
from ..framing.crop import draw_crop
from ..framing.driving_crop import DrivingFrame
from ..media.contact_sheet import ContactSheet
from ..media.video_reader import Frame, VideoReader
from ..motion.hold import describe_held
from ..motion.motion import Motion, MotionRecord
from ..motion.motion_file import load_motion, save_motion
from ..motion.performance import Performance, Strength, retarget_motion
from ..pipeline import Pipeline
from ..sampling.keyframes import KeyframeSettings
from ..sampling.reference import Reference


def add_motion_options(animate: argparse.ArgumentParser) -> None:
    driver = animate.add_mutually_exclusive_group(required=True)
    driver.add_argument(
        "--driving_video", type=Path, help="video, GIF, picture or folder of pictures that gives the motion"
    )
    driver.add_argument("--motion", type=Path, metavar="FILE", help="motion that --save-motion wrote, in its place")

    motion = animate.add_argument_group(
        "motion", "how much of the driver's motion the portrait takes: 0 is its own, 1 the driver's, 3 at most"
    )
    motion.add_argument("--expression", type=float, metavar="X", help="the face (default 1)")
    motion.add_argument("--head-rotation", type=float, metavar="X", help="turns of the head (default 1)")
    motion.add_argument("--head-shift", type=float, metavar="X", help="its way through the picture (default 1)")
    motion.add_argument("--head-scale", type=float, metavar="X", help="its size, nearer and further (default 0)")
    motion.add_argument(
        "--relative", action="store_true", help="expression and rotation as changes since the neutral frame"
    )
    motion.add_argument("--neutral", type=int, metavar="N", help="frame that counts as normal (default: the first)")
    motion.add_argument("--start", type=int, default=0, metavar="N", help="driving frames to skip first")
    motion.add_argument("--smooth", type=float, default=0.0, metavar="N", help="calm the head over about N frames")
    motion.add_argument("--mirror", action="store_true", help="exchange left and right of the driving video")
    motion.add_argument("--frame-rate", type=Fraction, metavar="FPS", help="of the result (default: the driver's)")
    motion.add_argument("--loop", type=int, default=1, metavar="N", help="play it N times; then there is no sound")
    motion.add_argument("--back-and-forth", action="store_true", help="every second time backwards")
    motion.add_argument("--no-hold", action="store_true", help="take frames without a face as they are")
    motion.add_argument("--save-motion", type=Path, metavar="FILE", help="keep the motion for other portraits")
    motion.add_argument("--sheet", type=Path, metavar="FILE", help="picture of driver, keypoints and result")

    long = animate.add_argument_group("long takes", "against drift")
    long.add_argument("--keyframes", type=int, default=3, metavar="N", help="remembered frames (default 3)")
    long.add_argument(
        "--keyframe-threshold", type=float, default=17.0, metavar="X", help="how new they must be (default 17)"
    )
    long.add_argument(
        "--return-every",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds after which they are forgotten and the portrait stands in their place (default 0: never)",
    )


class MotionOptions:
    """What drives: a context manager, open while it is read. InputError before any work where an option cannot be."""

    frame_rate: Fraction  # of the result
    time_base: Fraction
    audio_from: Path | None = None
    audio_start = Fraction(0)
    total: int | None  # frames of the result, as far as is known

    def __init__(self, options: argparse.Namespace):
        for name, least in (("length", 0), ("start", 0), ("neutral", 0), ("smooth", 0), ("loop", 1)):
            if (getattr(options, name) or 0) < least:
                flag = "-L" if name == "length" else f"--{name}"
                raise InputError(f"{flag} is {getattr(options, name)}, but must be {least} or more.")
        if options.frame_rate is not None and not 1 <= options.frame_rate <= 240:
            raise InputError(f"--frame-rate is {float(options.frame_rate):g}, but must be from 1 to 240.")
        for flag in ("mirror", "crop_driving"):
            if options.motion and getattr(options, flag):
                name = flag.replace("_", "-")
                raise InputError(f"--{name} needs the driving video, and --motion has none: use it with --save-motion.")
        self._options = options
        self.input: Path = options.motion or options.driving_video
        self.outputs = [file for file in (options.save_motion, options.sheet) if file]
        self._performance: Performance | None = None  # from a file; else there is a video
        self._driving: VideoReader | None = None
        self._video: Iterator[Frame] = iter(())
        self._times: deque[Fraction] = deque()  # of the frames that are on their way
        self._kept = MotionRecord()
        self._held = bytearray()
        self._done = 0
        self._sheet = ContactSheet() if options.sheet else None
        # Where none of these is asked for, motion is used as it comes, and none is kept.
        self._is_whole = bool(options.motion or options.neutral is not None or options.smooth or options.loop > 1)
        self._is_whole |= options.frame_rate is not None
        self._keeps_times = not (options.motion or options.frame_rate or options.loop > 1)

    def __enter__(self) -> "MotionOptions":
        options = self._options
        self.time_base = Fraction(1, 90000)
        total: int | None
        if options.motion:
            self._performance = load_motion(options.motion)
            own_rate, total = self._performance.frame_rate, len(self._performance.motion)
        else:
            self._driving = driving = VideoReader(options.driving_video)
            own_rate, total, self.time_base = driving.frame_rate, driving.frame_count, driving.time_base
            first = next(islice(driving, options.start, None), None)
            if first is None:
                driving.close()
                raise InputError(f"there are no driving frames from frame {options.start} on: lower --start.")
            self._video = chain([first], driving)
            if driving.has_audio and options.loop == 1:
                self.audio_from, self.audio_start = options.driving_video, first.time
        # As it was saved, where nothing else is asked for.
        saved = self._performance.strength if self._performance else Strength()
        given = {
            "expression": options.expression,
            "rotation": options.head_rotation,
            "shift": options.head_shift,
            "scale": options.head_scale,
        }
        self._strength = Strength(
            **{name: getattr(saved, name) if value is None else value for name, value in given.items()},
            relative=options.relative or saved.relative,
        )
        self._strength.check()
        self._own_rate, self.frame_rate = own_rate, options.frame_rate or own_rate
        if not self._keeps_times:
            self.time_base = Fraction(1, self.frame_rate.numerator)
        self.total = total and min(filter(None, (options.length, max(1, total - options.start))))
        if self.total and not self._keeps_times:
            self.total = round(self.total / own_rate * self.frame_rate) * options.loop
        self._keyframes = KeyframeSettings(
            options.keyframes, options.keyframe_threshold, round(options.return_every * self.frame_rate)
        )
        self._keyframes.check()
        return self

    def __exit__(self, *_) -> None:
        if self._driving:
            self._driving.close()

    def settings(
        self, pipeline: Pipeline, reference: Reference, crop: Callable[[np.ndarray], DrivingFrame]
    ) -> dict[str, Any]:
        """The motion, and the other settings that `Pipeline.animate_motion` takes with it."""
        options, neutral = self._options, None
        pieces: Iterable[Motion]
        if self._performance is None:
            pieces = pipeline.motions(self._frames(crop), not options.no_hold)
        if self._is_whole:
            performance = self._performance
            start, count = options.start, options.length
            if performance is None:
                progress = tqdm(pieces, "motion", unit_scale=4, unit="frame", leave=False)
                record = MotionRecord()
                for piece in progress:
                    record.append(piece)
                performance = Performance(record.motion(), self._own_rate)
                start = count = 0  # only these frames were read
            performance = performance.adjusted(
                self._strength,
                start=start,
                count=count,
                neutral=options.neutral,
                smoothing=options.smooth,
                frame_rate=options.frame_rate,
                times=options.loop,
                back_and_forth=options.back_and_forth,
            )
            pieces, neutral, self.total = [performance.motion], performance.neutral, len(performance.motion)
        self._neutral = neutral
        return {
            "motions": self._seen(pieces, reference.motion),
            "keyframes": self._keyframes,
            "strength": self._strength,
            "neutral": neutral,
        }

    def _frames(self, crop: Callable[[np.ndarray], DrivingFrame]) -> Iterator[DrivingFrame]:
        begin = None
        for i, frame in enumerate(islice(self._video, self._options.length or None)):
            begin = frame.time if begin is None else begin
            self._times.append(frame.time - begin)
            cropped = crop(frame.pixels)
            if self._options.mirror:
                cropped = cropped._replace(pixels=cropped.pixels[:, ::-1])
            if self._sheet and self._keeps_times:
                self._sheet.add("driver", i, cropped.pixels)
                if cropped.square and self._sheet.wants(i):
                    whole = draw_crop(frame.pixels, cropped.square, [])
                    self._sheet.add_whole(i, whole[:, ::-1] if self._options.mirror else whole)
            yield cropped

    def _seen(self, pieces: Iterable[Motion], portrait: Motion) -> Iterator[Motion]:
        """The same pieces; what is to be kept of them is."""
        index = 0
        neutral = self._neutral
        for piece in pieces:
            if self._options.save_motion:
                self._kept.append(piece)
            self._held += bytes(piece.held.tolist())
            for i in range(len(piece)):
                neutral = piece[:1] if neutral is None else neutral
                if self._sheet and self._sheet.wants(index):
                    frame = retarget_motion(portrait, piece[i : i + 1], neutral, self._strength)
                    self._sheet.add_keypoints(index, frame)
                index += 1
            yield piece

    def frame_done(self, pixels: np.ndarray) -> Fraction:
        """The next finished frame, uint8 (H, W, 3) -> the second at which it is shown."""
        if self._sheet:
            self._sheet.add("result", self._done, pixels)
        self._done += 1
        return self._times.popleft() if self._keeps_times else (self._done - 1) / self.frame_rate

    def finish(self) -> None:
        """Once all is done: write what is to be kept, and say what was held and what was wrong with the video."""
        options = self._options
        if options.save_motion:
            source = self._performance.source if self._performance else options.driving_video.name
            motion = self._kept.motion()
            save_motion(
                Performance(motion, self.frame_rate, source, self._strength, self._neutral), options.save_motion
            )
        if self._sheet:
            options.sheet.parent.mkdir(parents=True, exist_ok=True)
            self._sheet.image().save(options.sheet)
        if held := describe_held(torch.tensor(list(self._held))):
            print(held, file=sys.stderr)
        if self._driving and self._driving.problem:
            print(f"warning: {self._driving.problem}", file=sys.stderr)
