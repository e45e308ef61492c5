"""Motion that is extracted in parts and joined is that of a single worker, bit for bit."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from face import draw_face
from motions import same
from personalive_core.errors import InputError
from personalive_core.motion.extraction import DrivingFrame
from personalive_core.motion.hold import Reason
from personalive_core.motion.motion import Motion
from personalive_core.motion.parts import Part, join_parts
from tiny import FindsDrawnFaces, tiny_pipeline

AWAY = [*range(3), 7, 8, *range(15, 21)]  # at the start, over a seam, and for a whole chunk


@pytest.fixture(scope="module")
def pipeline():
    pipeline = tiny_pipeline()
    pipeline.motion_extractor = FindsDrawnFaces(pipeline.motion_extractor)
    return pipeline


def frames_of(count: int, away: list[int]) -> list[DrivingFrame]:
    """A face that moves to the right, with a scene cut at 12."""
    frames = []
    for i in range(count):
        pixels = np.full((256, 256, 3), (0xCF, 0xD8, 0xDC), np.uint8)
        if i not in away:
            pixels[:, 2 * i :] = draw_face()[:, : 256 - 2 * i]
        pixels[200:, :60] = 90  # furniture, so that the picture is not empty without the face
        frames.append(DrivingFrame(pixels if i < 12 else pixels[::-1].copy(), time=Fraction(i, 25)))
    return frames


@torch.inference_mode()
def extract(pipeline, frames, hold=True) -> Motion:
    return Motion.cat(list(pipeline.motions(frames, hold)))


def test_parts_are_joined_to_the_motion_of_one_worker(pipeline):
    frames, skipped = frames_of(22, AWAY), np.empty((0, 0, 3), np.uint8)
    whole = extract(pipeline, frames)
    assert whole.held.tolist() == [Reason.NO_FACE * (i in AWAY) or Reason.SCENE_CUT * (i == 12) for i in range(22)]
    for count in 3, 7:  # 22 frames have 6 chunks
        parts = []
        for part in (Part(i, count) for i in range(count)):
            known = [frame if part.has(i) else frame._replace(pixels=skipped) for i, frame in enumerate(frames)]
            parts.append(pipeline.extract_part(known, part))
        assert sum(map(bool, parts)) == min(count, 6)
        assert same(join_parts(parts), whole)


def test_only_hold_makes_parts_independent(pipeline):
    """Without it a frame without a face takes the box of a frame in another part."""
    frames = frames_of(9, [8])
    whole, alone = extract(pipeline, frames, hold=False), extract(pipeline, frames[8:], hold=False)
    assert same(whole[:8], extract(pipeline, frames[:8]))
    assert not same(whole[8:], alone)


def test_parts_without_a_face_say_so_together(pipeline):
    frames = frames_of(10, [*range(10)])
    with pytest.raises(InputError, match="none of the 10 driving frames shows a face"):
        join_parts([pipeline.extract_part(frames, Part(i, 2)) for i in range(2)])
