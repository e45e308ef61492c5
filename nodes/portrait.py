"""Crop Portrait and Paste Back: the square that the model needs, and the way back into the whole picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, tee
from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import InputImpl, io
from PIL import Image

from ..personalive_core.errors import InputError
from ..personalive_core.framing.crop import Crop, PortraitCrop, crop_portrait, draw_crop
from ..personalive_core.framing.face_detector import CHOICES, Box
from ..personalive_core.framing.paste_back import FEATHER, FEATHER_LIMITS, PasteBack
from ..personalive_core.media.video_reader import Frame
from ..personalive_core.media.video_writer import VideoWriter
from . import compat, convert
from .assemble import CRF, SwitchedOff, removed_videos, temporary_video, write_sound
from .detectors import detector_input, open_detector
from .driving import Driving, frames_at, open_driving
from .driving_crop import square_inputs
from .load import ModelType
from .say import Progress, say, say_first, say_rate

NUMBER = "number"
CropType = io.Custom("PERSONALIVE_CROP")


class CropPortrait(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveCropPortrait",
            display_name="PersonaLive Crop Portrait",
            category="PersonaLive",
            **compat.search_aliases("crop face, face detector, face crop, head crop, yunet"),
            description="Cuts the square that the model needs out of a picture of any shape: head and shoulders.",
            inputs=[
                io.MultiType.Input(
                    "image", types=[io.Image, io.Video], tooltip="The whole picture; the first frame of a video."
                ),
                io.Int.Input(
                    "size", default=512, min=128, max=2048, step=8, tooltip="Width and height of the square in pixels."
                ),
                detector_input(),
                io.Combo.Input(
                    "face",
                    options=[*CHOICES, NUMBER],
                    default=CHOICES[0],
                    tooltip="Which of several: the largest, the one nearest to the centre, or the one with the number "
                    "below.",
                ),
                io.Int.Input(
                    "number",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="If 'face' is 'number': which one, as the preview numbers them.",
                ),
                *square_inputs(),
                io.Boolean.Input(
                    "refine",
                    default=False,
                    tooltip="Let the model's own keypoints move the box of the face. Needs 'model'.",
                ),
                io.Int.Input("x", default=0, min=-100_000, max=100_000, tooltip="By hand: left edge of the square."),
                io.Int.Input("y", default=0, min=-100_000, max=100_000, tooltip="By hand: top edge of the square."),
                io.Int.Input(
                    "side",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="By hand: side of the square in pixels. 0 finds the face.",
                ),
                ModelType.Input(
                    "model",
                    optional=True,
                    tooltip="From Load PersonaLive Model: its keypoints find the face if nothing else does, and refine "
                    "the box.",
                ),
                io.Custom("BOUNDING_BOX").Input(
                    "boxes",
                    optional=True,
                    extra_dict={"forceInput": True},
                    tooltip="Boxes of faces from another node, in place of a detector.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The square with head and shoulders, for Encode Reference."
                ),
                CropType.Output(display_name="crop", tooltip="Where the square was, for Paste Back."),
                io.Image.Output(
                    display_name="preview",
                    tooltip="The whole picture with the square drawn in, and the numbers of the faces found.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image,
        size: int,
        detector: str,
        face: str,
        number: int,
        margin: float,
        vertical_offset: float,
        refine: bool,
        x: int,
        y: int,
        side: int,
        model=None,
        boxes=None,
    ) -> io.NodeOutput:
        picture = _first(image)
        height, width = picture.shape[:2]
        if side:
            found = PortraitCrop(Crop(x, y, side, width, height))
        else:
            found = crop_portrait(
                picture,
                boxes=None if boxes is None else to_boxes(boxes),
                detector=open_detector(detector),
                extractor=model and model.load_motion_extractor,
                device=model and model.device,
                choice=str(number) if face == NUMBER else face,
                refine=refine,
                margin=margin,
                vertical_offset=vertical_offset,
            )
        square = found.crop.cut(picture, size)
        preview = draw_crop(picture, found.crop, found.faces, found.face)
        return io.NodeOutput(convert.to_image(square[None]), found.crop, convert.to_image(preview[None]))


def _first(image) -> np.ndarray:
    if isinstance(image, torch.Tensor):
        say_first(image, "images")
        return convert.to_pictures(image[:1], "the portrait")[0]
    with open_driving(image, 0) as video:
        return next(video.frames).pixels


def to_boxes(boxes) -> list[Box]:
    """The faces in the host's BOUNDING_BOX, which is a box, a list of boxes, or a list of lists: then the first, for
    the first picture."""
    if isinstance(boxes, dict):
        boxes = [boxes]
    elif boxes and isinstance(boxes[0], list | tuple):
        boxes = boxes[0]
    try:
        return [Box(*(float(box[key]) for key in ("x", "y", "width", "height"))) for box in boxes]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the boxes {boxes!r:.100} are not known: give x, y, width and height of each.") from error


class PasteBackNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLivePasteBack",
            display_name="PersonaLive Paste Back",
            category="PersonaLive",
            **compat.search_aliases("composite face, stitch, face paste, uncrop"),
            description="Pastes the animated square back into the whole picture or video, with a soft edge.",
            inputs=[
                io.MultiType.Input(
                    "picture",
                    types=[io.Image, io.Video],
                    tooltip="What the square was cut out of: a picture or a video. For several people, the video of "
                    "the previous Paste Back.",
                ),
                CropType.Input("crop", tooltip="From Crop Portrait."),
                io.MultiType.Input(
                    "animated",
                    types=[io.Image, io.Video],
                    tooltip="The animated square: from Assemble Video, or images.",
                ),
                io.Float.Input(
                    "feather",
                    default=FEATHER,
                    min=FEATHER_LIMITS[0],
                    max=FEATHER_LIMITS[1],
                    step=0.01,
                    tooltip="Width of the soft edge, as a fraction of the square's side.",
                ),
                io.Boolean.Input(
                    "match_colours",
                    default=False,
                    tooltip="Match the colours of the animated square to those of the picture at the soft edge.",
                ),
                io.Combo.Input(
                    "quality",
                    options=list(CRF),
                    default="good",
                    tooltip="'high' makes large files, 'small' small ones. 'high' is best for pasting into the result.",
                ),
                io.Boolean.Input(
                    "images",
                    default=False,
                    tooltip="Output the frames as images too. They are all kept in memory, 12 bytes a pixel.",
                ),
                io.Float.Input(
                    "frame_rate",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.01,
                    optional=True,
                    tooltip="Frames per second, if 'animated' is images; 0 is 25. A video keeps its own.",
                ),
                io.Audio.Input(
                    "audio", optional=True, tooltip="Sound to use instead of the animated video's or the picture's."
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video",
                    tooltip="The whole picture in motion, with sound, as a temporary file: save it with Save Video.",
                ),
                io.Image.Output(display_name="images", tooltip="The frames as images, if 'images' is on."),
                io.Mask.Output(
                    display_name="mask", tooltip="Where the square was pasted: white inside, with its soft edge."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_) -> int:
        return removed_videos()

    @classmethod
    def execute(
        cls,
        picture,
        crop: Crop,
        animated,
        feather: float,
        match_colours: bool,
        quality: str,
        images: bool,
        frame_rate: float = 0.0,
        audio: dict | None = None,
    ) -> io.NodeOutput:
        say_rate(animated, frame_rate)
        kept = [] if images else None
        with (
            temporary_video() as (path, wav),
            open_driving(animated, frame_rate) as squares,
            _open_whole(picture, squares.frame_rate) as whole,
        ):
            first = next(squares.frames)
            back = PasteBack(crop, len(first.pixels), feather=feather, match_colours=match_colours)
            sound, start = _sound(audio, squares, whole, wav)
            width, height = (side // 2 * 2 for side in (crop.width, crop.height))
            with VideoWriter(
                path, width, height, squares.frame_rate, audio_from=sound, audio_start=start, crf=CRF[quality]
            ) as video:
                for pixels, time in _pasted(back, whole, chain([first], squares.frames), squares.count):
                    # A video cannot have an odd size; the images keep the last row and column.
                    video.write(pixels[:height, :width], time)
                    if kept is not None:
                        kept.append(pixels)
        off = SwitchedOff("switch on 'images' in Paste Back to get the frames as images.")
        return io.NodeOutput(
            InputImpl.VideoFromFile(str(path)),
            convert.to_image(np.stack(kept)) if images else off,
            torch.from_numpy(back.mask)[None],
        )


@contextmanager
def _open_whole(picture, rate: Fraction) -> Iterator[Driving]:
    """A video or images, one for each animated picture, or a single image for all of them."""
    if isinstance(picture, torch.Tensor) and len(picture) == 1:
        yield Driving(iter([Frame(_first(picture), Fraction(0))]), rate, None)
    else:
        with open_driving(picture, float(rate)) as whole:
            yield whole


def _completed(pixels: np.ndarray, crop: Crop) -> np.ndarray:
    """With the last row and column that another Paste Back left out, because a video cannot have an odd size."""
    lacking = crop.height - pixels.shape[0], crop.width - pixels.shape[1]
    odd = crop.height % 2, crop.width % 2
    if max(lacking) == 1 and min(lacking) >= 0 and all(n <= m for n, m in zip(lacking, odd, strict=True)):
        return np.pad(pixels, ((0, lacking[0]), (0, lacking[1]), (0, 0)), "edge")
    return pixels


def _sound(audio: dict | None, squares: Driving, whole: Driving, wav: Path) -> tuple[Path | None, Fraction]:
    """The file with the sound, and the second at which it begins; `wav` is where it may be written."""
    if audio is None:
        source = squares if squares.audio is not None else whole
        if source.audio is None or isinstance(source.audio, Path):
            return source.audio, source.begin
        audio = source.audio
    return write_sound(audio, wav), Fraction(0)


def _pasted(back: PasteBack, whole: Driving, squares: Iterator[Frame], count: int | None) -> Iterator[Frame]:
    """The whole pictures with the squares in them, until either ends, at the times of the squares."""
    progress, done = Progress(count or 1, "frames"), 0
    squares, timed = tee(squares)
    for picture, square in zip(frames_at(whole.frames, (frame.time for frame in timed)), squares, strict=False):
        pixels = back.paste(_completed(picture, back.crop), square.pixels)
        yield Frame(pixels, square.time)
        done += 1
        progress.update(done, max(count or 0, done), ("JPEG", Image.fromarray(pixels), 512))
    if whole.count and count and whole.count != count:
        say(f"the picture has {whole.count} frames, the animated video {count}: the result has {done}.")
