"""Devices: which one to use, in which precision, and how pictures get there."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """The device of this name; "auto" takes a CUDA GPU, then Apple's, then the CPU.

    Raises:
        InputError: the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"device {name} cannot be used here ({reason}): try --device auto or --device cpu.") from error


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of this name (fp32, fp16, bf16); "auto" is float16 on a GPU and float32 on a CPU."""
    if name == "auto":
        name = "fp32" if device.type == "cpu" else "fp16"
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


def to_device(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """x on the device, in its own type or another. From the CPU to a CUDA GPU it goes through pinned memory, so that
    the CPU need not wait."""
    x = x.to(dtype=dtype or x.dtype)
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def to_pixels(pictures: np.ndarray, device: torch.device | str) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [0, 1] on the device, as the networks take it."""
    return rearrange(to_device(torch.tensor(pictures), torch.device(device)).float() / 255, "b h w c -> b c h w")
