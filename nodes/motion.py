"""Extract Motion and Preview Motion: what the driving pictures say, in a few KB each."""

import io as bytes_io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io
from einops import rearrange
from PIL import Image, ImageOps

from ..personalive_core.config import CHUNK
from ..personalive_core.errors import InputError
from ..personalive_core.framing.crop import draw_crop
from ..personalive_core.framing.driving_crop import DrivingFrame
from ..personalive_core.media.contact_sheet import BORDER, HELD, ContactSheet
from ..personalive_core.motion.extraction import extract_motion
from ..personalive_core.motion.hold import Hold, describe_held
from ..personalive_core.motion.keypoints import crop_faces, draw_keypoint_map, transform_keypoints
from ..personalive_core.motion.motion import Motion, MotionRecord
from ..personalive_core.motion.performance import Performance, trim
from . import convert, memory
from .driving import Driving, open_driving
from .driving_crop import CropSettings, CropSettingsType
from .load import ModelType, PersonaLiveModel
from .reference import NodeReference, ReferenceType

log = logging.getLogger("personalive")

FACE_SIZE = 128  # of the kept pictures of faces, pixels
WHOLE_SIZE = 192  # of the longer side of the kept driving frames
PREVIEW_SIZE = 256


class Seen(NamedTuple):
    """What is kept of a driving frame, as JPEG."""

    face: bytes
    whole: bytes | None  # all of it, with the square of the driving crop, if there is one

    def draw(self, size: int) -> np.ndarray:
        """Frame and face side by side, uint8 (size, 2 * size, 3), or the face alone."""
        tiles = [ImageOps.pad(_opened(file), (size, size)) for file in (self.whole, self.face) if file]
        return np.concatenate([np.asarray(tile) for tile in tiles], axis=1)


@dataclass(frozen=True)
class NodeMotion:
    """The core's performance, the motion of the portrait it is for, and small pictures of the driver."""

    performance: Performance
    portrait: Motion
    seen: list[Seen]  # one a frame; none for motion from a file

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
                io.Boolean.Input(
                    "mirror",
                    default=False,
                    optional=True,
                    tooltip="Exchange left and right of the driving pictures before they are looked at.",
                ),
                io.Boolean.Input(
                    "hold",
                    default=True,
                    optional=True,
                    tooltip="Where a frame shows no face, is black, is turned away or follows a cut, hold the last "
                    "good motion and come back in four frames. Switch it off for photos that do not belong together.",
                ),
                CropSettingsType.Input(
                    "crop", optional=True, tooltip="From Crop Driving, if the pictures show more than a head."
                ),
            ],
            outputs=[
                MotionType.Output(display_name="motion"),
                io.Float.Output(display_name="frame_rate"),
                io.Audio.Output(display_name="audio"),
                io.String.Output(display_name="held"),
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
        mirror: bool = False,
        hold: bool = True,
        crop: CropSettings | None = None,
    ) -> io.NodeOutput:
        reference.check_model(model)
        cut = crop.open(model, driving, frame_rate, start, count) if crop else DrivingFrame
        with open_driving(driving, frame_rate) as source:
            motion, seen = _extract(model, source, start, count, cut, mirror, hold)
            audio = source.read_audio(start, len(motion))
        held = describe_held(motion.held)
        if held:
            log.warning("%s: %s", source.name, held)
        performance = Performance(motion, source.frame_rate, source.name)
        return io.NodeOutput(
            NodeMotion(performance, reference.reference.motion, seen), float(source.frame_rate), audio, held
        )


def _extract(
    model: PersonaLiveModel,
    source: Driving,
    start: int,
    count: int,
    cut: Callable[[np.ndarray], DrivingFrame],
    mirror: bool,
    hold: bool,
) -> tuple[Motion, list[Seen]]:
    frames = islice(source.frames, start, start + count if count else None)
    total = min(filter(None, (count, source.count and source.count - start)), default=0)
    bar = comfy.utils.ProgressBar(max(1, total))
    record, seen = MotionRecord(), []
    networks = motion = None
    holding = Hold()
    while chunk := list(islice(frames, CHUNK)):
        cropped = [cut(picture) for picture in chunk]
        pictures = np.stack([frame.pixels for frame in cropped])
        height, width = pictures.shape[1:3]
        networks = networks or model.load("motion_extractor", "motion_encoder", memory=memory.motion(width, height))
        pictures = pictures[:, :, ::-1].copy() if mirror else pictures
        pixels = convert.to_pixels(pictures, model.device)
        motion = extract_motion(*networks, pixels, motion)
        record.append(holding.push(motion, pixels, [frame.has_face for frame in cropped]) if hold else motion)
        crops = ((crop_faces(pixels, motion.boxes, FACE_SIZE) / 2 + 0.5) * 255).byte()
        faces = rearrange(crops, "f c h w -> f h w c").cpu().numpy()
        for picture, frame, face in zip(chunk, cropped, faces, strict=True):
            seen.append(Seen(_jpeg(face), _draw_whole(picture, frame, mirror) if frame.square else None))
        preview = Image.fromarray(seen[-1].draw(WHOLE_SIZE))
        bar.update_absolute(len(seen), max(total, len(seen)), ("JPEG", preview, None))
    if not seen:
        raise InputError(f"there are no driving frames from frame {start} on: lower 'start' or choose another video.")
    holding.finish()
    return record.motion(), seen


def _draw_whole(picture: np.ndarray, frame: DrivingFrame, mirror: bool) -> bytes:
    drawn = draw_crop(picture, frame.square, [])
    small = Image.fromarray(drawn[:, ::-1] if mirror else drawn)
    small = ImageOps.contain(small, (WHOLE_SIZE, WHOLE_SIZE), Image.Resampling.BOX)
    return _jpeg(np.asarray(small))


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
            description="Shows what the model sees: the face it cut out, and the pose as seven coloured dots; with "
            "Crop Driving the whole frame and its square too.",
            inputs=[
                MotionType.Input("motion", tooltip="From Extract Motion."),
                io.Int.Input("start", default=0, min=0, max=10_000_000, tooltip="First frame to show."),
                io.Int.Input("count", default=16, min=1, max=1000, tooltip="How many frames to show."),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, motion: NodeMotion, start: int, count: int) -> io.NodeOutput:
        shown = trim(motion.performance.motion, start, count)
        poses = motion.performance.retargeted(motion.portrait, slice(start, start + count)).pose
        dots = draw_keypoint_map(transform_keypoints(poses), PREVIEW_SIZE, PREVIEW_SIZE)
        pictures = [rearrange(dots, "1 c f h w -> f h w c")]
        if motion.seen:
            drawn = [seen.draw(PREVIEW_SIZE) for seen in motion.seen[start:][:count]]
            pictures.insert(0, convert.to_image(np.stack(drawn)))
        images = torch.cat(pictures, dim=2)
        for i in shown.held.nonzero().flatten().tolist():
            for edge in (images[i, :BORDER], images[i, -BORDER:], images[i, :, :BORDER], images[i, :, -BORDER:]):
                edge[:] = torch.tensor(HELD) / 255
        return io.NodeOutput(images)


def _opened(file: bytes) -> Image.Image:
    return Image.open(bytes_io.BytesIO(file))


class MakeContactSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveContactSheet",
            display_name="Contact Sheet",
            category="PersonaLive",
            description="Driver, keypoints and result at a few moments, side by side in one picture.",
            inputs=[
                MotionType.Input("motion", tooltip="From Extract Motion, Adjust Motion or Load Motion."),
                io.MultiType.Input(
                    "result",
                    types=[io.Image, io.Video],
                    optional=True,
                    tooltip="What was made with this motion: the video or the images of Assemble Video.",
                ),
                io.Int.Input("columns", default=12, min=2, max=64, tooltip="How many moments to show at most."),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(cls, motion: NodeMotion, columns: int, result=None) -> io.NodeOutput:
        sheet, performance = ContactSheet(columns), motion.performance
        for i in range(len(performance.motion)):
            if sheet.wants(i):
                retargeted = performance.retargeted(motion.portrait, slice(i, i + 1))
                sheet.add_keypoints(i, retargeted)
                if motion.seen:
                    face, whole = motion.seen[i]
                    sheet.add("driver", i, np.asarray(_opened(face)), bool(retargeted.held[0]))
                    if whole:
                        sheet.add_whole(i, np.asarray(_opened(whole)))
        if result is not None:
            with open_driving(result, 0.0) as source:
                for i, pixels in enumerate(source.frames):
                    sheet.add("result", i, pixels)
        return io.NodeOutput(convert.to_image(np.asarray(sheet.image())[None]))
