"""The decoder of a Stable Diffusion VAE (arXiv 2112.10752), built from the fused layers."""

from typing import Any

import torch
from torch import Tensor, nn

from .attention import plain_attention
from .blocks import GroupNorm, Operations, ResidualBlock, Upsample

EPS = 1e-6


class PixelAttention(nn.Module):
    """One head over all pixels, plus the input."""

    def __init__(self, channels: int, norm_groups: int, *, operations: Operations, **kwargs):
        super().__init__()
        self.group_norm = GroupNorm(norm_groups, channels, eps=EPS, **kwargs)
        self.to_q = operations.Linear(channels, channels, **kwargs)
        self.to_k = operations.Linear(channels, channels, **kwargs)
        self.to_v = operations.Linear(channels, channels, **kwargs)
        self.to_out = nn.ModuleList([operations.Linear(channels, channels, **kwargs)])

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> the same shape."""
        h = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = (to(h)[:, None] for to in (self.to_q, self.to_k, self.to_v))
        h = self.to_out[0](plain_attention(q, k, v)[:, 0])
        return x + h.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)


class Middle(nn.Module):
    def __init__(self, channels: int, norm_groups: int, **kwargs):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(channels, channels, None, norm_groups, eps=EPS, **kwargs) for _ in range(2)
        )
        self.attentions = nn.ModuleList([PixelAttention(channels, norm_groups, **kwargs)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Level(nn.Module):
    """The residual blocks of one resolution, then upsampling to the next."""

    def __init__(self, in_channels: int, channels: int, layers: int, norm_groups: int, is_last: bool, **kwargs):
        super().__init__()
        inputs = [in_channels] + [channels] * layers
        self.resnets = nn.ModuleList(ResidualBlock(i, channels, None, norm_groups, eps=EPS, **kwargs) for i in inputs)
        self.upsamplers = nn.ModuleList([] if is_last else [Upsample(channels, **kwargs)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for upsample in self.upsamplers:
            x = upsample(x, (2 * x.shape[-2], 2 * x.shape[-1]))
        return x


class VAEDecoder(nn.Module):
    """The decoder under diffusers' names.

    Args:
        channels: Of each resolution, the largest picture first.
        layers: Residual blocks per resolution, less one.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (128, 256, 512, 512),
        layers: int = 2,
        latent_channels: int = 4,
        norm_groups: int = 32,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Operations = nn,
    ):
        super().__init__()
        plain: dict[str, Any] = dict(dtype=dtype, device=device)
        kwargs = dict(operations=operations, **plain)
        widest = channels[-1]
        self.post_quant_conv = operations.Conv2d(latent_channels, latent_channels, 1, **plain)
        self.conv_in = operations.Conv2d(latent_channels, widest, 3, padding=1, **plain)
        self.mid_block = Middle(widest, norm_groups, **kwargs)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(reversed(channels)):
            is_last = i == len(channels) - 1
            self.up_blocks.append(Level(widest, width, layers, norm_groups, is_last, **kwargs))
            widest = width
        self.conv_norm_out = GroupNorm(norm_groups, widest, eps=EPS, **plain)
        self.conv_out = operations.Conv2d(widest, 3, 3, padding=1, **plain)

    def get_dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    def forward(self, latents: Tensor) -> Tensor:
        """Unscaled latents (F, 4, h, w) -> pictures (F, 3, 8 h, 8 w) in [-1, 1], not yet clamped."""
        h = self.conv_in(self.post_quant_conv(latents.contiguous(memory_format=torch.channels_last)))
        h = self.mid_block(h)
        for level in self.up_blocks:
            h = level(h)
        return self.conv_out(self.conv_norm_out(h, silu=True))
