"""`cuda:1`: nothing goes to the first GPU, which is the current one. Shown on a stand-in; tests/gpu/second_card.py
compares the frames of two real ones."""

import ast
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from personalive_core.cli import measure, measure_live
from personalive_core.cli.main import main
from personalive_core.live import model as model_module
from personalive_core.live.pipeline_model import PipelineModel
from personalive_core.media.pictures import read_picture
from personalive_core.media.video_reader import VideoReader
from personalive_core.networks import attention, fused, kernels
from personalive_core.pipeline import Pipeline
from personalive_core.sampling import cuda, stream
from personalive_core.sampling.keyframes import KeyframeSettings
from personalive_core.weights.find import EXAMPLE, MINIATURE, find_weights
from stand_in_device import SECOND, DeviceTensor, TwoGPUs, stand_in_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in takes the place of a GPU")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoGPUs]:
    caches = (fused._load_kernels, attention._is_cudnn_fastest, cuda._capture_stream)
    with stand_in_device(SECOND) as mode:
        for cache in caches:
            cache.cache_clear()
        yield TwoGPUs(mode, monkeypatch)
        gc.collect()  # CUDA graphs
        for cache in caches:
            cache.cache_clear()


def test_animate(gpus, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "FIRST_WINDOW", 0)  # for keyframes; the published is 9
    arguments = ["--ref_image", str(EXAMPLE / "portrait.png"), "--driving_video", str(EXAMPLE / "driving.mp4")]
    arguments += ["-W", "128", "-H", "128", "-L", "1", "--keyframe-threshold", "0", "--keyframes", "1"]
    arguments += ["--weights", str(MINIATURE), "--dtype", "fp32"]
    frames = {}
    for device in ("cuda:1", "cpu"):
        output = tmp_path / f"{device}.mp4"
        assert main(["animate", *arguments, "-o", str(output), "--device", device]) == 0
        with VideoReader(output) as video:
            frames[device] = np.stack([frame.pixels for frame in video]).astype(int)
    assert gpus.index == 0
    assert all(gpus.log[what, 1] for what in ("capture", "replay", "synchronize", "max_memory_reserved"))
    assert np.abs(frames["cuda:1"] - frames["cpu"]).mean() < 0.5  # their attention rounds differently


@torch.inference_mode()
def test_live(gpus, monkeypatch):
    monkeypatch.setattr(model_module, "CHUNK", 1)  # pictures that the first run tries at most
    pipeline = Pipeline.load(find_weights(MINIATURE), "cuda:1", "fp32")
    model = PipelineModel(pipeline, lambda picture: picture, 128, 128, KeyframeSettings(1))
    picture = read_picture(EXAMPLE / "portrait.png")
    stages = model.encode(picture)
    with pytest.raises(StopIteration) as end:
        while True:
            next(stages)
    motion, _ = model.extract([np.zeros((512, 512, 3), np.uint8)], None)
    running = model.stream(end.value.value.reference)
    state = running.start(motion, seed=1)
    assert model.decode(running.step(state, motion[[0] * 4])).result().shape == (4, 128, 128, 3)
    model.wait()
    assert gpus.index == 0 and gpus.log["mem_get_info", 1]


class Kernel:
    """In place of one of Triton's, which go to PyTorch's current GPU."""

    def __init__(self, gpus: TwoGPUs):
        self.gpus = gpus

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.gpus.note("launch")


def test_kernels_are_launched_on_the_gpu_of_their_tensors(gpus):
    x = torch.zeros(8, 8).to(SECOND)
    assert isinstance(x, DeviceTensor)
    for current in (0, 1):
        with gpus.device(current):
            kernels._launch(Kernel(gpus), (1,), x, None, x, 3, WIDTH=8)
            assert gpus.index == current
    assert gpus.log["launch", 1] == 2


def test_kernels_have_one_place_that_launches():
    """Every other one would have to choose the GPU too."""
    tree = ast.parse(Path(kernels.__file__).read_text("utf-8"))
    launching = [
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Subscript)
    ]
    assert launching == ["_launch"]


@pytest.mark.parametrize("benchmark", [measure.run_benchmark, measure_live.run_live_benchmark])
def test_benchmarks_measure_the_gpu_that_they_run_on(gpus, monkeypatch, benchmark):
    """Their events, waits and reports are of the current one."""
    module = sys.modules[benchmark.__module__]

    def measured(*_):
        assert gpus.index == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "make_pipeline", lambda *_: SimpleNamespace())
    monkeypatch.setattr(module, "_measure", measured)
    settings = dict(size=128, steps=4, device="cuda:1", dtype="fp32", decoder="vae", keyframes=0, as_json=True)
    if module is measure_live:
        monkeypatch.setattr(module, "with_encoders", lambda pipeline, dtype: pipeline)
        settings |= dict(early=False, camera_fps=30)
    with pytest.raises(KeyboardInterrupt):
        benchmark(1000, **settings)
    assert gpus.index == 0


def test_info_describes_every_gpu(gpus, monkeypatch, capsys):
    monkeypatch.setattr(gpus, "note", lambda *_: None)  # it may look at both
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for index in (0, 1):
        assert f"cuda:{index}: Stand-in, 16.0 GiB; NVIDIA, compute capability 7.0 to 7.5" in text
    assert text.count("not tried by") == 2 and text.count("Triton kernels not in use (they need compute") == 2
