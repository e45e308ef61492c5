"""The command line's options for motion: trouble in the driving video, motion files, strengths, parts and loops."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from commands import RATE, animate, frames_of, write_clip
from PIL import Image

from clips import read_sound, write_source
from face import draw_face
from personalive_core.cli.main import main
from personalive_core.media.video_reader import VideoReader
from personalive_core.media.video_writer import VideoWriter
from personalive_core.motion.motion_file import load_motion


def write_trouble(folder: Path) -> Path:
    """A face, black frames, the face, a scene cut; 1080 x 1920 at 29.97 frames a second, with sound."""
    write_source(folder / "tone.mov", seconds=1.2, onset=0.5)
    kinds = ["face"] * 6 + ["black"] * 3 + ["face"] * 8 + ["other"] * 7
    with VideoWriter(folder / "trouble.mp4", 1080, 1920, RATE, audio_from=folder / "tone.mov") as writer:
        for i, kind in enumerate(kinds):
            frame = Image.new("RGB", (1080, 1920), "#402010" if kind == "other" else "#cfd8dc")
            face = Image.fromarray(draw_face(yaw=np.sin(i / 3))).resize((900, 900))
            frame.paste(face, (90, 800 if kind == "other" else 200))
            pixels = np.asarray(frame)
            writer.write(np.zeros_like(pixels) if kind == "black" else pixels, i / RATE)
    return folder / "trouble.mp4"


def test_a_clip_with_trouble(weights, portrait, tmp_path, capsys):
    driving, output = write_trouble(tmp_path), tmp_path / "out.mp4"
    assert animate(weights, portrait, driving, output, "-L", "0", "--sheet", str(tmp_path / "sheet.png")) == 0
    assert "held the last good motion in 4 of 24 frames: 6 to 8 (no picture), 17 (scene cut)" in capsys.readouterr().err
    with VideoReader(driving) as before, VideoReader(output) as after:
        assert after.metadata.frame_rate == before.metadata.frame_rate == RATE
        assert [frame.time for frame in after] == [frame.time for frame in before]
    _, onset, end = read_sound(output)
    assert abs(onset - 0.5) < 0.03 and abs(end - 24 / RATE) < 1 / RATE
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (12 * 128, 3 * 128)


def test_a_clip_without_a_face_leaves_nothing(weights, portrait, tmp_path, capsys):
    with VideoWriter(tmp_path / "black.mp4", 64, 64, RATE) as writer:
        for i in range(5):
            writer.write(np.zeros((64, 64, 3), np.uint8), i / RATE)
    assert animate(weights, portrait, tmp_path / "black.mp4", tmp_path / "out.mp4") == 2
    assert "none of the 5 driving frames shows a face" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()
    assert animate(weights, portrait, tmp_path / "black.mp4", tmp_path / "out.mp4", "--no-hold") == 0


def test_one_motion_file_drives_two_portraits(weights, portrait, tmp_path):
    driving, file = write_clip(tmp_path / "driving.mp4", 7), tmp_path / "kept" / "a.motion.safetensors"
    strengths = ["--expression", "0.5", "--head-scale", "1"]
    assert animate(weights, portrait, driving, tmp_path / "a.mp4", "--save-motion", str(file), *strengths) == 0
    performance = load_motion(file)
    assert (len(performance.motion), performance.source, performance.frame_rate) == (7, "driving.mp4", RATE)
    assert (performance.strength.expression, performance.strength.scale) == (0.5, 1)

    def reuse(picture: Path, name: str, *more: str) -> np.ndarray:
        inputs = ["--ref_image", str(picture), "--motion", str(file), "--weights", str(weights)]
        size = ["-W", "128", "-H", "128", "--device", "cpu", "-o", str(tmp_path / name)]
        assert main(["animate", *inputs, *size, *more]) == 0
        return frames_of(tmp_path / name)

    direct = frames_of(tmp_path / "a.mp4")
    assert np.array_equal(reuse(portrait, "b.mp4"), direct)
    Image.fromarray(draw_face(hair="#101010", shirt="#ff0000")).save(tmp_path / "other.png")
    other = reuse(tmp_path / "other.png", "c.mp4")
    assert other.shape == direct.shape and not np.array_equal(other, direct)
    assert len(reuse(portrait, "d.mp4", "--start", "2", "--loop", "3", "--back-and-forth")) == 5 + 4 + 4


def test_a_part_at_another_rate_with_its_sound(weights, portrait, tmp_path):
    driving, output = write_source(tmp_path / "driving.mp4", seconds=1.2, onset=0.6), tmp_path / "out.mp4"
    more = ["--start", "5", "-L", "20", "--frame-rate", "30", "--smoothing", "2", "--mirror", "--no-hold"]
    assert animate(weights, portrait, driving, output, *more) == 0
    with VideoReader(output) as reader:
        assert reader.metadata.frame_rate == 30
        assert [frame.time for frame in reader] == [Fraction(i, 30) for i in range(24)]
    _, onset, end = read_sound(output)
    assert abs(onset - 0.4) < 0.03 and abs(end - 0.8) < 0.04


def test_strengths_of_one_change_no_bit(weights, portrait, tmp_path):
    driving = write_clip(tmp_path / "driving.mp4", 5)
    ones = [
        "--expression",
        "1",
        "--head-rotation",
        "1",
        "--head-translation",
        "1",
        "--head-scale",
        "0",
        "--neutral",
        "0",
    ]
    for name, more in (("a", []), ("b", ones), ("c", ["--expression", "0"])):
        assert animate(weights, portrait, driving, tmp_path / f"{name}.mp4", *more) == 0
    a, b, c = (frames_of(tmp_path / f"{name}.mp4") for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize(
    "more, words",
    [
        (["--start", "9"], "no driving frames from frame 9 on"),
        (["--expression", "4"], "expression is 4,"),
        (["--loop", "0"], "loop is 0"),
        (["--frame-rate", "0"], "frame rate is 0"),
        (["--neutral", "7"], "the neutral frame is 7"),
        (["--keyframes", "0", "--return-every", "1"], "at least 1 keyframe"),
        (["--save-motion", "out.mp4"], "would be overwritten"),
    ],
)
def test_bad_options_are_one_sentence(weights, portrait, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    driving = write_clip(tmp_path / "driving.mp4", 3)
    assert animate(weights, portrait, driving, tmp_path / "out.mp4", *more) == 2
    error = capsys.readouterr().err
    assert words in error and "error: " in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["driving.mp4", "portrait.png"]
