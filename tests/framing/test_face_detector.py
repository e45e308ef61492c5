"""YuNet in OpenCV, and the choice among faces. The network is a small one with YuNet's outputs, for drawn faces."""

import importlib

import numpy as np
import pytest

from face import DETECTOR_FILE, find_drawn_faces, heads, is_near, scene
from personalive_core.errors import InputError
from personalive_core.framing.face_detector import Box, choose_face, find_faces, load_detector

PLACES = [(200, 60, 222)], [(40, 60, 176), (360, 60, 181)], [(40, 60, 220), (360, 90, 130)], []


@pytest.fixture
def yunet():
    pytest.importorskip("cv2", reason="OpenCV is not installed, which runs YuNet")
    return load_detector(DETECTOR_FILE)


@pytest.mark.parametrize("places", PLACES)
def test_faces_of_any_size_from_left_to_right(yunet, places):
    for detector in (yunet, find_drawn_faces):
        found = find_faces(detector, scene(*places))
        assert len(found) == len(places)
        assert all(is_near(box, head) for box, head in zip(found, heads(*places), strict=True))


def test_a_large_picture_is_shrunk_and_the_boxes_are_in_its_pixels(yunet):
    places = [(40, 60, 176), (360, 60, 181)]
    large = scene(*places).repeat(3, 0).repeat(3, 1)
    found = find_faces(yunet, large)
    assert all(is_near(box, Box(*(3 * v for v in head))) for box, head in zip(found, heads(*places), strict=True))


def test_small_faces_do_not_count(yunet):
    picture = scene((40, 60, 220), (360, 90, 130))
    large, small = yunet(picture, 0)
    assert yunet(picture, (large.side + small.side) / 2) == [large]


def test_opencv_is_given_bgr(yunet):
    assert find_faces(yunet, scene((200, 60, 222))[..., ::-1].copy()) == []


def test_a_picture_of_nothing_has_no_face(yunet):
    assert find_faces(yunet, np.zeros((300, 400, 3), np.uint8)) == []
    assert find_faces(yunet, np.full((32, 10, 3), 255, np.uint8)) == []


def test_without_opencv_one_sentence_says_what_to_do(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"needs OpenCV.*pip install opencv-python-headless.*keypoints"):
        load_detector(DETECTOR_FILE)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("face.txt", "", "no face detector"),
        ("absent.onnx", None, "does not exist"),
        ("broken.onnx", "no network", r"cannot use .*broken\.onnx as YuNet"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, words):
    if name.startswith("broken"):
        pytest.importorskip("cv2", reason="OpenCV is not installed, which reads the file")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        load_detector(tmp_path / name)


def test_another_network_is_refused(tmp_path):
    """It has not the outputs of YuNet, which OpenCV says only when it runs it."""
    pytest.importorskip("cv2", reason="OpenCV is not installed, which reads the file")
    (tmp_path / "other.onnx").write_bytes(DETECTOR_FILE.read_bytes().replace(b"cls_8", b"abc_8"))
    with pytest.raises(InputError, match=r"cannot use .*other\.onnx as YuNet"):
        load_detector(tmp_path / "other.onnx")


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
