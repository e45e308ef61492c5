"""`animate`: portrait and driving video in, MP4 out."""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from tqdm import tqdm

from ..device import pick_device
from ..errors import InputError
from ..media.video_writer import VideoWriter
from ..motion.extraction import driving_frames
from ..motion.motion import Motion, MotionRecord
from ..motion.performance import Performance
from ..sampling.keyframes import KeyframeSettings
from ..sampling.reference import check_size
from ..sampling.schedule import Schedule
from ..weights.find import find_weights
from .crop_options import CropOptions, add_crop_options
from .download import fetch
from .motion_options import Recorder, add_motion_options, adjustment_of, open_driver
from .options import SIZES, add_device_options


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    animate = commands.add_parser("animate", parents=parents, help="portrait and driving video in, MP4 out")
    animate.add_argument(
        "--ref-image", type=Path, required=True, metavar="FILE", help="portrait: a picture of one face"
    )
    animate.add_argument(
        "--output", "-o", type=Path, metavar="FILE", help="video to write; without it outputs/output_TIMESTAMP.mp4"
    )
    animate.add_argument("--width", "-W", type=int, default=512, metavar="N", help=f"pixels, {SIZES}")
    animate.add_argument("--height", "-H", type=int, default=512, metavar="N", help=f"pixels, {SIZES}")
    animate.add_argument("--max-frames", "-L", type=int, default=100, metavar="N", help="frames to use; 0 is all")
    animate.add_argument("--steps", type=int, default=4, metavar="N", help="denoising steps a frame: 4, 8, 12, ...")
    animate.add_argument("--seed", type=int, default=42, metavar="N", help="the same seed starts from the same noise")
    animate.add_argument("--download", action="store_true", help="fetch missing weights first")
    add_device_options(animate)
    animate.add_argument(
        "--small-decoder", type=Path, metavar="DIR", help="folder of an AutoencoderTiny such as taesd: faster, softer"
    )
    add_crop_options(animate)
    add_motion_options(animate)
    animate.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Raises InputError, before any work, for options that cannot be and files that cannot be read or written."""
    from transformers.utils import logging as transformers_logging

    from ..pipeline import Pipeline

    transformers_logging.disable_progress_bar()  # ours is enough
    adjustment = adjustment_of(options)
    Schedule(options.steps)  # refuses other counts
    check_size(options.width, options.height)
    pick_device(options.device)
    crop = CropOptions(options)
    output = options.output or Path(f"outputs/output_{datetime.now():%Y%m%d_%H%M%S}.mp4")
    _check_outputs(
        [output, options.save_motion, options.sheet], [options.ref_image, options.motion, options.driving_video]
    )
    with ExitStack() as files:
        driver = files.enter_context(open_driver(options, adjustment))
        frame_rate = driver.result_rate(adjustment)
        keyframes = KeyframeSettings.in_seconds(
            options.keyframes, options.keyframe_threshold, options.return_every, frame_rate
        )
        video = files.enter_context(
            VideoWriter(
                output,
                *crop.output_size,
                frame_rate,
                time_base=driver.result_time_base(adjustment),
                audio_from=driver.audio_from,
                audio_start=driver.audio_start,
            )
        )
        if options.download:
            fetch(options.weights)
        pipeline = Pipeline.load(find_weights(options.weights), options.device, options.dtype, options.small_decoder)
        networks = pipeline.motion_extractor, pipeline.device
        reference = pipeline.encode_reference(crop.portrait(*networks))
        recorder = Recorder(options.save_motion, options.sheet, adjustment.keeps_frames)

        performance, total = driver.performance, driver.result_count(adjustment)
        motions: Iterable[Motion] = []
        if performance is None:
            frames = recorder.frames(driving_frames(driver.frames, crop.driving(*networks), options.mirror))
            motions = pipeline.motions(frames, not options.no_hold)
        if performance is None and adjustment.needs_all_frames:
            record, times = MotionRecord(), recorder.times
            for motion in tqdm(motions, "motion", unit_scale=4, unit="frame", leave=False):
                record.append(motion)
            performance = Performance.extracted(record.motion(), driver.frame_rate, driver.name, tuple(times))
            performance = performance.adjusted(replace(adjustment, start=0, count=0))  # only these frames were read
        strength, neutral = adjustment.strength, None
        if performance is not None:
            strength, neutral, total = performance.strength, performance.neutral, len(performance.motion)
            motions = [performance.motion]
            if driver.performance or not adjustment.keeps_frames:
                recorder.times = deque(performance.frame_times)

        animated = pipeline.animate_motion(
            reference,
            recorder.motions(motions, reference.motion, strength, neutral),
            steps=options.steps,
            seed=options.seed,
            keyframes=keyframes,
            strength=strength,
            neutral=neutral,
        )
        begun, done = time.perf_counter(), 0
        with tqdm(total=total, unit="frame") as bar, closing(animated):
            try:
                for chunk in animated:
                    for pixels in chunk:
                        video.write(crop.finish(pixels), recorder.times.popleft())
                        recorder.result(pixels)
                        done += 1
                        bar.update()
            except KeyboardInterrupt:
                print(f"\nstopped after {done} frames{f'; they are in {output}' if done else ''}", file=sys.stderr)
                raise
    recorder.write(performance, driver.name, frame_rate, strength)
    if driver.video and driver.video.problem:
        print(f"warning: {driver.video.problem}", file=sys.stderr)
    print(f"{output}: {done} frames, {done / (time.perf_counter() - begun):.1f} a second{_peak_memory()}")


def _check_outputs(outputs: list[Path | None], inputs: list[Path | None]) -> None:
    written = [file.absolute() for file in outputs if file]
    read = {file.absolute() for file in inputs if file}
    for file in written:
        if file in read or written.count(file) > 1:
            raise InputError(f"{file} is read or written already and would be overwritten: give it another name.")


def _peak_memory() -> str:
    text = ""
    if torch.cuda.is_available():
        text += f", peak GPU memory {torch.cuda.max_memory_reserved() / 2**30:.2f} GiB"
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        text += f", peak RAM {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"
    return text
