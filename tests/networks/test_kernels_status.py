"""Whether the Triton kernels are in use, and what is remembered of it. The CPU, where Triton's interpreter runs them,
stands in for a GPU."""

import sys

import pytest
import torch

from personalive_core.networks import fused

pytest.importorskip("triton", reason="needs Triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter, so no GPU")
kernels = pytest.importorskip("personalive_core.networks.kernels")
DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    fused._load_kernels.cache_clear()
    yield
    fused._load_kernels.cache_clear()


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_running_out_of_memory_is_raised_and_not_remembered(monkeypatch: pytest.MonkeyPatch, error: Exception):
    def full(*args, **constants):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_launch", full)
        with pytest.raises(type(error)):
            fused._load_kernels(DEVICE)
    assert fused._load_kernels(DEVICE) == (kernels, "")


def test_a_lasting_reason_is_remembered(monkeypatch: pytest.MonkeyPatch):
    def without_compiler(*args, **constants):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_launch", without_compiler)
        assert fused._load_kernels(DEVICE) == (None, "Failed to find C compiler.")
    assert fused._load_kernels(DEVICE) == (None, "Failed to find C compiler.")


def test_an_old_gpu_gets_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    module, reason = fused._load_kernels(DEVICE)
    assert module is None and "7.5" in reason


@pytest.mark.parametrize("platform, package", [("win32", "triton-windows"), ("linux", "triton")])
def test_without_triton_the_status_says_what_to_type(monkeypatch: pytest.MonkeyPatch, platform: str, package: str):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delattr("personalive_core.networks.kernels")
    monkeypatch.delitem(sys.modules, "personalive_core.networks.kernels")
    monkeypatch.setitem(sys.modules, "triton", None)
    module, reason = fused._load_kernels(DEVICE)
    assert module is None and reason == f"install Triton: {sys.executable} -m pip install {package}"


def test_the_status_of_a_cpu():
    assert fused.kernels_status(DEVICE) == "not in use (they need an NVIDIA GPU)"
