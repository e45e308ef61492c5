"""Crop Driving: how Extract Motion shall follow the driver's head."""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import numpy as np
from comfy_api.latest import io

from ..personalive_core.framing.crop import MARGIN, SHIFT
from ..personalive_core.framing.driving_crop import (
    MODES,
    DrivingCrop,
    find_fixed_square,
    locate_by_detector,
    locate_by_keypoints,
)
from ..personalive_core.framing.face_detector import CHOICES
from ..personalive_core.motion.extraction import DrivingFrame, trim_frames
from . import memory
from .detectors import detector_input, open_detector
from .driving import open_driving
from .load import PersonaLiveModel


@dataclass(frozen=True)
class CropSettings:
    mode: str
    detector: str
    face: str
    margin: float
    shift: float

    def open(
        self, model: PersonaLiveModel, driving, frame_rate: float, start: int, count: int
    ) -> Callable[[np.ndarray], DrivingFrame]:
        """What crops the frames from `start` on, in order. For the fixed square they are all looked at beforehand."""
        detector = open_detector(self.detector)
        if detector is None:
            (extractor,) = model.load("motion_extractor", memory=memory.motion(512, 512))
            locate = locate_by_keypoints(extractor, model.device)
        else:
            locate = locate_by_detector(detector, self.face)
        fixed, room = None, dict(margin=self.margin, shift=self.shift)
        if self.mode == "fixed":
            with open_driving(driving, frame_rate) as source:
                _, frames = trim_frames(source.frames, start, count)
                fixed = find_fixed_square((_cancellable(pixels) for pixels, _ in frames), locate, **room)
        # With a fixed square only a detector has more to say: whether there is a face.
        locate_now = locate if detector or fixed is None else None
        return DrivingCrop(locate_now, self.mode, fixed=fixed, **room).cut


def _cancellable(picture: np.ndarray) -> np.ndarray:
    comfy.model_management.throw_exception_if_processing_interrupted()
    return picture


CropSettingsType = io.Custom("PERSONALIVE_DRIVING_CROP")


class CropDriving(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveCropDriving",
            display_name="Crop Driving",
            category="PersonaLive",
            description="For a driving video that shows more than a head: Extract Motion then follows the head.",
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="'smoothed' follows the head calmly, 'fixed' is one square for all of the video, "
                    "'per-frame' follows every trembling of the detector.",
                ),
                detector_input(),
                io.Combo.Input(
                    "face",
                    options=list(CHOICES),
                    default=CHOICES[0],
                    tooltip="Which one, if there are several at the beginning: the largest, or the one nearest to the "
                    "centre. Later it is the one nearest to where it was.",
                ),
                io.Float.Input(
                    "margin",
                    default=MARGIN,
                    min=0.0,
                    max=5.0,
                    step=0.05,
                    tooltip="Room around the face at each side, in parts of the face's size.",
                ),
                io.Float.Input(
                    "shift",
                    default=SHIFT,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Moves the square down, in parts of the face's size; up if negative.",
                ),
            ],
            outputs=[CropSettingsType.Output(display_name="crop")],
        )

    @classmethod
    def execute(cls, mode: str, detector: str, face: str, margin: float, shift: float) -> io.NodeOutput:
        open_detector(detector)  # says what is wrong with it here, not later
        return io.NodeOutput(CropSettings(mode, detector, face, margin, shift))
