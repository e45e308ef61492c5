"""Driving pictures from whatever the host hands over, in pieces."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from pathlib import Path

import av
import numpy as np
import torch
from comfy_api.latest import InputImpl
from torch import Tensor

from ..personalive_core.media.video_reader import UNKNOWN_RATE, VideoReader
from . import compat, convert

UNEQUAL = Fraction(2, 1000)  # seconds: containers that count in milliseconds round that much


@dataclass
class Driving:
    """Pictures uint8 (H, W, 3) one after the other, their frames per second, how many to expect, the name of what they
    come from, and the sound or the file that has it, with the second at which they begin."""

    frames: Iterator[np.ndarray]
    frame_rate: Fraction
    count: int | None
    name: str = "images"
    audio: dict | Path | None = None
    begin: Fraction = Fraction(0)

    def read_audio(self, skipped: int, frames: int) -> dict | None:
        """AUDIO for `frames` pictures after the first `skipped` ones; None where there is none."""
        begin, length = self.begin + skipped / self.frame_rate, frames / self.frame_rate
        if self.audio is None:
            return None
        whole = _decode_audio(self.audio, begin + length) if isinstance(self.audio, Path) else self.audio
        rate = whole["sample_rate"]
        first, last = round(begin * rate), round((begin + length) * rate)
        return {"waveform": whole["waveform"][..., first:last], "sample_rate": rate}


@contextmanager
def open_driving(driving, frame_rate: float) -> Iterator[Driving]:
    """`driving` is an IMAGE batch or a VIDEO; a frame rate of 0 keeps the video's own, and is 25 for images."""
    rate = Fraction(frame_rate).limit_denominator(1001) if frame_rate else None
    if isinstance(driving, torch.Tensor):
        yield Driving(_pictures(driving), rate or UNKNOWN_RATE, len(driving))
    elif isinstance(driving, InputImpl.VideoFromFile):
        with _path_of(driving) as path, VideoReader(path) as reader:
            yield _from_reader(reader, path, rate, *compat.trim_window(driving))
    else:
        parts = driving.get_components()
        own = Fraction(parts.frame_rate)
        timed = ((pixels, i / own) for i, pixels in enumerate(_pictures(parts.images)))
        count = len(parts.images) if rate is None else round(len(parts.images) / own * rate)
        yield Driving(
            _resampled(timed, rate) if rate else _pictures(parts.images), rate or own, count, "video", parts.audio
        )


def _from_reader(
    reader: VideoReader, path: Path, rate: Fraction | None, trim_start: float, trim_length: float
) -> Driving:
    begin = Fraction(trim_start).limit_denominator(1000)
    end = begin + Fraction(trim_length).limit_denominator(1000) if trim_length else None
    timed = ((frame.pixels, frame.time - begin) for frame in reader if frame.time >= begin)
    if end is not None:
        timed = takewhile(lambda item: item[1] < end - begin, timed)
    frames = _resampled(timed, rate) if rate else _in_step(timed, reader.frame_rate)
    count = None
    if reader.frame_count is not None:
        length = reader.frame_count / reader.frame_rate - begin
        count = max(1, round((length if end is None else min(length, end - begin)) * (rate or reader.frame_rate)))
    sound = path if reader.has_audio else None
    return Driving(frames, rate or reader.frame_rate, count, reader.path.name, sound, begin)


def _pictures(images: Tensor) -> Iterator[np.ndarray]:
    if not len(images):
        convert.to_pictures(images, "driving")  # says what is wrong
    for image in images:
        yield convert.to_pictures(image[None], "driving")[0]


def _resampled(frames: Iterator[tuple[np.ndarray, Fraction]], rate: Fraction) -> Iterator[np.ndarray]:
    """The picture that is shown at each 1/rate seconds."""
    shown, index = None, 0
    for pixels, time in frames:
        while shown is not None and index / rate < time:
            yield shown
            index += 1
        shown = pixels
    if shown is not None:
        yield shown


def _in_step(frames: Iterator[tuple[np.ndarray, Fraction]], rate: Fraction) -> Iterator[np.ndarray]:
    """Every picture once, as long as they are equally far apart. From where they are not, a picture is shown again or
    left out where its time and its place at `rate` would come apart by more than a frame: the sound stays in step."""
    step = last = None
    is_variable, count = False, 0
    for pixels, time in frames:
        if last is not None:
            step = step or time - last
            is_variable |= abs(time - last - step) > UNEQUAL
        last = time
        if is_variable and count / rate - time > 1 / rate:
            continue
        while is_variable and time - count / rate > 1 / rate:
            yield pixels
            count += 1
        yield pixels
        count += 1


@contextmanager
def _path_of(video) -> Iterator[Path]:
    source = video.get_stream_source()
    if isinstance(source, str):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "driving")
        path.write_bytes(source.getbuffer())
        yield path


def _decode_audio(path: Path, end: Fraction) -> dict:
    """The first sound of a file up to `end` seconds, as AUDIO."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=stream.sample_rate)
        pieces, samples = [np.zeros((stream.codec_context.channels, 0), np.float32)], 0
        for frame in container.decode(stream):
            for part in resampler.resample(frame):
                pieces.append(part.to_ndarray())
                samples += part.samples
            if samples >= end * stream.sample_rate:
                break
        return {"waveform": torch.from_numpy(np.concatenate(pieces, axis=1))[None], "sample_rate": stream.sample_rate}
