"""Devices: which there are, which one to use and in which precision, and how pictures get there."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .errors import InputError

AMPERE = (8, 0)  # compute capability of the oldest GPUs with bfloat16, and with the matrix products that Triton needs
_ACCUMULATION = "allow_fp16_accumulation"  # PyTorch has it from 2.7 on
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class DeviceKind(NamedTuple):
    """Devices on which the networks run in the same way.

    Args:
        name: For people.
        dtype: The fastest type that gives right results: "fp32" or "fp16".
        tried: What the networks were run on; empty where none of the kind was there to try.
    """

    name: str
    dtype: str
    tried: str = ""


AMPERE_AND_NEWER = DeviceKind("NVIDIA, compute capability 8.0 and newer (RTX 30, A100)", "fp16", "H100, H200")
VOLTA_AND_TURING = DeviceKind("NVIDIA, compute capability 7.0 to 7.5 (V100, T4, RTX 20)", "fp16")
NO_TENSOR_CORES = DeviceKind("NVIDIA GTX 16 and its relatives, where fp16 overflows", "fp32")
OLDER = DeviceKind("NVIDIA, below compute capability 7.0 (GTX 10), where fp16 is emulated or slow", "fp32")
AMD = DeviceKind("AMD, by PyTorch's ROCm", "fp16")
INTEL = DeviceKind("Intel, by PyTorch's XPU", "fp16")
APPLE = DeviceKind("Apple, by PyTorch's MPS", "fp16")
CPU = DeviceKind("CPU, where fp16 is slow", "fp32", "x86-64")
DEVICES = (AMPERE_AND_NEWER, VOLTA_AND_TURING, NO_TENSOR_CORES, OLDER, AMD, INTEL, APPLE, CPU)
"""All kinds. On those that were not tried, the networks use only operations that PyTorch documents for them."""


def device_kind(device_type: str, gpu: str = "", capability: tuple[int, int] = (0, 0), is_rocm: bool = False):
    """The kind of a device.

    Args:
        device_type: PyTorch's: "cuda", "xpu", "mps", "cpu".
        gpu: The name of a CUDA GPU.
        capability: Its compute capability.
        is_rocm: Whether "cuda" stands for AMD's.
    """
    if device_type != "cuda" or is_rocm:
        return AMD if device_type == "cuda" else {"xpu": INTEL, "mps": APPLE}.get(device_type, CPU)
    if capability >= AMPERE:
        return AMPERE_AND_NEWER
    if capability < (7, 0):
        return OLDER
    # The same chips are sold under several names.
    has_none = capability == (7, 5) and re.search(r"GTX 16|MX[45]50|CMP 30HX|\bT\d{3,4}\b", gpu)
    return NO_TENSOR_CORES if has_none else VOLTA_AND_TURING


def kind_of(device: torch.device) -> DeviceKind:
    """The kind of this device, which must be there."""
    if device.type != "cuda":
        return device_kind(device.type)
    gpu = torch.cuda.get_device_properties(device)
    return device_kind("cuda", gpu.name, (gpu.major, gpu.minor), torch.version.hip is not None)


def devices() -> list[torch.device]:
    """What PyTorch can use, the best first: GPUs of CUDA or ROCm, Intel's, Apple's, then the CPU."""
    names = []
    for name, backend in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        names += [f"{name}:{i}" for i in range(backend.device_count())] if backend.is_available() else []
    names += ["mps:0"] if torch.backends.mps.is_available() else []
    return [torch.device(name) for name in (*names, "cpu")]


def pick_device(name: str = "auto") -> torch.device:
    """The device of this name; "auto" takes a GPU if there is one: NVIDIA's or AMD's, then Intel's, then Apple's.

    Raises:
        InputError: The device is not there, or does not compute.
    """
    if name == "auto":
        name = devices()[0].type
    try:
        x = torch.zeros(1, device=name)
        x.item()  # the meta device, and a GPU that this PyTorch has no kernels for, fail only here
        return x.device
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"device {name} cannot be used here ({reason}): try --device auto or --device cpu.") from error


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type that networks compute in: of this name (fp32, fp16, bf16), or for "auto" and "fp8" that of the device's
    kind; in fp8 weights are only stored.

    Raises:
        InputError: The device has no bfloat16, or cannot hold fp8.
    """
    if name == "fp8":
        try:
            torch.zeros(1, device=device).to(torch.float8_e4m3fn).to(torch.float16)
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"device {device} cannot hold weights in fp8 ({reason}): try --dtype fp16.") from error
        name = "auto"
    kind = kind_of(device)
    if name == "bf16" and kind in (VOLTA_AND_TURING, NO_TENSOR_CORES, OLDER):
        raise InputError(f"this GPU has no bf16 ({kind.name}): choose auto or fp32.")
    return _DTYPES[kind.dtype if name == "auto" else name]


def dtype_name(dtype: torch.dtype) -> str:
    """As people read it, and whether products are accumulated in it."""
    name = str(dtype).removeprefix("torch.")
    is_fast = dtype == torch.float16 and getattr(torch.backends.cuda.matmul, _ACCUMULATION, False)
    return f"{name} accumulated in {name}" if is_fast else name


@contextmanager
def fp16_accumulation(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Accumulates half-precision products in half precision for as long as the context lasts, in the whole process:
    GeForce cards do twice as many of them a second, and they are less exact.

    Raises:
        InputError: It would change nothing on this device or in this type, or PyTorch is too old.
    """
    matmul = torch.backends.cuda.matmul
    if device.type != "cuda" or torch.version.hip is not None or dtype != torch.float16:
        raise InputError(
            f"--fast is for fp16 on an NVIDIA GPU, and this is {dtype_name(dtype)} on {device}: leave it out."
        )
    if not hasattr(matmul, _ACCUMULATION):
        raise InputError(
            f"--fast needs PyTorch 2.7 or newer, and this is {torch.__version__}: update it, or leave it out."
        )
    before = getattr(matmul, _ACCUMULATION)
    setattr(matmul, _ACCUMULATION, True)
    try:
        yield
    finally:
        setattr(matmul, _ACCUMULATION, before)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Computes float32 products and convolutions on NVIDIA GPUs with all 24 bits of precision for as long as the
    context lasts, in the whole process. By default PyTorch has convolutions round their inputs to 11 bits (TF32)."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    switches: list[tuple[Any, str, Any]] = [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
    if hasattr(cudnn, "conv"):  # PyTorch 2.9 and newer, which cannot read the older switches once these were used
        switches = [(cudnn.conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
    before = [getattr(switch, name) for switch, name, _ in switches]
    try:
        for switch, name, off in switches:
            setattr(switch, name, off)
        yield
    finally:
        for (switch, name, _), value in zip(switches, before, strict=True):
            setattr(switch, name, value)


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


def resize(x: Tensor, size: tuple[int, int], mode: str, **options: Any) -> Tensor:
    """PyTorch's `interpolate`, by the CPU on devices that lack some of it: Apple's have "area" only for sizes that
    divide, and no antialias.

    Args:
        x: (B, C, H, W).
        size: Height and width of the result.
        mode: As PyTorch names it, like the options.
    """
    if x.device.type in ("cuda", "cpu"):
        return F.interpolate(x, size=size, mode=mode, **options)
    return F.interpolate(x.cpu(), size=size, mode=mode, **options).to(x.device)
