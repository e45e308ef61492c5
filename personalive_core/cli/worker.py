"""What runs on each GPU of `batch` and `serve`: `animate`, with networks that stay loaded."""

import argparse
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..batch import storage
from ..batch.jobs import Job
from ..errors import InputError
from ..media.video_writer import find_partial
from ..motion.parts import Part
from ..pipeline import Pipeline
from ..sampling.reference import Reference
from .animate import Extracted, ExtractedPart, animate_file, extract, extract_part, join, load_pipeline, settings_of
from .crop_options import CropOptions
from .options import arithmetic
from .outputs import Checkpoint
from .split import animate_piece

PIPELINE = ("weights", "device", "dtype", "fast", "small_decoder", "vram")
CROP = ("detector", "face", "margin", "vertical_offset")
DRIVING = ("driving_video", "start", "max_frames", "mirror", "no_hold", "crop_driving", *CROP, *PIPELINE)
PORTRAIT = ("ref_image", "crop", "refine", "width", "height", *CROP, *PIPELINE)
"""The options that the networks, the extracted motion and the encoded portrait depend on."""


def values_of(options: argparse.Namespace, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}={getattr(options, name)}" for name in names)


class AnimateWorker:
    """A `Worker` (see `batch.driver`) whose jobs' options are those of `animate`, with URLs in place of paths where the
    file is elsewhere.

    Args:
        options: Of any job; those of its networks count.
        threads: For PyTorch to use on the CPU.
    """

    def __init__(self, options: argparse.Namespace, threads: int):
        self._options, self._threads = options, threads
        self._networks: tuple[str, ...] = ()
        self._kept: Pipeline | None = None
        self._loaded = ExitStack()
        self._made = self._of_job = 0

    def prepare(self) -> None:
        torch.set_num_threads(self._threads)
        self._pipeline(self._options)

    def encode(self, job: Job) -> Reference:
        options = self._local(job)
        pipeline = self._pipeline(options)
        with arithmetic(options):
            picture = CropOptions(options).portrait(pipeline.motion_extractor, pipeline.device)
            return _moved(pipeline.encode_reference(picture), torch.device("cpu"))

    def extract(self, job: Job) -> Extracted:
        options = self._local(job)
        with arithmetic(options):
            return extract(options, self._pipeline(options))

    def extract_part(self, job: Job, index: int, count: int) -> tuple[None, ExtractedPart]:
        options = self._local(job)
        with arithmetic(options):
            return None, extract_part(options, self._pipeline(options), Part(index, count))

    def join(self, *parts: ExtractedPart) -> Extracted:
        return join(parts)

    def animate(self, job: Job, portrait: Reference | None, performance: Extracted | None) -> tuple[int, int]:
        self._of_job = 0
        if storage.exists(job.output):  # a worker that died may have got as far
            return 0, self._made
        options = self._local(job)
        pipeline = self._pipeline(options)
        options.output = storage.working_path(job.output)
        options.resume, options.overwrite = True, True
        reference = portrait and _moved(portrait, pipeline.device)
        if options.piece:
            with arithmetic(options):
                frames = animate_piece(options, options.output, pipeline, reference, performance, self._bar)
            return frames, self._made
        _forget_other_settings(options)
        with ExitStack() as files:
            frames = animate_file(
                options,
                options.output,
                files,
                pipeline=pipeline,
                reference=reference,
                extracted=performance,
                progress=self._bar,
            )
        if storage.is_url(job.output):
            storage.publish(options.output, job.output)
        return frames, self._made

    def progress(self) -> tuple[int, int]:
        return self._made, self._of_job

    def _pipeline(self, options: argparse.Namespace) -> Pipeline:
        """The networks of these options, and no others in memory."""
        if self._networks != (wanted := values_of(options, PIPELINE)):
            self._loaded.close()
            self._networks, self._kept = (), None
            pipeline = load_pipeline(options)
            self._loaded.enter_context(pipeline.onload())
            self._networks, self._kept = wanted, pipeline
        assert self._kept
        return self._kept

    def _local(self, job: Job) -> argparse.Namespace:
        """Its options, with the files of its URLs on this machine."""
        options = argparse.Namespace(**vars(job.options))
        for name, value in vars(options).items():
            if isinstance(value, str) and storage.is_url(value):
                setattr(options, name, storage.fetch(value))
        return options

    def _bar(self, total: int | None, initial: int, unit: str) -> "_Bar":
        self._of_job = initial
        return _Bar(self)

    def _count(self) -> None:
        self._made, self._of_job = self._made + 1, self._of_job + 1


class PreparedWorker(AnimateWorker):
    """It loads the networks at once: a replica of Ray Serve."""

    def __init__(self, options: argparse.Namespace, threads: int):
        super().__init__(options, threads)
        self.prepare()


class _Bar:
    """Called as tqdm's; tells the worker."""

    def __init__(self, worker: AnimateWorker):
        self.update = worker._count

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def _moved(reference: Reference, device: torch.device) -> Reference:
    """A copy: what comes from the object store is read-only, and aligned as it happens."""

    def move(x: Tensor) -> Tensor:
        return x.to(device, copy=True)

    return replace(
        reference,
        latents=move(reference.latents),
        image_embeds=move(reference.image_embeds),
        features={path: move(x) for path, x in reference.features.items()},
        motion=type(reference.motion).of_tensors({key: x.clone() for key, x in reference.motion.tensors().items()}),
    )


def _forget_other_settings(options: argparse.Namespace) -> None:
    """What an earlier batch left of this video with other options is of no use."""
    inputs = [path for path in (options.ref_image, options.driving_video, options.motion) if path]
    checkpoint = Checkpoint(options.output, settings_of(options, inputs))
    try:
        checkpoint.load()
    except InputError:
        checkpoint.remove()
        if partial := find_partial(options.output):
            partial.unlink()
