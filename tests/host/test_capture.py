"""When Sample may start its windows as CUDA graphs. The network that stands on a GPU is pretended; the host's switches
are its own."""

import subprocess

import pytest
from server import python_of

PROGRAM = """
import sys
from types import SimpleNamespace

sys.path.insert(0, sys.argv.pop(1))
import comfy.options

comfy.options.enable_args_parsing()
import torch
from personalive.nodes import compat

device = torch.device("cuda", 0)
compat.cuda.can_capture = lambda device: True
network = SimpleNamespace(parameters=lambda: [SimpleNamespace(device=device)])
print("may capture:", compat.can_capture(SimpleNamespace(model=network, load_device=device)))
"""


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
    command = [python_of(host.folder), "-c", PROGRAM, str(host.base / "custom_nodes"), "--cpu", *switches]
    run = subprocess.run(command, cwd=host.folder, capture_output=True, text=True)
    assert f"may capture: {may}" in run.stdout, run.stderr[-3000:]
