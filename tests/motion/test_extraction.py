"""Driving frames on their way to the networks."""

import time

import numpy as np
import pytest
import torch

from motions import same
from personalive_core.motion.extraction import extract_motion, read_ahead
from tiny import tiny_pipeline


def test_networks_get_four_frames_whatever_comes():
    """And the motion of a frame does not depend on how many come with it."""
    pipeline, shapes = tiny_pipeline(), set()
    networks = pipeline.motion_extractor, pipeline.motion_encoder
    for network in networks:
        network.register_forward_pre_hook(lambda network, inputs: shapes.add((type(network), *inputs[0].shape[:1])))
    frames = torch.from_numpy(np.random.default_rng(0).random((7, 3, 64, 64), np.float32))
    with torch.inference_mode():
        whole = extract_motion(*networks, frames)
        for count in range(1, 7):
            assert same(extract_motion(*networks, frames[:count]), whole[:count])
    assert shapes == {(type(network), 4) for network in networks}


def test_frames_are_read_ahead_and_no_more_than_asked_for():
    read = []

    def frames():
        for i in range(20):
            read.append(i)
            yield i

    with read_ahead(frames(), 4) as ahead:
        assert next(ahead) == 0
        deadline = time.monotonic() + 10
        while len(read) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert read == [0, 1, 2, 3, 4]
        assert list(ahead) == list(range(1, 20))


def test_nothing_is_read_after_the_end_of_read_ahead():
    """The file may be closed then."""
    is_open = True

    def frames():
        for i in range(100):
            time.sleep(0.02)
            assert is_open
            yield i

    reading = frames()
    with pytest.raises(KeyboardInterrupt), read_ahead(reading, 4) as ahead:
        next(ahead)
        raise KeyboardInterrupt
    is_open = False
    time.sleep(0.1)
    assert reading.gi_frame is not None and not reading.gi_running  # stands between two frames, and no assert failed


def test_what_reading_fails_with_comes_after_the_frames_before():
    def frames():
        yield 1
        raise OSError("gone")

    with read_ahead(frames(), 4) as ahead:
        assert next(ahead) == 1
        with pytest.raises(OSError, match="gone"):
            next(ahead)
