"""The small parts that several networks are built from."""

import math
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import Attention


def sinusoidal_timesteps(timesteps: Tensor, width: int) -> Tensor:
    """timesteps (F,) -> (F, width) in float32: cosines, then sines, base 10000."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@lru_cache(maxsize=32)
def frame_positions(frames: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(frames, width): sine and cosine interleaved, base 10000; computed once for each kind of use."""
    angles = torch.arange(frames)[:, None] * torch.exp(-math.log(10000) * torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(device, dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b t (h d) -> b h t d", h=heads)


def merge_heads(x: Tensor) -> Tensor:
    return rearrange(x, "b h t d -> b t (h d)")


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another (or the same)."""

    def __init__(self, width: int, context_width: int, heads: int, *, operations, attention: Attention, **kwargs):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.to_q = operations.Linear(width, width, bias=False, **kwargs)
        self.to_k = operations.Linear(context_width, width, bias=False, **kwargs)
        self.to_v = operations.Linear(context_width, width, bias=False, **kwargs)
        self.to_out = nn.ModuleList([operations.Linear(width, width, **kwargs)])

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context (B, T, context width) -> keys and values, each (B, heads, T, head size)."""
        return split_heads(self.to_k(context), self.heads), split_heads(self.to_v(context), self.heads)

    def forward(self, x: Tensor, context: Tensor, more: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x (B, T, width), context (B, S, context width) -> (B, T, width).

        `more` are keys and values (1, heads, R, head size) that every batch entry sees after its own.
        """
        q = split_heads(self.to_q(x), self.heads)
        k, v = self.keys_values(context)
        if more is not None:
            k, v = (torch.cat([own, m.expand(len(own), -1, -1, -1)], 2) for own, m in zip((k, v), more, strict=True))
        return self.to_out[0](merge_heads(self.attention(q, k, v)))

    def single_token(self, context: Tensor) -> Tensor:
        """context (B, 1, context width) -> (B, 1, width): the result for any query, as softmax over one key is 1."""
        return self.to_out[0](self.to_v(context))


class GEGLU(nn.Module):
    def __init__(self, width: int, inner: int, *, operations, **kwargs):
        super().__init__()
        self.proj = operations.Linear(width, 2 * inner, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU feed-forward, inner width 4 x width."""

    def __init__(self, width: int, *, operations, **kwargs):
        super().__init__()
        # The checkpoints count a dropout, which is nothing at inference, as net.1.
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
    def __init__(self, channels: int, width: int, *, operations, **kwargs):
        super().__init__()
        self.channels = channels
        self.linear_1 = operations.Linear(channels, width, **kwargs)
        self.linear_2 = operations.Linear(width, width, **kwargs)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """timesteps (F,) -> (F, width)."""
        x = sinusoidal_timesteps(timesteps, self.channels).to(dtype)
        return self.linear_2(F.silu(self.linear_1(x)))


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, time_width: int, norm_groups: int, *, operations, **kwargs):
        super().__init__()
        self.norm1 = operations.GroupNorm(norm_groups, in_channels, eps=1e-5, **kwargs)
        self.conv1 = operations.Conv2d(in_channels, out_channels, 3, padding=1, **kwargs)
        self.time_emb_proj = operations.Linear(time_width, out_channels, **kwargs)
        self.norm2 = operations.GroupNorm(norm_groups, out_channels, eps=1e-5, **kwargs)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **kwargs)
        if in_channels != out_channels:
            self.conv_shortcut = operations.Conv2d(in_channels, out_channels, 1, **kwargs)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (N, C, H, W), time (N, time width) after its SiLU -> (N, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Downsample(nn.Module):
    def __init__(self, channels: int, *, operations, **kwargs):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, padding=1, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int, *, operations, **kwargs):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **kwargs)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """To `size` (height, width): twice the input's, or one less where the way down rounded up."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
