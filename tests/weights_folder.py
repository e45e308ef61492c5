"""Writes a folder of seeded weights in the layout of the published ones: six `.pth` files, VAE, image encoder.

As a program, in the published sizes (17 GB of disk, minutes): python tests/weights_folder.py FOLDER
"""

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from personalive_core.config import ModelConfig
from personalive_core.weights.find import NETWORK_FILES, SIZES_FILE
from personalive_core.weights.load import meta_networks
from seeded import COMPONENTS, seeded_state_dict

PUBLISHED_VAE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=256)
PUBLISHED_IMAGE_ENCODER = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
)


def write_weights(folder: Path, config: ModelConfig, vae: dict, image_encoder: dict) -> None:
    personalive = folder / "personalive"
    personalive.mkdir(parents=True)
    if config != ModelConfig():
        config.write(personalive / SIZES_FILE)
    for name, network in meta_networks(config).items():
        weights = seeded_state_dict(COMPONENTS.get(name, name), network)
        if name == "motion_encoder":  # its tokens would be so large that a rounding changes the whole picture
            for key in ("model.conv6.weight", "model.conv6.bias"):
                weights[key] /= 30
        for file in NETWORK_FILES[name]:
            of_module = [key for key in weights if (".temporal_modules." in key) == (file == "temporal_module")]
            torch.save({key: weights[key] for key in of_module}, personalive / f"{file}.pth")

    blocks = len(vae["block_out_channels"])
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4,
        **vae,
    )
    autoencoder.load_state_dict(seeded_state_dict("vae", autoencoder))
    autoencoder.save_pretrained(folder / "sd-vae-ft-mse")

    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(image_size=224, projection_dim=config.unet.image_embeds_width, **image_encoder)
    )
    vision.load_state_dict(seeded_state_dict("image_encoder", vision))
    vision.config.architectures = ["CLIPVisionModelWithProjection"]
    encoder_folder = folder / "sd-image-variations-diffusers" / "image_encoder"
    encoder_folder.mkdir(parents=True)
    vision.config.save_pretrained(encoder_folder)
    torch.save(vision.state_dict(), encoder_folder / "pytorch_model.bin")  # as published


if __name__ == "__main__":
    write_weights(Path(sys.argv[1]), ModelConfig(), PUBLISHED_VAE, PUBLISHED_IMAGE_ENCODER)
