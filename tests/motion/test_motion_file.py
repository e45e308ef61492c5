"""A performance comes back from its file bit for bit, drives any portrait, and a bad file is named."""

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from motions import motion_of, same
from personalive_core.errors import InputError
from personalive_core.motion.motion_file import SUFFIX, load_motion, save_motion
from personalive_core.motion.performance import Performance, Strength

RATE = Fraction(30000, 1001)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    motion = motion_of("driver", 50)
    motion.held[7] = 2
    performance = Performance(motion, RATE, "phone é.mov", Strength(0.5, 1.5, 0, 1, True), motion[3:4])
    save_motion(performance, tmp_path / "new folder" / "a.motion.safetensors")
    return tmp_path / "new folder" / "a.motion.safetensors"


def test_it_comes_back_bit_for_bit_and_is_small(file):
    motion = motion_of("driver", 50)
    motion.held[7] = 2
    found = load_motion(file)
    assert same(found.motion, motion) and same(found.neutral, motion[3:4])
    assert (found.frame_rate, found.source) == (RATE, "phone é.mov")
    assert found.strength == Strength(0.5, 1.5, 0, 1, True)
    assert file.stat().st_size < 50 * 2500 + 6000
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    (plain := file.with_name("plain")).touch()
    assert file.stat().st_mode == plain.stat().st_mode
    times = tuple(Fraction(i * i, 100) for i in range(50))
    save_motion(Performance(motion, RATE, times=times), file)
    assert load_motion(file).times == times
    plain = Performance(motion[:1], Fraction(25))
    save_motion(plain, file)
    found = load_motion(file)
    assert (found.neutral, found.source, found.strength) == (None, "", Strength())


def resave(file: Path, tensors: dict | None = None, **metadata: str) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() | metadata
    save_file(load_file(file) | (tensors or {}), file, metadata)


def test_bad_files_are_named(file, tmp_path):
    whole = file.read_bytes()
    plain = tmp_path / "plain.safetensors"
    save_file({"x": torch.zeros(3)}, plain)
    for content, words in (
        (b"", "damaged or no motion file"),
        (whole[:1000], "damaged or no motion file"),
        (b"no safetensors at all" * 50, "damaged or no motion file"),
        (plain.read_bytes(), "is no motion file"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=words):
            load_motion(file)
    with pytest.raises(InputError, match="does not exist"):
        load_motion(tmp_path / "absent")

    strength = json.dumps({"expression": 99})
    nan = torch.full((50, 32, 16), float("nan"))
    for tensors, metadata, words in (
        ({}, {"version": "2"}, "of version 2, and this reads version 1: update PersonaLive"),
        ({}, {"frame_rate": "1/0"}, "is damaged"),
        ({}, {"frame_rate": "0"}, "a frame rate of 0"),
        ({}, {"frame_rate": "1e999999999"}, "frame rate is '1e999999999'"),
        ({}, {"strength": "{}x"}, "is damaged"),
        ({}, {"strength": strength}, "expression is 99"),
        ({"tokens": torch.zeros(50, 32, 8)}, {}, r"tokens is \(50, 32, 8\) in place of \(50, 32, 16\)"),
        ({"pose.scale": torch.zeros(49, 1)}, {}, "pose.scale"),
        ({"tokens": nan}, {}, "not finite"),
        ({"more": torch.zeros(1)}, {}, "unknown more"),
        ({"neutral.tokens": torch.zeros(2, 32, 16)}, {}, "2 frames, and it may have 1 to 1"),
        ({}, {"version": "²"}, "of version ²"),
        ({}, {"frame_rate": "1/" + "9" * 40}, "a frame rate of 1/9"),
        ({}, {"frame_rate": "9" * 40}, "a frame rate of 9"),
        ({}, {"strength": "[]"}, "is damaged"),
        ({}, {"strength": "[" * 100_000}, "is damaged"),
        ({}, {"strength": '{"expression": "1"}'}, "the strength expression is '1'"),
        ({}, {"strength": '{"expression": null}'}, "the strength expression is None"),
        ({}, {"strength": '{"relative": 1}'}, "the strength relative is 1"),
        ({}, {"strength": '{"expression": NaN}'}, "expression is nan"),
        ({}, {"strength": '{"expression": 1%s}' % ("0" * 400)}, "is damaged"),
        ({"tokens": torch.zeros(50, 32, 16, dtype=torch.float64)}, {}, "tokens is torch.float64"),
        ({"tokens": torch.zeros(())}, {}, "0 frames"),
        ({"boxes": torch.zeros(50, 4)}, {}, "boxes is torch.float32 in place of torch.int64"),
        ({"boxes": torch.full((50, 4), -7)}, {}, "the boxes leave the grid of 512 x 512"),
        ({"held": torch.full((50,), 9, dtype=torch.uint8)}, {}, "held is 9"),
    ):
        file.write_bytes(whole)
        resave(file, tensors, **metadata)
        with pytest.raises(InputError, match=words):
            load_motion(file)


def header(text: bytes, size: int | None = None) -> bytes:
    return (len(text) if size is None else size).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        header(b"{}", 1 << 62),
        header(b"[" * 100_000),
        header(b"[]"),
        header(b'{"tokens": 3}'),
        header(b'{"tokens": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}}'),
        header(b'{"tokens": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}'),
        header(b'{"tokens": {"dtype": "F99", "shape": [0], "data_offsets": [0, 0]}}'),
        header(
            b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "b": %s}' % b'{"dtype": "U8", "shape": [4], '
            b'"data_offsets": [0, 4]}'
        )
        + bytes(4),
    ],
)
def test_headers_that_claim_more_than_the_file_has(file, content):
    file.write_bytes(content)
    with pytest.raises(InputError, match="is damaged or no motion file"):
        load_motion(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.motion.safetensors")
    with pytest.raises(InputError, match="is a pipe or a device and no file; give the path of a motion file"):
        load_motion(tmp_path / "a.motion.safetensors")


def test_a_name_may_be_as_long_as_a_name_can_be(file, tmp_path):
    path = tmp_path / ("n" * (255 - len(SUFFIX)) + SUFFIX)
    save_motion(load_motion(file), path)
    assert len(load_motion(path).motion) == 50


def test_what_cannot_be_written_leaves_nothing(file, tmp_path):
    performance = load_motion(file)
    before = file.read_bytes()
    with pytest.raises(InputError, match="cannot be written"):
        save_motion(performance, file / "inside a file")
    folder = tmp_path / "folder.motion.safetensors"
    folder.mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        save_motion(performance, folder)
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.motion.safetensors", "new folder"]
