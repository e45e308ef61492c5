"""GPU work: what can be told of it without a GPU, and what needs one."""

import torch
from torch import nn

from personalive_core.gpu import Arrival, send, visiting


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
