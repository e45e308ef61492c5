"""Pastes the animated square back into the whole picture."""

import numpy as np
from PIL import Image

from ..errors import InputError
from .crop import Crop, resample

# As fractions of the square's side:
FEATHER, FEATHER_LIMITS = 0.1, (0.0, 0.5)  # width of the soft edge
CORNER = 0.25  # radius of the mask's corners
# Differences (of 255) between the animated and the original square: up to the first, a place has not moved and keeps
# all of the picture's fine detail; from the second on, it keeps none.
UNMOVED, MOVED = 8, 32
BLOCK = 8  # pixels on a side of such a place
SEAM_PIXELS = 10_000  # of the soft edge whose colours are compared, or up to twice as many


class PasteBack:
    """Pastes animated squares of size x size pixels into the picture that `crop` was cut out of, or into the frames
    of a video of its size.

    Outside the mask nothing changes. Inside, the animation replaces what moved; what did not move keeps the picture's
    own detail, which is finer than the model's size can hold. So a square that was not animated gives back the picture
    itself.

    Args:
        crop: where the square was.
        size: width and height of the animated squares, in pixels.
        feather: width of the soft edge, as a fraction of the square's side; a side at or beyond the picture's own edge
            has none.
        match_colours: shift the animated square's colours, channel by channel, to those of the picture along the soft
            edge.

    Raises:
        InputError: the feather is outside its limits.
    """

    def __init__(self, crop: Crop, size: int, *, feather: float = FEATHER, match_colours: bool = False):
        least, most = FEATHER_LIMITS
        if not least <= feather <= most:
            raise InputError(f"feather is {feather:g}, but must be from {least:g} to {most:g} of the square's side.")
        self.crop, self.size, self._match_colours = crop, size, match_colours
        self._rows, self._columns = (
            slice(max(0, int(np.floor(start))), min(length, int(np.ceil(start + crop.side))))
            for start, length in ((crop.top, crop.height), (crop.left, crop.width))
        )
        self._mask = self._draw_mask(feather)
        seam = np.flatnonzero((self._mask > 0) & (self._mask < 1))
        self._seam = seam[:: max(1, len(seam) // SEAM_PIXELS)]
        self._picture: np.ndarray | None = None

    def _draw_mask(self, feather: float) -> np.ndarray:
        """A rounded square with a soft edge, float32 (rows, columns): 0 at its border, 1 from the feather on."""
        crop = self.crop
        corner = CORNER * crop.side
        beyond = []  # distance of each pixel along one axis beyond the straight part of the square's border
        for start, window, length in ((crop.top, self._rows, crop.height), (crop.left, self._columns, crop.width)):
            first = start if start > 0 else -crop.side  # at the picture's edge there is no seam
            last = start + crop.side if start + crop.side < length else length + crop.side
            pixels = np.arange(window.start, window.stop) + 0.5
            beyond.append(np.maximum(first + corner - pixels, pixels - (last - corner)).astype(np.float32))
        y, x = beyond[0][:, None], beyond[1][None]
        inside = np.minimum(np.maximum(x, y), 0) + np.hypot(np.maximum(x, 0), np.maximum(y, 0))
        depth = corner - inside  # pixels from the border, positive inside
        if feather == 0:
            return (depth > 0).astype(np.float32)
        ramp = (depth / (feather * crop.side)).clip(0, 1)
        return ramp * ramp * (3 - 2 * ramp)

    @property
    def mask(self) -> np.ndarray:
        """How much of each pixel of the picture the animation takes: float32 (height, width) in [0, 1]."""
        mask = np.zeros((self.crop.height, self.crop.width), np.float32)
        mask[self._rows, self._columns] = self._mask
        return mask

    def paste(self, picture: np.ndarray, animated: np.ndarray) -> np.ndarray:
        """Pastes one square.

        Args:
            picture: uint8 (height, width, 3).
            animated: uint8 (size, size, 3).

        Returns:
            uint8 (height, width, 3); the arguments do not change.

        Raises:
            InputError: a size is not the one that this was made for.
        """
        if animated.shape != (self.size, self.size, 3):
            raise InputError(
                f"the animated picture is {animated.shape[1]} x {animated.shape[0]} pixels, but must be a square of "
                f"{self.size} x {self.size} to go back into a square: sample with equal width and height."
            )
        if picture is not self._picture:  # once for a still picture
            self._square = self.crop.cut(picture, self.size)
            self._window = picture[self._rows, self._columns].astype(np.float32)
            self._plain = self._to_window(self._square).astype(np.float32)
            self._detail = self._window - self._plain
            self._picture = picture
        moving = self._to_window(animated).astype(np.float32)
        if self._match_colours:
            offset = self._seam_offset(moving)
            moving += offset
            animated = (animated + offset).clip(0, 255).round().astype(np.uint8)
        moving += self._unmoved(animated) * self._detail
        moving -= self._window
        moving *= self._mask[..., None]
        moving += self._window
        result = picture.copy()
        result[self._rows, self._columns] = np.rint(moving, out=moving).clip(0, 255, out=moving)
        return result

    def _to_window(self, square: np.ndarray, block: int = 1) -> np.ndarray:
        """(size / block, size / block, ...) -> the picture's own pixels that the square covers (rows, columns, ...)."""
        scale = self.size / block / self.crop.side
        left, right = ((x - self.crop.left) * scale for x in (self._columns.start, self._columns.stop))
        top, bottom = ((y - self.crop.top) * scale for y in (self._rows.start, self._rows.stop))
        height, width = self._mask.shape
        method = Image.Resampling.LANCZOS if block == 1 else Image.Resampling.BILINEAR  # which does not overshoot
        return resample(square, (left, top, right, bottom), width, height, method)

    def _unmoved(self, animated: np.ndarray) -> np.ndarray:
        """float32 (rows, columns, 1): 1 where the animated square is as the original one, 0 where something moved."""
        difference = np.abs(animated.astype(np.int16) - self._square)
        padding = (0, -self.size % BLOCK)
        difference = np.pad(difference, (padding, padding, (0, 0)), "edge")
        count = len(difference) // BLOCK
        blocks = difference.reshape(count, BLOCK, -1).max(1).reshape(count, count, -1).max(2)
        around = np.pad(blocks, 1, "edge")  # movement in a block affects its neighbours too
        blocks = np.max([around[y : y + count, x : x + count] for y in range(3) for x in range(3)], axis=0)
        weights = ((MOVED - blocks) / (MOVED - UNMOVED)).clip(0, 1).astype(np.float32)
        return self._to_window(weights, BLOCK)[..., None]

    def _seam_offset(self, moving: np.ndarray) -> np.ndarray:
        """The picture's colours less the animation's along the soft edge, (3,): the mean of the middle half of all
        differences, because a shoulder that moves through the edge says nothing about colours."""
        if not len(self._seam):
            return np.zeros(3, np.float32)
        plain, moving = (pixels.reshape(-1, 3)[self._seam] for pixels in (self._plain, moving))
        differences = np.sort(plain - moving, axis=0)
        quarter = len(differences) // 4
        return differences[quarter : len(differences) - quarter].mean(0)
