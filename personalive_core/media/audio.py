"""The sound of one file copied into another, in step with the video."""

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from ..errors import InputError
from .filters import TOLERANT, display_time

logger = logging.getLogger(__name__)

# Sound that these containers carry as it is, by the names of FFmpeg's decoders; the rest becomes AAC.
COPIED_SOUND = {"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "libopus", "flac"}
NOT_IN_MOV = {"opus", "libopus", "flac"}


class AudioCopier:
    """The first audio stream of a file, moved so that time 0 is `begin` seconds after the first video frame of it."""

    @classmethod
    def open(
        cls, source: Path, output: av.container.OutputContainer, suffix: str, begin: Fraction
    ) -> "AudioCopier | None":
        """None where `source` has no sound that can be read."""
        try:
            container = av.open(str(source.absolute()), **TOLERANT)
        except av.FFmpegError as error:
            raise InputError(f"The sound of {source} cannot be read ({error.strerror}); give another file.") from error
        if not container.streams.audio:
            container.close()
            return None
        if container.streams.audio[0].codec_context is None:
            logger.warning("the sound of %s is of an unknown kind and is left out", source)
            container.close()
            return None
        return cls(source, container, output, suffix, begin)

    def __init__(
        self,
        source: Path,
        container: av.container.InputContainer,
        output: av.container.OutputContainer,
        suffix: str,
        begin: Fraction,
    ):
        self._source, self._input, self._output = source, container, output
        self._stream = container.streams.audio[0]
        self._start = self._video_start() + begin
        name = self._stream.codec_context.name
        if name in COPIED_SOUND and not (suffix == ".mov" and name in NOT_IN_MOV):
            self._target = output.add_stream_from_template(self._stream)
            self._packets = self._copied()
        else:
            self._target = output.add_stream("aac", rate=48000)
            self._target.codec_context.layout = "stereo"
            self._packets = self._encoded()
        self._next = None

    def _video_start(self) -> Fraction:
        """Seconds, in the clock of the sound, of the first frame that VideoReader gives. The packets of a second,
        plain opening tell it: they count from what an edit list shows, and those before it are negative."""
        with av.open(str(self._source.absolute()), **TOLERANT) as container:
            if container.streams.video:
                for packet in container.demux(container.streams.video[0]):
                    stamp = display_time(packet, container)
                    if packet.is_keyframe and stamp is not None:
                        return stamp * packet.time_base
        return (self._stream.start_time or 0) * self._stream.time_base

    def _read(self) -> Iterator[av.Packet]:
        packets = self._input.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except av.FFmpegError as error:
                logger.warning("the sound of %s breaks off (%s)", self._source, error.strerror)
                return
            if packet.size == 0:
                return
            yield packet

    def _copied(self) -> Iterator[av.Packet]:
        for packet in self._read():
            time = packet.dts if packet.pts is None else packet.pts
            if time is None:
                continue
            packet.pts = packet.dts = time - round(self._start / packet.time_base)
            # One packet more than is heard: codecs that overlap need it, and the edit list hides it.
            if packet.pts + 2 * (packet.duration or 0) > 0 or packet.pts >= 0:
                packet.stream = self._target
                yield packet

    def _encoded(self) -> Iterator[av.Packet]:
        for packet in self._read():
            try:
                frames = packet.decode()
            except av.FFmpegError:
                logger.warning("a piece of the sound of %s cannot be decoded and is left out", self._source)
                continue
            for frame in frames:
                if frame.pts is None:
                    continue
                frame.pts -= round(self._start / frame.time_base)
                if (frame.pts * frame.time_base + Fraction(frame.samples, frame.sample_rate)) > 0:
                    yield from self._target.encode(frame)
        yield from self._target.encode(None)

    def mux_until(self, end: Fraction, *, last: bool = False) -> None:
        """Write the packets that end by `end` seconds; with `last`, also the beginning of the one that goes on."""
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
        self._input.close()
