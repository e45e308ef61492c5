"""The command line: `python -m personalive_core`, or `personalive` once installed."""

import argparse
import logging
import sys
from pathlib import Path

import torch

from ..errors import InputError
from . import animate, benchmark, convert, demo, download, info
from .options import HelpFormatter

log = logging.getLogger(__name__)

WEIGHTS = Path("pretrained_weights")


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one sentence on standard error), 130 interrupted."""
    options = _parser().parse_args([_hyphenated(a) for a in (sys.argv[1:] if arguments is None else arguments)])
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


def _hyphenated(argument: str) -> str:
    """The authors' tool writes option names with underscores: both ways are taken."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="say more")
    weights = argparse.ArgumentParser(add_help=False)
    weights.add_argument("--weights", type=Path, default=WEIGHTS, metavar="DIR", help="folder of the weights")

    parser = argparse.ArgumentParser(prog="personalive", description="Bring a portrait to life with a driving video.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (animate, download, convert, info):
        command.add_parser(commands, [common, weights])
    for needs_no_weights in (benchmark, demo):
        needs_no_weights.add_parser(commands, [common])
    for command_parser in commands.choices.values():
        command_parser.formatter_class = HelpFormatter
    return parser
