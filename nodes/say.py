"""What a node tells the user while it runs, on the node itself and in the log."""

import logging
import time
from collections.abc import Sized

import comfy.model_management
import comfy.utils
import torch
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..personalive_core.media.video_reader import DEFAULT_FRAME_RATE
from ..personalive_core.networks import fused

_log = logging.getLogger("personalive")

SAY_EVERY = 1.0  # seconds between texts about progress

_said = {"context": None, "text": ""}  # by the node that is running


def say(text: str) -> None:
    """Shows a text on the node that is running."""
    _log.info(text)
    context = get_executing_context()
    _said.update(context=context, text=text)
    PromptServer.instance.send_progress_text(text, context.node_id)


def say_once(text: str) -> None:
    """As `say`, where a node is running that does not say this already; else in the log alone."""
    context = get_executing_context()
    if context is None:
        _log.info(text)
    elif _said != {"context": context, "text": text}:
        say(text)


fused.say_compiling = say_once


class Progress:
    """The host's progress bar, and on the node itself how much is done and how long the rest will take.

    Args:
        total: How many there will be, as far as is known.
        things: What they are, in the plural.
    """

    def __init__(self, total: int, things: str):
        self._bar, self._things = comfy.utils.ProgressBar(total), things
        self._context = get_executing_context()
        self._begin = self._shown = time.monotonic()

    def update(self, done: int, total: int, preview: tuple | None = None) -> None:
        """Shows that so many of so many are done, with a picture as the host's progress bar takes it. Raises the
        host's exception if the user has cancelled."""
        self._bar.update_absolute(done, total, preview)
        now = time.monotonic()
        taken, ends = now - self._begin, done >= total
        if taken > SAY_EVERY and done and (ends or now - self._shown > SAY_EVERY):
            self._shown = now
            said = _said["text"] + "\n" if _said["context"] == self._context else ""
            rest = f"in {taken:.0f} s" if ends else f"of {total}, {taken / done * (total - done):.0f} s left"
            PromptServer.instance.send_progress_text(f"{said}{done} {self._things} {rest}", self._context.node_id)
        comfy.model_management.throw_exception_if_processing_interrupted()


def say_first(batch: Sized, what: str) -> None:
    """Says, where only the first of a batch is used, that there are more."""
    if len(batch) > 1:
        say(f"{len(batch)} {what} came in: the first is used. Connect a single one to use another.")


def say_rate(driving, frame_rate: float) -> None:
    """Says at which speed a batch of images is taken, where nobody chose one: `frame_rate` is 0."""
    if isinstance(driving, torch.Tensor) and len(driving) > 1 and not frame_rate:
        seconds = float(len(driving) / DEFAULT_FRAME_RATE)
        say(
            f"{len(driving)} images are taken as {DEFAULT_FRAME_RATE} frames a second ({seconds:.1f} s): set "
            "'frame_rate' if they were made at another rate."
        )
