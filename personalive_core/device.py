"""Devices: which one to use, in which precision, and how pictures get there."""

import re

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """The device of this name; "auto" takes a CUDA GPU, then Apple's, then the CPU.

    Raises:
        InputError: the device is not there, or does not compute.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        x = torch.zeros(1, device=name)
        x.item()  # the meta device, and a GPU that this PyTorch has no kernels for, fail only here
        return x.device
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"device {name} cannot be used here ({reason}): try --device auto or --device cpu.") from error


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of this name (fp32, fp16, bf16); "auto" is what `auto_dtype` says of the device."""
    if name != "auto":
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
    if device.type != "cuda":
        return auto_dtype(device.type)
    gpu = torch.cuda.get_device_properties(device)
    return auto_dtype("cuda", gpu.name, (gpu.major, gpu.minor))


def auto_dtype(device_type: str, gpu: str = "", capability: tuple[int, int] = (0, 0)) -> torch.dtype:
    """The fastest type that gives right results.

    Args:
        device_type: "cuda", "mps", "cpu", ...
        gpu: its name, of a CUDA GPU.
        capability: its compute capability.
    """
    # CPU                             float32: float16 is slower
    # capability below 7.0            float32: float16 is emulated or many times slower
    # 7.5 without tensor cores        float32: float16 overflows (GTX 16, and the same chips under other names)
    # other GPUs, Apple's             float16
    if device_type == "cpu":
        return torch.float32
    overflows = capability == (7, 5) and re.search(r"GTX 16|MX[45]50|CMP 30HX|\bT\d{3,4}\b", gpu)
    if device_type == "cuda" and (capability < (7, 0) or overflows):
        return torch.float32
    return torch.float16


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
