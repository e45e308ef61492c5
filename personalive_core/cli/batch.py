"""`batch`: many videos on many GPUs, with Ray."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..batch import storage
from ..batch.cluster import Cluster, connected, hiring
from ..batch.driver import Batch, Outcome, Progress
from ..batch.jobs import Job, all_pairs, read_table
from ..errors import InputError
from ..media.video_reader import VideoReader
from ..media.video_writer import partial_path
from ..motion.motion_file import load_motion
from . import animate
from .download import fetch
from .motion_options import Driver
from .outputs import check_outputs, stopped_by_signals
from .split import Pieces, pieces_that_pay

INPUTS = ("ref_image", "driving_video", "motion")
SIDE_OUTPUTS = ("save_motion", "sheet", "crop_preview")
COLUMNS = {"portrait": "ref-image", "driving": "driving-video"}
FORBIDDEN = {"device", "overwrite", "resume", "split", "download", "help"}
JSON_EVERY = 5.0  # seconds


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    batch = commands.add_parser("batch", parents=parents, help="many videos on many GPUs, with Ray")
    batch.add_argument("jobs", type=Path, nargs="?", metavar="JOBS", help="table of jobs: .csv or .jsonl")
    batch.add_argument("--portraits", type=Path, metavar="DIR", help="with --driving, in place of JOBS: all pairs")
    batch.add_argument("--driving", type=Path, metavar="DIR", help="folder of driving videos and motion files")
    batch.add_argument("--output", "-o", default="outputs", metavar="DIR", help="folder or URL of the videos")
    batch.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help="an option of `animate` for every job, such as max-frames=0; a job's own cell comes first",
    )
    batch.add_argument("--download", action="store_true", help="fetch missing weights first")
    add_cluster_options(batch)
    batch.add_argument("--json", action="store_true", help="print lines of JSON in place of a bar and a table")
    batch.set_defaults(run=run)


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", metavar="URL", help="Ray cluster, such as ray://HOST:10001 or auto")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to use; without it all, 0 is the CPU")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="workers to use without a GPU")


def run(options: argparse.Namespace) -> None:
    """Raises InputError before any work for a job that cannot be, and at the end if one failed."""
    check_cluster_options(options)
    jobs = list(_jobs(options))
    inputs = {path: f"{name} of {where}" for where, job in reversed(jobs) for name, path in _paths(job, INPUTS)}
    outputs: dict[str, Path | None]
    outputs = {f"the output of {where}": Path(job.output) for where, job in jobs if not storage.is_url(job.output)}
    outputs |= {f"{name} of {where}": path for where, job in jobs for name, path in _paths(job, SIDE_OUTPUTS)}
    check_outputs(outputs, {name: path for path, name in inputs.items()}, overwrite=True)
    todo = []
    for where, job in jobs:
        if not storage.exists(job.output):
            todo.append(job)
            for name, path in _paths(job, SIDE_OUTPUTS):
                if path.exists() and not partial_path(storage.working_path(job.output)).exists():
                    raise InputError(f"{path} exists already: give {name} of {where} another name.")
    report = (_Lines if options.json else _Bar)(len(jobs), len(jobs) - len(todo))
    if todo:
        fetch_here(options)
        _run(options, todo, report)
    report.end()
    if report.failures:
        raise InputError(f"{report.failures} of {len(jobs)} videos could not be made; the reasons are above.")


def fetch_here(options: argparse.Namespace) -> None:
    """The weights, if that is asked for, with a bar; the workers of a cluster fetch what their nodes lack."""
    if options.download and options.address is None:
        fetch(options.weights)


def check_cluster_options(options: argparse.Namespace) -> None:
    for name, least in (("gpus", 0), ("workers", 1)):
        if (value := getattr(options, name)) is not None and value < least:
            raise InputError(f"--{name} is {value}, but must be {least} or more.")


def _run(options: argparse.Namespace, jobs: list[Job], report: "_Report") -> None:
    from .worker import AnimateWorker

    with redirect_stdout(sys.stderr), connected(options.address, options.gpus, options.workers) as cluster:
        report.begin(cluster)
        hire = partial(hiring(AnimateWorker, cluster), jobs[0].options, cluster.threads)
        idle = cluster.workers // len(jobs)
        pieces = Pieces(jobs, lambda job: pieces_that_pay(job, idle), report.finished)

        def watch(progress: Progress) -> None:
            report.watch(replace(progress, jobs_left=pieces.left))

        try:
            with stopped_by_signals():  # Ray has set handlers of its own
                Batch(pieces.jobs, hire, cluster.workers, pieces.finished, watch).run()
        except KeyboardInterrupt:
            print("the same command makes what is missing, and goes on with what was under way", file=sys.stderr)
            raise
        finally:
            report.close()


# ------------------------------------------------------------------------------------------------------------ the jobs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise InputError(message)


def animate_parser(options: argparse.Namespace) -> argparse.ArgumentParser:
    """The options of `animate`, on these weights; what is wrong with them is an InputError."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--weights", type=Path)
    commands = _Parser().add_subparsers(parser_class=_Parser)
    animate.add_parser(commands, [common])
    parser = commands.choices["animate"]
    device = "cpu" if options.gpus == 0 else "auto"
    parser.set_defaults(weights=options.weights, device=device, download=options.download)
    return parser


def _jobs(options: argparse.Namespace) -> Iterator[tuple[str, Job]]:
    """With where each stands. InputError: one of them cannot be."""
    folders = [path for path in (options.portraits, options.driving) if path]
    if len(folders) != (0 if options.jobs else 2):
        raise InputError("give a table of jobs, or --portraits and --driving, two folders.")
    parser = animate_parser(options)
    defaults = dict(_setting(text) for text in options.set or ())
    rows = read_table(options.jobs) if options.jobs else all_pairs(options.portraits, options.driving)
    for where, row in rows:
        try:
            yield where, job_of(parser, defaults | {_name(key): value for key, value in row.items()}, options.output)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


def _setting(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.partition("=")
    return _name(name), value if equals else True


def _name(column: str) -> str:
    column = column.lower().replace("_", "-")
    return COLUMNS.get(column, column)


def job_of(parser: argparse.ArgumentParser, cells: dict[str, Any], folder: str) -> Job:
    """A job of options of `animate` by their names.

    Args:
        parser: `animate_parser`.
        cells: Texts, numbers and, for switches, bools.
        folder: Path or URL of the video's folder.

    Raises:
        InputError: There is no such option, or it cannot be so.
    """
    from .worker import DRIVING, PORTRAIT, values_of

    arguments, urls = [], dict[str, str]()
    for name, value in cells.items():
        action = parser._option_string_actions.get(f"--{name}")
        if action is None or action.dest in FORBIDDEN:
            raise InputError(f"{name} is no option of a job: use the names of animate's options, such as max-frames.")
        if action.nargs in (0, "?") and str(value).lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            if str(value).lower() in ("true", "yes", "on", "1"):
                arguments.append(f"--{name}")
            continue
        if action.nargs == 0:
            raise InputError(f"{name} is {value}, but must be true or false.")
        if storage.is_url(str(value)):
            if action.dest not in INPUTS:
                raise InputError(f"{name} is {value}: only portrait, driving and motion can be URLs.")
            urls[action.dest] = str(value)
        arguments.append(f"--{name}={value}")
    options = parser.parse_args(arguments)
    adjustment = animate.check_options(options)
    for name, value in vars(options).items():
        if isinstance(value, Path) and name != "output":
            setattr(options, name, value.absolute())  # workers have other folders
    for name, url in urls.items():
        setattr(options, name, url)
    driver = options.motion or options.driving_video
    name = str(options.output or f"{Path(options.ref_image).stem}_{Path(driver).name.partition('.')[0]}.mp4")
    output = f"{folder.rstrip('/')}/{name}" if storage.is_url(folder) else str(Path(folder, name).absolute())
    options.output = None
    frames = known.result_count(adjustment) if (known := _driver(driver)) else None
    job = Job(name, output, options, frames, portrait=values_of(options, PORTRAIT))
    if frames:
        job = replace(job, cost=float(frames * options.steps * options.width * options.height))
    if options.driving_video and not (options.sheet or options.save_motion):  # which are made while it is read
        job = replace(job, performance=values_of(options, DRIVING))
    return job


@lru_cache
def _driver(path: Path | str) -> Driver | None:
    """What is known of it without reading it all; None where that is nothing, or nothing from here."""
    if isinstance(path, str):
        return None
    try:
        if path.suffix == ".safetensors":
            performance = load_motion(path)
            return Driver(path.name, performance.frame_rate, len(performance.motion))
        with VideoReader(path) as video:
            return Driver(path.name, Fraction(video.metadata.frame_rate), video.metadata.frame_count)
    except (InputError, OSError):
        return None  # the job will say what is wrong


def _paths(job: Job, names: tuple[str, ...]) -> Iterable[tuple[str, Path]]:
    for name in names:
        if isinstance(path := getattr(job.options, name), Path):
            yield f"--{name.replace('_', '-')}", path


# ------------------------------------------------------------------------------------------------------------- reports


class _Report:
    """Tells people or machines. `close` ends the bar; `end` sums up."""

    def __init__(self, jobs: int, there: int):
        self.jobs, self.there, self.outcomes = jobs, there, list[Outcome]()
        self.last = Progress()

    @property
    def failures(self) -> int:
        return sum(bool(outcome.failure) for outcome in self.outcomes)

    def begin(self, cluster: Cluster) -> None:
        raise NotImplementedError

    def watch(self, progress: Progress) -> None:
        self.last = progress

    def finished(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def close(self) -> None:
        pass

    def end(self) -> None:
        raise NotImplementedError


class _Bar(_Report):
    _bar: tqdm | None = None

    def begin(self, cluster: Cluster) -> None:
        kind = "GPU" if cluster.has_gpu else "CPU worker"
        more = f"; {self.there} of {self.jobs} are there already" if self.there else ""
        where = f"{cluster.workers} {kind}{'s' * (cluster.workers > 1)}"
        print(f"{self.jobs - self.there} videos on {where}{more}", file=sys.stderr)
        if cluster.dashboard:
            print(f"Ray's dashboard: {cluster.dashboard}", file=sys.stderr)
        self._bar = tqdm(bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} frames{postfix}", dynamic_ncols=True)

    def watch(self, progress: Progress) -> None:
        super().watch(progress)
        if self._bar is not None:
            self._bar.total = progress.frames + progress.frames_left
            self._bar.n = progress.frames
            left = "" if (seconds := progress.seconds_left) is None else f", {tqdm.format_interval(seconds)} to go"
            speed = f"{progress.frames_per_second:.1f} a second"
            videos = f"{progress.jobs_left} video{'s' * (progress.jobs_left != 1)} left"
            self._bar.set_postfix_str(f"{speed}, {videos}{left}")

    def finished(self, outcome: Outcome) -> None:
        super().finished(outcome)
        if outcome.failure:
            tqdm.write(f"{outcome.job.name}: {outcome.failure}", file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def end(self) -> None:
        for outcome in sorted(self.outcomes, key=lambda outcome: outcome.job.name):
            state = "failed" if outcome.failure else "done"
            result = outcome.failure or f"{outcome.frames} frames in {outcome.seconds:.1f} s"
            print(f"{state:7} {outcome.job.name}: {result}")
        done = len(self.outcomes) - self.failures
        speed = f", {self.last.frames_per_second:.1f} frames a second in all" if self.last.frames else ""
        print(f"{done} done, {self.failures} failed, {self.there} were there already{speed}")


class _Lines(_Report):
    _said = 0.0

    def __init__(self, *counts: int):
        super().__init__(*counts)
        self._output = sys.stdout  # which Ray would print to as well, see `_run`

    def _say(self, event: str, **values: object) -> None:
        print(json.dumps({"event": event} | values), file=self._output, flush=True)

    def begin(self, cluster: Cluster) -> None:
        self._say("begin", jobs=self.jobs, there=self.there, **cluster._asdict())

    def watch(self, progress: Progress) -> None:
        super().watch(progress)
        if progress.seconds >= self._said + JSON_EVERY:
            self._said = progress.seconds
            self._say(
                "progress",
                frames=progress.frames,
                frames_per_second=round(progress.frames_per_second, 2),
                jobs_left=progress.jobs_left,
                workers=progress.workers,
                seconds_left=progress.seconds_left,
            )

    def finished(self, outcome: Outcome) -> None:
        super().finished(outcome)
        self._say(
            "job",
            output=outcome.job.output,
            state="failed" if outcome.failure else "done",
            frames=outcome.frames,
            seconds=round(outcome.seconds, 3),
            error=outcome.failure or None,
        )

    def end(self) -> None:
        self._say(
            "end",
            done=len(self.outcomes) - self.failures,
            failed=self.failures,
            there=self.there,
            frames=self.last.frames,
            frames_per_second=round(self.last.frames_per_second, 2),
        )
