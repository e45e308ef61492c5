"""The motion encoder: an hourglass face network (arXiv 1603.06937) whose heatmap becomes motion tokens."""

from functools import lru_cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import MotionEncoderConfig
from . import fused
from .attention import Attention, pytorch_attention
from .blocks import FeedForward, GroupNorm, Operations, SelfAttention, module_list


def _sin_cos(count: int, width: int) -> Tensor:
    """(count, width) for positions 0 .. count - 1 in float64: all sines, then all cosines."""
    frequencies = 10000 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = torch.arange(count)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@lru_cache(maxsize=32)
def token_positions(count: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(count, width): position encodings of the motion tokens."""
    return _sin_cos(count, width).to(dtype).to(device)  # not every GPU has float64


@lru_cache(maxsize=32)
def patch_positions(side: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Position encodings (side x side, width), row by row: the first half encodes the column, the second the row."""
    line = _sin_cos(side, width // 2)
    columns, rows = line.expand(side, -1, -1), line[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1).to(dtype).to(device)


def _batch_norm(channels: int, eps: float = 1e-5, *, operations: Operations, **kwargs) -> nn.Module:
    # Not every host has this layer.
    return getattr(operations, "BatchNorm2d", nn.BatchNorm2d)(channels, eps=eps, **kwargs)


class Block(nn.Module):
    """Pre-activation: three 3x3 convolutions whose results are concatenated, plus the input."""

    def __init__(self, in_channels: int, out_channels: int, *, operations: Operations, **kwargs):
        super().__init__()
        half, quarter = out_channels // 2, out_channels // 4
        self.bn1 = _batch_norm(in_channels, operations=operations, **kwargs)
        self.conv1 = operations.Conv2d(in_channels, half, 3, padding=1, bias=False, **kwargs)
        self.bn2 = _batch_norm(half, operations=operations, **kwargs)
        self.conv2 = operations.Conv2d(half, quarter, 3, padding=1, bias=False, **kwargs)
        self.bn3 = _batch_norm(quarter, operations=operations, **kwargs)
        self.conv3 = operations.Conv2d(quarter, quarter, 3, padding=1, bias=False, **kwargs)
        self.downsample = nn.Sequential()
        if in_channels != out_channels:
            self.downsample = nn.Sequential(
                _batch_norm(in_channels, eps=1e-4, operations=operations, **kwargs),
                nn.ReLU(),
                operations.Conv2d(in_channels, out_channels, 1, bias=False, **kwargs),
            )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C', H, W)."""
        first = self.conv1(F.relu(self.bn1(x)))
        second = self.conv2(F.relu(self.bn2(first)))
        third = self.conv3(F.relu(self.bn3(second)))
        return torch.cat([first, second, third], dim=1) + self.downsample(x)


class Hourglass(nn.Module):
    def __init__(self, channels: int, depth: int, *, operations: Operations, **kwargs):
        super().__init__()
        self.depth = depth
        for level in range(1, depth + 1):
            for branch in ("b1", "b2", "b3"):
                self.add_module(f"{branch}_{level}", Block(channels, channels, operations=operations, **kwargs))
        self.b2_plus_1 = Block(channels, channels, operations=operations, **kwargs)

    def _level(self, level: int, x: Tensor) -> Tensor:
        h = self.get_submodule(f"b2_{level}")(F.max_pool2d(x, 2))
        h = self._level(level - 1, h) if level > 1 else self.b2_plus_1(h)
        h = self.get_submodule(f"b3_{level}")(h)
        h = F.interpolate(h, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.get_submodule(f"b1_{level}")(x) + h

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        return self._level(self.depth, x)


class PatchEmbedding(nn.Module):
    def __init__(self, channels: int, patch: int, width: int, *, operations: Operations, **kwargs):
        super().__init__()
        self.proj = operations.Conv2d(channels, width, patch, stride=patch, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, side, side) -> tokens (B, (side / patch)^2, width) with position encodings."""
        h = self.proj(x)
        positions = patch_positions(h.shape[-1], h.shape[1], h.device, h.dtype)
        return rearrange(h, "b c h w -> b (h w) c") + positions


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, *, operations: Operations, attention: Attention, **kwargs):
        super().__init__()
        attend = SelfAttention(width, heads, operations=operations, attention=attention, **kwargs)
        self.attention_blocks = nn.ModuleList([attend])
        self.norms = module_list([nn.LayerNorm(width, **kwargs)])
        self.ff = FeedForward(width, operations=operations, **kwargs)
        self.ff_norm = nn.LayerNorm(width, **kwargs)

    def forward(self, h: Tensor) -> Tensor:
        """h (B, tokens, width) -> the same shape."""
        _, x = fused.add_layer_norm(self.norms[0], h)
        h, x = fused.add_layer_norm(self.ff_norm, h, self.attention_blocks[0](x))
        return h + self.ff(x)


class PatchTransformer(nn.Module):
    """Self-attention between the patches of a square feature map."""

    def __init__(
        self,
        channels: int,
        patch: int,
        config: MotionEncoderConfig,
        *,
        operations: Operations,
        attention: Attention,
        **kwargs,
    ):
        super().__init__()
        width = config.attention_width
        self.patch = patch
        self.norm = GroupNorm(config.norm_groups, channels, eps=1e-6, **kwargs)
        self.pos_embed = PatchEmbedding(channels, patch, width, operations=operations, **kwargs)
        block = TransformerBlock(width, config.heads, operations=operations, attention=attention, **kwargs)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = operations.Linear(width // patch**2, channels, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, side, side) -> the same shape."""
        h = self.transformer_blocks[0](self.pos_embed(self.norm(x)))
        pixels = rearrange(
            h, "b (h w) (p q c) -> b (h p) (w q) c", h=x.shape[2] // self.patch, p=self.patch, q=self.patch
        )
        return x + rearrange(self.proj_out(pixels), "b h w c -> b c h w")


class FaceNetwork(nn.Module):
    """The hourglass and the layers around it, under the checkpoint's names."""

    def __init__(self, config: MotionEncoderConfig, *, operations: Operations, attention: Attention, **kwargs):
        super().__init__()
        stem, channels, half = config.stem_channels, config.channels, config.channels // 2
        block_kwargs = dict(operations=operations, **kwargs)
        attention_kwargs = dict(operations=operations, attention=attention, **kwargs)
        self.conv1 = operations.Conv2d(3, stem, 7, stride=2, padding=3, **kwargs)
        self.bn1 = _batch_norm(stem, **block_kwargs)
        self.conv2 = Block(stem, half, **block_kwargs)
        self.att_1 = PatchTransformer(half, 4, config, **attention_kwargs)
        self.conv3 = Block(half, half, **block_kwargs)
        self.conv4 = Block(half, channels, **block_kwargs)
        self.att_2 = PatchTransformer(channels, 2, config, **attention_kwargs)
        self.m0 = Hourglass(channels, config.hourglass_depth, **block_kwargs)
        self.top_m_0 = Block(channels, channels, **block_kwargs)
        self.conv_last0 = operations.Conv2d(channels, channels, 1, **kwargs)
        self.bn_end0 = _batch_norm(channels, **block_kwargs)
        self.att_3 = PatchTransformer(channels, 2, config, **attention_kwargs)
        self.l0 = operations.Conv2d(channels, config.landmarks, 1, **kwargs)
        self.bn5 = _batch_norm(config.landmarks, **block_kwargs)
        self.conv6 = operations.Conv2d(config.landmarks, 1, 3, stride=2, padding=1, **kwargs)
        self.fc = operations.Linear((config.image_size // 8) ** 2, config.tokens * config.token_width, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """x (F, 3, side, side) -> (F, tokens x token width)."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.max_pool2d(self.att_1(self.conv2(h)), 2)
        h = self.att_2(self.conv4(self.conv3(h)))
        h = self.bn_end0(self.conv_last0(self.top_m_0(self.m0(h))))
        h = F.relu(self.bn5(self.l0(F.relu(self.att_3(h)))))
        return self.fc(F.relu(self.conv6(h).flatten(1)))


class MotionEncoder(nn.Module):
    """Call `eval()` before use: the batch norms need their recorded statistics."""

    def __init__(
        self,
        config: MotionEncoderConfig | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Operations = nn,
        attention: Attention = pytorch_attention,
    ):
        super().__init__()
        self.config = config = config or MotionEncoderConfig()
        width = config.tokens * config.token_width
        kwargs: dict[str, Any] = dict(operations=operations, dtype=dtype, device=device)
        self.model = FaceNetwork(config, attention=attention, **kwargs)
        self.final_proj = operations.Linear(width, width, dtype=dtype, device=device)

    def get_dtype(self) -> torch.dtype:
        return self.final_proj.weight.dtype

    def forward(self, faces: Tensor) -> Tensor:
        """faces (F, 3, 224, 224) in [-1, 1] -> motion tokens (1, F, 32, 16)."""
        h = self.final_proj(self.model(faces))
        tokens = rearrange(h, "f (t w) -> 1 f t w", t=self.config.tokens)
        return tokens + token_positions(self.config.tokens, self.config.token_width, h.device, h.dtype)
