"""The nodes' code as a part of the host, without its server: which attention is used, when Sample may start its windows
as CUDA graphs, how weights lie in memory, fp8. What stands on a GPU is pretended; the host's switches are its own."""

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
FP8 = """
from pathlib import Path

root = Path(compat.__file__).resolve().parents[1]
sys.path += map(str, (root, root / "tests"))
import tiny
from seeded import seeded_state_dict

from personalive.nodes import load
from personalive.personalive_core.config import ModelConfig


def make_unets(config, attention):
    for name in ("reference_unet", "denoising_unet"):
        config = ModelConfig(unet=config) if name == "reference_unet" else config
        weights = seeded_state_dict(name, load.meta_networks(config)[name])
        model = load._patcher(name, config, torch.float32, weights, True).model
        network = getattr(model, "diffusion_model", model)
        stored.update(x.dtype for x in network.parameters())
        network.to = lambda *_, network=network: network  # it is where it shall be, and keeps its types
        yield network


stored = set()
tiny.make_unets = make_unets
errors = tiny.unet_errors("unets_tiny", tiny.UNET)
print(*stored)
print(errors["noise_pred"], max(errors.values()))
"""
WITHOUT_FP8 = """
import comfy.model_management
from personalive.nodes import load

comfy.model_management.supports_cast = lambda device, dtype: dtype != torch.float8_e4m3fn
try:
    load.load_model(None, "fp8")
except load.InputError as error:
    print(error)
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


@pytest.mark.newest_host
def test_fp8_where_the_host_has_none_is_refused(host):
    assert "ComfyUI cannot use fp8 on cpu" in run(host, WITHOUT_FP8)[-1]


def test_fp8_is_cast_by_the_host_and_close_to_the_golden(host):
    types, errors = run(host, FP8)[-2:]
    assert set(types.split()) == {"torch.float32", "torch.float8_e4m3fn"}
    noise, worst = map(float, errors.split())
    assert 1e-3 < noise < 3e-2 and worst < 4e-2
