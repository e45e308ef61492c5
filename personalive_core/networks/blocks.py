"""The small parts that several networks are built from."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from . import fused
from .attention import Attention

Layer = TypeVar("Layer", bound=nn.Module)


class Operations(Protocol):
    """Where the networks take their layers with weights from: `torch.nn`, or a host's classes of the same names."""

    @property
    def Linear(self) -> type[nn.Linear]: ...

    @property
    def Conv2d(self) -> type[nn.Conv2d]: ...


def module_list(layers: Iterable[Layer]) -> Sequence[Layer]:
    """An `nn.ModuleList` whose type tells what its layers are."""
    return nn.ModuleList(layers)  # type: ignore[return-value]


def sinusoidal_timesteps(timesteps: Tensor, width: int) -> Tensor:
    """timesteps (F,) -> (F, width) in float32: cosines, then sines, base 10000."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@lru_cache(maxsize=32)
def frame_positions(frames: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Position encodings (frames, width): sine and cosine interleaved, base 10000. Cached, so do not change them."""
    with torch.inference_mode(False):  # training uses them too
        angles = torch.arange(frames)[:, None] * torch.exp(-math.log(10000) * torch.arange(0, width, 2) / width)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(device, dtype)


class GroupNorm(nn.GroupNorm):
    """`fused.group_norm` as a layer. Norms are small, so they are PyTorch's own and stay on the device in any host."""

    def forward(
        self, x: Tensor, *, silu: bool = False, bias: Tensor | None = None, time_bias: Tensor | None = None
    ) -> Tensor:
        """x (N, C, H, W), bias (C,), time_bias (N, C) -> (N, C, H, W)."""
        return fused.group_norm(self, x, silu=silu, bias=bias, time_bias=time_bias)


def split_heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b t (h d) -> b h t d", h=heads)


def merge_heads(x: Tensor) -> Tensor:
    return rearrange(x, "b h t d -> b t (h d)")


class PackedAttention(nn.Module):
    """Queries, keys and values from one linear layer. The state dict has to_q, to_k and to_v, as checkpoints do."""

    PARTS = ("to_q.weight", "to_k.weight", "to_v.weight")

    def __init__(self, width: int, heads: int, *, operations: Operations, attention: Attention, **kwargs):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.to_qkv = operations.Linear(width, 3 * width, bias=False, **kwargs)
        self.to_out = nn.ModuleList([operations.Linear(width, width, **kwargs)])

    def state_dict(self, *args, **kwargs):
        state_dict = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        packed = state_dict.pop(f"{prefix}to_qkv.weight")
        state_dict.update(zip((prefix + part for part in self.PARTS), packed.chunk(3), strict=True))
        return state_dict

    def _load_from_state_dict(self, state_dict, prefix, *args):
        parts = [state_dict.pop(prefix + part) for part in self.PARTS if prefix + part in state_dict]
        if len(parts) == len(self.PARTS):
            state_dict[f"{prefix}to_qkv.weight"] = torch.cat(parts)
        super()._load_from_state_dict(state_dict, prefix, *args)


class SelfAttention(PackedAttention):
    """Self-attention, which can also see the keys and values of a reference."""

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context (B, T, width) -> keys and values, each (B, T, width)."""
        _, k, v = self.to_qkv(context).chunk(3, dim=-1)
        return k, v

    def forward(self, x: Tensor, reference: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Attends within each batch entry, and to the reference.

        Args:
            x: (B, T, width).
            reference: Keys and values, each (1, R, width), which every batch entry sees after its own.

        Returns:
            (B, T, width).
        """
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        if reference is not None:
            k, v = fused.concat_reference(k, reference[0]), fused.concat_reference(v, reference[1])
        q, k, v = (split_heads(y, self.heads) for y in (q, k, v))
        return self.to_out[0](merge_heads(self.attention(q, k, v)))


class CrossAttention(nn.Module):
    """Queries from the pixels, keys and values from something else."""

    def __init__(
        self, width: int, context_width: int, heads: int, *, operations: Operations, attention: Attention, **kwargs
    ):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.to_q = operations.Linear(width, width, bias=False, **kwargs)
        self.to_k = operations.Linear(context_width, width, bias=False, **kwargs)
        self.to_v = operations.Linear(context_width, width, bias=False, **kwargs)
        self.to_out = nn.ModuleList([operations.Linear(width, width, **kwargs)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, T, width), context (B, S, context width) -> (B, T, width)."""
        k, v = self.to_k(context), self.to_v(context)
        return self.to_out[0](fused.short_cross_attention(self.to_q(x), k, v, self.heads, self.attention))

    def single_token(self, context: Tensor) -> Tensor:
        """context (B, 1, context width) -> (B, 1, width), the result for any query: softmax over one key is 1."""
        return self.to_out[0](self.to_v(context))


class GEGLU(nn.Module):
    def __init__(self, width: int, inner: int, *, operations: Operations, **kwargs):
        super().__init__()
        self.proj = operations.Linear(width, 2 * inner, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return fused.geglu(self.proj(x))


class FeedForward(nn.Module):
    """GEGLU feed-forward, inner width 4 x width."""

    def __init__(self, width: int, *, operations: Operations, **kwargs):
        super().__init__()
        # In the checkpoints net.1 is a dropout, which does nothing at inference.
        self.net = nn.ModuleList(
            [
                GEGLU(width, 4 * width, operations=operations, **kwargs),
                nn.Identity(),
                operations.Linear(4 * width, width, **kwargs),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class TimeEmbedding(nn.Module):
    def __init__(self, channels: int, width: int, *, operations: Operations, **kwargs):
        super().__init__()
        self.channels = channels
        self.linear_1 = operations.Linear(channels, width, **kwargs)
        self.linear_2 = operations.Linear(width, width, **kwargs)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """timesteps (F,) -> (F, width)."""
        x = sinusoidal_timesteps(timesteps, self.channels).to(dtype)
        return self.linear_2(F.silu(self.linear_1(x)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after a norm and SiLU, with the time embedding added in between if there is one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int | None,
        norm_groups: int,
        *,
        eps: float = 1e-5,
        operations: Operations,
        **kwargs,
    ):
        super().__init__()
        self.norm1 = GroupNorm(norm_groups, in_channels, eps=eps, **kwargs)
        self.conv1 = operations.Conv2d(in_channels, out_channels, 3, padding=1, **kwargs)
        if time_width is not None:
            self.time_emb_proj = operations.Linear(time_width, out_channels, **kwargs)
        self.norm2 = GroupNorm(norm_groups, out_channels, eps=eps, **kwargs)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **kwargs)
        if in_channels != out_channels:
            self.conv_shortcut = operations.Conv2d(in_channels, out_channels, 1, **kwargs)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (N, C, H, W), time (N, time width) after its SiLU -> (N, C', H, W)."""
        h, bias = fused.conv2d(self.conv1, self.norm1(x, silu=True))
        time_bias = None if time is None else self.time_emb_proj(time)
        h, bias = fused.conv2d(self.conv2, self.norm2(h, silu=True, bias=bias, time_bias=time_bias))
        if hasattr(self, "conv_shortcut"):
            shortcut = fused.pointwise(self.conv_shortcut, rearrange(x, "n c h w -> n (h w) c"))
            x = rearrange(shortcut, "n (h w) c -> n c h w", h=x.shape[2])
        return fused.add(x, h, bias)


class Downsample(nn.Module):
    def __init__(self, channels: int, *, operations: Operations, **kwargs):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, padding=1, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int, *, operations: Operations, **kwargs):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **kwargs)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """x (N, C, H, W) -> (N, C, *size): twice the height and width, or one less where downsampling rounded up."""
        return fused.upsample_conv2d(self.conv, x, size)
