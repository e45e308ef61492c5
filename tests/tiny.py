"""What the tests share: goldens, the error measure, and networks small enough for a test."""

import json
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from personalive_core.config import UNetConfig
from personalive_core.networks.denoising_unet import DenoisingUNet
from personalive_core.networks.reference_unet import ReferenceUNet
from personalive_core.seeded import seeded_state_dict

ASSETS = Path(__file__).parent / "assets"
NO_HOST = "NO COMFYUI FOUND, SO THE NODES WERE NOT TESTED: give the folder of one, 0.3.64 or newer, in COMFYUI_PATH"
UNET = UNetConfig(channels=(32, 64, 128, 128), image_embeds_width=24)


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
def unets(config: UNetConfig = UNET) -> tuple[ReferenceUNet, DenoisingUNet]:
    """Seeded, shared between tests: leave them as they are."""
    return (
        seeded(ReferenceUNet(config, device="meta"), "reference_unet"),
        seeded(DenoisingUNet(config, device="meta"), "denoising_unet"),
    )


def state_dict_shapes(network: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in network.state_dict().items()}
