"""A square around the driver's head that stays calm: a crop that trembles makes the result flicker."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice

import numpy as np
import torch

from ..errors import InputError
from ..motion.extraction import DrivingFrame
from ..networks.motion_extractor import MotionExtractor
from .crop import MARGIN, SHIFT, Crop, draw_crop, find_by_keypoints, refine_face
from .face_detector import Box, Detector, choose_face, find_faces

MODES = ("smoothed", "fixed", "per-frame")
SIZE = 512  # pixels of the cropped frames, as the model was trained

# Of each frame's difference to what was expected, the part that position and speed take. The speed's part is the one
# that follows an even movement without lag and without more overshoot than needed (Benedict and Bordner 1962).
GAIN = np.array([0.3, 0.3, 0.25])  # of x, y and size; heads change their size slowly, and detectors tell it worst
SPEED_GAIN = GAIN**2 / (2 - GAIN)
SPEED_KEPT = 0.8  # a frame, while no face is found: the square comes to rest
NOT_SMALLER = 0.6  # than this part of its size before is the face when it is looked for around its place
JUMP = 0.6  # of the face's size: what lies farther off is another face or none ...
PATIENCE = 8  # ... but for so many frames in a row it is the same one after a cut
FIXED_STEP = 4  # every how many frames are looked at for the fixed square
OUTLIERS = 2  # per cent at each end that the fixed square does not mind

# A picture, uint8 (H, W, 3), and where the face was before (None at first) -> where it is now, None if nowhere.
Locate = Callable[[np.ndarray, Box | None], Box | None]


def locate_by_detector(detector: Detector, choice: str = "largest") -> Locate:
    """At first the face that is chosen; then the one nearest to it, looked for around it before anywhere else."""

    def locate(picture: np.ndarray, before: Box | None) -> Box | None:
        height, width = picture.shape[:2]
        if before is None:
            faces = find_faces(detector, picture)
            return choose_face(faces, choice, width, height) if faces else None
        left, top = (max(0, int(c - before.side)) for c in before.centre)
        right, bottom = (math.ceil(c + before.side) for c in before.centre)
        around = np.ascontiguousarray(picture[top:bottom, left:right])
        near = detector(around, NOT_SMALLER * before.side)
        faces = [Box(face.left + left, face.top + top, face.width, face.height) for face in near]
        faces = faces or find_faces(detector, picture)
        return min(faces, key=lambda face: math.dist(face.centre, before.centre), default=None)

    return locate


def locate_by_keypoints(extractor: MotionExtractor, device: torch.device | str = "cpu") -> Locate:
    """By the motion extractor's own keypoints, from the middle of the picture on. It needs no detector, but a first
    frame in which the head is the main thing."""

    def locate(picture: np.ndarray, before: Box | None) -> Box | None:
        if before is None:
            return find_by_keypoints(extractor, picture, device)
        return refine_face(extractor, picture, before, device, rounds=1)

    return locate


class DrivingCrop:
    """Cuts the driver's head out of frame after frame: uint8 (H, W, 3) -> SIZE x SIZE pixels.

    mode: "smoothed" follows the head with a calm square, "per-frame" with the square of each frame alone; "fixed" is
    one square for the whole clip, which `find_fixed_square` finds beforehand. Until the first face, the middle.

    A frame has a face if `locate` found one whose centre is in the square. With a fixed square `locate` serves that
    alone and may be None: then all frames count as having one.
    """

    def __init__(
        self,
        locate: Locate | None,
        mode: str = "smoothed",
        *,
        margin: float = MARGIN,
        shift: float = SHIFT,
        fixed: Crop | None = None,
    ):
        if mode not in MODES or (mode == "fixed") != (fixed is not None) or (locate is None and fixed is None):
            raise ValueError(f"the mode is {mode!r}, with a fixed square or not: {fixed}")
        self._locate, self._margin, self._shift, self._fixed = locate, margin, shift, fixed
        self._smooth = Smoother() if mode == "smoothed" else lambda box: box
        self._before: Box | None = None  # where a face was last found
        self._shown: Box | None = None
        self.square: Crop | None = None  # of the last frame

    def cut(self, picture: np.ndarray) -> DrivingFrame:
        """The next frame; every frame must go through here once, in order."""
        found = self._locate(picture, self._before) if self._locate else None
        self._before = found or self._before
        self.square = square = self._fixed or self._follow(found, picture)
        has_face = self._locate is None or (found is not None and _is_inside(square, *found.centre))
        return DrivingFrame(square.cut(picture, SIZE), has_face, overview=partial(draw_crop, picture, square, []))

    def _follow(self, found: Box | None, picture: np.ndarray) -> Crop:
        self._shown = self._smooth(found) or self._shown
        height, width = picture.shape[:2]
        if self._shown is None:
            return Crop.centred(width, height)
        return _square_around(self._shown, width, height, self._margin, self._shift)


def find_fixed_square(
    pictures: Iterable[np.ndarray], locate: Locate, *, margin: float = MARGIN, shift: float = SHIFT
) -> Crop:
    """One square that holds the head, with its margin, in every frame of a clip; a few odd frames do not count.

    InputError where no frame has a face.
    """
    before, boxes, size = None, [], (0, 0)
    for picture in islice(pictures, 0, None, FIXED_STEP):
        size = picture.shape[1], picture.shape[0]
        found = locate(picture, before)
        if found is not None:
            boxes.append((found.left, found.top, found.left + found.width, found.top + found.height))
            before = found
    if not boxes:
        raise InputError("no frame of the driving video shows a face that was found: crop it yourself, or not at all.")
    edges = np.array(boxes)
    left, top = np.percentile(edges[:, :2], OUTLIERS, axis=0)
    right, bottom = np.percentile(edges[:, 2:], 100 - OUTLIERS, axis=0)
    face = float(np.median(edges[:, 2:] - edges[:, :2], axis=0).max())
    side = float(max(right - left, bottom - top))
    # All of the way that the face takes, and around it the margin that goes with the face's own size.
    whole = Box(float(left + right - side) / 2, float(top + bottom - side) / 2, side, side)
    return Crop.around(whole, *size, margin * face / side, shift * face / side)


def _square_around(face: Box, width: int, height: int, margin: float, shift: float) -> Crop:
    """Not moved inwards as a portrait's: the head must not seem to move where the square comes to the edge."""
    side = min(face.side * (1 + 2 * margin), width, height)
    x, y = (min(max(c, 0), length) for c, length in zip(face.centre, (width, height), strict=True))
    return Crop(x - side / 2, y + shift * face.side - side / 2, side, width, height)


def _is_inside(square: Crop, x: float, y: float) -> bool:
    return 0 <= x - square.left <= square.side and 0 <= y - square.top <= square.side


class Smoother:
    """A face's box from frame to frame without its trembling: an alpha-beta filter of centre and size, which follows
    what moves evenly without lag. Causal: each box comes from those so far, so that it serves live video too."""

    def __init__(self) -> None:
        self._state: np.ndarray | None = None  # x, y, logarithm of the side
        self._speed = np.zeros(3)
        self._strange = 0

    def __call__(self, box: Box | None) -> Box | None:
        """The next frame's box, a square one; None as long as there was none."""
        if self._state is None:
            if box is None:
                return None
            self._state = _measured(box)
            return _box(self._state)
        expected = self._state + self._speed
        if box is not None and math.dist(box.centre, expected[:2]) > JUMP * math.exp(expected[2]):
            self._strange += 1
            if self._strange < PATIENCE:
                box = None
        elif box is not None:
            self._strange = 0
        if self._strange >= PATIENCE and box is not None:  # a cut
            self._state, self._speed, self._strange = _measured(box), np.zeros(3), 0
        elif box is None:
            self._state, self._speed = expected, self._speed * SPEED_KEPT
        else:
            surprise = _measured(box) - expected
            self._state, self._speed = expected + GAIN * surprise, self._speed + SPEED_GAIN * surprise
        return _box(self._state)


def _measured(box: Box) -> np.ndarray:
    return np.array([*box.centre, math.log(box.side)])


def _box(state: np.ndarray) -> Box:
    x, y, side = state[0], state[1], math.exp(state[2])
    return Box(float(x - side / 2), float(y - side / 2), side, side)
