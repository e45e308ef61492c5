"""The pose guider against the recorded output of the published network."""

import torch

from personalive_core.networks.pose_guider import PoseGuider
from tiny import error, golden, manifest, seeded, state_dict_shapes


@torch.inference_mode()
def test_golden():
    g = golden("pose_guider")
    network = seeded(PoseGuider(device="meta"), "pose_guider")
    assert error(network(g["keypoint_map"]), g["pose_features"]) < 1e-5


def test_state_dict_is_the_checkpoint():
    assert state_dict_shapes(PoseGuider(device="meta")) == manifest("pose_guider")
