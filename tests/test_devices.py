"""Devices that were not tried: the whole way on a stand-in that refuses what one of them refuses."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from face import draw_face
from personalive_core import device as devices
from personalive_core.cli import info, measure, options
from personalive_core.cli.main import main
from personalive_core.device import dtype_name, fp16_accumulation, pick_device, pick_dtype, without_tf32
from personalive_core.errors import InputError
from personalive_core.framing.driving_crop import DrivingCropSettings
from personalive_core.live import model as model_module
from personalive_core.live.pipeline_model import PipelineModel
from personalive_core.media.pictures import fit_picture
from personalive_core.media.video_reader import VideoReader
from personalive_core.networks import attention
from personalive_core.pipeline import Pipeline
from personalive_core.sampling import stream
from personalive_core.sampling.keyframes import KeyframeSettings
from personalive_core.weights.find import EXAMPLE, MINIATURE, find_weights
from stand_in_device import MPS, SCORES, Refused, stand_in_device


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "APPLE_SCORES", SCORES)


def test_animate(tmp_path, monkeypatch):
    """With the miniature: crop, keyframes, sheet, paste back."""
    monkeypatch.setattr(stream, "FIRST_WINDOW", 0)  # for keyframes; the published is 9
    Image.fromarray(np.pad(draw_face(), ((20, 0), (30, 51), (0, 0)), "edge")).save(tmp_path / "portrait.png")
    arguments = ["--ref_image", str(tmp_path / "portrait.png"), "--driving_video", str(EXAMPLE / "driving.mp4")]
    arguments += ["-o", str(tmp_path / "out.mp4"), "--sheet", str(tmp_path / "sheet.png"), "-W", "128", "-H", "128"]
    arguments += ["--keyframe-threshold", "0", "--keyframes", "1", "--crop", "--crop-driving", "--paste-back"]
    arguments += ["--weights", str(MINIATURE), "--dtype", "fp32", "-L", "1"]
    with stand_in_device() as device:
        assert main(["animate", *arguments, "--device", "mps"]) == 0
    assert {"convolution", "_safe_softmax", "native_group_norm"} <= set(device.calls)
    with VideoReader(tmp_path / "out.mp4") as video:
        (frame,) = video
    assert frame.pixels.shape == (276, 336, 3)
    assert frame.pixels.std() > 20


@torch.inference_mode()
def test_live(monkeypatch):
    """From a portrait and camera pictures to frames."""
    monkeypatch.setattr(model_module, "CHUNK", 1)  # pictures that the first run tries at most
    with stand_in_device():
        pipeline = Pipeline.load(find_weights(MINIATURE), "mps", "fp32")
        model = PipelineModel(pipeline, lambda picture: fit_picture(picture, 128, 128), 128, 128, KeyframeSettings(1))
        portrait = finish(model.encode(draw_face()))
        crop = model.open_crop(DrivingCropSettings())
        motion, pixels = model.extract([crop.cut(draw_face(yaw)).pixels for yaw in (0.0, 0.1, 0.2, 0.3)], None)
        assert pixels.device == MPS
        running = model.stream(portrait.reference)
        state = running.start(motion, seed=1)
        frames = model.decode(running.step(state, motion)).result()
        model.wait()
    assert frames.shape == (4, 128, 128, 3)


def finish(stages):
    while True:
        try:
            next(stages)
        except StopIteration as end:
            return end.value


REFUSED = {
    "float64": lambda x: x.double(),
    "float64 from the CPU": lambda x: torch.zeros(3, dtype=torch.float64).to(MPS),
    "complex": lambda x: torch.fft.fft(x),
    "area": lambda x: F.interpolate(x, size=(7, 5), mode="area"),
    "antialias": lambda x: F.interpolate(x, size=(8, 8), mode="bicubic", antialias=True),
    "grid": lambda x: F.grid_sample(x, x[..., :2], align_corners=False),
    "cumsum": lambda x: x.long().cumsum(0),
    "cummax": lambda x: x.cummax(0),
    "pinned memory": lambda x: torch.zeros(3).pin_memory(),
    "pinned memory, made": lambda x: torch.zeros(3, pin_memory=True),
    "two devices": lambda x: x + torch.zeros(1, 3, 16, 16),
    "bfloat16": lambda x: x.bfloat16(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_stand_in_refuses(name):
    with stand_in_device(bf16=False), pytest.raises(Refused):
        REFUSED[name](torch.rand(1, 3, 16, 16, device="mps"))


def test_the_stand_in_does_the_rest():
    with stand_in_device():
        x = torch.arange(768.0).view(1, 3, 16, 16).to(MPS)
        y = F.interpolate(x, size=(8, 4), mode="area").bfloat16()
        y[0, 0] += y[0, 1].cpu().to(y)
        assert y.device == MPS and not y.cpu().is_meta
    x = torch.arange(768.0).view(1, 3, 16, 16)
    expected = F.interpolate(x, size=(8, 4), mode="area").bfloat16()
    expected[0, 0] += expected[0, 1]
    assert torch.equal(y.numbers, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_on_apples_gpus_is_the_same(monkeypatch, dtype):
    monkeypatch.setattr(attention, "APPLE_SCORES", 2 * 3 * 5 * 7)
    q, k, v = (torch.randn(5, 3, tokens, 8).to(dtype) for tokens in (5, 7, 7))
    with stand_in_device():
        found = attention.pytorch_attention(*(x.to(MPS) for x in (q, k, v))).cpu()
    assert found.dtype == dtype
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    "device, gpu, capability, expected",
    [
        ("cpu", "", (0, 0), devices.CPU),
        ("mps", "", (0, 0), devices.APPLE),
        ("xpu", "", (0, 0), devices.INTEL),
        ("cuda", "NVIDIA GeForce GTX 1080 Ti", (6, 1), devices.OLDER),
        ("cuda", "Tesla V100-SXM2-32GB", (7, 0), devices.VOLTA_AND_TURING),
        ("cuda", "NVIDIA GeForce GTX 1660 SUPER", (7, 5), devices.NO_TENSOR_CORES),
        ("cuda", "NVIDIA GeForce GTX 1650 with Max-Q Design", (7, 5), devices.NO_TENSOR_CORES),
        ("cuda", "NVIDIA GeForce MX450", (7, 5), devices.NO_TENSOR_CORES),
        ("cuda", "NVIDIA T1200 Laptop GPU", (7, 5), devices.NO_TENSOR_CORES),
        ("cuda", "Quadro T2000", (7, 5), devices.NO_TENSOR_CORES),
        ("cuda", "Tesla T4", (7, 5), devices.VOLTA_AND_TURING),
        ("cuda", "NVIDIA GeForce RTX 2060", (7, 5), devices.VOLTA_AND_TURING),
        ("cuda", "Quadro RTX 4000", (7, 5), devices.VOLTA_AND_TURING),
        ("cuda", "NVIDIA H100 80GB HBM3", (9, 0), devices.AMPERE_AND_NEWER),
    ],
)
def test_kinds(monkeypatch, device, gpu, capability, expected):
    properties = SimpleNamespace(name=gpu, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", None)
    target = torch.device(device)
    assert devices.kind_of(target) is expected
    assert pick_dtype("auto", target) == pick_dtype(expected.dtype, target)
    if expected in (devices.VOLTA_AND_TURING, devices.NO_TENSOR_CORES, devices.OLDER):
        with pytest.raises(InputError, match="no bf16"):
            pick_dtype("bf16", target)
    else:
        assert pick_dtype("bf16", target) == torch.bfloat16
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert devices.kind_of(target) is (devices.AMD if device == "cuda" else expected)


def test_fp16_is_not_chosen_where_it_overflows_or_is_slow():
    assert [kind for kind in devices.DEVICES if kind.dtype == "fp32"] == [
        devices.NO_TENSOR_CORES,
        devices.OLDER,
        devices.CPU,
    ]


def test_products_are_accumulated_in_fp16_only_where_that_was_asked_for(monkeypatch):
    matmul = SimpleNamespace(allow_fp16_accumulation=False)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    gpu = torch.device("cuda")
    with pytest.raises(KeyError), fp16_accumulation(gpu, torch.float16):
        assert matmul.allow_fp16_accumulation
        assert dtype_name(torch.float16) == "float16 accumulated in float16" and dtype_name(torch.float32) == "float32"
        raise KeyError
    assert not matmul.allow_fp16_accumulation and dtype_name(torch.float16) == "float16"
    matmul.allow_fp16_accumulation = True  # a host's choice
    with fp16_accumulation(gpu, torch.float16):
        assert matmul.allow_fp16_accumulation
    assert matmul.allow_fp16_accumulation
    for device, dtype in (("cpu", torch.float16), ("cuda", torch.bfloat16), ("cuda", torch.float32)):
        with pytest.raises(InputError, match="--fast is for fp16"), fp16_accumulation(torch.device(device), dtype):
            pass
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace())
    with pytest.raises(InputError, match=r"PyTorch 2\.7"), fp16_accumulation(gpu, torch.float16):
        pass


@pytest.mark.parametrize("command", ["animate", "benchmark", "live"])
def test_fast_is_refused_where_it_changes_nothing(tmp_path, capsys, command):
    picture = str(EXAMPLE / "portrait.png")
    more = {
        "animate": ["--ref_image", picture, "--driving_video", picture, "-o", str(tmp_path / "out.mp4")],
        "benchmark": [],
        "live": ["--ref_image", picture],
    }
    assert main([command, *more[command], "--fast", "--device", "cpu"]) == 2
    assert "--fast is for fp16 on an NVIDIA GPU, and this is float32 on cpu" in capsys.readouterr().err


def test_fast_lasts_as_long_as_the_command(monkeypatch):
    """On a stand-in for an NVIDIA GPU."""
    seen = []
    monkeypatch.setattr(options, "pick_device", torch.device)
    monkeypatch.setattr(options, "pick_dtype", lambda *_: torch.float16)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul := SimpleNamespace(allow_fp16_accumulation=False))
    monkeypatch.setattr(measure, "run_benchmark", lambda *_: seen.append(matmul.allow_fp16_accumulation))
    assert main(["benchmark", "--device", "cuda"]) == main(["benchmark", "--device", "cuda", "--fast"]) == 0
    assert seen == [False, True] and not matmul.allow_fp16_accumulation


def test_info_says_what_is_missing_and_what_to_type(monkeypatch, capsys):
    monkeypatch.setattr(info, "find_spec", lambda module: module not in ("cv2", "einops"))
    for name in ("cuda", "hip", "xpu"):
        monkeypatch.setattr(torch.version, name, None)
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"einops is not installed: type  {sys.executable} -m pip install einops" in text
    assert "opencv-python-headless is not installed, which the detector yunet needs: type" in text
    assert f"torch {torch.__version__}" in text and "for the CPU alone" in text


@pytest.mark.parametrize("name", ["meta", "cuda:99", "cuda:300", "cuda:-1", "xla", "vulkan", "lazy", "3", "", "gpu"])
def test_a_device_that_does_not_compute_is_one_sentence(name):
    with pytest.raises(InputError, match=f"device {name} cannot be used here"):
        pick_device(name)


@pytest.mark.parametrize("there", [["cuda", "xpu"], ["xpu", "mps"], ["mps"], []])
def test_auto_takes_a_gpu(monkeypatch, there):
    for name, backend in (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps)):
        monkeypatch.setattr(backend, "is_available", lambda name=name: name in there)
    for backend in (torch.cuda, torch.xpu):
        monkeypatch.setattr(backend, "device_count", lambda: 2)  # also where the driver is too old to use them
    made = []
    monkeypatch.setattr(torch, "zeros", lambda *_, device: made.append(device) or torch.ones(1))
    pick_device()
    assert made == [*there, "cpu"][:1]


def test_tf32_is_switched_off_and_on_again_by_older_pytorch(monkeypatch: pytest.MonkeyPatch):
    """Before 2.9 there are these switches alone."""
    switches = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=False)
    for backend, name, switch in ((torch.backends, "cudnn", 0), (torch.backends.cuda, "matmul", 1)):
        monkeypatch.setattr(backend, name, switches[switch])
    with pytest.raises(KeyError), without_tf32():
        assert [switch.allow_tf32 for switch in switches] == [False, False]
        raise KeyError
    assert [switch.allow_tf32 for switch in switches] == [True, False]


def test_the_documentation_has_every_kind():
    text = Path(__file__).parents[1].joinpath("docs", "installation.md").read_text("utf-8")
    rows = [f"| {kind.name} | {kind.dtype} | {kind.tried or 'no'} |" for kind in devices.DEVICES]
    assert "\n".join(rows) in text
