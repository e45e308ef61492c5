"""Crop Driving: how Extract Motion follows the driver's head."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass

import comfy.model_management
import numpy as np
from comfy_api.latest import io

from ..personalive_core.framing.crop import MARGIN, MARGIN_LIMITS, VERTICAL_OFFSET, VERTICAL_OFFSET_LIMITS
from ..personalive_core.framing.driving_crop import MODES, DrivingCropSettings, open_driving_crop
from ..personalive_core.framing.face_detector import CHOICES, Detector
from ..personalive_core.motion.extraction import DrivingFrame, trim_frames
from . import compat
from .detectors import detector_input, open_detector
from .driving import open_driving
from .load import PersonaLiveModel


@dataclass(frozen=True)
class CropSettings:
    settings: DrivingCropSettings
    detector: Detector | None

    def open(
        self, model: PersonaLiveModel, driving, frame_rate: float, start: int, count: int
    ) -> Callable[[np.ndarray], DrivingFrame]:
        """What cuts the frames from `start` on, in order."""
        with closing(_pictures(driving, frame_rate, start, count)) as pictures:
            return open_driving_crop(
                self.settings, pictures, self.detector, model.load_motion_extractor, model.device
            ).cut


def _pictures(driving, frame_rate: float, start: int, count: int) -> Generator[np.ndarray, None, None]:
    with open_driving(driving, frame_rate) as source:
        for pixels, _ in trim_frames(source.frames, start, count)[1]:
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield pixels


def square_inputs() -> list[io.Float.Input]:
    """Of the square around a face."""
    return [
        io.Float.Input(
            "margin",
            default=MARGIN,
            min=MARGIN_LIMITS[0],
            max=MARGIN_LIMITS[1],
            step=0.05,
            tooltip="Room on each side of the face, in sizes of the face.",
        ),
        io.Float.Input(
            "vertical_offset",
            default=VERTICAL_OFFSET,
            min=VERTICAL_OFFSET_LIMITS[0],
            max=VERTICAL_OFFSET_LIMITS[1],
            step=0.05,
            tooltip="Moves the square down, in sizes of the face; up if negative.",
        ),
    ]


CropSettingsType = io.Custom("PERSONALIVE_DRIVING_CROP")


class CropDriving(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveCropDriving",
            display_name="PersonaLive Crop Driving",
            category="PersonaLive",
            **compat.search_aliases("crop driving video, face tracking, follow head, crop face"),
            description="For a driving video that shows more than a head: Extract Motion then follows the head.",
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="'smoothed' follows the head calmly, 'fixed' is one square for the whole video, "
                    "'per-frame' follows every tremble of the detector.",
                ),
                detector_input(),
                io.Combo.Input(
                    "face",
                    options=list(CHOICES),
                    default=CHOICES[0],
                    tooltip="Which of several faces to follow: the largest in the first frame, or the one nearest to "
                    "the centre.",
                ),
                *square_inputs(),
            ],
            outputs=[
                CropSettingsType.Output(display_name="crop", tooltip="How to follow the head, for Extract Motion.")
            ],
        )

    @classmethod
    def execute(cls, mode: str, detector: str, face: str, margin: float, vertical_offset: float) -> io.NodeOutput:
        settings = DrivingCropSettings(mode, face, margin, vertical_offset)
        return io.NodeOutput(CropSettings(settings, open_detector(detector)))
