"""The options of `animate` that crop the portrait and the driving video, and paste the result back."""

import argparse
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..errors import InputError
from ..framing.crop import (
    MARGIN,
    MARGIN_LIMITS,
    VERTICAL_OFFSET,
    VERTICAL_OFFSET_LIMITS,
    Crop,
    PortraitCrop,
    crop_portrait,
    draw_crop,
)
from ..framing.driving_crop import MODES, DrivingCropSettings, open_driving_crop
from ..framing.face_detector import CHOICES, Detector, load_detector
from ..framing.paste_back import FEATHER, FEATHER_LIMITS, PasteBack
from ..media.pictures import fit_picture, read_picture
from ..motion.extraction import DrivingFrame
from ..networks.motion_extractor import MotionExtractor
from ..weights.hub import DETECTORS, find_detector
from .outputs import save_picture


def add_crop_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("crop and paste back")
    group.add_argument(
        "--crop",
        nargs="?",
        const="face",
        metavar="X,Y,SIDE",
        help="cut a square out of the portrait: around the face, or the one that you give in pixels",
    )
    group.add_argument(
        "--detector",
        metavar="NAME",
        help="what finds faces: yunet, which --download fetches, or a YuNet file of your own (.onnx); both need "
        "OpenCV; without a detector the model's keypoints find the face",
    )
    group.add_argument(
        "--face",
        default=CHOICES[0],
        metavar="WHICH",
        help="which of several faces that --detector finds, in the portrait and in the driving video: largest or "
        "centre; or a number, counted from 0 at the left of the portrait, and the largest in the driving video",
    )
    group.add_argument("--refine", action="store_true", help="let the model's keypoints move the detector's box")
    for name, default, limits, what in (
        ("margin", MARGIN, MARGIN_LIMITS, "room on each side of the face, in sizes of the face"),
        ("vertical-offset", VERTICAL_OFFSET, VERTICAL_OFFSET_LIMITS, "move the square down, in sizes of the face"),
        ("feather", FEATHER, FEATHER_LIMITS, "width of the soft edge of --paste-back, as a fraction of the square"),
    ):
        text = "{}, {:g} to {:g}".format(what, *limits)
        group.add_argument(f"--{name}", type=float, default=default, metavar="X", help=text)
    group.add_argument("--crop-preview", type=Path, metavar="FILE", help="draw the portrait's crop into a picture")
    group.add_argument(
        "--paste-back", action="store_true", help="paste the result into the whole portrait, at its own size"
    )
    group.add_argument("--match-colours", action="store_true", help="match its colours to the portrait's at that edge")
    group.add_argument(
        "--crop-driving",
        nargs="?",
        const="smoothed",
        choices=MODES,
        help="follow the driver's head; alone it means smoothed",
    )


class DrivingOptions:
    """What the options ask for in the driving pictures.

    Args:
        options: the parsed command line of `animate`.

    Attributes:
        detector: what finds faces, also in the portrait; None without one.

    Raises:
        InputError: an option cannot be, such as a missing detector.
    """

    def __init__(self, options: argparse.Namespace):
        face = options.face if options.face in CHOICES else CHOICES[0]  # a number counts in the portrait alone
        self._options = options
        self._settings = DrivingCropSettings(
            options.crop_driving or MODES[0], face, options.margin, options.vertical_offset
        )
        self.detector = open_detector(options) if options.detector else None

    def cropper(self, extractor: MotionExtractor, device: torch.device) -> Callable[[np.ndarray], DrivingFrame]:
        """What cuts each driving picture."""
        if self._options.crop_driving is None:
            return DrivingFrame
        with closing(self._pictures()) as pictures:
            return open_driving_crop(self._settings, pictures, self.detector, lambda: extractor, device).cut

    def _pictures(self) -> Generator[np.ndarray, None, None]:
        from ..media.video_reader import VideoReader

        options = self._options
        with VideoReader(options.driving_video, lambda number: number >= options.start) as video:
            frames = islice(video, options.start, options.start + options.max_frames if options.max_frames else None)
            for frame in tqdm(frames, desc="looking for the driver's head", unit="frame", leave=False):
                yield frame.pixels


class CropOptions:
    """What the options ask for, in the order of the work: portrait, driving pictures, animated pictures.

    Args:
        options: the parsed command line of `animate`.

    Attributes:
        driving: what they ask for in the driving pictures.

    Raises:
        InputError: an option cannot be, such as a missing detector or a size that is not square. All are checked here,
            before any work.
    """

    def __init__(self, options: argparse.Namespace):
        self._options = options
        refuse_idle(options)
        self._picture = read_picture(options.ref_image)
        self._crop: Crop | None = None
        self._back: PasteBack | None = None
        self.driving = DrivingOptions(options)
        if options.crop or options.paste_back:
            if options.width != options.height:
                raise InputError(f"-W is {options.width} and -H {options.height}, but --crop needs equal ones.")
            height, width = self._picture.shape[:2]
            self._crop = Crop.centred(width, height)
            if options.crop not in (None, "face"):
                self._crop = Crop(*_numbers(options.crop), width, height)
            PasteBack(self._crop, options.width, feather=options.feather)  # checks the feather

    @property
    def output_size(self) -> tuple[int, int]:
        """Width and height of the video, which cannot hold the last row or column of an odd size."""
        if not self._options.paste_back:
            return self._options.width, self._options.height
        height, width = self._picture.shape[:2]
        return width // 2 * 2, height // 2 * 2

    def portrait(self, extractor: MotionExtractor, device: torch.device) -> np.ndarray:
        """What is animated: uint8 (H, W, 3) of the size asked for."""
        options, picture = self._options, self._picture
        if self._crop is None:
            return fit_picture(picture, options.width, options.height)
        found = PortraitCrop(self._crop)
        if options.crop == "face":
            found = crop_portrait(
                picture,
                detector=self.driving.detector,
                extractor=lambda: extractor,
                device=device,
                choice=options.face,
                refine=options.refine,
                margin=options.margin,
                vertical_offset=options.vertical_offset,
            )
        if options.crop_preview:
            preview = draw_crop(picture, found.crop, found.faces, found.face)
            save_picture(Image.fromarray(preview), options.crop_preview)
        if options.paste_back:
            self._back = PasteBack(
                found.crop, options.width, feather=options.feather, match_colours=options.match_colours
            )
        return found.crop.cut(picture, options.width)

    def finish(self, pixels: np.ndarray) -> np.ndarray:
        """Makes the video's frame of an animated picture."""
        if self._back is None:
            return pixels
        width, height = self.output_size
        return self._back.paste(self._picture, pixels)[:height, :width]


def refuse_idle(options: argparse.Namespace) -> None:
    """InputError for an option that does nothing without another one, which it names."""
    finds_face, finding = options.crop == "face" or options.crop_driving, "--crop (without numbers) or --crop-driving"
    for name, default, has_use, needed in (
        ("detector", None, finds_face, finding),
        ("margin", MARGIN, finds_face, finding),
        ("vertical_offset", VERTICAL_OFFSET, finds_face, finding),
        ("refine", False, options.crop == "face" and options.detector, "--crop and --detector"),
        ("face", CHOICES[0], options.detector, "--detector"),
        ("crop_preview", None, options.crop or options.paste_back, "--crop or --paste-back"),
        ("feather", FEATHER, options.paste_back, "--paste-back"),
        ("match_colours", False, options.paste_back, "--paste-back"),
    ):
        if getattr(options, name) != default and not has_use:
            raise InputError(f"--{name.replace('_', '-')} does nothing without {needed}: add that, or leave it out.")


def _numbers(text: str) -> tuple[float, float, float]:
    try:
        x, y, side = (float(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(f"--crop is {text!r}: give X,Y,SIDE in pixels, or nothing to find the face.") from error
    return x, y, side


def open_detector(options: argparse.Namespace) -> Detector:
    """What `--detector` names."""
    if options.detector in DETECTORS:
        return load_detector(find_detector(options.weights, options.detector, options.download))
    return load_detector(options.detector)
