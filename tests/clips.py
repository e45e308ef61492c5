"""Driving videos that tests make, and what they read back of a result."""

from fractions import Fraction
from itertools import islice

import av
import numpy as np

from personalive_core.media.video_reader import VideoReader
from personalive_core.media.video_writer import VideoWriter


def flat(value, height=48, width=64):
    return np.full((height, width, 3), value, np.uint8)


def write_source(path, seconds=2.0, codec="aac", video_start=0.0, onset=1.0, sample_rate=44100):
    """A clip that is dark and silent, and from `onset` (in the file's clock) on bright with a tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(codec, rate=sample_rate)
        audio.codec_context.layout = "mono"
        for i in range(round((seconds - video_start) * 25)):
            time = video_start + i / 25
            frame = av.VideoFrame.from_ndarray(flat(255 if time >= onset else 0), format="rgb24")
            frame.pts, frame.time_base = round(time * 25), Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        clock = np.arange(round(seconds * sample_rate)) / sample_rate
        tone = (np.sin(2 * np.pi * 440 * clock) * (clock >= onset) * 20000).astype(np.int16)
        for i in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, i : i + 1024], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, i, Fraction(1, sample_rate)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def read_sound(path):
    """Codec, seconds of the first loud sample from the start of the video, and where the sound ends (None in MKV)."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        zero = video.start_time * video.time_base
        stream = container.streams.audio[0]
        onset = None
        for frame in container.decode(stream):
            samples = frame.to_ndarray()
            samples = np.abs(samples.astype(np.float64)).max(0) / (1 if samples.dtype.kind == "f" else 32768)
            if onset is None and samples.max() > 0.2:
                onset = float(frame.pts * frame.time_base - zero) + int((samples > 0.2).argmax()) / frame.sample_rate
        end = stream.duration and float((stream.start_time + stream.duration) * stream.time_base - zero)
        return stream.codec_context.name, onset, end


def write_clip(path, times, rate=Fraction(25), **settings):
    with VideoWriter(path, 64, 48, rate, **settings) as writer:
        for i, time in enumerate(times):
            writer.write(flat(20 + 10 * i % 200), time)
    return path


def copy_with_sound(source, target, count=None):
    with VideoReader(source) as reader:
        rate, time_base = reader.metadata.frame_rate, reader.metadata.time_base
        with VideoWriter(target, 64, 48, rate, time_base=time_base, audio_from=source) as writer:
            times = []
            for frame in islice(reader, count):
                times.append(frame.time)
                writer.write(frame.pixels, frame.time)
    return times
