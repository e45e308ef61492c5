"""How calm and how late the driving crop is on a video: the numbers of the help page of Crop Driving.

    PYTHONPATH=. python tools/measure_driving_crop.py DRIVING DETECTOR

DETECTOR is a YuNet file (.onnx). Jitter is the root mean square of a box's change of speed from frame to frame (second
difference), in pixels. Lag is the delay at which the smoothed track correlates best with the detector's own, in
fractions of a frame by the parabola through the three best.
"""

import sys

import numpy as np

from personalive_core.framing.driving_crop import Smoother, locate_by_detector
from personalive_core.framing.face_detector import Box, load_detector
from personalive_core.media.video_reader import VideoReader

MOST = 12  # frames of lag that are looked at


def follow(driving: str, detector: str) -> tuple[np.ndarray, np.ndarray]:
    """Centre and side of each frame's box as it was found and smoothed, each (F, 3); NaN where there was none."""
    locate, smooth, before = locate_by_detector(load_detector(detector)), Smoother(), None
    tracks: tuple[list, list] = [], []
    with VideoReader(driving) as video:
        for frame in video:
            found = locate(frame.pixels, before)
            before = found or before
            for track, box in zip(tracks, (found, smooth(found)), strict=True):
                track.append(_numbers(box))
    found, smoothed = (np.array(track) for track in tracks)
    return found, smoothed


def _numbers(box: Box | None) -> tuple[float, float, float]:
    return (*box.centre, box.side) if box else (np.nan,) * 3


def jitter(track: np.ndarray) -> np.ndarray:
    return np.sqrt(np.nanmean(np.diff(track, 2, axis=0) ** 2, axis=0))


def lag(found: np.ndarray, smoothed: np.ndarray) -> float:
    """Of one number's track, in frames."""
    frames = np.arange(len(found))
    known = ~np.isnan(found)
    found = np.interp(frames, frames[known], found[known])
    delays = range(-1, MOST + 1)
    middle = found[1 : len(found) - MOST]
    likeness = [np.corrcoef(middle, smoothed[1 + n : len(found) - MOST + n])[0, 1] for n in delays]
    best = int(np.argmax(likeness[1:-1])) + 1
    before, at, after = likeness[best - 1 : best + 2]
    return delays[best] + (before - after) / 2 / (before - 2 * at + after)


def main(driving: str, detector: str) -> None:
    found, smoothed = follow(driving, detector)
    print(f"{len(found)} frames, {np.isnan(found[:, 0]).sum()} without a face")
    for i, name in enumerate(("across", "down", "size")):
        own, calm = jitter(found)[i], jitter(smoothed)[i]
        late = lag(found[:, i], smoothed[:, i])
        print(
            f"{name:6}  per-frame {own:.2f}  smoothed {calm:.2f}  {own / calm:.1f} times less  {late:.1f} frames late"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
