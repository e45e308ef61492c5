"""One window: each of its frames takes one denoising step, or several if a frame takes more than four in all."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..config import CHUNK
from ..networks.denoising_unet import Conditioning, DenoisingUNet
from ..networks.reference_unet import ReferenceFeatures
from .cuda import GraphedFunctions
from .schedule import Schedule


@dataclass(frozen=True)
class DenoisedWindow:
    """A window after its steps: its oldest chunk is clean."""

    latents: Tensor  # (1, 4, 16, h, w), scaled, float32
    early: Tensor  # (1, 4, 4, h, w), the predicted clean latents of the second chunk, which has a quarter still to go


def denoise_window(
    denoising_unet: DenoisingUNet,
    schedule: Schedule,
    conditioning: Conditioning,
    latents: Tensor,
    motion_tokens: Tensor,
    pose_features: Tensor,
) -> DenoisedWindow:
    """Denoises a window of 16 frames.

    Args:
        latents: (1, 4, 16, h, w), scaled, float32, oldest chunk first.
        motion_tokens: (1, 16, 32, 16) in the network's dtype.
        pose_features: (1, 320, 16, h, w) in the network's dtype.
    """
    for step in range(schedule.passes):
        timesteps, next_timesteps = (schedule.timesteps(i, latents.device) for i in (step, step + 1))
        noise_pred = denoising_unet(
            latents.to(motion_tokens.dtype), timesteps, conditioning, motion_tokens, pose_features
        )
        latents, pred_x0 = schedule.step(latents, noise_pred.float(), timesteps, next_timesteps)
    return DenoisedWindow(latents, pred_x0[:, :, CHUNK : 2 * CHUNK])


class Denoiser:
    """Denoises windows with any number of keyframes, as CUDA graphs if asked.

    The keys and values of the portrait and its keyframes lie one after the other in buffers of fixed size. There is one
    graph for each number of keyframes, so a new keyframe or another portrait is a copy and not a capture. Streams may
    use a denoiser in turn, but not at the same time in several threads.

    Args:
        denoising_unet: On the device.
        schedule: How many denoising steps.
        keyframes: The most that there can be.
        capture: See `set_capture`.
    """

    def __init__(self, denoising_unet: DenoisingUNet, schedule: Schedule, keyframes: int, capture: bool = False):
        self.denoising_unet, self.schedule, self.keyframes = denoising_unet, schedule, keyframes
        self._addresses: list[int] = []
        self._clear()
        self.set_capture(capture)

    def _clear(self) -> None:
        """Frees buffers and graphs."""
        self._size: torch.Size | None = None
        self._references: list[ReferenceFeatures] = []  # whose keys and values the buffers hold
        self._cross: dict[str, Tensor] = {}
        self._keys_values: dict[str, tuple[Tensor, ...]] = {}
        self._windows: list[Callable[..., DenoisedWindow]] = []
        self._graphed = GraphedFunctions()

    def set_capture(self, capture: bool) -> None:
        """Switches CUDA graphs on or off.

        They need all weights on the GPU. Call this again when the weights may have moved: graphs of weights that have
        are dropped and captured again.
        """
        addresses = [x.data_ptr() for x in self.denoising_unet.parameters()] if capture else []
        if addresses != self._addresses:
            self._graphed.reset()
        self.capture, self._addresses = capture, addresses

    @torch.inference_mode()  # always, because buffers made in this mode cannot be written outside it
    def __call__(
        self,
        image_embeds: Tensor,
        references: list[ReferenceFeatures],
        latents: Tensor,
        motion_tokens: Tensor,
        pose_features: Tensor,
    ) -> DenoisedWindow:
        """Denoises a window of 16 frames.

        Args:
            image_embeds: (1, 1, 768), the portrait's.
            references: The portrait's features, then each keyframe's. What is the same object as in the last call is
                not written again.
            latents: As `denoise_window` takes them, like the rest.
            motion_tokens: In the network's dtype.
            pose_features: In the network's dtype.
        """
        if latents.shape != self._size:
            self._allocate(self.denoising_unet.condition(image_embeds, references[0]))
            self._size = latents.shape
        self._condition(image_embeds, references)
        keyframes = len(references) - 1
        if self.capture:
            return self._graphed(latents, motion_tokens, pose_features, index=keyframes)
        return self._windows[keyframes](latents, motion_tokens, pose_features)

    def _allocate(self, one: Conditioning) -> None:
        """For windows of another size. `one` is the conditioning of one reference."""
        self._clear()  # the new buffers may need the memory
        self._cross = {path: x.clone() for path, x in one.cross.items()}
        self._keys_values = {
            path: tuple(x.new_zeros(1 + self.keyframes, *x.shape[1:]) for x in pair)
            for path, pair in one.keys_values.items()
        }
        self._windows = [
            partial(denoise_window, self.denoising_unet, self.schedule, self._conditioning(1 + keyframes))
            for keyframes in range(1 + self.keyframes)
        ]
        self._graphed = GraphedFunctions(*self._windows)

    def _conditioning(self, references: int) -> Conditioning:
        """Views of the first references' buffers."""

        def first(x: Tensor) -> Tensor:
            return x[:references].flatten(0, 1)[None]

        keys_values = {path: (first(keys), first(values)) for path, (keys, values) in self._keys_values.items()}
        return Conditioning(self._cross, keys_values)

    def _condition(self, image_embeds: Tensor, references: list[ReferenceFeatures]) -> None:
        """Writes what the buffers do not hold yet."""
        for i, features in enumerate(references):
            if i < len(self._references) and self._references[i] is features:
                continue
            del self._references[i:]
            new = self.denoising_unet.condition(image_embeds, features)
            for path, pair in new.keys_values.items():
                self._cross[path].copy_(new.cross[path])
                for buffer, x in zip(self._keys_values[path], pair, strict=True):
                    buffer[i] = x[0]
            self._references.append(features)
        del self._references[len(references) :]
