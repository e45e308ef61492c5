"""Decodes latents with the weights of the host's VAE and the core's faster decoder."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from weakref import WeakKeyDictionary

import comfy.ldm.modules.diffusionmodules.model as ldm
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.taesd import taesd
from torch import Tensor, nn

from ..personalive_core import memory
from ..personalive_core.config import LATENT_SCALE
from ..personalive_core.device import to_device
from ..personalive_core.errors import InputError
from ..personalive_core.networks.vae_decoder import VAEDecoder
from ..personalive_core.weights import hub
from ..personalive_core.weights.load import some_keys
from . import compat

APPROXIMATE = "vae_approx"  # the host's folder of small decoders
TAESD = hub.HubFile("small decoder", hub.TAESD, "taesd_decoder.safetensors", "taesd_decoder.safetensors", 4_900_000)
BATCH = 2  # frames; larger batches take more memory and are hardly faster

_patchers: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()


def decoded(vae, latents: Tensor) -> Iterator[Tensor]:
    """Decodes a batch at a time. A VAE that is not built like Stable Diffusion's, such as TAESD, uses its own decoder.

    Args:
        vae: The host's VAE.
        latents: (F, 4, h, w), unscaled.

    Yields:
        Pictures (up to 2, H, W, 3) in [0, 1], in order, on the device that decoded them.
    """
    patcher = patcher_of(vae)
    if patcher is not None:
        height, width = latents.shape[-2:]
        compat.load([patcher], memory.decoding(width, height, vae.vae_dtype))
    yield from decoded_as_loaded(vae, latents)


def decoded_as_loaded(vae, latents: Tensor) -> Iterator[Tensor]:
    """As `decoded`, with the core's decoder where it was loaded last."""
    patcher = patcher_of(vae)
    if patcher is None:
        for chunk in latents.split(BATCH):
            yield vae.decode(chunk)
        return
    for chunk in latents.split(BATCH):
        pictures = patcher.model(to_device(chunk, patcher.load_device, vae.vae_dtype)).float() / 2 + 0.5
        yield pictures.clamp(0, 1).movedim(1, -1)


def patcher_of(vae):
    """The patcher of the core's decoder with this VAE's weights, made once; None for a VAE of another architecture."""
    decoder = getattr(vae.first_stage_model, "decoder", None)
    if type(decoder) is not ldm.Decoder:
        return None
    if decoder not in _patchers:
        _patchers[decoder] = _make_patcher(vae, decoder)
    return _patchers[decoder]


def small_decoder():
    """A VAE of the host that can only decode, with TAESD of the host's own folder for it.

    Raises:
        InputError: It is not there, or not what it should be.
    """
    names = _taesd_files()
    if not names:
        raise InputError(
            f"the small decoder is not in models/{APPROXIMATE}: press 'Download TAESD' on Assemble Video, or put "
            f"{TAESD.address} there."
        )
    path = folder_paths.get_full_path_or_raise(APPROXIMATE, names[0])
    return _load_taesd(path, os.path.getmtime(path))


def missing_taesd() -> tuple[Path, list[hub.HubFile]]:
    """The folder for it, and the file that is not there."""
    return Path(folder_paths.get_folder_paths(APPROXIMATE)[0]), [] if _taesd_files() else [TAESD]


def _taesd_files() -> list[str]:
    return [name for name in folder_paths.get_filename_list(APPROXIMATE) if name.startswith("taesd_decoder.")]


@lru_cache(maxsize=1)
def _load_taesd(path: str, _changed: float):
    parts = {"taesd_encoder": taesd.Encoder(), "taesd_decoder": taesd.Decoder()}
    # The encoder is never used, and the host complains of missing weights.
    state = {
        f"{part}.{key}": torch.zeros_like(x) for part, layers in parts.items() for key, x in layers.state_dict().items()
    }
    expected = {key: x.shape for key, x in parts["taesd_decoder"].state_dict().items()}
    try:
        weights = comfy.utils.load_torch_file(path, safe_load=True)
        found = {key: x.shape for key, x in weights.items()}
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{path} is damaged or no checkpoint: download {TAESD.address} again.") from error
    if found != expected:
        wrong = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        raise InputError(
            f"{path} is not TAESD (missing, unknown or of another shape: {some_keys(wrong)}): download {TAESD.address}."
        )
    state |= {f"taesd_decoder.{key}": x for key, x in weights.items()}
    return comfy.sd.VAE(sd=state | {"vae_scale": torch.tensor(LATENT_SCALE), "vae_shift": torch.tensor(0.0)})


def _make_patcher(vae, decoder: nn.Module):
    weights = _renamed(decoder.state_dict(), vae.first_stage_model.post_quant_conv.state_dict())
    levels = len(decoder.up)
    channels = tuple(weights[f"up_blocks.{levels - 1 - i}.resnets.0.conv1.weight"].shape[0] for i in range(levels))
    network = VAEDecoder(
        channels,
        decoder.num_res_blocks,
        weights["post_quant_conv.weight"].shape[0],
        dtype=vae.vae_dtype,
        device=comfy.model_management.vae_offload_device(),
        operations=comfy.ops.disable_weight_init,
    )
    # With dynamic VRAM the host keeps weights in their file's type, and its linear layers would use them so.
    network.load_state_dict({key: value.to(vae.vae_dtype) for key, value in weights.items()})
    return compat.make_patcher(network)


def _renamed(decoder: dict[str, Tensor], post_quant_conv: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames weights from Stable Diffusion's own names to diffusers', which the core uses."""
    levels = 1 + max(int(key.split(".")[1]) for key in decoder if key.startswith("up."))
    renamed = {f"post_quant_conv.{key}": value for key, value in post_quant_conv.items()}
    for key, value in decoder.items():
        if key.startswith("mid.attn_1."):
            value = value.flatten(1) if value.ndim == 4 else value  # 1x1 convolutions there
            for old, new in (
                ("norm", "group_norm"),
                ("q", "to_q"),
                ("k", "to_k"),
                ("v", "to_v"),
                ("proj_out", "to_out.0"),
            ):
                key = key.replace(f"mid.attn_1.{old}.", f"mid_block.attentions.0.{new}.")
        elif key.startswith("up."):
            _, level, rest = key.split(".", 2)
            rest = rest.replace("block.", "resnets.").replace("nin_shortcut", "conv_shortcut")
            rest = rest.replace("upsample.", "upsamplers.0.")
            key = f"up_blocks.{levels - 1 - int(level)}.{rest}"
        for old, new in (("mid.block_1.", "mid_block.resnets.0."), ("mid.block_2.", "mid_block.resnets.1.")):
            key = key.replace(old, new)
        renamed[key.replace("norm_out.", "conv_norm_out.") if key.startswith("norm_out.") else key] = value
    return renamed
