"""A batch on two workers: every good job's video is that of a single run, whatever dies meanwhile."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from workers import MortalWorker

from face import draw_face
from personalive_core.cli import worker
from personalive_core.cli.main import main
from personalive_core.media.video_reader import VideoReader
from personalive_core.media.video_writer import partial_path
from personalive_core.weights.find import EXAMPLE, MINIATURE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ray's Windows is another one")
SIZE = ["-W", "128", "-H", "128", "--device", "cpu", "--weights", str(MINIATURE)]


def batch(*arguments: object) -> int:
    more = ["--weights", MINIATURE, "--gpus", 0, "--workers", 2, "--set", "width=128", "--set", "height=128"]
    return main(["batch", *map(str, (*arguments, *more))])


@pytest.fixture
def mortal(monkeypatch):
    monkeypatch.setattr(worker, "AnimateWorker", MortalWorker)


@pytest.mark.slow
@pytest.mark.usefixtures("ray", "mortal")
def test_two_workers_six_jobs_one_bad_and_one_kill(tmp_path, capsys):
    portrait, other, bad = EXAMPLE / "portrait.png", tmp_path / "other.png", tmp_path / "bad.png"
    Image.fromarray(draw_face(0.3)).resize((128, 128)).save(other)
    bad.write_text("no picture")
    rows = [  # name, portrait, more
        ("killed", portrait, {"max_frames": 20}),
        ("shared", other, {"max_frames": 5}),
        ("adjusted", portrait, {"max_frames": 5, "smoothing": 2}),
        ("sheet", other, {"max_frames": 4, "sheet": tmp_path / "sheet.png"}),
        ("other", portrait, {"max_frames": 4, "seed": 7}),
        ("bad", bad, {"max_frames": 5}),
    ]
    names = ("portrait", "driving", "output", "max_frames", "smoothing", "sheet", "seed")
    with (tmp_path / "jobs.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        for name, picture, more in rows:
            table.writerow({"portrait": picture, "driving": EXAMPLE / "driving.mp4", "output": f"{name}.mp4"} | more)
    out = tmp_path / "out"

    assert batch(tmp_path / "jobs.csv", "-o", out, "--json") == 2
    printed = capsys.readouterr()
    assert "1 of 6 videos could not be made" in printed.err
    events = [json.loads(line) for line in printed.out.splitlines()]
    assert events[0]["event"] == "begin" and events[0]["workers"] == 2
    assert (events[-1]["done"], events[-1]["failed"], events[-1]["there"]) == (5, 1, 0)
    errors = {Path(event["output"]).stem: event["error"] for event in events if event["event"] == "job"}
    assert len(errors) == 6 and errors.pop("bad").startswith(f"{bad} ") and set(errors.values()) == {None}
    assert 8 < int((out / "killed.killed").read_text()) < 20
    assert int((out / "killed.resumed").read_text()) in (8, 16)
    assert not [path for path in out.rglob(".*")]  # of unfinished videos

    for name, picture, more in rows[:-1]:
        single = tmp_path / f"single_{name}.mp4"
        options = [f"--{key}={value}" for key, value in more.items() if key != "sheet"]
        inputs = ["--ref-image", picture, "--driving-video", EXAMPLE / "driving.mp4", "-o", single]
        assert main(["animate", *map(str, inputs), *SIZE, *options]) == 0
        assert (out / f"{name}.mp4").read_bytes() == single.read_bytes()
    assert (tmp_path / "sheet.png").is_file()

    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    lines = (tmp_path / "jobs.csv").read_text().splitlines()
    (tmp_path / "jobs.csv").write_text("\n".join(lines[:-1]))
    assert batch(tmp_path / "jobs.csv", "-o", out) == 0
    assert capsys.readouterr().out.endswith("0 done, 0 failed, 5 were there already\n")
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.slow
def test_a_batch_that_is_stopped_leaves_nothing_half_written_and_goes_on(tmp_path):
    row = {"portrait": str(EXAMPLE / "portrait.png"), "driving": str(EXAMPLE / "driving.mp4")}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(row | {"output": "a.mp4"}))
    command = [sys.executable, "-m", "personalive_core", "batch", tmp_path / "jobs.jsonl", "-o", tmp_path / "out"]
    command += ["--weights", MINIATURE, "--gpus", 0, "--workers", 2, "--set", "width=128", "--set", "height=128"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    begin = partial(subprocess.Popen, list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)
    first, partial_file = begin(), partial_path(tmp_path / "out" / "a.mp4")
    while first.poll() is None and not (partial_file.is_file() and partial_file.stat().st_size > 2000):
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert "the same command makes what is missing" in first.communicate(timeout=60)[1] and first.returncode == 130
    with VideoReader(partial_file) as video:
        assert len(list(video)) > 0
    assert [path for path in (tmp_path / "out").iterdir() if path.name[0] != "."] == []
    second = begin()
    second.communicate(timeout=300)
    assert second.returncode == 0 and [path.name for path in (tmp_path / "out").iterdir()] == ["a.mp4"]
