"""Drawn faces: the same from the same seed, true to their parameters, smooth in time, and measurable."""

from dataclasses import astuple, fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2", reason="faces are drawn by OpenCV (opencv-python-headless)")

from drawn import (  # noqa: E402
    Pose,
    canonical_keypoints,
    draw,
    perform,
    random_character,
    right_answer,
    warm_up_answers,
)
from measure import correlation, curve, measure, measure_video, psnr, ssim  # noqa: E402
from personalive_core.motion.keypoints import (  # noqa: E402
    HeadPose,
    face_boxes,
    retarget,
    transform_keypoints,
    warm_up_poses,
)

CHARACTERS = range(24)


def head_pose(character, *poses: Pose) -> HeadPose:
    values = torch.tensor([astuple(pose) for pose in poses])
    keypoints = torch.from_numpy(canonical_keypoints(character)).expand(len(poses), -1, -1)
    translation = torch.nn.functional.pad(values[:, 3:5], (0, 1))
    return HeadPose(values[:, [1, 0, 2]], translation, values[:, 5:6], keypoints)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_a_seed_is_a_character_and_a_performance():
    assert random_character(7) == random_character(7) != random_character(8)
    assert perform(7, 5) == perform(7, 5) != perform(8, 5)
    assert np.array_equal(draw(random_character(7), Pose()), draw(random_character(7), Pose()))


def test_a_longer_performance_begins_as_a_shorter_one():
    for short, long in zip(perform(3, 20), perform(3, 400), strict=False):
        assert np.allclose(astuple(short), astuple(long), atol=1e-9)


def test_no_two_characters_look_alike():
    pictures = [draw(random_character(seed), Pose()) for seed in CHARACTERS]
    for i, picture in enumerate(pictures):
        assert min(difference(picture, other) for j, other in enumerate(pictures) if j != i) > 8


@pytest.mark.parametrize("name", [field.name for field in fields(Pose)])
def test_every_parameter_of_a_pose_shows(name: str):
    step = {"yaw": 10, "pitch": 10, "roll": 10, "shift_x": 0.1, "shift_y": 0.1, "scale": 0.05}.get(name, 0.7)
    neutral = Pose(mouth=0.1)
    moved = replace(neutral, **{name: getattr(neutral, name) + step})
    for seed in CHARACTERS:
        character = random_character(seed)
        before, after = draw(character, neutral).astype(float), draw(character, moved)
        if name.startswith("gaze") or name in ("brows", "smile", "pucker"):  # few pixels, but clearly
            assert np.abs(before - after).max() > 25
        else:
            assert difference(before, after) > 0.6


def test_a_face_is_where_its_keypoints_are():
    """The whites of the eyes are around the keypoints of the eyes, in any pose."""
    character = replace(random_character(0), glasses="none", fringe="none", skin=(90, 60, 45), hat="none")
    for pose in (Pose(), Pose(yaw=25), Pose(pitch=-12, roll=14), Pose(shift_x=0.15, shift_y=-0.2, scale=0.45, yaw=-20)):
        picture = draw(character, pose, 256)
        points = transform_keypoints(head_pose(character, pose))[0, [3, 4], :2]
        for x, y in ((points + 1) * 128).long().tolist():
            around = picture[y - 12 : y + 12, x - 12 : x + 12].reshape(-1, 3)
            assert (around.min(axis=1) > 200).sum() > 20


def test_the_face_box_holds_eyes_and_mouth():
    for seed in CHARACTERS:
        character, pose = random_character(seed), perform(seed, 1)[0]
        keypoints = transform_keypoints(head_pose(character, pose))
        x1, y1, x2, y2 = face_boxes(keypoints)[0].tolist()
        pixels = (keypoints[0, [3, 4, 15, 20], :2] + 1) * 256
        assert (pixels[:, 0] > x1 + 8).all() and (pixels[:, 0] < x2 - 8).all()
        assert (pixels[:, 1] > y1 + 8).all() and (pixels[:, 1] < y2 - 8).all()


def test_the_right_answer_is_what_the_model_retargets():
    character, other = random_character(1), random_character(2)
    portrait, driving = Pose(yaw=5, shift_x=0.1), perform(4, 6)
    wanted = head_pose(character, *(right_answer(portrait, pose, driving[0]) for pose in driving))
    reference, driver = head_pose(character, portrait), head_pose(other, *driving)
    for value, expected in zip(
        vars(retarget(reference, driver, driver[:1])).values(), vars(wanted).values(), strict=True
    ):
        assert torch.allclose(value, expected, atol=1e-6)
    warm_up = head_pose(character, *warm_up_answers(portrait, driving[0]))
    first = retarget(reference, driver[:1], driver[:1])
    expected = warm_up_poses(reference, first)
    assert torch.allclose(warm_up.angles, expected.angles, atol=1e-5)
    assert torch.allclose(warm_up.translation, expected.translation.expand(len(warm_up), -1), atol=1e-6)


@pytest.mark.quality
def test_motion_has_no_jumps():
    """Neither in a performance nor in the drawing, where shapes pass before one another."""
    for seed in range(6):
        values = np.array([astuple(pose) for pose in perform(seed, 500)])
        assert (np.abs(np.diff(values[:, :3], axis=0)).max(axis=0) < (9, 6, 5)).all()  # degrees in 1/25 s
        assert np.abs(np.diff(values[:, 3:6], axis=0)).max() < 0.04
        assert np.abs(np.diff(values[:, 6:], axis=0)).max() < 0.75
    for seed in CHARACTERS:
        character = random_character(seed)
        pictures = [draw(character, Pose(yaw=yaw)) for yaw in np.arange(-36, 36, 0.75)]
        changes = [difference(a, b) for a, b in pairwise(pictures)]
        assert max(changes) < 3 * np.median(changes)


def test_sizes_are_the_same_picture():
    character, pose = random_character(3), Pose(yaw=12, mouth=0.6)
    large, small = draw(character, pose, 256), draw(character, pose, 128)
    assert large.shape == (256, 256, 3) and small.shape == (128, 128, 3)
    assert psnr(cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA), small) > 26


@pytest.mark.quality
def test_measuring_finds_the_pose_through_blur_and_noise():
    random = np.random.default_rng(0)
    character, poses = random_character(21), perform(71, 150)[::10]
    pictures = []
    for pose in poses:
        blurred = cv2.GaussianBlur(draw(character, pose), (0, 0), 1.0) + random.normal(0, 6, (128, 128, 3))
        pictures.append(blurred.clip(0, 255).astype(np.uint8))
    found = measure_video(character, pictures)
    for name, least in (("yaw", 0.98), ("mouth", 0.95), ("blink", 0.9)):
        assert correlation(curve(poses, name), curve(found, name)) > least
    open_eyes = curve(poses, "blink") < 0.5
    assert correlation(curve(poses, "gaze_x")[open_eyes], curve(found, "gaze_x")[open_eyes]) > 0.9


@pytest.mark.quality
def test_measuring_does_not_see_what_is_not_there():
    """A driver's blink is not found in a picture with open eyes."""
    character = random_character(0)
    assert measure(character, draw(character, Pose(yaw=-15))).blink < 0.2
    assert measure(character, draw(character, Pose(yaw=-15, blink=1))).blink > 0.8


def test_similarity():
    picture = draw(random_character(0), Pose())
    noisy = np.clip(picture + np.random.default_rng(0).normal(0, 10, picture.shape), 0, 255).astype(np.uint8)
    assert psnr(picture, noisy) == pytest.approx(28.2, abs=0.6)
    assert ssim(picture, picture) == pytest.approx(1)
    assert 0.2 < ssim(picture, noisy) < 0.9
