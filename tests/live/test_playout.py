"""When a frame is shown: the vectors that playout.js passes too (in test_page.py), and what they stand for."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from personalive_core.live.playout import MAX_WAITING, Playout

VECTORS = json.loads(Path(__file__).with_name("playout_vectors.json").read_text())


def play(steps: list[list]) -> list[list]:
    """Runs ["push", seq, capture, arrival], ["tick", now] and ["hold", delay]: what each tick shows, and the counts."""
    playout, seen = Playout(), []
    for kind, *values in steps:
        if kind == "push":
            playout.push(*values)
        elif kind == "hold":
            [playout.held] = values
        else:
            left = [seq for seq, _ in playout.tick(*values)]
            counts = playout.made, playout.shown, playout.skipped, len(playout.waiting)
            seen.append([left, *counts, playout.delay])
    return seen


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name):
    assert play(VECTORS[name]["steps"]) == VECTORS[name]["seen"]


def windows(period: float, count: int, jitter: float = 0.0, seed: int = 1) -> list[tuple[int, float, float]]:
    """(seq, capture, arrival) of frames that come four at once, five periods after the first one's capture."""
    generator, frames = random.Random(seed), []
    for window in range(count):
        arrival = (window + 5) * period + generator.uniform(0, jitter)
        frames += [(4 * window + i, window * period + i * period / 4, arrival) for i in range(4)]
    return frames


def run(frames: list[tuple[int, float, float]], playout: Playout, until: float) -> list[tuple[float, int]]:
    """(when, seq) of what is shown, with a tick every 4 ms."""
    shown, now = [], 0.0
    frames = list(frames)
    while now < until:
        while frames and frames[0][2] <= now:
            playout.push(*frames.pop(0))
        if left := playout.tick(now):
            shown.append((now, left[-1][0]))
        now += 4
    return shown


def test_frames_that_come_four_at_once_play_evenly():
    shown = run(windows(93, 100, jitter=10), Playout(), 9000)
    late = [b - a for (a, _), (b, _) in pairwise(shown) if a > 4000]
    assert max(late) <= 32 and min(late) >= 16
    assert [seq for _, seq in shown] == sorted(seq for _, seq in shown)


def test_the_delay_is_that_of_the_latest_frames_and_falls_again():
    playout = Playout()
    slow = windows(400, 20)
    fast = [(80 + seq, 8000 + capture, 8000 + arrival) for seq, capture, arrival in windows(93, 140)]
    run([*slow, *fast], playout, 10_000)
    assert playout.delay == pytest.approx(2005, abs=1)
    playout = Playout()
    run([*slow, *fast], playout, 21_000)
    assert playout.delay == pytest.approx(5 * 93 + 5, abs=5)


def test_a_held_delay_is_kept():
    playout = Playout()
    playout.held = 800
    shown = run(windows(93, 60), playout, 5000)
    assert playout.delay == 800 and shown[0][0] == 800
    assert playout.skipped == 0


def test_another_clock_begins_anew():
    playout = Playout()
    run(windows(93, 40), playout, 4000)
    playout.push(160, 1e12, 4100)
    assert playout.delay == 4100 - 1e12 + 5
    assert playout.tick(4105)[0][0] == 160


@pytest.mark.parametrize("seed", range(5))
def test_every_frame_is_accounted_for(seed):
    generator, playout, seq, first = random.Random(seed), Playout(), 0, None
    for step in range(2000):
        now = step * 4.0
        if generator.random() < 0.1:
            for i in range(4):
                seq += generator.choice([1, 1, 1, 1, 3])
                first = seq if first is None else first
                playout.push(seq, now - generator.uniform(0, 800) + i * 20, now)
        if generator.random() < 0.7:
            playout.tick(now)
        assert playout.made == playout.shown + playout.skipped + len(playout.waiting)
    assert playout.made == seq - first + 1


def test_no_queue_grows_without_bound():
    playout = Playout()
    playout.held = 1e9
    for seq in range(2 * MAX_WAITING):
        playout.push(seq, seq, seq)
    assert len(playout.waiting) == MAX_WAITING == playout.skipped
