"""One window: each of its frames takes one denoising step, or several if a frame takes more than four in all."""

from torch import Tensor

from ..networks.denoising_unet import Conditioning, DenoisingUNet
from .schedule import Schedule


def denoise_window(
    denoising_unet: DenoisingUNet,
    schedule: Schedule,
    conditioning: Conditioning,
    latents: Tensor,
    motion_tokens: Tensor,
    pose_features: Tensor,
) -> Tensor:
    """Denoises a window of 16 frames; afterwards its oldest chunk is clean.

    Args:
        latents: (1, 4, 16, h, w), scaled, float32, oldest chunk first.
        motion_tokens: (1, 16, 32, 16) in the network's dtype.
        pose_features: (1, 320, 16, h, w) in the network's dtype.

    Returns:
        The latents after the window's steps, (1, 4, 16, h, w) in float32.
    """
    for step in range(schedule.passes):
        timesteps, next_timesteps = (schedule.timesteps(i, latents.device) for i in (step, step + 1))
        noise_pred = denoising_unet(
            latents.to(motion_tokens.dtype), timesteps, conditioning, motion_tokens, pose_features
        )
        latents, _ = schedule.step(latents, noise_pred.float(), timesteps, next_timesteps)
    return latents
