"""The small parts that several networks are built from."""

import math
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from . import fused
from .attention import Attention


def sinusoidal_timesteps(timesteps: Tensor, width: int) -> Tensor:
    """timesteps (F,) -> (F, width) in float32: cosines, then sines, base 10000."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@lru_cache(maxsize=32)
def frame_positions(frames: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(frames, width): sine and cosine interleaved, base 10000; computed once for each kind of use."""
    with torch.inference_mode(False):  # training may use them too
        angles = torch.arange(frames)[:, None] * torch.exp(-math.log(10000) * torch.arange(0, width, 2) / width)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(device, dtype)


class GroupNorm(nn.GroupNorm):
    """With SiLU after it, or a shift of each channel before it. Small, so no host's layer: it stays on the device."""

    def forward(
        self, x: Tensor, *, silu: bool = False, row: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """x (N, C, H, W), row (C,), shift (N, C) -> (N, C, H, W); see `fused.group_norm`."""
        return fused.group_norm(self, x, silu=silu, row=row, shift=shift)


class LayerNorm(nn.LayerNorm):
    """With the residual before it. Small, so no host's layer: it stays on the device."""

    def forward(
        self, h: Tensor, delta: Tensor | None = None, *, row: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """h (N, tokens, width) -> h + delta + row, and its norm plus the positions; see `fused.add_layer_norm`."""
        return fused.add_layer_norm(self, h, delta, row=row, positions=positions)


def split_heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b t (h d) -> b h t d", h=heads)


def merge_heads(x: Tensor) -> Tensor:
    return rearrange(x, "b h t d -> b t (h d)")


class SelfAttention(nn.Module):
    """Queries, keys and values from one product. Its state dict holds to_q, to_k and to_v apart, as checkpoints do."""

    PARTS = ("to_q.weight", "to_k.weight", "to_v.weight")

    def __init__(self, width: int, heads: int, *, operations, attention: Attention, **kwargs):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.to_qkv = operations.Linear(width, 3 * width, bias=False, **kwargs)
        self.to_out = nn.ModuleList([operations.Linear(width, width, **kwargs)])

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context (B, T, width) -> keys and values, each (B, T, width)."""
        _, k, v = self.to_qkv(context).chunk(3, dim=-1)
        return k, v

    def forward(self, x: Tensor, more: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x (B, T, width) -> the same shape.

        `more` are keys and values (1, R, width) that every batch entry sees after its own.
        """
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        if more is not None:
            k, v = fused.join(k, more[0]), fused.join(v, more[1])
        q, k, v = (split_heads(y, self.heads) for y in (q, k, v))
        return self.to_out[0](merge_heads(self.attention(q, k, v)))

    def state_dict(self, *args, **kwargs):
        state_dict = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        joined = state_dict.pop(f"{prefix}to_qkv.weight")
        state_dict.update(zip((prefix + part for part in self.PARTS), joined.chunk(3), strict=True))
        return state_dict

    def _load_from_state_dict(self, state_dict, prefix, *args):
        parts = [state_dict.pop(prefix + part) for part in self.PARTS if prefix + part in state_dict]
        if len(parts) == len(self.PARTS):
            state_dict[f"{prefix}to_qkv.weight"] = torch.cat(parts)
        super()._load_from_state_dict(state_dict, prefix, *args)


class CrossAttention(nn.Module):
    """Queries from the pixels, keys and values from something else."""

    def __init__(self, width: int, context_width: int, heads: int, *, operations, attention: Attention, **kwargs):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.to_q = operations.Linear(width, width, bias=False, **kwargs)
        self.to_k = operations.Linear(context_width, width, bias=False, **kwargs)
        self.to_v = operations.Linear(context_width, width, bias=False, **kwargs)
        self.to_out = nn.ModuleList([operations.Linear(width, width, **kwargs)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, T, width), context (B, S, context width) -> (B, T, width)."""
        k, v = self.to_k(context), self.to_v(context)
        return self.to_out[0](fused.few_keys_attention(self.to_q(x), k, v, self.heads, self.attention))

    def single_token(self, context: Tensor) -> Tensor:
        """context (B, 1, context width) -> (B, 1, width): the result for any query, as softmax over one key is 1."""
        return self.to_out[0](self.to_v(context))


class GEGLU(nn.Module):
    def __init__(self, width: int, inner: int, *, operations, **kwargs):
        super().__init__()
        self.proj = operations.Linear(width, 2 * inner, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return fused.geglu(self.proj(x))


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
    """Two 3x3 convolutions, each after a norm and SiLU; with a time embedding in between if it has a width."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int | None,
        norm_groups: int,
        *,
        eps: float = 1e-5,
        operations,
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
        shift = None if time is None else self.time_emb_proj(time)
        h, bias = fused.conv2d(self.conv2, self.norm2(h, silu=True, row=bias, shift=shift))
        if hasattr(self, "conv_shortcut"):
            shortcut = fused.pointwise(self.conv_shortcut, rearrange(x, "n c h w -> n (h w) c"))
            x = rearrange(shortcut, "n (h w) c -> n c h w", h=x.shape[2])
        return fused.add(x, h, bias)


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
        return fused.upsample_conv2d(self.conv, x, size)
