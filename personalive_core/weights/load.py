"""Reads checkpoints safely, checks every key and shape, and gives them to networks."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import InputError
from ..limits import SHARED_BYTES
from ..networks.denoising_unet import DenoisingUNet
from ..networks.motion_encoder import MotionEncoder
from ..networks.motion_extractor import MotionExtractor
from ..networks.pose_guider import PoseGuider
from ..networks.reference_unet import ReferenceUNet
from ..tensor_file import read_at, safetensors_header
from .pickled import StoredTensor, UnknownCode, reach, read_pickled

_log = logging.getLogger(__name__)

# Buffers that are made anew, whether a checkpoint has them or not.
_COMPUTED = {"pe", "idx_tensor", "num_batches_tracked"}
# Checkpoints that the authors' tool loads loosely: they may hold weights that the model has no use for.
_LOOSE = {"denoising_unet", "temporal_module", "motion_extractor"}

Network = TypeVar("Network", bound=nn.Module)


class StoredWeight:
    """A tensor in a checkpoint: its shape and type are known, its numbers are read by `read`."""

    def __init__(self, path: Path, where: StoredTensor):
        self.path, self.where = path, where
        self.shape, self.dtype = torch.Size(where.shape), where.dtype
        self.nbytes = self.shape.numel() * self.dtype.itemsize

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """On the CPU, in this type or its own; InputError where the file has become shorter."""
        where = self.where
        try:
            data = read_at(self.path, where.offset, reach(where.shape, where.stride), where.dtype, dtype or where.dtype)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} was changed while it was read ({error}): try again.") from error
        return data.as_strided(where.shape, where.stride)


def open_checkpoint(path: Path) -> dict[str, StoredWeight]:
    """The weights in a `.pth` or `.safetensors` file, whose numbers are read one by one: the file is never mapped.

    A `state_dict` around them and a `module.` before each name, which training tools add, are taken off. Code in a
    pickle is refused, never run.

    Raises:
        InputError: The file is not there, empty, truncated, no checkpoint, or has code in it.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path} is not a file: run `python -m personalive_core download`.")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}).") from error
    if head.startswith(b"version https://git-"):
        raise InputError(f"{path} ({size} bytes) only points to a file kept by git-lfs: download the file itself.")
    if head.startswith(b"\x80"):
        raise InputError(
            f"{path} ({size} bytes) is a bare pickle, as PyTorch before 1.6 wrote it, and was not run: "
            "save it with a newer PyTorch, or download the published file."
        )
    checkpoint: Any
    try:
        if path.suffix == ".safetensors":
            header, _ = safetensors_header(path)
            checkpoint = {
                name: StoredTensor(dtype, tuple(shape), torch.empty(shape, device="meta").stride(), offset)
                for name, (dtype, shape, offset) in header.items()
            }
        else:
            checkpoint = read_pickled(path)
    except UnknownCode as error:
        raise InputError(
            f"{path} ({size} bytes) is a pickle that wants to use {error}, which was refused and not run: delete the "
            "file and download it from its own address."
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"{path} ({size} bytes) is truncated or no checkpoint (nothing in it was run): download it again."
        ) from error
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict):
        checkpoint = checkpoint["state_dict"]
    if not isinstance(checkpoint, dict) or not all(
        isinstance(key, str) and isinstance(value, StoredTensor) for key, value in checkpoint.items()
    ):
        raise InputError(f"{path} ({size} bytes) does not hold names and tensors alone: download it again.")
    prefix = "module." if all(key.startswith("module.") for key in checkpoint) else ""
    weights = {key.removeprefix(prefix): StoredWeight(path, value) for key, value in checkpoint.items()}
    total = sum(weight.nbytes for weight in weights.values())
    if total > max(2 * size, SHARED_BYTES):  # some weights are stored once and used twice
        raise InputError(f"{path} has {size} bytes and claims {total} bytes of weights: download it again.")
    return weights


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, in memory; InputError as in `open_checkpoint`."""
    return {key: weight.read() for key, weight in open_checkpoint(path).items()}


def checked_state_dict(
    network: nn.Module, paths: Sequence[Path], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """What `network` (best on the meta device) loads strictly from its checkpoints, on the CPU.

    Merges the files; leaves out buffers that are computed; starts the batch counters of batch norms at 0. Like the
    authors' tool, it passes over unknown keys of the denoising UNet, the temporal module and the motion extractor (the
    log names them).

    Args:
        network: Says which keys and shapes there are.
        paths: Its checkpoints. Of two, the second holds the temporal modules; a key in both is taken from the second.
        dtype: Of the result, to which each tensor is converted as it is read; None keeps the files' own.

    Raises:
        InputError: Keys are missing, unknown, of another shape or not floating point; it names them and their file.
    """
    expected, merged = network.state_dict(), checked_weights(network, paths)
    counters = {key: torch.zeros_like(value, device="cpu") for key, value in expected.items() if is_computed(key)}
    read = {key: weight.read(dtype) for key, weight in merged.items()}
    return {key: counters[key] if key in counters else read[key] for key in expected}


def checked_weights(network: nn.Module, paths: Sequence[Path]) -> dict[str, StoredWeight]:
    """The weights for `checked_state_dict`, before they are read; arguments and InputError as there."""
    expected = network.state_dict()
    merged = dict[str, StoredWeight]()
    for path in paths:
        merged |= _used(path, open_checkpoint(path), expected)
    computed = {key for key in expected if is_computed(key)}
    problems = []
    for path in paths:
        missing = [
            key
            for key in expected.keys() - computed - merged.keys()
            if path == (paths[-1] if ".temporal_modules." in key else paths[0])
        ]
        mine = [key for key in merged if merged[key].path == path]
        unknown = [key for key in mine if key not in expected]
        other = [
            f"{key} {tuple(merged[key].shape)} in place of {tuple(expected[key].shape)}"
            for key in mine
            if key in expected and merged[key].shape != expected[key].shape
        ]
        integer = [f"{key} {merged[key].dtype}" for key in mine if not merged[key].dtype.is_floating_point]
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
    return merged


def is_computed(key: str) -> bool:
    return key.rpartition(".")[2] in _COMPUTED


def _used(path: Path, checkpoint: dict[str, StoredWeight], expected: dict[str, Tensor]) -> dict[str, StoredWeight]:
    used = {key: value for key, value in checkpoint.items() if not is_computed(key)}
    unknown = [key for key in used if key not in expected]
    if path.stem in _LOOSE and unknown:
        _log.info("%s: not used: %s", path, some_keys(unknown))
        used = {key: value for key, value in used.items() if key in expected}
    return used


def some_keys(keys: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(key[:100] for key in keys[:5]) + more


def load_network(network: Network, paths: Sequence[Path], dtype: torch.dtype | None = None) -> Network:
    """Gives `network`, made on the meta device, the weights of its checkpoints; on the CPU, ready for inference.

    dtype None keeps the files' own. InputError as in `checked_state_dict`.
    """
    network.load_state_dict(checked_state_dict(network, paths, dtype), strict=True, assign=True)
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
