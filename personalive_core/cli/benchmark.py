"""`benchmark`: how fast this machine is."""

import argparse

from .options import SIZES, add_device_options


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    benchmark = commands.add_parser("benchmark", parents=parents, help="how fast this machine is; needs no weights")
    benchmark.add_argument("--frames", type=int, default=160, metavar="N", help="frames of the whole run")
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
    benchmark.add_argument("--json", action="store_true", help="one line of JSON")
    benchmark.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from .measure import run_benchmark

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
