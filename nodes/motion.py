"""Extract Motion and Preview Motion: what the driving pictures say, in a few KB each."""

import io as bytes_io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from comfy_api.latest import io
from einops import rearrange
from PIL import Image, ImageOps

from ..personalive_core import memory
from ..personalive_core.errors import InputError
from ..personalive_core.media.contact_sheet import BORDER, HELD, ContactSheet
from ..personalive_core.motion.extraction import DrivingFrame, driving_frames, extract_motions, trim_frames
from ..personalive_core.motion.hold import describe_held
from ..personalive_core.motion.keypoints import crop_faces, draw_keypoint_map, transform_keypoints
from ..personalive_core.motion.motion import Motion, MotionRecord
from ..personalive_core.motion.performance import MAX_FRAME_RATE, Adjustment, Performance, trim
from . import compat, convert
from .driving import open_driving, to_rate
from .driving_crop import CropSettings, CropSettingsType
from .load import ModelType, PersonaLiveModel
from .reference import NodeReference, ReferenceType
from .say import Progress, say_rate

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
            display_name="PersonaLive Extract Motion",
            category="PersonaLive",
            **compat.search_aliases(
                "driving video, expression, facial expression, head pose, motion capture, face motion, reenact"
            ),
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
                    tooltip="Driving frames to skip first.",
                ),
                io.Int.Input(
                    "count",
                    default=0,
                    min=0,
                    max=10_000_000,
                    optional=True,
                    tooltip="Driving frames to use at most; 0 is all.",
                ),
                io.Float.Input(
                    "frame_rate",
                    default=0.0,
                    min=0.0,
                    max=MAX_FRAME_RATE,
                    step=0.01,
                    optional=True,
                    tooltip="Frames per second of the result: its motion lies between that of the video's frames. 0 "
                    "keeps the video's rate. Images come at this rate, or 25 a second where it is 0.",
                ),
                io.Boolean.Input(
                    "mirror",
                    default=False,
                    optional=True,
                    tooltip="Swap left and right in the driving pictures first.",
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
                MotionType.Output(
                    display_name="motion",
                    tooltip="Head pose and expression of each frame, for Sample and the other nodes that take motion.",
                ),
                io.Float.Output(
                    display_name="frame_rate", tooltip="Frames per second of the motion, for Assemble Video."
                ),
                io.Audio.Output(
                    display_name="audio", tooltip="The driving video's sound, cut to the frames that are used."
                ),
                io.String.Output(
                    display_name="held", tooltip="Which frames hold the last good motion, and why; empty if none does."
                ),
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
        say_rate(driving, frame_rate)
        cut = crop.open(model, driving, frame_rate, start, count) if crop else DrivingFrame
        rate = to_rate(frame_rate)
        with open_driving(driving, frame_rate) as source:
            begin, frames = trim_frames(source.frames, start, count)
            total = max(1, min(filter(None, (count, source.count and source.count - start)), default=0))
            motion, times, seen = _extract(model, driving_frames(frames, cut, mirror), total, hold)
            extracted = Performance.extracted(motion, source.frame_rate, source.name, times)
            at_rate = Adjustment(frame_rate=rate or source.frame_rate)
            performance = extracted.adjusted(at_rate)
            audio = source.read_audio(begin, len(performance.motion) / performance.frame_rate)
        seen = [seen[i] for i in extracted.nearest_frames(at_rate)]
        held = describe_held(performance.motion.held)
        if held:
            log.warning("%s: %s", source.name, held)
        return io.NodeOutput(
            NodeMotion(performance, reference.reference.motion, seen), float(performance.frame_rate), audio, held
        )


def _extract(
    model: PersonaLiveModel, frames: Iterator[DrivingFrame], total: int, hold: bool
) -> tuple[Motion, list[Fraction], list[Seen]]:
    """The motion of the frames, their times, and small pictures of them."""
    progress, record, times, seen = Progress(total, "frames"), MotionRecord(), [], []
    first = next(frames)
    height, width = first.pixels.shape[:2]
    networks = model.load("motion_extractor", "motion_encoder", memory=memory.motion(width, height))
    for chunk in extract_motions(*networks, chain([first], frames), model.device, hold=hold):
        record.append(chunk.motion)
        crops = ((crop_faces(chunk.pixels, chunk.boxes, FACE_SIZE) / 2 + 0.5) * 255).byte()
        for frame, face in zip(chunk.frames, rearrange(crops, "f c h w -> f h w c").cpu().numpy(), strict=True):
            times.append(frame.time)
            seen.append(Seen(_jpeg(face), _jpeg(_small(frame.overview())) if frame.overview else None))
        preview = Image.fromarray(seen[-1].draw(WHOLE_SIZE))
        progress.update(len(seen), max(total, len(seen)), ("JPEG", preview, None))
    return record.motion(), times, seen


def _small(picture: np.ndarray) -> np.ndarray:
    return np.asarray(ImageOps.contain(Image.fromarray(picture), (WHOLE_SIZE, WHOLE_SIZE), Image.Resampling.BOX))


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = bytes_io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


class PreviewMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLivePreviewMotion",
            display_name="PersonaLive Preview Motion",
            category="PersonaLive",
            **compat.search_aliases("keypoints, facial landmarks, show motion, head pose"),
            description="Shows what the model sees: the face it cut out, and the pose as seven coloured dots; with "
            "Crop Driving the whole frame and its square too.",
            inputs=[
                MotionType.Input("motion", tooltip="From Extract Motion."),
                io.Int.Input("start", default=0, min=0, max=10_000_000, tooltip="First frame to show."),
                io.Int.Input("count", default=16, min=1, max=1000, tooltip="How many frames to show."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="One picture a frame. A coloured border marks frames that hold the last good motion.",
                )
            ],
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
            display_name="PersonaLive Contact Sheet",
            category="PersonaLive",
            **compat.search_aliases("compare, side by side, image grid"),
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
            outputs=[io.Image.Output(display_name="image", tooltip="All moments in one picture.")],
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
                    sheet.add_driver_crop(i, np.asarray(_opened(face)), bool(retargeted.held[0]))
                    if whole:
                        sheet.add_driving_frame(i, np.asarray(_opened(whole)))
        if result is not None:
            with open_driving(result, 0.0) as source:
                for i, frame in enumerate(source.frames):
                    sheet.add_result(i, frame.pixels)
        return io.NodeOutput(convert.to_image(np.asarray(sheet.image())[None]))
