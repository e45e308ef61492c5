"""Strengths move keypoints and tokens as their definition says, and so do trimming, smoothing, rates and loops."""

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from motions import motion_of, same
from personalive_core.errors import InputError
from personalive_core.motion.keypoints import transform_keypoints
from personalive_core.motion.motion import Motion, MotionRecord
from personalive_core.motion.performance import (
    PUBLISHED,
    Adjustment,
    Performance,
    Strength,
    frame_times,
    nearest_frames,
    resample,
    retarget_motion,
    smooth_pose,
)
from personalive_core.networks.head_pose import HeadPose
from seeded import normal
from streams import run, small_stream

PORTRAIT, DRIVER = motion_of("portrait", 1), motion_of("driver", 6)
NEUTRAL = DRIVER[:1]
close = torch.testing.assert_close


def keypoints(angles, translation, scale) -> torch.Tensor:
    """The portrait's keypoints in such a pose."""
    return transform_keypoints(HeadPose(angles, translation, scale, PORTRAIT.pose.keypoints.expand(6, -1, -1)))


@pytest.mark.parametrize("k", [0.0, 0.5, 1.0, 1.5])
def test_strength_of_expression(k):
    found = retarget_motion(PORTRAIT, DRIVER, NEUTRAL, Strength(expression=k))
    close(found.tokens, PORTRAIT.tokens + k * (DRIVER.tokens - PORTRAIT.tokens))
    assert torch.equal(
        transform_keypoints(found.pose), transform_keypoints(retarget_motion(PORTRAIT, DRIVER, NEUTRAL).pose)
    )


@pytest.mark.parametrize("k", [0.0, 0.5, 1.0, 1.5])
def test_strengths_of_rotation_translation_and_scale(k):
    own, pose = PORTRAIT.pose, DRIVER.pose
    angles = own.angles + k * (pose.angles - own.angles)
    moved = own.translation + k * 0.5 * (pose.translation - NEUTRAL.pose.translation)
    grown = own.scale * (1 + k * (pose.scale / NEUTRAL.pose.scale - 1))
    still, stays = own.translation.expand(6, -1), own.scale.expand(6, -1)
    for strength, expected in (
        (Strength(rotation=k, translation=0), keypoints(angles, still, stays)),
        (Strength(rotation=1, translation=k), keypoints(pose.angles, moved, stays)),
        (Strength(rotation=1, translation=0, scale=k), keypoints(pose.angles, still, grown)),
        (Strength(rotation=k, translation=k, scale=k), keypoints(angles, moved, grown)),
    ):
        found = retarget_motion(PORTRAIT, DRIVER, NEUTRAL, strength)
        close(transform_keypoints(found.pose), expected)
        assert torch.equal(found.tokens, DRIVER.tokens)


def test_nothing_moves_at_0_and_every_bit_stays_at_1():
    still = retarget_motion(PORTRAIT, DRIVER, NEUTRAL, Strength(0, 0, 0, 0))
    portrait = transform_keypoints(PORTRAIT.pose)
    for frame in range(6):
        assert torch.equal(still.tokens[frame], PORTRAIT.tokens[0])
        assert torch.equal(transform_keypoints(still.pose)[frame], portrait[0])
    published = retarget_motion(PORTRAIT, DRIVER, NEUTRAL)
    assert torch.equal(published.tokens, DRIVER.tokens)
    assert torch.equal(published.pose.angles, DRIVER.pose.angles)
    assert torch.equal(
        published.pose.translation,
        PORTRAIT.pose.translation + 0.5 * (DRIVER.pose.translation - NEUTRAL.pose.translation),
    )
    assert (published.pose.scale == PORTRAIT.pose.scale).all()
    assert same(published, retarget_motion(PORTRAIT, DRIVER, NEUTRAL, Strength(1.0, 1.0, 1.0, 0.0)))


def test_relative_is_the_change_since_the_neutral_frame():
    neutral = DRIVER[3:4]
    found = retarget_motion(PORTRAIT, DRIVER, neutral, Strength(1.5, 0.5, 1, 1, relative=True))
    close(found.tokens, PORTRAIT.tokens + 1.5 * (DRIVER.tokens - neutral.tokens))
    close(found.pose.angles, PORTRAIT.pose.angles + 0.5 * (DRIVER.pose.angles - neutral.pose.angles))
    for x, own in zip(vars(found[3:4].pose).values(), vars(PORTRAIT.pose).values(), strict=True):
        close(x, own)
    close(found.tokens[3], PORTRAIT.tokens[0])


@torch.inference_mode()
def test_a_stream_takes_strengths_and_the_neutral_frame(monkeypatch: pytest.MonkeyPatch):
    plain = run(small_stream(), DRIVER, [6])
    stream = small_stream()
    stream.strength = Strength(1.0, 1.0, 1.0, 0.0)
    assert torch.equal(run(stream, DRIVER, [6]), plain)

    stream.strength = Strength(0, 0, 0, 0)
    poses = []
    monkeypatch.setattr(
        stream, "_pose_features", lambda pose: poses.append(pose) or type(stream)._pose_features(stream, pose)
    )
    state = stream.start(DRIVER, seed=1, neutral=DRIVER[3:4])
    list(stream.push(state, DRIVER))
    assert torch.equal(state.motion_tokens, stream.motion.tokens.expand(12, -1, -1))
    portrait = transform_keypoints(stream.motion.pose)
    assert all((transform_keypoints(pose) == portrait).all() for pose in poses)

    stream.strength = Strength(translation=1, scale=1)
    state = stream.start(DRIVER, seed=1, neutral=DRIVER[3:4])
    first = retarget_motion(stream.motion, DRIVER[:1], DRIVER[3:4], stream.strength).pose
    close(poses[-1].scale[6], (stream.motion.pose.scale[0] + first.scale[0]) / 2)  # the warm-up ends where it starts
    close(poses[-1].translation[6], (stream.motion.pose.translation[0] + first.translation[0]) / 2)


@pytest.mark.parametrize("name", ["expression", "rotation", "translation", "scale"])
def test_a_strength_out_of_range_is_named(name):
    with pytest.raises(InputError, match=f"{name} is -1"):
        replace(PUBLISHED, **{name: -1}).check()


def test_the_defaults_change_nothing():
    assert same(adjusted(), DRIVER)


def adjusted(**settings) -> Motion:
    return Performance(DRIVER, Fraction(25)).adjusted(Adjustment(**settings)).motion


def test_the_neutral_frame_counts_from_the_trimmed_motion():
    performance = Performance(DRIVER, Fraction(25), "driver.mp4")
    found = performance.adjusted(
        Adjustment(Strength(translation=0.5), start=1, neutral=2, loop=2, frame_rate=Fraction(50))
    )
    assert same(found.neutral, DRIVER[3:4]) and len(found.motion) == 20
    assert (found.frame_rate, found.source, found.strength.translation) == (50, "driver.mp4", 0.5)
    assert same(
        found.retargeted(PORTRAIT, slice(3)), retarget_motion(PORTRAIT, found.motion[:3], DRIVER[3:4], found.strength)
    )
    with pytest.raises(InputError, match="the neutral frame is 2, and the motion ends at 1"):
        performance.adjusted(Adjustment(count=2, neutral=2))


def test_trim_and_loop():
    assert same(adjusted(start=2, count=3), DRIVER[2:5])
    assert same(adjusted(start=4), DRIVER[4:])
    assert same(adjusted(loop=2), DRIVER[[*range(6)] * 2])
    assert same(adjusted(loop=3, back_and_forth=True, count=3), DRIVER[[0, 1, 2, 1, 0, 1, 2]])
    assert same(adjusted(loop=3, back_and_forth=True, count=1), DRIVER[:1])
    with pytest.raises(InputError, match="has 6 frames and none from 6 on"):
        adjusted(start=6)


def test_another_rate_keeps_the_length_and_the_way():
    motion = motion_of("long", 60)
    line = torch.arange(60.0)[:, None]
    motion = replace(motion, tokens=line[:, :, None].expand(-1, 32, 16).clone(), held=(line[:, 0] == 10).byte())
    for rate in (Fraction(60), Fraction(25), Fraction(15), Fraction(30000, 1001)):
        found = Performance(motion, Fraction(30)).adjusted(Adjustment(frame_rate=rate)).motion
        assert len(found) == round(2 * rate)
        close(found.tokens[:, 0, 0], (torch.arange(len(found)) * float(30 / rate)).clamp(max=59))
        close(found.pose.angles[0], motion.pose.angles[0])
        assert found.held.any()
    assert same(Performance(motion, Fraction(30)).adjusted(Adjustment(frame_rate=Fraction(15))).motion, motion[::2])


def uneven(frames: int) -> tuple[Fraction, ...]:
    """Every second frame comes late by 12 ms."""
    return tuple(i / Fraction(25) + Fraction(12, 1000) * (i % 2) for i in range(frames))


def test_a_rate_that_varies_is_made_constant_by_the_frames_own_times():
    motion, times = motion_of("long", 50), uneven(50)
    line = torch.tensor([float(time) for time in times])  # a value that grows with time alone
    motion = replace(motion, tokens=line[:, None, None].expand(-1, 32, 16).clone())
    for rate in (Fraction(25), Fraction(60)):
        found = Performance(motion, Fraction(25), times=times).adjusted(Adjustment(frame_rate=rate))
        assert found.times is None and abs(len(found.motion) - 2 * rate) <= 1
        expected = torch.tensor([float(time) for time in found.frame_times]).clamp(max=float(times[-1]))
        close(found.motion.tokens[:, 0, 0], expected)


def test_frames_keep_their_times_where_nothing_asks_for_others():
    performance = Performance(motion_of("long", 50), Fraction(25), times=uneven(50))
    found = performance.adjusted(Adjustment(start=1, count=4, smoothing=2.0))
    assert found.times == tuple(time - uneven(50)[1] for time in uneven(50)[1:5])
    assert performance.at_constant_rate().times is None
    slow = Performance(motion_of("long", 4), Fraction(1, 2), times=tuple(map(Fraction, (0, 2, 3, 6))))
    assert slow.at_constant_rate().frame_rate == 1 and len(slow.at_constant_rate().motion) == 8


def test_milliseconds_that_round_are_a_constant_rate():
    times = [Fraction(round(1000 * time), 1000) for time in frame_times(50, Fraction(30000, 1001))]
    assert Performance.extracted(motion_of("long", 50), Fraction(30000, 1001), "a.mkv", times).times is None
    assert Performance.extracted(motion_of("long", 50), Fraction(25), "a.mp4", uneven(50)).times == uneven(50)


def test_the_nearest_frames_are_those_of_the_result():
    performance = Performance(motion_of("long", 20), Fraction(25))
    adjustment = Adjustment(start=2, count=8, frame_rate=Fraction(50), loop=2, back_and_forth=True)
    nearest = performance.nearest_frames(adjustment)
    found = performance.adjusted(adjustment).motion
    assert len(nearest) == len(found) == 31
    assert all(torch.equal(found.held[i], performance.motion.held[n]) for i, n in enumerate(nearest))
    assert same(found[[0, 2, 4]], performance.motion[[nearest[i] for i in (0, 2, 4)]])
    assert nearest_frames([Fraction(0), Fraction(1)], [Fraction(1, 3), Fraction(2, 3)]) == [0, 1]
    assert len(resample(performance.motion, performance.frame_times, [Fraction(0)])) == 1


def test_a_second_adjustment_acts_on_what_the_first_one_made():
    first = Performance(DRIVER, Fraction(25)).adjusted(Adjustment(Strength(1.5, 0.5, 0.5, 0.4, relative=True)))
    assert first.adjusted(Adjustment(smoothing=2.0)).strength == first.strength
    assert first.adjusted(Adjustment(Strength(0.5, 0.5))).strength == Strength(0.75, 0.25, 0.5, 0.4, relative=True)
    with pytest.raises(InputError, match=r"expression is 4\.5, but must be from 0"):
        first.adjusted(Adjustment(Strength(expression=3.0)))


@pytest.mark.parametrize(
    "setting, words",
    [
        ({"smoothing": float("nan")}, "smoothing is nan, but must be from 0 to 100"),
        ({"frame_rate": Fraction(1, 2)}, "frame rate is 0.5, but must be from 1 to 240"),
        ({"loop": 0}, "loop is 0, but must be from 1 to 10000"),
        ({"start": -1}, "start is -1, but must be from 0 to 1000000000"),
    ],
)
def test_a_number_that_makes_no_sense_is_named(setting, words):
    with pytest.raises(InputError, match=words):
        Performance(DRIVER, Fraction(25)).adjusted(Adjustment(**setting))


def test_smoothing_calms_the_pose_without_lag():
    frames = 101
    motion = motion_of("shaky", frames)
    steady = torch.linspace(-20, 20, frames)[:, None].expand(-1, 3)
    motion = replace(motion, pose=replace(motion.pose, angles=steady + normal("shake", frames, 3)))
    found = smooth_pose(motion, 3.0)

    def shake(x):
        return (x[2:] - 2 * x[1:-1] + x[:-2]).norm()

    assert shake(found.pose.angles) < shake(motion.pose.angles) / 20
    assert shake(found.pose.translation) < shake(motion.pose.translation) / 20
    assert (found.pose.angles - steady)[10:-10].abs().mean() < 0.3  # a lag of one frame would be 0.4 alone
    assert torch.equal(found.tokens, motion.tokens) and torch.equal(found.pose.keypoints, motion.pose.keypoints)
    flat = replace(motion, pose=replace(motion.pose, angles=torch.full((frames, 3), 7.0)))
    close(smooth_pose(flat, 3.0).pose.angles, flat.pose.angles)
    assert smooth_pose(motion[:1], 50.0).pose.angles.isfinite().all()


def test_kept_pieces_are_the_whole():
    motion, record = motion_of("long", 5000), MotionRecord()
    for begin in range(0, 5000, 7):
        record.append(motion[begin : begin + 7])
    assert same(record.motion(), motion)


KEEPS_MOTION = """
import numpy as np, torch
from torch.nn import functional as F
from personalive_core.networks.head_pose import HeadPose
from personalive_core.motion.motion import Motion, MotionRecord

torch.set_num_threads(1)
record = MotionRecord()
for i in range(60):
    pictures = [torch.from_numpy(np.random.default_rng(i).integers(0, 255, (512, 512, 3), np.uint8)) for _ in range(4)]
    pixels = torch.stack(pictures).permute(0, 3, 1, 2).float() / 255
    small = F.interpolate(pixels, (256, 256), mode="area")
    layers = [torch.randn(4, 96, 64, 64) for _ in range(6)]
    pose = HeadPose(torch.zeros(4, 3), torch.zeros(4, 3), torch.ones(4, 1), torch.randn(4, 21, 3))
    record.append(Motion(pose, torch.zeros(4, 32, 16), torch.zeros(4, 4, dtype=torch.long)))
    del layers
print(int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from /proc")
def test_keeping_motion_keeps_no_room_of_pictures():
    """A list of the pieces took 20 MB for each of them: small tensors lay between the pictures of four frames."""
    command = [sys.executable, "-c", KEEPS_MOTION]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 700  # megabytes


@pytest.mark.parametrize(
    "rate, adjustment, frames",
    [
        (Fraction(25), Adjustment(loop=10_000), 2_000_000),
        (Fraction(1, 1000), Adjustment(frame_rate=Fraction(240)), 48_000_000),
    ],
)
def test_a_result_that_memory_cannot_hold_is_refused(rate, adjustment, frames):
    with pytest.raises(InputError, match=f"would have {frames} frames"):
        Performance(motion_of("driver", 200), rate).adjusted(adjustment)
