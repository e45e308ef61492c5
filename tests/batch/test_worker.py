"""A worker without Ray: what it makes of shared parts is what `animate` makes, and what others left unfinished
does not count."""

import json
import pickle
from argparse import Namespace
from pathlib import Path

import torch
from safetensors.torch import save_file

from personalive_core.cli import worker as worker_module
from personalive_core.cli.batch import animate_parser, job_of
from personalive_core.cli.main import main
from personalive_core.cli.outputs import Checkpoint
from personalive_core.cli.worker import AnimateWorker
from personalive_core.media.video_writer import partial_path
from personalive_core.weights.find import EXAMPLE, MINIATURE

SIZE = {"width": 128, "height": 128, "max-frames": 4, "smoothing": 2}
INPUTS = {"ref-image": EXAMPLE / "portrait.png", "driving-video": EXAMPLE / "driving.mp4"}


def stored(x):
    """As the object store gives it back."""
    return pickle.loads(pickle.dumps(x))


def test_shared_parts_change_no_byte(tmp_path, monkeypatch):
    parser = animate_parser(Namespace(weights=MINIATURE, gpus=0, download=False))
    job = job_of(parser, {**INPUTS, **SIZE, "output": "a.mp4"}, str(tmp_path))
    worker = AnimateWorker(stored(job.options), 1)
    portrait, performance = stored(worker.encode(job)), stored(worker.extract(job))
    partial_path(Path(job.output)).write_bytes(b"of a run with other options")
    settings = {"frames": "8", "settings": json.dumps({"--seed": "1"})}
    save_file({"latents": torch.zeros(1)}, Checkpoint(Path(job.output), {}).path, settings)
    with monkeypatch.context() as patch:
        patch.setattr(worker_module.Pipeline, "encode_reference", None)
        patch.setattr(worker_module.Pipeline, "motions", None)
        assert worker.animate(stored(job), portrait, performance) == (4, 4)
    assert worker.progress() == (4, 4)
    assert worker.animate(job, None, None) == (0, 4)  # it is there

    inputs = [f"--{name}={value}" for name, value in (INPUTS | SIZE).items()]
    single = ["animate", *inputs, "--weights", str(MINIATURE), "--device", "cpu", "-o", str(tmp_path / "b.mp4")]
    assert main(single) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
