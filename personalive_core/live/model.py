"""What a live session needs of the networks, and how the pipeline gives it."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from ..framing.driving_crop import DrivingCrop, DrivingCropSettings
from ..motion.motion import Motion
from ..sampling.cuda import Started
from ..sampling.reference import Reference

Report = Callable[[str, float], None]
"""(what is being done, the fraction that is done)"""


class EncodedPortrait(NamedTuple):
    """A portrait for a stream, and the picture that was encoded, uint8 (height, width, 3)."""

    reference: Reference
    picture: np.ndarray


class LiveModel(Protocol):
    """The networks, as a live session calls them, always from one thread.

    Attributes:
        width, height: of the result, in pixels.
    """

    width: int
    height: int

    def encode(self, picture: np.ndarray) -> Generator[None, None, EncodedPortrait]:
        """Fits and encodes a portrait, uint8 (H, W, 3), in stages: windows can run between them. InputError: it cannot
        be used."""

    def stream(self, reference: Reference) -> Any:
        """A `Stream` of this portrait. It stalls no window: whatever can be prepared has been."""

    def open_crop(self, settings: DrivingCropSettings) -> DrivingCrop:
        """A crop that follows the driver's head."""

    def extract(self, pictures: Sequence[np.ndarray], previous: Motion | None) -> tuple[Motion, Tensor]:
        """The motion of F pictures of one size, uint8 (H, W, 3), as `extract_motion` gives it, and the pictures as
        float32 (F, 3, H, W) in [0, 1]."""

    def decode(self, latents: Tensor) -> Started[np.ndarray]:
        """Starts to decode scaled latents (1, 4, F, h, w) to uint8 (F, height, width, 3)."""

    def wait(self) -> None:
        """Waits for the window under way."""
