"""What the hosts' own loaders take, as small as they take it, and a small PersonaLive set that goes with it.

The hosts know a Stable Diffusion VAE and a ViT-L image encoder in their published sizes alone. TAESD is the small VAE
that they know too. The image encoder's 24 layers share one layer's weights, which makes the file small."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from face import DETECTOR_FILE
from seeded import seeded_state_dict, seeded_tensor
from tiny import TINY
from weights_folder import PUBLISHED_IMAGE_ENCODER, PUBLISHED_VAE, write_weights

CLIP_WIDTH = 768
CONFIG = replace(TINY, unet=replace(TINY.unet, channels=(32, 32, 64, 64), image_embeds_width=CLIP_WIDTH))
OTHER = replace(CONFIG, unet=replace(CONFIG.unet, image_embeds_width=24))
SMALLEST_VAE = dict(block_out_channels=(32,) * 4)
SMALLEST_IMAGE_ENCODER = dict(  # the hosts read the last layer but one too, so there are two
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1, patch_size=14
)


def write_models(models: Path) -> None:
    """Fills a host's models folder. The sets `tiny` and `other` serve the command line as well: VAE and image encoder
    of `tiny` are the ones that the host finds as `sd.safetensors` and `vit_l.bin`, those of `other` are small. `bare`
    has none; the others are spoilt."""
    tiny, other, bare, incomplete, cut_off = (
        models / "personalive" / name for name in ("tiny", "other", "bare", "incomplete", "cut_off")
    )
    write_weights(tiny, CONFIG, PUBLISHED_VAE, SMALLEST_IMAGE_ENCODER)
    image_encoder = tiny / "sd-image-variations-diffusers" / "image_encoder"
    _write_image_encoder(image_encoder)
    write_weights(other, OTHER, SMALLEST_VAE, SMALLEST_IMAGE_ENCODER)
    for name, config in (("no_sizes", "{}"), ("no_json", "{")):
        shutil.copytree(other, models / "personalive" / name)
        (models / "personalive" / name / "sd-vae-ft-mse" / "config.json").write_text(config)
    shutil.copytree(other, models / "personalive" / "half_encoder")
    half = (
        models
        / "personalive"
        / "half_encoder"
        / "sd-image-variations-diffusers"
        / "image_encoder"
        / "pytorch_model.bin"
    )
    weights = torch.load(half, weights_only=True)
    torch.save({key: value for key, value in weights.items() if key != "vision_model.post_layernorm.weight"}, half)
    for copy in (bare, incomplete, cut_off):
        shutil.copytree(tiny / "personalive", copy / "personalive")
    for spoilt in (incomplete, cut_off):
        (spoilt / "personalive" / "pose_guider.pth").unlink()
    whole = (tiny / "personalive" / "pose_guider.pth").read_bytes()
    (cut_off / "personalive" / "pose_guider.pth").write_bytes(whole[:1000])

    (models / "personalive" / "detectors").mkdir()
    shutil.copy(DETECTOR_FILE, models / "personalive" / "detectors" / "drawn.onnx")
    for folder in ("vae", "clip_vision"):
        (models / folder).mkdir()
    (models / "vae" / "sd.safetensors").symlink_to(tiny / "sd-vae-ft-mse" / "diffusion_pytorch_model.safetensors")
    _write_taesd(models / "vae" / "taesd.safetensors", 4)
    _write_taesd(models / "vae" / "sixteen_channels.safetensors", 16)
    (models / "clip_vision" / "vit_l.bin").symlink_to(image_encoder / "pytorch_model.bin")


def _write_image_encoder(folder: Path) -> None:
    with torch.device("meta"):
        vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(image_size=224, projection_dim=CLIP_WIDTH, **PUBLISHED_IMAGE_ENCODER)
        )
    weights = {}
    for key, value in vision.state_dict().items():
        first = re.sub(r"layers\.\d+", "layers.0", key)
        weights[key] = weights[first] if first in weights else seeded_tensor("image_encoder", key, tuple(value.shape))
    torch.save(weights, folder / "pytorch_model.bin")
    vision.config.architectures = ["CLIPVisionModelWithProjection"]
    vision.config.save_pretrained(folder)


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
