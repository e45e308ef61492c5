"""The pose guider: turns the keypoint map into what the denoising UNet adds after its first convolution."""

from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import PoseGuiderConfig
from .blocks import Operations


class PoseGuider(nn.Module):
    """3x3 convolutions with SiLU, three of them with stride 2 (arXiv 2512.11253)."""

    def __init__(
        self,
        config: PoseGuiderConfig | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Operations = nn,
    ):
        super().__init__()
        self.config = config = config or PoseGuiderConfig()
        kwargs: dict[str, Any] = dict(padding=1, dtype=dtype, device=device)
        self.conv_in = operations.Conv2d(3, config.channels[0], 3, **kwargs)
        self.blocks = nn.ModuleList()
        for channels, wider in pairwise(config.channels):
            self.blocks.append(operations.Conv2d(channels, channels, 3, **kwargs))
            self.blocks.append(operations.Conv2d(channels, wider, 3, stride=2, **kwargs))
        self.conv_out_modify = operations.Conv2d(config.channels[-1], config.out_channels, 3, **kwargs)

    def get_dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    def forward(self, keypoint_map: Tensor) -> Tensor:
        """keypoint_map (1, 3, F, H, W) in [0, 1] -> pose features (1, 320, F, H/8, W/8)."""
        frames = keypoint_map.shape[2]
        h = F.silu(self.conv_in(rearrange(keypoint_map, "b c f h w -> (b f) c h w")))
        for block in self.blocks:
            h = F.silu(block(h))
        return rearrange(self.conv_out_modify(h), "(b f) c h w -> b c f h w", f=frames)
