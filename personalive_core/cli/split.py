"""`animate --split`: one video in pieces, on all GPUs at once or one after the other, joined at the end."""

import shutil
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..batch.driver import Batch, Outcome, Progress
from ..batch.jobs import Job
from ..errors import InputError
from ..media.video_writer import VideoWriter, find_partial
from ..sampling.keyframes import KeyframeSettings
from ..sampling.reference import Reference
from ..sampling.split import lead_frames, split_motion
from .animate import (
    Extracted,
    check_files,
    check_options,
    extract,
    load_pipeline,
    performed,
    say_left_out,
    settings_of,
)
from .crop_options import CropOptions
from .motion_options import open_driver
from .options import arithmetic
from .outputs import Checkpoint

if TYPE_CHECKING:
    from ..pipeline import Pipeline

PAYS = 4  # how many leads long a piece must be, so that little of the work is lead
UNSPLIT = ("sheet", "save_motion", "crop_preview")  # options that a video in pieces does not have


def animate_in_pieces(options: Namespace, output: Path) -> None:
    """Makes one video with `--split`. What an earlier run with these options has made of it is kept.

    Raises:
        InputError: An option cannot be, or a file cannot be read or written.
    """
    if options.split < 2:
        raise InputError(f"--split is {options.split}, but must be 2 or more.")
    for name in UNSPLIT:
        if getattr(options, name):
            raise InputError(f"--{name.replace('_', '-')} does not go with --split: leave one of them out.")
    adjustment = check_options(options)
    check_files(options, output)
    CropOptions(options)  # refuses what cannot be
    earlier = None if pieces_folder(output).exists() or options.overwrite else find_partial(output)
    if earlier:
        raise InputError(
            f"{earlier} is what a run without --split had written; it plays. --resume without --split goes on from "
            "there, and --overwrite begins again."
        )
    with open_driver(options, adjustment) as driver:
        frames = len(driver.performance.motion) if driver.performance else driver.result_count(adjustment)
        say_left_out(options, driver)
    begun, outcomes = time.perf_counter(), list[Outcome]()
    pieces = Pieces([Job(output.name, str(output), options, frames)], lambda job: options.split, outcomes.append)
    devices = torch.cuda.device_count() if options.device in ("auto", "cuda") else 1
    try:
        (_make_at_once if devices > 1 else _make_in_turn)(pieces)
    except BaseException:
        if any(pieces_folder(output).glob("*")):
            print(f"what is done is kept: the same command with -o {output} goes on from there", file=sys.stderr)
        raise
    if outcomes[0].failure:
        raise InputError(outcomes[0].failure)
    frames = outcomes[0].frames
    print(f"{output}: {frames} frames, {frames / (time.perf_counter() - begun):.1f} a second")


def _make_in_turn(pieces: "Pieces") -> None:
    options = pieces.jobs[0].options
    with arithmetic(options):
        pipeline = load_pipeline(options)
        picture = CropOptions(options).portrait(pipeline.motion_extractor, pipeline.device)
        reference = pipeline.encode_reference(picture)
        extracted = None if options.motion else extract(options, pipeline)
        for job in pieces.jobs:
            if not Path(job.output).is_file():
                animate_piece(job.options, Path(job.output), pipeline, reference, extracted)
            pieces.finished(Outcome(job))


def _make_at_once(pieces: "Pieces") -> None:
    from ..batch.cluster import connected, hiring
    from .worker import DRIVING, PORTRAIT, AnimateWorker, values_of

    with redirect_stdout(sys.stderr), connected(None, None, 1) as cluster, tqdm(unit="frame") as bar:

        def watch(progress: Progress) -> None:
            bar.total = progress.frames + progress.frames_left
            bar.update(progress.frames - bar.n)

        options = pieces.jobs[0].options
        shared: dict[str, Any] = dict(portrait=values_of(options, PORTRAIT), performance=values_of(options, DRIVING))
        if options.motion:
            del shared["performance"]
        jobs = [replace(job, **shared) for job in pieces.jobs]
        hire = partial(hiring(AnimateWorker, cluster), options, cluster.threads)
        Batch(jobs, hire, cluster.workers, pieces.finished, watch).run()


class Pieces:
    """Jobs of `animate` in pieces, which are joined when the last one of a video is done.

    The pieces are in a folder beside the video, under names that tell of the options that they were made with.

    Args:
        wholes: The jobs.
        count: In how many pieces a job is made; 1 leaves it as it is.
        finished: Gets the outcome of each job.

    Attributes:
        jobs: What is to be made in their place. Some may be there already.
        left: How many of the wholes are not finished.
    """

    def __init__(self, wholes: Sequence[Job], count: Callable[[Job], int], finished: Callable[[Outcome], object]):
        self._finished, self.left = finished, len(wholes)
        self._wholes: dict[str, tuple[Job, list[Job]]] = {}  # by the pieces' outputs
        self._outcomes: dict[str, list[Outcome]] = defaultdict(list)  # by the wholes' outputs
        self.jobs: list[Job] = []
        for whole in wholes:
            pieces = _pieces(whole, count(whole))
            self._wholes |= {job.output: (whole, pieces) for job in pieces}
            self.jobs += pieces

    def finished(self, outcome: Outcome) -> None:
        """Takes the outcome of one of `jobs`."""
        whole, pieces = self._wholes[outcome.job.output]
        outcomes = self._outcomes[whole.output]
        outcomes.append(outcome)
        if len(outcomes) < len(pieces):
            return
        if outcome.job is not whole:
            failure = next((each.failure for each in outcomes if each.failure), "")
            outcome = Outcome(whole, 0, sum(each.seconds for each in outcomes), failure)
            if not failure:
                outcome = _joined(outcome, [Path(job.output) for job in pieces])
        self.left -= 1
        self._finished(outcome)


def pieces_that_pay(job: Job, most: int) -> int:
    """In how many pieces a job should be made if so many workers would otherwise have nothing to do."""
    options = job.options
    is_here = "://" not in job.output and not any(getattr(options, name) for name in UNSPLIT)
    if not is_here or job.frames is None:
        return 1
    return max(1, min(most, job.frames // (PAYS * lead_frames(options.keyframes))))


def _pieces(whole: Job, count: int) -> list[Job]:
    if count == 1:
        return [whole]
    options, output = whole.options, Path(whole.output).absolute()
    inputs = [path for path in (options.ref_image, options.driving_video, options.motion) if isinstance(path, Path)]
    tag = sha256(repr(sorted(settings_of(options, inputs).items())).encode()).hexdigest()[:12]
    parts = 1 if options.crop_driving or options.no_hold else count  # there a frame depends on those before it
    return [
        replace(
            whole,
            name=f"{whole.name}, piece {i + 1} of {count}",
            output=str(pieces_folder(output) / f"{tag}-{i + 1}of{count}.mp4"),
            options=Namespace(**vars(options) | dict(piece=(i, count))),
            frames=whole.frames and whole.frames // count,
            cost=whole.cost / count,
            parts=parts,
        )
        for i in range(count)
    ]


def pieces_folder(output: Path) -> Path:
    """Where the pieces of a video are until it is joined."""
    return output.with_name(f".{output.name}.pieces")


def _joined(outcome: Outcome, pieces: list[Path]) -> Outcome:
    """Joins the pieces of a job's video and removes them. The outcome has its frames, or says why it failed."""
    options, output = outcome.job.options, Path(outcome.job.output)
    adjustment = check_options(options)
    try:
        with (
            open_driver(options, adjustment) as driver,
            VideoWriter(
                output,
                *CropOptions(options).output_size,
                driver.result_rate(adjustment),
                time_base=driver.result_time_base(adjustment),
                audio_from=driver.audio_from,
                audio_start=driver.audio_start,
            ) as video,
        ):
            frames = video.join(pieces)
    except (InputError, OSError) as error:
        return outcome._replace(failure=str(error))
    shutil.rmtree(pieces_folder(output))
    Checkpoint(output, {}).remove()  # of a run that was to make it in one piece
    return outcome._replace(frames=frames)


def animate_piece(
    options: Namespace,
    output: Path,
    pipeline: "Pipeline",
    reference: Reference | None = None,
    extracted: Extracted | None = None,
    progress: Any = tqdm,
) -> int:
    """Makes one piece, a video of its own without sound.

    Args:
        options: Of `animate`, with `piece`: its number, from 0, and how many there are.
        output: The video, which has its name only when it is complete.
        pipeline: The networks.
        reference: The portrait, if it is encoded.
        extracted: The driver's motion, if it is extracted.
        progress: Makes the bar: called as `tqdm`.

    Returns:
        How many frames it has.

    Raises:
        InputError: A file cannot be read or written, or the whole is too short.
    """
    adjustment, crop, (index, count) = check_options(options), CropOptions(options), options.piece
    picture = crop.portrait(pipeline.motion_extractor, pipeline.device)
    reference = reference or pipeline.encode_reference(picture)
    if not (extracted or options.motion):
        extracted = extract(options, pipeline)
    with open_driver(options, adjustment) as driver:
        performance, times = performed(driver, adjustment, extracted)
        rate, time_base = driver.result_rate(adjustment), driver.result_time_base(adjustment)
    keyframes = KeyframeSettings.in_seconds(options.keyframes, options.keyframe_threshold, options.return_every, rate)
    settings: dict[str, Any] = dict(keyframes=keyframes, strength=performance.strength, neutral=performance.neutral)
    piece = split_motion(reference.motion, performance.motion, count, **settings)[index]
    begin, end = times[piece.start], times[piece.stop] if piece.stop < len(times) else None
    checkpoint = Checkpoint(output, {}, piece.start)  # the settings are in the piece's name
    done, _ = checkpoint.load() if find_partial(output) else (0, {})
    video = VideoWriter(output, *crop.output_size, rate, time_base=time_base, resumable=True, resume_at=done)
    animated = pipeline.animate_piece(
        reference,
        performance.motion,
        piece,
        steps=options.steps,
        seed=options.seed,
        resume=checkpoint.path if done else None,
        watch=checkpoint.watch,
        **settings,
    )
    with video, closing(animated), progress(total=len(piece), initial=done, unit="frame") as bar:
        numbers = iter(piece[done:])
        try:
            for chunk in animated:
                for pixels in chunk:
                    video.write(crop.finish(pixels), times[next(numbers)] - begin)
                    bar.update()
                checkpoint.save(video, {})
        except KeyboardInterrupt:
            video.discard()  # an incomplete piece must not take its name
            raise
        video.finish(end=None if end is None else end - begin)
    checkpoint.remove()
    return len(piece)
