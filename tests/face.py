"""A drawn face, made with Pillow alone, pictures with several of them, and two detectors that find them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from personalive_core.framing.face_detector import Box

SKIN = np.array([0xE8, 0xB9, 0x98])
HEAD = (40, 20, 176)  # left, top and side in a drawn face of 256 pixels
# Made by tools/make_test_detector.py: OpenCV runs it as it runs YuNet.
DETECTOR_FILE = Path(__file__).parent / "assets" / "drawn_faces.onnx"


def draw_face(yaw: float = 0.0, mouth: float = 0.0, hair: str = "#5a3825", shirt: str = "#3f6f8f") -> np.ndarray:
    """A face, uint8 (256, 256, 3); yaw -1 (left) to 1 (right), mouth 0 (closed) to 1 (open)."""
    scale, shift = 3, yaw * 14  # drawn larger, then made smaller: smooth edges
    image = Image.new("RGB", (256 * scale, 256 * scale), "#cfd8dc")
    draw = ImageDraw.Draw(image)

    def ellipse(x: float, y: float, width: float, height: float, colour: str) -> None:
        draw.ellipse([scale * v for v in (x - width, y - height, x + width, y + height)], fill=colour)

    ellipse(128, 275, 95, 75, shirt)
    ellipse(128, 205, 26, 30, "#d9a583")
    ellipse(128 + shift * 0.3, 100, 72, 78, hair)
    ellipse(128 + shift * 0.6, 120, 58, 74, "#e8b998")
    ellipse(128 + shift * 0.5, 62, 58, 26, hair)
    for side in (-1, 1):
        x = 128 + shift + 24 * side
        ellipse(x, 112, 11, 7.5, "#ffffff")
        ellipse(x + yaw * 4, 112, 5.5, 5.5, "#3b2a20")
        ellipse(x, 97, 12, 2.5, hair)
    ellipse(128 + shift * 1.4, 138, 6, 9, "#d9a080")
    ellipse(128 + shift, 165, 17, 3 + 11 * mouth, "#9c4444")
    return np.asarray(image.resize((256, 256), Image.Resampling.LANCZOS))


def scene(*places: tuple[int, int, int]) -> np.ndarray:
    """Drawn faces of so many pixels at left, top, size: uint8 (400, 640, 3)."""
    image = Image.new("RGB", (640, 400), "#cfd8dc")
    for i, (left, top, size) in enumerate(places):
        face = Image.fromarray(draw_face(yaw=0.6 - i, mouth=i / 2))
        image.paste(face.resize((size, size), Image.Resampling.LANCZOS), (left, top))
    return np.asarray(image)


def heads(*places: tuple[int, int, int]) -> list[Box]:
    """Where the heads are in that scene."""
    boxes = ((x + HEAD[0] * s / 256, y + HEAD[1] * s / 256, HEAD[2] * s / 256) for x, y, s in places)
    return [Box(left, top, side, side) for left, top, side in boxes]


def is_near(box: Box, head: Box) -> bool:
    offset = np.hypot(*np.subtract(box.centre, head.centre)) / head.side
    return offset < 0.12 and 0.75 < box.side / head.side < 1.25


def find_drawn_faces(picture: np.ndarray, smallest: float) -> list[Box]:
    """A detector for drawn faces side by side, by the colour of their skin."""
    skin = (np.abs(picture.astype(int) - SKIN) < 12).all(-1)
    columns = np.flatnonzero(np.diff(skin.any(0), prepend=False, append=False))
    boxes = []
    for left, right in pairwise(columns):
        rows = np.flatnonzero(skin[:, left:right].any(1))
        if len(rows):
            side, middle = 1.52 * (right - left), (rows[0] + rows[-1]) / 2
            boxes.append(Box((left + right - side) / 2, middle - 0.66 * side, side, side))
    return [box for box in boxes if box.side >= max(smallest, 10)]
