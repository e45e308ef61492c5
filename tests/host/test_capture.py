"""Which attention is used, when Sample may start its windows as CUDA graphs, and how weights lie in memory. What stands
on a GPU is pretended; the host's switches are its own."""

import subprocess

import pytest
from server import python_of

BEGIN = """
import sys
from types import SimpleNamespace

sys.path.insert(0, sys.argv.pop(1))
import comfy.options

comfy.options.enable_args_parsing()
import torch
import utils.extra_config  # as the host does, before a library brings a module of that name

import comfy.ldm.modules.attention as host_attention
from personalive.nodes import compat
"""
CAPTURE = """
device = torch.device("cuda", 0)
compat.cuda.can_capture = lambda device: True
network = SimpleNamespace(parameters=lambda: [SimpleNamespace(device=device)])
for options in ({}, {"optimized_attention_override": print}):
    patcher = SimpleNamespace(model=network, load_device=device, model_options={"transformer_options": options})
    print("may capture:", compat.can_capture(patcher))
"""
ATTENTION = """
q = torch.randn(2, 4, 16, 8)
plain = compat.pytorch_attention(q, q, q)
attention = compat.Attention()


def called(function):
    def call(*args, **kwargs):
        names.append(name)
        return function(*args, **kwargs)

    name = function.__name__
    return call


names = []
compat.pytorch_attention = called(compat.pytorch_attention)
for name in ("attention_pytorch", "attention_split", "attention_sub_quad"):
    if getattr(host_attention, name) is host_attention.optimized_attention:
        host_attention.optimized_attention = called(host_attention.optimized_attention)
        if name == "attention_pytorch":
            host_attention.attention_pytorch = host_attention.optimized_attention
assert (attention(q, q, q) - plain).abs().max() < 1e-5
host_attention.optimized_attention = lambda q, k, v, **kwargs: names.append("another pack's") or q  # while it runs
assert attention(q, q, q) is q
print(*names)
"""
LAYOUT = """
network = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 8, 1), torch.nn.Linear(8, 8))
convolution, pointwise, linear = network
cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
addresses = []
for device in (cpu, cpu, gpu, gpu):
    compat.set_layout(network, device)
    print(convolution.weight.is_contiguous(), convolution.weight.is_contiguous(memory_format=torch.channels_last))
    addresses.append([x.data_ptr() for x in network.parameters()])
print("stay:", addresses[0] == addresses[1], addresses[2] == addresses[3], addresses[0][1:] == addresses[3][1:])
"""


def run(host, program: str, *switches: str) -> list[str]:
    """The lines that a program prints which runs as a part of the host."""
    command = [python_of(host.folder), "-c", BEGIN + program, str(host.base / "custom_nodes"), "--cpu", *switches]
    done = subprocess.run(command, cwd=host.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.newest_host
@pytest.mark.parametrize(
    ("switches", "may"),
    [
        (["--use-pytorch-cross-attention"], True),
        (["--use-split-cross-attention"], False),
        (["--use-pytorch-cross-attention", "--disable-cuda-graphs"], False),
    ],
)
def test_graphs_only_with_pytorchs_attention_and_if_the_user_lets_them(host, switches: list[str], may: bool):
    lines = run(host, CAPTURE, *switches)
    assert [line for line in lines if line.startswith("may")] == [f"may capture: {may}", "may capture: False"]


@pytest.mark.parametrize(
    ("switch", "name"),
    [
        ("--use-pytorch-cross-attention", "pytorch_attention"),
        ("--use-split-cross-attention", "attention_split"),
        ("--use-quad-cross-attention", "attention_sub_quad"),
    ],
)
def test_the_users_attention_is_used_and_looked_up_when_it_is_used(host, switch: str, name: str):
    assert run(host, ATTENTION, switch)[-1] == f"{name} another pack's"


@pytest.mark.newest_host
def test_convolutions_are_channels_last_only_on_their_device(host):
    """The host pins contiguous weights alone."""
    lines = run(host, LAYOUT)[-5:]
    assert lines == ["False True"] * 2 + ["True False"] * 2 + ["stay: True True True"]
