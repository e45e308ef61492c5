"""GPU work: what can be told of it without a GPU, and graphs on one."""

import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from personalive_core.sampling.cuda import Arrival, Captured, CapturedNetwork, send, visiting

HERE = Path(__file__).parent
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_a_visit_leaves_the_weights_where_they_were():
    """The meta device stands in for a GPU."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    before = {name: value.data_ptr() for name, value in network.state_dict().items()}
    with torch.inference_mode(), visiting(torch.device("meta"), network):
        assert all(value.is_meta for value in network.state_dict().values())
    assert {name: value.data_ptr() for name, value in network.state_dict().items()} == before
    assert not any(value.is_inference() for value in network.parameters())


def test_sending_and_arriving_change_no_value():
    x = torch.arange(12.0).view(3, 4)
    there = send(x, torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float16)
    assert there.dtype == torch.float16
    assert torch.equal(Arrival(there).wait().float(), x)


def test_what_may_run_at_the_same_time_is_captured_on_different_streams(monkeypatch: pytest.MonkeyPatch):
    """Graphs of one stream share the workspace of their products: two of them on a GPU wait for each other for ever."""

    class Network(nn.Identity):
        config = None

        def get_dtype(self) -> torch.dtype:
            return torch.float32

    captured_on = []

    @contextmanager
    def capture(graph, stream=None, **_):
        captured_on.append(stream)
        yield

    class OneStream:
        def __init__(self, *_):
            pass

        def wait_stream(self, other) -> None:
            pass

    fakes = dict(
        graph=capture,
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: None, reset=lambda: None),
        Stream=OneStream,
        stream=nullcontext,
        current_stream=OneStream,
        synchronize=lambda: None,
        empty_cache=lambda: None,
        get_allocator_backend=lambda: "native",
    )
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for function in (CapturedNetwork(Network()), CapturedNetwork(Network()), Captured(torch.neg)):
        for _ in range(3):
            function(torch.ones(2))
    assert len(captured_on) == len(set(captured_on)) == 3


@needs_gpu
@torch.inference_mode()
def test_a_graph_that_is_gone_holds_no_memory():
    def free() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x.repeat(4096, 1) @ weights).sum(0)

    weights, x = (torch.randn(size, device="cuda") for size in ((16384, 16384), (16384,)))
    function(x)
    before = free()
    captured = Captured(function)
    results = [captured(x) for _ in range(3)]
    during = free()
    del captured
    assert torch.equal(results[0], results[2])
    assert before - during > 2**27  # 128 MiB of the 512 that the function takes
    assert before - free() < 2**27


@needs_gpu
def test_graphs_over_the_allocator_that_hosts_choose():
    tests = (
        "test_cuda.py::test_a_graph_that_is_gone_holds_no_memory",
        "test_stream.py::test_captured_windows_are_the_plain_ones",
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(str(HERE / test) for test in tests)],
        env=os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
        capture_output=True,
        text=True,
    )
    # What is wrong with a graph's memory may come out only when the process ends.
    assert "2 passed" in result.stdout and result.returncode == 0, result.stdout + result.stderr
