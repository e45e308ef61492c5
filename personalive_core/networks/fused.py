"""Fused layers: Triton kernels where they can run, plain PyTorch everywhere else.

They run on NVIDIA GPUs from Ampere on, outside of training. Both ways give the same result but for rounding.
"""

import logging
import sys
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..device import AMPERE
from .attention import Attention

log = logging.getLogger(__name__)

COMPILING = "compiling the kernels for this graphics card, the first time only: about 20 s"
say_compiling: Callable[[str], None] = log.info
"""Is told `COMPILING` at each kernel that Triton has to compile. Programs put what shows it in its place; it must not
raise."""


@lru_cache
def _load_kernels(device: torch.device) -> tuple[ModuleType | None, str]:
    """The kernels, tried out once on this device; or None and the lasting reason. An out-of-memory error is momentary,
    so it is raised."""
    if torch.version.cuda is None:
        return None, "they need PyTorch for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < AMPERE:
        return None, "they need compute capability 8.0, and this GPU has {}.{}".format(*capability)
    try:
        from . import kernels

        kernels.on_compile(lambda: say_compiling(COMPILING))
        kernels.geglu(torch.zeros(1, 32, device=device))
    except Exception as error:  # for a missing compiler or driver Triton raises many types
        if isinstance(error, MemoryError) or "out of memory" in str(error):  # PyTorch's, Triton's and the driver's
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            package = "triton-windows" if sys.platform == "win32" else "triton"
            reason = f"install Triton: {sys.executable} -m pip install {package}"
        log.info("Triton kernels not in use (%s): plain PyTorch gives the same pictures, more slowly", reason)
        return None, reason
    return kernels, ""


def kernels_status(device: torch.device) -> str:
    """Whether the Triton kernels are in use on a device, and if not, why and what helps; tries them if need be.

    Returns:
        "in use", or "not in use (reason)".
    """
    if device.type != "cuda":
        return "not in use (they need an NVIDIA GPU)"
    try:
        kernels, reason = _load_kernels(device)
    except (MemoryError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        return f"not tried ({reason}): free memory on the GPU first"
    return "in use" if kernels else f"not in use ({reason})"


def _kernels_for(x: Tensor) -> ModuleType | None:
    if not x.is_cuda or torch.is_grad_enabled():  # the kernels have no gradients
        return None
    return _load_kernels(x.device)[0]


def conv2d(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution that may leave its bias to the next layer, which adds it at no cost.

    Args:
        x: (N, C, H, W).

    Returns:
        (N, C', H', W'), and the bias (C',) if it is still to be added.
    """
    if _kernels_for(x) and (weight := _usable_weight(conv, x)) is not None:
        return F.conv2d(x, weight, None, conv.stride, conv.padding), conv.bias
    return conv(x), None


def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of tokens (N, tokens, C) -> (N, tokens, C'), as the matrix product that it is."""
    if (weight := _usable_weight(conv, x)) is not None:
        return F.linear(x, weight.flatten(1), conv.bias)
    return conv(x.mT[..., None])[..., 0].mT


def _usable_weight(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """A layer's weight, or None where the layer itself must be called: a host may keep its weights on another device or
    in another type. Taken once, because a weight that is stored in fp8 is cast each time."""
    weight = layer.weight
    return weight if weight.device == x.device and weight.dtype == x.dtype else None


def add(x: Tensor, delta: Tensor, bias: Tensor | None) -> Tensor:
    """x and delta (N, C, H, W), bias (C,) -> x + delta + bias."""
    if bias is None:
        return x + delta
    if kernels := _kernels_for(x):
        return kernels.add(x, delta, bias)
    return x + delta + bias[:, None, None]


def group_norm(
    norm: nn.GroupNorm, x: Tensor, *, silu: bool = False, bias: Tensor | None = None, time_bias: Tensor | None = None
) -> Tensor:
    """Group norm of x + bias + time_bias, then SiLU if asked.

    Args:
        x: (N, C, H, W).
        bias: (C,), the one that `conv2d` left out.
        time_bias: (N, C), the time embedding, projected.
    """
    kernels = _kernels_for(x)
    if kernels and norm.num_groups & (norm.num_groups - 1) == 0:
        return kernels.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu, bias, time_bias)
    if bias is not None:
        x = x + bias[:, None, None]
    if time_bias is not None:
        x = x + time_bias[:, :, None, None]
    y = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(y) if silu else y


def add_layer_norm(
    norm: nn.LayerNorm,
    h: Tensor,
    delta: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A residual sum and its layer norm.

    Args:
        h: (N, tokens, width).
        delta: (N, tokens, width), added to h.
        bias: (1 or N, 1, width), added to every token of h.
        positions: (frames, width), position encodings added to the norm; N = batch x frames.

    Returns:
        h + delta + bias, and its norm + positions; both (N, tokens, width).
    """
    kernels = _kernels_for(h)
    if kernels and (bias is None or len(bias) == 1):
        return kernels.add_layer_norm(h, delta, bias, norm.weight, norm.bias, norm.eps, positions)
    if delta is not None:
        h = h + delta
    if bias is not None:
        h = h + bias
    y = F.layer_norm(h, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    if positions is not None:
        y = (y.unflatten(0, (-1, len(positions))) + positions[:, None]).flatten(0, 1)
    return h, y


def geglu(x: Tensor) -> Tensor:
    """x (..., 2 x width) -> first half x GELU(second half)."""
    if kernels := _kernels_for(x):
        return kernels.geglu(x)
    x, gate = x.chunk(2, dim=-1)
    return x * F.gelu(gate)


def concat_reference(own: Tensor, reference: Tensor) -> Tensor:
    """own (N, tokens, width), reference (1 or N, R, width) -> (N, tokens + R, width); keys or values."""
    kernels = _kernels_for(own)
    if kernels and len(reference) == 1:
        return kernels.concat_reference(own, reference)
    return torch.cat([own, reference.expand(len(own), -1, -1)], 1)


def upsample_conv2d(conv: nn.Conv2d, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarges by nearest pixel, then convolves 3x3.

    An output pixel sees only 2x2 different input pixels. So the kernels sum the weights that fall on the same one: four
    2x2 convolutions, one for each corner of a doubled pixel, with 4/9 of the work.

    Args:
        x: (N, C, H, W).
        size: (height, width) of the result: twice that of x, or one less.
    """
    kernels = _kernels_for(x)
    is_doubled = size == (2 * x.shape[-2], 2 * x.shape[-1])
    if kernels and is_doubled and (weight := _usable_weight(conv, x)) is not None:
        y = F.conv2d(x, kernels.fold_corners(weight), padding=1)
        return kernels.interleave(y, conv.bias)
    return conv(F.interpolate(x, size=size, mode="nearest"))


def temporal_attention(q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int, attention: Attention) -> Tensor:
    """Each pixel attends to itself in the other frames: q, k, v (batch x frames, pixels, width) -> the same shape."""
    kernels = _kernels_for(q)
    if kernels and frames == 16 and getattr(attention, "may_fuse", True):
        return kernels.temporal_attention(q, k, v, frames, heads)
    batch = len(q) // frames
    q, k, v = (rearrange(x, "(b f) p (h d) -> (b p) h f d", f=frames, h=heads) for x in (q, k, v))
    return rearrange(attention(q, k, v), "(b p) h f d -> (b f) p (h d)", b=batch)


def short_cross_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention) -> Tensor:
    """Attention to few keys, fused for 32: q (N, tokens, width), k and v (N, S, width) -> (N, tokens, width)."""
    kernels = _kernels_for(q)
    if kernels and k.shape[1] == 32 and getattr(attention, "may_fuse", True):
        return kernels.short_cross_attention(q, k, v, heads)
    q, k, v = (rearrange(x, "n t (h d) -> n h t d", h=heads) for x in (q, k, v))
    return rearrange(attention(q, k, v), "n h t d -> n t (h d)")
