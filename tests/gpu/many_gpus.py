"""How much several GPUs gain over one, for one long video in pieces and for a batch.

    python tests/gpu/many_gpus.py WEIGHTS PORTRAIT DRIVING

WEIGHTS is a folder made by `tests/weights_folder.py` and converted. One worker on each GPU is loaded and warmed up, and
these workers make everything:

- One video of all driving frames, whole and in a piece for each GPU: from the driving video, whose motion the workers
  first extract together; from a motion file; and from that with so low a threshold that three keyframes are found. The
  whole videos are made at the same time, each on a GPU of its own.
- Sixteen videos of four portraits and four performances on 1, 2, 4, ... GPUs: frames a second in all, how many times
  that of one GPU this is, the workers' share of time with a job, and the GPUs' share of time at work as NVIDIA's driver
  counts it.

Each row begins with the seconds since the start. Times are from ready workers to the finished file.
"""

import time

BEGUN = time.perf_counter()

import argparse
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import av
import ray

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1])]

from personalive_core.batch.cluster import Cluster, connected, hiring
from personalive_core.batch.driver import Batch, Outcome, sentence
from personalive_core.batch.jobs import Job
from personalive_core.cli.batch import animate_parser, job_of
from personalive_core.cli.motion_options import adjustment_of, open_driver
from personalive_core.cli.split import Pieces
from personalive_core.cli.worker import AnimateWorker
from personalive_core.config import CHUNK
from personalive_core.errors import InputError
from personalive_core.motion.motion import Motion
from personalive_core.motion.motion_file import save_motion
from personalive_core.motion.performance import Performance, retarget_motion
from personalive_core.sampling.keyframes import KeyframeSettings, keyframe_windows

GOALS = {2: 1.95, 4: 3.8}  # times the speed of one
WARM_UP = 92  # frames, in which a threshold of 0 finds all keyframes


@contextmanager
def utilization(gpus: Sequence[str]) -> Iterator[list[int]]:
    """The GPUs' share of time at work while the context lasts, in percent: a growing list of samples."""
    samples, over = list[int](), threading.Event()

    def watch() -> None:
        import pynvml

        pynvml.nvmlInit()
        by_number, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
        handles = [by_number(int(gpu)) if gpu.isdigit() else by_uuid(gpu) for gpu in gpus]
        while not over.wait(0.2):
            samples.extend(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in handles)

    thread = threading.Thread(target=watch)
    if gpus:
        thread.start()
    try:
        yield samples
    finally:
        over.set()
        if gpus:
            thread.join()


def check(outcome: Outcome, frames: int) -> None:
    """InputError: the video was not made, or lacks frames."""
    if outcome.failure:
        raise InputError(outcome.failure)
    with av.open(outcome.job.output) as file:
        found = sum(bool(packet.size) for packet in file.demux(video=0))
    if not outcome.frames == found == frames:
        raise InputError(f"{outcome.frames} frames were made and {found} are in the file, but it takes {frames}.")


class Measurement:
    """The rows, on workers that stay."""

    def __init__(self, options: argparse.Namespace, cluster: Cluster, folder: Path, say: Callable[[str], None]):
        self._options, self._folder, self._say = options, folder, say
        self._portrait, self._driving = options.portrait.absolute(), options.driving.absolute()
        self._wholes: dict[str, float] = {}  # seconds
        self._speed = 0.0  # of one GPU, frames a second

        warm_up = {"driving-video": self._driving, "max-frames": WARM_UP, "keyframe-threshold": 0}
        hire = hiring(AnimateWorker, cluster)
        jobs = [self._job(f"warm {i}.mp4", **warm_up) for i in range(cluster.workers)]
        self._workers = [hire(job.options, cluster.threads) for job in jobs]
        ray.get([worker.prepare.remote() for worker in self._workers])
        say(f"{cluster.workers} workers have loaded the networks")
        ray.get(self._workers[0].animate.remote(jobs[0], None, None))  # it compiles the kernels for all
        say("the first is warm")
        rest = zip(self._workers[1:], jobs[1:], strict=True)
        warmed = [worker.animate.remote(job, None, None) for worker, job in rest]
        self._motion, threshold = self._extract(self._workers[0])
        ray.get(warmed)
        self._gpus = [gpu for worker in self._workers for gpu in ray.get(worker.__ray_call__.remote(_gpus))]
        say(f"all are warm; {self._frames} frames of motion, three keyframes at a threshold of {threshold}")
        self._sources = {
            "driving video": {"driving-video": self._driving},
            "motion file": {"motion": self._motion},
            "motion file, three keyframes": {"motion": self._motion, "keyframe-threshold": threshold},
        }

    def rows(self) -> None:
        """Prints them all."""
        self._attempt("whole, all three", self._make_wholes)
        for what in self._sources:
            self._attempt(f"in pieces, {what}", lambda what=what: self._split(what))
        count = len(self._workers)
        for gpus in sorted({min(2**i, count) for i in range(count.bit_length() + 1)}):
            self._attempt(f"batch on {gpus}", lambda gpus=gpus: self._batch(gpus))

    def _attempt(self, row: str, measure: Callable[[], str]) -> None:
        try:
            self._say(f"{row}: {measure()}")
        except Exception as error:
            self._say(f"{row}: failed ({sentence(error)})")

    def _job(self, name: str, **cells: Any) -> Job:
        options = self._options
        always = {"ref-image": self._portrait, "width": options.size, "height": options.size, "max-frames": 0}
        weights, gpus = options.weights.absolute(), 0 if options.cpu else None
        parser = animate_parser(argparse.Namespace(weights=weights, gpus=gpus, download=False))
        return job_of(parser, always | {"output": name} | cells, str(self._folder))

    def _extract(self, worker: Any) -> tuple[Path, int]:
        """A file of all motion, and the highest threshold at which it has three keyframes."""
        path, job = self._folder / "motion.safetensors", self._job("motion.mp4", **{"driving-video": self._driving})
        extracted, reference = ray.get([worker.extract.remote(job), worker.encode.remote(job)])
        motion, self._frames = extracted.motion, len(extracted.motion)
        with open_driver(job.options, adjustment_of(job.options)) as driver:
            save_motion(Performance.extracted(motion, driver.frame_rate, driver.name, extracted.times), path)
        found = (n for n in range(16, 0, -1) if _keyframes(reference.motion, motion, n) == 3)
        return path, next(found, 0)

    def _make(self, jobs: Sequence[Job], workers: int, finished: Callable[[Outcome], object]) -> float:
        """Seconds that the first of the workers take for the jobs."""
        begun = time.perf_counter()
        Batch(jobs, iter(self._workers).__next__, workers, finished, lambda progress: None).run()
        return time.perf_counter() - begun

    def _make_wholes(self) -> str:
        jobs = {f"whole {i}.mp4": what for i, what in enumerate(self._sources)}

        def finished(outcome: Outcome) -> None:
            what = jobs[outcome.job.name]
            self._attempt(f"whole, {what}", lambda: whole(what, outcome))

        def whole(what: str, outcome: Outcome) -> str:
            check(outcome, self._frames)
            self._wholes[what] = outcome.seconds
            return f"{outcome.seconds:.1f} s, {self._frames / outcome.seconds:.1f} frames/s"

        alone = [replace(self._job(name, **self._sources[what]), portrait=None) for name, what in jobs.items()]
        return f"{self._make(alone, len(self._workers), finished):.1f} s"

    def _split(self, what: str) -> str:
        count, outcomes, parts = len(self._workers), list[Outcome](), list[Outcome]()
        pieces = Pieces([self._job(f"{what}.mp4", **self._sources[what])], lambda job: count, outcomes.append)

        def finished(piece: Outcome) -> None:
            parts.append(piece)
            pieces.finished(piece)

        seconds = self._make(pieces.jobs, count, finished)
        check(outcomes[0], self._frames)
        each = ", ".join(f"{piece.seconds:.1f}" for piece in parts)
        times = f"{self._wholes[what] / seconds:.2f} x one" if what in self._wholes else "no whole one to compare with"
        return f"{seconds:.1f} s in {count} pieces ({each} s), {times}"

    def _batch(self, gpus: int) -> str:
        jobs, outcomes = list[Job](), list[Outcome]()
        for i, j in product(range(4), repeat=2):
            portrait, driving = (self._copy(path, k) for path, k in ((self._portrait, i), (self._driving, j)))
            cells = {"ref-image": portrait, "driving-video": driving, "max-frames": self._options.frames}
            jobs.append(self._job(f"{gpus} {i} {j}.mp4", **cells))
        with utilization(self._gpus[:gpus]) as samples:
            seconds = self._make(jobs, gpus, outcomes.append)
        for outcome in outcomes:
            check(outcome, min(self._options.frames, self._frames))
        speed = sum(outcome.frames for outcome in outcomes) / seconds
        if gpus == 1:
            self._speed = speed
        times = f"{speed / self._speed:.2f} x one" if self._speed else "none of one to compare with"
        times += f" (goal {GOALS[gpus]})" if gpus in GOALS else ""
        busy = sum(outcome.seconds for outcome in outcomes) / (gpus * seconds)
        at_work = f", GPUs at work {mean(samples):.0f} %" if samples else ""
        return f"{seconds:.1f} s, {speed:.1f} frames/s, {times}; workers with a job {busy:.0%}{at_work}"

    def _copy(self, path: Path, number: int) -> Path:
        """The file under another name, which makes it another portrait or performance."""
        copy = self._folder / f"{number} {path.name}"
        return copy if copy.exists() else Path(shutil.copyfile(path, copy))


def _gpus(worker: AnimateWorker) -> list[str]:
    return [str(gpu) for gpu in ray.get_gpu_ids()]


def _keyframes(portrait: Motion, motion: Motion, threshold: float) -> int:
    tokens = retarget_motion(portrait, motion[::CHUNK], motion[:1]).tokens
    settings = KeyframeSettings(threshold=threshold)
    return len(keyframe_windows(settings, portrait.tokens, tokens, len(motion) // CHUNK)[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "portrait", "driving"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--gpus", type=int, help="workers, each with a GPU of its own; without it all GPUs")
    parser.add_argument("--frames", type=int, default=160, help="frames of each performance of the batch")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--cpu", action="store_true", help="workers on the CPU, to try this program")
    options = parser.parse_args()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - BEGUN:5.0f} s  {text}", flush=True)

    ray.kill = lambda actor: None  # a `Batch` kills its workers at the end, but all rows share these
    gpus, workers = 0 if options.cpu else options.gpus, options.gpus or 2
    with tempfile.TemporaryDirectory() as folder, connected(None, gpus, workers) as cluster:
        say(f"Ray has {cluster.workers} workers, {'each with a GPU' if cluster.has_gpu else 'on the CPU'}")
        Measurement(options, cluster, Path(folder), say).rows()


if __name__ == "__main__":
    main()
