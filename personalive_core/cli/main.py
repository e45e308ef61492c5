"""The command line: `python -m personalive_core`, or `personalive` once installed."""

import argparse
import logging
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from tqdm import tqdm

from ..errors import InputError
from ..sampling.schedule import Schedule
from ..weights import hub
from ..weights.find import convert, find_weights
from .crop_options import CropOptions, add_crop_options
from .motion_options import MotionOptions, add_motion_options

log = logging.getLogger(__name__)

WEIGHTS = Path("pretrained_weights")


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one sentence on standard error), 130 interrupted."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        options.run(options)
    except InputError as error:
        log.info("where it came from", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.cuda.OutOfMemoryError as error:
        log.info("where it came from", exc_info=True)
        print(f"error: the GPU has too little memory ({error}): use a smaller -W and -H.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="say more")
    weights = argparse.ArgumentParser(add_help=False)
    weights.add_argument("--weights", type=Path, default=WEIGHTS, metavar="DIR", help="folder of the weights")

    parser = argparse.ArgumentParser(prog="personalive", description="Bring a portrait to life with a driving video.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    animate = commands.add_parser("animate", parents=[common, weights], help="portrait and driving video in, MP4 out")
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
    animate.set_defaults(run=_animate)

    download = commands.add_parser("download", parents=[common, weights], help="fetch missing weights (12.1 GB)")
    download.add_argument("--list", action="store_true", help="only say what is there and what would be fetched")
    download.set_defaults(run=_download)

    conversion = commands.add_parser(
        "convert", parents=[common, weights], help="make float16 files that load faster and take half the disk"
    )
    conversion.add_argument("-o", "--output", type=Path, help="default: beside the checkpoints")
    conversion.set_defaults(run=_convert)

    info = commands.add_parser("info", parents=[common, weights], help="versions, device, weights found and missing")
    info.set_defaults(run=_info)

    benchmark = commands.add_parser("benchmark", parents=[common], help="how fast this machine is; needs no weights")
    benchmark.add_argument("--frames", type=int, default=160, help="of the whole run (default 160)")
    benchmark.add_argument("--size", type=int, default=512, help="width and height (default 512)")
    benchmark.add_argument("--steps", type=int, default=4, help="denoising steps a frame (default 4)")
    benchmark.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu")
    benchmark.add_argument("--dtype", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    benchmark.add_argument("--decoder", default="vae", choices=("vae", "tiny"))
    benchmark.add_argument("--keyframes", type=int, default=0, choices=(0, 1, 2, 3))
    benchmark.add_argument("--json", action="store_true", help="one line of JSON")
    benchmark.set_defaults(run=_benchmark)

    demo = commands.add_parser("demo", parents=[common], help="the whole way on the CPU, with nothing downloaded")
    demo.add_argument("-o", "--output", type=Path, default=Path("outputs/demo.mp4"))
    demo.set_defaults(run=_demo)
    return parser


def _animate(options: argparse.Namespace) -> None:
    from transformers.utils import logging as transformers_logging

    from ..media.video_reader import VideoWriter
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
            _fetch(options.weights)
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


@contextmanager
def _byte_progress() -> Iterator[hub.Progress]:
    with tqdm(unit="B", unit_scale=True) as bar:

        def update(name: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_description(name, refresh=False)
            bar.update(done - bar.n)

        yield update


def _fetch(folder: Path) -> None:
    missing = find_weights(folder).missing
    if missing:
        with _byte_progress() as progress:
            hub.download(folder, missing, progress=progress)


def _download(options: argparse.Namespace) -> None:
    missing = find_weights(options.weights).missing
    print(f"into {options.weights.absolute()}:")
    for file in hub.FILES:
        print(f"  {file.size / 1e6:9.1f} MB  {'to fetch' if file in missing else 'there   '}  {file.repo}/{file.path}")
    print(f"{sum(file.size for file in missing) / 1e9:.2f} GB to fetch")
    if not options.list:
        _fetch(options.weights)


def _convert(options: argparse.Namespace) -> None:
    files = find_weights(options.weights)
    target = options.output or files.paths("pose_guider")[0].parent
    with _byte_progress() as progress:
        convert(files, target, progress=progress)
    if files.paths("pose_guider")[0].parent == target:
        print(f"{target}: six .safetensors files; they are used from now on, the .pth files may be deleted")
    else:
        print(f"{target}: six .safetensors files; put them in the place of the .pth files, or name them with --weights")


def _info(options: argparse.Namespace) -> None:
    names = ("personalive", "torch", "diffusers", "transformers", "av", "einops", "safetensors", "numpy")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for name in names:
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            print(f"{name} is not installed")
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        print(f"GPU: {gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, compute capability {gpu.major}.{gpu.minor}")
    else:
        print("GPU: none that PyTorch can use")
    files = find_weights(options.weights)
    print(f"weights in {files.folder}:")
    for part in dict.fromkeys(file.part for file in hub.FILES):
        print(f"  {part}: {getattr(files, part) or 'missing'}")


def _benchmark(options: argparse.Namespace) -> None:
    from .benchmark import run_benchmark

    run_benchmark(
        options.frames,
        options.size,
        options.steps,
        options.device,
        options.dtype,
        options.decoder,
        options.keyframes,
        options.json,
    )


def _demo(options: argparse.Namespace) -> None:
    from .demo import run_demo

    run_demo(options.output)
