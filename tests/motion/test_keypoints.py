"""Keypoint maps, face boxes and crops: exact, at any size, and safe where there is no face."""

import math

import pytest
import torch
from torch.nn import functional as F

from personalive_core.motion.keypoints import (
    crop_faces,
    draw_keypoint_map,
    face_boxes,
    fill_empty_boxes,
    transform_keypoints,
)
from personalive_core.networks.head_pose import HeadPose
from seeded import uniform
from tiny import golden


def pose(angles: tuple[float, float, float], keypoints: torch.Tensor) -> HeadPose:
    return HeadPose(torch.tensor([angles]), torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[2.0]]), keypoints[None])


@pytest.mark.parametrize("height, width", [(128, 128), (96, 64)])
def test_keypoint_map_golden(height: int, width: int):
    g = golden("keypoint_map")
    found = draw_keypoint_map(g["keypoints"], height, width)
    assert found.shape == (1, 3, 8, height, width)
    assert torch.equal((found[0].movedim(0, 1) * 255).round().byte(), g[f"map_h{height}_w{width}"])


def test_keypoint_map_golden_at_512():
    g = golden("keypoint_map")
    found = draw_keypoint_map(g["keypoints"], 512, 512)[0].movedim(0, 1).double()
    line = torch.arange(512, dtype=torch.float64)
    for name, value in (
        ("sum", found.sum((2, 3))),
        ("x_moment", (found.sum(2) * line).sum(2)),
        ("y_moment", (found.sum(3) * line).sum(2)),
    ):
        torch.testing.assert_close(value.float(), g[f"map_512_{name}"].float())


def test_face_box_golden():
    g = golden("face_box")
    assert torch.equal(face_boxes(g["keypoints"]), g["box_512"].long())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_frame_without_keypoints_is_no_error(value: float):
    keypoints = golden("face_box")["keypoints"][:3].clone()
    keypoints[1] = value
    boxes = face_boxes(keypoints)
    assert boxes[1].tolist() == [0, 0, 0, 0]
    assert torch.equal(fill_empty_boxes(boxes, None)[1], boxes[0])
    keypoint_map = draw_keypoint_map(keypoints, 64, 64)
    assert keypoint_map[0, :, 1].count_nonzero() == 0
    assert keypoint_map.isfinite().all()


def test_empty_boxes_are_filled_from_the_frame_before():
    good, other, empty = [10, 20, 30, 40], [11, 21, 31, 41], [511, 20, 511, 40]
    boxes = torch.tensor([empty, empty, good, empty, empty, other])
    whole = [0, 0, 512, 512]
    assert fill_empty_boxes(boxes, None).tolist() == [whole, whole, good, good, good, other]
    assert fill_empty_boxes(boxes, torch.tensor(other)).tolist() == [other, other, good, good, good, other]


def test_crop_of_a_frame_that_is_not_square():
    frames = uniform("in/frames", 2, 3, 256, 1024)  # half the grid's height, twice its width
    crops = crop_faces(frames, torch.tensor([[100, 40, 300, 240], [0, 0, 512, 512]]))
    first = F.interpolate(frames[:1, :, 20:120, 200:600], (224, 224), mode="bilinear")
    whole = F.interpolate(frames[1:], (224, 224), mode="bilinear")
    torch.testing.assert_close(crops, torch.cat([first, whole]) * 2 - 1)


def test_crop_of_a_thin_box_in_a_small_frame():
    assert crop_faces(uniform("in/small", 1, 3, 64, 48), torch.tensor([[9, 9, 10, 10]])).isfinite().all()


@pytest.mark.parametrize(
    "angles, expected",  # where the points (1, 0, 0) and (0, 1, 0) go before scale 2 and the shift of x and y
    [
        ((90, 0, 0), [[1, 0, 0], [0, 0, 1]]),
        ((0, 90, 0), [[0, 0, -1], [0, 1, 0]]),
        ((0, 0, 90), [[0, 1, 0], [-1, 0, 0]]),
    ],
)
def test_each_angle_turns_its_own_axis(angles, expected):
    found = transform_keypoints(pose(angles, torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])))
    torch.testing.assert_close(found, (torch.tensor([expected]) * 2 + torch.tensor([0.1, 0.2, 0])).float())


def test_head_poses_are_cut_and_joined():
    points = uniform("in/points", 21, 3)
    poses = HeadPose.cat([pose((i, 0, 0), points) for i in range(5)])
    assert len(poses) == 5
    assert poses[1:3].angles[:, 0].tolist() == [1, 2]
    assert torch.equal(poses[2:].to("cpu").keypoints, points.expand(3, -1, -1))
