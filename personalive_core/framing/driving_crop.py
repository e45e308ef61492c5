"""A square that follows the driver's head calmly: a crop that trembles makes the result flicker."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch

from ..errors import InputError
from ..motion.extraction import DrivingFrame
from ..networks.motion_extractor import MotionExtractor
from .crop import (
    MARGIN,
    VERTICAL_OFFSET,
    Crop,
    LoadExtractor,
    check_crop_settings,
    draw_crop,
    find_by_keypoints,
    refine_face,
)
from .face_detector import CHOICES, Box, Detector, choose_face, find_faces

MODES = ("smoothed", "fixed", "per-frame")
SIZE = 512  # pixels of the cropped frames, as the model was trained

# The filter's gains: the fraction of each frame's surprise that position and speed take. This gain of the speed follows
# an even movement without lag and with the least overshoot (Benedict and Bordner 1962).
GAIN = np.array([0.3, 0.3, 0.25])  # of x, y and size: heads change their size slowly, and detectors measure it worst
SPEED_GAIN = GAIN**2 / (2 - GAIN)
SPEED_KEPT = 0.8  # a frame, while no face is found: the square comes to rest
NOT_SMALLER = 0.6  # of its size before: the least that a face has when it is looked for around its last place
JUMP = 0.6  # of the face's size: whatever is farther away is another face or none ...
PATIENCE = 8  # ... unless it stays there for so many frames, as after a cut
FIXED_STEP = 4  # the fixed square looks at every fourth frame
OUTLIERS = 2  # per cent at each end that the fixed square ignores

# A picture, uint8 (H, W, 3), and where the face was before (None at first) -> where it is now, None if nowhere.
Locate = Callable[[np.ndarray, Box | None], Box | None]


def locate_by_detector(detector: Detector, choice: str = CHOICES[0]) -> Locate:
    """Follows a face by a detector: first the one that is chosen, then the nearest to where it was.

    It looks around the last place first, and only then in the whole picture.

    Args:
        detector: finds the faces.
        choice: which one in the first frame that shows any, see `choose_face`.
    """

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
    """Follows a face by the motion extractor's keypoints, from the middle of the first picture, which the head must
    fill.

    Args:
        extractor: the motion extractor.
        device: where it is.
    """

    def locate(picture: np.ndarray, before: Box | None) -> Box | None:
        if before is None:
            return find_by_keypoints(extractor, picture, device)
        return refine_face(extractor, picture, before, device, rounds=1)

    return locate


class DrivingCrop:
    """Cuts the driver's head out of one frame after another: uint8 (H, W, 3) -> SIZE x SIZE pixels.

    Until the first face is found, the square is in the middle. A frame has a face if `locate` found one whose centre is
    in the square.

    Args:
        locate: finds the face in each frame. None with a fixed square: then every frame counts as having a face.
        mode: "smoothed" follows the head calmly, "per-frame" follows what each frame alone says, "fixed" stays where it
            is.
        margin, vertical_offset: in sizes of the face.
        fixed: the square for "fixed", see `find_fixed_square`.
    """

    def __init__(
        self,
        locate: Locate | None,
        mode: str = MODES[0],
        *,
        margin: float = MARGIN,
        vertical_offset: float = VERTICAL_OFFSET,
        fixed: Crop | None = None,
    ):
        if mode not in MODES or (mode == "fixed") != (fixed is not None) or (locate is None and fixed is None):
            raise ValueError(f"the mode is {mode!r}, with a fixed square or not: {fixed}")
        self._locate, self._margin, self._vertical_offset, self._fixed = locate, margin, vertical_offset, fixed
        self._smooth = Smoother() if mode == "smoothed" else lambda box: box
        self._before: Box | None = None  # where a face was last found
        self._shown: Box | None = None
        self.square: Crop | None = None  # of the last frame

    def cut(self, picture: np.ndarray) -> DrivingFrame:
        """Cuts the next frame. Every frame must go through here once, in order."""
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
        return _square_around(self._shown, width, height, self._margin, self._vertical_offset)


def find_fixed_square(
    pictures: Iterable[np.ndarray], locate: Locate, *, margin: float = MARGIN, vertical_offset: float = VERTICAL_OFFSET
) -> Crop:
    """Finds one square that holds the head, with its margin, in every frame of a clip but for a few outliers.

    Args:
        pictures: the frames in order, uint8 (H, W, 3). Every fourth one is looked at.
        locate: finds the face.
        margin, vertical_offset: in sizes of the face.

    Raises:
        InputError: no frame shows a face.
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
    # The whole path of the face, with the margin for the size of the face.
    whole = Box(float(left + right - side) / 2, float(top + bottom - side) / 2, side, side)
    return Crop.around(whole, *size, margin * face / side, vertical_offset * face / side)


@dataclass(frozen=True)
class DrivingCropSettings:
    """How to follow the driver's head: the mode of `DrivingCrop`, which face to begin with (see `choose_face`), and
    the square around it in sizes of the face.

    Raises:
        InputError: the margin or the offset is outside its limits.
    """

    mode: str = MODES[0]
    face: str = CHOICES[0]
    margin: float = MARGIN
    vertical_offset: float = VERTICAL_OFFSET

    def __post_init__(self) -> None:
        check_crop_settings(self.margin, self.vertical_offset)


def open_driving_crop(
    settings: DrivingCropSettings,
    pictures: Iterable[np.ndarray],
    detector: Detector | None,
    extractor: LoadExtractor,
    device: torch.device | str = "cpu",
) -> DrivingCrop:
    """Makes the crop of a driving video.

    Args:
        settings: how to follow the head.
        pictures: all frames, uint8 (H, W, 3), that the crop will cut. Only the mode "fixed" reads them beforehand.
        detector: finds the faces. Without one, the motion extractor's keypoints do.
        extractor: gives the motion extractor.
        device: where the extractor is.

    Raises:
        InputError: the mode is "fixed", and no frame shows a face.
    """
    locate = locate_by_detector(detector, settings.face) if detector else locate_by_keypoints(extractor(), device)
    margin, vertical_offset = settings.margin, settings.vertical_offset
    if settings.mode != "fixed":
        return DrivingCrop(locate, settings.mode, margin=margin, vertical_offset=vertical_offset)
    fixed = find_fixed_square(pictures, locate, margin=margin, vertical_offset=vertical_offset)
    # Keypoints cannot say whether there is a face: with them, the fixed square needs no more looking.
    return DrivingCrop(locate if detector else None, settings.mode, fixed=fixed)


def _square_around(face: Box, width: int, height: int, margin: float, vertical_offset: float) -> Crop:
    """Not moved into the picture like a portrait's: at the edge the head would seem to move."""
    side = min(face.side * (1 + 2 * margin), width, height)
    x, y = (min(max(c, 0), length) for c, length in zip(face.centre, (width, height), strict=True))
    return Crop(x - side / 2, y + vertical_offset * face.side - side / 2, side, width, height)


def _is_inside(square: Crop, x: float, y: float) -> bool:
    return 0 <= x - square.left <= square.side and 0 <= y - square.top <= square.side


class Smoother:
    """Steadies a face's box from frame to frame: an alpha-beta filter of its centre and size, which follows an even
    movement without lag. It is causal, so it serves live video too."""

    def __init__(self) -> None:
        self._state: np.ndarray | None = None  # x, y, logarithm of the side
        self._speed = np.zeros(3)
        self._strange = 0

    def __call__(self, box: Box | None) -> Box | None:
        """Takes the next frame's box, if there is one, and gives the steady one, a square; None before the first."""
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
