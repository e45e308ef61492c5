"""A live session's motion, sampled again offline."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import write_clip

from personalive_core import Pipeline, VideoReader, find_weights
from personalive_core.cli.main import main
from personalive_core.config import WARM_UP
from personalive_core.live.pipeline_model import PipelineModel
from personalive_core.live.recording import Recording
from personalive_core.live.session import LiveSession, LiveSettings
from personalive_core.media.pictures import fit_picture, read_picture
from personalive_core.media.video_writer import VideoWriter
from personalive_core.motion.performance import Strength


def test_animate_makes_the_same_frames(weights: Path, portrait: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bit for bit: a camera of uneven rate, motion interpolated between its frames, a strength."""
    fit = partial(fit_picture, width=128, height=128)
    now, live, strength = [0.0], [], Strength(rotation=0.5, relative=True)
    model = PipelineModel(Pipeline.load(find_weights(weights), "cpu"), fit, 128, 128)
    recording = Recording(tmp_path, (128, 128))
    session = LiveSession(
        LiveSettings(hold=False, crop=None, strength=strength),
        clock=lambda: now[0],
        on_chunk=lambda chunk: live.extend(chunk.pictures),
        on_motion=recording.take_motion,
    )
    session.set_portrait(read_picture(portrait))
    with torch.inference_mode(), VideoReader(write_clip(tmp_path / "camera.mp4", 57)) as camera:
        for i, frame in enumerate(camera):
            now[0] = i / 30 + i % 3 / 100
            session.push(1000 + now[0], frame.pixels)
            if i % 3 == 2:
                session.step(model)
    recorded = recording.finish(session.neutral, strength)

    made: list[np.ndarray] = []
    write = VideoWriter.write
    monkeypatch.setattr(
        VideoWriter, "write", lambda video, pixels, time: (made.append(pixels), write(video, pixels, time))
    )
    files = ["--ref_image", str(portrait), "--motion", str(tmp_path / recorded["motion"]), "--weights", str(weights)]
    size = ["-W", "128", "-H", "128", "--device", "cpu"]
    assert main(["animate", *files, *size, "-L", "0", "-o", str(tmp_path / "again.mp4")]) == 0
    assert len(live) >= 2 * WARM_UP
    assert np.array_equal(live[WARM_UP:], made[: len(live) - WARM_UP])
