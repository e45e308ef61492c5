"""The square that the model wants out of a picture of any shape."""

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
ROUNDS = 3  # of refining
SMALLEST_SHARE = 0.15  # of the square's side, that a face found in it takes at least
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
        return resample(picture, edges, size, size)

    def check(self, picture: np.ndarray) -> None:
        if picture.shape[:2] != (self.height, self.width):
            raise InputError(
                f"the square was cut out of a picture of {self.width} x {self.height} pixels, and this one is "
                f"{picture.shape[1]} x {picture.shape[0]}: give the same picture, or a video of that size."
            )


def resample(
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
