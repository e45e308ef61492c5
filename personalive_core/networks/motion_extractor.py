"""The motion extractor: ConvNeXtV2-tiny (arXiv 2301.00808) with outputs for the head pose and 21 keypoints."""

from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import MotionExtractorConfig
from ..device import without_tf32
from .blocks import Operations
from .head_pose import HeadPose


class LayerNorm(nn.Module):
    """Over the last axis, in float32 whatever the network's dtype."""

    def __init__(self, width: int, **kwargs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, **kwargs))
        self.bias = nn.Parameter(torch.empty(width, **kwargs))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return F.layer_norm(x32, self.weight.shape, self.weight.to(x32), self.bias.to(x32), eps=1e-6).to(x.dtype)


class ChannelLayerNorm(LayerNorm):
    """Over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class GlobalResponseNorm(nn.Module):
    def __init__(self, width: int, **kwargs):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(1, 1, 1, width, **kwargs))
        self.beta = nn.Parameter(torch.empty(1, 1, 1, width, **kwargs))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W, C) -> the same shape. The sum of squares over the picture needs the range of float32."""
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
        response = (norm / (norm.mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        return self.gamma.to(x) * (x * response) + self.beta.to(x) + x


class Block(nn.Module):
    def __init__(self, width: int, *, operations: Operations, **kwargs):
        super().__init__()
        self.dwconv = operations.Conv2d(width, width, 7, padding=3, groups=width, **kwargs)
        self.norm = LayerNorm(width, **kwargs)
        self.pwconv1 = operations.Linear(width, 4 * width, **kwargs)
        self.grn = GlobalResponseNorm(4 * width, **kwargs)
        self.pwconv2 = operations.Linear(4 * width, width, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        h = self.norm(rearrange(self.dwconv(x), "b c h w -> b h w c"))
        h = self.pwconv2(self.grn(F.gelu(self.pwconv1(h))))
        return x + rearrange(h, "b h w c -> b c h w")


class Detector(nn.Module):
    """The backbone and its heads, under the checkpoint's names."""

    def __init__(self, config: MotionExtractorConfig, *, operations: Operations, **kwargs):
        super().__init__()
        stem = nn.Sequential(
            operations.Conv2d(3, config.widths[0], 4, stride=4, **kwargs),
            ChannelLayerNorm(config.widths[0], **kwargs),
        )
        self.downsample_layers = nn.ModuleList([stem])
        for width, wider in pairwise(config.widths):
            self.downsample_layers.append(
                nn.Sequential(
                    ChannelLayerNorm(width, **kwargs),
                    operations.Conv2d(width, wider, 2, stride=2, **kwargs),
                )
            )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, operations=operations, **kwargs) for _ in range(depth)))
            for width, depth in zip(config.widths, config.depths, strict=True)
        )
        width = config.widths[-1]
        self.norm = LayerNorm(width, **kwargs)
        self.fc_kp = operations.Linear(width, 3 * config.keypoints, **kwargs)
        self.fc_pitch = operations.Linear(width, config.angle_bins, **kwargs)
        self.fc_yaw = operations.Linear(width, config.angle_bins, **kwargs)
        self.fc_roll = operations.Linear(width, config.angle_bins, **kwargs)
        self.fc_t = operations.Linear(width, 3, **kwargs)
        self.fc_scale = operations.Linear(width, 1, **kwargs)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x (F, 3, H, W) -> the heads by name, each (F, its width) in float32."""
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        x = self.norm(x.mean((2, 3)))
        return {
            "kp": self.fc_kp(x).float(),
            "pitch": self.fc_pitch(x).float(),
            "yaw": self.fc_yaw(x).float(),
            "roll": self.fc_roll(x).float(),
            "t": self.fc_t(x).float(),
            "scale": self.fc_scale(x).float(),
        }


def _degrees(bins: Tensor) -> Tensor:
    """Scores (F, bins) -> expected angle (F,); bins are 3 degrees wide, and the first of 66 is at -97.5."""
    numbers = torch.arange(bins.shape[-1], device=bins.device)
    return 3 * (bins.softmax(-1) * numbers).sum(-1) - 97.5


class MotionExtractor(nn.Module):
    """Finds the head pose in a picture of a face."""

    def __init__(
        self,
        config: MotionExtractorConfig | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Operations = nn,
    ):
        super().__init__()
        self.config = config = config or MotionExtractorConfig()
        self.detector = Detector(config, operations=operations, dtype=dtype, device=device)

    def get_dtype(self) -> torch.dtype:
        return self.detector.fc_kp.weight.dtype

    def forward(self, frames: Tensor) -> HeadPose:
        """frames (F, 3, 256, 256) in [0, 1] -> the head pose of each, in float32."""
        with without_tf32():  # keypoints are rounded to pixels, so small errors would show
            heads = self.detector(frames)
        return HeadPose(
            angles=torch.stack([_degrees(heads[axis]) for axis in ("pitch", "yaw", "roll")], dim=-1),
            translation=heads["t"],
            scale=heads["scale"],
            keypoints=rearrange(heads["kp"], "f (k xyz) -> f k xyz", xyz=3),
        )
