"""Head poses, the keypoints they give, and what is made from keypoints: the keypoint map and the face crops.

Plain functions on float32 tensors of any device. F is the number of frames. A box x1, y1, x2, y2 takes the columns
x1 .. x2 - 1 and the rows y1 .. y2 - 1, as slices do.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import WARM_UP
from ..networks.head_pose import HeadPose

DOTS = {  # keypoint -> its colour in the keypoint map
    1: (1, 0, 0),
    2: (1, 1, 0),
    3: (0, 1, 0),
    4: (0, 1, 1),
    12: (0, 0, 1),
    15: (1, 0, 1),
    20: (1, 0, 85 / 255),
}
DOT_RADIUS = 4  # pixels, at every output size
BOX_GRID = 512  # face boxes are found on a picture of this width and height, whatever the frame's
TRANSLATION_GAIN = 0.5  # how much of the driver's movement the portrait takes


def _rotate(a: Tensor, b: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates the axis a towards the axis b."""
    cos, sin = angle.cos(), angle.sin()
    return cos * a - sin * b, sin * a + cos * b


def transform_keypoints(pose: HeadPose) -> Tensor:
    """Rotates, scales and translates the canonical keypoints.

    Canonical keypoints @ (Rz(roll) Ry(yaw) Rx(pitch))^T, right-handed, one axis after the other: keypoints are
    truncated to whole pixels later, and a matrix product may run in TF32.

    Args:
        pose: of F frames.

    Returns:
        (F, 21, 3): x and y in image coordinates, [-1, 1] over the picture.
    """
    pitch, yaw, roll = pose.angles.deg2rad()[:, None].unbind(-1)  # each (F, 1)
    x, y, z = pose.keypoints.unbind(-1)  # each (F, 21)
    y, z = _rotate(y, z, pitch)
    z, x = _rotate(z, x, yaw)
    x, y = _rotate(x, y, roll)
    move_x, move_y, _ = pose.translation[:, None].unbind(-1)  # the depth is not translated
    return torch.stack([x * pose.scale + move_x, y * pose.scale + move_y, z * pose.scale], dim=-1)


def retarget(reference: HeadPose, driving: HeadPose, first: HeadPose) -> HeadPose:
    """The portrait's head with the driver's movement, as published.

    Args:
        reference: the portrait's pose, one frame.
        driving: the driver's poses, F frames.
        first: the driver's pose in the first frame.

    Returns:
        F poses: the portrait's keypoints and scale, the driver's angles, and a translation that follows the driver's
        change since `first`.
    """
    frames = len(driving)
    return HeadPose(
        angles=driving.angles,
        translation=reference.translation + TRANSLATION_GAIN * (driving.translation - first.translation),
        scale=reference.scale.expand(frames, -1),
        keypoints=reference.keypoints.expand(frames, -1, -1),
    )


def warm_up_poses(reference: HeadPose, first: HeadPose) -> HeadPose:
    """The poses of the warm-up, which lead from the portrait to the first driving frame.

    Args:
        reference: the portrait's pose, one frame.
        first: the pose of the first driving frame, retargeted. As published its translation and scale are the
            portrait's, so that only the angles change.

    Returns:
        12 poses; the first is the portrait's own.
    """
    weights = torch.arange(WARM_UP, device=reference.angles.device)[:, None] / WARM_UP
    angles, translation, scale = (
        getattr(reference, name) + weights * (getattr(first, name) - getattr(reference, name))
        for name in ("angles", "translation", "scale")
    )
    return HeadPose(angles, translation, scale, reference.keypoints.expand(WARM_UP, -1, -1))


def _dot_pixels(keypoints: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Columns and rows of the seven drawn keypoints, each (F, 7), whole numbers in float32."""
    x, y = (torch.stack([keypoints[:, dot, axis] for dot in DOTS], dim=-1).float() for axis in (0, 1))
    return ((x / 2 + 0.5) * width).trunc(), ((y / 2 + 0.5) * height).trunc()


def draw_keypoint_map(keypoints: Tensor, height: int, width: int) -> Tensor:
    """Draws the keypoint map that the pose guider gets: seven coloured discs on black, added where they overlap.

    Args:
        keypoints: (F, 21, 3) in image coordinates. Those outside the picture, or not finite, are not drawn.
        height: of the picture, in pixels.
        width: of the picture, in pixels.

    Returns:
        (1, 3, F, height, width) in [0, 1], float32, on the keypoints' device.
    """
    x, y = _dot_pixels(keypoints, height, width)
    columns = (torch.arange(width, device=x.device) - x[..., None]) ** 2  # (F, 7, width)
    rows = (torch.arange(height, device=x.device) - y[..., None]) ** 2  # (F, 7, height)
    picture = torch.zeros(3, len(keypoints), height, width, device=x.device)
    for dot, colour in enumerate(DOTS.values()):
        disc = rows[:, dot, :, None] + columns[:, dot, None, :] <= DOT_RADIUS**2
        for channel, value in enumerate(colour):
            if value > 0:
                picture[channel] += value * disc
    return picture.clamp_(max=1)[None]


def face_boxes(keypoints: Tensor) -> Tensor:
    """The square around each face, clipped to the picture.

    Args:
        keypoints: (F, 21, 3) of the frames themselves, in image coordinates.

    Returns:
        (F, 4) int64 x1, y1, x2, y2 on a grid of 512 x 512. A face outside the picture, or keypoints that are not
        finite, give an empty box (x2 <= x1 or y2 <= y1): see `fill_empty_boxes`.
    """
    x, y = _dot_pixels(keypoints, BOX_GRID, BOX_GRID)
    center = torch.stack([x.mean(-1), y.mean(-1)], dim=-1)
    side = 2 * 1.7 * (center[:, 1:] - y.amin(-1, keepdim=True))  # `min` wakes all the CPU's threads: 3 ms with 16
    boxes = torch.cat([center - 0.475 * side, center + 0.525 * side], dim=-1)
    boxes = torch.where(boxes.isfinite().all(-1, keepdim=True), boxes, 0)
    return boxes.clamp(0, BOX_GRID - 1).long()


def _is_full(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def has_face_box(keypoints: Tensor) -> Tensor:
    """Whether the keypoints (F, 21, 3) give a face box that is not empty: (F,) bool."""
    return _is_full(face_boxes(keypoints))


def dots_inside(keypoints: Tensor) -> Tensor:
    """How many of the seven drawn keypoints of (F, 21, 3) lie inside the picture: (F,)."""
    x, y = _dot_pixels(keypoints, BOX_GRID, BOX_GRID)
    return ((x >= 0) & (x < BOX_GRID) & (y >= 0) & (y < BOX_GRID)).sum(-1)


def fill_empty_boxes(boxes: Tensor, previous: Tensor | None) -> Tensor:
    """Replaces each empty box by the last good one before it.

    Args:
        boxes: (F, 4), see `face_boxes`.
        previous: (4,) the filled box of the frame before these; None at the start, where the whole picture is taken.

    Returns:
        (F, 4), none empty.
    """
    if previous is None:
        previous = torch.zeros_like(boxes[0])
        previous[2:] = BOX_GRID
    is_good = _is_full(boxes)
    numbers = torch.arange(1, len(boxes) + 1, device=boxes.device)
    last_good = torch.where(is_good, numbers, 0).cummax(0).values
    return torch.cat([previous[None], boxes])[last_good]


def crop_faces(frames: Tensor, boxes: Tensor, size: int = 224) -> Tensor:
    """Crops the faces for the motion encoder.

    Args:
        frames: (F, 3, height, width) in [0, 1], any size.
        boxes: (F, 4) on the grid of 512 x 512, none empty. They are scaled to the frame and rounded outwards.
        size: of the crops, in pixels.

    Returns:
        (F, 3, size, size) in [-1, 1], resized bilinearly without antialiasing, corners not aligned.
    """
    height, width = frames.shape[-2:]
    crops = []
    for frame, (x1, y1, x2, y2) in zip(frames, boxes.tolist(), strict=True):
        rows = slice(y1 * height // BOX_GRID, -(-y2 * height // BOX_GRID))
        columns = slice(x1 * width // BOX_GRID, -(-x2 * width // BOX_GRID))
        crop = frame[None, :, rows, columns]
        crops.append(F.interpolate(crop, size=(size, size), mode="bilinear", align_corners=False))
    return torch.cat(crops) * 2 - 1
