"""Makes a smaller set of weights: half precision, without what the model does not use."""

import shutil
from collections.abc import Set
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..config import ModelConfig
from ..errors import InputError
from ..tensor_file import safetensors_header, write_safetensors
from . import hub
from .find import NETWORK_FILES, SIZES_FILE, WeightFiles
from .load import checked_weights, meta_networks, network_dtype, open_checkpoint


def convert(source: WeightFiles, target: Path, progress: hub.Progress | None = None) -> None:
    """Writes the six checkpoints to `target` as `<name>.safetensors`, checked, without what the model does not use.

    In float16, or float32 where `network_dtype` says so. One file in memory at a time; a file gets its name once it is
    whole, and one that is there, whole and no older than its source stays. InputError: a file is missing, does not fit
    the model or float16, or the disk is too small. An exception from `progress` leaves no half file.
    """
    networks = meta_networks(source.config)
    todo = []
    for network, names in NETWORK_FILES.items():
        paths = source.paths(network)
        used = checked_weights(networks[network], paths).keys()
        for name, path in zip(names, paths, strict=True):
            weights = {key: weight for key, weight in open_checkpoint(path).items() if key in used}
            if not _is_converted(target / f"{name}.safetensors", path, weights.keys()):
                todo.append((name, path, weights))
    total = sum(
        weight.shape.numel() * network_dtype(name, torch.float16).itemsize
        for name, _, weights in todo
        for weight in weights.values()
    )
    try:
        target.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target).free
        if total > free:
            raise InputError(
                f"{target} has {free / 1e9:.2f} GB free and the converted files need {total / 1e9:.2f} GB: "
                "free some space or choose another folder."
            )
        if source.config != ModelConfig():
            source.config.write(target / SIZES_FILE)
        done = 0
        for name, path, weights in todo:
            cast, dtype = {}, network_dtype(name, torch.float16)
            for key, weight in weights.items():
                cast[key] = _cast(path, key, weight.read(), dtype)
                done += cast[key].nbytes
                if progress:
                    progress(f"{name}.safetensors", done, total)
            _write(cast, target / f"{name}.safetensors", path.name)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target} cannot be written ({error}): choose another folder.") from error


def _is_converted(path: Path, source: Path, keys: Set[str]) -> bool:
    """Whether the file is there, whole, and no older than its source."""
    try:
        return path.stat().st_mtime_ns >= source.stat().st_mtime_ns and safetensors_header(path)[0].keys() == keys
    except (OSError, ValueError, RecursionError):
        return False


def _cast(path: Path, key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    limit = torch.finfo(dtype).max
    low, high = value.aminmax()
    if not (-limit <= low and high <= limit):  # also for NaN
        raise InputError(
            f"{key} in {path} goes from {low:.3g} to {high:.3g}, which {dtype} cannot hold: use the file as it is, "
            "without converting."
        )
    return value.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _write(state_dict: dict[str, Tensor], path: Path, source: str) -> None:
    partial = path.with_name(f"{path.name}.part")
    try:
        write_safetensors(state_dict, partial, {"format": "pt", "source": source})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
