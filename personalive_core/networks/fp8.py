"""Weights stored in 8 bits: less memory, while the arithmetic stays in the network's own type."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .spatial import UNet

FP8 = torch.float8_e4m3fn
# They pass on what the rest only adds to, so an error in them is an error of the whole.
KEPT = ("conv_shortcut", "downsamplers", "upsamplers", "proj_in", "proj_out")


class Dequantized(nn.Module):
    """The parametrization of a weight that is stored in fp8: the weight is made anew for each use.

    Args:
        scale: One number for each output channel, shaped to multiply the weight. Its type is the weight's.
    """

    scale: Tensor

    def __init__(self, scale: Tensor):
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, stored: Tensor) -> Tensor:
        """fp8 -> the type of the scale."""
        return stored.to(self.scale.dtype) * self.scale


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


def store_in_fp8(unet: UNet) -> None:
    """Stores the weights of a UNet's `stored_layers` in fp8, in place. Afterwards it may change its device, but not its
    type."""
    for layer in list(stored_layers(unet)):
        weight = layer.weight
        largest = weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.ndim - 1))
        # At least the smallest normal number of float16, for channels of zeros.
        scale = (largest / torch.finfo(FP8).max).clamp(min=torch.finfo(torch.float16).tiny)
        layer.weight = nn.Parameter((weight / scale).to(FP8), requires_grad=False)
        parametrize.register_parametrization(layer, "weight", Dequantized(scale), unsafe=True)
