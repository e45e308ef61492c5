"""What a node tells the user while it runs, on the node itself and in the log."""

import logging
from collections.abc import Sized

import torch
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..personalive_core.media.video_reader import DEFAULT_FRAME_RATE

_log = logging.getLogger("personalive")


def say(text: str) -> None:
    """Shows a text on the node that is running."""
    _log.info(text)
    PromptServer.instance.send_progress_text(text, get_executing_context().node_id)


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
