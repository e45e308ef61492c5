"""Load VAE and Image Encoder: the two networks of others that go with a set of weights, in the host's own classes."""

import json
import tempfile
from pathlib import Path

import comfy.clip_vision
import comfy.sd
from comfy_api.latest import io

from ..personalive_core.errors import InputError
from ..personalive_core.files import read_json
from ..personalive_core.weights.find import WeightFiles
from ..personalive_core.weights.load import load_checkpoint
from . import compat
from .load import ModelType, PersonaLiveModel
from .weights import encoder_files, host_file

# Of transformers' CLIPVisionConfig: what a config.json may leave out.
IMAGE_ENCODER_DEFAULTS = dict(
    model_type="clip_vision_model",
    hidden_size=768,
    intermediate_size=3072,
    projection_dim=512,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_channels=3,
    image_size=224,
    patch_size=32,
    hidden_act="quick_gelu",
)


class LoadEncoders(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveLoadEncoders",
            display_name="PersonaLive Load VAE and Image Encoder",
            category="PersonaLive",
            **compat.search_aliases("clip vision loader, vae loader, sd-vae-ft-mse"),
            description="Loads the VAE and the image encoder that go with the model: those of its own folder, or the "
            "official ones, which 'Download weights' on Load PersonaLive Model fetches.",
            inputs=[ModelType.Input("model", tooltip="From Load PersonaLive Model.")],
            outputs=[
                io.Vae.Output(display_name="vae", tooltip="The VAE, for Encode Reference and Assemble Video."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="The image encoder, for Encode Reference."),
            ],
        )

    @classmethod
    def execute(cls, model: PersonaLiveModel) -> io.NodeOutput:
        return io.NodeOutput(load_vae(model.files), load_image_encoder(model.files))


def load_vae(files: WeightFiles) -> comfy.sd.VAE:
    path = _find(files, "vae", "Load VAE")
    vae = comfy.sd.VAE(sd=load_checkpoint(path), config=_vae_config(files.vae) if files.vae else None)
    if vae.first_stage_model is None:
        raise InputError(f"{path} is no VAE that ComfyUI knows: delete it and fetch it again.")
    return vae


def _vae_config(folder: Path) -> dict:
    """The sizes as the host takes them, of a VAE that is built like Stable Diffusion's but may be smaller."""
    sizes = _read_config(folder, "block_out_channels", "latent_channels", "layers_per_block")
    channels = sizes["block_out_channels"]
    return {
        "params": {
            "embed_dim": sizes["latent_channels"],
            "ddconfig": {
                "ch": channels[0],
                "ch_mult": [count // channels[0] for count in channels],
                "num_res_blocks": sizes["layers_per_block"],
                "z_channels": sizes["latent_channels"],
                "double_z": True,
                "in_channels": 3,
                "out_ch": 3,
                "resolution": 256,
                "attn_resolutions": [],
            },
        }
    }


def load_image_encoder(files: WeightFiles) -> comfy.clip_vision.ClipVisionModel:
    path = _find(files, "image_encoder", "Load CLIP Vision")
    if files.image_encoder is None:
        encoder = comfy.clip_vision.load_clipvision_from_sd(load_checkpoint(path))
        if encoder is None:
            raise InputError(f"{path} is no image encoder that ComfyUI knows: delete it and fetch it again.")
        return encoder
    with tempfile.TemporaryDirectory() as folder:  # older hosts take the sizes from a file alone
        config = Path(folder, "config.json")
        config.write_text(json.dumps(IMAGE_ENCODER_DEFAULTS | _read_config(files.image_encoder)))
        encoder = comfy.clip_vision.ClipVisionModel(str(config))
    missing, _ = encoder.load_sd(load_checkpoint(path))
    if missing:
        raise InputError(f"{path} lacks {missing[0]} and {len(missing) - 1} more weights: fetch it again.")
    return encoder


def _read_config(folder: Path, *needed: str) -> dict:
    path = folder / "config.json"
    config = read_json(path)
    if lacking := [key for key in needed if key not in config]:
        raise InputError(f"{path} does not say {', '.join(lacking)}: fetch it again.")
    return config


def _find(files: WeightFiles, part: str, other: str) -> Path:
    path = encoder_files(files)[part]
    if path is None:
        raise InputError(
            f"{host_file(part)[1]} is not there: press 'Download weights' on Load PersonaLive Model, or use ComfyUI's "
            f"{other} if you have it under another name."
        )
    return path
