"""The pipeline as a live session calls it."""

from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
from torch import Tensor

from ..pipeline import Pipeline
from ..sampling.cuda import Started
from ..sampling.keyframes import KeyframeSettings
from .model import EncodedPortrait, NetworksModel


class PipelineModel(NetworksModel):
    """The pipeline, prepared, which takes seconds on a GPU: each network has run, the CUDA graphs are captured, and the
    networks for portraits and keyframes stay on the device from now on, if they fit.

    Args:
        pipeline: loaded.
        fit: makes a picture of the result's size of a portrait, uint8 (H, W, 3) -> (height, width, 3).
        width, height: of the result, in pixels.
        keyframes: when a frame becomes a keyframe; none, if the networks do not fit on the device.
        steps: denoising steps a frame.

    Attributes:
        keyframes: those settings, as they are used.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        fit: Callable[[np.ndarray], np.ndarray],
        width: int,
        height: int,
        keyframes: KeyframeSettings | None = None,
        steps: int = 4,
    ):
        super().__init__(pipeline.motion_extractor, pipeline.motion_encoder, pipeline.device)
        self.width, self.height = width, height
        self._pipeline, self._fit = pipeline, fit
        self.keyframes = keyframes or KeyframeSettings()
        blank = pipeline.encode_reference(np.zeros((height, width, 3), np.uint8))
        self.prepare(pipeline.stream(blank, steps, self.keyframes))
        self._resident = ExitStack()  # which nobody leaves
        if not self._resident.enter_context(pipeline.onload()):  # a keyframe would have to wait for its network
            self._stream.keyframes = self.keyframes = replace(self.keyframes, limit=0, return_every=0)

    def encode(self, picture: np.ndarray) -> Generator[None, None, EncodedPortrait]:
        fitted = self._fit(picture)
        yield
        reference = yield from self._pipeline.encode_reference_stages(fitted)
        return EncodedPortrait(reference, fitted)

    def decode(self, latents: Tensor) -> Started[np.ndarray]:
        return self._pipeline.start_decoding(latents)
