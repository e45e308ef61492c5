"""Historical keyframes: a generated frame whose motion is new becomes one more reference."""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..config import CHUNK, WARM_UP
from ..errors import InputError

MAX_KEYFRAMES = 16
FIRST_WINDOW = 9  # counted from 0; frames of earlier windows are neither compared nor banked


@dataclass(frozen=True)
class KeyframeSettings:
    """When a frame becomes a keyframe. The defaults are the published values.

    Args:
        limit: The most keyframes at a time, up to 16.
        threshold: A keyframe's motion tokens must be farther than this from all banked ones, in L2 distance.
        return_every: For long takes: after this many driving frames all keyframes are dropped, the portrait becomes the
            first, and only its motion stays banked. 0 is never, as published.
    """

    limit: int = 3
    threshold: float = 17.0
    return_every: int = 0

    @classmethod
    def in_seconds(cls, limit: int, threshold: float, return_every: float, frame_rate: Fraction) -> "KeyframeSettings":
        """The settings with `return_every` in seconds at `frame_rate`.

        Raises:
            InputError: A setting makes no sense.
        """
        if not 0 <= return_every < math.inf:
            raise InputError(f"return every is {return_every:g} seconds, but must be 0 (never) or more.")
        settings = cls(limit, threshold, max(1, round(return_every * frame_rate)) if return_every else 0)
        settings.check()
        return settings

    def check(self) -> None:
        """Checks the settings.

        Raises:
            InputError: A setting makes no sense.
        """
        if not 0 <= self.limit <= MAX_KEYFRAMES:
            raise InputError(f"the limit is {self.limit} keyframes, but must be from 0 to {MAX_KEYFRAMES}.")
        if not 0 <= self.threshold < math.inf:
            raise InputError(f"the keyframe threshold is {self.threshold:g}, but must be 0 or more.")
        if self.return_every < 0:
            raise InputError(f"return every is {self.return_every} frames, but must be 0 (never) or more.")
        if self.return_every and not self.limit:
            raise InputError("to return to the portrait as a keyframe takes at least 1 keyframe, and the limit is 0.")

    def returns(self, window: int) -> bool:
        """Whether a return is due in this window, whose first driving frame is 4 x window."""
        first = CHUNK * window
        return (
            bool(self.return_every) and window > 0 and first // self.return_every > (first - CHUNK) // self.return_every
        )


@dataclass
class KeyframeBank:
    """The motion tokens that count as seen."""

    tokens: Tensor  # (K, 32, 16) in float32, the portrait's first

    def admit(self, tokens: Tensor, threshold: float) -> bool:
        """Banks motion tokens (32, 16) if they are farther than `threshold` from all banked ones; whether it did."""
        new = (self.tokens - tokens).flatten(1).norm(dim=1).min().item() > threshold
        if new:
            self.tokens = torch.cat([self.tokens, tokens[None]])
        return new


def keyframe_windows(settings: KeyframeSettings, portrait: Tensor, tokens: Tensor, windows: int) -> list[list[int]]:
    """Finds the keyframes before anything is sampled: they follow from the motion alone.

    Args:
        settings: When a frame becomes a keyframe.
        portrait: The portrait's motion tokens (1, 32, 16).
        tokens: Those that the networks get of the first frame of each chunk, (windows - 3, 32, 16) or more.
        windows: How many windows are run.

    Returns:
        For each number of windows that have been run, from 0 to `windows`: those, counted from 0, whose oldest frame is
        a keyframe by then. A portrait that returned is not one.
    """
    found, limit = [list[int]()], settings.limit
    bank = KeyframeBank(portrait)
    for window in range(windows):
        known = found[-1]
        if settings.returns(window):
            bank, known, limit = KeyframeBank(portrait), [], settings.limit - 1
        is_new = window >= FIRST_WINDOW and bank.admit(tokens[window - WARM_UP // CHUNK], settings.threshold)
        found.append([*known, window] if is_new and len(known) < limit else known)
    return found
