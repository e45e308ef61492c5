"""Reads checkpoints safely, checks every key and shape, and gives them to networks."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import InputError
from ..networks.denoising_unet import DenoisingUNet
from ..networks.motion_encoder import MotionEncoder
from ..networks.motion_extractor import MotionExtractor
from ..networks.pose_guider import PoseGuider
from ..networks.reference_unet import ReferenceUNet

_log = logging.getLogger(__name__)

# Buffers that are made anew, whether a checkpoint has them or not.
_COMPUTED = {"pe", "idx_tensor", "num_batches_tracked"}
# Checkpoints that the authors' tool loads loosely: they may hold weights that the model has no use for.
_LOOSE = {"denoising_unet", "temporal_module", "motion_extractor"}

Network = TypeVar("Network", bound=nn.Module)


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.safetensors` file, mapped (read when used) where the format allows it, on the CPU.

    A `state_dict` around them and a `module.` before each name, which training tools add, are taken off. Code in a
    pickle is refused, never run.

    Raises:
        InputError: The file is not there, empty, truncated, no checkpoint, or has code in it.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file: run `python -m personalive_core download`.")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}).") from error
    if head.startswith(b"version https://git-"):
        raise InputError(f"{path} ({size} bytes) only points to a file kept by git-lfs: download the file itself.")
    checkpoint: Any
    try:
        if path.suffix == ".safetensors":
            checkpoint = load_file(path)
        else:
            zipped = head.startswith(b"PK")  # only this form of `torch.save` can be mapped
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise anything; PyTorch's words advise to load it unsafely
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} ({size} bytes) is a pickle that wants to use {code[1]}, which was refused and not run: "
                "delete the file and download it from its own address."
            ) from error
        raise InputError(
            f"{path} ({size} bytes) is truncated or no checkpoint (nothing in it was run): download it again."
        ) from error
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict):
        checkpoint = checkpoint["state_dict"]
    if not isinstance(checkpoint, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in checkpoint.items()
    ):
        raise InputError(f"{path} ({size} bytes) does not hold names and tensors alone: download it again.")
    prefix = "module." if all(key.startswith("module.") for key in checkpoint) else ""
    return {key.removeprefix(prefix): value for key, value in checkpoint.items()}


def checked_state_dict(network: nn.Module, paths: Sequence[Path]) -> dict[str, Tensor]:
    """What `network` (best on the meta device) loads strictly from its checkpoints, on the CPU in the files' types.

    Merges the files; leaves out buffers that are computed; starts the batch counters of batch norms at 0. Like the
    authors' tool, it passes over unknown keys of the denoising UNet, the temporal module and the motion extractor (the
    log names them).

    Args:
        network: Says which keys and shapes there are.
        paths: Its checkpoints. Of two, the second holds the temporal modules; a key in both is taken from the second.

    Raises:
        InputError: Keys are missing, unknown, of another shape or not floating point; it names them and their file.
    """
    expected = network.state_dict()
    merged, origin = {}, {}
    for path in paths:
        for key, value in _used(path, load_checkpoint(path), expected).items():
            merged[key], origin[key] = value, path
    counters = {key: torch.zeros_like(value, device="cpu") for key, value in expected.items() if is_computed(key)}
    problems = []
    for path in paths:
        missing = [
            key
            for key in expected.keys() - counters.keys() - merged.keys()
            if path == (paths[-1] if ".temporal_modules." in key else paths[0])
        ]
        mine = [key for key in merged if origin[key] == path]
        unknown = [key for key in mine if key not in expected]
        other = [
            f"{key} {tuple(merged[key].shape)} in place of {tuple(expected[key].shape)}"
            for key in mine
            if key in expected and merged[key].shape != expected[key].shape
        ]
        integer = [f"{key} {merged[key].dtype}" for key in mine if not merged[key].is_floating_point()]
        for what, keys in (
            ("lacks", sorted(missing)),
            ("has unknown keys:", unknown),
            ("has other shapes:", other),
            ("is not floating point at", integer),
        ):
            if keys:
                problems.append(f"{path} {what} {some_keys(keys)}")
    if problems:
        raise InputError(
            f"{'; '.join(problems)}: this is not the published {type(network).__name__}, download it again."
        )
    return {key: counters[key] if key in counters else merged[key] for key in expected}


def is_computed(key: str) -> bool:
    return key.rpartition(".")[2] in _COMPUTED


def _used(path: Path, checkpoint: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    used = {key: value for key, value in checkpoint.items() if not is_computed(key)}
    unknown = [key for key in used if key not in expected]
    if path.stem in _LOOSE and unknown:
        _log.info("%s: not used: %s", path, some_keys(unknown))
        used = {key: value for key, value in used.items() if key in expected}
    return used


def some_keys(keys: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(keys[:5]) + more


def load_network(network: Network, paths: Sequence[Path], dtype: torch.dtype | None = None) -> Network:
    """Gives `network`, made on the meta device, the weights of its checkpoints; on the CPU, ready for inference.

    dtype None keeps the files' own, and the weights stay mapped. InputError as in `checked_state_dict`.
    """
    state_dict = checked_state_dict(network, paths)
    if dtype is not None:
        state_dict = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_dict.items()}
    network.load_state_dict(state_dict, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def network_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The type a network's weights get when `dtype` is asked for.

    The motion extractor stays in float32: its keypoints are rounded to pixels, so small errors would show.
    """
    return torch.float32 if name == "motion_extractor" else dtype


def meta_networks(config: ModelConfig | None = None) -> dict[str, nn.Module]:
    """The five networks without weights (on the meta device), by the names in `NETWORK_FILES`."""
    config = config or ModelConfig()
    return {
        "denoising_unet": DenoisingUNet(config.unet, device="meta"),
        "reference_unet": ReferenceUNet(config.unet, device="meta"),
        "motion_encoder": MotionEncoder(config.motion_encoder, device="meta"),
        "motion_extractor": MotionExtractor(config.motion_extractor, device="meta"),
        "pose_guider": PoseGuider(config.pose_guider, device="meta"),
    }
