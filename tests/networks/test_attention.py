"""Which of PyTorch's attention kernels is asked first. The GPU test runs in a process of its own: PyTorch chooses its
order when attention is first used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from personalive_core.networks import attention
from seeded import normal

HOSTS_ORDER = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@pytest.mark.parametrize("is_fastest", [False, True])
def test_cudnn_is_asked_first_where_it_is_fastest_and_the_order_of_others_stays(
    monkeypatch: pytest.MonkeyPatch, is_fastest
):
    asked, plain = [], attention.scaled_dot_product_attention

    def recorded(*qkv: torch.Tensor) -> torch.Tensor:
        asked.append(torch._C._get_sdp_priority_order()[0])
        return plain(*qkv)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", recorded)
    monkeypatch.setattr(attention, "_is_cudnn_fastest", lambda device: is_fastest)
    q, k, v = (normal(tag, 1, 2, 8, 16) for tag in "qkv")
    with sdpa_kernel(HOSTS_ORDER, set_priority=True):
        before = torch._C._get_sdp_priority_order()
        assert torch.equal(attention.pytorch_attention(q, k, v), plain(q, k, v))
        assert torch._C._get_sdp_priority_order() == before
    assert asked == [int(SDPBackend.CUDNN_ATTENTION if is_fastest else SDPBackend.FLASH_ATTENTION)]


def test_who_has_switched_cudnn_off_is_heard(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_is_cudnn_fastest", lambda device: True)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", lambda *_: torch.backends.cuda.cudnn_sdp_enabled())
    x = torch.zeros(1, 1, 1, 8)
    assert attention.pytorch_attention(x, x, x)
    with sdpa_kernel(SDPBackend.MATH):
        assert not attention.pytorch_attention(x, x, x)


AFTER_A_HOST = """
import torch
from torch.nn.attention import sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from test_attention import HOSTS_ORDER, attention

q = torch.randn(1, 8, 1024, 40, device="cuda", dtype=torch.float16)
with sdpa_kernel(HOSTS_ORDER, set_priority=True):
    torch.nn.functional.scaled_dot_product_attention(q, q, q)
with torch.inference_mode(), profile(activities=[ProfilerActivity.CUDA]) as done:
    attention.pytorch_attention(q, q, q)
    torch.cuda.synchronize()
print([event.key for event in done.key_averages()])
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_host_that_sets_an_order_does_not_cost_cudnn_its_place():
    if not attention._is_cudnn_fastest(torch.device("cuda")):
        pytest.skip("on this GPU cuDNN is not the fastest")
    here = Path(__file__).parent
    paths = os.pathsep.join(
        map(str, (here, here.parent, here.parents[1], *filter(None, [os.environ.get("PYTHONPATH")])))
    )
    run = subprocess.run(
        [sys.executable, "-c", AFTER_A_HOST], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "cudnn" in run.stdout, run.stdout
