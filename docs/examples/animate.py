r"""Animate a portrait with a driving video.

    python docs/examples/animate.py

Without options this uses the miniature and its example, which come with the package. With the official weights:

    python docs/examples/animate.py --ref_image portrait.png --driving_video driving.mp4 \
        --weights pretrained_weights --size 512
"""

import argparse
from itertools import chain, islice
from pathlib import Path

from personalive_core import Pipeline, VideoReader, VideoWriter, find_weights, fit_picture, read_picture
from personalive_core.weights.find import EXAMPLE, MINIATURE


def animate(
    portrait: Path, driving_video: Path, output: Path, *, weights: Path, size: int, max_frames: int | None
) -> None:
    """Write `output`: the portrait, in size x size pixels, with the motion and the sound of the driving video."""
    pipeline = Pipeline.load(find_weights(weights))
    reference = pipeline.encode_reference(fit_picture(read_picture(portrait), size, size))
    with (
        VideoReader(driving_video) as driving,
        VideoWriter(output, size, size, driving.metadata.frame_rate, audio_from=driving_video) as video,
    ):
        frames = (frame.pixels for frame in islice(driving, max_frames))
        animated = chain.from_iterable(pipeline.animate(reference, frames, seed=42))
        for i, pixels in enumerate(animated):
            video.write(pixels, i / driving.metadata.frame_rate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Animate a portrait with a driving video.")
    parser.add_argument("--ref_image", type=Path, default=EXAMPLE / "portrait.png")
    parser.add_argument("--driving_video", type=Path, default=EXAMPLE / "driving.mp4")
    parser.add_argument("--output", type=Path, default=Path("outputs/example.mp4"))
    parser.add_argument("--weights", type=Path, default=MINIATURE)
    parser.add_argument("--size", type=int, default=128, help="width and height; 512 for the official weights")
    parser.add_argument("--max_frames", type=int, help="default: all")
    options = parser.parse_args()
    animate(
        options.ref_image,
        options.driving_video,
        options.output,
        weights=options.weights,
        size=options.size,
        max_frames=options.max_frames,
    )
    print(options.output)
