"""Face detectors from files, and the choice among faces."""

import importlib
import re

import numpy as np
import pytest
from PIL import Image

from face import draw_face
from haar import write_cascade
from personalive_core.errors import InputError
from personalive_core.framing.face_detector import Box, choose_face, find_faces, load_detector

HEAD = (40, 20, 176)  # left, top and side in a drawn face of 256 pixels


def scene(*places: tuple[int, int, int]) -> np.ndarray:
    """Drawn faces of so many pixels at left, top, size."""
    image = Image.new("RGB", (640, 400), "#cfd8dc")
    for i, (left, top, size) in enumerate(places):
        face = Image.fromarray(draw_face(yaw=0.6 - i, mouth=i / 2))
        image.paste(face.resize((size, size), Image.Resampling.LANCZOS), (left, top))
    return np.asarray(image)


def heads(*places: tuple[int, int, int]) -> list[Box]:
    boxes = ((x + HEAD[0] * s / 256, y + HEAD[1] * s / 256, HEAD[2] * s / 256) for x, y, s in places)
    return [Box(left, top, side, side) for left, top, side in boxes]


def is_near(box: Box, head: Box) -> bool:
    offset = np.hypot(*np.subtract(box.centre, head.centre)) / head.side
    return offset < 0.12 and 0.75 < box.side / head.side < 1.25


@pytest.mark.parametrize(
    "places", [[(200, 60, 222)], [(40, 60, 176), (360, 60, 181)], [(40, 60, 220), (360, 90, 130)], []]
)
def test_a_haar_cascade_finds_faces_of_any_size_from_left_to_right(tmp_path, places):
    found = find_faces(load_detector(write_cascade(tmp_path / "drawn.xml")), scene(*places))
    assert len(found) == len(places)
    assert all(is_near(box, head) for box, head in zip(found, heads(*places), strict=True))


def test_a_haar_cascade_in_opencv_finds_the_same(tmp_path):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed, with which our reading of its files is compared")
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip("OpenCV 5 reads no Haar cascades, with which ours is compared")
    file, picture = write_cascade(tmp_path / "drawn.xml"), scene((40, 60, 176), (360, 60, 181))
    cascade, grey = cv2.CascadeClassifier(str(file)), cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    theirs = [Box(*map(float, box)) for box in cascade.detectMultiScale(grey, 1.1, 1)]
    assert len(theirs) >= 2
    for ours in find_faces(load_detector(file), picture):
        assert any(is_near(box, ours) for box in theirs)


def test_a_tree_of_more_than_one_node(tmp_path):
    """The stump `value < threshold ? 0 : 1` once more, as a tree that asks twice."""
    file = write_cascade(tmp_path / "stumps.xml")
    tree = re.sub(
        r"0 -1 (\d) (\S+)</internalNodes><leafValues>0. 1.<",
        r"0 1 \1 -9 -1 -2 \1 \2</internalNodes><leafValues>0. 0. 1.<",
        file.read_text(),
    )
    (tmp_path / "trees.xml").write_text(tree)
    picture = scene((200, 60, 222))
    stumps, trees = (find_faces(load_detector(tmp_path / name), picture) for name in ("stumps.xml", "trees.xml"))
    assert stumps == trees != []


def test_a_picture_of_nothing_has_no_face(tmp_path):
    detector = load_detector(write_cascade(tmp_path / "drawn.xml"))
    assert find_faces(detector, np.zeros((300, 400, 3), np.uint8)) == []
    assert find_faces(detector, np.full((32, 10, 3), 255, np.uint8)) == []


class FakeYunet:
    """OpenCV's interface to YuNet, with one face at a quarter of the picture that it is shown."""

    __version__ = "0"
    error = RuntimeError

    class FaceDetectorYN:
        @classmethod
        def create(cls, *_):
            return cls()

        def setInputSize(self, size):
            self.size = size

        def detect(self, picture):
            assert picture.shape == (self.size[1], self.size[0], 3)
            if picture[..., 0].max() == 0:  # blue
                return 0, None
            face = [self.size[0] / 4, self.size[1] / 4, self.size[0] / 2, self.size[1] / 2, *range(11)]
            return 1, np.array([face], np.float32)


def test_yunet_is_given_bgr_of_its_size_and_answers_in_the_pictures_pixels(tmp_path, monkeypatch):
    (tmp_path / "yunet.onnx").touch()
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", lambda name: FakeYunet)
        detector = load_detector(tmp_path / "yunet.onnx")
    blue = np.full((600, 1600, 3), (0, 0, 9), np.uint8)
    assert detector(blue, 0) == [(400, 150, 800, 300)]
    assert detector(blue, 801) == []
    assert detector(np.full((600, 1600, 3), (9, 9, 0), np.uint8), 0) == []


def test_without_opencv_yunet_says_what_to_do(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    (tmp_path / "yunet.onnx").touch()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"needs OpenCV.*opencv-python-headless.*Haar"):
        load_detector(tmp_path / "yunet.onnx")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("face.txt", "", "no face detector"),
        ("absent.xml", None, "does not exist"),
        ("broken.xml", "<opencv_storage>", "cannot be used as a Haar cascade"),
        ("other.xml", "<opencv_storage/>", "no cascade of Haar features"),
        ("yunet.onnx", "no network", "cannot be read as YuNet"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, words):
    if name.endswith(".onnx"):
        pytest.importorskip("cv2", reason="OpenCV is not installed, which reads .onnx")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        load_detector(tmp_path / name)


def test_tilted_features_are_refused(tmp_path):
    file = write_cascade(tmp_path / "tilted.xml")
    file.write_text(file.read_text().replace("</rects>", "</rects><tilted>1</tilted>"))
    with pytest.raises(InputError, match="tilted"):
        load_detector(file)


FACES = [Box(10, 10, 30, 30), Box(70, 40, 40, 50), Box(150, 10, 60, 60)]


@pytest.mark.parametrize("choice, index", [("largest", 2), ("centre", 1), ("0", 0), ("2", 2)])
def test_which_face_is_a_choice(choice, index):
    assert choose_face(FACES, choice, 220, 120) == FACES[index]


@pytest.mark.parametrize(
    "faces, choice, words",
    [([], "largest", "no face was found"), (FACES, "3", "number 3: the picture has 3"), (FACES, "left", "'left'")],
)
def test_no_such_face(faces, choice, words):
    with pytest.raises(InputError, match=words):
        choose_face(faces, choice, 220, 120)
