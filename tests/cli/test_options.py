"""Options that cannot be, or do nothing alone; weights of another kind; consoles that are closed, full or Western."""

import io
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import animate
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from personalive_core.cli.main import _parser, _prepared, main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "more, words",
    [
        (["--frame-rate", "1/0"], "the frame rate is '1/0'"),
        (["--frame-rate", "1e999999999"], "the frame rate is '1e999999999'"),
        (["--frame-rate", "nan"], "the frame rate is 'nan'"),
        (["--frame-rate", "-25"], "frame rate is -25, but must be from 1 to 240"),
        (["-W", "1000000"], "width is 1000000, but must be a multiple of 8 from 128 to 2048: try 2048"),
        (["-H", "9" * 400], "height is 9999"),
        (["--steps", "4000000000"], "a multiple of 4 up to 1000"),
        (["--smoothing", "nan"], "smoothing is nan, but must be from 0 to 100"),
        (["--smoothing", "inf"], "smoothing is inf"),
        (["--smoothing", "1e9"], "smoothing is 1e+09"),
        (["--expression", "nan"], "expression is nan"),
        (["--loop", "1000000000"], "loop is 1000000000, but must be from 1 to 10000"),
        (["--loop", "9" * 400], "loop is 9999"),
        (["--start", "9" * 30], "must be from 0 to 1000000000"),
        (["--start", "-1"], "start is -1"),
        (["-L", "9" * 30], "must be from 0 to 1000000000"),
        (["--return-every", "nan"], "return every is nan seconds"),
        (["--return-every", "inf"], "return every is inf seconds"),
        (["--return-every", "-1"], "return every is -1 seconds"),
        (["--keyframe-threshold", "nan"], "the keyframe threshold is nan"),
        (["--keyframe-threshold", "-1e-3"], "the keyframe threshold is -0.001"),
        (["--keyframes", "1000000000"], "the limit is 1000000000 keyframes, but must be from 0 to 16"),
        (["--keyframes", "-1"], "the limit is -1 keyframes"),
        (["--crop", "nan,nan,nan"], "the square at nan, nan of side nan lies outside"),
        (["--crop", "0,0,inf"], "the square of side inf is far larger"),
        (["--crop", "-10,-10,5"], "the square at -10, -10 of side 5 lies outside"),
        (["--crop", "--margin", "nan"], "the margin is nan"),
        (["--paste-back", "--feather", "nan"], "feather is nan"),
        (["--device", "meta"], "device meta cannot be used here"),
        (["--device", "cpu", "--vram", "6"], "--vram is for CUDA GPUs, and the device is cpu: leave it out"),
        (["--vram", "0"], "--vram is '0': give a number of GB from 1 to 1000, or auto"),
        (["--vram", "8 GB"], "--vram is '8 GB'"),
        (["--vram", "nan"], "--vram is 'nan'"),
        (["--weights", "w" * 300], "10 weight files are not in"),
    ],
)
def test_what_cannot_be_is_one_sentence(portrait, tmp_path, capsys, more, words):
    weights = tmp_path / "none"
    assert animate(weights, portrait, portrait, tmp_path / "out.mp4", *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error
    assert [path.name for path in tmp_path.iterdir()] == [portrait.name]


@pytest.mark.parametrize(
    "more, needed",
    [
        (["--face", "1"], "--detector"),
        (["--crop", "--face", "centre"], "--detector"),
        (["--detector", "yunet"], "--crop (without numbers) or --crop-driving"),
        (["--detector", "yunet", "--crop", "0,0,64"], "--crop (without numbers) or --crop-driving"),
        (["--refine", "--crop"], "--crop and --detector"),
        (["--margin", "1"], "--crop (without numbers) or --crop-driving"),
        (["--vertical-offset", "-.5"], "--crop (without numbers) or --crop-driving"),
        (["--crop-preview", "crop.png"], "--crop or --paste-back"),
        (["--crop-preview", "crop.png", "--crop-driving"], "--crop or --paste-back"),
        (["--feather", "0.2", "--crop"], "--paste-back"),
        (["--match-colours"], "--paste-back"),
        (["--back-and-forth"], "--loop"),
    ],
)
def test_an_option_that_does_nothing_names_the_one_that_it_needs(portrait, tmp_path, capsys, more, needed):
    assert animate(tmp_path / "none", portrait, portrait, tmp_path / "out.mp4", *more) == 2
    assert f" does nothing without {needed}: add " in capsys.readouterr().err


def test_no_hold_needs_a_video(portrait, tmp_path, capsys):
    arguments = ["animate", "--ref-image", str(portrait), "--motion", "a.motion.safetensors", "--no-hold"]
    assert main(arguments) == 2
    assert "--no-hold needs the driving video" in capsys.readouterr().err


def test_values_that_begin_with_a_minus():
    inputs = ["animate", "--ref_image", "a_b", "--driving_video=c_d"]
    options = _parser().parse_args(_prepared([*inputs, "--crop", "-10,-10,80", "--margin", "-.5", "-L", "-1"]))
    assert (options.ref_image, options.driving_video) == (Path("a_b"), Path("c_d"))
    assert (options.crop, options.margin, options.max_frames) == ("-10,-10,80", -0.5, -1)


def test_a_square_that_hangs_over_the_corner(weights, portrait, tmp_path):
    assert animate(weights, portrait, portrait, tmp_path / "out.mp4", "--crop", "-10,-10,80") == 0


def test_half_precision_that_overflows_is_one_sentence(weights, portrait, tmp_path, capsys):
    shutil.copytree(weights, tmp_path / "weights")
    path = tmp_path / "weights/sd-vae-ft-mse/diffusion_pytorch_model.safetensors"
    vae = load_file(path)
    vae["decoder.conv_in.bias"] += 1e6  # finite in float32 alone
    save_file(vae, path, {"format": "pt"})
    assert animate(tmp_path / "weights", portrait, portrait, tmp_path / "out.mp4", "--dtype", "fp16") == 2
    assert "not finite (NaN): choose another precision, bf16 or fp32" in capsys.readouterr().err


def test_a_folder_of_another_kind_is_no_small_decoder(weights, portrait, tmp_path, capsys):
    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path / "wide")
    AutoencoderTiny().save_pretrained(tmp_path / "more")
    path = tmp_path / "more" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path) | {"decoder.more": torch.zeros(1)}, path, {"format": "pt"})
    for folder, words in (
        (tmp_path / "more", "it has unknown keys: decoder.more)"),
        (weights / "sd-vae-ft-mse", "it lacks decoder.layers."),
        (tmp_path / "wide", "its latent_channels is 16 in place of 4"),
    ):
        assert animate(weights, portrait, portrait, tmp_path / "out.mp4", "--small-decoder", str(folder)) == 2
        assert f"{folder} cannot be loaded as AutoencoderTiny ({words}" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["vae", "image encoder"])
def test_weights_that_are_missing_are_named(weights, portrait, tmp_path, capsys, part):
    shutil.copytree(weights, tmp_path / "weights")
    if part == "vae":
        path, key = tmp_path / "weights/sd-vae-ft-mse/diffusion_pytorch_model.safetensors", "encoder.conv_in.weight"
        save_file({k: v for k, v in load_file(path).items() if k != key}, path, {"format": "pt"})
    else:
        path = tmp_path / "weights/sd-image-variations-diffusers/image_encoder/pytorch_model.bin"
        key = "visual_projection.weight"
        torch.save({k: v for k, v in torch.load(path, weights_only=True).items() if k != key}, path)
    assert animate(tmp_path / "weights", portrait, portrait, tmp_path / "out.mp4") == 2
    assert f"it lacks {key}" in capsys.readouterr().err


LIST = ["download", "--list", "--weights"]


def test_names_that_the_console_cannot_show(tmp_path, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    assert main([*LIST, str(tmp_path / "日本")]) == 0
    assert rb"\u65e5\u672c" in console.buffer.getvalue()


@pytest.mark.parametrize("arguments", [[*LIST, "none"], ["animate", "--help"]])
def test_a_closed_standard_output_is_quiet(monkeypatch, capfd, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(arguments) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_standard_output_is_one_sentence(monkeypatch, capsys):
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([*LIST, "none"]) == 1
    assert capsys.readouterr().err.startswith("error: standard output cannot be written (No space left")


def test_no_standard_streams_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main([*LIST, "none"]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT, which Windows does not know")
def test_an_interrupt_while_pytorch_is_imported(tmp_path):
    """By a module that swallows the exception, as PyTorch's own does at times."""
    swallow = "try:\n os.kill(os.getpid(), signal.SIGINT)\n time.sleep(9)\nexcept BaseException: pass"
    (tmp_path / "torch.py").write_text(f"import os, signal, time\n{swallow}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit that it is ignored
    run = subprocess.run(
        [sys.executable, "-m", "personalive_core", "info"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=heed,
    )
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "interrupted\n")
