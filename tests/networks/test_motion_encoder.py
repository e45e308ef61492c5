"""The motion encoder against the recorded outputs of the published network."""

import torch
from einops import rearrange

from personalive_core.config import MotionEncoderConfig
from personalive_core.networks.motion_encoder import MotionEncoder, patch_positions
from seeded import uniform
from tiny import error, golden, manifest, seeded, state_dict_shapes

SMALL = MotionEncoderConfig(
    image_size=64, stem_channels=8, channels=32, attention_width=64, heads=4, norm_groups=8, landmarks=12, tokens=4
)


@torch.inference_mode()
def test_golden():
    g = golden("motion_encoder")
    network = seeded(MotionEncoder(device="meta"), "motion_encoder/v1")
    found = {}
    for name in ("att_1", "att_2", "m0", "att_3", "conv6"):
        layer = network.model.get_submodule(name)
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: found.update({name: output}))
    faces = uniform("in/face", 1, 3, 2, 224, 224) * 2 - 1
    tokens = network(rearrange(faces, "1 c f h w -> f c h w"))
    for name in ("att_1", "att_2", "m0", "att_3"):
        assert error(found[name][..., ::8, ::8], g[f"{name}_every_8th"]) < 1e-5, name
    assert error(found["conv6"], g["conv6"]) < 1e-5
    assert tokens.shape == (1, 2, 32, 16)
    assert error(tokens, g["motion_tokens"]) < 1e-5


def test_state_dict_is_the_checkpoint():
    expected = {key: shape for key, shape in manifest("motion_encoder").items() if key != "pe"}
    assert state_dict_shapes(MotionEncoder(device="meta")) == expected


@torch.inference_mode()
def test_sizes_come_from_the_config():
    network = seeded(MotionEncoder(SMALL, device="meta"), "motion_encoder")
    assert network(uniform("in/face", 3, 3, 64, 64)).shape == (1, 3, 4, 16)


def test_patch_positions_tell_column_then_row():
    positions = patch_positions(3, 8, torch.device("cpu"), torch.float32).view(3, 3, 8)  # (row, column, width)
    assert (positions[:, 1, :4] == positions[0, 1, :4]).all()
    assert (positions[1, :, 4:] == positions[1, 0, 4:]).all()
    assert not (positions[0, 0, :4] == positions[0, 1, :4]).all()
