"""A worker without Ray: what it makes of shared parts is what `animate` makes, and what others left unfinished
does not count."""

import json
import pickle
import weakref
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from motions import same
from personalive_core.cli import worker as worker_module
from personalive_core.cli.batch import animate_parser, job_of
from personalive_core.cli.main import main
from personalive_core.cli.outputs import Checkpoint
from personalive_core.cli.worker import AnimateWorker
from personalive_core.errors import InputError
from personalive_core.media.video_writer import partial_path
from personalive_core.motion.parts import Part
from personalive_core.weights.find import EXAMPLE, MINIATURE

SIZE = {"width": 128, "height": 128, "max-frames": 4, "smoothing": 2}
INPUTS = {"ref-image": EXAMPLE / "portrait.png", "driving-video": EXAMPLE / "driving.mp4"}


def stored(x):
    """As the object store gives it back."""
    return pickle.loads(pickle.dumps(x))


def test_workers_extract_a_motion_together(tmp_path, monkeypatch):
    """Each a part of the frames, of which it converts no others."""
    parser = animate_parser(Namespace(weights=MINIATURE, gpus=0, download=False))
    cells = {**INPUTS, "start": 5, "max-frames": 13, "mirror": True, "output": "a.mp4"}
    job = job_of(parser, cells, str(tmp_path))
    worker = AnimateWorker(job.options, 1)
    whole = worker.extract(job)
    converted, extract_part = list[bool](), worker_module.Pipeline.extract_part

    def watched(pipeline, frames, part):
        return extract_part(pipeline, (converted.append(frame.pixels.size > 0) or frame for frame in frames), part)

    monkeypatch.setattr(worker_module.Pipeline, "extract_part", watched)
    parts = [stored(worker.extract_part(job, i, 3)[1]) for i in range(3)]
    assert converted == [Part(i, 3).has(number) for i in range(3) for number in range(13)]
    joined = stored(worker.join(*parts))
    assert joined.times == whole.times and len(joined.times) == 13
    assert same(joined.motion, whole.motion)
    with pytest.raises(InputError, match="the workers read 13, 13, 12 frames"):
        worker.join(*parts[:2], parts[2]._replace(times=parts[2].times[:12]))


def test_a_worker_drops_its_networks_before_it_loads_others(monkeypatch):
    loaded = list[weakref.ref]()

    class Networks:
        onload = nullcontext

    def load(options) -> Networks:
        assert all(networks() is None for networks in loaded)
        networks = Networks()
        loaded.append(weakref.ref(networks))
        return networks

    monkeypatch.setattr(worker_module, "load_pipeline", load)
    worker, options = AnimateWorker(Namespace(), 1), dict.fromkeys(worker_module.PIPELINE)
    for dtype in ("fp16", "fp16", "fp8"):
        worker._pipeline(Namespace(**options | {"dtype": dtype}))
    assert len(loaded) == 2 and loaded[1]() is not None


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
