"""Weights that anyone can make again from their names: they exercise loading, memory and speed, and give texture,
not a likeness. Tests use them where trained weights would say no more."""

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn

COMPONENTS = {"motion_encoder": "motion_encoder/v1"}
"""Network -> its component name, where that is another: with the plain one a ReLU hides every face from the result."""


def _random(tag: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=zlib.crc32(tag.encode())))


def normal(tag: str, *shape: int) -> Tensor:
    """Standard normal float32 numbers that depend on the tag alone."""
    return torch.from_numpy(_random(tag).standard_normal(shape, dtype=np.float32))


def uniform(tag: str, *shape: int) -> Tensor:
    """float32 numbers in [0, 1) that depend on the tag alone."""
    return torch.from_numpy(_random(tag).random(shape, dtype=np.float32))


def seeded_tensor(component: str, key: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that the checkpoint `component` holds under `key`: scaled so that activations keep their size."""
    x, leaf = normal(f"{component}/{key}", *shape), key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return 1 + 0.1 * x.abs()
    if leaf == "weight" and len(shape) >= 2:
        return x / math.sqrt(math.prod(shape[1:]))
    if leaf == "weight":
        return 1 + 0.1 * x
    return 0.1 * x


def seeded_state_dict(component: str, network: nn.Module) -> dict[str, Tensor]:
    """A whole float32 checkpoint for `network` (which may live on the meta device)."""
    return {
        key: torch.zeros((), dtype=torch.long)
        if key.endswith("num_batches_tracked")
        else seeded_tensor(component, key, tuple(value.shape))
        for key, value in network.state_dict().items()
    }
