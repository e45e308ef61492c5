"""`animate`: portrait and driving video in, MP4 out."""

import argparse
import sys
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

import torch
from tqdm import tqdm

from ..errors import InputError
from ..sampling.schedule import Schedule
from ..weights.find import find_weights
from .crop_options import CropOptions, add_crop_options
from .download import fetch
from .motion_options import MotionOptions, add_motion_options


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    animate = commands.add_parser("animate", parents=parents, help="portrait and driving video in, MP4 out")
    animate.add_argument("--ref_image", type=Path, required=True, help="portrait: a picture of one face")
    animate.add_argument("-o", "--output", type=Path, help="default: outputs/output_TIMESTAMP.mp4")
    animate.add_argument("-W", "--width", type=int, default=512)
    animate.add_argument("-H", "--height", type=int, default=512)
    animate.add_argument("-L", "--length", type=int, default=100, help="frames at most; 0 for all (default 100)")
    animate.add_argument("--steps", type=int, default=4, help="denoising steps a frame: 4, 8, 12, ... (default 4)")
    animate.add_argument("--seed", type=int, default=42)
    animate.add_argument("--download", action="store_true", help="fetch missing weights first")
    animate.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu")
    animate.add_argument("--dtype", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    animate.add_argument(
        "--small-decoder", type=Path, metavar="DIR", help="folder of an AutoencoderTiny such as taesd: faster, softer"
    )
    add_crop_options(animate)
    add_motion_options(animate)
    animate.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from transformers.utils import logging as transformers_logging

    from ..media.video_writer import VideoWriter
    from ..pipeline import Pipeline, pick_device
    from ..sampling.reference import check_size

    transformers_logging.disable_progress_bar()  # ours is enough
    motion = MotionOptions(options)
    Schedule(options.steps)  # refuses other counts before any work
    check_size(options.width, options.height)
    pick_device(options.device)
    crop = CropOptions(options)
    output = options.output or Path(f"outputs/output_{datetime.now():%Y%m%d_%H%M%S}.mp4")
    written = [file.absolute() for file in (output, *motion.outputs)]
    for file in written:
        if file in (options.ref_image.absolute(), motion.input.absolute()) or written.count(file) > 1:
            raise InputError(f"{file} is read or written already and would be overwritten: give it another name.")
    with (
        motion,
        VideoWriter(
            output,
            *crop.output_size,
            motion.frame_rate,
            time_base=motion.time_base,
            audio_from=motion.audio_from,
            audio_start=motion.audio_start,
        ) as video,
    ):
        if options.download:
            fetch(options.weights)
        pipeline = Pipeline.load(find_weights(options.weights), options.device, options.dtype, options.small_decoder)
        networks = pipeline.motion_extractor, pipeline.device
        reference = pipeline.encode_reference(crop.portrait(*networks))
        settings = motion.settings(pipeline, reference, crop.driving(*networks))
        begun, done = time.perf_counter(), 0
        with (
            tqdm(total=motion.total, unit="frame") as bar,
            closing(pipeline.animate_motion(reference, steps=options.steps, seed=options.seed, **settings)) as animated,
        ):
            try:
                for chunk in animated:
                    for pixels in chunk:
                        video.write(crop.finish(pixels), motion.frame_done(pixels))
                        done += 1
                        bar.update()
            except KeyboardInterrupt:
                print(f"\nstopped after {done} frames{f'; they are in {output}' if done else ''}", file=sys.stderr)
                raise
    motion.finish()
    print(f"{output}: {done} frames, {done / (time.perf_counter() - begun):.1f} a second{_peak_memory()}")


def _peak_memory() -> str:
    text = ""
    if torch.cuda.is_available():
        text += f", peak GPU memory {torch.cuda.max_memory_reserved() / 2**30:.2f} GiB"
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        text += f", peak RAM {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"
    return text
