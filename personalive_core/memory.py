"""How much memory the networks' activations take on a GPU.

Measured on one H200 with PyTorch 2.11 in float16: 0.25, 1.02 and 2.29 GiB for a window of 256 x 256, 512 x 512 and
768 x 768 without keyframes; 0.08 GiB for the reference UNet at 512 x 512, 0.16 GiB for the motion networks, 0.75 GiB
for decoding two frames of 512 x 512.
"""

from dataclasses import dataclass

import torch

GIB = 2**30
# For libraries, kernels, and pieces too small to use: brings the sums to the peaks measured in docs/memory.md.
LIBRARIES = GIB
# Of a window's activations, for the keys and values of each keyframe: reckoned from their size, not measured.
KEYFRAME_SHARE = 0.15


def _scale(width: int, height: int, dtype: torch.dtype) -> float:
    return width * height / 512**2 * dtype.itemsize / 2


def reference(width: int, height: int, dtype: torch.dtype) -> int:
    """Bytes for one run of the reference UNet, and of the motion networks after it."""
    return int((0.3 + 0.2 * _scale(width, height, dtype)) * GIB)


def motion(width: int, height: int) -> int:
    """Bytes for four driving frames in float32 and the motion networks."""
    return int(0.3 * GIB) + 3 * 4 * 3 * 4 * width * height


def window(width: int, height: int, dtype: torch.dtype, keyframes: int) -> int:
    """Bytes for one window of 16 frames in the denoising UNet."""
    return int(1.2 * (1 + KEYFRAME_SHARE * keyframes) * _scale(width, height, dtype) * GIB)


def decoding(width: int, height: int, dtype: torch.dtype) -> int:
    """Bytes for two frames of latents, width x height, in the VAE's decoder."""
    return int(0.85 * _scale(8 * width, 8 * height, dtype) * GIB)


@dataclass(frozen=True)
class Budget:
    """How much of a GPU's memory there is, and what for.

    Args:
        width: Of the result, in pixels.
        height: In pixels.
        keyframes: The most that there can be.
        gigabytes: 10^9 bytes for the whole program; None takes what is free.
    """

    width: int
    height: int
    keyframes: int
    gigabytes: float | None = None

    def whole(self, dtype: torch.dtype, waiting: int) -> int:
        """Bytes beside the weights when the denoising UNet is there, and CUDA graphs hold a window's activations.

        Args:
            dtype: Of the activations.
            waiting: Bytes of the largest network that comes only when it is needed: for the portrait and keyframes.
        """
        window, decoding, reference = self._parts(dtype, waiting)
        # Without keyframes, the networks for a portrait come when there are no graphs.
        beside = window + max(decoding, reference) if self.keyframes else max(window + decoding, reference)
        return beside + self._always()

    def streamed(self, dtype: torch.dtype, waiting: int) -> int:
        """Bytes beside the weights when blocks of the denoising UNet come and go: nothing is held, and one thing runs
        after the other. Arguments as of `whole`."""
        return max(self._parts(dtype, waiting)) + self._always()

    def _parts(self, dtype: torch.dtype, waiting: int) -> tuple[int, int, int]:
        return (
            window(self.width, self.height, dtype, self.keyframes),
            decoding(self.width // 8, self.height // 8, dtype),
            waiting + reference(self.width, self.height, dtype),
        )

    def _always(self) -> int:
        return motion(self.width, self.height) + LIBRARIES
