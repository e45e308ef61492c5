"""The motion extractor, and the keypoints it leads to, against the recorded outputs of the published network."""

import copy

import pytest
import torch

from personalive_core.config import MotionExtractorConfig
from personalive_core.motion.keypoints import retarget, transform_keypoints, warm_up_poses
from personalive_core.networks.head_pose import HeadPose
from personalive_core.networks.motion_extractor import MotionExtractor
from seeded import uniform
from tiny import error, golden, manifest, seeded, state_dict_shapes


@pytest.fixture(scope="module")
def network() -> MotionExtractor:
    return seeded(MotionExtractor(device="meta"), "motion_extractor")


@torch.inference_mode()
def test_heads(network):
    g = golden("motion_extractor")
    heads = network.detector(uniform("in/drv", 6, 3, 256, 256))
    assert {f"raw.{name}" for name in heads} == {name for name in g if name.startswith("raw.")}
    assert max(error(value, g[f"raw.{name}"]) for name, value in heads.items()) < 1e-5


@torch.inference_mode()
def test_keypoints(network):
    g = golden("motion_extractor")
    reference = network(uniform("in/ref", 1, 3, 256, 256))
    driving = network(uniform("in/drv", 6, 3, 256, 256))
    first = driving[:1]
    start = HeadPose.cat(
        [warm_up_poses(reference, retarget(reference, first, first)), retarget(reference, driving[:4], first)]
    )
    assert error(transform_keypoints(start), g["retargeted_first"]) < 1e-5
    assert error(transform_keypoints(retarget(reference, driving[4:], first)), g["retargeted_next"]) < 1e-5
    assert error(transform_keypoints(driving[:4]), g["driving_keypoints_first"]) < 1e-5
    assert error(transform_keypoints(driving[4:]), g["driving_keypoints_next"]) < 1e-5


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="PyTorch has these settings from 2.9 on")
@pytest.mark.parametrize("before", [("tf32", "tf32"), ("ieee", "none")])
@torch.inference_mode()
def test_no_tf32(network, before):
    """Whatever others have set, which they find again. The older setting cannot be read in the second case."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    defaults, seen = (conv.fp32_precision, matmul.fp32_precision), []
    conv.fp32_precision, matmul.fp32_precision = before
    look = lambda *_: seen.append((conv.fp32_precision, matmul.fp32_precision))  # noqa: E731
    try:
        with network.detector.register_forward_pre_hook(look):
            network(uniform("in/ref", 1, 3, 256, 256))
        look()
    finally:
        conv.fp32_precision, matmul.fp32_precision = defaults
    assert seen == [("ieee", "ieee"), before]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.inference_mode()
def test_keypoints_on_a_gpu(network):
    frames = uniform("in/drv", 6, 3, 256, 256)
    there = copy.deepcopy(network).to("cuda")(frames.to("cuda")).to("cpu")
    assert error(transform_keypoints(there), transform_keypoints(network(frames))) < 1e-5


def test_state_dict_is_the_checkpoint():
    unused = ("idx_tensor", "detector.fc_exp.weight", "detector.fc_exp.bias")
    expected = {key: shape for key, shape in manifest("motion_extractor").items() if key not in unused}
    assert state_dict_shapes(MotionExtractor(device="meta")) == expected


@torch.inference_mode()
def test_half_precision_keeps_norms_in_float32():
    config = MotionExtractorConfig(image_size=64, depths=(1, 1, 1, 1), widths=(8, 16, 24, 32))
    network = seeded(MotionExtractor(config, device="meta"), "motion_extractor").bfloat16()
    seen = []
    layer_norm = torch.nn.functional.layer_norm

    def spy(x, *args, **kwargs):
        seen.append(x.dtype)
        return layer_norm(x, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "layer_norm", spy)
        pose = network(uniform("in/half", 2, 3, 64, 64).bfloat16())
    assert set(seen) == {torch.float32}
    assert {x.dtype for x in vars(pose).values()} == {torch.float32}
