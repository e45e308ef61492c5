"""What the commands' options share."""

import argparse

from ..config import MAX_SIDE, MIN_SIDE, PIXELS_PER_LATENT

SIZES = f"a multiple of {PIXELS_PER_LATENT} from {MIN_SIDE} to {MAX_SIDE}"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every option that has one; a switch is off."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cuda, cuda:1, xpu, mps or cpu")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "fp32", "fp16", "bf16"),
        help="precision of the networks; auto is fp16 on a GPU, but fp32 on a CPU and on GPUs where fp16 is slow or "
        "overflows",
    )
