"""One window: all its frames one rung down the ladder (or several, when a frame takes more than four steps)."""

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
    """latents (1, 4, 16, h, w) float32, oldest chunk first -> the same after this window; the oldest chunk is done.

    Motion tokens (1, 16, 32, 16) and pose features (1, 320, 16, h, w) in the network's dtype.
    """
    for step in range(schedule.passes):
        timesteps, next_timesteps = (schedule.timesteps(i, latents.device) for i in (step, step + 1))
        noise_pred = denoising_unet(
            latents.to(motion_tokens.dtype), timesteps, conditioning, motion_tokens, pose_features
        )
        latents, _ = schedule.step(latents, noise_pred.float(), timesteps, next_timesteps)
    return latents
