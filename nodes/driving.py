"""Driving pictures from whatever the host hands over, in pieces."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, count, takewhile
from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import InputImpl
from torch import Tensor

from ..personalive_core.errors import InputError
from ..personalive_core.media.audio import read_audio, trim_audio
from ..personalive_core.media.video_reader import DEFAULT_FRAME_RATE, Frame, VideoReader
from . import compat, convert
from .say import say


@dataclass
class Driving:
    """Frames with their times, as the core's video reader gives them, from whatever the host hands over.

    frame_rate: frames per second, the average where it varies; count: how many frames to expect; name: of what they
    come from; audio: the sound, or the file that has it; begin: the second of the sound at which the frames begin.
    """

    frames: Iterator[Frame]
    frame_rate: Fraction
    count: int | None
    name: str = "images"
    audio: dict | Path | None = None
    begin: Fraction = Fraction(0)

    def read_audio(self, begin: Fraction, length: Fraction) -> dict | None:
        """AUDIO of so many seconds from a frame's time on; None where there is none."""
        begin += self.begin
        if isinstance(self.audio, Path):
            found = read_audio(self.audio, begin, length)
            return found and {"waveform": torch.from_numpy(found[0])[None], "sample_rate": found[1]}
        if self.audio is None:
            return None
        waveform = trim_audio(self.audio["waveform"], self.audio["sample_rate"], begin, length)
        return {**self.audio, "waveform": waveform}


@contextmanager
def open_driving(driving, image_rate: float = 0.0) -> Iterator[Driving]:
    """Opens an IMAGE batch or a VIDEO. Images come at `image_rate` frames per second, or 25 where that is 0; a video
    has a rate of its own."""
    if isinstance(driving, torch.Tensor):
        yield _from_images(driving, to_rate(image_rate) or DEFAULT_FRAME_RATE)
    elif isinstance(driving, InputImpl.VideoFromFile):
        with _path_of(driving) as path, VideoReader(path) as reader:
            start, length = compat.trim_window(driving)
            yield _with_first_frame(_from_reader(reader, path, start, length), start, length)
            if reader.problem:
                say(reader.problem)
    else:
        parts = driving.get_components()
        yield replace(_from_images(parts.images, Fraction(parts.frame_rate)), name="video", audio=parts.audio)


def to_rate(frame_rate: float) -> Fraction | None:
    """A rate from a widget, exact where it is one of video's own (30000/1001); None for 0."""
    return Fraction(frame_rate).limit_denominator(1001) if frame_rate else None


def _from_images(images: Tensor, rate: Fraction) -> Driving:
    if not len(images):
        convert.to_pictures(images, "driving")  # says what is wrong
    pictures = (convert.to_pictures(image[None], "driving")[0] for image in images)
    return Driving(map(Frame, pictures, (i / rate for i in count())), rate, len(images))


def _from_reader(reader: VideoReader, path: Path, trim_start: float, trim_length: float) -> Driving:
    begin = Fraction(trim_start).limit_denominator(1000)
    length = Fraction(trim_length).limit_denominator(1000) if trim_length else None
    frames = (Frame(frame.pixels, frame.time - begin) for frame in reader if frame.time >= begin)
    if length is not None:
        frames = takewhile(lambda frame: frame.time < length, frames)
    metadata = reader.metadata
    rest = metadata.frame_count / metadata.frame_rate - begin
    expected = max(1, round((rest if length is None else min(rest, length)) * metadata.frame_rate))
    sound = path if metadata.has_audio else None
    return Driving(frames, metadata.frame_rate, expected, reader.path.name, sound, begin)


def _with_first_frame(driving: Driving, start: float, length: float) -> Driving:
    """The same. InputError where the host has trimmed all frames away."""
    first = next(driving.frames, None)
    if first is None:
        part = f"from {start:g} s to {start + length:g} s" if length else f"from {start:g} s on"
        raise InputError(f"{driving.name} shows no frame {part}, to which it is trimmed: trim it less.")
    return replace(driving, frames=chain([first], driving.frames))


def frames_at(frames: Iterable[Frame], times: Iterable[Fraction]) -> Iterator[np.ndarray]:
    """The picture that is shown at each of the times, in order, until the video ends one frame after its last one."""
    coming = iter(frames)
    shown = next(coming, None)
    upcoming = next(coming, None)
    step = Fraction(0)
    for time in times:
        while upcoming is not None and upcoming.time <= time:
            step = upcoming.time - shown.time
            shown, upcoming = upcoming, next(coming, None)
        if shown is None or (upcoming is None and step and time >= shown.time + step):
            return
        yield shown.pixels


@contextmanager
def _path_of(video) -> Iterator[Path]:
    source = video.get_stream_source()
    if isinstance(source, str):
        if not os.path.isfile(source):
            raise InputError(f"{source} is not there any more: run again.")
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "driving")
        path.write_bytes(source.getbuffer())
        yield path
