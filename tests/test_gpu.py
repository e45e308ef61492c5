"""GPU work: what can be told of it without a GPU."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from personalive_core.gpu import Arrival, Captured, CapturedNetwork, send, visiting


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

    fakes = dict(graph=capture, CUDAGraph=lambda: SimpleNamespace(replay=lambda: None), Stream=lambda: object())
    for name, fake in (fakes | dict(synchronize=lambda: None, empty_cache=lambda: None)).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for function in (CapturedNetwork(Network()), CapturedNetwork(Network()), Captured(torch.neg)):
        for _ in range(3):
            function(torch.ones(2))
    assert len(captured_on) == len(set(captured_on)) == 3
