"""Where the faces are, by a file of OpenCV's detectors, and which one is meant."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ..errors import InputError

SUFFIXES = (".onnx", ".xml")
CHOICES = ("largest", "centre")  # or a number
CONFIDENCE = 0.7  # of YuNet
SIGNS = np.array([1, -1, -1, 1])  # of the sums up to a rectangle's corners, which give the sum in it
PIECE = 8192  # windows at a time, which bounds the memory
YUNET_SIZE = 640  # pixels of the longer side that YuNet is shown


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


SMALLEST = 0.08  # a face that is looked for, in parts of the picture's shorter side

# A picture, uint8 (H, W, 3) RGB, and the side in pixels of the smallest face that counts -> its faces, from left to
# right.
Detector = Callable[[np.ndarray, float], list[Box]]


def find_faces(detector: Detector, picture: np.ndarray) -> list[Box]:
    """All faces in a picture, from left to right."""
    return detector(picture, SMALLEST * min(picture.shape[:2]))


def load_detector(path: str | Path) -> Detector:
    """A detector by the kind of its file: `.onnx` is YuNet, which needs OpenCV (the package opencv-python-headless),
    `.xml` a Haar cascade for upright faces, which needs nothing.

    Raises InputError for other files, for one that cannot be read, and where OpenCV is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} is no face detector: give a YuNet file (.onnx) or a Haar cascade (.xml) of OpenCV.")
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the path of a face detector, .onnx or .xml.")
    return HaarCascade(path) if path.suffix.lower() == ".xml" else _Yunet(path)


def choose_face(faces: list[Box], choice: str, width: int, height: int) -> Box:
    """The largest face, the one nearest to the "centre" of the picture, or the one of a number, counted from 0 in the
    list's order. InputError where there is none, or none of that number."""
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


class _Yunet:
    def __init__(self, path: Path):
        try:
            self._cv2 = importlib.import_module("cv2")
        except ImportError as error:
            raise InputError(
                f"{path} needs OpenCV, which is not installed: install opencv-python-headless, or give a Haar "
                "cascade (.xml), which needs nothing."
            ) from error
        try:
            self._detector = self._cv2.FaceDetectorYN.create(str(path), "", (YUNET_SIZE, YUNET_SIZE), CONFIDENCE)
        except (AttributeError, self._cv2.error) as error:  # an OpenCV before 4.5.4 has no YuNet
            version = self._cv2.__version__
            raise InputError(f"{path} cannot be read as YuNet by OpenCV {version}: give another file.") from error

    def __call__(self, picture: np.ndarray, smallest: float) -> list[Box]:
        height, width = picture.shape[:2]
        scale = min(1.0, YUNET_SIZE / max(width, height))
        size = round(width * scale), round(height * scale)
        small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
        self._detector.setInputSize(size)
        _, found = self._detector.detect(np.ascontiguousarray(small[..., ::-1]))  # it takes BGR
        boxes = [] if found is None else [Box(*(float(v) / scale for v in face[:4])) for face in found]
        return sorted(box for box in boxes if box.side >= smallest)


class HaarCascade:
    """OpenCV's cascades of boosted Haar features (Viola and Jones 2001; Lienhart and Maydt 2002), evaluated in NumPy,
    for OpenCV 5 reads them no more and hosts come without OpenCV.

    Windows of the cascade's size are looked at in the picture made smaller step by step. Those that pass all stages
    come in clusters around a face; a cluster of more than `NEIGHBOURS` is one.
    """

    STEP = 1.1  # from one size to the next
    NEIGHBOURS = 3
    LIKE = 0.2  # windows are of one cluster if they differ by less than this part of their size

    def __init__(self, path: Path):
        try:
            cascade = ElementTree.parse(path).getroot().find("cascade")
            if cascade is None or cascade.findtext("featureType", "").strip() != "HAAR":
                raise ValueError("it is no cascade of Haar features as OpenCV 2.4 and newer write them")
            if any((item.text or "").strip() == "1" for item in cascade.iter("tilted")):
                raise ValueError("it has tilted features, which are not known here")
            self.width, self.height = int(cascade.findtext("width", "")), int(cascade.findtext("height", ""))
            features = [
                np.concatenate([_numbers(rectangle.text or "", 5) for rectangle in item.iterfind("rects/_")])
                for item in cascade.iterfind("features/_")
            ]
            self._stages = [_Stage(item, features) for item in cascade.iterfind("stages/_")]
        except (ElementTree.ParseError, ValueError, IndexError) as error:
            raise InputError(f"{path} cannot be used as a Haar cascade ({error}): give another file.") from error
        if not self._stages:
            raise InputError(f"{path} cannot be used as a Haar cascade (it has no stages): give another file.")

    def __call__(self, picture: np.ndarray, smallest: float) -> list[Box]:
        grey = Image.fromarray(picture).convert("L")
        width, height = grey.size
        scale = max(1.0, smallest / min(self.width, self.height))
        coarse = max(1, int(scale / 2))  # a quick first step, for every size is made from the same picture
        grey, box = grey.reduce(coarse), (0, 0, width / coarse, height / coarse)
        found = [np.zeros((0, 4))]
        while min(width / scale - self.width, height / scale - self.height) >= 1:
            small = grey.resize((round(width / scale), round(height / scale)), Image.Resampling.BILINEAR, box)
            x, y = self._passed(np.asarray(small, np.float64))
            found.append(np.stack([x, y, np.full_like(x, self.width), np.full_like(x, self.height)], 1) * scale)
            scale *= self.STEP
        return sorted(_clusters(np.concatenate(found), self.NEIGHBOURS, self.LIKE))

    def _passed(self, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows of the windows that pass all stages."""
        sums, squares = (np.pad(x, ((1, 0), (1, 0))).cumsum(0).cumsum(1) for x in (grey, grey**2))
        stride = sums.shape[1]
        rows, columns = np.arange(len(grey) - self.height + 1), np.arange(grey.shape[1] - self.width + 1)
        windows = (rows[:, None] * stride + columns).ravel()  # the place of each one's first pixel
        # Features count in deviations of the window without its border, as in the cascades' training.
        inside = np.array([[1, 1, self.width - 2, self.height - 2]])
        total, square = (
            (x.ravel()[windows[:, None] + _corners(inside, stride)] * SIGNS).sum(1) for x in (sums, squares)
        )
        spread = (self.width - 2) * (self.height - 2) * square - total**2
        windows, spread = windows[spread > 0], np.sqrt(spread[spread > 0])
        for stage in self._stages:
            passes = stage.passes(sums.ravel(), stride, windows, spread)
            windows, spread = windows[passes], spread[passes]
        return windows % stride, windows // stride


def _corners(rectangles: np.ndarray, stride: int) -> np.ndarray:
    """Rectangles (R, 4) x, y, width, height -> where their corners stand in a flat table of sums, (4 R,)."""
    x, y, width, height = rectangles.T[:4].astype(np.int64)
    return np.stack(
        [y * stride + x, y * stride + x + width, (y + height) * stride + x, (y + height) * stride + x + width], 1
    ).ravel()


class _Stage:
    """Small decision trees over features, and what the sum of their answers must reach in a face."""

    def __init__(self, item: ElementTree.Element, features: list[np.ndarray]):
        self._threshold = float(item.findtext("stageThreshold", "")) - 1e-5  # the room that OpenCV leaves
        nodes, leaves, self._roots = [], [], []
        for tree in item.iterfind("weakClassifiers/_"):
            self._roots.append(len(nodes))
            for left, right, feature, threshold in _numbers(tree.findtext("internalNodes", ""), 4):
                # In the file a child above 0 is a node of this tree, others are its leaves 0, -1, ...; here all trees
                # share one list of nodes, 0, 1, ..., and one of leaves, -1, -2, ...
                ends = [int(x) + self._roots[-1] if x > 0 else int(x) - 1 - len(leaves) for x in (left, right)]
                nodes.append((*ends, int(feature), threshold))
            leaves += _numbers(tree.findtext("leafValues", ""), 1)[:, 0].tolist()
        left, right, feature, self._node_thresholds = np.array(nodes).T
        self._children = np.stack([right, left]).astype(np.int64)
        self._leaves = np.array(leaves)
        parts = [features[int(number)] for number in feature]
        self._rectangles = np.concatenate(parts)
        self._weights = (self._rectangles[:, 4:] * SIGNS).ravel()
        self._first = np.cumsum([0, *(4 * len(part) for part in parts[:-1])])  # corner of each feature
        if self._children.max() >= len(nodes) or -self._children.min() > len(leaves):
            raise ValueError("a tree names a node that is not there")

    def passes(self, sums: np.ndarray, stride: int, windows: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Which of the windows pass, (N,) bool; `spread` (N,) is their deviation."""
        passes = np.zeros(len(windows), bool)
        offsets = _corners(self._rectangles, stride)
        for begin in range(0, len(windows), PIECE):
            piece = slice(begin, begin + PIECE)
            corners = sums[windows[piece, None] + offsets] * self._weights
            values = np.add.reduceat(corners, self._first, axis=1) / spread[piece, None]
            goes_left = (values < self._node_thresholds).astype(np.int64)
            at = np.broadcast_to(self._roots, (len(values), len(self._roots)))
            while (at >= 0).any():
                below = self._children[np.take_along_axis(goes_left, at.clip(0), 1), at.clip(0)]
                at = np.where(at >= 0, below, at)
            passes[piece] = self._leaves[-1 - at].sum(1) >= self._threshold
        return passes


def _numbers(text: str, count: int) -> np.ndarray:
    return np.array(text.split(), float).reshape(-1, count)


def _clusters(windows: np.ndarray, neighbours: int, like: float) -> list[Box]:
    """Windows (N, 4) x, y, width, height that are alike, in groups of more than `neighbours`: the mean of each."""
    sizes = windows[:, 2:].sum(1) / 2
    room = like * np.minimum(sizes[:, None], sizes)
    edges = np.concatenate([windows[:, :2], windows[:, :2] + windows[:, 2:]], 1)
    alike = (np.abs(edges[:, None] - edges) <= room[..., None]).all(-1)
    labels = np.arange(len(windows))
    while True:  # each takes the lowest number among those alike, until that changes nothing
        lowest = np.where(alike, labels, len(labels)).min(1, initial=len(labels))
        if (lowest == labels).all():
            break
        labels = lowest
    groups = [windows[labels == label] for label in np.unique(labels)]
    groups = sorted((group for group in groups if len(group) > neighbours), key=len, reverse=True)
    boxes: list[Box] = []
    for group in groups:
        box = Box(*group.mean(0).tolist())
        if not any(_holds(other, box.centre) or _holds(box, other.centre) for other in boxes):
            boxes.append(box)
    return boxes


def _holds(box: Box, point: tuple[float, float]) -> bool:
    return 0 <= point[0] - box.left <= box.width and 0 <= point[1] - box.top <= box.height
