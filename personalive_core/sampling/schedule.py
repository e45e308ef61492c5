"""The diffusion schedule: noise levels, the timesteps of a window, DDIM steps (Song et al. 2020, eta 0)."""

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from ..config import CHUNK, WARM_UP, WINDOW
from ..errors import InputError

TRAINING_STEPS = 1000


def alphas_cumprod() -> Tensor:
    """(1000,) float32: Stable Diffusion's scaled-linear betas, 0.00085 to 0.02."""
    betas = torch.linspace(0.00085**0.5, 0.02**0.5, TRAINING_STEPS, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, dim=0)


@lru_cache
def _alphas_cumprod(device: torch.device) -> Tensor:
    """(1001,), of which index -1 is alpha-bar 1. Cached on the device, so that no window waits for a copy."""
    with torch.inference_mode(False):  # training uses it too
        return torch.cat([alphas_cumprod(), torch.ones(1)]).to(device)


def _alpha(timesteps: Tensor, like: Tensor) -> Tensor:
    """timesteps (F,) -> their alpha-bar (1, 1, F, 1, 1) in the type of `like`."""
    return _alphas_cumprod(like.device)[timesteps.to(like.device)].to(like)[None, None, :, None, None]


@cache  # all of them, because CUDA graphs read them where they are
def _timesteps(schedule: "Schedule", step: int, device: torch.device) -> Tensor:
    starts = reversed(range(0, schedule.steps, schedule.passes))
    timesteps = torch.tensor([schedule.ladder[start + step] for start in starts])
    return timesteps.repeat_interleave(CHUNK).to(device)


@dataclass(frozen=True)
class Schedule:
    """The timesteps of a stream, and its DDIM steps.

    A window holds four chunks, a quarter of the steps apart, and runs the UNet steps / 4 times. Timestep -1 stands for
    the clean picture (alpha-bar 1).

    Args:
        steps: Denoising steps per frame, a multiple of 4 up to 1000.

    Raises:
        InputError: `steps` is another number.
    """

    steps: int = 4

    def __post_init__(self) -> None:
        if not 4 <= self.steps <= TRAINING_STEPS or self.steps % 4:
            raise InputError(
                f"steps is {self.steps}, but must be a multiple of 4 up to {TRAINING_STEPS}: try 4, 8 or 12."
            )

    @property
    def passes(self) -> int:
        """UNet passes per window."""
        return self.steps // (WINDOW // CHUNK)

    @cached_property
    def ladder(self) -> list[int]:
        """The timesteps that a frame goes through from noise to the clean picture, ending with -1."""
        return [int(t) for t in np.round(np.linspace(TRAINING_STEPS - 1, 0, self.steps))] + [-1]

    def timesteps(self, step: int, device: torch.device | str = "cpu") -> Tensor:
        """The timesteps of a window's frames, oldest first. Cached, so do not change them.

        Args:
            step: The UNet pass, from 0; `passes` gives the timesteps after the last one.

        Returns:
            (16,), int64.
        """
        return _timesteps(self, step, torch.device(device))

    def warm_up_timesteps(self, device: torch.device | str = "cpu") -> Tensor:
        """(12,), the timesteps at which the three warm-up chunks start."""
        return self.timesteps(0, device)[:WARM_UP]

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noises latents (1, 4, F, h, w) to timesteps (F,), with noise of their shape."""
        alpha = _alpha(timesteps, latents)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def step(
        self, latents: Tensor, noise_pred: Tensor, timesteps: Tensor, next_timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One DDIM step.

        Args:
            latents: (1, 4, F, h, w) at `timesteps`.
            noise_pred: (1, 4, F, h, w).
            timesteps: (F,).
            next_timesteps: (F,).

        Returns:
            The latents at `next_timesteps`, and the predicted clean latents.
        """
        alpha = _alpha(timesteps, latents)
        next_alpha = _alpha(next_timesteps, latents)
        pred_x0 = (latents - (1 - alpha).sqrt() * noise_pred) / alpha.sqrt()
        return next_alpha.sqrt() * pred_x0 + (1 - next_alpha).sqrt() * noise_pred, pred_x0
