"""Where the faces are in a picture, found by YuNet, and which of them is meant."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError

SUFFIX = ".onnx"
CHOICES = ("largest", "centre")  # or a number
CONFIDENCE = 0.7
LONGER_SIDE = 640  # pixels, of the picture that YuNet sees
SMALLEST = 0.08  # face that counts, as a fraction of the picture's shorter side


class Box(NamedTuple):
    """A face: left, top, width and height in pixels of the picture."""

    left: float
    top: float
    width: float
    height: float

    @property
    def centre(self) -> tuple[float, float]:
        return self.left + self.width / 2, self.top + self.height / 2

    @property
    def side(self) -> float:
        """Of the square that holds it."""
        return max(self.width, self.height)


# A picture, uint8 (H, W, 3) RGB, and the side in pixels of the smallest face that counts -> its faces, from left to
# right.
Detector = Callable[[np.ndarray, float], list[Box]]


def find_faces(detector: Detector, picture: np.ndarray) -> list[Box]:
    """All faces in a picture, uint8 (H, W, 3), from left to right."""
    return detector(picture, SMALLEST * min(picture.shape[:2]))


def load_detector(path: str | Path) -> Detector:
    """Loads YuNet (Wu, Peng and Yu 2023), which runs in OpenCV.

    Args:
        path: the .onnx file of any of its versions since 2023.

    Raises:
        InputError: the file is not there or is not YuNet, or OpenCV is missing or too old.
    """
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise InputError(f"{path} is no face detector: give a YuNet file, which ends in {SUFFIX}.")
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the path of a YuNet file, which ends in {SUFFIX}.")
    return _YuNet(path)


def choose_face(faces: list[Box], choice: str, width: int, height: int) -> Box:
    """Picks one of several faces.

    Args:
        faces: in any order.
        choice: "largest", "centre" (the one nearest to the centre of the picture), or an index into `faces`, such as
            "0".
        width, height: of the picture, in pixels.

    Raises:
        InputError: there is no face, or none with that index.
    """
    if not faces:
        raise InputError("no face was found: give another detector or picture, or say by hand where the face is.")
    if choice == "largest":
        return max(faces, key=lambda face: face.width * face.height)
    if choice == "centre":
        return min(faces, key=lambda face: np.hypot(face.centre[0] - width / 2, face.centre[1] - height / 2))
    if not choice.isdecimal():
        raise InputError(f"the face is {choice!r}, but must be one of {', '.join(CHOICES)}, or a number from 0 on.")
    if int(choice) >= len(faces):
        raise InputError(f"there is no face of number {choice}: the picture has {len(faces)}, counted from 0.")
    return faces[int(choice)]


class _YuNet:
    def __init__(self, path: Path):
        try:
            cv2 = importlib.import_module("cv2")
        except ImportError as error:
            raise InputError(
                f"{path.name} needs OpenCV, which is not installed: run `python -m pip install opencv-python-headless` "
                "(with ComfyUI's own Python if you use ComfyUI), or choose no detector, and the model's own keypoints "
                "find the face."
            ) from error
        try:
            self._detector = cv2.FaceDetectorYN.create(str(path), "", (64, 64), CONFIDENCE)
            self._detector.detect(np.zeros((64, 64, 3), np.uint8))  # another network or an old OpenCV fails only here
        except (AttributeError, cv2.error) as error:
            raise InputError(
                f"OpenCV {cv2.__version__} cannot use {path} as YuNet: fetch the file again, or update OpenCV if it is "
                "older than 4.8."
            ) from error

    def __call__(self, picture: np.ndarray, smallest: float) -> list[Box]:
        height, width = picture.shape[:2]
        scale = min(1.0, LONGER_SIDE / max(width, height))
        size = round(width * scale), round(height * scale)
        small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
        self._detector.setInputSize(size)
        _, found = self._detector.detect(np.ascontiguousarray(small[..., ::-1]))  # it takes BGR
        boxes = [] if found is None else [Box(*(float(v) / scale for v in face[:4])) for face in found]
        return sorted(box for box in boxes if box.side >= smallest)
