"""The command line run in this process, its driving clips and its results."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from face import draw_face
from personalive_core.cli.main import main
from personalive_core.media.video_reader import VideoReader
from personalive_core.media.video_writer import VideoWriter

RATE = Fraction(30000, 1001)


def write_clip(path: Path, frames: int) -> Path:
    with VideoWriter(path, 128, 96, RATE) as video:
        for i in range(frames):
            face = Image.fromarray(draw_face(yaw=np.sin(i / 3))).resize((128, 96))
            video.write(np.asarray(face), i / RATE)
    return path


def animate(weights: Path, portrait: Path, driving: Path, output: Path, *more: str) -> int:
    size = ["-W", "128", "-H", "128"]
    inputs = ["--ref_image", str(portrait), "--driving_video", str(driving), "--weights", str(weights)]
    return main(["animate", *inputs, "-o", str(output), *size, "--device", "cpu", *more])


def frames_of(path: Path) -> np.ndarray:
    with VideoReader(path) as video:
        assert video.metadata.frame_rate == RATE or video.metadata.frame_count == 1
        return np.stack([frame.pixels for frame in video])
