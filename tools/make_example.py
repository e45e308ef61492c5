"""Draws the input that the miniature comes with: a portrait, another character's performance, and the right answer.

PYTHONPATH=. python tools/make_example.py
"""

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from drawn import Pose, draw, perform, random_character, right_answer
from personalive_core.media.video_writer import VideoWriter
from personalive_core.weights.find import EXAMPLE

CHARACTER, DRIVER, PERFORMANCE = 34, 16, 351  # seeds that no training take has
SIZE = 128  # pixels on a side
FRAMES, RATE = 48, Fraction(16)
CRF = 14  # hardly to be told from what was drawn


def write_example(folder: Path) -> None:
    """portrait.png, driving.mp4 and right_answer.mp4, SIZE x SIZE."""
    character, driver = random_character(CHARACTER), random_character(DRIVER)
    portrait, poses = Pose(smile=0.3), perform(PERFORMANCE, FRAMES, float(RATE))
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(character, portrait, SIZE)).save(folder / "portrait.png", optimize=True)
    _write(folder / "driving.mp4", [draw(driver, pose, SIZE) for pose in poses])
    answers = [right_answer(portrait, pose, poses[0]) for pose in poses]
    _write(folder / "right_answer.mp4", [draw(character, pose, SIZE) for pose in answers])


def _write(path: Path, pictures: list[np.ndarray]) -> None:
    with VideoWriter(path, SIZE, SIZE, RATE, crf=CRF) as video:
        for i, pixels in enumerate(pictures):
            video.write(pixels, i / RATE)


if __name__ == "__main__":
    write_example(EXAMPLE)
