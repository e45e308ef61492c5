"""Weights stored in 8 bits: less memory, while the arithmetic stays in the network's own type."""

from collections.abc import Iterator

import torch
from torch import nn

from .spatial import UNet

FP8 = torch.float8_e4m3fn
# They pass on what the rest only adds to, so an error in them is an error of the whole.
KEPT = ("conv_shortcut", "downsamplers", "upsamplers", "proj_in", "proj_out")


def stored_layers(unet: UNet) -> Iterator[nn.Linear | nn.Conv2d]:
    """The layers of a UNet whose weights are stored in fp8.

    A number in fp8 has four significant bits, which is 3 % of noise in what a layer computes. So these are only the
    levels of the most channels, without the layers in `KEPT`: three quarters of the weights, and little of the error.
    """
    widest = max(level.channels for level in unet.down_blocks)
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for path, layer in level.named_modules():
            is_stored = level.channels == widest and isinstance(layer, nn.Linear | nn.Conv2d)
            if is_stored and not any(name in KEPT for name in path.split(".")):
                yield layer  # type: ignore[misc]
