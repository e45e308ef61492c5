"""The Triton kernels against plain PyTorch: on a GPU as they run there, on a CPU in Triton's interpreter, which
conftest.py switches on."""

import pytest
import torch
from torch import Tensor, nn

from personalive_core.networks import fused
from personalive_core.networks.attention import pytorch_attention
from seeded import normal
from tiny import error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="needs Triton")
kernels = pytest.importorskip("personalive_core.networks.kernels")

pytestmark = pytest.mark.parametrize("dtype, bar", [(torch.float32, 1e-5), (torch.float16, 2e-3)])


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch):
    """Runs a function with the kernels and with plain PyTorch -> how far they are apart."""

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def compare(function) -> float:
        with torch.inference_mode():
            results = []
            for module in (kernels, None):
                monkeypatch.setattr(fused, "_kernels_for", lambda x, module=module: module)
                result = function()
                results.append(
                    torch.cat([y.flatten().float().cpu() for y in result]) if isinstance(result, tuple) else result
                )
        return error(*(y.float().cpu() for y in results))

    return compare


def made(tag: str, dtype: torch.dtype, *shape: int) -> Tensor:
    return normal(tag, *shape).to(DEVICE, dtype)


def picture(dtype: torch.dtype, *shape: int) -> Tensor:
    """Channels-last, with a mean far from 0: what costs a careless variance its precision."""
    return (made("x", dtype, *shape) * 0.5 + 3).contiguous(memory_format=torch.channels_last)


def filled(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    for name, value in layer.named_parameters():
        value.data = normal(name, *value.shape) * (1 if value.ndim == 1 else value[0].numel() ** -0.5)
    return layer.to(DEVICE, dtype)


@pytest.mark.parametrize("shape", [(2, 320, 9, 7), (1, 96, 40, 30), (3, 32, 16, 16)])
@pytest.mark.parametrize("extras", [False, True])
def test_group_norm(both, dtype, bar, shape, extras):
    x, norm = picture(dtype, *shape), filled(nn.GroupNorm(32, shape[1]), dtype)
    bias, time_bias = (made("r", dtype, shape[1]), made("s", dtype, *shape[:2])) if extras else (None, None)
    assert both(lambda: fused.group_norm(norm, x, silu=extras, bias=bias, time_bias=time_bias)) < bar


@pytest.mark.parametrize("extras", [False, True])
def test_add_layer_norm(both, dtype, bar, extras):
    h, norm = made("h", dtype, 32, 5, 320), filled(nn.LayerNorm(320), dtype)
    delta, bias, positions = made("d", dtype, 32, 5, 320), made("r", dtype, 1, 1, 320), made("p", dtype, 16, 320)
    if extras:
        assert both(lambda: fused.add_layer_norm(norm, h, delta, bias=bias, positions=positions)) < bar
    else:
        assert both(lambda: fused.add_layer_norm(norm, h)) < bar


def test_a_bias_and_reference_keys_for_each_entry_go_through_plain_pytorch(both, dtype, bar):
    h, norm, each = made("h", dtype, 4, 5, 64), filled(nn.LayerNorm(64), dtype), made("r", dtype, 4, 1, 64)
    assert both(lambda: fused.add_layer_norm(norm, h, h, bias=each)) == 0
    assert both(lambda: fused.concat_reference(h, each)) == 0


def test_geglu(both, dtype, bar):
    x = made("x", dtype, 3, 7, 640)
    assert both(lambda: fused.geglu(x)) < bar


def test_add(both, dtype, bar):
    x, delta, bias = picture(dtype, 2, 96, 9, 7), made("d", dtype, 2, 96, 9, 7), made("r", dtype, 96)
    assert both(lambda: fused.add(x, delta, bias)) < bar


def test_concat_reference(both, dtype, bar):
    own, reference = made("o", dtype, 3, 70, 3 * 96)[..., 96:192], made("s", dtype, 1, 33, 96)
    assert both(lambda: fused.concat_reference(own, reference)) == 0


def test_temporal_attention(both, dtype, bar):
    q, k, v = made("qkv", dtype, 32, 6, 3 * 320).chunk(3, dim=-1)
    assert both(lambda: fused.temporal_attention(q, k, v, 16, 8, pytorch_attention)) < bar


def test_short_cross_attention(both, dtype, bar):
    q, k, v = made("q", dtype, 2, 70, 320), made("k", dtype, 2, 32, 320), made("v", dtype, 2, 32, 320)
    assert both(lambda: fused.short_cross_attention(q, k, v, 8, pytorch_attention)) < bar


@pytest.mark.parametrize("size", [(10, 14), (9, 13)])
def test_upsample_conv2d(both, dtype, bar, size):
    x, conv = picture(dtype, 2, 32, 5, 7), filled(nn.Conv2d(32, 32, 3, padding=1), dtype)
    assert both(lambda: fused.upsample_conv2d(conv, x, size)) < bar


def test_conv2d_and_the_bias_it_leaves(both, dtype, bar):
    x, conv = picture(dtype, 2, 32, 5, 7), filled(nn.Conv2d(32, 48, 3, padding=1), dtype)

    def whole() -> Tensor:
        y, bias = fused.conv2d(conv, x)
        return y if bias is None else y + bias[:, None, None]

    assert both(whole) < bar
