"""`benchmark`: how fast this machine is."""

import argparse
from importlib.util import find_spec

from ..errors import InputError
from .options import SIZES, add_device_options, arithmetic

FRAMES, LIVE_FRAMES = 160, 1000


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    benchmark = commands.add_parser("benchmark", parents=parents, help="how fast this machine is; needs no weights")
    benchmark.add_argument(
        "--frames", type=int, metavar="N", help="frames of the whole run; without it 160, and 1000 of --live"
    )
    benchmark.add_argument("--size", type=int, default=512, metavar="N", help=f"width and height in pixels, {SIZES}")
    benchmark.add_argument("--steps", type=int, default=4, metavar="N", help="denoising steps a frame: 4, 8, 12, ...")
    add_device_options(benchmark)
    benchmark.add_argument(
        "--decoder",
        default="vae",
        choices=("vae", "tiny"),
        help="the published one, or one of TAESD's architecture",
    )
    benchmark.add_argument(
        "--keyframes", type=int, default=0, choices=(0, 1, 2, 3), help="how many the timed windows have"
    )
    benchmark.add_argument(
        "--live", action="store_true", help="a live session: delay and stalls, with up to so many keyframes"
    )
    benchmark.add_argument("--early", action="store_true", help="of --live: show frames after three of four passes")
    benchmark.add_argument("--camera-fps", type=float, default=30, metavar="N", help="of --live: the camera's rate")
    benchmark.add_argument("--json", action="store_true", help="one line of JSON")
    benchmark.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    with arithmetic(options):
        _run(options)


def _run(options: argparse.Namespace) -> None:
    if options.live:
        if find_spec("aiohttp") is None:
            raise InputError("--live needs the package aiohttp: run  pip install aiohttp  and try again.")
        from .measure_live import run_live_benchmark

        run_live_benchmark(
            options.frames or LIVE_FRAMES,
            options.size,
            options.steps,
            options.device,
            options.dtype,
            options.decoder,
            options.keyframes,
            options.early,
            options.camera_fps,
            options.json,
        )
        return
    from .measure import run_benchmark

    run_benchmark(
        options.frames or FRAMES,
        options.size,
        options.steps,
        options.device,
        options.dtype,
        options.decoder,
        options.keyframes,
        options.json,
    )
