"""The Stable Diffusion 1.x UNet as both networks have it: levels of residual blocks and spatial transformers."""

import torch
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
    Operations,
    ResidualBlock,
    SelfAttention,
    TimeEmbedding,
    Upsample,
    module_list,
)

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (1, tokens, width)."""


class SpatialBlock(nn.Module):
    """Self-attention, cross-attention to the image embeds, feed-forward."""

    def __init__(self, width: int, config: UNetConfig, *, operations: Operations, attention: Attention, **kwargs):
        super().__init__()
        shared = dict(operations=operations, attention=attention, **kwargs)
        self.norm1 = nn.LayerNorm(width, **kwargs)
        self.attn1 = SelfAttention(width, config.heads, **shared)
        self.norm2 = nn.LayerNorm(width, **kwargs)
        self.attn2 = CrossAttention(width, config.image_embeds_width, config.heads, **shared)
        self.norm3 = nn.LayerNorm(width, **kwargs)
        self.ff = FeedForward(width, operations=operations, **kwargs)

    def forward(self, h: Tensor, cross: Tensor, reference: KeysValues | None = None) -> Tensor:
        """One block of the transformer.

        Args:
            h: (N, tokens, width).
            cross: (1 or N, 1, width), the result of `attn2.single_token`, the same for every query.
            reference: Keys and values for `attn1`.

        Returns:
            (N, tokens, width).
        """
        _, x = fused.add_layer_norm(self.norm1, h)
        h, x = fused.add_layer_norm(self.norm3, h, self.attn1(x, reference), bias=cross)
        return h + self.ff(x)


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, config: UNetConfig, *, operations: Operations, attention: Attention, **kwargs):
        super().__init__()
        self.norm = GroupNorm(config.norm_groups, channels, eps=1e-6, **kwargs)
        self.proj_in = operations.Conv2d(channels, channels, 1, **kwargs)
        block = SpatialBlock(channels, config, operations=operations, attention=attention, **kwargs)
        self.transformer_blocks = module_list([block])
        self.proj_out = operations.Conv2d(channels, channels, 1, **kwargs)

    def tokens(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, H W, C), what the block works on."""
        return fused.pointwise(self.proj_in, rearrange(self.norm(x), "n c h w -> n (h w) c"))

    def features(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, H W, C): the normalised input of the self-attention."""
        return fused.add_layer_norm(self.transformer_blocks[0].norm1, self.tokens(x))[1]

    def forward(self, x: Tensor, cross: Tensor, reference: KeysValues | None = None) -> Tensor:
        """x (N, C, H, W) -> the same shape; `cross` and `reference` as in `SpatialBlock`."""
        h = self.transformer_blocks[0](self.tokens(x), cross, reference)
        return x + rearrange(fused.pointwise(self.proj_out, h), "n (h w) c -> n c h w", h=x.shape[2])


class Level(nn.Module):
    """The layers of one resolution, on the way down, in the middle or on the way up, under the checkpoints' names.

    Args:
        inputs: Channels that enter each residual block.
        channels: Channels that leave them.
        transformers: How many residual blocks have a spatial transformer after them: all or none of them, but one in
            the middle.
    """

    downsamplers: nn.ModuleList  # one, or none
    upsamplers: nn.ModuleList  # one, or none
    motion_modules: nn.ModuleList  # these two only in the denoising UNet
    temporal_modules: nn.ModuleList

    def __init__(
        self, inputs: list[int], channels: int, transformers: int, config: UNetConfig, *, attention: Attention, **kwargs
    ):
        super().__init__()
        self.channels = channels
        self.resnets = nn.ModuleList(
            ResidualBlock(i, channels, config.time_embedding_width, config.norm_groups, **kwargs) for i in inputs
        )
        self.attentions = module_list(
            SpatialTransformer(channels, config, attention=attention, **kwargs) for _ in range(transformers)
        )


class UNet(nn.Module):
    """What the reference UNet and the denoising UNet have in common: all but the forward pass."""

    def __init__(self, config: UNetConfig, *, operations: Operations, attention: Attention, dtype, device):
        super().__init__()
        kwargs = dict(operations=operations, dtype=dtype, device=device)
        first, last = config.channels[0], config.channels[-1]
        self.conv_in = operations.Conv2d(config.latent_channels, first, 3, padding=1, dtype=dtype, device=device)
        self.time_embedding = TimeEmbedding(first, config.time_embedding_width, **kwargs)

        down_blocks: list[Level] = []
        skips, h = [first], first
        for i, channels in enumerate(config.channels):
            is_last = i == len(config.channels) - 1
            inputs = [h] + [channels] * (config.layers - 1)
            level = Level(inputs, channels, 0 if is_last else config.layers, config, attention=attention, **kwargs)
            level.downsamplers = nn.ModuleList([] if is_last else [Downsample(channels, **kwargs)])
            down_blocks.append(level)
            skips += [channels] * (config.layers if is_last else config.layers + 1)
            h = channels

        self.down_blocks = module_list(down_blocks)
        self.mid_block = Level([last, last], last, 1, config, attention=attention, **kwargs)

        up_blocks: list[Level] = []
        for i, channels in enumerate(reversed(config.channels)):
            inputs = []
            for _ in range(config.layers + 1):
                inputs.append(h + skips.pop())
                h = channels
            level = Level(inputs, channels, len(inputs) if i > 0 else 0, config, attention=attention, **kwargs)
            level.upsamplers = nn.ModuleList([Upsample(channels, **kwargs)] if i < len(config.channels) - 1 else [])
            up_blocks.append(level)
        self.up_blocks = module_list(up_blocks)

    def get_dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.conv_in.weight.dtype
