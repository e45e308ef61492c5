"""Assemble Video: latents become frames in pieces, straight into a file."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from uuid import uuid4

import folder_paths
import numpy as np
import torch
from comfy_api.latest import InputImpl, io
from comfy_execution.graph import ExecutionBlocker
from PIL import Image
from torch import Tensor

from ..personalive_core.config import PIXELS_PER_LATENT
from ..personalive_core.errors import InputError
from ..personalive_core.media.audio import write_wav
from ..personalive_core.media.video_writer import VideoWriter
from ..personalive_core.sampling.cuda import DecodedFrames, PinnedCopy, one_behind
from . import compat, decode
from .say import Progress, say_first

PREVIEW_EVERY = 0.2  # seconds: the host makes a JPEG of each
CRF = {"high": 14, "good": 18, "small": 25}

_written: list[Path] = []  # the videos in the host's temporary folder that its cache may hold


def removed_videos() -> int:
    """How many of them are gone: a fingerprint, without which the cache would go on handing them out."""
    return sum(not path.is_file() for path in _written)


@contextmanager
def temporary_video() -> Iterator[tuple[Path, Path]]:
    """Names for a video in the host's temporary folder and for its sound, which is removed at the end."""
    path = Path(folder_paths.get_temp_directory(), f"personalive_{uuid4().hex}.mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = path.with_suffix(".wav")
    try:
        yield path, sound
        _written.append(path)
    except (InputError, OSError) as error:
        if path.parent.is_dir():
            raise
        raise InputError(f"{path.parent} was removed while a video was written into it: run again.") from error
    finally:
        sound.unlink(missing_ok=True)


class SwitchedOff(ExecutionBlocker):
    """An output that is not there: the node that it is connected to fails with a sentence. With the host's own class
    the prompt would end as a success."""

    def __init__(self, sentence: str):
        self._sentence = sentence

    @property
    def message(self) -> str:
        raise InputError(self._sentence)


class AssembleVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveAssembleVideo",
            display_name="PersonaLive Assemble Video",
            category="PersonaLive",
            **compat.search_aliases(
                "portrait video, decode video, vae decode video, video combine, talking head video"
            ),
            description="Decodes latents in pieces into a video file, with sound; memory does not grow with length.",
            inputs=[
                io.Latent.Input("samples", tooltip="From Sample."),
                io.Vae.Input("vae", tooltip="The VAE that encoded the reference."),
                io.Float.Input(
                    "frame_rate",
                    default=25.0,
                    min=1.0,
                    max=240.0,
                    step=0.01,
                    tooltip="Frames per second; connect the frame rate of Extract Motion.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="Sound to add, cut to the video's length."),
                io.Combo.Input(
                    "quality",
                    options=list(CRF),
                    default="good",
                    tooltip="'high' makes large files, 'small' small ones.",
                ),
                io.Boolean.Input(
                    "images",
                    default=False,
                    tooltip="Give the frames as images too. They all stand in memory: 3 MB a frame at 512 x 512.",
                ),
                io.Boolean.Input(
                    "small_decoder",
                    default=False,
                    tooltip="Decode with TAESD in models/vae_approx in place of the VAE: faster, and softer.",
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video",
                    tooltip="The video with its sound, as a temporary file: save it with Save Video.",
                ),
                io.Image.Output(display_name="images", tooltip="The frames as images, if 'images' is on."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_) -> int:
        return removed_videos()

    @classmethod
    def execute(
        cls,
        samples: dict,
        vae,
        frame_rate: float,
        quality: str,
        images: bool,
        small_decoder: bool,
        audio: dict | None = None,
    ) -> io.NodeOutput:
        latents = samples["samples"]
        channels = getattr(vae, "latent_channels", 4)
        if latents.ndim != 4 or not len(latents) or latents.shape[1] != channels:
            raise InputError(
                f"latents of shape {tuple(latents.shape)} cannot be decoded by a VAE of {channels} channels: connect "
                "the latent of Sample and the VAE of Encode Reference."
            )
        if small_decoder:
            vae = decode.small_decoder()
        rate = Fraction(frame_rate).limit_denominator(1001)
        kept = []
        with temporary_video() as (path, wav):
            sound = write_sound(audio, wav) if audio is not None else None
            _write_frames(latents, vae, rate, CRF[quality], path, sound, kept if images else None)
        off = SwitchedOff("switch on 'images' in Assemble Video to get the frames as images.")
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), torch.cat(kept) if images else off)


class _DecodedFrames:
    """Copies of decoded frames (F, H, W, 3) on the CPU: as bytes, and as IMAGE if asked for."""

    def __init__(self, frames: Tensor, as_images: bool):
        self._pictures = DecodedFrames(frames)
        self._images = PinnedCopy(frames.contiguous()) if as_images else None

    def result(self) -> tuple[np.ndarray, Tensor | None]:
        images = self._images.result().clone() if self._images else None  # keep no pinned memory
        return self._pictures.result(), images


def _write_frames(latents, vae, rate: Fraction, crf: int, path: Path, sound: Path | None, kept: list | None) -> None:
    progress = Progress(len(latents), "frames")
    height, width = (PIXELS_PER_LATENT * side for side in latents.shape[-2:])
    with VideoWriter(path, width, height, rate, audio_from=sound, crf=crf) as video:
        done, shown = 0, 0.0
        started = (_DecodedFrames(frames, kept is not None) for frames in decode.decoded(vae, latents))
        for pictures, images in one_behind(started):
            for pixels in pictures:
                video.write(pixels, done / rate)
                done += 1
            if images is not None:
                kept.append(images)
            preview = None
            if time.monotonic() - shown > PREVIEW_EVERY:
                preview, shown = ("JPEG", Image.fromarray(pictures[-1]), 512), time.monotonic()
            progress.update(done, len(latents), preview)


def write_sound(audio: dict, path: Path) -> Path:
    """AUDIO as a WAV file, for the video writer to read."""
    say_first(audio["waveform"], "sounds")
    write_wav(path, audio["waveform"][0].float().cpu().numpy(), audio["sample_rate"])
    return path
