"""The two modules that follow each layer of the denoising UNet: the face's motion, and coherence in time."""

from einops import rearrange
from torch import Tensor, nn

from ..attention import Attention
from ..config import UNetConfig
from .blocks import CrossAttention, FeedForward, frame_positions


class TemporalAttention(CrossAttention):
    """Self-attention across the frames at each pixel, with the position in the window added before q, k and v."""

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x (batch x frames, pixels, width) -> the same shape."""
        x = rearrange(x, "(b f) p c -> b f p c", f=frames)
        x = x + frame_positions(frames, x.shape[-1], x.device, x.dtype)[:, None]
        q, k, v = (
            rearrange(to(x), "b f p (h d) -> (b p) h f d", h=self.heads) for to in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out[0](rearrange(self.attention(q, k, v), "(b p) h f d -> (b f) p (h d)", b=len(x)))


class ModuleBlock(nn.Module):
    """Two attentions and a feed-forward, each added to its input."""

    def __init__(self, width: int, attention_blocks: list[nn.Module], *, operations, **kwargs):
        super().__init__()
        self.attention_blocks = nn.ModuleList(attention_blocks)
        self.norms = nn.ModuleList(operations.LayerNorm(width, **kwargs) for _ in attention_blocks)
        self.ff = FeedForward(width, operations=operations, **kwargs)
        self.ff_norm = operations.LayerNorm(width, **kwargs)

    def forward(self, h: Tensor, context: Tensor | int) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            h = h + attention(norm(h), context)
        return h + self.ff(self.ff_norm(h))


class ModuleTransformer(nn.Module):
    """From the pixels of a picture to tokens, through one block, and back onto the picture."""

    def __init__(self, channels: int, norm_groups: int, attention_blocks: list[nn.Module], *, operations, **kwargs):
        super().__init__()
        self.norm = operations.GroupNorm(norm_groups, channels, eps=1e-6, **kwargs)
        self.proj_in = operations.Linear(channels, channels, **kwargs)
        block = ModuleBlock(channels, attention_blocks, operations=operations, **kwargs)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = operations.Linear(channels, channels, **kwargs)

    def forward(self, x: Tensor, context: Tensor | int) -> Tensor:
        h = self.proj_in(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        h = self.proj_out(self.transformer_blocks[0](h, context))
        return x + rearrange(h, "n (h w) c -> n c h w", h=x.shape[2])


class MotionModule(nn.Module):
    """Lets the pixels of a frame look at that frame's motion tokens."""

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
    """Lets each pixel look at itself in the other frames of the window."""

    def __init__(self, channels: int, config: UNetConfig, *, attention: Attention, **kwargs):
        super().__init__()
        blocks = [TemporalAttention(channels, channels, config.heads, attention=attention, **kwargs) for _ in range(2)]
        self.temporal_transformer = ModuleTransformer(channels, config.norm_groups, blocks, **kwargs)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x (batch x frames, C, H, W) -> the same shape."""
        return self.temporal_transformer(x, frames)
