"""The options of `animate` that crop the portrait and the driving video, and paste the result back."""

import argparse
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..errors import InputError
from ..framing.crop import MARGIN, SHIFT, Crop, draw_crop, find_by_keypoints, refine_face
from ..framing.driving_crop import (
    MODES,
    DrivingCrop,
    Locate,
    find_fixed_square,
    locate_by_detector,
    locate_by_keypoints,
)
from ..framing.face_detector import Box, choose_face, find_faces, load_detector
from ..framing.paste_back import FEATHER, PasteBack
from ..media.pictures import fit_picture, read_picture
from ..motion.extraction import DrivingFrame
from ..networks.motion_extractor import MotionExtractor


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
        "--detector", type=Path, metavar="FILE", help="YuNet (.onnx) or Haar cascade (.xml); else keypoints find faces"
    )
    group.add_argument("--face", default="largest", help="of several: largest, centre, or a number from 0 at the left")
    group.add_argument("--refine", action="store_true", help="let the model's keypoints move the detector's box")
    group.add_argument("--margin", type=float, default=MARGIN, help=f"around the face, in its sizes (default {MARGIN})")
    group.add_argument("--shift", type=float, default=SHIFT, help=f"downwards, in face sizes (default {SHIFT})")
    group.add_argument("--crop-preview", type=Path, metavar="FILE", help="draw what was cropped into a picture")
    group.add_argument(
        "--paste-back", action="store_true", help="set the result into the whole portrait, at its own size"
    )
    group.add_argument("--feather", type=float, default=FEATHER, help=f"soft edge of it (default {FEATHER})")
    group.add_argument("--match-colours", action="store_true", help="match its colours to the portrait's at that edge")
    group.add_argument(
        "--crop-driving", nargs="?", const="smoothed", choices=MODES, help="follow the driver's head (default smoothed)"
    )


class CropOptions:
    """What the options ask for, in the order of the work: portrait, driving pictures, animated pictures.

    Made before any work: InputError for what cannot be, such as a missing detector or a size that is not square.
    """

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._picture = read_picture(options.ref_image)
        self._detector = load_detector(options.detector) if options.detector else None
        self._crop: Crop | None = None
        self._back: PasteBack | None = None
        if options.margin < 0 or not np.isfinite([options.margin, options.shift]).all():
            raise InputError(f"--margin is {options.margin:g} and --shift {options.shift:g}: give a margin from 0 on.")
        if options.crop or options.paste_back:
            if options.width != options.height:
                raise InputError(f"-W is {options.width} and -H {options.height}, but --crop needs equal ones.")
            height, width = self._picture.shape[:2]
            self._crop = Crop.centred(width, height)
            if options.crop not in (None, "face"):
                self._crop = Crop(*_numbers(options.crop), width, height)
            PasteBack(self._crop, options.width, feather=options.feather)  # refuses what cannot be

    @property
    def output_size(self) -> tuple[int, int]:
        """Width and height of the video; an odd last row or column of a portrait cannot be coded."""
        if not self._options.paste_back:
            return self._options.width, self._options.height
        height, width = self._picture.shape[:2]
        return width // 2 * 2, height // 2 * 2

    def portrait(self, extractor: MotionExtractor, device: torch.device) -> np.ndarray:
        """What is animated: uint8 (H, W, 3) of the size asked for."""
        options, picture = self._options, self._picture
        if self._crop is None:
            return fit_picture(picture, options.width, options.height)
        height, width = picture.shape[:2]
        faces: list[Box] = []
        face = None
        if options.crop == "face":
            if self._detector:
                faces = find_faces(self._detector, picture)
                face = choose_face(faces, options.face, width, height)
                if options.refine:
                    face = refine_face(extractor, picture, face, device)
            else:
                face = find_by_keypoints(extractor, picture, device)
            self._crop = Crop.around(face, width, height, options.margin, options.shift)
        if options.crop_preview:
            Image.fromarray(draw_crop(picture, self._crop, faces, face)).save(options.crop_preview)
        if options.paste_back:
            self._back = PasteBack(
                self._crop, options.width, feather=options.feather, match_colours=options.match_colours
            )
        return self._crop.cut(picture, options.width)

    def driving(self, extractor: MotionExtractor, device: torch.device) -> Callable[[np.ndarray], DrivingFrame]:
        """What is done to each driving picture. For the fixed square the video is read once beforehand."""
        options = self._options
        if options.crop_driving is None:
            return DrivingFrame
        locate: Locate = locate_by_keypoints(extractor, device)
        if self._detector:
            locate = locate_by_detector(self._detector)
        fixed, room = None, dict(margin=options.margin, shift=options.shift)
        if options.crop_driving == "fixed":
            from ..media.video_reader import VideoReader

            with VideoReader(options.driving_video) as video:
                end = options.start + options.max_frames if options.max_frames else None
                pictures = (frame.pixels for frame in islice(video, options.start, end))
                pictures = tqdm(pictures, desc="looking for the driver's head", unit="frame", leave=False)
                fixed = find_fixed_square(pictures, locate, **room)
        # With a fixed square only a detector has more to say: whether there is a face.
        locate_now = locate if self._detector or fixed is None else None
        return DrivingCrop(locate_now, options.crop_driving, fixed=fixed, **room).cut

    def finish(self, pixels: np.ndarray) -> np.ndarray:
        """An animated picture as it goes into the video."""
        if self._back is None:
            return pixels
        width, height = self.output_size
        return self._back.paste(self._picture, pixels)[:height, :width]


def _numbers(text: str) -> tuple[float, float, float]:
    try:
        x, y, side = (float(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(f"--crop is {text!r}: give X,Y,SIDE in pixels, or nothing to find the face.") from error
    return x, y, side
