"""The reference UNet: one pass over the portrait gives the features that every frame attends to."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import UNetConfig
from .attention import Attention, pytorch_attention
from .blocks import Operations
from .spatial import SpatialTransformer, UNet

ReferenceFeatures = dict[str, Tensor]
"""Path of each spatial transformer block -> its normalised self-attention input (1, tokens, channels); 16 of them."""


class ReferenceUNet(UNet):
    """The UNet of Stable Diffusion 1.x, up to its last features."""

    def __init__(
        self,
        config: UNetConfig | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Operations = nn,
        attention: Attention = pytorch_attention,
    ):
        super().__init__(config or UNetConfig(), attention=attention, operations=operations, dtype=dtype, device=device)

    def forward(self, latents: Tensor, image_embeds: Tensor) -> ReferenceFeatures:
        """One pass at timestep 0 (arXiv 2512.11253, 3.1).

        Args:
            latents: (B, 4, h, w), scaled.
            image_embeds: (B, 1, 768), CLIP's.
        """
        features: ReferenceFeatures = {}

        def transform(path: str, transformer: SpatialTransformer, h: Tensor) -> Tensor:
            features[f"{path}.transformer_blocks.0"] = transformer.features(h)
            return transformer(h, transformer.transformer_blocks[0].attn2.single_token(image_embeds))

        time = F.silu(self.time_embedding(torch.zeros(1, device=latents.device), latents.dtype))
        h = self.conv_in(latents.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for i, level in enumerate(self.down_blocks):
            for j, resnet in enumerate(level.resnets):
                h = resnet(h, time)
                if level.attentions:
                    h = transform(f"down_blocks.{i}.attentions.{j}", level.attentions[j], h)
                skips.append(h)
            for downsample in level.downsamplers:
                h = downsample(h)
                skips.append(h)

        h = self.mid_block.resnets[0](h, time)
        h = transform("mid_block.attentions.0", self.mid_block.attentions[0], h)
        h = self.mid_block.resnets[1](h, time)

        for i, level in enumerate(self.up_blocks):
            for j, resnet in enumerate(level.resnets):
                h = resnet(torch.cat([h, skips.pop()], dim=1), time)
                if level.attentions:
                    path = f"up_blocks.{i}.attentions.{j}"
                    if not skips:  # what follows has no effect on the features
                        features[f"{path}.transformer_blocks.0"] = level.attentions[j].features(h)
                        return features
                    h = transform(path, level.attentions[j], h)
            for upsample in level.upsamplers:
                h = upsample(h, skips[-1].shape[-2:])
        return features
