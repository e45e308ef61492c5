"""From driving frames to motion: head poses from the whole frame, motion tokens from the face crop."""

from torch import Tensor
from torch.nn import functional as F

from ..config import CHUNK
from ..networks.motion_encoder import MotionEncoder
from ..networks.motion_extractor import MotionExtractor
from .keypoints import crop_faces, face_boxes, fill_empty_boxes, transform_keypoints
from .motion import Motion


def extract_motion(
    extractor: MotionExtractor, encoder: MotionEncoder, frames: Tensor, previous: Motion | None = None
) -> Motion:
    """frames (F, 3, H, W) in [0, 1], float32, on the networks' device -> their motion.

    `previous` is the motion before these frames: a frame without a usable face box takes the box before it.
    Frames go through the networks four at a time, so that the result does not depend on how many come at once.
    """
    motions = []
    for chunk in frames.split(CHUNK):
        small = F.interpolate(chunk, size=(extractor.config.image_size,) * 2, mode="area")
        pose = extractor(small.to(extractor.get_dtype())).to("cpu")
        boxes = fill_empty_boxes(face_boxes(transform_keypoints(pose)), previous.boxes[-1] if previous else None)
        faces = crop_faces(chunk, boxes, encoder.config.image_size)
        tokens = encoder(faces.to(encoder.get_dtype()))[0].float().to("cpu")
        previous = Motion(pose, tokens, boxes)
        motions.append(previous)
    return Motion.cat(motions)
