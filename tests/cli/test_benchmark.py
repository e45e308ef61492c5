"""The benchmark from end to end, on the small networks: that it measures, not what."""

import json
from functools import partial
from pathlib import Path

import pytest

from personalive_core import Pipeline, find_weights
from personalive_core.cli import measure, measure_live
from personalive_core.cli.main import main
from personalive_core.sampling.keyframes import KeyframeSettings
from personalive_core.sampling.stream import Stream
from personalive_core.weights.find import MINIATURE
from tiny import tiny_pipeline


def test_it_runs_and_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(measure, "make_pipeline", lambda *_: tiny_pipeline())
    for name, value in {"REPEATS": 1, "SETTLED": 1, "WRITTEN": 1}.items():
        monkeypatch.setattr(measure, name, value)
    arguments = ["benchmark", "--device", "cpu", "--size", "128", "--frames", "36", "--keyframes", "1", "--json"]
    assert main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    for part in ("window", "read", "motion", "denoise", "decode", "copy", "write", "latency"):
        assert figures[part] > 0, part
    assert figures["frames_per_second"] == pytest.approx(4000 / figures["window"])
    assert figures["tflop_denoise"] == pytest.approx(1.23, abs=0.01)  # the published sizes at 128 x 128
    assert figures["memory_gb"] is None


def test_the_window_that_is_timed_has_all_keyframes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    held = []

    def step(stream, state, motion):
        held.append(len(state.keyframes))
        return Stream.step(stream, state, motion)

    pipeline = tiny_pipeline()
    monkeypatch.setattr(measure, "_timed", lambda function, _: (function(), 1.0)[1])
    stream = pipeline.stream
    monkeypatch.setattr(pipeline, "stream", lambda *given: watched(stream(*given), step))
    reference = measure._reference(pipeline, 128)
    clip = measure._write_clip(tmp_path / "driving.mp4", 128)
    measure._parts(pipeline, reference, clip, 4, KeyframeSettings(limit=3, threshold=0.0))
    assert held[-1] == 3


def watched(stream: Stream, step) -> Stream:
    stream.step = partial(step, stream)
    return stream


@pytest.mark.parametrize(
    "arguments, words",
    [(["--size", "100"], "width is 100"), (["--frames", "8"], "--frames is 8"), (["--steps", "5"], "steps is 5")],
)
def test_bad_input_is_one_sentence(arguments, words, capsys: pytest.CaptureFixture):
    assert main(["benchmark", "--device", "cpu", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_live(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    pipeline = Pipeline.load(find_weights(MINIATURE), "cpu")
    monkeypatch.setattr(measure_live, "make_pipeline", lambda *_: pipeline)
    monkeypatch.setattr(measure_live, "with_encoders", lambda pipeline, _: pipeline)
    monkeypatch.setattr(measure_live, "SETTLED", 5)
    monkeypatch.setattr(measure_live, "AFTER", 3)
    arguments = ["benchmark", "--live", "--device", "cpu", "--size", "128", "--frames", "56", "--json"]
    assert main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["received"] >= figures["used"] + figures["dropped"] > 0
    assert figures["delay_p50"] > figures["arrival_p50"] > 3 * figures["period"]
    assert figures["memory_gb"] is None
