"""Reference UNet and denoising UNet against the recorded outputs of the published networks."""

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from personalive_core.config import UNetConfig
from personalive_core.networks.denoising_unet import DenoisingUNet
from personalive_core.networks.fp8 import store_in_fp8
from personalive_core.networks.reference_unet import ReferenceUNet
from personalive_core.networks.spatial import SpatialBlock
from seeded import normal
from tiny import UNET, error, make_unets, manifest, state_dict_shapes, unet_errors, unets


def test_tiny_golden():
    assert max(unet_errors("unets_tiny", UNET).values()) < 1e-5


@pytest.mark.slow
def test_full_golden():
    torch.set_num_threads(os.cpu_count())
    assert max(unet_errors("unets_full", UNetConfig()).values()) < 1e-5


def test_tiny_golden_with_weights_in_fp8():
    assert max(unet_errors("unets_tiny", UNET, fp8=True).values()) < 3e-2


@pytest.mark.slow
def test_full_golden_with_weights_in_fp8():
    torch.set_num_threads(os.cpu_count())
    assert max(unet_errors("unets_full", UNetConfig(), fp8=True).values()) < 3e-2


def test_fp8_stores_three_quarters_of_the_weights_and_keeps_the_rest():
    """One byte a weight and two bytes a channel. What stays is the same object, with the same numbers."""
    for network in make_unets(UNET):
        network.half()
        before = {name: x.clone() for name, x in network.named_parameters()}
        store_in_fp8(network)
        after = dict(network.named_parameters())
        stored = {name.replace("parametrizations.weight.original", "weight") for name in after.keys() - before.keys()}
        assert stored == before.keys() - after.keys()
        share = sum(before[name].numel() for name in stored) / sum(x.numel() for x in before.values())
        assert 0.7 < share < 0.8
        for name in stored:
            layer = network.get_submodule(name.removesuffix(".weight"))
            assert layer.parametrizations.weight.original.dtype == torch.float8_e4m3fn
            assert layer.weight.dtype == torch.float16 and error(layer.weight, before[name]) < 3e-2
        assert all(torch.equal(after[name], before[name]) for name in before.keys() - stored)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype, bar", [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
def test_full_golden_in_half_precision(dtype: torch.dtype, bar: float):
    assert max(unet_errors("unets_full", UNetConfig(), "cuda", dtype).values()) < bar


def test_state_dicts_are_the_checkpoints():
    assert state_dict_shapes(ReferenceUNet(device="meta")) == manifest("reference_unet")
    merged = manifest("denoising_unet") | manifest("temporal_module")
    weights = {key: shape for key, shape in merged.items() if not key.endswith("pos_encoder.pe")}
    assert state_dict_shapes(DenoisingUNet(device="meta")) == weights


def test_image_cross_attention_is_the_same_for_every_query():
    block: SpatialBlock = unets()[1].mid_block.attentions[0].transformer_blocks[0]
    queries, image_embeds = normal("queries", 1, 9, 128), normal("image_embeds", 1, 1, 24)
    plain = block.attn2(block.norm2(queries), image_embeds)
    assert error(block.attn2.single_token(image_embeds).expand_as(plain), plain) < 1e-6


def test_kept_keys_and_values_equal_attention_over_joined_tokens():
    attn1 = unets()[1].mid_block.attentions[0].transformer_blocks[0].attn1
    own, reference, keyframe = (normal(tag, frames, 9, 128) for tag, frames in (("o", 16), ("r", 1), ("k", 1)))
    weights = attn1.state_dict()
    to_q, to_k, to_v = (weights[f"to_{name}.weight"] for name in "qkv")

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (attn1.heads, -1)).transpose(1, 2)

    joined = torch.cat([own, reference.expand(16, -1, -1), keyframe.expand(16, -1, -1)], dim=1)
    plain = F.scaled_dot_product_attention(*(heads(x) for x in (own @ to_q.mT, joined @ to_k.mT, joined @ to_v.mT)))
    kept = [torch.cat(pair, 1) for pair in zip(attn1.keys_values(reference), attn1.keys_values(keyframe), strict=True)]
    assert error(attn1(own, tuple(kept)), attn1.to_out[0](plain.transpose(1, 2).flatten(2))) < 1e-6


@pytest.mark.parametrize("height, width", [(17, 23), (12, 18)])
def test_latent_sizes_that_do_not_halve_evenly(height: int, width: int):
    reference_unet, denoising_unet = unets()
    image_embeds = normal("e", 1, 1, 24)
    features = reference_unet(normal("r", 1, 4, height, width), image_embeds)
    noise = denoising_unet(
        normal("x", 1, 4, 16, height, width),
        torch.zeros(16, dtype=torch.long),
        denoising_unet.condition(image_embeds, features),
        normal("m", 1, 16, 32, 16),
        normal("p", 1, 32, 16, height, width),
    )
    assert noise.shape == (1, 4, 16, height, width)
    assert noise.isfinite().all()
