"""How much sooner one long video is there if several GPUs make it in pieces.

    python tests/gpu/split.py WEIGHTS PORTRAIT DRIVING

WEIGHTS is a folder made by `tests/weights_folder.py` and converted. Times are from loaded and warm workers to the
finished file. The video is made from the driving video, whose motion the workers first extract together, and from a
motion file.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import ray

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1])]

from personalive_core.batch.cluster import connected, hiring, threads
from personalive_core.batch.driver import Batch, Outcome
from personalive_core.batch.jobs import Job
from personalive_core.cli.batch import animate_parser, job_of
from personalive_core.cli.motion_options import adjustment_of, open_driver
from personalive_core.cli.split import Pieces
from personalive_core.cli.worker import AnimateWorker
from personalive_core.media.video_reader import VideoReader
from personalive_core.motion.motion_file import save_motion
from personalive_core.motion.performance import Performance


def another(job: Job) -> Job:
    return replace(job, output=str(Path(job.output).with_name(f"{uuid4().hex}.mp4")))


def seconds(job: Job, pieces: int, warm_up: Job, workers: int, on_cpu: bool) -> float:
    """From ready workers to the joined video."""
    outcomes = list[Outcome]()
    with connected(None, 0 if on_cpu else None, workers) as cluster:
        hire = partial(hiring(AnimateWorker, cluster), job.options, threads(workers))
        hired = [hire() for _ in range(pieces)]
        ray.get([worker.prepare.remote() for worker in hired])
        for workers_to_warm in (hired[:1], hired[1:]):  # the first one compiles the kernels for all
            ray.get([worker.animate.remote(another(warm_up), None, None) for worker in workers_to_warm])
        split, begun = Pieces([job], lambda job: pieces, outcomes.append), time.perf_counter()
        Batch(split.jobs, iter(hired).__next__, pieces, split.finished, lambda progress: None).run()
        passed = time.perf_counter() - begun
    if outcomes[0].failure:
        sys.exit(outcomes[0].failure)
    with VideoReader(Path(job.output)) as video:
        frames = sum(1 for _ in video)
    assert frames == outcomes[0].frames, "the file lacks frames"
    return passed


def write_motion(job: Job, path: Path, workers: int, on_cpu: bool) -> None:
    with connected(None, 0 if on_cpu else None, workers) as cluster:
        worker = hiring(AnimateWorker, cluster)(job.options, threads(workers))
        extracted = ray.get(worker.extract.remote(job))
    with open_driver(job.options, adjustment_of(job.options)) as driver:
        save_motion(Performance.extracted(extracted.motion, driver.frame_rate, driver.name, extracted.times), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "portrait", "driving"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--gpus", type=int, default=4, help="pieces, each on a GPU of its own")
    parser.add_argument("--frames", type=int, default=0, help="driving frames to use; 0 is all")
    parser.add_argument("--keyframe-threshold", type=float, default=17.0, help="as of animate")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--cpu", action="store_true", help="workers on the CPU, to try this program")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    motion = folder / "motion.safetensors"

    def job(name: str, **cells: object) -> Job:
        always = {"ref-image": options.portrait.absolute(), "width": options.size, "height": options.size}
        always |= {"max-frames": options.frames, "keyframe-threshold": options.keyframe_threshold}
        weights = options.weights.absolute()
        parsed = animate_parser(argparse.Namespace(weights=weights, gpus=0 if options.cpu else None, download=False))
        return job_of(parsed, always | {"output": name} | cells, str(folder))

    from_video, from_file = {"driving-video": options.driving.absolute()}, {"motion": motion}
    write_motion(job("motion.mp4", **from_video), motion, options.gpus, options.cpu)
    for what, source in (("driving video", from_video), ("motion file", from_file)):
        warm_up = job("warm.mp4", **source | {"max-frames": 60})
        times = {
            pieces: seconds(job(f"{what} {pieces}.mp4", **source), pieces, warm_up, options.gpus, options.cpu)
            for pieces in (1, options.gpus)
        }
        ratio = times[1] / times[options.gpus]
        print(
            f"{what}: whole {times[1]:.1f} s, in {options.gpus} pieces {times[options.gpus]:.1f} s, {ratio:.2f} x",
            flush=True,
        )


if __name__ == "__main__":
    main()
