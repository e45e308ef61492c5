"""What the command line writes: nothing is lost by overwriting, stopping, killing or a full disk."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import animate, frames_of, write_clip
from PIL import Image

from face import draw_face
from personalive_core.cli import outputs as outputs_module
from personalive_core.cli.main import main
from personalive_core.cli.outputs import Checkpoint
from personalive_core.media import video_writer
from personalive_core.media.video_reader import VideoReader
from personalive_core.media.video_writer import VideoWriter, _PartialFile, find_partial, partial_path
from personalive_core.motion.motion_file import load_motion
from personalive_core.pipeline import Pipeline
from personalive_core.weights.find import EXAMPLE, MINIATURE

posix = pytest.mark.skipif(sys.platform == "win32", reason="sends signals, which Windows does not know")


def picture_files(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(draw_face(i / 10)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("kind", ["path", "link", "linked folder", "hard link"])
def test_no_name_of_an_input_is_written_to(weights, portrait, tmp_path, capsys, kind):
    driving = write_clip(tmp_path / "driving.mp4", 2)
    (tmp_path / "sub").mkdir()
    name = tmp_path / "sub" / ".." / "driving.mp4"
    if kind == "link":
        (name := tmp_path / "link.mp4").symlink_to(driving)
    if kind == "linked folder":
        (tmp_path / "folder").symlink_to(tmp_path)
        name = tmp_path / "folder" / "driving.mp4"
    if kind == "hard link":
        os.link(driving, name := tmp_path / "hard.mp4")
    before = driving.read_bytes()
    assert animate(weights, portrait, driving, name, "--overwrite") == 2
    error = capsys.readouterr().err
    assert "--output" in error and "--driving-video" in error and "would be overwritten" in error
    assert driving.read_bytes() == before


def test_no_side_output_takes_the_place_of_another_file(weights, portrait, tmp_path, capsys):
    folder = picture_files(tmp_path)
    for more, words in (
        (["--crop", "--crop-preview", str(portrait)], "--ref-image"),
        (["--sheet", str(folder / "1.png")], "--driving-video"),
        (["--sheet", str(tmp_path / "a.png"), "--crop", "--crop-preview", str(tmp_path / "A.png")], "--crop-preview"),
        (["--save-motion", str(tmp_path / "OUT.mp4")], "--output"),
    ):
        assert animate(weights, portrait, folder, tmp_path / "out.mp4", "--overwrite", *more) == 2
        error = capsys.readouterr().err
        assert words in error and "would be overwritten" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "portrait.png"]


@pytest.mark.parametrize(
    "more, words",
    [
        (["--sheet", "sheet"], "must end in .png"),
        (["--sheet", "folder.png"], "is a folder"),
        (["--sheet", "portrait.png/sheet.png"], "is not a folder"),
        (["--crop", "--crop-preview", "preview.txt"], "must end in .png"),
        (["--save-motion", "folder.safetensors"], "is a folder"),
        (["--save-motion", "portrait.png/a.safetensors"], "is not a folder"),
        (["--save-motion", "motion.png"], "must end in .safetensors"),
        (["-o", "there.mp4"], "there.mp4 exists already"),
        (["-o", "a" * 240 + ".mp4"], "244 bytes long"),
    ],
)
def test_side_outputs_are_refused_before_any_work(weights, portrait, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    for name in ("folder.png", "folder.safetensors"):
        (tmp_path / name).mkdir()
    (tmp_path / "there.mp4").write_text("kept")
    monkeypatch.setattr(Pipeline, "load", None)  # the work
    assert animate(weights, portrait, portrait, tmp_path / "out.mp4", *more) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ")
    assert (tmp_path / "there.mp4").read_text() == "kept"
    assert not (tmp_path / "out.mp4").exists()


def test_the_demo_overwrites_nothing_either(tmp_path, capsys):
    for name, words in (("a.mp4", "a.png exists already"), (EXAMPLE / "driving.mp4", "would be overwritten")):
        (tmp_path / "a.png").write_text("kept")
        assert main(["demo", "-o", str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_overwrite_replaces(weights, portrait, tmp_path):
    (tmp_path / "out.mp4").write_text("old")
    assert animate(weights, portrait, portrait, tmp_path / "out.mp4", "--overwrite") == 0
    assert len(frames_of(tmp_path / "out.mp4")) == 1


def test_a_side_output_that_fails_at_the_end_leaves_the_video_and_its_line(
    weights, portrait, tmp_path, monkeypatch, capsys
):
    def fail(image, path):
        raise OSError("out of paper")

    monkeypatch.setattr(Image.Image, "save", fail)
    assert animate(weights, portrait, portrait, tmp_path / "out.mp4", "--sheet", str(tmp_path / "sheet.png")) == 2
    captured = capsys.readouterr()
    assert "out.mp4: 1 frames" in captured.out
    assert "sheet.png cannot be written (out of paper)" in captured.err


@pytest.mark.parametrize("source", ["video", "motion"])
def test_frames_left_out_are_counted(weights, portrait, tmp_path, capsys, source):
    driving, motion = write_clip(tmp_path / "driving.mp4", 7), tmp_path / "a.motion.safetensors"
    options = ["-L", "2"] if source == "video" else ["-L", "0", "--save-motion", str(motion)]
    assert animate(weights, portrait, driving, tmp_path / "out.mp4", "--start", "1", *options) == 0
    if source == "motion":
        assert "leaves out" not in capsys.readouterr().err
        inputs = ["--ref-image", str(portrait), "--motion", str(motion), "--weights", str(weights), "-L", "2"]
        output = str(tmp_path / "b.mp4")
        assert main(["animate", *inputs, "-o", output, "-W", "128", "-H", "128", "--device", "cpu"]) == 0
    expected = {"video": 4, "motion": 4}[source]
    assert f"--max-frames 2 leaves out {expected} frames of driving.mp4; --max-frames 0 takes all" in (
        capsys.readouterr().err
    )


def test_two_runs_to_one_output(weights, portrait, tmp_path, capsys):
    with VideoWriter(tmp_path / "out.mp4", 64, 64, Fraction(25)) as video:
        for i in range(50):
            video.write(np.zeros((64, 64, 3), np.uint8), Fraction(i, 25))
        video._wait()
        for flag in [], ["--resume"], ["--overwrite"]:
            assert animate(weights, portrait, portrait, tmp_path / "out.mp4", *flag) == 2
            assert "out.mp4 is being written by another run" in capsys.readouterr().err
    assert len(list(VideoReader(tmp_path / "out.mp4"))) == 50


@pytest.fixture
def short_segments(monkeypatch):
    for module in outputs_module, video_writer:
        monkeypatch.setattr(module, "SEGMENT", 8)


@pytest.mark.usefixtures("short_segments")
def test_a_full_disk_leaves_what_plays_and_resume_makes_the_same_video(portrait, tmp_path, monkeypatch, capsys):
    driving, whole, output = write_clip(tmp_path / "driving.mp4", 28), tmp_path / "whole.mp4", tmp_path / "out.mp4"
    options = ["-L", "0", "--sheet", str(tmp_path / "sheet.png"), "--save-motion", str(tmp_path / "a.safetensors")]
    assert animate(MINIATURE, portrait, driving, whole, *options) == 0
    sheet, motion = (tmp_path / "sheet.png").read_bytes(), load_motion(tmp_path / "a.safetensors").motion.tensors()

    monkeypatch.setattr(outputs_module, "SAVE_EVERY", 0)
    append, written = _PartialFile.append, 0

    def full(self, data):
        nonlocal written
        written += data.count(b"mdat")
        if written > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(_PartialFile, "append", full)
        assert animate(MINIATURE, portrait, driving, output, "--overwrite", *options) == 2
    error = capsys.readouterr().err
    assert "the disk is full" in error and ".out.mp4.partial.mp4 is what was written; it plays" in error
    with VideoReader(partial_path(output)) as video:
        assert 8 < len(list(video)) <= 20
    assert animate(MINIATURE, portrait, driving, output, "--overwrite", "--resume", "--seed", "1", *options) == 2
    assert "the run to resume had --seed 42, not 1" in capsys.readouterr().err
    (tmp_path / "sheet.png").unlink()
    (tmp_path / "a.safetensors").unlink()
    assert animate(MINIATURE, portrait, driving, output, *options) == 2
    assert "is what a run that ended early had written" in capsys.readouterr().err

    assert animate(MINIATURE, portrait, driving, output, "--resume", *options) == 0
    assert "nothing to resume" not in capsys.readouterr().err
    assert output.read_bytes() == whole.read_bytes()
    assert (tmp_path / "sheet.png").read_bytes() == sheet
    again = load_motion(tmp_path / "a.safetensors").motion.tensors()
    assert all(torch.equal(again[key], value) for key, value in motion.items())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


RUN = """
import sys
from personalive_core.cli import main, outputs
from personalive_core.media import video_writer
outputs.SAVE_EVERY = 0
outputs.SEGMENT = video_writer.SEGMENT = int(sys.argv[1])
sys.exit(main.main(sys.argv[2:]))
"""


def start(driving: Path, portrait: Path, output: Path, *more: str) -> subprocess.Popen:
    inputs = ["--ref-image", portrait, "--driving-video", driving, "--weights", MINIATURE, "-o", output, "-L", "0"]
    command = [sys.executable, "-c", RUN, str(video_writer.SEGMENT), "animate", *inputs, *more]
    command += ["-W", "128", "-H", "128", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    return subprocess.Popen(command, **pipes, env=environment, preexec_fn=heed_signals)


def heed_signals() -> None:
    """A shell's background jobs inherit that SIGINT is ignored, and those of nohup SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def wait_until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.01)


def kill_and_resume(driving: Path, portrait: Path, whole: Path, moment: Callable[[Path], bool]) -> None:
    """`whole` is what an unbroken run made; `moment` says, of an output, whether it is time for the kill."""
    output, expected = whole.with_name("out.mp4"), frames_of(whole)
    process = start(driving, portrait, output)
    wait_until(process, lambda: moment(output))
    process.kill()
    process.communicate()
    assert not output.exists()
    with VideoReader(find_partial(output)) as video:
        played = [frame.pixels for frame in video]
    assert np.array_equal(played, expected[: len(played)])
    assert animate(MINIATURE, portrait, driving, output, "-L", "0", "--resume") == 0
    assert np.array_equal(frames_of(output), expected)
    assert output.read_bytes() == whole.read_bytes()
    output.unlink()


@posix
@pytest.mark.usefixtures("short_segments")
def test_a_killed_run_plays_and_is_resumed_bit_for_bit(portrait, tmp_path, capsys):
    driving, whole = write_clip(tmp_path / "driving.mp4", 32), tmp_path / "whole.mp4"
    assert animate(MINIATURE, portrait, driving, whole, "-L", "0") == 0
    kill_and_resume(driving, portrait, whole, lambda output: Checkpoint(output, {}).path.is_file())
    assert "nothing to resume" not in capsys.readouterr().err


@posix
@pytest.mark.quality
def test_ten_killed_runs_play_and_are_resumed_bit_for_bit(portrait, tmp_path):
    driving, whole = write_clip(tmp_path / "driving.mp4", 200), tmp_path / "whole.mp4"
    assert animate(MINIATURE, portrait, driving, whole, "-L", "0") == 0
    for part in np.random.default_rng(0).uniform(0.05, 0.9, 10):
        size = int(part * whole.stat().st_size)
        kill_and_resume(driving, portrait, whole, lambda output, size=size: size_of(partial_path(output)) > size)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)])
def test_signals_end_a_run_as_ctrl_c_does(portrait, tmp_path, number):
    driving, output = write_clip(tmp_path / "driving.mp4", 200), tmp_path / "out.mp4"
    motion = tmp_path / "a.safetensors"
    process = start(driving, portrait, output, "--save-motion", str(motion), "--sheet", str(tmp_path / "sheet.png"))
    wait_until(process, lambda: size_of(partial_path(output)) > 2000)
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, errors
    frames = frames_of(output)
    assert 1 <= len(frames) < 200 and f"stopped after {len(frames)} frames" in errors
    assert len(load_motion(motion).motion) == len(frames)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width >= 128
    names = ["a.safetensors", "driving.mp4", "out.mp4", "portrait.png", "sheet.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
