"""What the portrait contributes, computed once."""

from dataclasses import dataclass

from torch import Tensor

from ..config import LATENT_SCALE, MAX_SIDE, MIN_SIDE, PIXELS_PER_LATENT
from ..errors import InputError
from ..motion.extraction import extract_motion
from ..motion.motion import Motion
from ..networks.motion_encoder import MotionEncoder
from ..networks.motion_extractor import MotionExtractor
from ..networks.reference_unet import ReferenceFeatures, ReferenceUNet


def check_size(width: int, height: int) -> None:
    """Checks that the networks can make pictures of this size.

    Args:
        width: In pixels.
        height: In pixels.

    Raises:
        InputError: A side is too small, too large or no multiple of 8.
    """
    for side, value in (("width", width), ("height", height)):
        if not MIN_SIDE <= value <= MAX_SIDE or value % PIXELS_PER_LATENT:
            nearest = round(min(max(MIN_SIDE, value), MAX_SIDE) / PIXELS_PER_LATENT) * PIXELS_PER_LATENT
            raise InputError(
                f"{side} is {value}, but must be a multiple of {PIXELS_PER_LATENT} from {MIN_SIDE} to {MAX_SIDE}: "
                f"try {nearest}."
            )


@dataclass(frozen=True)
class Reference:
    """A portrait as the networks see it."""

    latents: Tensor  # (1, 4, h, w), scaled, float32
    image_embeds: Tensor  # (1, 1, 768), CLIP's
    features: ReferenceFeatures
    motion: Motion  # one frame


def reference_features(reference_unet: ReferenceUNet, latents: Tensor, image_embeds: Tensor) -> ReferenceFeatures:
    """Runs the reference UNet in its own type: latents (1, 4, h, w), image embeds (1, 1, 768)."""
    dtype = reference_unet.get_dtype()
    return reference_unet(latents.to(dtype), image_embeds.to(dtype))


def encode_reference(
    reference_unet: ReferenceUNet,
    extractor: MotionExtractor,
    encoder: MotionEncoder,
    picture: Tensor,
    vae_mean: Tensor,
    image_embeds: Tensor,
) -> Reference:
    """Runs the portrait through the networks.

    Args:
        picture: (1, 3, H, W) in [0, 1].
        vae_mean: (1, 4, H/8, W/8), the mean of the VAE's posterior, unscaled.
        image_embeds: (1, 1, 768), CLIP's.
    """
    latents = vae_mean.float() * LATENT_SCALE
    features = reference_features(reference_unet, latents, image_embeds)
    return Reference(latents, image_embeds, features, extract_motion(extractor, encoder, picture))
