"""`animate --split`: from pieces one file, with the frames, times and sound of one run."""

from argparse import Namespace
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from commands import RATE, animate
from safetensors.torch import load_file

from clips import write_clip, write_source
from motions import motion_of
from personalive_core.batch.driver import Outcome
from personalive_core.batch.jobs import Job
from personalive_core.cli import animate as animate_module
from personalive_core.cli import batch, outputs, split, worker
from personalive_core.cli.outputs import Checkpoint
from personalive_core.cli.split import Pieces, pieces_folder, pieces_that_pay
from personalive_core.config import CHUNK, WARM_UP
from personalive_core.media import video_writer
from personalive_core.media.video_reader import VideoReader
from personalive_core.media.video_writer import VideoWriter, partial_path


def brightness(number: int) -> int:
    return 30 + 37 * number % 180


def shows(frames: list[tuple], count: int) -> bool:
    """Whether these are the frames from 0 on, but for what the codec changes."""
    expected = [brightness(i) for i in range(count)]
    return len(frames) == count and np.abs(np.array(expected) - [value for _, value in frames]).max() <= 2


class NumberedFrames:
    """A pipeline without networks: each frame has a brightness of its own."""

    motion_extractor, device = None, torch.device("cpu")

    def __init__(self) -> None:
        self.pieces: list[range] = []
        self.stops_at: int | None = None

    def encode_reference(self, picture):
        return SimpleNamespace(motion=motion_of("portrait", 1))

    def motions(self, frames, hold):
        yield motion_of("driving", sum(1 for _ in frames))

    def animate_motion(self, reference, motions, **settings):
        return self._frames(range(sum(len(motion) for motion in motions)))

    def animate_piece(self, reference, motion, piece, *, resume, watch, **settings):
        done = load_file(resume)["done"].item() if resume else 0
        self.pieces.append(piece[done:])
        for chunk in self._frames(piece[done:]):
            yield chunk
            done += len(chunk)
            tensors = {"done": torch.tensor(done)}
            watch(SimpleNamespace(window=(piece.start + done + WARM_UP) // CHUNK, tensors=lambda: tensors))  # noqa: B023

    def _frames(self, numbers):
        numbers = iter(numbers)
        while chunk := list(islice(numbers, 4)):
            if self.stops_at in chunk:
                raise KeyboardInterrupt
            yield np.stack([np.full((128, 128, 3), brightness(i), np.uint8) for i in chunk])


@pytest.fixture
def pipeline(monkeypatch) -> NumberedFrames:
    pipeline = NumberedFrames()
    for module in (animate_module, split, worker):
        monkeypatch.setattr(module, "load_pipeline", lambda options: pipeline)
    return pipeline


@pytest.fixture
def driving(tmp_path) -> Path:
    """130 frames of a varying rate, with sound that begins late."""
    ticks = np.cumsum(np.random.default_rng(1).integers(800, 1300, 130)).tolist()
    sound = write_source(tmp_path / "sound.mp4", seconds=6)
    with VideoWriter(tmp_path / "driving.mp4", 128, 96, RATE, audio_from=sound, time_base=1 / RATE / 1001) as video:
        for tick in ticks:
            video.write(np.full((96, 128, 3), tick % 200, np.uint8), (tick - ticks[0]) / RATE / 1001)
    return tmp_path / "driving.mp4"


def read(path: Path):
    with VideoReader(path) as video, av.open(str(path)) as container:
        frames = [(frame.time, round(float(frame.pixels.mean()))) for frame in video]
        return frames, video.metadata, [(p.pts, p.duration, p.size, p.stream_index) for p in container.demux()]


ALL = ["--max-frames", "0", "--keyframes", "0"]  # without keyframes a piece may be short


@pytest.mark.parametrize("more, frames", [([], 130), (["--start", "7"], 123), (["--frame-rate", "20"], None)])
def test_a_split_video_is_as_one_run(pipeline, portrait, driving, tmp_path, capsys, more, frames):
    whole, joined = tmp_path / "whole.mp4", tmp_path / "joined.mp4"
    assert animate(tmp_path, portrait, driving, whole, *ALL, *more) == 0
    assert animate(tmp_path, portrait, driving, joined, *ALL, *more, "--split", "3") == 0
    assert len(pipeline.pieces) == 3
    (numbers, *rest), (expected, *rest_of_whole) = read(joined), read(whole)
    frames = frames or len(expected)
    assert f"{joined}: {frames} frames" in capsys.readouterr().out
    assert shows(numbers, frames)
    assert [time for time, _ in numbers] == [time for time, _ in expected]
    assert rest[0] == rest_of_whole[0] and rest[0].has_audio
    sound, sound_of_whole = ([p for p in packets if p[-1] == 1] for packets in (rest[1], rest_of_whole[1]))
    assert sound == sound_of_whole and len(sound) > 100
    assert not pieces_folder(joined).exists()


def test_what_is_done_of_a_split_video_is_kept(pipeline, portrait, driving, tmp_path, capsys):
    output, run = tmp_path / "out.mp4", [*ALL, "--split", "3"]
    pipeline.stops_at = 80
    assert animate(tmp_path, portrait, driving, output, *run) == 130
    assert f"the same command with -o {output} goes on" in capsys.readouterr().err
    first = pipeline.pieces[0]
    assert first.stop <= 80 and not output.exists()
    assert len(list(pieces_folder(output).glob("[!.]*"))) == 1

    pipeline.stops_at, pipeline.pieces = None, []
    assert animate(tmp_path, portrait, driving, output, *run) == 0
    assert first not in pipeline.pieces and len(pipeline.pieces) == 2
    assert shows(read(output)[0], 130)


def test_a_piece_that_was_stopped_goes_on(pipeline, portrait, driving, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "SAVE_EVERY", 0)
    for module in (outputs, video_writer):
        monkeypatch.setattr(module, "SEGMENT", 8)
    output, whole = tmp_path / "out.mp4", tmp_path / "whole.mp4"
    assert animate(tmp_path, portrait, driving, whole, *ALL, "--split", "2") == 0
    second = pipeline.pieces[1]
    pipeline.stops_at, pipeline.pieces = second.start + 40, []
    assert animate(tmp_path, portrait, driving, output, *ALL, "--split", "2") == 130
    pipeline.stops_at, pipeline.pieces = None, []
    assert animate(tmp_path, portrait, driving, output, *ALL, "--split", "2") == 0
    (rest,) = pipeline.pieces
    assert second.start < rest.start <= second.start + 40 and rest.stop == second.stop
    assert output.read_bytes() == whole.read_bytes()
    assert not pieces_folder(output).exists()


def test_what_an_unsplit_run_has_written_is_not_lost_unasked(pipeline, portrait, driving, tmp_path, capsys):
    (partial := partial_path(output := tmp_path / "out.mp4")).write_text("part of it")
    (checkpoint := Checkpoint(output, {}).path).touch()
    assert animate(tmp_path, portrait, driving, output, *ALL, "--split", "2") == 2
    assert f"{partial} is what a run without --split had written" in capsys.readouterr().err
    assert partial.read_text() == "part of it"
    assert animate(tmp_path, portrait, driving, output, *ALL, "--split", "2", "--overwrite") == 0
    assert shows(read(output)[0], 130)
    assert not partial.exists() and not checkpoint.exists()


def test_pieces_of_other_options_are_not_taken(pipeline, portrait, driving, tmp_path):
    output = tmp_path / "out.mp4"
    pipeline.stops_at = 80
    animate(tmp_path, portrait, driving, output, *ALL, "--split", "3")
    pipeline.stops_at, pipeline.pieces = None, []
    assert animate(tmp_path, portrait, driving, output, *ALL, "--split", "3", "--seed", "7") == 0
    assert len(pipeline.pieces) == 3


@pytest.mark.parametrize(
    "more, words",
    [
        (["--split", "1"], "must be 2 or more"),
        (["--split", "2", "--sheet", "a.png"], "--sheet does not go with --split"),
        (["--split", "2", "--save-motion", "a.safetensors"], "--save-motion does not go with --split"),
        (["--split", "50"], "130 frames are too few for 50 pieces: split them into 6"),
    ],
)
def test_what_cannot_be_split(pipeline, portrait, driving, tmp_path, capsys, more, words):
    assert animate(tmp_path, portrait, driving, tmp_path / "out.mp4", *ALL, *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_what_is_left_out_is_said_and_a_bad_video_stops_before_any_work(
    pipeline, portrait, driving, tmp_path, monkeypatch, capsys
):
    run = ["-L", "100", "--keyframes", "0", "--split", "2"]
    assert animate(tmp_path, portrait, driving, tmp_path / "out.mp4", *run) == 0
    assert "--max-frames 100 leaves out 30 frames of driving.mp4" in capsys.readouterr().err
    monkeypatch.setattr(split, "load_pipeline", None)  # the work
    (bad := tmp_path / "bad.mp4").write_text("no video")
    assert animate(tmp_path, portrait, bad, tmp_path / "other.mp4", *run) == 2
    assert str(bad) in capsys.readouterr().err


def test_a_driving_video_that_breaks_off_is_said(pipeline, portrait, tmp_path, capsys):
    whole = write_clip(tmp_path / "driving.mkv", [Fraction(i, 25) for i in range(200)]).read_bytes()
    (broken := tmp_path / "broken.mkv").write_bytes(whole[: len(whole) // 2])
    assert animate(tmp_path, portrait, broken, tmp_path / "out.mp4", *ALL, "--split", "2") == 0
    assert f"warning: {broken} breaks off" in capsys.readouterr().err


def job_of(portrait: Path, driving: Path, output: Path, **cells) -> Job:
    parser = batch.animate_parser(Namespace(weights=Path("weights"), gpus=0, download=False))
    cells = {"ref-image": portrait, "driving-video": driving, "width": 128, "height": 128, "max-frames": 0} | cells
    return batch.job_of(parser, cells, str(output.parent))


def test_a_worker_makes_pieces(pipeline, portrait, driving, tmp_path, monkeypatch):
    hired = worker.AnimateWorker(Namespace(), threads=1)
    monkeypatch.setattr(hired, "_pipeline", lambda options: pipeline)
    outcomes = list[Outcome]()
    pieces = Pieces([job_of(portrait, driving, tmp_path / "out", keyframes=0)], lambda job: 2, outcomes.append)
    assert {job.performance for job in pieces.jobs} == {pieces.jobs[0].performance} != {None}
    assert [job.parts for job in pieces.jobs] == [2, 2]
    for job in reversed(pieces.jobs):
        assert not outcomes and pieces.left == 1
        pieces.finished(Outcome(job, hired.animate(job, None, hired.extract(job))[0], seconds=2.0))
    assert [(outcome.frames, outcome.seconds, outcome.failure) for outcome in outcomes] == [(130, 4.0, "")]
    assert pieces.left == 0
    assert shows(read(Path(outcomes[0].job.output))[0], 130)


@pytest.mark.parametrize("option", ["crop-driving", "no-hold"])
def test_one_worker_extracts_where_frames_depend_on_those_before(portrait, driving, tmp_path, option):
    job = job_of(portrait, driving, tmp_path / "out", **{option: True})
    assert [job.parts for job in Pieces([job], lambda job: 2, print).jobs] == [1, 1]


def test_a_piece_that_fails_fails_its_video(portrait, driving, tmp_path):
    outcomes, job = list[Outcome](), job_of(portrait, driving, tmp_path / "out")
    pieces = Pieces([job], lambda job: 2, outcomes.append)
    pieces.finished(Outcome(pieces.jobs[0], 60))
    pieces.finished(Outcome(pieces.jobs[1], failure="no room"))
    assert [(outcome.job, outcome.failure) for outcome in outcomes] == [(job, "no room")]
    assert not Path(job.output).exists()


def test_long_films_are_split_where_workers_have_nothing_to_do(portrait, driving, tmp_path):
    job = replace(job_of(portrait, driving, tmp_path / "out"), frames=1531)
    assert [pieces_that_pay(job, most) for most in (0, 1, 3, 8)] == [1, 1, 3, 4]
    assert pieces_that_pay(replace(job, frames=300), 8) == 1
    assert pieces_that_pay(replace(job, frames=None), 8) == 1
    assert pieces_that_pay(replace(job, output="s3://bucket/out.mp4"), 8) == 1
    assert pieces_that_pay(replace(job, options=Namespace(**vars(job.options) | {"sheet": Path("a.png")})), 8) == 1
