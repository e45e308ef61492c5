"""What a batch is told: tables, folders, options, files by URL. No worker runs."""

import json
import re
from argparse import Namespace

import pytest

from personalive_core.batch import storage
from personalive_core.batch.jobs import read_table
from personalive_core.cli import batch as command
from personalive_core.cli.batch import animate_parser, job_of
from personalive_core.cli.main import main
from personalive_core.errors import InputError
from personalive_core.weights.find import EXAMPLE, MINIATURE

INPUTS = {"ref-image": str(EXAMPLE / "portrait.png"), "driving-video": str(EXAMPLE / "driving.mp4")}
OPTIONS = Namespace(weights=MINIATURE, gpus=0, download=False)
LINE = {"portrait": INPUTS["ref-image"], "driving": INPUTS["driving-video"]}


def job(folder="out", **cells):
    return job_of(animate_parser(OPTIONS), INPUTS | {k.replace("_", "-"): v for k, v in cells.items()}, folder)


def test_both_kinds_of_table_say_the_same(tmp_path):
    (tmp_path / "a.csv").write_text("portrait,driving,seed,mirror\na.png,b.mp4,,true\n\nc.png,d.mp4,3,\n")
    lines = [{"portrait": "a.png", "driving": "b.mp4", "mirror": True}, {"portrait": "c.png", "driving": "d.mp4"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, (lines[0], lines[1] | {"seed": 3}))))
    rows = [[(key, str(value).lower()) for key, value in row.items()] for _, row in read_table(tmp_path / "a.csv")]
    assert rows == [[(k, str(v).lower()) for k, v in row.items()] for _, row in read_table(tmp_path / "a.jsonl")]


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.csv", ""),
        ("a.csv", "portrait,driving\n"),
        ("a.csv", "portrait\na,b\n"),
        ("a.jsonl", "[1]"),
        ("a.jsonl", '{"a": {}}'),
        ("a.jsonl", "{"),
    ],
)
def test_no_table(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name} (is no table|has no jobs)"):
        list(read_table(tmp_path / name))


def test_a_cell_is_an_option_of_animate():
    options = job(
        max_frames="8", crop="yes", mirror=True, no_hold="no", head_rotation=-0.0, crop_driving="fixed"
    ).options
    assert (options.max_frames, options.crop, options.mirror, options.no_hold) == (8, "face", True, False)
    assert options.crop_driving == "fixed" and options.ref_image == EXAMPLE / "portrait.png"
    assert job().name == "portrait_driving.mp4" and job(output="a.mov").output.endswith("/out/a.mov")


def test_the_longest_costs_most_and_the_unknown_more():
    costs = [job(max_frames=n, **more).cost for n, more in ((8, {}), (16, {}), (8, {"steps": 12}), (8, {"start": 99}))]
    assert costs[0] < costs[1] < costs[2] and costs[0] < job(ref_image="none.png", max_frames=0).cost
    assert job(driving_video="s3://bucket/a.mp4").cost == float("inf")


def test_jobs_share_what_depends_on_the_same_options():
    plain = job()
    assert plain.portrait == job(seed=3, start=2).portrait != job(width=256, height=256).portrait
    assert plain.performance == job(seed=3, smoothing=2, ref_image="b.png").performance != job(mirror=True).performance
    assert job(sheet="a.png").performance is None


@pytest.mark.parametrize(
    "cells, words",
    [
        ({"max_frame": 3}, "max-frame is no option of a job"),
        ({"device": "cpu"}, "device is no option of a job"),
        ({"mirror": "perhaps"}, "mirror is perhaps, but must be true or false"),
        ({"width": "100"}, "width is 100"),
        ({"seed": "x"}, "--seed"),
        ({"feather": 0.2}, "does nothing without --paste-back"),
        ({"weights": "s3://a/b"}, "only portrait, driving and motion can be URLs"),
        ({"motion": "a.safetensors"}, "not allowed with"),
    ],
)
def test_jobs_that_cannot_be(cells, words):
    with pytest.raises(InputError, match=words):
        job(**cells)


@pytest.mark.parametrize(
    "lines, more, words",
    [
        ([LINE | {"seed": "x"}], [], "line 1: "),
        ([LINE, LINE], [], "the output of line 2 .* and the output of line 1 .* are the same file"),
        ([LINE | {"output": str(EXAMPLE / "driving.mp4")}], [], "--driving-video of line 1 .* would be overwritten"),
        ([LINE | {"sheet": str(EXAMPLE / "portrait.png")}], [], "--ref-image of line 1 .* would be overwritten"),
        ([LINE | {"sheet": __file__}], [], "test_jobs.py exists already: give --sheet of line 1 another name"),
        ([LINE], ["--workers", "0"], "--workers is 0"),
        ([LINE], ["--portraits", "a"], "give a table of jobs, or"),
        ([LINE], ["--set", "loops=2"], "line 1: loops is no option"),
    ],
)
def test_nothing_begins_before_all_is_checked(tmp_path, monkeypatch, capsys, lines, more, words):
    monkeypatch.setattr(command, "_run", None)
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["batch", str(tmp_path / "jobs.jsonl"), "-o", str(tmp_path / "out"), *more]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_files_by_url(tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setattr(storage.tempfile, "gettempdir", lambda: str(tmp_path))
    source, url = tmp_path / "a.png", f"file://{tmp_path}/a.png"
    source.write_text("first")
    copy = storage.fetch(url)
    assert copy.name == "a.png" and copy.read_text() == "first" and storage.fetch(url) == copy
    source.write_text("a second")
    assert storage.fetch(url).read_text() == "a second"
    target = f"file://{tmp_path}/out/b.png"
    assert not storage.exists(target)
    storage.publish(copy, target)
    assert storage.exists(target) and not copy.exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]
    for missing in (f"file://{tmp_path}/none.png", "unknown://a/b"):
        with pytest.raises(InputError, match="cannot be used"):
            storage.fetch(missing)
