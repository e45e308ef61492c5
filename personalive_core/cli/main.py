"""The command line: `python -m personalive_core`, or `personalive` once installed."""

import argparse
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import TextIOWrapper
from pathlib import Path

log = logging.getLogger(__name__)

WEIGHTS = Path("pretrained_weights")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Those after the program's name; None takes the process's own.

    Returns:
        The exit code: 0 done, 1 standard output is closed or full, 2 bad input (one sentence on standard error), 130
        interrupted.
    """
    _prepare_console()
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 1
    except SystemExit as error:  # argparse's
        code = int(error.code or 0)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        if not isinstance(error, BrokenPipeError):
            print(f"error: standard output cannot be written ({error.strerror}).", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    with _interrupted_at_once():
        import torch  # takes seconds

        from ..errors import InputError
        from ..networks import fused

        parser = _parser()
    options = parser.parse_args(_prepared(arguments))
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    fused.say_compiling = cache(lambda text: print(text, file=sys.stderr))  # once
    try:
        options.run(options)
        return 0
    except BrokenPipeError:
        raise
    except (InputError, OSError) as error:
        _report(str(error))
    except torch.cuda.OutOfMemoryError as error:
        _report(f"the GPU has too little memory ({error}): use a smaller -W and -H, or --dtype fp8.")
    return 2


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Ctrl-C ends the process, as PyTorch may swallow the exception while it is imported."""

    def leave(*_) -> None:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _report(error: str) -> None:
    log.info("where it came from", exc_info=True)
    print(f"error: {error}", file=sys.stderr)


def _prepare_console() -> None:
    """What a console cannot show, such as Japanese names on a Western one, is escaped; a closed stream swallows all."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 it stays open
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _prepared(arguments: list[str]) -> list[str]:
    """The arguments as argparse takes them: option names with hyphens (the authors' tool has underscores), and values
    that begin with a minus joined to their options."""
    prepared: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if re.match(r"-[\d.]", argument) and prepared and re.fullmatch(r"--[^=]+", prepared[-1]):
            prepared[-1] += f"={argument}"
        else:
            prepared.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return prepared


def _parser() -> argparse.ArgumentParser:
    from . import animate, batch, benchmark, convert, demo, download, info, live, serve
    from .options import HelpFormatter

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="say more")
    weights = argparse.ArgumentParser(add_help=False)
    weights.add_argument("--weights", type=Path, default=WEIGHTS, metavar="DIR", help="folder of the weights")

    parser = argparse.ArgumentParser(prog="personalive", description="Bring a portrait to life with a driving video.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (animate, batch, serve, live, download, convert, info):
        command.add_parser(commands, [common, weights])
    for needs_no_weights in (benchmark, demo):
        needs_no_weights.add_parser(commands, [common])
    for command_parser in commands.choices.values():
        command_parser.formatter_class = HelpFormatter
    return parser
