"""Attention as one function, so that a host can replace it."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries, keys, values) -> values, all (B, heads, tokens, head size); softmax scale 1 / sqrt(head size). An attribute
`may_fuse` that is False keeps fused kernels from standing in for it."""

CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
APPLE_SCORES = 2**28  # in one call, 1 GB


def pytorch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own attention, by the kernel that is fastest on the device.

    Args:
        q: (B, heads, tokens, head size).
        k: (B, heads, S, head size).
        v: (B, heads, S, head size).

    Returns:
        The shape of q.
    """
    if not (_is_cudnn_fastest(q.device) and torch.backends.cuda.cudnn_sdp_enabled()):
        return plain_attention(q, k, v)
    with sdpa_kernel(CUDNN_FIRST, set_priority=True):
        return scaled_dot_product_attention(q, k, v)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own attention, by the kernel that it chooses; shapes as in `pytorch_attention`.

    On Apple's GPUs in parts, as MPS limits the size of a tensor and makes one of all scores; and in float32, as other
    Stable Diffusion programs saw float16 overflow there.
    """
    if q.device.type != "mps":
        return scaled_dot_product_attention(q, k, v)
    entries = max(1, APPLE_SCORES // (q.shape[1] * q.shape[2] * k.shape[2]))
    parts = zip(*(x.float().split(entries) for x in (q, k, v)), strict=True)
    return torch.cat([scaled_dot_product_attention(*part) for part in parts]).to(q.dtype)


@lru_cache
def _is_cudnn_fastest(device: torch.device) -> bool:
    """PyTorch's own rule. PyTorch applies it when attention is first used, unless an `sdpa_kernel` order is set at that
    moment, as ComfyUI does: from then on, flash attention comes first."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    is_data_centre = torch.cuda.get_device_capability(device) in ((9, 0), (10, 0))  # H100, H200; B200
    return is_data_centre and torch.backends.cudnn.version() > 91500
