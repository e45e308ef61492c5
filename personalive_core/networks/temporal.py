"""The two modules that follow each layer of the denoising UNet: the face's motion, and coherence in time."""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from ..config import UNetConfig
from . import fused
from .attention import Attention
from .blocks import (
    CrossAttention,
    FeedForward,
    GroupNorm,
    Operations,
    PackedAttention,
    frame_positions,
    module_list,
)


class TemporalAttention(PackedAttention):
    """Self-attention across the frames at each pixel."""

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x (batch x frames, pixels, width) -> the same shape."""
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        return self.to_out[0](fused.temporal_attention(q, k, v, frames, self.heads, self.attention))


class ModuleBlock(nn.Module):
    """Two attentions and a feed-forward, each added to its input."""

    def __init__(self, width: int, attention_blocks: Sequence[nn.Module], *, operations: Operations, **kwargs):
        super().__init__()
        self.attention_blocks = nn.ModuleList(attention_blocks)
        self.norms = module_list(nn.LayerNorm(width, **kwargs) for _ in attention_blocks)
        self.ff = FeedForward(width, operations=operations, **kwargs)
        self.ff_norm = nn.LayerNorm(width, **kwargs)

    def forward(self, h: Tensor, context: Tensor | int, positions: Tensor | None) -> Tensor:
        """Both attentions and the feed-forward.

        Args:
            h: (N, tokens, width).
            context: What the attentions take beside their input: motion tokens, or the number of frames.
            positions: (frames, width), added to the input of the attentions alone.
        """
        delta = None
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            h, x = fused.add_layer_norm(norm, h, delta, positions=positions)
            delta = attention(x, context)
        h, x = fused.add_layer_norm(self.ff_norm, h, delta)
        return h + self.ff(x)


class ModuleTransformer(nn.Module):
    """Takes the pixels of a feature map as tokens through one block, and adds the result to the feature map."""

    def __init__(
        self,
        channels: int,
        norm_groups: int,
        attention_blocks: Sequence[nn.Module],
        *,
        operations: Operations,
        **kwargs,
    ):
        super().__init__()
        self.norm = GroupNorm(norm_groups, channels, eps=1e-6, **kwargs)
        self.proj_in = operations.Linear(channels, channels, **kwargs)
        block = ModuleBlock(channels, attention_blocks, operations=operations, **kwargs)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = operations.Linear(channels, channels, **kwargs)

    def forward(self, x: Tensor, context: Tensor | int, positions: Tensor | None = None) -> Tensor:
        """x (N, C, H, W) -> the same shape; `context` and `positions` as in `ModuleBlock`."""
        h = self.proj_in(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        h = self.proj_out(self.transformer_blocks[0](h, context, positions))
        return x + rearrange(h, "n (h w) c -> n c h w", h=x.shape[2])


class MotionModule(nn.Module):
    """Each pixel of a frame attends to that frame's motion tokens."""

    def __init__(self, channels: int, config: UNetConfig, *, attention: Attention, **kwargs):
        super().__init__()
        blocks = [
            CrossAttention(channels, config.motion_token_width, config.heads, attention=attention, **kwargs)
            for _ in range(2)
        ]
        self.temporal_transformer = ModuleTransformer(channels, config.norm_groups, blocks, **kwargs)

    def forward(self, x: Tensor, motion_tokens: Tensor) -> Tensor:
        """x (N, C, H, W), motion tokens (N, 32, 16) -> (N, C, H, W); N = batch x frames."""
        return self.temporal_transformer(x, motion_tokens)


class TemporalModule(nn.Module):
    """Each pixel attends to itself in the other frames of the window, with position encodings of the frames."""

    def __init__(self, channels: int, config: UNetConfig, *, attention: Attention, **kwargs):
        super().__init__()
        blocks = [TemporalAttention(channels, config.heads, attention=attention, **kwargs) for _ in range(2)]
        self.temporal_transformer = ModuleTransformer(channels, config.norm_groups, blocks, **kwargs)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x (batch x frames, C, H, W) -> the same shape."""
        positions = frame_positions(frames, x.shape[1], x.device, x.dtype)
        return self.temporal_transformer(x, frames, positions)
