"""Load PersonaLive Model: find or fetch the weights, check them, hand the networks to the host's memory management."""

import os
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import nn

from ..personalive_core import hub
from ..personalive_core.config import ModelConfig
from ..personalive_core.errors import InputError
from ..personalive_core.networks.denoising_unet import DenoisingUNet
from ..personalive_core.networks.motion_encoder import MotionEncoder
from ..personalive_core.networks.motion_extractor import MotionExtractor
from ..personalive_core.networks.pose_guider import PoseGuider
from ..personalive_core.networks.reference_unet import ReferenceUNet
from ..personalive_core.weights import CHECKPOINTS, checked_state_dict, find_weights, meta_networks
from . import compat

OFFICIAL = "official"
FOLDER = "personalive"

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER), is_default=True)
folder_paths.folder_names_and_paths[FOLDER][1].update({".pth", ".safetensors"})


@dataclass(frozen=True)
class PersonaLiveModel:
    """The five networks, each behind a patcher of the host (which holds patchers only weakly)."""

    patchers: dict[str, object]
    config: ModelConfig
    dtype: torch.dtype  # of the UNets
    identity: str  # tells models apart: a reference belongs to the model that made it

    def get_models(self) -> list:
        return list(self.patchers.values())

    @property
    def device(self) -> torch.device:
        return self.patchers["denoising_unet"].load_device

    def load(self, *names: str, memory: int) -> list[nn.Module]:
        """Bring networks to the device with `memory` bytes to spare for activations; as much of them as fits."""
        whole = "motion_encoder" in names and not compat.has_batch_norm()
        comfy.model_management.load_models_gpu(
            [self.patchers[name] for name in names], memory_required=memory, force_full_load=whole
        )
        return [self.patchers[name].model for name in names]


ModelType = io.Custom("PERSONALIVE_MODEL")


def weight_sets() -> dict[str, Path]:
    """Name -> folder of each set, whole or not: "official" wherever it is, and folders under models/personalive."""
    bases = [Path(base) for base in folder_paths.get_folder_paths(FOLDER)]
    found = [base for base in (*bases, Path(folder_paths.models_dir)) if _holds_weights(base)]
    sets = {OFFICIAL: found[0] if found else bases[0]}
    for base in bases:
        if base.is_dir():
            folders = (entry for entry in sorted(base.iterdir()) if entry.is_dir() and entry.name != "personalive")
            sets |= {folder.name: folder for folder in folders if folder.name not in sets and _holds_weights(folder)}
    return sets


def _holds_weights(folder: Path) -> bool:
    files = find_weights(folder)
    return any(getattr(files, name) for name in CHECKPOINTS)


def _missing(folder: Path) -> list[hub.HubFile]:
    return [file for file in find_weights(folder).missing if file.part in CHECKPOINTS]


def _download(folder: Path) -> None:
    bar = comfy.utils.ProgressBar(1)
    hub.download(folder, _missing(folder), progress=lambda _, done, total: bar.update_absolute(done, total))


def load_model(name: str, precision: str, download: bool) -> PersonaLiveModel:
    folder = weight_sets().get(name)
    if folder is None:
        raise InputError(f"the weights {name!r} are not there any more: choose another set.")
    if name == OFFICIAL and download and _missing(folder):
        _download(folder)
    missing = _missing(folder)
    if missing and name != OFFICIAL:
        lacking = ", ".join(Path(file.target).name for file in missing)
        raise InputError(f"the weights {name!r} lack {lacking}: put what is missing beside the other files.")
    if missing:
        raise InputError(
            f"{len(missing)} of the official weight files are not in {folder} (about "
            f"{sum(file.size for file in missing) / 1e9:.1f} GB): switch on 'download', or fetch by hand:\n"
            f"{hub.by_hand(missing, folder)}"
        )

    files = find_weights(folder)
    config = files.config
    patchers = {}
    for network, expected in meta_networks(config).items():
        parameters = sum(value.numel() for value in expected.parameters())
        # The motion extractor's keypoints are rounded to pixels, so it keeps full precision.
        dtype = torch.float32 if network == "motion_extractor" else compat.float_dtype(precision, parameters)
        weights = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in checked_state_dict(expected, files.paths(network)).items()
        }
        patchers[network] = compat.make_patcher(_build(network, config, dtype), weights)
    dtype = patchers["denoising_unet"].model.get_dtype()
    return PersonaLiveModel(patchers, config, dtype, f"{_fingerprint(name)} {precision}")


def _build(name: str, config: ModelConfig, dtype: torch.dtype) -> nn.Module:
    layers = dict(dtype=dtype, device=comfy.model_management.unet_offload_device(), operations=comfy.ops.manual_cast)
    if name == "denoising_unet":
        return DenoisingUNet(config.unet, attention=compat.attention, **layers)
    if name == "reference_unet":
        return ReferenceUNet(config.unet, attention=compat.attention, **layers)
    if name == "motion_encoder":
        return MotionEncoder(config.motion_encoder, attention=compat.attention, **layers)
    if name == "motion_extractor":
        return MotionExtractor(config.motion_extractor, **layers)
    return PoseGuider(config.pose_guider, **layers)


def _fingerprint(name: str) -> str:
    files = find_weights(weight_sets().get(name, Path()))
    paths = filter(None, (getattr(files, checkpoint) for checkpoint in CHECKPOINTS))
    return " ".join(f"{path} {path.stat().st_mtime_ns}" for path in paths)


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveLoadModel",
            display_name="Load PersonaLive Model",
            category="PersonaLive",
            description="Loads the networks of PersonaLive: the weights in models/personalive, or the official ones.",
            inputs=[
                io.Combo.Input(
                    "weights",
                    options=list(weight_sets()),
                    default=OFFICIAL,
                    tooltip="The set of weights: 'official', or a folder under models/personalive.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "fp16", "bf16", "fp32"],
                    default="auto",
                    tooltip="Number format of the networks. 'auto' is what ComfyUI chooses for your card.",
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    tooltip="Fetch the official weights (10.5 GB) from the Hugging Face hub if they are missing.",
                ),
            ],
            outputs=[ModelType.Output(display_name="model")],
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str, precision: str, download: bool) -> str:
        return _fingerprint(weights)

    @classmethod
    def execute(cls, weights: str, precision: str, download: bool) -> io.NodeOutput:
        return io.NodeOutput(load_model(weights, precision, download))
