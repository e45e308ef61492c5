"""The command line with tiny weights on disk: what comes out, and one sentence for everything that cannot work."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import animate, frames_of, write_clip
from diffusers import AutoencoderTiny
from PIL import Image

from face import draw_face
from hub_stand_in import StandIn, use_hub
from personalive_core.cli import demo
from personalive_core.cli.main import main
from personalive_core.media.pictures import read_picture
from personalive_core.media.video_reader import VideoReader
from personalive_core.networks import fused
from personalive_core.weights import hub
from personalive_core.weights.find import EXAMPLE


@pytest.mark.parametrize(
    "frames, more, shape",
    [
        (1, [], (1, 128, 128, 3)),
        (5, ["-W", "136", "-H", "184"], (5, 184, 136, 3)),
        (6, ["-L", "5", "--steps", "8"], (5, 128, 128, 3)),
    ],
)
def test_as_many_frames_of_the_size(weights, portrait, tmp_path, frames, more, shape):
    driving = write_clip(tmp_path / "driving.mp4", frames)
    assert animate(weights, portrait, driving, tmp_path / "out.mp4", *more) == 0
    assert frames_of(tmp_path / "out.mp4").shape == shape


def test_seed_decides_and_converted_weights_do_the_same(weights, portrait, tmp_path, capsys):
    driving = write_clip(tmp_path / "driving.mp4", 3)
    assert animate(weights, portrait, driving, tmp_path / "a.mp4") == 0
    assert animate(weights, portrait, driving, tmp_path / "b.mp4") == 0
    assert animate(weights, portrait, driving, tmp_path / "c.mp4", "--seed", "43") == 0
    a, b, c = (frames_of(tmp_path / f"{name}.mp4").astype(float) for name in "abc")
    assert np.array_equal(a, b)
    assert abs(a - c).mean() > 1

    smaller = tmp_path / "smaller"
    shutil.copytree(weights, smaller)
    assert main(["convert", "--weights", str(smaller)]) == 0
    for file in smaller.glob("personalive/*.pth"):
        file.unlink()
    assert animate(smaller, portrait, driving, tmp_path / "d.mp4") == 0
    assert abs(a - frames_of(tmp_path / "d.mp4")).mean() < abs(a - c).mean() / 4
    assert main(["info", "--weights", str(smaller)]) == 0
    assert "missing" not in capsys.readouterr().out


def test_a_small_decoder_makes_other_frames_of_the_same_size(weights, portrait, tmp_path, capsys):
    AutoencoderTiny().save_pretrained(tmp_path / "taesd")
    driving = write_clip(tmp_path / "driving.mp4", 5)
    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    assert animate(weights, portrait, driving, small, "--small-decoder", str(tmp_path / "taesd")) == 0
    assert animate(weights, portrait, driving, large) == 0
    assert frames_of(small).shape == frames_of(large).shape
    assert not np.array_equal(frames_of(small), frames_of(large))
    assert animate(weights, portrait, driving, tmp_path / "bad.mp4", "--small-decoder", str(portrait)) == 2
    assert "cannot be loaded as AutoencoderTiny" in capsys.readouterr().err


def test_the_small_decoder_of_the_hub_by_one_switch(weights, portrait, tmp_path, monkeypatch, capsys):
    shutil.copytree(weights, tmp_path / "weights")
    AutoencoderTiny().save_pretrained(tmp_path / "hub")
    arguments = tmp_path / "weights", portrait, portrait, tmp_path / "out.mp4", "--small-decoder"
    assert animate(*arguments) == 2
    assert "the small decoder TAESD is not there yet" in capsys.readouterr().err
    files = tuple(replace(file, sha256=None) for file in hub.SMALL_DECODER)  # of another TAESD
    monkeypatch.setattr(hub, "SMALL_DECODER", files)
    with StandIn({}) as stand_in:
        use_hub(monkeypatch, stand_in.address)
        for file in files:
            stand_in.files[file.address.removeprefix(stand_in.address)] = (tmp_path / "hub" / file.path).read_bytes()
        assert animate(*arguments, "--download") == 0
        assert len(frames_of(tmp_path / "out.mp4")) == 1
        requests = stand_in.requests
        assert animate(*arguments, "--overwrite") == 0
        assert stand_in.requests == requests
    assert (tmp_path / "weights" / "taesd" / "config.json").is_file()


def test_a_picture_and_a_gif_drive_too(weights, portrait, tmp_path):
    faces = [Image.fromarray(draw_face(yaw)) for yaw in (-0.5, 0, 0.5)]
    faces[0].save(tmp_path / "driving.gif", save_all=True, append_images=faces[1:], duration=100)
    assert animate(weights, portrait, tmp_path / "driving.gif", tmp_path / "gif.mp4") == 0
    with VideoReader(tmp_path / "gif.mp4") as video:
        assert len(list(video)) == 3
    assert animate(weights, portrait, portrait, tmp_path / "picture.mp4") == 0
    with VideoReader(tmp_path / "picture.mp4") as video:
        assert len(list(video)) == 1


def test_a_file_cut_off_is_used_as_far_as_it_goes(weights, portrait, tmp_path, capsys):
    whole = write_clip(tmp_path / "whole.mkv", 40).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    assert animate(weights, portrait, tmp_path / "cut.mkv", tmp_path / "out.mp4", "-L", "0") == 0
    with VideoReader(tmp_path / "out.mp4") as video:
        assert 1 < len(list(video)) < 40
    assert "breaks off" in capsys.readouterr().err


class Evil:
    def __reduce__(self):
        return os.system, ("echo code in a checkpoint was run",)


def spoil(weights: Path, folder: Path, kind: str) -> Path:
    """A copy of the weights with one thing wrong."""
    shutil.copytree(weights, folder)
    file = folder / "personalive" / "pose_guider.pth"
    checkpoint = torch.load(file, weights_only=True)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
        return folder
    if kind == "code":
        torch.save({"conv_in.weight": Evil()}, file)
        return folder
    if kind == "missing":
        del checkpoint["conv_in.weight"]
    if kind == "extra":
        checkpoint["conv_in.more"] = torch.zeros(1)
    if kind == "misshapen":
        checkpoint["conv_in.weight"] = torch.zeros(8, 3, 1, 1)
    torch.save(checkpoint, file)
    return folder


@pytest.mark.parametrize(
    "kind, words",
    [
        ("truncated", ["pose_guider.pth", "1000 bytes"]),
        ("code", ["pose_guider.pth", "refused and not run"]),
        ("missing", ["pose_guider.pth", "conv_in.weight", "lacks"]),
        ("extra", ["pose_guider.pth", "conv_in.more", "unknown"]),
        ("misshapen", ["pose_guider.pth", "conv_in.weight (8, 3, 1, 1) in place of (8, 3, 3, 3)"]),
    ],
)
def test_a_bad_checkpoint_is_named(weights, portrait, tmp_path, capfd, kind, words):
    bad = spoil(weights, tmp_path / "bad", kind)
    assert animate(bad, portrait, portrait, tmp_path / "out" / "out.mp4") == 2
    captured = capfd.readouterr()
    for word in words:
        assert word in captured.err
    assert "was run" not in captured.out
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "more, words",
    [
        (["-W", "100"], "width is 100"),
        (["-H", "132"], "height is 132"),
        (["--steps", "5"], "steps is 5"),
        (["-L", "-1"], "--max-frames is -1"),
        (["--device", "cuda:99"], "device cuda:99"),
        (["--weights", "nowhere"], "download"),
        (["-o", "out.txt"], "out.txt"),
        (["--driving_video", __file__], "test_cli.py"),
        (["--ref_image", __file__], "test_cli.py"),
        (["--ref_image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_bad_input_is_one_sentence(weights, portrait, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    assert animate(weights, portrait, portrait, tmp_path / "out.mp4", *more) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_no_network_lists_what_to_fetch_by_hand(portrait, tmp_path, monkeypatch, capsys):
    use_hub(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "_TRIES", 1)
    assert animate(tmp_path / "none", portrait, portrait, tmp_path / "out.mp4", "--download") == 2
    assert "denoising_unet.pth" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_download_list_says_what_is_there(weights, capsys):
    assert main(["download", "--list", "--weights", str(weights)]) == 0
    text = capsys.readouterr().out
    assert "pretrained_weights/personalive/denoising_unet.pth" in text
    assert "to fetch  huaichang" not in text


def test_demo_moves_the_portrait_and_shows_the_right_answer(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "demo.mp4")]) == 0
    with VideoReader(tmp_path / "demo.mp4") as video, VideoReader(EXAMPLE / "driving.mp4") as driving:
        assert video.metadata.frame_rate == driving.metadata.frame_rate
        results = [frame.pixels for frame in video]
        assert len(results) == len(list(driving))
    sheet = read_picture(tmp_path / "demo.png")
    assert sheet.shape == (3 * 132 + 4, 9 * 132 + 4, 3)

    def tile(row: int, column: int) -> np.ndarray:
        y, x = 4 + 132 * row, 4 + 132 * column
        return sheet[y : y + 128, x : x + 128].astype(int)

    assert np.array_equal(tile(0, 0), read_picture(EXAMPLE / "portrait.png"))
    assert abs(tile(1, 4) - results[3 * len(results) // 8]).mean() < 4  # the one through the video's coding
    assert abs(tile(1, 4) - tile(2, 4)).mean() < abs(tile(0, 0) - tile(2, 4)).mean()
    assert "drawn faces alone" in capsys.readouterr().out


def test_demo_without_the_miniature_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "MINIATURE", tmp_path)
    assert main(["demo", "-o", str(tmp_path / "demo.mp4")]) == 2
    assert "the miniature's weights are not in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compiling_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.setattr(fused, "say_compiling", print)  # what it was comes back afterwards
    main(["info", "--weights", str(tmp_path)])
    capsys.readouterr()
    for _ in range(2):
        fused.say_compiling(fused.COMPILING)
    assert capsys.readouterr() == ("", f"{fused.COMPILING}\n")
