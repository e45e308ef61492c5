"""Makes the same frames on the second GPU as on the first, of the same kind: on a machine with two.

python tests/gpu/second_card.py [--full]
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from personalive_core.cli.measure import make_pipeline
from personalive_core.cli.measure_live import with_encoders
from personalive_core.media.pictures import fit_picture, read_picture
from personalive_core.media.video_reader import VideoReader
from personalive_core.pipeline import Pipeline
from personalive_core.sampling.keyframes import KeyframeSettings
from personalive_core.weights.find import EXAMPLE, MINIATURE, find_weights

FRAMES = 60  # keyframes join from the 37th on


def frames_on(device: str, full: bool) -> np.ndarray:
    """uint8 (F, H, W, 3): of the miniature, or of the published sizes with the same random weights on each device."""
    if full:
        torch.manual_seed(0)
        pipeline, size = with_encoders(make_pipeline(torch.device(device), torch.float16, "vae"), torch.float16), 512
    else:
        pipeline, size = Pipeline.load(find_weights(MINIATURE), device, "fp16"), 128
    portrait = fit_picture(read_picture(EXAMPLE / "portrait.png"), size, size)
    with VideoReader(EXAMPLE / "driving.mp4") as video:
        driving = [fit_picture(frame.pixels, size, size) for frame in video]
    frames = islice((frame for _ in range(2) for frame in driving), FRAMES)
    keyframes = KeyframeSettings(limit=3, threshold=0.0)
    animated = pipeline.animate(pipeline.encode_reference(portrait), frames, hold=False, keyframes=keyframes)
    return np.concatenate(list(animated))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="networks of the published sizes, with random weights")
    full = parser.parse_args().full
    if torch.cuda.device_count() < 2:
        sys.exit("this machine has no second GPU")
    second = frames_on("cuda:1", full)  # first, so that nothing else has used the other GPU
    unused = torch.cuda.max_memory_reserved(0) == 0
    first = frames_on("cuda:0", full)
    difference = np.abs(first.astype(int) - second)
    print(f"{torch.cuda.get_device_name(0)} and {torch.cuda.get_device_name(1)}, PyTorch {torch.__version__}")
    print(f"{len(first)} frames: {'the same' if not difference.any() else f'up to {difference.max()} of 255 apart'}")
    print(f"cuda:1 {'left cuda:0 alone' if unused else 'TOOK MEMORY OF cuda:0'}")
    sys.exit(bool(difference.any()) or not unused)


if __name__ == "__main__":
    main()
