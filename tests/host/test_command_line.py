"""The nodes and the command line give the same frames for the same inputs and seed."""

import numpy as np
import pytest
from media import SIZE, read_frames
from prompts import video
from test_nodes import saved, succeed

from personalive_core.cli import main

FRAMES = 2  # the published VAE takes seconds a frame
SEED = 7


@pytest.fixture(scope="module")
def animated(host, models, tmp_path_factory) -> np.ndarray:
    output = tmp_path_factory.mktemp("command_line") / "out.mp4"
    files = [
        "--ref_image",
        host.base / "input" / "portrait.png",
        "--driving_video",
        host.base / "input" / "driving.mp4",
    ]
    weights = ["--weights", models / "personalive" / "tiny", "-o", output]
    options = ["-W", SIZE, "-H", SIZE, "-L", FRAMES, "--seed", SEED, "--device", "cpu"]
    assert main(["animate", *map(str, files + weights + options)]) == 0
    return read_frames(output)


def test_same_frames(host, animated):
    prompt = video(SEED)
    prompt["vae"]["inputs"]["vae_name"] = "sd.safetensors"
    prompt["motion"]["inputs"]["count"] = FRAMES
    frames = read_frames(saved(host, succeed(host, prompt), "save"))
    assert frames.shape == animated.shape
    assert abs(frames.astype(int) - animated).mean() < 0.5
