"""The Stable Diffusion 1.x UNet as both networks have it: levels of residual blocks and spatial transformers."""

from einops import rearrange
from torch import Tensor, nn

from ..config import UNetConfig
from . import fused
from .attention import Attention
from .blocks import (
    CrossAttention,
    Downsample,
    FeedForward,
    GroupNorm,
    LayerNorm,
    ResidualBlock,
    SelfAttention,
    TimeEmbedding,
    Upsample,
)

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (1, tokens, width)."""


class SpatialBlock(nn.Module):
    """Self-attention, cross-attention to the image embeds, feed-forward."""

    def __init__(self, width: int, config: UNetConfig, *, operations, attention: Attention, **kwargs):
        super().__init__()
        shared = dict(operations=operations, attention=attention, **kwargs)
        self.norm1 = LayerNorm(width, **kwargs)
        self.attn1 = SelfAttention(width, config.heads, **shared)
        self.norm2 = LayerNorm(width, **kwargs)
        self.attn2 = CrossAttention(width, config.image_embeds_width, config.heads, **shared)
        self.norm3 = LayerNorm(width, **kwargs)
        self.ff = FeedForward(width, operations=operations, **kwargs)

    def forward(self, h: Tensor, cross: Tensor, reference: KeysValues | None = None) -> Tensor:
        """h (N, tokens, width); `cross` (1, 1, width) is what `attn2` gives every query, computed beforehand."""
        _, x = self.norm1(h)
        h, x = self.norm3(h, self.attn1(x, reference), row=cross)
        return h + self.ff(x)


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, config: UNetConfig, *, operations, attention: Attention, **kwargs):
        super().__init__()
        self.norm = GroupNorm(config.norm_groups, channels, eps=1e-6, **kwargs)
        self.proj_in = operations.Conv2d(channels, channels, 1, **kwargs)
        block = SpatialBlock(channels, config, operations=operations, attention=attention, **kwargs)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = operations.Conv2d(channels, channels, 1, **kwargs)

    def tokens(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, H W, C), what the block works on."""
        return fused.pointwise(self.proj_in, rearrange(self.norm(x), "n c h w -> n (h w) c"))

    def features(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, H W, C): the normalised input of the self-attention."""
        return self.transformer_blocks[0].norm1(self.tokens(x))[1]

    def forward(self, x: Tensor, cross: Tensor, reference: KeysValues | None = None) -> Tensor:
        h = self.transformer_blocks[0](self.tokens(x), cross, reference)
        return x + rearrange(fused.pointwise(self.proj_out, h), "n (h w) c -> n c h w", h=x.shape[2])


class Level(nn.Module):
    """One resolution, down or up, or the middle: its layers under the checkpoints' names.

    `inputs` are the channel counts that enter its residual blocks, one each.
    """

    def __init__(
        self, inputs: list[int], channels: int, transformers: int, config: UNetConfig, *, attention: Attention, **kwargs
    ):
        super().__init__()
        self.channels = channels
        self.resnets = nn.ModuleList(
            ResidualBlock(i, channels, config.time_embedding_width, config.norm_groups, **kwargs) for i in inputs
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(channels, config, attention=attention, **kwargs) for _ in range(transformers)
        )


class UNet(nn.Module):
    """Everything that the reference UNet and the denoising UNet have in common, without the run through it."""

    def __init__(self, config: UNetConfig, *, operations, attention: Attention, dtype, device):
        super().__init__()
        kwargs = dict(operations=operations, dtype=dtype, device=device)
        first, last = config.channels[0], config.channels[-1]
        self.conv_in = operations.Conv2d(config.latent_channels, first, 3, padding=1, dtype=dtype, device=device)
        self.time_embedding = TimeEmbedding(first, config.time_embedding_width, **kwargs)

        self.down_blocks = nn.ModuleList()
        skips, h = [first], first
        for i, channels in enumerate(config.channels):
            is_last = i == len(config.channels) - 1
            inputs = [h] + [channels] * (config.layers - 1)
            level = Level(inputs, channels, 0 if is_last else config.layers, config, attention=attention, **kwargs)
            level.downsamplers = nn.ModuleList([] if is_last else [Downsample(channels, **kwargs)])
            self.down_blocks.append(level)
            skips += [channels] * (config.layers if is_last else config.layers + 1)
            h = channels

        self.mid_block = Level([last, last], last, 1, config, attention=attention, **kwargs)

        self.up_blocks = nn.ModuleList()
        for i, channels in enumerate(reversed(config.channels)):
            inputs = []
            for _ in range(config.layers + 1):
                inputs.append(h + skips.pop())
                h = channels
            level = Level(inputs, channels, len(inputs) if i > 0 else 0, config, attention=attention, **kwargs)
            level.upsamplers = nn.ModuleList([Upsample(channels, **kwargs)] if i < len(config.channels) - 1 else [])
            self.up_blocks.append(level)

    def get_dtype(self):
        return self.conv_in.weight.dtype
