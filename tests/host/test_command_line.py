"""The nodes and the command line give the same frames for the same inputs and seed."""

import numpy as np
import pytest
from media import SIZE, read_frames
from prompts import video, with_own_encoders
from test_nodes import saved, succeed

from personalive_core.cli.main import main

FRAMES = 2  # the published VAE takes seconds a frame
SEED = 7


@pytest.fixture(scope="module", params=["tiny", "other"])
def weights(request) -> str:
    """A set with VAE and image encoder in the published sizes, and one with small ones."""
    return request.param


@pytest.fixture(scope="module")
def animated(host, weights, models, tmp_path_factory) -> np.ndarray:
    output = tmp_path_factory.mktemp("command_line") / "out.mp4"
    files = [
        "--ref_image",
        host.base / "input" / "portrait.png",
        "--driving_video",
        host.base / "input" / "driving.mp4",
        "--weights",
        models / "personalive" / weights,
    ]
    options = ["-o", output, "-W", SIZE, "-H", SIZE, "-L", FRAMES, "--seed", SEED, "--device", "cpu"]
    assert main(["animate", *map(str, files + options)]) == 0
    return read_frames(output)


def test_same_frames(host, weights, animated):
    prompt = with_own_encoders(video(SEED))
    prompt["model"]["inputs"]["weights"] = weights
    prompt["motion"]["inputs"]["count"] = FRAMES
    frames = read_frames(saved(host, succeed(host, prompt), "save"))
    assert frames.shape == animated.shape
    assert frames.std() > 5
    assert abs(frames.astype(int) - animated).mean() < 0.5
