"""A live session: camera frames in as they come, animated frames out with the times that they belong to.

It knows no network and no page. One thread runs the windows (`run`), and any other thread may call the rest. Time is
what the clock says, and the model is an argument: tests use neither threads nor sleep.
"""

import io
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..config import CHUNK, WARM_UP
from ..errors import InputError
from ..framing.driving_crop import DrivingCrop, DrivingCropSettings
from ..motion.hold import Hold
from ..motion.keypoints import DOTS, transform_keypoints
from ..motion.motion import Motion
from ..motion.performance import PUBLISHED, Strength
from ..networks import fused
from ..networks.head_pose import HeadPose
from ..sampling.cuda import Started
from ..sampling.reference import Reference
from .instants import STALLED, Instants, choose_instants, motion_at
from .model import EncodedPortrait, LiveModel, Report

log = logging.getLogger(__name__)

KEPT = 2.0  # seconds of camera frames, or two windows where these are longer
MAX_WAITING = 256  # camera frames
MAX_PIXELS = 2048 * 2048  # of a camera frame
CALIBRATION = 1.0  # seconds whose median is the neutral motion
GLIDE_AFTER, GLIDE, GLIDE_BACK = 3.0, 1.0, 0.25  # seconds without a face; from there to the portrait's own; and back
GONE = 30.0  # seconds without a camera frame: the camera has gone
FIRST_PERIOD = 0.16  # seconds: the span of the first window, whose duration is not known yet
RATES_OVER = 2.0  # seconds that rates are counted over


class State(str, Enum):
    """What a session is doing."""

    LOADING = "loading"
    READY = "ready"  # waits for a camera
    CALIBRATING = "calibrating"
    LIVE = "live"
    FACE_LOST = "face lost"
    STALLED = "stalled"  # no camera frame for half a second
    PAUSED = "paused"
    STOPPED = "stopped"
    ERROR = "error"


class CameraFrame(NamedTuple):
    """A frame as it came.

    Args:
        time: seconds on the camera's clock.
        picture: JPEG, or uint8 (H, W, 3) RGB.
    """

    time: float
    picture: bytes | np.ndarray


class LiveChunk(NamedTuple):
    """Frames that came out of a window, up to eight.

    Args:
        pictures: uint8 (F, height, width, 3).
        times: the capture time of each, in seconds on the camera's clock.
        window: number of the window, from 0.
    """

    pictures: np.ndarray
    times: list[float]
    window: int


class DrivenMotion(NamedTuple):
    """What a window took in, to be recorded: four frames' motion, held where there was no face, and their times."""

    motion: Motion
    times: list[float]


@dataclass
class LiveSettings:
    """What can be set before a session and, but for the seed, at any time in it.

    Args:
        strength: how much of the motion is taken.
        early: frames are shown after three of their four passes, one window sooner.
        hold: whether the last good motion stands in where there is no face.
        crop: how the driver's head is followed; None takes the camera's whole picture.
        mirror: exchange left and right of the camera's pictures.
        seed: of the noise.
    """

    strength: Strength = PUBLISHED
    early: bool = False
    hold: bool = True
    crop: DrivingCropSettings | None = field(default_factory=DrivingCropSettings)
    mirror: bool = False
    seed: int = 42


class LiveSession:
    """One portrait that one camera drives.

    Args:
        settings: to begin with.
        clock: seconds, for everything but capture times.
        on_chunk: gets the frames of each window, in the thread of `run`; it must not wait.
        on_motion: gets the motion of each window, in the thread of `run`; it must not wait.
        on_state: is called in any thread when `state` or `portrait` has changed.
        on_problem: gets a sentence about what went wrong without ending the session, such as a bad portrait.
    """

    _collected: list[tuple[float, Motion]]  # good motion of the calibration
    _last: float | None  # the newest instant so far
    _before: tuple[float, Motion] | None  # of the newest camera frame so far

    def __init__(
        self,
        settings: LiveSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_chunk: Callable[[LiveChunk], None] = lambda chunk: None,
        on_motion: Callable[[DrivenMotion], None] = lambda driven: None,
        on_state: Callable[[], None] = lambda: None,
        on_problem: Callable[[str], None] = lambda text: None,
    ):
        self.settings = settings or LiveSettings()
        self.on_chunk, self.on_motion, self.on_state, self.on_problem = on_chunk, on_motion, on_state, on_problem
        self.state, self.message, self.progress = State.LOADING, "", 0.0
        self.received = self.used = self.dropped = self.made = 0
        self.neutral: Motion | None = None
        self.portrait: np.ndarray | None = None  # as the networks see it
        self.portraits = 0  # so many so far
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[CameraFrame] = deque()
        self._arrived = -math.inf  # when the newest camera frame came, on our clock
        self._portrait: np.ndarray | None = None  # the next one, as it was given
        self.given: np.ndarray | None = None  # the last one, as it was given
        self._is_stopped = self._is_paused = self._is_restarted = False
        self._calibrates = True
        self._arrivals: deque[float] = deque()  # of camera frames, for their rate
        self._departures: deque[float] = deque()  # of made frames
        self._period = FIRST_PERIOD
        self._durations = {"window": 0.0, "decode": 0.0}
        self._windows = 0
        self._readers = ThreadPoolExecutor(CHUNK, "reader of camera frames")
        self._reset()

    # ------------------------------------------------------------------------------------------ from any thread

    def push(self, time: float, picture: bytes | np.ndarray) -> None:
        """Takes a camera frame.

        Args:
            time: when it was captured, in seconds on the camera's clock. A frame that is not later than the one before
                is dropped; one that is more than a second earlier begins anew, as from another camera.
            picture: JPEG, or uint8 (H, W, 3) RGB.
        """
        with self._changed:
            self.received += 1
            self._arrived = self._clock()
            _count(self._arrivals, self._arrived)
            newest = self._waiting[-1].time if self._waiting else self._last
            if newest is not None and time < newest - 1:
                self.dropped += len(self._waiting)
                self._waiting.clear()
                self._last, self._before = None, None
            elif (newest is not None and time <= newest) or self._is_paused:
                self.dropped += 1
                return
            self._waiting.append(CameraFrame(time, picture))
            kept = max(KEPT, 2 * self._period)
            while self._waiting[0].time < time - kept or len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._changed.notify_all()

    def set_portrait(self, picture: np.ndarray) -> None:
        """Changes the portrait, uint8 (H, W, 3) of any size, without a stop."""
        with self._changed:
            self._portrait = self.given = picture
            self._changed.notify_all()

    def set(self, **settings: Any) -> None:
        """Changes fields of `settings` from the next window on.

        Raises:
            InputError: a strength is out of its limits.
        """
        changed = replace(self.settings, **settings)
        changed.strength.check()
        self.settings = changed

    def calibrate(self) -> None:
        """Takes the next second's median as neutral."""
        with self._changed:
            self._calibrates, self._collected = True, []
            self._changed.notify_all()
        if self.state in (State.LIVE, State.FACE_LOST):
            self._enter(State.CALIBRATING)

    def pause(self, is_paused: bool) -> None:
        """Lets camera frames pass unused, or uses them again."""
        with self._changed:
            self._is_paused = is_paused
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()

    def stop(self) -> None:
        """Ends `run` within a window."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def restart(self) -> None:
        """After an error: tries again."""
        with self._changed:
            self._is_restarted = True
            self._changed.notify_all()

    def stats(self) -> dict[str, Any]:
        """What is happening now, as plain numbers; times in seconds.

        `received` = `used` + `dropped` + `waiting`, and `made` is what went to `on_chunk`.
        """
        with self._changed:
            now = self._clock()
            return {
                "state": self.state.value,
                "message": self.message,
                "progress": self.progress,
                "received": self.received,
                "used": self.used,
                "dropped": self.dropped,
                "waiting": len(self._waiting),
                "made": self.made,
                "fps_in": _rate(self._arrivals, now),
                "fps_made": _rate(self._departures, now),
                "period": self._period,
                **self._durations,
                "lost": self._lost,
                "keypoints": self._dots,
                "strength": asdict(self.settings.strength),
                "early": self.settings.early,
                "mirror": self.settings.mirror,
                "portraits": self.portraits,
            }

    # ------------------------------------------------------------------------------------- in the thread of `run`

    def run(self, load: Callable[[Report], LiveModel], check: Callable[[], None] = lambda: None) -> None:
        """Runs until `stop`. After an error it waits for `restart`.

        Args:
            load: makes the model, and reports how far it is.
            check: is called at least every quarter of a second; what it raises ends the session.
        """

        def checked() -> None:
            try:
                check()
            except Exception as error:
                raise _Ended from error

        try:
            with torch.inference_mode():
                while not self._is_stopped:
                    try:
                        self._run(load, checked)
                    except Exception as error:
                        self._is_restarted = False  # before the page can see the failure and ask for it
                        self._fail(error)
                        self._wait_for_restart(checked)
        except _Ended as ended:
            assert ended.__cause__
            raise ended.__cause__ from None
        self._enter(State.STOPPED)

    def _wait_for_restart(self, check: Callable[[], None]) -> None:
        while not (self._is_stopped or self._is_restarted):
            with self._changed:
                self._changed.wait(0.25)
            check()

    def _run(self, load: Callable[[Report], LiveModel], check: Callable[[], None]) -> None:
        def report(text: str, done: float) -> None:
            check()
            self.progress = done
            self._enter(State.LOADING, text)

        self._reset()
        self._portrait = self.given
        report("", 0.0)
        say_compiling, fused.say_compiling = fused.say_compiling, partial(self._enter, State.LOADING)
        try:
            model = load(report)
        finally:
            fused.say_compiling = say_compiling
        self._enter(State.READY)
        while not self._is_stopped:
            check()
            if not self.step(model):
                self._wait(check)
        self._emit()

    def _wait(self, check: Callable[[], None]) -> None:
        with self._changed:
            if not (self._waiting or self._is_stopped or self._portrait is not None):
                self._changed.wait(0.25)
        check()

    def step(self, model: LiveModel) -> bool:
        """Does what can be done now: a stage of a new portrait, and a window if there is a new camera frame.

        Returns:
            Whether anything was done; if not, wait for a camera frame.
        """
        if self._encoded is not None:
            self._change_portrait(model, self._encoded)
        taken = self._take()
        if taken is None:
            self._emit()
            self._enter(self._idle_state())
            return self._encode_portrait(model)
        instants, frames, is_nearest = taken
        begun = self._clock()
        pictures = self._cut(model, frames)
        motion = self._motion(model, pictures, instants, is_nearest) if pictures else None
        if motion is not None:
            self._calibrate(motion, instants.times)
        if motion is None or self._stream is None or self.neutral is None:
            self._emit()
            self._encode_portrait(model)
            self._enter(self._driven_state())
        else:
            self._window(model, self._glide(motion, instants.times), instants.times, begun)
        return True

    def _reset(self) -> None:
        """Before the first window of a stream."""
        self._stream: Any = None
        self._state: Any = None
        self._reference: Reference | None = None
        self._encoding: Generator[None, None, EncodedPortrait] | None = None
        self._encoded: EncodedPortrait | None = None  # takes over before the next window
        self._crop: DrivingCrop | None = None
        self._cropped_by: DrivingCropSettings | None = None
        self._hold = Hold()
        self._own: Motion | None = None  # of the last camera frames
        self._dots: list[list[float]] = []
        self._collected = []
        self._lost = 0.0  # seconds without a face
        self._lost_since: float | None = None
        self._last = None
        self._before = None
        self._pending: deque[list[float]] = deque()  # times of the chunks inside the stream, oldest first
        self._is_ahead = False  # the next chunk that finishes was shown early
        self._decoding: tuple[Started[np.ndarray], list[float], float] | None = None
        self._begun: float | None = None  # when the last window began
        self._weight = 0.0  # of the portrait's own motion

    def _encode_portrait(self, model: LiveModel) -> bool:
        """One stage, if there is a new portrait."""
        with self._changed:
            picture, self._portrait = self._portrait, None
        if picture is not None:
            self._encoding = model.encode(picture)
        if self._encoding is None:
            return False
        try:
            next(self._encoding)
        except StopIteration as done:
            self._encoding, self._encoded = None, done.value
        except InputError as error:  # the portrait before stays
            self._encoding = None
            self.on_problem(str(error))
        return True

    def _change_portrait(self, model: LiveModel, encoded: EncodedPortrait) -> None:
        """Its warm-up takes the place of the frames inside the stream."""
        self._encoded = None
        self._reference, self.portrait = encoded
        self._stream, self._state = model.stream(encoded.reference), None
        self.portraits += 1
        self.on_state()

    def _take(self) -> tuple[Instants, list[CameraFrame], bool] | None:
        """The frames for the next window; those that it leaves out are dropped."""
        with self._changed:
            if not self._waiting or self._is_paused:
                return None
            new = list(self._waiting)
            self._waiting.clear()
            instants = choose_instants([frame.time for frame in new], self._last, self._period)
            frames = [new[i] for i in instants.frames]
            self.used += len(frames)
            self.dropped += len(new) - len(frames)
            self._last = instants.times[-1]
        return instants, frames, len(frames) >= CHUNK

    def _cut(self, model: LiveModel, frames: list[CameraFrame]) -> list[tuple[float, np.ndarray, bool]]:
        """(time, picture, whether it shows a face) of those that can be read and have the newest one's size."""
        settings = self.settings.crop
        if settings != self._cropped_by:
            self._crop, self._cropped_by = model.open_crop(settings) if settings else None, settings
        cut = []
        for frame, picture in zip(frames, self._readers.map(_pixels, [frame.picture for frame in frames]), strict=True):
            if picture is not None:
                picture = np.ascontiguousarray(picture[:, ::-1]) if self.settings.mirror else picture
                found = self._crop.cut(picture) if self._crop else None
                cut.append((frame.time, found.pixels if found else picture, found is None or found.has_face))
        kept = [item for item in cut if item[1].shape == cut[-1][1].shape]
        with self._changed:
            self.used -= len(frames) - len(kept)
            self.dropped += len(frames) - len(kept)
        return kept

    def _motion(
        self, model: LiveModel, cut: list[tuple[float, np.ndarray, bool]], instants: Instants, is_nearest: bool
    ) -> Motion | None:
        """At the four instants; None before the first face."""
        times = [time for time, _, _ in cut]
        motion, pixels = model.extract([picture for _, picture, _ in cut], self._own)
        self._own = motion
        self._dots = self._keypoints() if self._calibrates else []
        if self.settings.hold:
            motion = self._hold.push(motion, pixels, [has_face for _, _, has_face in cut])[-len(cut) :]
            self._count_lost(len(motion) == 0 or bool(motion.held[-1]), times[-1])
            if not len(motion):
                return None
        before, self._before = self._before, (times[-1], motion[-1:])
        if before and not instants.is_cut:
            times, motion = [before[0], *times], Motion.cat([before[1], motion])
        return motion_at(instants.times, motion, times, is_nearest)

    def _keypoints(self) -> list[list[float]]:
        """The drawn keypoints of the newest frame, in fractions of the camera's picture."""
        assert self._own is not None
        dots = transform_keypoints(self._own.pose[-1:])[0, list(DOTS), :2] / 2 + 0.5
        if self._crop is not None and (square := self._crop.square) is not None:
            corner, size = torch.tensor([square.left, square.top]), torch.tensor([square.width, square.height])
            dots = (corner + dots * square.side) / size
        if self.settings.mirror:
            dots[:, 0] = 1 - dots[:, 0]
        return dots.tolist()

    def _count_lost(self, is_lost: bool, time: float) -> None:
        if not is_lost:
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = time
        self._lost = time - self._lost_since if self._lost_since is not None else 0.0

    def _calibrate(self, motion: Motion, times: list[float]) -> None:
        """Collects good motion, and takes the median of a second of it."""
        if not self._calibrates:
            return
        good = [i for i, held in enumerate(motion.held.tolist()) if not held]
        self._collected += [(times[i], motion[i : i + 1]) for i in good]
        if self._collected and self._collected[-1][0] - self._collected[0][0] >= CALIBRATION:
            self.neutral = _median(Motion.cat([one for _, one in self._collected]))
            self._calibrates, self._collected = False, []
            if self._state is not None:
                self._state.neutral = self.neutral

    def _glide(self, motion: Motion, times: list[float]) -> Motion:
        """Where the face has been lost for long, goes to the portrait's own motion, and comes back with the face."""
        weights, before = [], times[0] - (times[-1] - times[0]) / (CHUNK - 1)
        for now, held in zip(times, motion.held.tolist(), strict=True):
            is_long = held and self._lost > GLIDE_AFTER
            step = (now - before) / (GLIDE if is_long else -GLIDE_BACK)
            self._weight, before = min(max(self._weight + step, 0.0), 1.0), now
            weights.append(self._weight)
        if not any(weights):
            return motion
        assert self._reference is not None and self.neutral is not None
        portrait, neutral, weight = self._reference.motion, self.neutral, torch.tensor(weights)
        own = neutral if self.settings.strength.relative else portrait
        pose = HeadPose(
            torch.lerp(motion.pose.angles, own.pose.angles, weight[:, None]),
            torch.lerp(motion.pose.translation, neutral.pose.translation, weight[:, None]),
            torch.lerp(motion.pose.scale, neutral.pose.scale, weight[:, None]),
            motion.pose.keypoints,
        )
        return replace(motion, pose=pose, tokens=torch.lerp(motion.tokens, own.tokens, weight[:, None, None]))

    def _window(self, model: LiveModel, motion: Motion, times: list[float], begun: float) -> None:
        """Runs a window, and meanwhile hands out the frames of the one before."""
        self._stream.strength = self.settings.strength
        if self._state is None:
            if not self._pending:  # the warm-up leads up to the first instant
                step = (times[-1] - times[0]) / (CHUNK - 1)
                early = [times[0] - step * i for i in range(WARM_UP, 0, -1)]
                self._pending.extend(early[i : i + CHUNK] for i in range(0, WARM_UP, CHUNK))
            self._state = self._stream.start(motion, self.settings.seed, self.neutral)
        latents = self._stream.step(self._state, motion)
        self._pending.append(times)
        self.on_motion(DrivenMotion(motion, times))
        self._emit()
        self._encode_portrait(model)  # a GPU does it right after the window, and need not wait for its launches
        model.wait()
        now = self._clock()
        if self._begun is not None and begun - self._begun < STALLED + self._period:
            self._period += (begun - self._begun - self._period) / 4
        self._begun, self._durations["window"] = begun, now - begun
        chunks = [] if self._is_ahead else [latents]  # of the finished frames, unless they were shown early
        chunk_times = [] if self._is_ahead else [*self._pending[0]]
        self._pending.popleft()
        self._is_ahead = self.settings.early
        if self._is_ahead:
            chunks.append(self._state.early)
            chunk_times += self._pending[0]
        if chunks:
            latents = (
                chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=2)
            )  # uncopied: its layout decides the last bit
            self._decoding = model.decode(latents), chunk_times, now
            if self._decoding[0].done():  # where nothing runs beside the next window, as on a CPU
                self._emit()
        self._enter(self._driven_state())

    def _emit(self) -> None:
        """Waits for the frames that are being decoded, and hands them out."""
        if self._decoding is None:
            return
        (decoding, times, begun), self._decoding = self._decoding, None
        pictures = decoding.result()
        now = self._clock()
        self._durations["decode"] = now - begun
        with self._changed:
            self.made += len(pictures)
            _count(self._departures, now, len(pictures))
        self.on_chunk(LiveChunk(pictures, times, self._windows))
        self._windows += 1

    def _driven_state(self) -> State:
        if self._calibrates:
            return State.CALIBRATING
        return State.FACE_LOST if self._lost > 0 else State.LIVE

    def _idle_state(self) -> State:
        """Without a new camera frame."""
        if self._is_paused:
            return State.PAUSED
        silent = self._clock() - self._arrived
        if silent > GONE:
            return State.READY
        return State.STALLED if silent > STALLED else self.state

    def _enter(self, state: State, message: str = "") -> None:
        if (state, message) != (self.state, self.message) or state is State.LOADING:
            self.state, self.message = state, message
            self.on_state()

    def _fail(self, error: Exception) -> None:
        text, level = str(error), logging.INFO
        if isinstance(error, torch.cuda.OutOfMemoryError):
            reason = text.partition(". ")[0]
            text = f"the GPU has too little memory ({reason}): close other programs or use a smaller size."
        elif not isinstance(error, InputError):
            reason = " ".join(text.split()) or "no message"
            text = f"a fault of the program ({type(error).__name__}: {reason}): start again, or report it with the log."
            level = logging.ERROR
        log.log(level, "live stopped", exc_info=error)
        self._enter(State.ERROR, text)


class _Ended(BaseException):
    """What the caller's `check` raised: no failure of the session, so nothing on the way up may take it for one."""


def _median(motion: Motion) -> Motion:
    """One frame: of every number the median over the frames."""
    pose = HeadPose(*(x.median(dim=0, keepdim=True).values for x in vars(motion.pose).values()))
    return replace(motion[-1:], pose=pose, tokens=motion.tokens.median(dim=0, keepdim=True).values)


def _count(times: deque[float], now: float, count: int = 1) -> None:
    times.extend([now] * count)
    while times[0] < now - RATES_OVER:
        times.popleft()


def _rate(times: deque[float], now: float) -> float:
    """A second."""
    return sum(time >= now - RATES_OVER for time in times) / RATES_OVER


def _pixels(picture: bytes | np.ndarray) -> np.ndarray | None:
    """uint8 (H, W, 3); None of what is no JPEG of a usable size."""
    if isinstance(picture, np.ndarray):
        return picture
    try:
        with Image.open(io.BytesIO(picture), formats=["JPEG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None
