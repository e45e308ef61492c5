"""The diffusion schedule: noise levels, the ladder of a window, DDIM steps (Song et al. 2020, eta 0)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .config import CHUNK, WARM_UP, WINDOW
from .errors import InputError

TRAINING_STEPS = 1000


def alphas_cumprod() -> Tensor:
    """(1000,) float32: Stable Diffusion's scaled-linear betas, 0.00085 to 0.02."""
    betas = torch.linspace(0.00085**0.5, 0.02**0.5, TRAINING_STEPS, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, dim=0)


def _per_frame(values: Tensor, like: Tensor) -> Tensor:
    """values (F,) so that they multiply latents (1, 4, F, h, w)."""
    return values.to(like)[None, None, :, None, None]


@dataclass(frozen=True)
class Schedule:
    """`steps` denoising steps for each frame, a multiple of 4: a window of four chunks runs steps / 4 passes.

    Timestep -1 stands for the clean picture (alpha-bar 1).
    """

    steps: int = 4

    def __post_init__(self) -> None:
        if self.steps < 4 or self.steps % 4:
            raise InputError(f"steps is {self.steps}, but must be a multiple of 4: try 4, 8 or 12.")

    @property
    def passes(self) -> int:
        """UNet runs a window."""
        return self.steps // (WINDOW // CHUNK)

    @cached_property
    def ladder(self) -> list[int]:
        """The timesteps that a frame goes through from noise to picture, and -1 at the end."""
        return [int(t) for t in np.round(np.linspace(TRAINING_STEPS - 1, 0, self.steps))] + [-1]

    @cached_property
    def _alphas_cumprod(self) -> Tensor:
        """(1001,): index -1 is alpha-bar 1."""
        return torch.cat([alphas_cumprod(), torch.ones(1)])

    def timesteps(self, step: int) -> Tensor:
        """(16,) timesteps of a window's frames, oldest first, in pass `step` (0 .. passes - 1, or passes: after)."""
        starts = reversed(range(0, self.steps, self.passes))
        return torch.tensor([self.ladder[start + step] for start in starts]).repeat_interleave(CHUNK)

    def warm_up_timesteps(self) -> Tensor:
        """(12,) the levels at which the three warm-up chunks enter."""
        return self.timesteps(0)[:WARM_UP]

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """latents and noise (1, 4, F, h, w), timesteps (F,) -> latents at those noise levels."""
        alpha = _per_frame(self._alphas_cumprod[timesteps], latents)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def step(self, latents: Tensor, noise_pred: Tensor, timesteps: Tensor, next_timesteps: Tensor):
        """One DDIM step -> (latents at the next timesteps, predicted x0); (1, 4, F, h, w) and (F,)."""
        alpha = _per_frame(self._alphas_cumprod[timesteps], latents)
        next_alpha = _per_frame(self._alphas_cumprod[next_timesteps], latents)
        pred_x0 = (latents - (1 - alpha).sqrt() * noise_pred) / alpha.sqrt()
        return next_alpha.sqrt() * pred_x0 + (1 - next_alpha).sqrt() * noise_pred, pred_x0
