"""What a live session needs of the networks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..config import CHUNK
from ..device import to_pixels
from ..framing.driving_crop import SIZE, DrivingCrop, DrivingCropSettings, open_driving_crop
from ..motion.extraction import extract_motion
from ..motion.motion import Motion
from ..networks.motion_encoder import MotionEncoder
from ..networks.motion_extractor import MotionExtractor
from ..sampling.cuda import URGENT, Started, on_stream, side_stream
from ..sampling.reference import Reference
from ..sampling.stream import Stream

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


class NetworksModel(ABC):
    """What is the same in every live model: the way from a camera's pictures to motion, and the first runs.

    Args:
        extractor: on the device.
        encoder: on the device.
        device: where the networks run.
    """

    def __init__(self, extractor: MotionExtractor, encoder: MotionEncoder, device: torch.device):
        self.extractor, self.encoder, self.device = extractor, encoder, device
        # The next window waits for the motion, while the last one's frames are still being decoded.
        self._motion_stream = side_stream(device, URGENT)

    def open_crop(self, settings: DrivingCropSettings) -> DrivingCrop:
        return open_driving_crop(settings, (), None, lambda: self.extractor, self.device)

    def extract(self, pictures: Sequence[np.ndarray], previous: Motion | None) -> tuple[Motion, Tensor]:
        with on_stream(self._motion_stream):
            pixels = to_pixels(np.stack(pictures), self.device)
            return extract_motion(self.extractor, self.encoder, pixels, previous), pixels

    def prepare(self, stream: Stream) -> None:
        """Runs each network once, and captures its CUDA graphs, so that no window has to wait for that.

        Args:
            stream: of any portrait; those of all others share what it has prepared.
        """
        self._stream = stream
        for count in range(1, CHUNK + 1):  # as many pictures as a window may have: each number has its CUDA graph
            for _ in range(2):  # the second call captures
                self.extract([np.zeros((SIZE, SIZE, 3), np.uint8)] * count, None)
        stream.prepare()
        self.decode(stream.latents[:, :, None].expand(-1, -1, CHUNK, -1, -1)).result()

    def stream(self, reference: Reference) -> Stream:
        return self._stream.with_reference(reference)

    @abstractmethod
    def decode(self, latents: Tensor) -> Started[np.ndarray]:
        """See `LiveModel`."""

    def wait(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(blocking=True)  # without keeping a processor busy
            event.record(torch.cuda.current_stream(self.device))
            event.synchronize()
