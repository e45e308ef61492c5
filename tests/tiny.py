"""What the tests share: goldens, the error measure, and networks small enough for a test."""

import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from personalive_core.config import (
    ModelConfig,
    MotionEncoderConfig,
    MotionExtractorConfig,
    PoseGuiderConfig,
    UNetConfig,
)
from personalive_core.networks.attention import Attention, pytorch_attention
from personalive_core.networks.denoising_unet import DenoisingUNet
from personalive_core.networks.fp8 import store_in_fp8
from personalive_core.networks.head_pose import HeadPose
from personalive_core.networks.reference_unet import ReferenceUNet
from personalive_core.weights.load import meta_networks
from seeded import COMPONENTS, normal, seeded_state_dict, uniform

ASSETS = Path(__file__).parent / "assets"
NO_HOST = "NO COMFYUI FOUND, SO THE NODES WERE NOT TESTED: give the folder of one, 0.3.64 or newer, in COMFYUI_PATH"
UNET = UNetConfig(channels=(32, 64, 128, 128), image_embeds_width=24)
TINY = ModelConfig(
    unet=UNET,
    motion_encoder=MotionEncoderConfig(stem_channels=32, channels=64, attention_width=128),
    motion_extractor=MotionExtractorConfig(depths=(1, 1, 2, 1), widths=(16, 32, 64, 128)),
    pose_guider=PoseGuiderConfig(channels=(8, 16, 24, 32), out_channels=32),
)


def golden(name: str) -> dict[str, Tensor]:
    return load_file(ASSETS / "golden" / f"{name}.safetensors")


def manifest(name: str) -> dict[str, list[int]]:
    return json.loads((ASSETS / "manifests" / f"{name}.json").read_text())


def error(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||"""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def seeded(network: nn.Module, component: str) -> nn.Module:
    """A network built on the meta device, filled with seeded weights."""
    network.load_state_dict(seeded_state_dict(component, network), assign=True)
    return network.eval().requires_grad_(False)


@lru_cache
def unets() -> tuple[ReferenceUNet, DenoisingUNet]:
    """Small and seeded, shared between tests: leave them as they are."""
    return make_unets(UNET)


def make_unets(config: UNetConfig, attention: Attention = pytorch_attention) -> tuple[ReferenceUNet, DenoisingUNet]:
    """Seeded."""
    return (
        seeded(ReferenceUNet(config, device="meta", attention=attention), "reference_unet"),
        seeded(DenoisingUNet(config, device="meta", attention=attention), "denoising_unet"),
    )


@torch.inference_mode()
def unet_errors(
    name: str,
    config: UNetConfig,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: Attention = pytorch_attention,
    *,
    fp8: bool = False,
) -> dict[str, float]:
    """Every output of a golden file -> its error. The expected values stay in float32."""
    g = golden(name)
    reference_unet, denoising_unet = (network.to(device, dtype) for network in make_unets(config, attention))
    for network in (reference_unet, denoising_unet) if fp8 else ():
        store_in_fp8(network)
    latents, timesteps, image_embeds, tokens = (
        g[key].to(device, dtype if g[key].is_floating_point() else None)
        for key in ("latents", "timesteps", "image_embeds", "motion_tokens")
    )
    pose_features = normal(f"in/{name}/p", 1, config.channels[0], 16, 8, 8).to(device, dtype)

    found = {}
    features = reference_unet(g["reference_latents"].to(device, dtype), image_embeds)
    found |= {f"reference_features.{path}": value for path, value in features.items()}
    conditioning = denoising_unet.condition(image_embeds, features)
    found["noise_pred"] = denoising_unet(latents, timesteps, conditioning, tokens, pose_features)
    for i, key in enumerate(("noise_pred_1_keyframe", "noise_pred_2_keyframes")):
        keyframe = reference_unet(g["keyframe_latents"][i : i + 1].to(device, dtype), image_embeds)
        conditioning = denoising_unet.add_keyframe(conditioning, keyframe)
        found[key] = denoising_unet(latents, timesteps, conditioning, tokens, pose_features)

    expected = {key for key in g if key.startswith(("reference_features", "noise_pred"))}
    assert set(found) == expected
    return {key: error(found[key].float().cpu(), g[key]) for key in expected}


def tiny_pipeline():
    """A `Pipeline`, every network small and filled with seeded weights, float32 on the CPU."""
    from diffusers import AutoencoderKL  # without which the tests of the networks alone run too
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from personalive_core.pipeline import Pipeline, decoder_of

    networks = {name: seeded(network, COMPONENTS.get(name, name)) for name, network in meta_networks(TINY).items()}
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        latent_channels=4,
    )
    vae = seeded(vae, "vae")
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,
            patch_size=14,
            projection_dim=UNET.image_embeds_width,
        )
    )
    return Pipeline(
        **networks,
        vae=vae,
        decoder=decoder_of(vae),
        image_encoder=seeded(image_encoder, "image_encoder"),
        device=torch.device("cpu"),
    )


class FindsDrawnFaces(nn.Module):
    """In place of the motion extractor: the head stands where the drawn face's colour does, far out where it does not.
    Untrained networks cannot see a face, so this one takes their part."""

    def __init__(self, real: nn.Module):
        super().__init__()
        self.config, self.get_dtype = real.config, real.get_dtype

    def forward(self, frames: Tensor) -> HeadPose:
        skin = torch.tensor([0xE8, 0xB9, 0x98]).view(1, 3, 1, 1) / 255
        mask = ((frames - skin).abs() < 0.05).all(1).float()
        line = torch.linspace(-1, 1, frames.shape[-1])
        area = mask.sum((1, 2))
        x, y = (mask.sum(1) @ line) / area.clamp(min=1), (mask.sum(2) @ line) / area.clamp(min=1)
        x = torch.where(area > 20, x, 5.0)
        count = len(frames)
        keypoints = (uniform("points", 1, 21, 3) - 0.5).expand(count, -1, -1)
        translation = torch.stack([x, y, torch.zeros(count)], dim=1)
        return HeadPose(torch.zeros(count, 3), translation, torch.full((count, 1), 0.3), keypoints)


def state_dict_shapes(network: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in network.state_dict().items()}
