"""A video in pieces on two of Ray's workers, which extract the motion together, is the one that is made in turn. A
minute or two on a CPU."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from personalive_core.batch import cluster
from personalive_core.cli import split as split_module
from personalive_core.cli.main import main
from personalive_core.cli.split import pieces_folder
from personalive_core.media import video_writer
from personalive_core.media.video_reader import VideoReader
from personalive_core.weights.find import EXAMPLE, MINIATURE

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="Ray's Windows is another one")]


def split(output: Path, device: str) -> list[np.ndarray]:
    inputs = ["--ref-image", EXAMPLE / "portrait.png", "--driving-video", EXAMPLE / "driving.mp4"]
    settings = ["-L", 30, "--loop", 2, "-W", 128, "-H", 128, "--keyframes", 0, "--split", 2, "--weights", MINIATURE]
    assert main(["animate", *map(str, (*inputs, *settings, "-o", output, "--device", device))]) == 0
    assert not pieces_folder(output).exists()
    with VideoReader(output) as video:
        return [frame.pixels for frame in video]


@pytest.mark.usefixtures("ray")
def test_pieces_at_once_and_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(video_writer, "SEGMENT", 48)  # as `AnimateWorker` has them
    in_turn = split(tmp_path / "in_turn.mp4", "cpu")
    monkeypatch.setattr(split_module, "torch", SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 2)))
    monkeypatch.setattr(cluster, "_cluster", lambda *_: cluster.Cluster(2, False, ""))
    monkeypatch.setattr(cluster.Cluster, "threads", 1)  # as here: more add up in another order
    at_once = split(tmp_path / "at_once.mp4", "auto")  # which is the CPU, as Ray finds no GPU
    assert len(in_turn) == len(at_once) == 60
    assert np.array_equal(in_turn, at_once)
