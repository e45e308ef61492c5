"""Copies, onloading and the order of work: what can be told without a GPU. Graphs and streams: on one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from personalive_core.device import to_device
from personalive_core.sampling.cuda import GraphedFunctions, GraphedNetwork, PinnedCopy, one_behind, onload

HERE = Path(__file__).parent
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")


class DoesNotFit(nn.Linear):
    def _apply(self, *args, **kwargs):
        raise torch.cuda.OutOfMemoryError


def addresses(network: nn.Module) -> dict[str, int]:
    return {name: value.data_ptr() for name, value in network.state_dict().items()}


def test_onloading_leaves_the_weights_where_they_were():
    """The meta device stands in for a GPU."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    before = addresses(network)
    with torch.inference_mode(), onload(torch.device("meta"), network):
        assert all(value.is_meta for value in network.state_dict().values())
    assert addresses(network) == before
    assert not any(value.is_inference() for value in network.parameters())


def test_what_was_moved_comes_back_when_the_rest_does_not_fit():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), DoesNotFit(2, 2))
    before = addresses(network)
    with pytest.raises(torch.cuda.OutOfMemoryError), onload(torch.device("meta"), network):
        pytest.fail("the network is not on the device")
    assert addresses(network) == before


def test_copies_change_no_value():
    x = torch.arange(12.0).view(3, 4)
    there = to_device(x, torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float16)
    assert there.dtype == torch.float16
    assert torch.equal(PinnedCopy(there).result().float(), x)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_next_is_started_before_a_result_is_asked_for(count: int):
    events = []

    class Work:
        def __init__(self, number: int):
            self.number = number
            events.append(("start", number))

        def result(self) -> int:
            events.append(("result", self.number))
            return self.number

    assert list(one_behind(Work(i) for i in range(count))) == list(range(count))
    expected = [("start", 0), ("start", 1), ("result", 0), ("start", 2), ("result", 1), ("result", 2)]
    assert events == {0: [], 1: [("start", 0), ("result", 0)], 3: expected}[count]


def test_an_error_in_the_next_piece_of_work_is_raised():
    def started() -> Iterator[PinnedCopy]:
        yield PinnedCopy(torch.zeros(1))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        list(one_behind(started()))


class Linear64(nn.Linear):
    config = None

    def __init__(self, device: str):
        super().__init__(64, 64, device=device)
        self.requires_grad_(False)

    def get_dtype(self) -> torch.dtype:
        return self.weight.dtype


@needs_gpu
@torch.inference_mode()
def test_graphs_on_different_streams_run_side_by_side():
    """Graphs of one stream share a cuBLAS workspace; two of them at once could wait for each other for ever."""
    networks = [Linear64("cuda"), Linear64("cuda")]
    graphed, x = [GraphedNetwork(network) for network in networks], torch.randn(256, 64, device="cuda")
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for _ in range(20):
        results = []
        for function, stream in zip(graphed, streams, strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                results.append(function(x))
        torch.cuda.synchronize()
        for network, result in zip(networks, results, strict=True):
            torch.testing.assert_close(result, network(x))


@needs_two_gpus
@torch.inference_mode()
def test_graphs_and_copies_follow_the_device_of_their_tensors():
    """The current device stays the first GPU."""
    network, x = Linear64("cuda:1"), torch.randn(8, 64, device="cuda:1")
    graphed = GraphedNetwork(network)
    for _ in range(3):
        result = PinnedCopy(graphed(x)).result()
        torch.testing.assert_close(result, network(x).cpu())
    assert torch.cuda.current_device() == 0


@needs_gpu
@torch.inference_mode()
def test_a_deleted_graph_holds_no_memory():
    def free() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x.repeat(4096, 1) @ weights).sum(0)

    weights, x = (torch.randn(size, device="cuda") for size in ((16384, 16384), (16384,)))
    function(x)
    before = free()
    graphed = GraphedFunctions(function)
    results = [graphed(x) for _ in range(3)]
    during = free()
    del graphed
    assert torch.equal(results[0], results[2])
    assert before - during > 2**27  # 128 MiB of the 512 that the function takes
    assert before - free() < 2**27


@needs_gpu
def test_graphs_over_the_allocator_that_hosts_choose():
    tests = (
        "test_cuda.py::test_a_deleted_graph_holds_no_memory",
        "test_stream.py::test_graphed_windows_are_the_plain_ones",
        "test_window.py::test_graphed_windows_are_the_plain_ones_bit_for_bit[cuda]",
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(str(HERE / test) for test in tests)],
        env=os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
        capture_output=True,
        text=True,
    )
    # Some errors with a graph's memory show only when the process ends.
    assert "3 passed" in result.stdout and result.returncode == 0, result.stdout + result.stderr
