"""How much faster a batch is on several GPUs, with networks of the published sizes.

    python tests/gpu/batch.py WEIGHTS [--gpus 1 2 4] [--frames 400]

WEIGHTS is a folder made by `tests/weights_folder.py`, best converted. Sixteen videos are made, of four portraits and
four performances. For each number of GPUs it prints the frames a second in all, how many times that of one GPU this is,
the workers' share of time with a job, and the GPUs' share of time at work, as NVIDIA's driver counts it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from fractions import Fraction
from pathlib import Path
from statistics import mean

import numpy as np
import pynvml
from PIL import Image

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from face import draw_face
from personalive_core.media.video_writer import VideoWriter
from personalive_core.sampling.stream import reflected

RATE = Fraction(25)
DRAWN = 80  # frames of a performance, which then plays forwards and backwards
GOALS = {2: 1.95, 4: 3.8}  # times the speed of one


def draw_inputs(folder: Path, frames: int) -> tuple[Path, Path]:
    """Folders of four portraits and of four performances."""
    portraits, driving = folder / "portraits", folder / "driving"
    portraits.mkdir()
    for i in range(4):
        Image.fromarray(draw_face(yaw=i / 10)).resize((512, 512)).save(portraits / f"{i}.png")
        yaws = [np.sin(j / (10 + i)) for j in range(DRAWN)]
        drawn = [np.asarray(Image.fromarray(draw_face(yaw=yaw)).resize((512, 512))) for yaw in yaws]
        with VideoWriter(driving / f"{i}.mp4", 512, 512, RATE) as video:
            for j in range(frames):
                video.write(drawn[reflected(j, DRAWN)], j / RATE)
    return portraits, driving


class Utilization:
    """The first GPUs' share of time at work while the context lasts, in percent."""

    def __init__(self, gpus: int):
        pynvml.nvmlInit()
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(gpus)]
        self._over, self._samples = threading.Event(), list[float]()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            self._samples += [pynvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in self._handles]

    def __enter__(self) -> "Utilization":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def share(self) -> float:
        return mean(self._samples or [0.0])


def run_batch(portraits: Path, driving: Path, output: Path, weights: Path, gpus: int) -> dict[str, float]:
    """What it measured: the GPUs from the first report of progress on, the rest since a worker was ready."""
    command = [sys.executable, "-m", "personalive_core", "batch", "--portraits", portraits, "--driving", driving]
    command += ["-o", output, "--weights", weights, "--gpus", gpus, "--set", "max-frames=0", "--json"]
    seconds, utilization, begun = 0.0, Utilization(gpus), False
    with subprocess.Popen(map(str, command), stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1]) as process:
        assert process.stdout
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "progress" and event["frames"] and not begun:
                begun = True
                utilization.__enter__()
            if event["event"] == "job":
                assert event["state"] == "done", event
                seconds += event["seconds"]
            if event["event"] == "end" and begun:
                utilization.__exit__()
    assert process.returncode == 0 and event["failed"] == 0
    wall = event["frames"] / event["frames_per_second"]
    return {
        "frames_per_second": event["frames_per_second"],
        "workers_busy": seconds / (gpus * wall),
        "gpus_busy": utilization.share / 100,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--frames", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "first").mkdir()
        first = draw_inputs(folder / "first", 92)  # compiles the kernels
        run_batch(*first, folder / "warm", options.weights, options.gpus[-1])
        inputs, base = draw_inputs(folder, options.frames), 0.0
        for gpus in options.gpus:
            found = run_batch(*inputs, folder / str(gpus), options.weights, gpus)
            base = base or found["frames_per_second"] / gpus
            times, goal = found["frames_per_second"] / base, GOALS.get(gpus)
            print(
                f"{gpus} GPUs: {found['frames_per_second']:.1f} frames/s, {times:.2f} x one"
                + (f" (goal {goal})" if goal else "")
                + f"; workers with a job {found['workers_busy']:.1%}, GPUs at work {found['gpus_busy']:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
