"""A video in three pieces against the whole one. A minute on a CPU."""

from itertools import chain

import numpy as np
import pytest

pytest.importorskip("cv2", reason="faces are drawn by OpenCV (opencv-python-headless)")
pytest.importorskip("diffusers", reason="the standalone pipeline needs diffusers")

from cases import Case
from measure import psnr
from personalive_core.motion.motion import Motion
from personalive_core.pipeline import Pipeline
from personalive_core.sampling.keyframes import KeyframeSettings
from personalive_core.sampling.split import split_motion
from personalive_core.weights.find import MINIATURE, find_weights


@pytest.mark.slow
def test_a_split_video_differs_less_than_another_seed():
    """44 dB is what two seeds differ by. A seam is no larger a step than the whole makes there."""
    pipeline, case = Pipeline.load(find_weights(MINIATURE), "cpu"), Case.drawn(201, 200)
    reference, motion = pipeline.encode_reference(case.portrait), Motion.cat([*pipeline.motions(case.driving)])
    parts = split_motion(reference.motion, motion, 3, keyframes=KeyframeSettings())
    whole = np.concatenate([*pipeline.animate_motion(reference, [motion])])
    split = np.concatenate([*chain.from_iterable(pipeline.animate_piece(reference, motion, part) for part in parts)])
    assert split.shape == whole.shape == (200, 128, 128, 3)
    seams = [part.start for part in parts[1:]]
    decibels = [psnr(a, b) for a, b in zip(split, whole, strict=True)]
    print("dB at the seams", seams, [[round(x, 1) for x in decibels[seam : seam + 8]] for seam in seams])
    assert min(decibels[: seams[0]]) == max(decibels), "the first piece is the whole's beginning"
    assert min(decibels) > 55

    def step(frames: np.ndarray, frame: int) -> float:
        return np.abs(frames[frame].astype(float) - frames[frame - 1]).mean()

    for seam in seams:
        assert step(split, seam) == pytest.approx(step(whole, seam), rel=0.02)
