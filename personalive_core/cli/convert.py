"""`convert`: a smaller set of weights."""

import argparse
from pathlib import Path

from ..weights.convert import convert
from ..weights.find import find_weights
from .download import byte_progress


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    conversion = commands.add_parser(
        "convert", parents=parents, help="make float16 files that load faster and take half the disk"
    )
    conversion.add_argument(
        "--output", "-o", type=Path, metavar="DIR", help="folder for the new files; without it beside the checkpoints"
    )
    conversion.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    files = find_weights(options.weights)
    target = options.output or files.paths("pose_guider")[0].parent
    with byte_progress() as progress:
        convert(files, target, progress=progress)
    if files.paths("pose_guider")[0].parent == target:
        print(f"{target}: six .safetensors files; they are used from now on, the .pth files may be deleted")
    else:
        print(f"{target}: six .safetensors files; put them in the place of the .pth files, or name them with --weights")
