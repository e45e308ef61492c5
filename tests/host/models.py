"""What the hosts' own loaders take, as small as they take it, and a small PersonaLive set that goes with it.

The hosts know a Stable Diffusion VAE and a ViT-L image encoder in their published sizes alone. TAESD is the small VAE
that they know too. The image encoder's 24 layers share one layer's weights, which makes the file small."""

import re
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from personalive_core.demo import TINY
from personalive_core.seeded import seeded_state_dict, seeded_tensor
from weights_folder import PUBLISHED_IMAGE_ENCODER, PUBLISHED_VAE, write_weights

CLIP_WIDTH = 768
CONFIG = replace(TINY, unet=replace(TINY.unet, image_embeds_width=CLIP_WIDTH))


def write_models(models: Path) -> None:
    """Fills a host's models folder. The set `tiny` serves the command line as well: VAE and image encoder of it are
    the ones that the host finds as `sd.safetensors` and `vit_l.bin`."""
    tiny = models / "personalive" / "tiny"
    unused = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, patch_size=14)
    write_weights(tiny, CONFIG, PUBLISHED_VAE, unused)
    for name in ("other", "incomplete", "cut_off"):
        (tiny.with_name(name) / "personalive").mkdir(parents=True)
        for file in (tiny / "personalive").iterdir():
            (tiny.with_name(name) / "personalive" / file.name).symlink_to(file)
    (tiny.with_name("incomplete") / "personalive" / "pose_guider.pth").unlink()
    cut_off = tiny.with_name("cut_off") / "personalive" / "pose_guider.pth"
    cut_off.unlink()
    cut_off.write_bytes((tiny / "personalive" / "pose_guider.pth").read_bytes()[:1000])
    for folder in ("vae", "clip_vision"):
        (models / folder).mkdir(parents=True)
    (models / "vae" / "sd.safetensors").symlink_to(tiny / "sd-vae-ft-mse" / "diffusion_pytorch_model.safetensors")
    _write_taesd(models / "vae" / "taesd.safetensors", 4)
    _write_taesd(models / "vae" / "sixteen_channels.safetensors", 16)

    encoder = tiny / "sd-image-variations-diffusers" / "image_encoder"
    _write_image_encoder(encoder)
    (models / "clip_vision" / "vit_l.bin").symlink_to(encoder / "pytorch_model.bin")
    weights = torch.load(encoder / "pytorch_model.bin", weights_only=True)
    del weights["visual_projection.weight"]  # the host then gives 1024 numbers
    torch.save(weights, models / "clip_vision" / "without_projection.bin")


def _write_image_encoder(folder: Path) -> None:
    with torch.device("meta"):
        config = CLIPVisionConfig(image_size=224, projection_dim=CLIP_WIDTH, **PUBLISHED_IMAGE_ENCODER)
        vision = CLIPVisionModelWithProjection(config)
    weights = {}
    for key, value in vision.state_dict().items():
        first = re.sub(r"layers\.\d+", "layers.0", key)
        weights[key] = weights[first] if first in weights else seeded_tensor("image_encoder", key, tuple(value.shape))
    torch.save(weights, folder / "pytorch_model.bin")
    config.architectures = ["CLIPVisionModelWithProjection"]
    config.save_pretrained(folder)


def _write_taesd(file: Path, latent_channels: int) -> None:
    with torch.device("meta"):
        vae = AutoencoderTiny(latent_channels=latent_channels)
    weights = {}
    for key, value in seeded_state_dict("taesd", vae).items():
        part, rest = key.split(".layers.")
        if part == "decoder":  # the host counts the clamp before the first layer
            number, rest = rest.split(".", 1)
            rest = f"{int(number) + 1}.{rest}"
        weights[f"taesd_{part}.{rest}"] = value
    save_file({**weights, "vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}, file)
