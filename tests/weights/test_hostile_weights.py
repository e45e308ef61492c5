"""Weights made to harm, or changed while they are used: one sentence each, before memory is taken."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from personalive_core.config import ModelConfig
from personalive_core.errors import InputError
from personalive_core.weights.find import find_weights
from personalive_core.weights.load import load_checkpoint, open_checkpoint


def archive(path, pickled: bytes, data: bytes = bytes(16), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", data)
    return path


def state(shape: bytes, stride: bytes, count: bytes) -> bytes:
    """A pickle of one tensor by hand; numbers are opcodes."""
    name = b"X\x06\0\0\0weight"
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + count + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + shape + stride + b"\x89}tR"
    return b"\x80\x02}" + name + tensor + b"s."


def long(number: int) -> bytes:
    data = pickle.encode_long(number)
    return b"\x8a" + bytes([len(data)]) + data


HUGE = long(1 << 40)
PICKLES = {
    "a storage larger than its file": (state(b"K\2\x85", b"K\1\x85", HUGE), "truncated or no checkpoint"),
    "a tensor larger than its storage": (state(HUGE + b"\x85", b"K\1\x85", b"K\4"), "truncated or no checkpoint"),
    "one number as a terabyte": (state(HUGE + b"\x85", b"K\0\x85", b"K\4"), "claims 4398046511104 bytes of weights"),
    "a negative size": (state(long(-4) + b"\x85", b"K\1\x85", b"K\4"), "truncated or no checkpoint"),
    "8 GB of bytes": (
        b"\x80\x02c__builtin__\nbytearray\n" + long(8 << 30) + b"\x85R.",
        "wants to use __builtin__.bytear",
    ),
    "a tensor without a file": (
        b"\x80\x02ctorch\nFloatTensor\n" + HUGE + b"\x85R.",
        r"wants to use torch\.FloatTensor",
    ),
    "a storage that is called": (b"\x80\x02ctorch\nFloatStorage\n" + HUGE + b"\x85R.", "truncated or no checkpoint"),
    "a number as a key": (b"\x80\x02}K\1K\1s.", "does not hold names and tensors alone"),
    "a tuple as a key": (b"\x80\x02}" + b")" + 100_000 * b"\x85" + b"K\1s.", "truncated or no checkpoint"),
    "bytes as a key": (b"\x80\x03}C\1aK\1s.", "truncated or no checkpoint"),
    "no end": (b"\x80\x02}", "truncated or no checkpoint"),
    "a place in the memo": (b"\x80\x02}r\xff\xff\xff\x7f.", ""),
}


@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_that_asks_for_more_than_it_has(tmp_path, what):
    pickled, words = PICKLES[what]
    path = archive(tmp_path / "pose_guider.pth", pickled)
    if what == "a place in the memo":
        assert open_checkpoint(path) == {}
        return
    with pytest.raises(InputError, match=words) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_packed_files_are_not_unpacked(tmp_path):
    pickled = state(b"K\2\x85", b"K\1\x85", b"K\4")
    path = archive(tmp_path / "a.pth", pickled, bytes(1 << 20), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="truncated or no checkpoint"):
        load_checkpoint(path)
    assert load_checkpoint(archive(path, pickled))["weight"].tolist() == [0, 0]


def test_views_and_strides_come_back(tmp_path):
    base = torch.arange(24.0).view(2, 3, 2, 2)
    weights = {
        "last": base.contiguous(memory_format=torch.channels_last),
        "view": base[1, 1:],
        "half": base.half(),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base),
    }
    torch.save(weights, tmp_path / "a.pth")
    found = load_checkpoint(tmp_path / "a.pth")
    for key, value in weights.items():
        assert torch.equal(found[key], value) and found[key].dtype == value.dtype, key


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_cut_off_while_it_is_used(tmp_path, suffix):
    path, weights = tmp_path / f"a{suffix}", {"a": torch.ones(100_000), "b": torch.ones(100_000)}
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    opened, read = open_checkpoint(path), load_checkpoint(path)
    os.truncate(path, 1000)  # a mapped file would now end the process
    assert all(value.sum() == 100_000 for value in read.values())
    with pytest.raises(InputError, match=rf"a\{suffix} was changed while it was read"):
        opened["b"].read()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_not_waited_for(tmp_path):
    for name in "pose_guider.pth", "sizes.json":
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is not a file"):
        load_checkpoint(tmp_path / "pose_guider.pth")
    with pytest.raises(InputError, match="is a pipe or a device"):
        ModelConfig.read(tmp_path / "sizes.json")
    assert find_weights(tmp_path).pose_guider is None


def test_the_newer_of_two_files_counts_and_it_is_said(tmp_path, caplog):
    for name in "pose_guider.pth", "pose_guider.safetensors":
        (tmp_path / name).touch()
    os.utime(tmp_path / "pose_guider.safetensors", (1000, 1000))
    os.utime(tmp_path / "pose_guider.pth", (1000, 1000))
    assert find_weights(tmp_path).paths("pose_guider") == [tmp_path / "pose_guider.safetensors"]
    assert not caplog.text
    os.utime(tmp_path / "pose_guider.pth", (2000, 2000))
    assert find_weights(tmp_path).paths("pose_guider") == [tmp_path / "pose_guider.pth"]
    assert "pose_guider.pth is newer than" in caplog.text and "convert it, or delete one" in caplog.text


def unet(**sizes) -> str:
    return json.dumps({"unet": sizes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("[]", "no object in braces"),
        (" " * (1 << 20) + "{}", "more than 1048576 bytes"),
        ('{"unet": 3}', "does not hold the sizes"),
        ('{"other": {}}', "does not hold the sizes"),
        (unet(other=3), "other"),
        (unet(channels=3), "channels is 3"),
        (unet(channels=[]), r"channels is \(\), and sizes are from 1 to 8192"),
        (unet(channels=[10**12] * 4), r"channels is \(1000000000000, .*, and sizes are from 1 to 8192"),
        (unet(channels=[[320]] * 4), "channels is"),
        (unet(layers=10**9), "layers is 1000000000, and sizes are from 1 to 32"),
        (unet(layers=-1), "layers is -1"),
        (unet(layers=1.5), r"layers is 1\.5"),
        (unet(layers="2"), "layers is '2'"),
        (unet(layers=True), "layers is True"),
        (unet(layers=None), "layers is None"),
        (unet(heads=7), "channels must be multiples of their heads"),
        (unet(motion_token_width=8), "motion must be 32 tokens of width 16"),
        ('{"motion_extractor": {"widths": [8, 8]}}', "four levels"),
        ('{"motion_encoder": {"image_size": 10000000}}', "image_size is 10000000"),
        ('{"motion_encoder": {"hourglass_depth": 32}}', "large enough for its hourglass"),
        ('{"pose_guider": {"out_channels": 8}}', "pose guider must end"),
    ],
)
def test_nonsense_in_sizes(tmp_path, text, words):
    (tmp_path / "sizes.json").write_text(text)
    (tmp_path / "pose_guider.pth").touch()
    with pytest.raises(InputError, match=rf"(?s)sizes\.json .*{words}"):
        find_weights(tmp_path).config  # noqa: B018 it reads the file
