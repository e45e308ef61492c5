"""What length, cutting and settings change in what the miniature makes. Minutes on a CPU."""

from itertools import chain

import numpy as np
import pytest
import torch

pytest.importorskip("cv2", reason="faces are drawn by OpenCV (opencv-python-headless)")
pytest.importorskip("diffusers", reason="the standalone pipeline needs diffusers")

from cases import SIZE, Case, animated, score
from drawn import Pose, draw, random_character
from measure import measure
from personalive_core.config import CHUNK, WARM_UP
from personalive_core.motion.motion import Motion
from personalive_core.motion.performance import Strength
from personalive_core.pipeline import Pipeline
from personalive_core.sampling.keyframes import KeyframeSettings
from personalive_core.weights.find import MINIATURE, find_weights

pytestmark = pytest.mark.quality


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(find_weights(MINIATURE), "cpu")


@pytest.fixture(scope="module")
def short(pipeline: Pipeline) -> tuple[Case, list[np.ndarray]]:
    """One case of 24 frames, for what settings change."""
    case = Case.drawn(104, 24)
    return case, animated(pipeline, case)


def test_it_does_not_drift_in_a_thousand_frames(pipeline):
    """The driver does the same again and again; the last hundred frames lose less than 1 dB on the first."""
    case = Case.drawn(105, 76)
    there_and_back = [*range(76), *range(74, 0, -1)]  # 150 frames, so frame 900 is frame 0 again
    order = [there_and_back[i % 150] for i in range(1000)]
    motion = Motion.cat([pipeline.extract_motion(np.stack(case.driving[i : i + 4])) for i in range(0, 76, 4)])[order]
    stream, pictures, done = pipeline.stream(pipeline.encode_reference(case.portrait)), {}, 0
    with torch.inference_mode():
        state = stream.start(motion, seed=1)
        for chunks in (stream.push(state, motion), stream.flush(state)):
            for latents in chunks:
                frames = latents.shape[2]
                if frames and (done < 100 or done >= 900):
                    pictures |= dict(enumerate(pipeline.decode(latents), start=done))
                done += frames
    assert done == 1000

    def part(frames: range) -> float:
        return score([pictures[i] for i in frames], [case.answers[order[i]] for i in frames])

    assert part(range(100)) - part(range(900, 1000)) < 1


def test_a_stream_may_be_cut_anywhere(pipeline, short):
    """Driving frames one by one, or all at once: the same pictures."""
    case, _ = short
    reference, motion = pipeline.encode_reference(case.portrait), pipeline.extract_motion(np.stack(case.driving))
    one_by_one = [
        frame for chunk in pipeline.animate_motion(reference, [motion[[i]] for i in range(24)]) for frame in chunk
    ]
    at_once = [frame for chunk in pipeline.animate_motion(reference, [motion]) for frame in chunk]
    assert np.array_equal(one_by_one, at_once)


def test_another_seed_is_another_take_of_the_same(pipeline, short):
    case, result = short
    other = animated(pipeline, case, seed=7)
    assert not np.array_equal(other, result)
    assert abs(score(other, case.answers) - score(result, case.answers)) < 0.7
    assert score(other, result) > 38


def test_eight_steps_lose_little(pipeline, short):
    case, result = short
    assert score(animated(pipeline, case, steps=8), case.answers) > score(result, case.answers) - 1


def test_early_frames_are_as_near_to_the_right_answer(pipeline, short):
    """A window sooner, after three of their four steps."""
    case, result = short
    stream, motion = (
        pipeline.stream(pipeline.encode_reference(case.portrait)),
        pipeline.extract_motion(np.stack(case.driving)),
    )
    with torch.inference_mode():
        state, early = stream.start(motion, seed=42), []
        for _ in chain(stream.push(state, motion), stream.flush(state)):
            early.append(pipeline.decode(state.early))
    frames = np.concatenate(early)[WARM_UP - CHUNK :][: len(result)]
    assert not np.array_equal(frames, result)
    assert score(frames, case.answers) > score(result, case.answers) - 0.5


def test_keyframes_cost_nothing(pipeline):
    """Their tokens are far apart, so that all three are taken."""
    case = Case.drawn(106, 72)
    without = animated(pipeline, case, keyframes=KeyframeSettings(limit=0))
    with_them = animated(pipeline, case, keyframes=KeyframeSettings(limit=3, threshold=0))
    assert not np.array_equal(without, with_them)
    assert score(with_them, case.answers) > score(without, case.answers) - 1


def test_strength_is_how_far_it_moves(pipeline):
    """Rotation at 0, 0.5 and 1 turns the head so much of the way."""
    case = Case.drawn(107, 1)
    turned = Pose(yaw=24)
    driving = [draw(random_character(215), turned, SIZE)] * 8
    case = Case(case.character, draw(case.character, Pose(), SIZE), [turned] * 8, driving, [])
    yaws = []
    for rotation in (0.0, 0.5, 1.0):
        strength = Strength(rotation=rotation, relative=False)
        yaws.append(measure(case.character, animated(pipeline, case, strength=strength)[-1]).yaw)
    assert yaws == pytest.approx([0, 12, 24], abs=3)
