"""The loop of a batch: which worker makes which video next, and what happens when one of them dies."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..errors import InputError
from .jobs import Job

POLL = 1.0  # seconds between two looks at the workers' progress
ATTEMPTS = 3  # workers that may die with one job, or before they are ready, in a row


class Worker(Protocol):
    """What runs on each GPU, as a Ray actor that keeps the networks loaded."""

    def prepare(self) -> None:
        """Loads the networks. InputError: they are missing."""

    def encode(self, job: Job) -> Any:
        """The job's portrait, for `animate`."""

    def extract(self, job: Job) -> Any:
        """The job's motion, for `animate`."""

    def extract_part(self, job: Job, index: int, count: int) -> tuple[None, Any]:
        """Extracts a part of the job's motion, for `join`.

        Args:
            job: Of any that share the motion.
            index: Of the part, from 0.
            count: How many parts there are.

        Returns:
            None, which says that the part is done, and the part, which stays in the object store.
        """

    def join(self, *parts: Any) -> Any:
        """The motion whose parts these are, for `animate`."""

    def animate(self, job: Job, portrait: Any, performance: Any) -> tuple[int, int]:
        """Makes the video, unless it is there.

        Goes on where a worker that died has left off.

        Args:
            job: What to make.
            portrait: From `encode`; None is still to be encoded.
            performance: From `extract` or `join`; None is still to be extracted.

        Returns:
            The number of its frames, and of all that this worker has made.
        """

    def progress(self) -> tuple[int, int]:
        """Frames made so far in all, and frames that are done of the present job."""


class Outcome(NamedTuple):
    """What became of a job: with a sentence where it failed. Seconds are of the worker's time."""

    job: Job
    frames: int = 0
    seconds: float = 0.0
    failure: str = ""


@dataclass
class Progress:
    """Of all jobs.

    Attributes:
        frames: Made so far, in this run.
        frames_left: An estimate.
        jobs_left: Of which some are under way.
        workers: That are ready.
        seconds: Since the first worker was ready.
    """

    frames: int = 0
    frames_left: int = 0
    jobs_left: int = 0
    workers: int = 0
    seconds: float = 0.0

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None while nothing is known of the speed."""
        return self.frames_left / self.frames_per_second if self.frames else None


class _Task(NamedTuple):
    """A call that is under way."""

    kind: str  # prepare, share, part, animate, progress
    worker: "_Hired"
    job: Job | None = None
    key: Hashable = None


@dataclass(eq=False)
class _Hired:
    actor: Any
    job: Job | None = None
    begun: float = 0.0  # when it got its job
    is_ready: bool = False
    frames: int = 0  # made so far
    of_job: int = 0  # done of its job


@dataclass
class Batch:
    """Makes all jobs, the longest first, on Ray actors.

    A portrait is encoded and a performance extracted once for all the jobs that share it; the object store holds the
    result. Workers with jobs of one performance may first extract it together, each a part. The job of a worker that
    dies goes to the next one that is free, and another worker is started in its place.

    Args:
        jobs: What to make.
        hire: Starts a `Worker` as a Ray actor.
        workers: How many.
        finished: Gets each outcome as it comes.
        watch: Gets the progress about once a second.
    """

    jobs: Sequence[Job]
    hire: Callable[[], Any]
    workers: int
    finished: Callable[[Outcome], object]
    watch: Callable[[Progress], object]
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self._queue = sorted(self.jobs, key=lambda job: -job.cost)
        self._uses = Counter(key for job in self.jobs for key in _keys(job))  # by jobs that are not done
        self._shared_by_many = {key for key, uses in self._uses.items() if uses > 1}
        self._shared: dict[Hashable, Any] = {}
        self._parts: dict[Hashable, list[Any]] = {}  # of a motion that is not shared yet; None is still to be extracted
        self._tasks: dict[Any, _Task] = {}
        self._hired: list[_Hired] = []
        self._deaths: Counter[str | None] = Counter()  # by the job's output, and None before a worker was ready
        self._begun = self._looked = 0.0

    def run(self) -> None:
        """Until every job is done or has failed.

        Raises:
            InputError: No worker can be started.
        """
        import ray

        try:
            for _ in range(min(self.workers, len(self.jobs))):
                self._hire()
            while self._queue or any(worker.job for worker in self._hired):
                self._assign()
                done, _ = ray.wait(list(self._tasks), timeout=POLL)
                for reference in done:
                    self._take(reference, self._tasks.pop(reference))
                self._look()
            self._looked = 0.0
            self._look()
        finally:
            for worker in self._hired:
                ray.kill(worker.actor)

    def _hire(self) -> None:
        worker = _Hired(self.hire())
        self._hired.append(worker)
        self._tasks[worker.actor.prepare.remote()] = _Task("prepare", worker)

    def _assign(self) -> None:
        """Gives each free worker the longest job that need not wait for what another one extracts, or else the longest
        of all."""
        for worker in self._hired:
            if worker.is_ready and not worker.job and self._queue:
                coming = {task.key for task in self._tasks.values() if task.kind == "share"}
                job = next((job for job in self._queue if not coming.intersection(_keys(job))), self._queue[0])
                self._queue.remove(job)
                worker.job, worker.of_job, worker.begun = job, 0, time.monotonic()
                self._go_on(worker, job)

    def _go_on(self, worker: _Hired, job: Job) -> None:
        """The worker's next call for its job: a part of the motion that nobody has begun, or else the video."""
        key, count = job.performance, min(job.parts, self.workers)
        if count > 1 and key in self._shared_by_many and key not in self._shared:
            self._parts.setdefault(key, [None] * count)
        if None in (parts := self._parts.get(key, [])):
            i = parts.index(None)
            is_done, parts[i] = worker.actor.extract_part.options(num_returns=2).remote(job, i, len(parts))
            self._tasks[is_done] = _Task("part", worker, job, key)
            return
        shared = [self._share(worker, job, key) for key in (job.portrait, job.performance)]
        self._tasks[worker.actor.animate.remote(job, *shared)] = _Task("animate", worker, job)

    def _share(self, worker: _Hired, job: Job, key: Hashable) -> Any:
        """Where the object store holds what this job shares, or will soon; None where it shares nothing."""
        if key not in self._shared_by_many:
            return None
        if key not in self._shared:
            make = worker.actor.encode if key == job.portrait else worker.actor.extract
            parts = self._parts.pop(key, None)
            self._shared[key] = worker.actor.join.remote(*parts) if parts else make.remote(job)
            self._tasks[self._shared[key]] = _Task("share", worker, job, key)
        return self._shared[key]

    def _take(self, reference: Any, task: _Task) -> None:
        """What a call came to."""
        import ray

        worker, job = task.worker, task.job
        if task.kind == "share":  # if it failed, so do the jobs that were to share it
            return
        result, failure, is_lost = None, "", False
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayActorError) and error.actor_id == worker.actor._actor_id.hex():
                self._replace(worker, sentence(error))
                return
            cause = getattr(error, "cause", None) or error  # of the worker, or of what it was given
            failure, is_lost = sentence(cause), isinstance(cause, ray.exceptions.RayError)
        if task.kind == "prepare":
            if failure:
                raise InputError(failure)
            worker.is_ready, self._deaths[None] = True, 0
            self._begun = self._begun or time.monotonic()
        elif task.kind == "progress" and result:
            worker.of_job = result[1]
            self._count(worker, result[0])
        elif task.kind == "part" and job:
            self._go_on(worker, job)  # if the part failed, so do the jobs that were to share it
        elif job:
            worker.job = None
            if is_lost:
                self._return(job, failure)
            elif failure:
                self._finish(Outcome(job, failure=failure))
            elif result:
                self._count(worker, result[1])
                self._finish(Outcome(job, result[0], time.monotonic() - worker.begun))

    def _replace(self, worker: _Hired, reason: str) -> None:
        """For a worker that is dead: another one, and its job for the next that is free."""
        import ray

        self._hired.remove(worker)
        for reference, task in list(self._tasks.items()):
            if task.worker is worker:
                del self._tasks[reference]
                self._shared.pop(task.key, None)  # not made any more
        ray.kill(worker.actor)
        if worker.job:
            self._return(worker.job, reason)
        elif not worker.is_ready:
            self._deaths[None] += 1
            if self._deaths[None] >= ATTEMPTS:
                raise InputError(f"{ATTEMPTS} workers died while they loaded the networks ({reason}).")
        if self._queue:
            self._hire()

    def _return(self, job: Job, reason: str) -> None:
        """Into the queue, unless it has killed too many workers."""
        for key in _keys(job):
            self._forget(key)  # perhaps lost with a node
        self._deaths[job.output] += 1
        if self._deaths[job.output] < ATTEMPTS:
            self._queue.insert(0, job)
        else:
            self._finish(Outcome(job, failure=f"{ATTEMPTS} workers died while they made it ({reason})."))

    def _finish(self, outcome: Outcome) -> None:
        for key in _keys(outcome.job):
            self._uses[key] -= 1
            if not self._uses[key]:
                self._forget(key)
        self.finished(outcome)

    def _forget(self, key: Hashable) -> None:
        self._shared.pop(key, None)
        self._parts.pop(key, None)

    def _count(self, worker: _Hired, made: int) -> None:
        self.progress.frames += max(0, made - worker.frames)
        worker.frames = max(made, worker.frames)

    def _look(self) -> None:
        """About once a second: asks the workers how far they are, and passes on what is known."""
        now = time.monotonic()
        if now - self._looked < POLL:
            return
        self._looked = now
        asked = {id(task.worker) for task in self._tasks.values() if task.kind == "progress"}
        for worker in self._hired:
            if worker.is_ready and id(worker) not in asked:
                reference = worker.actor.progress.options(concurrency_group="progress").remote()
                self._tasks[reference] = _Task("progress", worker)
        under_way = [(worker.job, worker.of_job) for worker in self._hired if worker.job]
        progress = self.progress
        progress.jobs_left = len(self._queue) + len(under_way)
        progress.frames_left = sum(job.frames or 0 for job in self._queue)
        progress.frames_left += sum(max(0, (job.frames or 0) - done) for job, done in under_way)
        progress.workers = sum(worker.is_ready for worker in self._hired)
        progress.seconds = now - self._begun if self._begun else 0.0
        self.watch(progress)


def sentence(error: BaseException) -> str:
    """For people; the worker's log has the rest."""
    text = str(error) if isinstance(error, InputError | OSError) else f"{type(error).__name__}: {error}"
    return text.strip().partition("\n")[0]


def _keys(job: Job) -> set[Hashable]:
    """Of what it may share."""
    return {key for key in (job.portrait, job.performance) if key is not None}
