"""The decoders against diffusers' own."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from personalive_core.config import LATENT_SCALE
from personalive_core.pipeline import TinyDecoder, decoder_of
from seeded import normal, seeded_state_dict
from tiny import error


@torch.inference_mode()
def test_the_vae_decoder_is_diffusers():
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=4,
    ).eval()
    vae.load_state_dict(seeded_state_dict("vae", vae))
    latents = normal("latents", 2, 4, 8, 12)
    expected = vae.decode(latents).sample
    assert error(decoder_of(vae)(latents), expected) < 1e-5


@torch.inference_mode()
def test_the_small_decoder_is_diffusers():
    """Its latents are those of Stable Diffusion as they are scaled for the UNet."""
    tiny = AutoencoderTiny(decoder_block_out_channels=(32, 32), num_decoder_blocks=(1, 1)).eval()
    latents = normal("latents", 2, 4, 8, 12)
    expected = tiny.decode(latents * LATENT_SCALE).sample
    assert error(TinyDecoder(tiny)(latents), expected) < 1e-5
