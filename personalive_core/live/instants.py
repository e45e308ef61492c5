"""Which camera frames a live window takes: it has four instants, whatever the camera's rate is."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..config import CHUNK
from ..motion.motion import Motion
from ..motion.performance import nearest_frames, resample

STALLED = 0.5  # seconds without a camera frame: motion is not interpolated over such a gap


@dataclass(frozen=True)
class Instants:
    """What one window takes.

    Args:
        times: of its four frames, in seconds; the last is that of the newest camera frame.
        frames: numbers of the camera frames whose motion is needed, in order.
        is_cut: the camera stalled: earlier motion does not lead here.
    """

    times: list[float]
    frames: list[int]
    is_cut: bool


def choose_instants(new: Sequence[float], last: float | None, period: float) -> Instants:
    """Chooses the instants of a window, which covers the time since the last window.

    Args:
        new: capture times in seconds of the camera frames after `last`, in order, at least one.
        last: the last instant of the window before; None in the first window.
        period: seconds from window to window, for a window that has none before it.

    Returns:
        The quarters of (last, newest]. Of a camera that is faster, only the nearest frames; of a slower one, all.
    """
    edges = [new[0] if last is None else last, *new]
    cut = next((i for i in reversed(range(len(new))) if new[i] - edges[i] > STALLED), None)
    begin = edges[0]
    if cut is not None or last is None:
        begin = new[-1] - period if last is None else max(last, new[-1] - period)
    first = cut or 0
    times = [begin + (new[-1] - begin) * (i + 1) / CHUNK for i in range(CHUNK - 1)] + [new[-1]]
    frames = list(range(first, len(new)))
    if len(frames) > CHUNK:
        frames = sorted({first + i for i in nearest_frames(_fractions(new[first:]), _fractions(times))})
    return Instants(times, frames, cut is not None)


def motion_at(times: Sequence[float], motion: Motion, motion_times: Sequence[float], is_nearest: bool) -> Motion:
    """The motion at four instants.

    Args:
        times: the instants, in seconds.
        motion: of F frames around them.
        motion_times: when these were captured.
        is_nearest: takes the nearest frame's; otherwise it is interpolated between two.
    """
    if is_nearest:
        return motion[nearest_frames(_fractions(motion_times), _fractions(times))]
    return resample(motion, _fractions(motion_times), _fractions(times))


def _fractions(times: Sequence[float]) -> list[Fraction]:
    return [Fraction(time) for time in times]
