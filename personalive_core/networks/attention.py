"""Attention as one function, so that a host can put its own in place of it."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries, keys, values) -> values; all (batch, heads, tokens, head size), softmax scale 1 / sqrt(head size)."""

CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def pytorch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own attention; it picks the kernel for the device.

    q: (B, heads, tokens, head size); k, v: (B, heads, other tokens, head size). Returns the shape of q.
    """
    if not (_is_cudnn_fastest(q.device) and torch.backends.cuda.cudnn_sdp_enabled()):
        return scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(CUDNN_FIRST, set_priority=True):
        return scaled_dot_product_attention(q, k, v)


@lru_cache
def _is_cudnn_fastest(device: torch.device) -> bool:
    """PyTorch's own rule. PyTorch keeps to it from the first use of attention on, unless that use is within
    `sdpa_kernel` with an order, as in ComfyUI: then it goes back to flash first, and stays there."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    is_data_centre = torch.cuda.get_device_capability(device) in ((9, 0), (10, 0))  # H100, H200; B200
    return is_data_centre and torch.backends.cudnn.version() > 91500
