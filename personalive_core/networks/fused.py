"""What the networks do between their products, fused where Triton can run, plain PyTorch everywhere else.

Each function holds its plain twin and asks `kernels` for the fast one on a CUDA GPU, outside of training.
"""

import logging
from functools import lru_cache
from types import ModuleType

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention

log = logging.getLogger(__name__)

AMPERE = (8, 0)  # the oldest NVIDIA generation that Triton's matrix products support


@lru_cache
def _kernels(device: torch.device) -> ModuleType | None:
    """The module of kernels if they run on this device; otherwise says once why not."""
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < AMPERE:
        return None
    try:
        from . import kernels

        kernels.geglu(torch.zeros(1, 32, device=device))
    except Exception as error:  # Triton needs a compiler on the machine and says so in many ways
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        log.info("without Triton kernels (%s): plain PyTorch, the same pictures, slower", reason)
        return None
    return kernels


def _kernels_for(x: Tensor) -> ModuleType | None:
    if not x.is_cuda or torch.is_grad_enabled():  # a training step needs the plain twins' gradients
        return None
    return _kernels(x.device)


def conv2d(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """x (N, C, H, W) -> what `conv` makes of it and, if that lacks its bias, the bias (C',), which the next step can
    add at no cost."""
    if _kernels_for(x) and _is_ready(conv, x):
        return F.conv2d(x, conv.weight, None, conv.stride, conv.padding), conv.bias
    return conv(x), None


def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """x (N, tokens, C) -> (N, tokens, C'): a 1x1 convolution as the product that it is."""
    if _is_ready(conv, x):
        return F.linear(x, conv.weight.flatten(1), conv.bias)
    return conv(x.mT[..., None])[..., 0].mT


def _is_ready(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer's weights can be used as they stand; a host may keep them elsewhere, and then its layer knows."""
    return layer.weight.device == x.device and layer.weight.dtype == x.dtype


def add(x: Tensor, delta: Tensor, row: Tensor | None) -> Tensor:
    """x and delta (N, C, H, W), row (C,) -> x + delta + row."""
    if row is None:
        return x + delta
    if fast := _kernels_for(x):
        return fast.add(x, delta, row)
    return x + delta + row[:, None, None]


def group_norm(
    norm: nn.GroupNorm, x: Tensor, *, silu: bool = False, row: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """x (N, C, H, W), after adding `row` (C,) and `shift` (N, C) -> normalised (N, C, H, W), through SiLU if asked."""
    fast = _kernels_for(x)
    if fast and norm.num_groups & (norm.num_groups - 1) == 0:
        return fast.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu, row, shift)
    if row is not None:
        x = x + row[:, None, None]
    if shift is not None:
        x = x + shift[:, :, None, None]
    y = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(y) if silu else y


def add_layer_norm(
    norm: nn.LayerNorm,
    h: Tensor,
    delta: Tensor | None = None,
    *,
    row: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h (N, tokens, width) -> h + delta + row, and its norm; both (N, tokens, width).

    `row` (1 or N, 1, width) goes to every token; `positions` (frames, width) are added to the norm, N = batch x frames.
    """
    fast = _kernels_for(h)
    if fast and (row is None or len(row) == 1):
        return fast.add_layer_norm(h, delta, row, norm.weight, norm.bias, norm.eps, positions)
    if delta is not None:
        h = h + delta
    if row is not None:
        h = h + row
    y = F.layer_norm(h, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    if positions is not None:
        y = (y.unflatten(0, (-1, len(positions))) + positions[:, None]).flatten(0, 1)
    return h, y


def geglu(x: Tensor) -> Tensor:
    """x (..., 2 x width) -> first half x GELU(second half)."""
    if fast := _kernels_for(x):
        return fast.geglu(x)
    x, gate = x.chunk(2, dim=-1)
    return x * F.gelu(gate)


def join(own: Tensor, shared: Tensor) -> Tensor:
    """own (N, tokens, width), shared (1 or N, R, width) -> (N, tokens + R, width)."""
    fast = _kernels_for(own)
    if fast and len(shared) == 1:
        return fast.join(own, shared)
    return torch.cat([own, shared.expand(len(own), -1, -1)], 1)


def upsample_conv2d(conv: nn.Conv2d, x: Tensor, size: tuple[int, int]) -> Tensor:
    """x (N, C, H, W) -> the 3x3 convolution of x enlarged to `size`, twice its own or one less, by nearest pixel.

    Each output pixel sees only 2x2 different input pixels, so the fast way sums the weights that meet the same one:
    four 2x2 convolutions, one for each corner of a doubled pixel, with 4/9 of the work.
    """
    fast = _kernels_for(x)
    if fast and _is_ready(conv, x) and size == (2 * x.shape[-2], 2 * x.shape[-1]):
        y = F.conv2d(x, fast.fold_corners(conv.weight), padding=1)
        return fast.interleave(y, conv.bias)
    return conv(F.interpolate(x, size=size, mode="nearest"))


def temporal_attention(q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int, attention: Attention) -> Tensor:
    """q, k, v (batch x frames, pixels, width) -> the same shape: each pixel looks at itself in the other frames."""
    fast = _kernels_for(q)
    if fast and frames == 16:
        return fast.temporal_attention(q, k, v, frames, heads)
    batch = len(q) // frames
    q, k, v = (rearrange(x, "(b f) p (h d) -> (b p) h f d", f=frames, h=heads) for x in (q, k, v))
    return rearrange(attention(q, k, v), "(b p) h f d -> (b f) p (h d)", b=batch)


def few_keys_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, attention: Attention) -> Tensor:
    """q (N, tokens, width), k and v (N, 32, width) -> (N, tokens, width)."""
    fast = _kernels_for(q)
    if fast and k.shape[1] == 32:
        return fast.few_keys_attention(q, k, v, heads)
    q, k, v = (rearrange(x, "n t (h d) -> n h t d", h=heads) for x in (q, k, v))
    return rearrange(attention(q, k, v), "n h t d -> n t (h d)")
