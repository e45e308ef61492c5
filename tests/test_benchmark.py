"""The benchmark from end to end, on the small networks: that it measures, not what."""

import json

import pytest

from personalive_core import benchmark
from personalive_core.cli import main
from tiny import tiny_pipeline


def test_it_runs_and_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(benchmark, "_pipeline", lambda *_: tiny_pipeline())
    for name, value in {"REPEATS": 1, "SETTLED": 2, "WRITTEN": 1}.items():
        monkeypatch.setattr(benchmark, name, value)
    arguments = ["benchmark", "--device", "cpu", "--size", "128", "--frames", "40", "--keyframes", "1", "--json"]
    assert main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    for part in ("window", "read", "motion", "denoise", "decode", "copy", "write", "latency"):
        assert figures[part] > 0, part
    assert figures["frames_per_second"] == pytest.approx(4000 / figures["window"])
    assert figures["tflop_denoise"] == pytest.approx(1.23, abs=0.01)  # the published sizes at 128 x 128
    assert figures["memory_gb"] is None


@pytest.mark.parametrize(
    "arguments, words",
    [(["--size", "100"], "width is 100"), (["--frames", "8"], "--frames is 8"), (["--steps", "5"], "steps is 5")],
)
def test_bad_input_is_one_sentence(arguments, words, capsys: pytest.CaptureFixture):
    assert main(["benchmark", "--device", "cpu", *arguments]) == 2
    assert words in capsys.readouterr().err
