"""`animate`: portrait and driving video in, MP4 out."""

import argparse
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError
from ..media.video_writer import VideoWriter, find_partial
from ..memory import Budget
from ..motion.extraction import driving_frames, read_ahead
from ..motion.motion import Motion, MotionRecord
from ..motion.parts import Part, join_parts
from ..motion.performance import Adjustment, Performance
from ..sampling.keyframes import KeyframeSettings
from ..sampling.reference import Reference, check_size
from ..sampling.schedule import Schedule
from ..weights.find import find_weights
from .crop_options import CropOptions, DrivingOptions, add_crop_options, refuse_idle
from .download import fetch
from .motion_options import Driver, Recorder, add_motion_options, adjustment_of, open_driver
from .options import (
    SIZES,
    add_device_options,
    add_small_decoder_option,
    add_vram_option,
    arithmetic,
    small_decoder,
    vram,
)
from .outputs import Checkpoint, check_outputs, stopped_by_signals

if TYPE_CHECKING:
    from ..pipeline import Pipeline


class Extracted(NamedTuple):
    """The motion of the driving frames that a run uses, and their times in seconds from the first one."""

    motion: Motion
    times: Sequence[Fraction]


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    animate = commands.add_parser("animate", parents=parents, help="portrait and driving video in, MP4 out")
    animate.add_argument(
        "--ref-image", type=Path, required=True, metavar="FILE", help="portrait: a picture of one face"
    )
    animate.add_argument(
        "--output", "-o", type=Path, metavar="FILE", help="video to write; without it outputs/output_TIMESTAMP.mp4"
    )
    animate.add_argument("--overwrite", action="store_true", help="replace files that exist")
    animate.add_argument(
        "--resume", action="store_true", help="go on with a run that ended early; give it the same options and -o"
    )
    animate.add_argument("--width", "-W", type=int, default=512, metavar="N", help=f"pixels, {SIZES}")
    animate.add_argument("--height", "-H", type=int, default=512, metavar="N", help=f"pixels, {SIZES}")
    animate.add_argument("--max-frames", "-L", type=int, default=100, metavar="N", help="frames to use; 0 is all")
    animate.add_argument("--steps", type=int, default=4, metavar="N", help="denoising steps a frame: 4, 8, 12, ...")
    animate.add_argument("--seed", type=int, default=42, metavar="N", help="the same seed starts from the same noise")
    animate.add_argument(
        "--split", type=int, metavar="N", help="make it in N pieces, on all GPUs at once, and join them; needs Ray"
    )
    animate.add_argument("--download", action="store_true", help="fetch missing weights first")
    add_device_options(animate)
    add_vram_option(animate)
    add_small_decoder_option(animate)
    add_crop_options(animate)
    add_motion_options(animate)
    animate.set_defaults(run=run, piece=None)


def run(options: argparse.Namespace) -> None:
    """Raises InputError, before any work, for options that cannot be and files that cannot be read or written."""
    if options.resume and not options.output:
        raise InputError("--resume needs -o: the name of the video that the run which ended early was to write.")
    output = options.output or Path(f"outputs/output_{datetime.now():%Y%m%d_%H%M%S}.mp4")
    with stopped_by_signals(), ExitStack() as files:
        if options.split is None:
            animate_file(options, output, files)
        else:
            from .split import animate_in_pieces

            animate_in_pieces(options, output)


def check_options(options: argparse.Namespace) -> Adjustment:
    """What can be checked of the options without opening a file.

    Returns:
        What they change about the driver's motion.

    Raises:
        InputError: An option cannot be.
    """
    adjustment = adjustment_of(options)
    Schedule(options.steps)  # refuses other counts
    check_size(options.width, options.height)
    refuse_idle(options)
    return adjustment


def check_files(options: argparse.Namespace, output: Path) -> dict[str, str]:
    """Checks that nothing is lost by what the options write.

    Returns:
        What a run that goes on must have in common with this one.

    Raises:
        InputError: A file would be lost or cannot be written, or the device cannot be used so.
    """
    vram(options)
    inputs = {
        "--ref-image": options.ref_image,
        "--driving-video": options.driving_video,
        "--motion": options.motion,
    }
    outputs = {"--output": output, "--save-motion": options.save_motion, "--sheet": options.sheet}
    if not options.resume or not options.crop_preview or not options.crop_preview.is_file():
        outputs["--crop-preview"] = options.crop_preview
    check_outputs(outputs, inputs, overwrite=options.overwrite)
    return settings_of(options, [path for path in inputs.values() if path])


def load_pipeline(options: argparse.Namespace) -> "Pipeline":
    """The networks that the options name. InputError: they are missing or cannot be used."""
    from transformers.utils import logging as transformers_logging

    from ..pipeline import Pipeline

    transformers_logging.disable_progress_bar()  # ours is enough
    if options.download:
        fetch(options.weights)
    decoder = small_decoder(options)
    pipeline = Pipeline.load(
        find_weights(options.weights),
        options.device,
        options.dtype,
        decoder,
        budget=Budget(options.width, options.height, options.keyframes, vram(options)),
    )
    if pipeline.placement:
        print(pipeline.placement, file=sys.stderr)
    return pipeline


def extract(options: argparse.Namespace, pipeline: "Pipeline") -> Extracted:
    """Reads the driving video, and nothing of the portrait.

    Raises:
        InputError: It cannot be read, or shows no face.
    """
    with open_driver(options, adjustment_of(options)) as driver, read_ahead(driver.frames) as frames:
        recorder = Recorder(None, None, True)
        motions = _motions(pipeline, options, recorder, DrivingOptions(options), frames)
        extracted = _extracted(motions, recorder)
        _say_problem(driver)
    return extracted


class ExtractedPart(NamedTuple):
    """A part of the motion, see `record_part`, and the times of all driving frames that a run uses."""

    tensors: dict[str, Tensor]
    times: Sequence[Fraction]


def extract_part(options: argparse.Namespace, pipeline: "Pipeline", part: Part) -> ExtractedPart:
    """As `extract`, of a part of the frames. The options must have hold and no --crop-driving."""
    with open_driver(options, adjustment_of(options), part.has) as driver, read_ahead(driver.frames) as frames:
        recorder = Recorder(None, None, True)
        driving = recorder.frames(driving_frames(frames, mirror=options.mirror))
        tensors = pipeline.extract_part(driving, part)
        _say_problem(driver)
    return ExtractedPart(tensors, tuple(recorder.times))


def join(parts: Sequence[ExtractedPart]) -> Extracted:
    """What `extract` gives.

    Raises:
        InputError: No frame shows a face, or some parts are of a video that was not read to its end.
    """
    if any(part.times != parts[0].times for part in parts):
        found = ", ".join(str(len(part.times)) for part in parts)
        raise InputError(f"the workers read {found} frames of one driving video: make sure that all can read it.")
    return Extracted(join_parts([part.tensors for part in parts]), parts[0].times)


def say_left_out(options: argparse.Namespace, driver: Driver) -> None:
    """Where it is known already, how many frames `--max-frames` leaves out."""
    if driver.left_out:
        left_out = f"{driver.left_out} frames of {driver.name}"
        print(f"--max-frames {options.max_frames} leaves out {left_out}; --max-frames 0 takes all", file=sys.stderr)


def performed(
    driver: Driver, adjustment: Adjustment, extracted: Extracted | None
) -> tuple[Performance, Sequence[Fraction]]:
    """The performance as it is animated, of the driver's motion file or else of what was extracted, and when each of
    its frames is shown, in seconds."""
    if driver.performance:
        return driver.performance, driver.performance.frame_times
    assert extracted is not None
    performance = Performance.extracted(extracted.motion, driver.frame_rate, driver.name, extracted.times)
    performance = performance.adjusted(replace(adjustment, start=0, count=0))  # only these frames were read
    return performance, extracted.times if adjustment.keeps_frames else performance.frame_times


def _motions(
    pipeline: "Pipeline", options: argparse.Namespace, recorder: Recorder, crop: DrivingOptions, frames: Iterable
) -> Iterable[Motion]:
    cut = crop.cropper(pipeline.motion_extractor, pipeline.device)
    return pipeline.motions(recorder.frames(driving_frames(frames, cut, options.mirror)), not options.no_hold)


def _extracted(motions: Iterable[Motion], recorder: Recorder) -> Extracted:
    record = MotionRecord()
    for motion in tqdm(motions, "motion", unit_scale=4, unit="frame", leave=False):
        record.append(motion)
    return Extracted(record.motion(), tuple(recorder.times))


def animate_file(
    options: argparse.Namespace,
    output: Path,
    files: ExitStack,
    *,
    pipeline: "Pipeline | None" = None,
    reference: Reference | None = None,
    extracted: Extracted | None = None,
    progress: Any = tqdm,
) -> int:
    """Makes one video.

    Args:
        options: Of `animate`.
        output: The video.
        files: Closes what is opened.
        pipeline: The networks, if they are loaded.
        reference: The portrait, if it is encoded.
        extracted: The driver's motion, if it is extracted.
        progress: Makes the bar: called as `tqdm`.

    Returns:
        How many frames it has.

    Raises:
        InputError: As `run`.
    """
    adjustment = check_options(options)
    files.enter_context(arithmetic(options))
    checkpoint = Checkpoint(output, check_files(options, output))
    crop = CropOptions(options)
    earlier = find_partial(output)
    if earlier and not (options.resume or options.overwrite):
        raise InputError(
            f"{earlier} is what a run that ended early had written; it plays. --resume goes on from there, and "
            "--overwrite begins again."
        )
    begin, sheet_results = checkpoint.load() if options.resume and earlier else (0, {})
    if options.resume and not begin:
        print("there is nothing to resume: beginning with the first frame", file=sys.stderr)
    driver = files.enter_context(open_driver(options, adjustment))
    frame_rate = driver.result_rate(adjustment)
    keyframes = KeyframeSettings.in_seconds(
        options.keyframes, options.keyframe_threshold, options.return_every, frame_rate
    )
    files.push(partial(_name_partial, output))
    video = files.enter_context(
        VideoWriter(
            output,
            *crop.output_size,
            frame_rate,
            time_base=driver.result_time_base(adjustment),
            audio_from=driver.audio_from,
            audio_start=driver.audio_start,
            resumable=True,
            resume_at=begin,
        )
    )
    if not begin:
        checkpoint.remove()
    say_left_out(options, driver)
    pipeline = pipeline or load_pipeline(options)
    picture = crop.portrait(pipeline.motion_extractor, pipeline.device)
    reference = reference or pipeline.encode_reference(picture)
    recorder = Recorder(options.save_motion, options.sheet, adjustment.keeps_frames)
    recorder.resume(begin, sheet_results)

    performance, total = None, driver.result_count(adjustment)
    strength, neutral = adjustment.strength, None
    motions: Iterable[Motion] = []
    if driver.performance is None and extracted is None:
        motions = _motions(pipeline, options, recorder, crop.driving, driver.frames)
        if adjustment.needs_all_frames:
            extracted = _extracted(motions, recorder)
    if driver.performance or extracted:
        performance, times = performed(driver, adjustment, extracted)
        strength, neutral, total = performance.strength, performance.neutral, len(performance.motion)
        motions, recorder.times = [performance.motion], deque(times)

    animated = pipeline.animate_motion(
        reference,
        recorder.motions(motions, reference.motion, strength, neutral),
        steps=options.steps,
        seed=options.seed,
        keyframes=keyframes,
        strength=strength,
        neutral=neutral,
        resume=checkpoint.path if begin else None,
        watch=checkpoint.watch,
    )
    result_times = islice(iter(lambda: recorder.times.popleft(), None), begin, None)  # known as motion comes
    begun, done, is_stopped = time.perf_counter(), begin, False
    with progress(total=total, initial=begin, unit="frame") as bar, closing(animated):
        try:
            for chunk in animated:
                for pixels in chunk:
                    video.write(crop.finish(pixels), next(result_times))
                    recorder.result(pixels)
                    done += 1
                    bar.update()
                checkpoint.save(video, recorder.tensors())
        except KeyboardInterrupt:
            is_stopped = True
            video.finish()  # before anything that a closed terminal might fail
    if is_stopped and done == begin:
        raise KeyboardInterrupt
    video.finish()
    checkpoint.remove()
    if is_stopped:
        print(f"stopped after {done} frames; they are in {output}", file=sys.stderr)
    else:
        speed = (done - begin) / (time.perf_counter() - begun)
        print(f"{output}: {done} frames, {speed:.1f} a second{_peak_memory(pipeline.device)}")
    if driver.left_out is None and driver.video and next(driver.video, None):
        print(f"--max-frames {options.max_frames} leaves out frames; --max-frames 0 takes all", file=sys.stderr)
    _say_problem(driver)
    recorder.write(performance, driver.name, frame_rate, strength)
    if is_stopped:
        raise KeyboardInterrupt
    return done


def _say_problem(driver: Driver) -> None:
    if driver.video and driver.video.problem:
        print(f"warning: {driver.video.problem}", file=sys.stderr)


def settings_of(options: argparse.Namespace, inputs: list[Path]) -> dict[str, str]:
    """What a run that goes on must have in common with the one before: options, and the sizes of the input files."""
    free = {
        "run",
        "verbose",
        "output",
        "overwrite",
        "resume",
        "download",
        "save_motion",
        "sheet",
        "crop_preview",
        "vram",
    }
    same = {f"--{name.replace('_', '-')}": str(value) for name, value in vars(options).items() if name not in free}
    return same | {f"a {path.name} of": f"{path.stat().st_size} bytes" for path in inputs if path.is_file()}


def _name_partial(output: Path, kind: type[BaseException] | None, *_) -> None:
    if kind and issubclass(kind, Exception) and (partial := find_partial(output)):
        print(f"{partial} is what was written; it plays, and --resume goes on from there", file=sys.stderr)


def _peak_memory(device: torch.device) -> str:
    text = ""
    if device.type == "cuda":
        text += f", peak GPU memory {torch.cuda.max_memory_reserved(device) / 2**30:.2f} GiB"
    if sys.platform == "linux":  # where getrusage would count the program that started this one
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        text += f", peak RAM {int(peak[1]) / 2**20:.2f} GiB" if peak else ""
    elif sys.platform == "darwin":
        import resource

        text += f", peak RAM {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30:.2f} GiB"
    return text
