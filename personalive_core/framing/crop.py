"""The square that the model wants out of a picture of any shape, and the animated square set back into it."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from ..errors import InputError
from ..motion.keypoints import BOX_GRID, face_boxes, transform_keypoints
from ..networks.motion_extractor import MotionExtractor
from .face_detector import Box

log = logging.getLogger(__name__)

MARGIN = 0.5  # around the face at each side, in parts of its size: head and shoulders
SHIFT = 0.1  # of the square downwards, in parts of the face's size
FEATHER = 0.1  # width of the soft edge, in parts of the square's side
CORNER = 0.25  # radius of the mask's corners, in parts of the square's side
# Differences (of 255) between the animated and the original square: up to the first a place counts as unmoved and
# keeps the picture's fine detail, from the second on it keeps none.
UNMOVED, MOVED = 8, 32
ROUNDS = 3  # of refining
SMALLEST_SHARE = 0.15  # of the square's side, that a face found in it takes at least
BLOCK = 8  # pixels on a side of the places that are told apart so
SEAM_PIXELS = 10_000  # of the soft edge that are looked at for its colours, or up to twice as many
FILTER_SUPPORT = 3  # pixels to each side that Lanczos looks at


@dataclass(frozen=True)
class Crop:
    """A square in a picture of width x height pixels. It may begin between pixels and hang over the edge, where the
    picture's outermost pixels are repeated. InputError where it does not meet the picture at all."""

    left: float
    top: float
    side: float
    width: int
    height: int

    def __post_init__(self) -> None:
        outside = self.left >= self.width or self.top >= self.height
        if outside or self.side < 1 or self.left + self.side <= 0 or self.top + self.side <= 0:
            raise InputError(
                f"the square at {self.left:g}, {self.top:g} of side {self.side:g} lies outside the picture of "
                f"{self.width} x {self.height} pixels: give one that meets it."
            )
        if self.side > 4 * max(self.width, self.height):
            raise InputError(
                f"the square of side {self.side:g} is far larger than the picture of {self.width} x {self.height} "
                "pixels: give a smaller one."
            )

    @classmethod
    def around(cls, face: Box, width: int, height: int, margin: float = MARGIN, shift: float = SHIFT) -> "Crop":
        """Face, margin and shift (both in parts of the face's size) as a square inside the picture as far as that
        goes: moved inwards where it hangs over, and no larger than the picture's shorter side."""
        side = min(face.side * (1 + 2 * margin), width, height)
        x, y = face.centre
        left, top = x - side / 2, y + shift * face.side - side / 2
        return cls(min(max(left, 0), width - side), min(max(top, 0), height - side), side, width, height)

    @classmethod
    def centred(cls, width: int, height: int) -> "Crop":
        """The largest square in the middle."""
        side = min(width, height)
        return cls((width - side) / 2, (height - side) / 2, side, width, height)

    def cut(self, picture: np.ndarray, size: int) -> np.ndarray:
        """uint8 (height, width, 3) -> uint8 (size, size, 3), with Lanczos; antialiased where it shrinks."""
        self.check(picture)
        edges = self.left, self.top, self.left + self.side, self.top + self.side
        return _resampled(picture, edges, size, size)

    def check(self, picture: np.ndarray) -> None:
        if picture.shape[:2] != (self.height, self.width):
            raise InputError(
                f"the square was cut out of a picture of {self.width} x {self.height} pixels, and this one is "
                f"{picture.shape[1]} x {picture.shape[0]}: give the same picture, or a video of that size."
            )


def _resampled(
    pixels: np.ndarray,
    edges: tuple[float, float, float, float],
    width: int,
    height: int,
    method: Image.Resampling = Image.Resampling.LANCZOS,
) -> np.ndarray:
    """What lies between the edges left, top, right, bottom, which need not be whole pixels of the picture or in it."""
    left, top, right, bottom = edges
    margin_x, margin_y = (
        int(FILTER_SUPPORT * max(1, length)) + 2 for length in ((right - left) / width, (bottom - top) / height)
    )
    x1, x2 = int(np.floor(left)) - margin_x, int(np.ceil(right)) + margin_x
    y1, y2 = int(np.floor(top)) - margin_y, int(np.ceil(bottom)) + margin_y
    rows, columns = (np.arange(a, b).clip(0, n - 1) for a, b, n in ((y1, y2, len(pixels)), (x1, x2, pixels.shape[1])))
    part = Image.fromarray(np.ascontiguousarray(pixels[rows][:, columns]))
    box = (left - x1, top - y1, right - x1, bottom - y1)
    return np.asarray(part.resize((width, height), method, box=box))


class PasteBack:
    """Sets animated squares of size x size pixels into the picture that `crop` was cut out of, or into the frames of
    a video of its size.

    Outside the mask nothing changes. Inside, the animated square takes the place of the original one. What moved is
    the animation's alone; where it is as the original was, the picture keeps the detail that the model's size cannot
    hold. A square that was not animated therefore gives back the picture itself.

    feather: width of the soft edge in parts of the square's side; a side at or beyond the picture's own edge has none.
    match_colours: add to the animated square, channel by channel, what its soft edge lacks to the picture's colours.
    """

    def __init__(self, crop: Crop, size: int, *, feather: float = FEATHER, match_colours: bool = False):
        if not 0 <= feather <= 0.5:
            raise InputError(f"feather is {feather:g}, but must be between 0 and 0.5 of the square's side.")
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
        """float32 (height, width) in [0, 1]: how much of each of the picture's pixels the animation takes."""
        mask = np.zeros((self.crop.height, self.crop.width), np.float32)
        mask[self._rows, self._columns] = self._mask
        return mask

    def paste(self, picture: np.ndarray, animated: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) and uint8 (size, size, 3) -> uint8 (height, width, 3). Neither is changed."""
        if animated.shape != (self.size, self.size, 3):
            raise InputError(
                f"the animated picture is {animated.shape[1]} x {animated.shape[0]} pixels, but must be a square of "
                f"{self.size} x {self.size} to go back into a square: sample with equal width and height."
            )
        if picture is not self._picture:  # of a still picture once
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
        method = Image.Resampling.LANCZOS if block == 1 else Image.Resampling.BILINEAR  # weights must not swing over
        return _resampled(square, (left, top, right, bottom), width, height, method)

    def _unmoved(self, animated: np.ndarray) -> np.ndarray:
        """float32 (rows, columns, 1): 1 where the animated square is as the original one, 0 where something moved."""
        difference = np.abs(animated.astype(np.int16) - self._square)
        padding = (0, -self.size % BLOCK)
        difference = np.pad(difference, (padding, padding, (0, 0)), "edge")
        count = len(difference) // BLOCK
        blocks = difference.reshape(count, BLOCK, -1).max(1).reshape(count, count, -1).max(2)
        around = np.pad(blocks, 1, "edge")  # what moves in a block spoils its neighbours too
        blocks = np.max([around[y : y + count, x : x + count] for y in range(3) for x in range(3)], axis=0)
        weights = ((MOVED - blocks) / (MOVED - UNMOVED)).clip(0, 1).astype(np.float32)
        return self._to_window(weights, BLOCK)[..., None]

    def _seam_offset(self, moving: np.ndarray) -> np.ndarray:
        """What the soft edge lacks to the picture's colours, (3,): the mean of the middle half of all differences, for
        a shoulder that moves through the edge says nothing about colours."""
        if not len(self._seam):
            return np.zeros(3, np.float32)
        plain, moving = (pixels.reshape(-1, 3)[self._seam] for pixels in (self._plain, moving))
        differences = np.sort(plain - moving, axis=0)
        quarter = len(differences) // 4
        return differences[quarter : len(differences) - quarter].mean(0)


@torch.inference_mode()
def refine_face(
    extractor: MotionExtractor,
    picture: np.ndarray,
    face: Box,
    device: torch.device | str = "cpu",
    rounds: int = ROUNDS,
) -> Box:
    """The face box that the motion extractor's own keypoints give, a few rounds long: the square around the box so far
    is cut out, its keypoints are found, and their face box is the next one.

    picture: uint8 (H, W, 3). Where the keypoints leave the square, or gather in a spot of it, they have lost the face:
    then the box before is kept, with a line in the log.
    """
    size = extractor.config.image_size
    for _ in range(rounds):
        crop = Crop.around(face, picture.shape[1], picture.shape[0])
        pixels = torch.tensor(crop.cut(picture, 2 * size)[None], device=device).float() / 255
        pixels = F.interpolate(rearrange(pixels, "b h w c -> b c h w"), size=(size, size), mode="area")
        pose = extractor(pixels.to(extractor.get_dtype())).to("cpu")
        left, top, right, bottom = (face_boxes(transform_keypoints(pose))[0] / BOX_GRID * crop.side).tolist()
        if min(right - left, bottom - top) < SMALLEST_SHARE * crop.side:
            log.warning("the keypoints show no face in the square at %s: the box stays as it was", crop)
            break
        face = Box(crop.left + left, crop.top + top, right - left, bottom - top)
    return face


def find_by_keypoints(extractor: MotionExtractor, picture: np.ndarray, device: torch.device | str = "cpu") -> Box:
    """A face without a detector: as `refine_face`, from the middle of the picture on, where the head must be the main
    thing."""
    middle = Crop.centred(picture.shape[1], picture.shape[0])
    side = middle.side / (1 + 2 * MARGIN)
    border = (middle.side - side) / 2
    return refine_face(extractor, picture, Box(middle.left + border, middle.top + border, side, side), device)


def draw_crop(picture: np.ndarray, crop: Crop, faces: list[Box], chosen: Box | None = None) -> np.ndarray:
    """The picture with the square (yellow), the face it was made for (green) and the other ones (white), each with
    the number by which it can be chosen: uint8 (H, W, 3)."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    line = max(1, round(min(image.size) / 150))
    font = ImageFont.load_default(max(10, round(min(image.size) / 25)))
    for number, face in enumerate(faces):
        draw.rectangle(_edges(face.left, face.top, face.width, face.height), outline="white", width=line)
        draw.text((face.left + 2 * line, face.top + line), str(number), "white", font)
    if chosen is not None:
        draw.rectangle(_edges(chosen.left, chosen.top, chosen.width, chosen.height), outline="lime", width=line)
    draw.rectangle(_edges(crop.left, crop.top, crop.side, crop.side), outline="yellow", width=2 * line)
    return np.asarray(image)


def _edges(left: float, top: float, width: float, height: float) -> list[float]:
    return [left, top, left + max(1, width) - 1, top + max(1, height) - 1]
