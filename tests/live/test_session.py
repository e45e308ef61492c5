"""The live session on a false clock: no thread, no sleep. Its model takes a set time for a window."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from motions import motion_of
from personalive_core.config import CHUNK
from personalive_core.errors import InputError
from personalive_core.live.instants import choose_instants
from personalive_core.live.model import EncodedPortrait
from personalive_core.live.session import CALIBRATION, GLIDE, GLIDE_AFTER, LiveSession, LiveSettings, State
from personalive_core.motion.motion import Motion
from personalive_core.motion.performance import Strength
from personalive_core.networks import fused
from personalive_core.networks.head_pose import HeadPose

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Stream:
    """Four windows deep; what it gives out are the numbers that went in, -1 for warm-up frames."""

    def __init__(self, log: list):
        self.strength, self.log = Strength(), log

    def start(self, first: Motion, seed: int, neutral: Motion) -> SimpleNamespace:
        return SimpleNamespace(inside=[[-1.0] * CHUNK] * 3, neutral=neutral, early=None)

    def step(self, state: SimpleNamespace, motion: Motion) -> torch.Tensor:
        state.inside.append(motion.tokens[:, 0, 0].tolist())
        self.log.append((state.neutral, self.strength, motion))
        finished, state.early = state.inside.pop(0), _latents(state.inside[0])
        return _latents(finished)


def _latents(numbers: list[float]) -> torch.Tensor:
    return torch.tensor(numbers).view(1, 1, -1, 1, 1)


class Model:
    """A picture's first pixel is its number. Black pictures have no face."""

    width = height = 64

    def __init__(self, clock: Clock, window: float):
        self.clock, self.duration, self.windows = clock, window, []
        self.good = motion_of("live", 1)
        pose = self.good.pose
        keypoints = torch.randn(1, 21, 3, generator=torch.Generator().manual_seed(1)) / 6
        self.pose = HeadPose(pose.angles * 0, pose.translation * 0, pose.scale * 0 + 1, keypoints)

    def encode(self, picture):
        yield
        yield
        if picture.max() == 0:
            raise InputError("the portrait shows no face: give another.")
        return EncodedPortrait(SimpleNamespace(motion=Motion(self.pose, self.good.tokens, self.good.boxes)), picture)

    def stream(self, reference):
        return Stream(self.windows)

    def open_crop(self, settings):
        raise AssertionError("no crop is asked for")

    def extract(self, pictures, previous):
        numbers = torch.tensor([float(picture[0, 0, 0]) for picture in pictures])
        pixels = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) / 255 for picture in pictures])
        tokens = numbers[:, None, None].expand(-1, 32, 16).clone()
        pose = HeadPose(*(x.expand(len(pictures), *x.shape[1:]) for x in vars(self.pose).values()))
        return Motion(pose, tokens, self.good.boxes.expand(len(pictures), -1)), pixels

    def decode(self, latents):
        numbers = latents.flatten().tolist()
        frames = np.stack([np.full((4, 4, 3), n if n >= 0 else 255, np.float32) for n in numbers])
        return SimpleNamespace(result=lambda: frames, done=lambda: False)

    def wait(self):
        self.clock.now += self.duration


class Run:
    """A camera of a rate and a model that takes a time, for some seconds; everything that came out."""

    def __init__(self, window: float, fps: float, **settings):
        self.clock, self.fps, self.sent, self.missed = Clock(), fps, 0, 0
        self.model = Model(self.clock, window)
        self.chunks, self.driven, self.problems = [], [], []
        self.session = LiveSession(
            LiveSettings(crop=None, **settings),
            clock=self.clock,
            on_chunk=lambda chunk: self.chunks.append((self.clock.now, chunk)),
            on_motion=self.driven.append,
            on_problem=self.problems.append,
        )
        self.session.set_portrait(PICTURE)

    def go(self, seconds: float, picture=None) -> "Run":
        end = self.clock.now + seconds
        while self.clock.now < end:
            while (time := 100 + (self.sent + self.missed) / self.fps) <= self.clock.now:
                number = picture if picture is not None else self.sent % 256
                frame = PICTURE.copy() if number else np.zeros_like(PICTURE)
                frame[0, 0] = number
                self.session.push(time, frame)
                self.sent += 1
            if not self.session.step(self.model):
                self.clock.now += 0.001
            self.check()
        return self

    def check(self) -> None:
        stats = self.session.stats()
        assert stats["received"] == self.sent == stats["used"] + stats["dropped"] + stats["waiting"]
        assert stats["made"] == sum(len(chunk.pictures) for _, chunk in self.chunks)

    @property
    def times(self) -> list[float]:
        return [time for _, chunk in self.chunks for time in chunk.times]

    def delays(self, last: int) -> list[float]:
        """Seconds from the capture to the coming out of the newest frame of the last chunks."""
        return [now - chunk.times[-1] for now, chunk in self.chunks[-last:]]


def test_instants():
    fast = choose_instants([i / 60 for i in range(1, 25)], 0.0, 0.4)
    assert fast.times == pytest.approx([0.1, 0.2, 0.3, 0.4]) and fast.frames == [5, 11, 17, 23]
    slow = choose_instants([0.03, 0.06], 0.0, 0.06)
    assert slow.times == pytest.approx([0.015, 0.03, 0.045, 0.06]) and slow.frames == [0, 1]
    assert choose_instants([5.0], None, 0.16).times == pytest.approx([4.88, 4.92, 4.96, 5.0])


def test_instants_after_a_stall():
    """Nothing is caught up, and time does not run back."""
    taken = choose_instants([10.0, 10.9, 10.95], 9.9, 0.2)
    assert taken.is_cut and taken.frames == [1, 2]
    assert taken.times == pytest.approx([10.8, 10.85, 10.9, 10.95])
    assert choose_instants([10.6], 10.0, 2.0).times[0] > 10.0


@pytest.mark.parametrize(
    "window, fps, early, expected",
    [
        (0.1, 30, False, 0.4),
        (0.1, 30, True, 0.3),
        (0.4, 30, False, 1.6),
        (0.8, 60, False, 3.2),
        (0.8, 60, True, 2.4),
        (0.05, 10, False, 0.35),
    ],
)
def test_delay(window, fps, early, expected):
    """Four windows, three with early frames; it does not grow, whatever the camera's rate is."""
    run = Run(window, fps, early=early).go(20)
    assert run.delays(8) == pytest.approx([expected] * 8, abs=1.1 / fps + 0.01)
    assert run.delays(1)[0] < run.delays(len(run.chunks) // 2)[0] + 1 / fps + 0.01


def test_frames_belong_to_their_times():
    """What comes out at a time is what the camera showed then."""
    run = Run(0.4, 30).go(6)
    for _, chunk in run.chunks[6:]:
        numbers = [frame[0, 0, 0] for frame in chunk.pictures]
        assert numbers == pytest.approx([(time - 100) * 30 for time in chunk.times], abs=0.51)
    slow = Run(0.05, 10).go(6)
    for _, chunk in slow.chunks[6:]:  # interpolated
        assert [f[0, 0, 0] for f in chunk.pictures] == pytest.approx([(t - 100) * 10 for t in chunk.times], abs=1e-3)


def test_times_are_even():
    run = Run(0.1, 30).go(6)
    steps = np.diff(run.times)
    assert (steps > 0).all() and steps[40:].max() < 0.04


def test_toggled_early():
    """Each chunk comes out once, whether it was early or not."""
    run = Run(0.1, 30).go(3)
    for early in (True, False, True):
        run.session.set(early=early)
        run.go(1)
    assert (np.diff(run.times) > 0).all()
    assert max(len(chunk.pictures) for _, chunk in run.chunks) == 2 * CHUNK


def test_neutral():
    """The median of a second of good frames; at any time again, from the next window on."""
    run = Run(0.1, 30).go(CALIBRATION + 0.3)
    assert run.session.neutral.tokens[0, 0, 0].item() == pytest.approx(30 * CALIBRATION / 2, abs=3)
    first = run.session.neutral
    run.go(2)
    run.session.calibrate()
    assert run.session.state is State.CALIBRATING
    run.go(1.3)
    assert run.session.neutral is not first and run.model.windows[-1][0] is run.session.neutral
    assert run.model.windows[20][0] is first and run.session.state is State.LIVE


def test_strength():
    run = Run(0.1, 30).go(3)
    run.session.set(strength=Strength(expression=0.5))
    before = len(run.model.windows)
    run.go(0.3)
    assert run.model.windows[before][1].expression == 0.5
    with pytest.raises(InputError, match="expression is 9"):
        run.session.set(strength=Strength(expression=9))
    assert run.session.settings.strength.expression == 0.5


def test_new_portrait():
    """No window is left out, frames go on at the times that come next, and the neutral stays."""
    run = Run(0.1, 30).go(3)
    neutral, windows = run.session.neutral, len(run.model.windows)
    run.session.set_portrait(255 - PICTURE)
    run.go(2)
    steps = np.diff([now for now, _ in run.chunks[8:]])
    assert steps.max() < 0.21 and (np.diff(run.times) > 0).all()
    assert run.session.portraits == 2 and (run.session.portrait == 255 - PICTURE).all()
    assert run.session.neutral is neutral and run.model.windows[windows + 3][0] is neutral


def test_bad_portrait():
    """The one before stays."""
    run = Run(0.1, 30).go(3)
    run.session.set_portrait(np.zeros_like(PICTURE))
    run.go(1)
    assert run.problems == ["the portrait shows no face: give another."]
    assert run.session.portraits == 1 and run.session.state is State.LIVE


def test_face_lost():
    run = Run(0.1, 30).go(3)
    run.go(1, picture=0)
    assert run.session.state is State.FACE_LOST and run.session.stats()["lost"] > 0.7
    (held,) = run.driven[-1].motion.tokens[:, 0, 0].unique().tolist()
    assert held == pytest.approx(90, abs=4) and run.driven[-1].motion.held.all()
    run.go(GLIDE_AFTER + GLIDE, picture=0)
    assert torch.allclose(run.driven[-1].motion.tokens, run.model.good.tokens)
    run.go(1.5)
    assert run.session.state is State.LIVE
    assert run.driven[-1].motion.tokens[-1, 0, 0].item() == pytest.approx((run.sent - 1) % 256, abs=4)


def test_stall_pause_and_gone():
    run = Run(0.1, 30).go(3)
    run.clock.now += 0.7
    assert not run.session.step(run.model) and run.session.state is State.STALLED
    run.clock.now += 40
    assert not run.session.step(run.model) and run.session.state is State.READY
    run.missed = int((run.clock.now - 100) * run.fps) - run.sent
    run.go(2)
    assert run.session.state is State.LIVE and (np.diff(run.times) > 0).all()
    run.session.pause(True)
    made = run.session.made
    run.go(1)
    assert run.session.state is State.PAUSED and run.session.made <= made + CHUNK
    run.session.pause(False)
    run.go(1)
    assert run.session.state is State.LIVE


def test_unreadable_frames_are_dropped():
    run = Run(0.1, 30).go(3)
    for i in range(8):
        run.session.push(run.clock.now + i / 100, b"\xff\xd8 no JPEG")
    run.sent += 8
    run.session.step(run.model)
    run.check()


def test_another_camera_clock():
    """A page on another computer may be years behind."""
    run = Run(0.1, 30).go(3)
    for i in range(30):
        run.session.push(5 + i / 30, PICTURE)
        run.session.step(run.model)
    assert run.times[-1] < 7


def test_compiling_is_said_while_loading():
    session, said = LiveSession(LiveSettings(crop=None)), []
    session.on_state = lambda: said.append((session.state, session.message))
    before = fused.say_compiling

    def load(report):
        fused.say_compiling(fused.COMPILING)
        session.stop()
        raise InputError("enough.")

    session.run(load, lambda: None)
    assert (State.LOADING, fused.COMPILING) in said
    assert fused.say_compiling is before


FAILURES = [
    (InputError("the weights are missing: fetch them."), "the weights are missing: fetch them."),
    (RuntimeError("an odd\nthing"), "a fault of the program (RuntimeError: an odd thing): start again, or report it"),
]


@pytest.mark.parametrize(("failure", "says"), FAILURES)
def test_error_and_restart(failure, says):
    """A failure ends the windows with a sentence, and a restart begins again with the same portrait."""
    clock = Clock()
    session, model, tries = LiveSession(LiveSettings(crop=None), clock=clock), Model(clock, 0.1), []

    def load(report):
        tries.append(1)
        if len(tries) == 1:
            raise failure
        return model

    def check():
        if session.state is State.ERROR:
            assert session.message.startswith(says)
            session.restart()
        elif session.portraits:
            session.stop()

    session.set_portrait(PICTURE)
    session.run(load, check)
    assert len(tries) == 2 and session.state is State.STOPPED


def test_check_ends_a_session_that_loads():
    """What `check` raises is no failure: neither the session nor what loads the model may keep it."""
    session = LiveSession(LiveSettings(crop=None))

    def load(report):
        try:
            report("the networks", 0.5)
        except Exception:
            pytest.fail("the loader took it for a failure of its own")
        return Model(Clock(), 0.1)

    def check():
        raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        session.run(load, check)
    assert session.state is not State.ERROR
