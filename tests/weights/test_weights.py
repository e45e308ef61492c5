"""Finding, reading, checking and converting weights; the networks here are small stand-ins."""

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from personalive_core.errors import InputError
from personalive_core.weights import convert as converting
from personalive_core.weights import load as loading
from personalive_core.weights.convert import convert
from personalive_core.weights.find import CHECKPOINTS, NETWORK_FILES, WeightFiles, find_weights
from personalive_core.weights.load import (
    StoredWeight,
    checked_state_dict,
    checked_weights,
    load_checkpoint,
    load_network,
    meta_networks,
)
from personalive_core.weights.pickled import StoredTensor

MANIFESTS = Path(__file__).parents[1] / "assets/manifests"


class Temporal(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.level = nn.Module()
        self.level.temporal_modules = nn.ModuleList([nn.Linear(3, 3)])


def on_meta() -> Temporal:
    with torch.device("meta"):
        return Temporal()


def write(folder: Path, name: str, **changes) -> Path:
    """A checkpoint of `Temporal`: all of it or, as published, its two parts; a change of None leaves a key out."""
    state_dict = Temporal().state_dict()
    if name in ("denoising_unet", "temporal_module"):
        state_dict = {k: v for k, v in state_dict.items() if (".temporal_modules." in k) == (name == "temporal_module")}
    state_dict.pop("norm.num_batches_tracked", None)
    state_dict = {k: v for k, v in {**state_dict, **changes}.items() if v is not None}
    path = folder / f"{name}.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state_dict, path)
    return path


@pytest.fixture
def pair(tmp_path) -> list[Path]:
    return [write(tmp_path, "denoising_unet"), write(tmp_path, "temporal_module")]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("six", "beside"),
    [
        (".", "."),
        ("personalive", "."),
        ("pretrained_weights/personalive", "pretrained_weights"),
        ("persona_live/persona_live/pretrained_weights/personalive", "persona_live/persona_live/pretrained_weights"),
        ("pretrained_weights/personalive", "."),
    ],
)
def test_known_layouts_are_found(tmp_path, six, beside):
    touch(*(tmp_path / six / f"{name}.pth" for name in CHECKPOINTS))
    vae = tmp_path / beside / "sd-vae-ft-mse"
    encoder = tmp_path / beside / "sd-image-variations-diffusers/image_encoder"
    touch(
        vae / "config.json", vae / "diffusion_pytorch_model.bin", encoder / "config.json", encoder / "pytorch_model.bin"
    )
    found = find_weights(tmp_path)
    assert found.missing == ()
    assert found.denoising_unet == tmp_path / six / "denoising_unet.pth"
    assert (found.vae, found.image_encoder) == (vae, encoder)
    found.require()
    assert find_weights(tmp_path / six).missing == ()


def test_a_converted_file_goes_before_the_one_it_was_made_from(tmp_path):
    touch(tmp_path / "pose_guider.pth", tmp_path / "pose_guider.safetensors", tmp_path / "motion_encoder.pth")
    found = find_weights(tmp_path)
    assert found.pose_guider == tmp_path / "pose_guider.safetensors"
    assert found.motion_encoder == tmp_path / "motion_encoder.pth"


def test_what_is_missing_is_listed_with_address_and_folder(tmp_path):
    touch(*(tmp_path / "personalive" / f"{name}.pth" for name in CHECKPOINTS if name != "temporal_module"))
    touch(tmp_path / "sd-vae-ft-mse/config.json")
    found = find_weights(tmp_path)
    assert [file.target for file in found.missing] == [
        "personalive/temporal_module.pth",
        "sd-vae-ft-mse/diffusion_pytorch_model.safetensors",
        "sd-image-variations-diffusers/image_encoder/config.json",
        "sd-image-variations-diffusers/image_encoder/pytorch_model.bin",
    ]
    with pytest.raises(InputError) as error:
        found.require()
    assert "python -m personalive_core download" in str(error.value)
    address = "huaichang/PersonaLive/resolve/main/pretrained_weights/personalive/temporal_module.pth"
    assert f"{address} -> {tmp_path / 'personalive'}" in str(error.value)
    found.require(["denoising_unet"])
    with pytest.raises(InputError, match="temporal_module"):
        found.paths("denoising_unet")


class Evil:
    def __reduce__(self):
        return os.system, ("touch was_run",)


@pytest.mark.parametrize("protocol", [2, 4, "torch"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pose_guider.pth"
    if protocol == "torch":
        torch.save({"a": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Evil()}, protocol=protocol))
    with pytest.raises(InputError, match=r"pose_guider\.pth .* bytes\).* run"):
        load_checkpoint(path)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["half", "one byte short", "empty", "text", "random", "git-lfs"])
def test_a_damaged_file_is_named_with_its_size(tmp_path, suffix, damage):
    path = tmp_path / f"pose_guider{suffix}"
    state_dict = {"a": torch.zeros(1000)}
    save_file(state_dict, path) if suffix == ".safetensors" else torch.save(state_dict, path)
    whole = path.read_bytes()
    content = {
        "half": whole[: len(whole) // 2],
        "one byte short": whole[:-1],
        "empty": b"",
        "text": b"<html>Not found</html>\n" * 50,
        "random": bytes(torch.arange(256, dtype=torch.uint8).flip(0).tolist()) * 9,
        "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    }[damage]
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"pose_guider{suffix} \({len(content)} bytes\) .*download"):
        load_checkpoint(path)


def test_the_old_form_of_torch_save_is_named(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"a bare pickle, as PyTorch before 1\.6 wrote it, and was not run"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(2)], {"a": torch.zeros(2), "n": 1}, {0: torch.zeros(2)}, {"state_dict": {"a": 1}}, {"state_dict": 1}],
)
def test_something_else_than_names_and_tensors(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match="names and tensors"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        lambda weights: {"state_dict": {f"module.{key}": value for key, value in weights.items()}},
    ],
)
@pytest.mark.parametrize("name", ["motion_encoder", "reference_unet", "motion_extractor"])
def test_what_training_tools_put_around_weights_is_taken_off(tmp_path, name, wrapped):
    weights = load_checkpoint(write(tmp_path / "plain", name))
    path = tmp_path / f"{name}.pth"
    torch.save(wrapped(weights), path)
    found = load_checkpoint(path)
    assert found.keys() == weights.keys()
    assert torch.equal(found["conv.weight"], weights["conv.weight"])
    checked_state_dict(on_meta(), [path])


def test_a_name_that_begins_with_module_among_others_stays(tmp_path):
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth").keys() == {"module.a", "b"}


def test_two_files_load_into_one_network(pair):
    network = load_network(on_meta(), pair, dtype=torch.float16)
    assert torch.equal(network.conv.weight, load_checkpoint(pair[0])["conv.weight"].half())
    assert torch.equal(
        network.level.temporal_modules[0].bias, load_checkpoint(pair[1])["level.temporal_modules.0.bias"].half()
    )
    assert network.norm.num_batches_tracked == 0
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_computed_buffers_and_the_unused_head_may_be_there(tmp_path, pair):
    write(
        tmp_path,
        "denoising_unet",
        pe=torch.zeros(1),
        **{
            "a.pos_encoder.pe": torch.zeros(1),
            "idx_tensor": torch.arange(66),
            "norm.num_batches_tracked": torch.tensor(7),
            "detector.fc_exp.weight": torch.zeros(2, 2),
        },
    )
    assert checked_state_dict(on_meta(), pair).keys() == Temporal().state_dict().keys()


@pytest.mark.parametrize("name", ["denoising_unet", "temporal_module", "motion_extractor"])
def test_unknown_keys_that_the_authors_tool_passes_over_are_named_in_the_log(tmp_path, pair, caplog, name):
    caplog.set_level("INFO")
    path = write(tmp_path, name, **{"training.head": torch.zeros(1)})
    found = checked_state_dict(on_meta(), pair if path in pair else [path])
    assert found.keys() == Temporal().state_dict().keys()
    assert f"{name}.pth: not used: training.head" in caplog.text


@pytest.mark.parametrize("name", ["reference_unet", "motion_encoder", "pose_guider"])
def test_unknown_keys_of_the_others_are_errors(tmp_path, name):
    with pytest.raises(InputError, match=rf"{name}\.pth has unknown keys: training\.head"):
        checked_state_dict(on_meta(), [write(tmp_path, name, **{"training.head": torch.zeros(1)})])


def test_a_key_in_both_files_is_taken_from_the_temporal_module(tmp_path, pair):
    shared = {"level.temporal_modules.0.bias": torch.full((3,), 1.0), "conv.bias": torch.full((3,), 1.0)}
    other = {key: torch.full((3,), 2.0) for key in shared}
    write(tmp_path, "denoising_unet", **shared)
    write(tmp_path, "temporal_module", **other)
    found = checked_state_dict(on_meta(), pair)
    assert all(torch.equal(found[key], value) for key, value in other.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv.bias": None}, r"denoising_unet\.pth lacks conv\.bias"),
        ({"conv.bias": torch.zeros(4)}, r"denoising_unet\.pth has other shapes: conv\.bias \(4,\) in place of \(3,\)"),
        ({"conv.bias": torch.zeros(3, dtype=torch.int64)}, r"not floating point at conv\.bias torch\.int64"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(tmp_path, pair, changes, message):
    write(tmp_path, "denoising_unet", **changes)
    with pytest.raises(InputError, match=message):
        load_network(on_meta(), pair)


def test_a_missing_temporal_key_is_missed_in_the_temporal_file(tmp_path, pair):
    write(tmp_path, "temporal_module", **{"level.temporal_modules.0.bias": None})
    with pytest.raises(InputError, match=r"temporal_module\.pth lacks level\.temporal_modules\.0\.bias"):
        load_network(on_meta(), pair)


def test_the_published_key_lists_fit_the_networks(monkeypatch):
    def listed(path):
        shapes = json.loads((MANIFESTS / f"{path.stem}.json").read_text())
        return {key: StoredWeight(path, StoredTensor(torch.float32, shape, (), 0)) for key, shape in shapes.items()}

    monkeypatch.setattr(loading, "open_checkpoint", listed)
    for name, network in meta_networks().items():
        checked_weights(network, [Path(f"{file}.pth") for file in NETWORK_FILES[name]])


@pytest.fixture
def six(tmp_path, monkeypatch) -> WeightFiles:
    """A whole small set, of one network standing in for all five."""
    monkeypatch.setattr(converting, "meta_networks", lambda config: dict.fromkeys(NETWORK_FILES, on_meta()))
    for name in CHECKPOINTS:
        write(tmp_path / "from", name, pe=torch.zeros(1))
    return find_weights(tmp_path / "from")


def test_convert(six, tmp_path):
    target, calls = tmp_path / "to", []
    convert(six, target, progress=lambda *call: calls.append(call))
    assert sorted(path.name for path in target.iterdir()) == sorted(f"{name}.safetensors" for name in CHECKPOINTS)
    encoder, extractor = (
        load_file(target / "motion_encoder.safetensors"),
        load_file(target / "motion_extractor.safetensors"),
    )
    assert "pe" not in encoder
    assert {value.dtype for value in encoder.values()} == {torch.float16}
    assert torch.equal(extractor["conv.weight"], load_checkpoint(six.motion_extractor)["conv.weight"])
    assert list(dict.fromkeys(name for name, _, _ in calls)) == [f"{name}.safetensors" for name in CHECKPOINTS]
    assert calls[-1][1] == calls[-1][2] > 0
    converted = find_weights(target)
    assert {path.suffix for path in converted.paths("denoising_unet")} == {".safetensors"}
    load_network(on_meta(), converted.paths("denoising_unet"))

    calls.clear()
    (target / "pose_guider.safetensors").write_bytes(b"half")
    os.utime(target / "reference_unet.safetensors", (1000, 1000))  # older than its source
    convert(six, target, progress=lambda *call: calls.append(call))
    assert {name for name, _, _ in calls} == {"pose_guider.safetensors", "reference_unet.safetensors"}


def test_convert_can_be_stopped_and_leaves_no_half_file(six, tmp_path):
    def stop(name, done, total):
        if name == "reference_unet.safetensors":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(six, tmp_path / "to", progress=stop)
    left = sorted(path.name for path in (tmp_path / "to").iterdir())
    assert left == ["denoising_unet.safetensors", "temporal_module.safetensors"]


def test_convert_writes_nothing_of_a_set_that_does_not_fit(six, tmp_path):
    write(six.folder, "pose_guider", **{"conv.bias": None})
    with pytest.raises(InputError, match="lacks"):
        convert(six, tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("value", [1e5, -1e5, float("nan")])
def test_convert_refuses_values_that_float16_cannot_hold(six, tmp_path, value):
    write(six.folder, "pose_guider", **{"conv.bias": torch.tensor([0, value, 0])})
    with pytest.raises(InputError, match=r"conv\.bias in .*pose_guider\.pth goes from"):
        convert(six, tmp_path / "to")
    assert not (tmp_path / "to/pose_guider.safetensors").exists()


def test_convert_asks_for_disk_first(six, tmp_path, monkeypatch):
    monkeypatch.setattr(converting.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(InputError, match="GB free"):
        convert(six, tmp_path / "to")
