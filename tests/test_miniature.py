"""Does the picture follow the driver and keep its face? The miniature answers with numbers, on characters and
performances that it has not seen, against the right answer, which is drawn. Minutes on a CPU."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2", reason="faces are drawn by OpenCV (opencv-python-headless)")
pytest.importorskip("diffusers", reason="the standalone pipeline needs diffusers")

from measure import correlation, curve, measure, measure_video, psnr, ssim  # noqa: E402
from personalive_core.adjust import Strength  # noqa: E402
from personalive_core.config import LATENT_SCALE  # noqa: E402
from personalive_core.drawn import Character, Pose, draw, perform, random_character, right_answer  # noqa: E402
from personalive_core.keyframes import KeyframeSettings  # noqa: E402
from personalive_core.motion import Motion  # noqa: E402
from personalive_core.pictures import read_picture  # noqa: E402
from personalive_core.standalone import Pipeline  # noqa: E402
from personalive_core.video import VideoReader  # noqa: E402
from personalive_core.weights import EXAMPLE, MINIATURE, find_weights  # noqa: E402
from tools.make_example import write_example  # noqa: E402

SIZE = 128
RATE = 12.0
SEEN = 1_000_000  # seeds from here on are of training
EVERY = 3  # measured frames
# Fails too when it is reached, so that nobody forgets to ask for it from then on.
interim = pytest.mark.xfail(strict=True, reason="the weights are of a trial run: see docs/miniature.md")


@dataclass(frozen=True)
class Case:
    """One character moved by another's performance."""

    character: Character
    portrait: np.ndarray
    poses: list[Pose]
    driving: list[np.ndarray]
    answers: list[np.ndarray]

    @classmethod
    def drawn(cls, seed: int, frames: int, portrait_pose: Pose | None = None, rate: float = RATE) -> "Case":
        character, driver, poses = (
            random_character(2 * seed),
            random_character(2 * seed + 1),
            perform(seed, frames, rate),
        )
        portrait_pose = portrait_pose or Pose(smile=0.2)
        return cls(
            character,
            draw(character, portrait_pose, SIZE),
            poses,
            [draw(driver, pose, SIZE) for pose in poses],
            [draw(character, right_answer(portrait_pose, pose, poses[0]), SIZE) for pose in poses],
        )


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(find_weights(MINIATURE), "cpu")


def animated(pipeline: Pipeline, case: Case, **settings) -> list[np.ndarray]:
    reference = pipeline.encode_reference(case.portrait)
    return [frame for chunk in pipeline.animate(reference, case.driving, **settings) for frame in chunk]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [Case.drawn(seed, 64) for seed in (101, 102, 103)]


@pytest.fixture(scope="module")
def results(pipeline: Pipeline, cases: list[Case]) -> list[list[np.ndarray]]:
    return [animated(pipeline, case) for case in cases]


@pytest.fixture(scope="module")
def measured(cases: list[Case], results: list[list[np.ndarray]]) -> list[list[Pose]]:
    return [measure_video(c.character, r[::EVERY]) for c, r in zip(cases, results, strict=True)]


@pytest.fixture(scope="module")
def short(pipeline: Pipeline) -> tuple[Case, list[np.ndarray]]:
    """One case of 24 frames, for what settings change."""
    case = Case.drawn(104, 24)
    return case, animated(pipeline, case)


def score(results: list[np.ndarray], answers: list[np.ndarray]) -> float:
    return psnr(np.stack(results), np.stack(answers))


def test_it_is_small():
    assert sum(path.stat().st_size for path in MINIATURE.rglob("*") if path.is_file()) <= 12e6


def test_the_example_is_drawn_from_its_seeds(tmp_path):
    write_example(tmp_path)
    assert psnr(read_picture(EXAMPLE / "portrait.png"), read_picture(tmp_path / "portrait.png")) > 40
    for name in ("driving.mp4", "right_answer.mp4"):
        with VideoReader(EXAMPLE / name) as shipped, VideoReader(tmp_path / name) as drawn:
            for a, b in zip(shipped, drawn, strict=True):
                assert a.time == b.time and psnr(a.pixels, b.pixels) > 35


@interim
def test_it_is_far_nearer_to_the_right_answer_than_the_portrait(cases, results):
    gains = [
        score(result, case.answers) - score([case.portrait] * len(result), case.answers)
        for case, result in zip(cases, results, strict=True)
    ]
    assert np.mean(gains) >= 5
    likeness = [
        ssim(r, a)
        for case, result in zip(cases, results, strict=True)
        for r, a in zip(result, case.answers, strict=True)
    ]
    still = [ssim(case.portrait, a) for case in cases for a in case.answers]
    assert np.mean(likeness) > np.mean(still) + 0.05


def test_it_does_not_look_up_what_it_was_trained_on(pipeline, cases, results):
    """At least 3 dB better than the autoencoder's picture of the nearest of 2000 training frames."""
    known = [draw(random_character(SEEN + i // 2), perform(SEEN + i, 1)[0], SIZE) for i in range(2000)]
    small = np.stack([cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA) for picture in known]).astype(
        np.float32
    )
    gains = []
    for case, result in zip(cases, results, strict=True):
        for answer, found in list(zip(case.answers, result, strict=True))[::8]:
            wanted = cv2.resize(answer, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
            nearest = known[int(((small - wanted) ** 2).sum((1, 2, 3)).argmin())]
            gains.append(psnr(found, answer) - psnr(through_autoencoder(pipeline, nearest), answer))
    assert np.mean(gains) >= 3


def through_autoencoder(pipeline: Pipeline, picture: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        latents = LATENT_SCALE * pipeline.vae.encode(pixels).latent_dist.mean
    return pipeline.decode(latents[:, :, None])[0]


@pytest.mark.parametrize(
    ("name", "least"), [("yaw", 0.9), pytest.param("mouth", 0.9, marks=interim), ("blink", 0.8), ("gaze_x", 0.8)]
)
def test_it_follows_the_driver(cases, measured, name: str, least: float):
    """Re-measured from the result; the gaze where the driver's eyes are open."""
    driver = np.concatenate([curve(case.poses[::EVERY], name) for case in cases])
    result = np.concatenate([curve(poses, name) for poses in measured])
    if name == "gaze_x":
        is_open = np.concatenate([curve(case.poses[::EVERY], "blink") for case in cases]) < 0.4
        driver, result = driver[is_open], result[is_open]
    assert correlation(driver, result) >= least


@interim
def test_it_stays_the_same_character(cases, results):
    """Nearer to its own drawing than to that of twelve others in the same pose, and of its own colours."""
    others = [random_character(seed) for seed in range(300, 312)]
    for case, result in zip(cases, results, strict=True):
        for i in range(0, len(result), 12):
            pose = right_answer(Pose(smile=0.2), case.poses[i], case.poses[0])
            own = psnr(result[i], case.answers[i])
            assert all(psnr(result[i], draw(other, pose, SIZE)) < own for other in others)
        found, answers = np.stack(result).astype(float), np.stack(case.answers).astype(float)
        for colour in (case.character.skin, case.character.clothes, case.character.background):
            there = np.abs(answers - colour).max(-1) < 24
            if there.sum() > 500:
                assert np.abs(found[there].mean(0) - answers[there].mean(0)).max() < 12


@interim
def test_it_does_not_flicker(pipeline, cases, results):
    """It changes from frame to frame as the right answer does, and hardly at all when the driver rests."""

    def unrest(pictures: list[np.ndarray]) -> float:
        return float(np.abs(np.diff(np.stack(pictures).astype(float), n=2, axis=0)).mean())

    ratios = [unrest(result) / unrest(case.answers) for case, result in zip(cases, results, strict=True)]
    assert np.mean(ratios) < 1.5
    case = cases[0]
    resting = Case(case.character, case.portrait, case.poses[:1] * 20, case.driving[:1] * 20, case.answers[:1] * 20)
    assert np.abs(np.diff(np.stack(animated(pipeline, resting)).astype(float), axis=0)).mean() < 2


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


@interim
def test_another_seed_is_another_take_of_the_same(pipeline, short):
    case, result = short
    other = animated(pipeline, case, seed=7)
    assert not np.array_equal(other, result)
    assert abs(score(other, case.answers) - score(result, case.answers)) < 0.7
    assert score(other, result) > 26


def test_eight_steps_lose_little(pipeline, short):
    case, result = short
    assert score(animated(pipeline, case, steps=8), case.answers) > score(result, case.answers) - 1.5


def test_keyframes_cost_nothing(pipeline):
    """Their tokens are far apart, so that all three are taken."""
    case = Case.drawn(106, 72)
    without = animated(pipeline, case, keyframes=KeyframeSettings(limit=0))
    with_them = animated(pipeline, case, keyframes=KeyframeSettings(limit=3, threshold=0))
    assert not np.array_equal(without, with_them)
    assert score(with_them, case.answers) > score(without, case.answers) - 1


@pytest.mark.xfail(reason="with the weights of a trial run 5.1 degrees off where 5 are asked for")
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
    assert yaws == pytest.approx([0, 12, 24], abs=5)
