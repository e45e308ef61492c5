"""The square that the model needs, cut out of a picture of any shape."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..device import resize, to_pixels
from ..errors import InputError
from ..motion.keypoints import BOX_GRID, face_boxes, transform_keypoints
from ..networks.motion_extractor import MotionExtractor
from .face_detector import CHOICES, Box, Detector, choose_face, find_faces

log = logging.getLogger(__name__)

# In sizes of the face: the default and the limits of the margin on each side and of the offset downwards.
MARGIN, MARGIN_LIMITS = 0.5, (0.0, 5.0)
VERTICAL_OFFSET, VERTICAL_OFFSET_LIMITS = 0.1, (-2.0, 2.0)
ROUNDS = 3  # of refining
SMALLEST_SHARE = 0.15  # of the square's side that a face in it takes up
FILTER_SUPPORT = 3  # pixels on each side that Lanczos reads

LoadExtractor = Callable[[], MotionExtractor]
"""Gives the motion extractor; called only where its keypoints are needed."""


@dataclass(frozen=True)
class Crop:
    """A square in a picture of width x height pixels.

    Its edges need not be whole pixels. It may hang over the picture's edge, where the outermost pixels are repeated.

    Raises:
        InputError: it lies outside the picture, or is far larger.
    """

    left: float
    top: float
    side: float
    width: int
    height: int

    def __post_init__(self) -> None:
        meets_x = -self.side < self.left < self.width
        meets_y = -self.side < self.top < self.height
        if not (meets_x and meets_y and self.side >= 1):  # also for NaN
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
    def around(
        cls, face: Box, width: int, height: int, margin: float = MARGIN, vertical_offset: float = VERTICAL_OFFSET
    ) -> "Crop":
        """The square around a face, moved into the picture and no larger than the picture's shorter side.

        Args:
            face: in pixels of the picture.
            width, height: of the picture.
            margin: room on each side, in sizes of the face.
            vertical_offset: how far the square moves down, in sizes of the face.
        """
        side = min(face.side * (1 + 2 * margin), width, height)
        x, y = face.centre
        left, top = x - side / 2, y + vertical_offset * face.side - side / 2
        return cls(min(max(left, 0), width - side), min(max(top, 0), height - side), side, width, height)

    @classmethod
    def centred(cls, width: int, height: int) -> "Crop":
        """The largest square in the middle."""
        side = min(width, height)
        return cls((width - side) / 2, (height - side) / 2, side, width, height)

    def cut(self, picture: np.ndarray, size: int) -> np.ndarray:
        """Resamples the square with Lanczos: uint8 (height, width, 3) -> uint8 (size, size, 3).

        Raises:
            InputError: the picture has another size than the one this crop was made for.
        """
        self.check(picture)
        edges = self.left, self.top, self.left + self.side, self.top + self.side
        return resample(picture, edges, size, size)

    def check(self, picture: np.ndarray) -> None:
        """InputError if the picture has another size."""
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
    """Resamples a part of a picture.

    Args:
        pixels: uint8 or float32, (H, W, 3) or (H, W).
        edges: left, top, right and bottom of the part. They may lie between pixels and outside the picture.
        width, height: of the result.
        method: Pillow's filter.
    """
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
    """Moves a face's box to where the motion extractor's keypoints see the face.

    Each round cuts out the square around the box so far; the keypoints found in it give the next box. Keypoints that
    gather in a spot or leave the square have lost the face: then the box stays, and a line in the log says so.

    Args:
        extractor: the motion extractor.
        picture: uint8 (H, W, 3).
        face: the box to begin with.
        device: where the extractor is.
        rounds: how often.
    """
    size = extractor.config.image_size
    for _ in range(rounds):
        crop = Crop.around(face, picture.shape[1], picture.shape[0])
        pixels = resize(to_pixels(crop.cut(picture, 2 * size)[None], device), (size, size), "area")
        pose = extractor(pixels.to(extractor.get_dtype())).to("cpu")
        left, top, right, bottom = (face_boxes(transform_keypoints(pose))[0] / BOX_GRID * crop.side).tolist()
        if min(right - left, bottom - top) < SMALLEST_SHARE * crop.side:
            log.warning("the keypoints show no face in the square at %s: the box stays as it was", crop)
            break
        face = Box(crop.left + left, crop.top + top, right - left, bottom - top)
    return face


def find_by_keypoints(extractor: MotionExtractor, picture: np.ndarray, device: torch.device | str = "cpu") -> Box:
    """Finds a face without a detector, by `refine_face` from the middle of the picture. The head must fill most of it.

    Args:
        extractor: the motion extractor.
        picture: uint8 (H, W, 3).
        device: where the extractor is.
    """
    middle = Crop.centred(picture.shape[1], picture.shape[0])
    side = middle.side / (1 + 2 * MARGIN)
    border = (middle.side - side) / 2
    return refine_face(extractor, picture, Box(middle.left + border, middle.top + border, side, side), device)


def check_crop_settings(margin: float, vertical_offset: float) -> None:
    """InputError if one of them is outside its limits."""
    limits = {"margin": (margin, *MARGIN_LIMITS), "vertical offset": (vertical_offset, *VERTICAL_OFFSET_LIMITS)}
    for name, (value, least, most) in limits.items():
        if not least <= value <= most:
            raise InputError(f"the {name} is {value:g}, but must be from {least:g} to {most:g} sizes of the face.")


@dataclass(frozen=True)
class PortraitCrop:
    """The square for a portrait, the faces that a detector or the caller named, and the one it was made for."""

    crop: Crop
    faces: list[Box] = field(default_factory=list)
    face: Box | None = None


def crop_portrait(
    picture: np.ndarray,
    *,
    boxes: list[Box] | None = None,
    detector: Detector | None = None,
    extractor: LoadExtractor | None = None,
    device: torch.device | str = "cpu",
    choice: str = CHOICES[0],
    refine: bool = False,
    margin: float = MARGIN,
    vertical_offset: float = VERTICAL_OFFSET,
) -> PortraitCrop:
    """Finds the face in a portrait and the square around it.

    The first of `boxes`, `detector` and `extractor` that is given says where the face is.

    Args:
        picture: uint8 (H, W, 3).
        boxes: faces that are known already.
        detector: finds faces.
        extractor: gives the motion extractor, whose keypoints find a face in the middle of the picture.
        device: where the extractor is.
        choice: which of several faces, see `choose_face`.
        refine: let the keypoints move the box of the chosen face.
        margin, vertical_offset: see `Crop.around`.

    Raises:
        InputError: nothing says where the face is, there is no such face, `refine` lacks the extractor, or the margin
            or the offset is outside its limits.
    """
    check_crop_settings(margin, vertical_offset)
    height, width = picture.shape[:2]
    faces = find_faces(detector, picture) if detector and boxes is None else boxes
    if faces is None:
        if extractor is None:
            raise InputError(
                "nothing says where the face is: choose a detector, give the model or boxes, or give side, x and y of "
                "the square by hand."
            )
        face = find_by_keypoints(extractor(), picture, device)
    else:
        face = choose_face(faces, choice, width, height)
        if refine:
            if extractor is None:
                raise InputError("to refine the box of the face the model is needed: give it too, or do not refine.")
            face = refine_face(extractor(), picture, face, device)
    return PortraitCrop(Crop.around(face, width, height, margin, vertical_offset), faces or [], face)


def draw_crop(picture: np.ndarray, crop: Crop, faces: list[Box], chosen: Box | None = None) -> np.ndarray:
    """Draws a crop: the square in yellow, the chosen face in green, and all faces in white with their numbers.

    Args:
        picture: uint8 (H, W, 3); it does not change.
        crop: the square.
        faces: by their numbers, from 0.
        chosen: the face that the square was made for.
    """
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
