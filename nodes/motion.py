"""Extract Motion and Preview Motion: what the driving pictures say, in a few KB each."""

import io as bytes_io
from dataclasses import dataclass
from itertools import islice

import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io
from einops import rearrange
from PIL import Image

from ..personalive_core.config import CHUNK
from ..personalive_core.errors import InputError
from ..personalive_core.keypoints import crop_faces, draw_keypoint_map, retarget, transform_keypoints
from ..personalive_core.motion import Motion, extract_motion
from . import convert, memory
from .driving import Driving, open_driving
from .load import ModelType, PersonaLiveModel
from .reference import NodeReference, ReferenceType

FACE_SIZE = 128  # of the kept pictures of faces, pixels
PREVIEW_SIZE = 256


@dataclass(frozen=True)
class NodeMotion:
    """The core's motion, the motion of the portrait it is for, and small pictures of the faces that were seen."""

    motion: Motion
    portrait: Motion
    faces: list[bytes]  # JPEG, one a frame

    def check_reference(self, reference: NodeReference) -> None:
        if not torch.equal(self.portrait.tokens, reference.reference.motion.tokens):
            raise InputError("the motion was extracted for another reference: connect the same one to both nodes.")


MotionType = io.Custom("PERSONALIVE_MOTION")


class ExtractMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveExtractMotion",
            display_name="Extract Motion",
            category="PersonaLive",
            description="Reads head pose and expression off the driving video, picture by picture.",
            inputs=[
                ModelType.Input("model", tooltip="From Load PersonaLive Model."),
                ReferenceType.Input("reference", tooltip="From Encode Reference: the portrait that will move."),
                io.MultiType.Input(
                    "driving",
                    types=[io.Image, io.Video],
                    tooltip="A video, a batch of images or one picture of a face. A video is read in pieces and never "
                    "held in memory as a whole.",
                ),
                io.Int.Input(
                    "start",
                    default=0,
                    min=0,
                    max=10_000_000,
                    optional=True,
                    tooltip="Frames to skip first, at the result's rate.",
                ),
                io.Int.Input(
                    "count", default=0, min=0, max=10_000_000, optional=True, tooltip="Frames to use at most; 0 is all."
                ),
                io.Float.Input(
                    "frame_rate",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.01,
                    optional=True,
                    tooltip="Frames per second of the result; 0 keeps the video's own, and is 25 for images.",
                ),
            ],
            outputs=[
                MotionType.Output(display_name="motion"),
                io.Float.Output(display_name="frame_rate"),
                io.Audio.Output(display_name="audio"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: PersonaLiveModel,
        reference: NodeReference,
        driving,
        start: int = 0,
        count: int = 0,
        frame_rate: float = 0.0,
    ) -> io.NodeOutput:
        reference.check_model(model)
        with open_driving(driving, frame_rate) as source:
            motion, faces = _extract(model, source, start, count)
            audio = source.read_audio(start, len(motion))
        return io.NodeOutput(NodeMotion(motion, reference.reference.motion, faces), float(source.frame_rate), audio)


def _extract(model: PersonaLiveModel, source: Driving, start: int, count: int) -> tuple[Motion, list[bytes]]:
    frames = islice(source.frames, start, start + count if count else None)
    total = min(filter(None, (count, source.count and source.count - start)), default=0)
    bar = comfy.utils.ProgressBar(max(1, total))
    motions, faces = [], []
    networks = None
    while chunk := list(islice(frames, CHUNK)):
        pictures = np.stack(chunk)
        height, width = pictures.shape[1:3]
        networks = networks or model.load("motion_extractor", "motion_encoder", memory=memory.motion(width, height))
        pixels = convert.to_pixels(pictures, model.device)
        motions.append(extract_motion(*networks, pixels, motions[-1] if motions else None))
        crops = ((crop_faces(pixels, motions[-1].boxes, FACE_SIZE) / 2 + 0.5) * 255).byte()
        faces += [_jpeg(face) for face in rearrange(crops, "f c h w -> f h w c").cpu().numpy()]
        preview = Image.open(bytes_io.BytesIO(faces[-1]))
        bar.update_absolute(len(faces), max(total, len(faces)), ("JPEG", preview, None))
    if not motions:
        raise InputError(f"there are no driving frames from frame {start} on: lower 'start' or choose another video.")
    return Motion.cat(motions), faces


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = bytes_io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


class PreviewMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLivePreviewMotion",
            display_name="Preview Motion",
            category="PersonaLive",
            description="Shows what the model sees: the face it cut out, and the pose as seven coloured dots.",
            inputs=[
                MotionType.Input("motion", tooltip="From Extract Motion."),
                io.Int.Input("start", default=0, min=0, max=10_000_000, tooltip="First frame to show."),
                io.Int.Input("count", default=16, min=1, max=1000, tooltip="How many frames to show."),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, motion: NodeMotion, start: int, count: int) -> io.NodeOutput:
        shown = motion.motion[start : start + count]
        if not len(shown):
            raise InputError(f"the motion has {len(motion.motion)} frames and none from {start} on: lower 'start'.")
        poses = retarget(motion.portrait.pose, shown.pose, motion.motion.pose[:1])
        dots = draw_keypoint_map(transform_keypoints(poses), PREVIEW_SIZE, PREVIEW_SIZE)
        faces = [_resized(face) for face in motion.faces[start : start + count]]
        dots = rearrange(dots, "1 c f h w -> f h w c")
        return io.NodeOutput(torch.cat([convert.to_image(np.stack(faces)), dots], dim=2))


def _resized(face: bytes) -> np.ndarray:
    return np.asarray(
        Image.open(bytes_io.BytesIO(face)).resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.BILINEAR)
    )
