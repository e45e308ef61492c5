"""That pictures come out right at all, in seconds: the rest of what the miniature shows is marked `quality`."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the standalone pipeline needs diffusers")

from personalive_core.media.pictures import read_picture
from personalive_core.media.video_reader import VideoReader
from personalive_core.pipeline import Pipeline
from personalive_core.weights.find import EXAMPLE, MINIATURE, find_weights

FRAMES = 12


def first_frames(name: str) -> np.ndarray:
    with VideoReader(EXAMPLE / name) as video:
        return np.stack([frame.pixels for frame, _ in zip(video, range(FRAMES), strict=False)])


@pytest.mark.parametrize("dtype", ["auto", "fp8"])
def test_the_portrait_moves_as_it_should(dtype: str):
    pipeline, portrait = Pipeline.load(find_weights(MINIATURE), "cpu", dtype), read_picture(EXAMPLE / "portrait.png")
    assert pipeline.denoising_unet.mid_block.resnets[0].conv1.weight.dtype == torch.float32
    stored = [x for x in pipeline.denoising_unet.parameters() if x.dtype == torch.float8_e4m3fn]
    assert bool(stored) == (dtype == "fp8")
    frames = pipeline.animate(pipeline.encode_reference(portrait), first_frames("driving.mp4"))
    answer = first_frames("right_answer.mp4").astype(float)
    found, unmoved = (((x - answer) ** 2).mean() for x in (np.concatenate(list(frames)), portrait))
    assert 10 * np.log10(unmoved / found) > 8  # decibels; 0 is a portrait that stays as it is
