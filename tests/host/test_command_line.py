"""The nodes and the command line give the same frames and the same motion for the same inputs and seed."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from prompts import node, video, with_own_encoders
from results import saved, succeed

from face import draw_face
from media import SIZE, read_frames
from personalive_core.cli.main import main
from personalive_core.media.video_writer import VideoWriter
from personalive_core.motion.motion_file import load_motion
from personalive_core.motion.performance import Strength

FRAMES = 2  # the published VAE takes seconds a frame
SEED = 7


@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.newest_host), "other"])
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


@pytest.mark.newest_host
def test_same_motion(host, models, tmp_path):
    """Of a clip whose rate varies: a part of it, mirrored, at another rate, adjusted."""
    write_variable(host.base / "input" / "uneven.mp4", frames=8)
    output, motion = tmp_path / "out.mp4", tmp_path / "kept.motion.safetensors"
    files = {
        "--ref-image": host.base / "input" / "portrait.png",
        "--driving-video": host.base / "input" / "uneven.mp4",
        "--weights": models / "personalive" / "other",
        "--output": output,
        "--save-motion": motion,
    }
    options = ["-W", SIZE, "-H", SIZE, "--device", "cpu", "--start", 2, "-L", 5, "--mirror", "--frame-rate", 30]
    options += ["--expression", 0.5, "--keyframes", 0]
    assert main(["animate", *(str(part) for pair in files.items() for part in pair), *map(str, options)]) == 0

    prompt = with_own_encoders(video(SEED)) | {"driving": node("LoadVideo", file="uneven.mp4")}
    prompt["model"]["inputs"]["weights"] = "other"
    prompt["motion"]["inputs"] |= {"start": 2, "count": 5, "mirror": True, "frame_rate": 30.0}
    prompt["adjust"] = node("PersonaLiveAdjustMotion", motion=["motion", 0], expression=0.5)
    prompt["keep"] = node("PersonaLiveSaveMotion", motion=["adjust", 0])
    for part in ("save", "assemble", "latents", "sample"):
        prompt.pop(part)
    ours, theirs = load_motion(motion), load_motion(saved(host, succeed(host, prompt), "keep", "motion"))
    assert (theirs.frame_rate, theirs.strength) == (ours.frame_rate, ours.strength) == (30, Strength(expression=0.5))
    assert len(theirs.motion) == len(ours.motion) > 5
    for key, value in ours.motion.tensors().items():
        torch.testing.assert_close(theirs.motion.tensors()[key].float(), value.float(), atol=2e-3, rtol=1e-3, msg=key)


def write_variable(path: Path, frames: int) -> None:
    """A drawn face that turns, half of the frames at 10 and half at 40 frames a second: 16 on average."""
    slow = frames // 2
    times = [Fraction(i, 10) for i in range(slow)] + [
        Fraction(slow, 10) + Fraction(i, 40) for i in range(frames - slow)
    ]
    with VideoWriter(path, 128, 128, Fraction(16)) as writer:
        for i, time in enumerate(times):
            writer.write(draw_face(yaw=np.sin(i / 3), mouth=i / frames)[::2, ::2].copy(), time)
