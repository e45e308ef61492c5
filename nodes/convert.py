"""Between the host's layouts and the core's; nowhere else."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..personalive_core.config import LATENT_SCALE, PIXELS_PER_LATENT
from ..personalive_core.errors import InputError


def to_pictures(image: Tensor, what: str) -> np.ndarray:
    """IMAGE (B, H, W, 3 or 4) float in [0, 1] -> uint8 (B, H, W, 3); transparent parts become white."""
    if image.ndim != 4 or not len(image):
        raise InputError(f"{what} holds no picture (its shape is {tuple(image.shape)}): connect an image.")
    if min(image.shape[1:3]) < 32:
        raise InputError(f"{what} is {image.shape[2]} x {image.shape[1]} pixels: give at least 32 x 32.")
    if image.shape[3] not in (3, 4):
        raise InputError(
            f"{what} has {image.shape[3]} channel(s) a pixel: give a colour image, 3 channels or 4 with alpha."
        )
    if image.shape[3] == 4:
        image, alpha = image[..., :3], image[..., 3:]
        image = image * alpha + (1 - alpha)
    if not image.isfinite().all():
        raise InputError(f"{what} holds numbers that are not finite (NaN): look at the node that made it.")
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8).contiguous().cpu().numpy()


def to_image(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> IMAGE."""
    return torch.tensor(pictures).float() / 255


def to_host_latents(latents: Tensor) -> Tensor:
    """Scaled latents (1, 4, F, h, w) -> the host's unscaled samples (F, 4, h, w)."""
    return rearrange(latents / LATENT_SCALE, "1 c f h w -> f c h w")


def to_latents(samples: Tensor) -> Tensor:
    """The host's unscaled samples -> scaled latents of the same shape."""
    return samples * LATENT_SCALE


def check_vae_latents(samples: Tensor, width: int, height: int) -> None:
    expected = (1, 4, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    if tuple(samples.shape) != expected:
        raise InputError(
            f"this VAE makes latents of shape {tuple(samples.shape)} in place of {expected}: load one of Stable "
            "Diffusion 1.x, such as sd-vae-ft-mse."
        )
