"""Historical keyframes: a frame whose motion is new is looked at again later, as one more reference."""

from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_WINDOW = 9  # counted from 0; the frames of earlier windows are neither compared nor banked


@dataclass(frozen=True)
class KeyframeSettings:
    """The published values: at most 3 keyframes, each with motion tokens more than 17 away from all banked ones."""

    limit: int = 3
    threshold: float = 17.0


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
