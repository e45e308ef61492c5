"""What the commands' options share."""

import argparse
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ..config import MAX_SIDE, MIN_SIDE, PIXELS_PER_LATENT
from ..device import fp16_accumulation, pick_device, pick_dtype
from ..errors import InputError
from ..weights import hub

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
        choices=("auto", "fp32", "fp16", "bf16", "fp8"),
        help="precision of the networks; auto is fp16 on a GPU, but fp32 on a CPU and on GPUs where fp16 is slow or "
        "overflows; fp8 computes as auto does, with most weights stored in 8 bits",
    )
    parser.add_argument(
        "--fast", action="store_true", help="accumulate products in fp16: faster on GeForce cards, and less exact"
    )


def arithmetic(options: argparse.Namespace) -> AbstractContextManager[None]:
    """How the networks compute while the context lasts, by --fast.

    Raises:
        InputError: The device is not there, or --dtype or --fast is not for it.
    """
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    return fp16_accumulation(device, dtype) if options.fast else nullcontext()


def add_vram_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vram", default="auto", metavar="GB", help="GPU memory to use at most; auto is what is free")


def vram(options: argparse.Namespace) -> float | None:
    """How many GB (10^9 bytes) of GPU memory may be used; None for what is free.

    Raises:
        InputError: The device is not there or has no memory that can be limited, or it is no such number.
    """
    device = pick_device(options.device)
    if options.vram == "auto":
        return None
    if not re.fullmatch(r"\d+(\.\d+)?", options.vram) or not 1 <= float(options.vram) <= 1000:
        raise InputError(f"--vram is {options.vram!r}: give a number of GB from 1 to 1000, or auto.")
    if device.type != "cuda":
        raise InputError(f"--vram is for CUDA GPUs, and the device is {device}: leave it out.")
    return float(options.vram)


def add_small_decoder_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--small-decoder",
        nargs="?",
        const=True,
        type=Path,
        metavar="DIR",
        help="decode with TAESD, which --download fetches: faster, softer; or with the AutoencoderTiny in this folder",
    )


def small_decoder(options: argparse.Namespace, progress: hub.Progress | None = None) -> Path | None:
    """The folder of the small decoder, if one is asked for.

    Raises:
        InputError: TAESD is not there, or cannot be downloaded.
    """
    if options.small_decoder is not True:
        return options.small_decoder
    return hub.find_small_decoder(options.weights, options.download, progress)
