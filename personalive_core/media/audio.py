"""Sound: copied from file to file, decoded, trimmed, written; always on the clock of the video's first frame."""

import logging
import wave
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ..errors import InputError
from .filters import display_time, open_container

logger = logging.getLogger(__name__)

# Codecs that these containers take unchanged, by the names of FFmpeg's decoders; the rest becomes AAC.
COPIED_CODECS = {"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "libopus", "flac"}
NOT_IN_MOV = {"opus", "libopus", "flac"}
JITTER = Fraction(1, 100)  # seconds: MKV rounds times to milliseconds, and sound must not tear at every packet


def _open(path: Path) -> av.container.InputContainer | None:
    try:
        container = open_container(path, "video or sound file")
    except av.FFmpegError as error:
        raise InputError(f"The sound of {path} cannot be read ({error.strerror}); give another file.") from error
    if container.streams.audio:
        codec = container.streams.audio[0].codec_context
        if codec is not None and codec.sample_rate:
            return container
        logger.warning("the sound of %s is of an unknown kind and is left out", path)
    container.close()
    return None


def _video_start(path: Path, audio: av.AudioStream) -> Fraction:
    """Seconds, on the clock of the sound, of the first frame that VideoReader gives."""
    with open_container(path, "video or sound file") as container, suppress(av.FFmpegError):
        streams = [stream for stream in container.streams.video[:1] if stream.codec_context]
        for packet in container.demux(streams[0]) if streams else ():
            # AVI: see display_time. Elsewhere the first packets may be hidden by an edit list, which the decoder knows.
            for item in [packet] if container.format.name == "avi" else _decoded(packet):
                if (stamp := display_time(item, container)) is not None:
                    return stamp * packet.time_base
    return (audio.start_time or 0) * audio.time_base


def _decoded(packet: av.Packet) -> list[av.VideoFrame]:
    try:
        return packet.decode()
    except av.FFmpegError:
        return []


def _packets(path: Path, container: av.container.InputContainer) -> Iterator[av.Packet]:
    packets = container.demux(container.streams.audio[0])
    while True:
        try:
            packet = next(packets)
        except av.FFmpegError as error:
            logger.warning("the sound of %s breaks off (%s)", path, error.strerror)
            return
        if packet.size == 0:
            return
        yield packet


def _frames(path: Path, container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
    """What can be decoded and has a time."""
    for packet in _packets(path, container):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            logger.warning("a piece of the sound of %s cannot be decoded and is left out", path)
            continue
        yield from (frame for frame in frames if frame.pts is not None)


def read_audio(path: str | Path, begin: Fraction, length: Fraction) -> tuple[np.ndarray, int] | None:
    """Decode a part of a file's first audio stream.

    Where the file has no sound (before it begins, after it ends, in place of damaged packets) there is silence.

    Args:
        path: An audio or video file.
        begin: Where the part begins, in seconds from the first video frame; without video, from the first sample.
        length: Seconds.

    Returns:
        float32 (channels, samples) in [-1, 1] of exactly `length`, and the sample rate in Hz; None where the file has
        no sound that can be decoded.

    Raises:
        InputError: The file cannot be opened.
    """
    path = Path(path)
    container = _open(path)
    if container is None:
        return None
    with container:
        stream = container.streams.audio[0]
        layout, rate = stream.codec_context.layout, stream.codec_context.sample_rate
        start = _video_start(path, stream) + begin
        waveform = np.zeros((layout.nb_channels, round(length * rate)), np.float32)
        position: int | None = None  # in the waveform
        kind = None
        for frame in _frames(path, container):
            if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
                resampler = av.AudioResampler("fltp", layout, rate)
            due = round((frame.pts * frame.time_base - start) * rate)
            if position is None or abs(due - position) > JITTER * rate:
                position = due
            if position >= waveform.shape[1]:
                break
            for part in resampler.resample(frame):
                samples = part.to_ndarray()[:, max(0, -position) :]
                place = waveform[:, max(0, position) : max(0, position + part.samples)]
                place[:] = samples[:, : place.shape[1]]
                position += part.samples
        return None if position is None else (waveform, rate)


def trim_audio(waveform: Any, sample_rate: float, begin: Fraction, length: Fraction) -> Any:
    """Cut a part out of decoded sound.

    Args:
        waveform: Array or tensor (..., samples).
        sample_rate: Hz.
        begin: Seconds to leave out at the beginning.
        length: Seconds to keep, or as many as there are.

    Returns:
        A view of the same kind, (..., samples).
    """
    return waveform[..., round(begin * sample_rate) : round((begin + length) * sample_rate)]


def write_wav(path: str | Path, waveform: np.ndarray, sample_rate: float) -> None:
    """Write decoded sound as 16-bit WAV.

    Args:
        path: The file, which is overwritten.
        waveform: float (channels, samples); clipped to [-1, 1].
        sample_rate: Hz, rounded to a whole number.
    """
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(waveform))
        file.setsampwidth(2)
        file.setframerate(round(sample_rate))
        second = round(sample_rate)
        for i in range(0, waveform.shape[1], second):  # a second at a time: a copy of all of it would be large
            samples = waveform[:, i : i + second].clip(-1, 1).T * 32767
            file.writeframes(samples.round().astype("<i2").tobytes())


class AudioCopier:
    """Copies the first audio stream of a file into a video that is being written.

    Sound that the container takes is copied unchanged, and the rest becomes AAC. `open` makes one.
    """

    @classmethod
    def open(
        cls, source: Path, output: av.container.OutputContainer, suffix: str, begin: Fraction
    ) -> "AudioCopier | None":
        """Add the audio stream to `output`.

        Args:
            source: An audio or video file.
            output: The video, before its first packet.
            suffix: Of its name: ".mp4", ".mov" or ".mkv".
            begin: Where the sound begins, in seconds from the first video frame of `source`.

        Returns:
            None where `source` has no sound that can be read.

        Raises:
            InputError: `source` cannot be opened.
        """
        container = _open(source)
        return container and cls(source, container, output, suffix, begin)

    def __init__(
        self,
        source: Path,
        container: av.container.InputContainer,
        output: av.container.OutputContainer,
        suffix: str,
        begin: Fraction,
    ):
        self._source, self._input, self._output = source, container, output
        stream = container.streams.audio[0]
        self._start = _video_start(source, stream) + begin
        name = stream.codec_context.name
        if name in COPIED_CODECS and not (suffix == ".mov" and name in NOT_IN_MOV):
            self._target = output.add_stream_from_template(stream)
            self._packets = self._copied()
        else:
            self._target = output.add_stream("aac", rate=48000)
            self._target.codec_context.layout = "stereo"
            self._packets = self._encoded()
        self._next = None

    def _copied(self) -> Iterator[av.Packet]:
        before = None  # the packet before what is played, which codecs that overlap need
        for packet in _packets(self._source, self._input):
            time = packet.dts if packet.pts is None else packet.pts
            if time is None:
                continue
            packet.pts = packet.dts = time - round(self._start / packet.time_base)
            packet.stream = self._target
            if packet.is_discard or packet.pts + (packet.duration or 0) <= 0 > packet.pts:
                before = packet
                continue
            if before and before.pts + 2 * (before.duration or 0) >= packet.pts:
                yield before
            before = None
            yield packet

    def _encoded(self) -> Iterator[av.Packet]:
        for frame in _frames(self._source, self._input):
            frame.pts -= round(self._start / frame.time_base)
            if (frame.pts * frame.time_base + Fraction(frame.samples, frame.sample_rate)) > 0:
                yield from self._target.encode(frame)
        yield from self._target.encode(None)

    def mux_until(self, end: Fraction, *, last: bool = False) -> None:
        """Write packets.

        Args:
            end: Seconds; packets that end by then are written.
            last: Cut the packet that goes on past `end` and write its beginning too.
        """
        while (packet := self._next or next(self._packets, None)) is not None:
            self._next = packet
            ticks = int(end / packet.time_base)
            if packet.pts + (packet.duration or 0) > ticks:
                if not last or packet.pts >= ticks:
                    return
                packet.duration = ticks - packet.pts
            self._output.mux(packet)
            self._next = None

    def close(self) -> None:
        """Close the source; the video stays open."""
        self._input.close()
