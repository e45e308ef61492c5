"""Historical keyframes: a frame whose motion is new is looked at again later, as one more reference."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import CHUNK
from ..errors import InputError

FIRST_WINDOW = 9  # counted from 0; the frames of earlier windows are neither compared nor banked


@dataclass(frozen=True)
class KeyframeSettings:
    """The published values: at most 3 keyframes, each with motion tokens more than 17 away from all banked ones.

    For long takes: every `return_every` driving frames (0 is never, as published) all keyframes are dropped, the
    portrait itself stands as the first, and only its motion counts as seen.
    """

    limit: int = 3
    threshold: float = 17.0
    return_every: int = 0

    def check(self) -> None:
        """InputError where a setting makes no sense."""
        if self.limit < 0 or self.threshold < 0 or self.return_every < 0:
            raise InputError(
                f"{self.limit} keyframes, a threshold of {self.threshold:g} and a return every {self.return_every} "
                "frames: none of them may be below 0."
            )
        if self.return_every and not self.limit:
            raise InputError("to return to the portrait as a keyframe takes at least 1 keyframe, and the limit is 0.")

    def returns(self, window: int) -> bool:
        """Whether a return falls due in this window, which takes in driving frames 4 x window and on."""
        first = CHUNK * window
        return (
            bool(self.return_every) and window > 0 and first // self.return_every > (first - CHUNK) // self.return_every
        )


@dataclass
class KeyframeBank:
    """The motion tokens (K, 32, 16), float32, that count as seen; the portrait's are the first."""

    tokens: Tensor

    def admit(self, tokens: Tensor, threshold: float) -> bool:
        """Bank motion tokens (32, 16) if their smallest L2 distance to the bank is above the threshold."""
        new = (self.tokens - tokens).flatten(1).norm(dim=1).min().item() > threshold
        if new:
            self.tokens = torch.cat([self.tokens, tokens[None]])
        return new
