"""The driving crop: calm, not late, and over troubles of the detector."""

import numpy as np
import pytest

from face import find_drawn_faces, scene
from personalive_core.errors import InputError
from personalive_core.framing.crop import Crop
from personalive_core.framing.driving_crop import (
    MODES,
    PATIENCE,
    SIZE,
    DrivingCrop,
    DrivingCropSettings,
    Smoother,
    find_fixed_square,
    locate_by_detector,
    locate_by_keypoints,
    open_driving_crop,
)
from personalive_core.framing.face_detector import Box
from personalive_core.networks.motion_extractor import MotionExtractor
from tiny import TINY, seeded

FRAMES = 600


def square_of(crop: DrivingCrop, frame) -> Crop:
    """The square that is cut out of a frame."""
    crop.cut(frame)
    return crop.square


def track() -> tuple[np.ndarray, np.ndarray]:
    """Centre and side of a head that sways, comes nearer and turns quickly once; and the same as a detector tells it:
    with noise, with frames in which it finds nothing (NaN), and with one in which it finds something else."""
    t = np.arange(FRAMES)
    x = 320 + 60 * np.sin(t / 20) + 80 / (1 + np.exp(-(t - 300) / 3))
    y = 240 + 25 * np.sin(t / 13)
    side = 180 + 30 * np.sin(t / 40)
    truth = np.stack([x, y, side], 1)
    seen = truth + np.random.default_rng(0).normal(0, (3, 3, 8), truth.shape)
    seen[100:104] = seen[200::37] = np.nan
    seen[150] = 600, 30, 60
    return truth, seen


def smoothed(seen: np.ndarray) -> np.ndarray:
    smoother, result = Smoother(), []
    for x, y, side in seen:
        box = smoother(None if np.isnan(x) else Box(x - side / 2, y - side / 2, side, side))
        result.append((*box.centre, box.side) if box else (np.nan,) * 3)
    return np.array(result)


def acceleration(boxes: np.ndarray) -> np.ndarray:
    second = np.diff(boxes, 2, axis=0)
    return np.sqrt(np.nanmean(second**2, axis=0))


def lag(truth: np.ndarray, result: np.ndarray) -> int:
    """By how many frames the result must be moved back to be most like the truth."""
    later = range(8)
    likeness = [np.corrcoef(truth[: FRAMES - 8], result[n : FRAMES - 8 + n])[0, 1] for n in later]
    return int(np.argmax(likeness))


def test_calm_and_at_most_two_frames_late():
    truth, seen = track()
    result = smoothed(seen)
    assert (acceleration(seen) / acceleration(result) > 3).all()
    for axis in range(3):
        assert lag(truth[:, axis], result[:, axis]) <= 2
    assert np.abs(result - truth)[20:].max() < 30


def test_an_even_movement_is_followed_without_lag():
    t = np.arange(100.0)
    truth = np.stack([50 + 4 * t, 300 - 2 * t, 100 * 1.005**t], 1)
    assert np.abs(smoothed(truth) - truth)[60:].max() < 0.5


def test_nothing_found_holds_and_something_else_does_not_count():
    still = np.tile((200.0, 150.0, 90.0), (60, 1))
    trouble = still.copy()
    trouble[20:30], trouble[40:43] = np.nan, (500, 40, 60)
    assert np.allclose(smoothed(trouble), still)
    assert np.isnan(smoothed(np.full((5, 3), np.nan))).all()


def test_after_a_cut_the_square_jumps():
    cut = np.tile((200.0, 150.0, 90.0), (40, 1))
    cut[20:] = 500, 300, 140
    result = smoothed(cut)
    assert np.allclose(result[:20], cut[:20]) and np.allclose(result[20 + PATIENCE :], cut[20 + PATIENCE :])


def test_each_box_comes_from_those_before():
    _, seen = track()
    assert np.array_equal(smoothed(seen)[:77], smoothed(seen[:77]), equal_nan=True)


def head(left: int, top: int, size: int) -> tuple[float, float]:
    """The centre of a drawn head."""
    return left + size / 2, top + size * 0.42


def test_the_nearest_face_is_followed():
    locate = locate_by_detector(find_drawn_faces, "0")
    first = locate(scene((40, 60, 176), (360, 60, 240)), None)
    assert np.hypot(*np.subtract(first.centre, head(40, 60, 176))) < 20
    second = locate(scene((80, 60, 176), (360, 60, 240)), first)
    assert np.hypot(*np.subtract(second.centre, head(80, 60, 176))) < 20
    far = locate(scene((440, 100, 176)), first)  # it is looked for everywhere at last
    assert np.hypot(*np.subtract(far.centre, head(440, 100, 176))) < 20
    assert locate(scene(), first) is None


@pytest.mark.parametrize("mode", MODES)
def test_the_head_stays_in_the_cropped_frames(mode):
    """Its centre is found again near the middle of each; with a fixed square it may wander, and the square stays."""
    frames = [scene((60 + 6 * i, 60, 200)) for i in range(12)]
    locate = locate_by_detector(find_drawn_faces)
    fixed = find_fixed_square(iter(frames), locate) if mode == "fixed" else None
    crop = DrivingCrop(locate, mode, fixed=fixed)
    cut = [crop.cut(frame).pixels for frame in frames]
    assert all(picture.shape == (SIZE, SIZE, 3) for picture in cut)
    centres = [locate(picture, None).centre for picture in cut]
    room = SIZE * (0.25 if mode == "fixed" else 0.08)
    assert all(abs(x - SIZE / 2) < room and abs(y - SIZE / 2) < SIZE * 0.15 for x, y in centres)
    squares = {square_of(DrivingCrop(locate, mode, fixed=fixed), frame) for frame in frames}
    assert (len(squares) == 1) == (mode == "fixed")


def test_the_fixed_square_holds_all_of_the_way_and_no_outlier():
    places = [(100.0 + 2 * i, 200.0, 80.0, 90.0) for i in range(100)]
    places[48] = (10.0, 10.0, 20.0, 20.0)
    boxes = iter([Box(*place) for place in places[::4]])
    picture = np.zeros((1, 400, 600, 3), np.uint8).repeat(100, 0)
    square = find_fixed_square(picture, lambda *_: next(boxes), margin=0.5, vertical_offset=0)
    assert square.left < 100 - 20 and square.left + square.side > 292 + 60 + 20
    assert square.left > 0 and square.top > -30


def test_a_clip_without_a_face():
    frames = [scene()] * 5
    with pytest.raises(InputError, match="no frame of the driving video shows a face"):
        find_fixed_square(iter(frames), locate_by_detector(find_drawn_faces))
    crop = square_of(DrivingCrop(locate_by_detector(find_drawn_faces)), frames[0])
    assert (crop.left, crop.top, crop.side) == (120, 0, 400)  # the middle, until there is one


def test_a_square_over_the_edge_is_not_moved_in():
    frame = scene((-60, 60, 240))
    box = Box(-20, 80, 165, 165)
    square = square_of(DrivingCrop(lambda *_: box, margin=0.5, vertical_offset=0), frame)
    assert square.left + square.side / 2 == box.centre[0] and square.left < -20


def test_keypoints_follow_without_a_detector():
    extractor = seeded(MotionExtractor(TINY.motion_extractor, device="meta"), "motion_extractor")
    crop = DrivingCrop(locate_by_keypoints(extractor))
    frame = crop.cut(scene((200, 60, 222)))
    assert frame.pixels.shape == (SIZE, SIZE, 3) and frame.has_face


@pytest.mark.parametrize("mode", MODES)
def test_a_face_is_missed_where_it_is_not_or_not_in_the_square(mode):
    """It is nowhere, then far off: a square that follows goes there at last, a fixed one stays."""
    there, far = Box(40, 100, 80, 80), Box(500, 100, 80, 80)
    places = [there] * 3 + [None] * 2 + [far] * (PATIENCE + 1)
    boxes = iter(places)
    fixed = Crop(0, 60, 160, 640, 400) if mode == "fixed" else None
    crop = DrivingCrop(lambda *_: next(boxes), mode, fixed=fixed)
    found = [crop.cut(scene()).has_face for _ in places]
    late = {"smoothed": PATIENCE - 1, "fixed": PATIENCE + 1, "per-frame": 0}[mode]
    assert found == [True] * 3 + [False] * (2 + late) + [True] * (PATIENCE + 1 - late)


def test_a_fixed_square_alone_looks_for_nothing():
    fixed = Crop(0, 60, 160, 640, 400)
    frame = DrivingCrop(None, "fixed", fixed=fixed).cut(scene())
    assert frame.has_face and square_of(DrivingCrop(None, "fixed", fixed=fixed), scene()) == fixed


def refused(*_):
    raise AssertionError("it is not needed")


@pytest.mark.parametrize("mode", MODES)
def test_opened_by_settings(mode):
    """The square around the face that is chosen; the pictures are read beforehand only for a fixed one."""
    frames = [scene((40, 60, 220), (360, 90, 130))] * 5

    for face, place in {"largest": 0, "centre": 1}.items():
        settings = DrivingCropSettings(mode, face, margin=0.2, vertical_offset=0.1)
        pictures = iter(frames)
        crop = open_driving_crop(settings, pictures, detector=find_drawn_faces, extractor=refused)
        assert len(list(pictures)) == (0 if mode == "fixed" else 5)
        square = square_of(crop, frames[0])
        box = find_drawn_faces(frames[0], 0)[place]
        assert square.side == pytest.approx(box.side * 1.4)
        assert square.left + square.side / 2 == pytest.approx(box.centre[0])
        assert square.top + square.side / 2 == pytest.approx(box.centre[1] + 0.1 * box.side)
        assert not crop.cut(scene()).has_face


@pytest.mark.parametrize("mode", MODES)
def test_opened_without_a_detector(mode):
    extractor = seeded(MotionExtractor(TINY.motion_extractor, device="meta"), "motion_extractor")
    frames = [scene((200, 60, 222))] * 2
    crop = open_driving_crop(DrivingCropSettings(mode), frames, detector=None, extractor=lambda: extractor)
    assert crop.cut(scene()).has_face  # keypoints cannot say that there is none


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(margin=-0.1), "the margin is -0.1, but must be from 0 to 5"),
        (dict(margin=5.1), "5.1"),
        (dict(margin=float("nan")), "nan"),
        (dict(vertical_offset=-2.5), "the vertical offset is -2.5, but must be from -2 to 2"),
    ],
)
def test_settings_outside_their_limits(settings, words):
    with pytest.raises(InputError, match=words):
        DrivingCropSettings(**settings)
