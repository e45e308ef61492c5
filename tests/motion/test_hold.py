"""Frames that say nothing about a face: held, blended back, reported; good frames keep every bit, however cut."""

import numpy as np
import pytest
import torch
from torch import Tensor

from face import draw_face, find_drawn_faces, scene
from personalive_core.errors import InputError
from personalive_core.framing.driving_crop import MODES, DrivingCrop, find_fixed_square, locate_by_detector
from personalive_core.motion.hold import BLEND, CUT, MISSES, Hold, Reason, describe_held
from personalive_core.motion.motion import Motion
from personalive_core.networks.head_pose import HeadPose
from seeded import normal, uniform
from tiny import FindsDrawnFaces, tiny_pipeline

GOOD, NO_FACE, NO_PICTURE, TURNED_AWAY, SCENE_CUT = Reason


def motion_of(frames: int) -> Motion:
    """Every frame another one: a head that fills the middle of the picture, and turns."""
    angles = torch.stack([torch.linspace(-20, 20, frames)] * 3, dim=1)
    keypoints = uniform("points", 1, 21, 3).expand(frames, -1, -1) - 0.5
    pose = HeadPose(angles, normal("t", frames, 3) / 50, torch.full((frames, 1), 0.9), keypoints)
    return Motion(pose, normal("tokens", frames, 32, 16), torch.arange(frames * 4).view(frames, 4))


def pictures_of(frames: int) -> Tensor:
    """One shot with a little noise."""
    return uniform("scene", 1, 3, 48, 64) + uniform("noise", frames, 3, 48, 64) / 50


def spoil(motion: Motion, pictures: Tensor, frame: int, reason: Reason) -> None:
    if reason == NO_FACE:
        motion.pose.translation[frame] = 5
    if reason == TURNED_AWAY:
        motion.pose.angles[frame] = torch.tensor([30.0, 75.0, 0.0])
    if reason == NO_PICTURE:
        pictures[frame] = 0.04
    if reason == SCENE_CUT:
        pictures[frame:] = pictures[frame:].flip(-1)


def run(motion: Motion, pictures: Tensor, cuts: list[int], has_face: list[bool] | None = None) -> Motion:
    hold, out = Hold(), []
    for cut in cuts:
        out.append(hold.push(motion[:cut], pictures[:cut], has_face and has_face[:cut]))
        motion, pictures, has_face = motion[cut:], pictures[cut:], has_face and has_face[cut:]
    hold.finish()
    return Motion.cat(out)


def same(a: Motion, b: Motion) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))


def test_good_frames_keep_every_bit():
    motion = motion_of(11)
    found = run(motion, pictures_of(11), [11])
    assert same(found, motion)
    assert not describe_held(found.held)


@pytest.mark.parametrize("reason", [NO_FACE, NO_PICTURE, TURNED_AWAY])
def test_the_last_good_motion_is_held_and_blended_back(reason):
    motion, pictures = motion_of(16), pictures_of(16)
    for frame in (5, 6, 7):
        spoil(motion, pictures, frame, reason)
    found = run(motion, pictures, [16])
    assert found.held.tolist() == [0] * 5 + [reason] * 3 + [0] * 8
    assert same(found[:5], motion[:5])
    assert same(found[12:], motion[12:])
    for frame in (5, 6, 7):
        assert torch.equal(found.tokens[frame], motion.tokens[4])
        assert torch.equal(found.pose.angles[frame], motion.pose.angles[4])
    for i in range(BLEND):
        weight = (i + 1) / (BLEND + 1)
        expected = (1 - weight) * motion.tokens[4] + weight * motion.tokens[8 + i]
        torch.testing.assert_close(found.tokens[8 + i], expected)
        expected = (1 - weight) * motion.pose.translation[4] + weight * motion.pose.translation[8 + i]
        torch.testing.assert_close(found.pose.translation[8 + i], expected)
    assert describe_held(found.held) == f"held the last good motion in 3 of 16 frames: 5 to 7 ({reason})"


def test_a_scene_cut_is_eased():
    motion, pictures = motion_of(12), pictures_of(12)
    spoil(motion, pictures, 4, SCENE_CUT)
    found = run(motion, pictures, [12])
    assert found.held.tolist() == [0] * 4 + [SCENE_CUT] + [0] * 7
    assert torch.equal(found.tokens[4], motion.tokens[3])
    steps = (found.tokens[1:] - found.tokens[:-1]).flatten(1).norm(dim=1)
    assert steps[3] == 0 and steps[4] < (motion.tokens[5] - motion.tokens[3]).norm() / 4
    assert same(found[5 + BLEND :], motion[5 + BLEND :])
    assert describe_held(found.held).endswith("frames: 4 (scene cut)")


def test_a_series_of_photos_is_no_video_with_cuts():
    motion, pictures = motion_of(8), uniform("photos", 8, 3, 4, 4).repeat_interleave(12, 2).repeat_interleave(12, 3)
    assert (pictures[1:] - pictures[:-1]).abs().mean((1, 2, 3)).min() > CUT
    found = run(motion, pictures, [8])
    assert found.held.tolist() == [0, SCENE_CUT, *[0] * 6]
    assert same(found[2:], motion[2:])


def test_black_frames_before_a_scene_cut_are_one_gap():
    motion, pictures = motion_of(14), pictures_of(14)
    spoil(motion, pictures, 6, SCENE_CUT)
    for frame in (4, 5):
        spoil(motion, pictures, frame, NO_PICTURE)
    found = run(motion, pictures, [14])
    assert found.held.tolist() == [0] * 4 + [NO_PICTURE] * 2 + [SCENE_CUT] + [0] * 7
    assert (found.tokens[4:7] == motion.tokens[3]).all()


def test_a_new_gap_while_blending_holds_what_was_last_shown():
    motion, pictures = motion_of(12), pictures_of(12)
    for frame in (3, 6):
        spoil(motion, pictures, frame, NO_PICTURE)
    found = run(motion, pictures, [12])
    assert torch.equal(found.tokens[6], found.tokens[5])
    assert not torch.equal(found.tokens[5], motion.tokens[5])


def test_frames_before_the_first_face_wait_for_it():
    motion, pictures = motion_of(9), pictures_of(9)
    for frame in range(5):
        spoil(motion, pictures, frame, NO_PICTURE)
    hold = Hold()
    assert len(hold.push(motion[:4], pictures[:4])) == 0
    found = hold.push(motion[4:], pictures[4:])
    assert found.held.tolist() == [NO_PICTURE] * 5 + [0] * 4
    assert (found.tokens[:5] == motion.tokens[5]).all()
    assert same(found[5:], motion[5:])


def test_a_clip_without_a_face_says_so():
    motion, pictures = motion_of(6), pictures_of(6)
    for frame in range(6):
        spoil(motion, pictures, frame, NO_PICTURE if frame < 4 else NO_FACE)
    with pytest.raises(
        InputError, match=r"none of the 6 driving frames shows a face \(no face in 2, no picture in 4\)"
    ):
        run(motion, pictures, [6])


def test_a_detector_may_miss_a_few_frames():
    motion, pictures = motion_of(20), pictures_of(20)
    has_face = [frame not in (4, 8, 9, 10) for frame in range(20)]
    assert same(run(motion, pictures, [20], has_face), motion)


def test_frames_that_a_detector_misses_longer_are_held():
    """With the motion of the last frame that had a face, not of the missed ones."""
    motion, pictures = motion_of(20), pictures_of(20)
    has_face = [not 6 <= frame < 12 for frame in range(20)]
    found = run(motion, pictures, [20], has_face)
    first = 6 + MISSES
    assert found.held.tolist() == [0] * first + [NO_FACE] * (12 - first) + [0] * 8
    assert same(found[:first], motion[:first])
    assert (found.tokens[first:12] == motion.tokens[5]).all()
    assert same(found[12 + BLEND :], motion[12 + BLEND :])
    torch.testing.assert_close(found.tokens[12], torch.lerp(motion.tokens[5], motion.tokens[12], 1 / (BLEND + 1)))


def test_before_the_first_face_no_miss_is_forgiven():
    motion, pictures = motion_of(6), pictures_of(6)
    found = run(motion, pictures, [6], [False] * 2 + [True] * 4)
    assert found.held.tolist() == [NO_FACE] * 2 + [0] * 4
    assert (found.tokens[:2] == motion.tokens[2]).all()
    with pytest.raises(InputError, match=r"none of the 6 driving frames shows a face \(no face in 6\)"):
        run(motion, pictures, [6], [False] * 6)


def test_cutting_changes_nothing():
    frames = 60
    motion, pictures = motion_of(frames), pictures_of(frames)
    rng = np.random.default_rng(0)
    for frame in sorted(rng.choice(frames, 14, replace=False)):
        spoil(motion, pictures, int(frame), Reason(int(rng.integers(1, 5))))
    spoil(motion, pictures, 0, NO_FACE)
    whole = run(motion, pictures, [frames])
    assert set(whole.held.tolist()) == set(Reason)
    assert same(run(motion, pictures, [1] * frames), whole)
    assert same(run(motion, pictures, [7, 3, 20, 0, 30]), whole)
    has_face = np.repeat(rng.random(frames // 4) < 0.5, 4).tolist()
    whole = run(motion, pictures, [frames], has_face)
    assert whole.held.count_nonzero() > 20
    assert same(run(motion, pictures, [1] * frames, has_face), whole)
    assert same(run(motion, pictures, [7, 3, 20, 0, 30], has_face), whole)


def test_a_face_that_leaves_and_comes_back():
    """It goes out at the right over 16 frames, is away for 6, and comes back at once."""
    pipeline = tiny_pipeline()
    pipeline.motion_extractor = FindsDrawnFaces(pipeline.motion_extractor)
    places = [0] * 4 + [16 * i for i in range(1, 17)] + [256] * 5 + [0] * 8
    frames = []
    for place in places:
        frame = np.full((256, 256, 3), (0xCF, 0xD8, 0xDC), np.uint8)
        frame[:, place:] = draw_face()[:, : 256 - place]
        frame[200:, :60] = 90  # furniture, so that the picture is not empty without the face
        frames.append(frame)
    with torch.inference_mode():
        motion = Motion.cat(list(pipeline.motions(frames)))
    assert len(motion) == len(places)
    held = motion.held.tolist()
    away = [i for i, place in enumerate(places) if place >= 256]
    assert all(held[i] == NO_FACE for i in away)
    assert not any(held[:12]) and not any(held[away[-1] + 2 :])
    last_good = held.index(NO_FACE) - 1
    assert (motion.tokens[away] == motion.tokens[last_good]).all()
    assert len(list(pipeline.animate_motion(pipeline.encode_reference(draw_face()[::2, ::2].copy()), [motion]))) == 9


@pytest.mark.parametrize("mode", MODES)
def test_a_face_that_leaves_an_ordinary_picture(mode):
    """The untrained networks do not notice it, the detector of the driving crop does: six frames without the face."""
    pipeline, locate = tiny_pipeline(), locate_by_detector(find_drawn_faces)
    frames = [scene((200 + 2 * i, 60, 222)).copy() if not 8 <= i < 14 else scene().copy() for i in range(24)]
    for frame in frames:
        frame[350:, :200] = 90  # furniture, so that the picture is not empty without the face
    room = dict(margin=1.0)
    fixed = find_fixed_square(frames, locate, **room) if mode == "fixed" else None
    crop = DrivingCrop(locate, mode, fixed=fixed, **room)
    seen = [crop.cut(frame) for frame in frames]
    with torch.inference_mode():
        found = Motion.cat(list(pipeline.motions(seen)))
        blind = Motion.cat(list(pipeline.motions(frame.pixels for frame in seen)))
    assert not (blind.held == NO_FACE).any()
    assert found.held.eq(NO_FACE).nonzero().flatten().tolist() == list(range(8 + MISSES, 14))
    assert torch.equal(found.tokens[:8], blind.tokens[:8])
    assert (found.tokens[8 + MISSES : 14] == found.tokens[7]).all()
    assert "11 to 13 (no face)" in describe_held(found.held)
