"""The library's pipeline, with tiny networks on the CPU."""

import numpy as np
import torch

from tiny import tiny_pipeline


def test_inference_mode_is_off_while_the_caller_has_the_frames():
    pipeline = tiny_pipeline()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    pieces = []
    for piece in pipeline.animate(pipeline.encode_reference(pictures[0]), pictures[1:], hold=False):
        assert not torch.is_inference_mode_enabled()
        pieces.append(piece)
    assert [len(piece) for piece in pieces] == [1]
