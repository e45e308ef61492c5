"""Animate frames as they come, from a camera for example, and print when each animated frame comes out.

    python docs/examples/stream.py

The frames are those of the miniature's example, at the pace of its video. Replace `camera` with your own iterator.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np

from personalive_core import Pipeline, VideoReader, find_weights, read_picture
from personalive_core.weights.find import EXAMPLE, MINIATURE


def camera() -> Iterator[np.ndarray]:
    """Frames, uint8 (H, W, 3) in RGB, each no earlier than a camera would give it."""
    with VideoReader(EXAMPLE / "driving.mp4") as video:
        begun = time.perf_counter()
        for frame in video:
            time.sleep(max(0.0, begun + float(frame.time) - time.perf_counter()))
            yield frame.pixels


def main(max_frames: int | None) -> None:
    pipeline = Pipeline.load(find_weights(MINIATURE))
    reference = pipeline.encode_reference(read_picture(EXAMPLE / "portrait.png"))
    begun = time.perf_counter()
    went_in: list[float] = []  # the second at which each frame went in

    def driving_frames() -> Iterator[np.ndarray]:
        for frame in islice(camera(), max_frames):
            went_in.append(time.perf_counter() - begun)
            yield frame

    # Four frames come out together. Show each one here, or send it on.
    for i, _pixels in enumerate(chain.from_iterable(pipeline.animate(reference, driving_frames()))):
        now = time.perf_counter() - begun
        print(f"frame {i}: in at {went_in[i]:.2f} s, out at {now:.2f} s, {len(went_in)} frames in so far", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Animate frames as they come.")
    parser.add_argument("--max_frames", type=int, help="default: all")
    main(parser.parse_args().max_frames)
