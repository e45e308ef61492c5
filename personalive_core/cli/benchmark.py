"""`benchmark`: how fast this machine is."""

import argparse


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    benchmark = commands.add_parser("benchmark", parents=parents, help="how fast this machine is; needs no weights")
    benchmark.add_argument("--frames", type=int, default=160, help="of the whole run (default 160)")
    benchmark.add_argument("--size", type=int, default=512, help="width and height (default 512)")
    benchmark.add_argument("--steps", type=int, default=4, help="denoising steps a frame (default 4)")
    benchmark.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu")
    benchmark.add_argument("--dtype", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    benchmark.add_argument("--decoder", default="vae", choices=("vae", "tiny"))
    benchmark.add_argument("--keyframes", type=int, default=0, choices=(0, 1, 2, 3))
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
