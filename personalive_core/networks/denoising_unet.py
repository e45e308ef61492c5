"""The denoising UNet: predicts the noise of a window of frames, each at its own noise level."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import UNetConfig
from .attention import Attention, pytorch_attention
from .blocks import GroupNorm, Operations
from .reference_unet import ReferenceFeatures
from .spatial import KeysValues, Level, SpatialBlock, UNet
from .temporal import MotionModule, TemporalModule


@dataclass(frozen=True)
class Conditioning:
    """What depends on the reference and its keyframes alone, computed once and used in every window.

    Both dictionaries are by path of the spatial transformer block.
    """

    cross: dict[str, Tensor]  # (1, 1, C), what cross-attention to the single image embedding adds
    keys_values: dict[str, KeysValues]  # of the reference features, then of each keyframe's


class DenoisingUNet(UNet):
    """A UNet with a motion module and a temporal module after each layer (arXiv 2512.11253)."""

    def __init__(
        self,
        config: UNetConfig | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Operations = nn,
        attention: Attention = pytorch_attention,
    ):
        config = config or UNetConfig()
        kwargs: dict[str, Any] = dict(dtype=dtype, device=device)
        shared = dict(attention=attention, operations=operations, **kwargs)
        super().__init__(config, **shared)
        for level in (*self.down_blocks, self.mid_block, *self.up_blocks):
            layers = 1 if level is self.mid_block else len(level.resnets)
            level.motion_modules = nn.ModuleList(MotionModule(level.channels, config, **shared) for _ in range(layers))
            level.temporal_modules = nn.ModuleList(
                TemporalModule(level.channels, config, **shared) for _ in range(layers)
            )
        first = config.channels[0]
        self.conv_norm_out = GroupNorm(config.norm_groups, first, eps=1e-5, **kwargs)
        self.conv_out = operations.Conv2d(first, config.latent_channels, 3, padding=1, **kwargs)

    def condition(self, image_embeds: Tensor, features: ReferenceFeatures) -> Conditioning:
        """image_embeds (1, 1, 768) and the reference features -> what every window of this reference uses."""
        cross = {path: block.attn2.single_token(image_embeds) for path, block in self._spatial_blocks()}
        return Conditioning(cross, self._keys_values(features))

    def add_keyframe(self, conditioning: Conditioning, features: ReferenceFeatures) -> Conditioning:
        """The same with one more set of features to attend to, made with the same image embeds."""
        new = self._keys_values(features)
        extended = {
            path: (torch.cat([k, new[path][0]], 1), torch.cat([v, new[path][1]], 1))
            for path, (k, v) in conditioning.keys_values.items()
        }
        return Conditioning(conditioning.cross, extended)

    def _spatial_blocks(self) -> list[tuple[str, SpatialBlock]]:
        return [(path, module) for path, module in self.named_modules() if isinstance(module, SpatialBlock)]

    def _keys_values(self, features: ReferenceFeatures) -> dict[str, KeysValues]:
        return {path: block.attn1.keys_values(features[path]) for path, block in self._spatial_blocks()}

    def blocks(self) -> list[tuple[nn.Module, list[nn.Parameter]]]:
        """The modules that `forward` calls, in this order, and of each the parameters that nothing else uses: without
        those of `condition`."""
        down = [(level, list(level.downsamplers)) for level in self.down_blocks]
        up = [(level, list(level.upsamplers)) for level in self.up_blocks]
        modules: list[nn.Module] = []
        for level, samplers in (*down, (self.mid_block, []), *up):
            layers = (level.resnets, level.attentions, level.motion_modules, level.temporal_modules)
            for j in range(len(level.resnets)):
                modules += [kind[j] for kind in layers if j < len(kind)]
            modules += samplers
        kept = {
            id(x)
            for _, block in self._spatial_blocks()
            for module in (block.attn1.to_qkv, block.attn2)
            for x in module.parameters()
        }
        return [(module, [x for x in module.parameters() if id(x) not in kept]) for module in modules]

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        motion_tokens: Tensor,
        pose_features: Tensor,
    ) -> Tensor:
        """Predicts the noise of F frames; floating-point tensors are in the network's dtype.

        Args:
            latents: (B, 4, F, h, w), scaled.
            timesteps: (F,), the noise level of each frame.
            conditioning: From `condition`.
            motion_tokens: (B, F, 32, 16).
            pose_features: (B, 320, F, h, w), added after the first convolution.

        Returns:
            (B, 4, F, h, w).
        """
        batch, _, frames, _, _ = latents.shape
        tokens = rearrange(motion_tokens, "b f t c -> (b f) t c")
        time = F.silu(self.time_embedding(repeat(timesteps, "f -> (b f)", b=batch), latents.dtype))

        def layer(h: Tensor, level: Level, path: str, j: int) -> Tensor:
            """What follows a residual block."""
            if level.attentions:
                path = f"{path}.attentions.{j}.transformer_blocks.0"
                h = level.attentions[j](h, conditioning.cross[path], conditioning.keys_values[path])
            return level.temporal_modules[j](level.motion_modules[j](h, tokens), frames)

        h = self.conv_in(rearrange(latents, "b c f h w -> (b f) c h w").contiguous(memory_format=torch.channels_last))
        h = h + rearrange(pose_features, "b c f h w -> (b f) c h w")
        skips = [h]
        for i, level in enumerate(self.down_blocks):
            for j, resnet in enumerate(level.resnets):
                h = layer(resnet(h, time), level, f"down_blocks.{i}", j)
                skips.append(h)
            for downsample in level.downsamplers:
                h = downsample(h)
                skips.append(h)

        h = layer(self.mid_block.resnets[0](h, time), self.mid_block, "mid_block", 0)
        h = self.mid_block.resnets[1](h, time)

        for i, level in enumerate(self.up_blocks):
            for j, resnet in enumerate(level.resnets):
                h = layer(resnet(torch.cat([h, skips.pop()], dim=1), time), level, f"up_blocks.{i}", j)
            for upsample in level.upsamplers:
                h = upsample(h, skips[-1].shape[-2:])

        noise = self.conv_out(self.conv_norm_out(h, silu=True))
        return rearrange(noise, "(b f) c h w -> b c f h w", b=batch)
