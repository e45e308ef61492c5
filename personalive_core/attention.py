"""Attention as one function, so that a host can put its own in place of it."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries, keys, values) -> values; all (batch, heads, tokens, head size), softmax scale 1 / sqrt(head size)."""


def pytorch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own attention; it picks the kernel for the device.

    q: (B, heads, tokens, head size); k, v: (B, heads, other tokens, head size). Returns the shape of q.
    """
    return scaled_dot_product_attention(q, k, v)
