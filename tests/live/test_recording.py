"""Recordings: frames, sound and motion by capture time; a full disk; what is dropped."""

import errno
import threading
import wave
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from motions import motion_of
from personalive_core.errors import InputError
from personalive_core.live.recording import Recording, _Sound
from personalive_core.live.session import DrivenMotion, LiveChunk
from personalive_core.media.audio import read_audio
from personalive_core.media.video_reader import VideoReader
from personalive_core.media.video_writer import VideoWriter, _PartialFile
from personalive_core.motion.motion_file import load_motion
from personalive_core.motion.performance import Strength

BEGIN = 1795779415.96125  # seconds since 1970
RATE = 48000


def chunk(begin: float, step: float = 0.04, number: int = 0) -> LiveChunk:
    pictures = np.full((4, 64, 64, 3), 10 * number % 256, np.uint8)
    return LiveChunk(pictures, [begin + i * step for i in range(4)], number)


def record(recording: Recording, chunks: int, step: float = 0.04) -> None:
    """Chunks at an even rate, after one of the warm-up."""
    recording.take_chunk(chunk(BEGIN - 4 * step, step))
    for i in range(chunks):
        motion = motion_of(f"{i}", 4)
        recording.take_motion(DrivenMotion(motion, [BEGIN + (4 * i + j) * step for j in range(4)]))
    for i in range(chunks):
        recording.take_chunk(chunk(BEGIN + 4 * i * step, step, i))


def test_frames_keep_their_capture_times_and_motion_its_own(tmp_path):
    recording = Recording(tmp_path, (64, 64))
    record(recording, 3)
    neutral = motion_of("neutral", 1)
    done = recording.finish(neutral, Strength(expression=0.5))
    with VideoReader(tmp_path / done["name"]) as video:
        times = [frame.time for frame in video]
    assert np.allclose([float(time) for time in times], [i * 0.04 for i in range(12)], atol=1e-4)
    performance = load_motion(tmp_path / done["motion"])
    expected = torch.cat([motion_of(f"{i}", 4).tokens for i in range(3)])
    assert torch.equal(performance.motion.tokens, expected)
    assert torch.equal(performance.neutral.tokens, neutral.tokens)
    assert (performance.strength, performance.frame_rate) == (Strength(expression=0.5), Fraction(25))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([done["name"], done["motion"]])


def test_nothing_recorded_leaves_nothing(tmp_path):
    done = Recording(tmp_path, (64, 64)).finish(None, Strength())
    assert (done["name"], done["motion"]) == (None, None) and "Nothing was recorded" in done["text"]
    assert not list(tmp_path.iterdir())


def found_beeps(path, length: float) -> list[float]:
    waveform, rate = read_audio(path, Fraction(0), Fraction(length))
    loud = np.flatnonzero(np.abs(waveform[0]) > 0.2) / rate
    return [loud[0], *(after for before, after in pairwise(loud) if after - before > 0.5)]


@pytest.mark.parametrize("drift", [1e-4, -1e-4])
def test_sound_is_in_step_for_ten_minutes(tmp_path, drift):
    """From a second before the first frame on, of a microphone whose clock drifts, in pieces whose times are a few
    milliseconds off."""
    rate, size, wobble = 16000, 1024, np.random.default_rng(0)
    sound = _Sound(tmp_path / "sound.wav", rate, BEGIN)
    beeps = [1.0, 200.0, 400.0, 600.0]
    for position in range(-rate, 601 * rate, size):
        true = position / rate * (1 + drift)
        samples = np.zeros(size, "<i2")
        for time in beeps:
            first = round((time - true) * rate)
            samples[max(0, first) : max(0, first + 320)] = 20000
        sound.write(BEGIN + true + wobble.normal(0, 0.004), samples.tobytes(), rate)
    sound.close()
    assert np.abs(np.array(found_beeps(sound.path, 602)) - beeps).max() < 0.025


def test_a_gap_in_the_sound_is_silence_and_other_rates_are_left_out(tmp_path):
    recording = Recording(tmp_path, (64, 64))
    record(recording, 7, 0.1)
    tone = np.full(RATE // 10, 20000, "<i2").tobytes()
    for time, rate in ((0.0, RATE), (0.5, 44100), (2.0, RATE)):
        recording.take_sound(BEGIN + time, tone, rate)
    with pytest.raises(ValueError):
        recording.take_sound(BEGIN, b"\0", RATE)
    with pytest.raises(ValueError):
        recording.take_sound(BEGIN, b"\0\0", 10**6)
    done = recording.finish(None, Strength())
    assert np.allclose(found_beeps(tmp_path / done["name"], 2.5), [0, 2], atol=0.03)
    waveform, rate = read_audio(tmp_path / done["name"], Fraction(0), Fraction(2))
    assert np.abs(waveform[0, rate // 2 : rate]).max() < 0.05


def test_a_writer_that_is_slow_drops_the_oldest_and_says_so(tmp_path, monkeypatch):
    go, write = threading.Event(), VideoWriter.write
    monkeypatch.setattr(VideoWriter, "write", lambda *arguments: go.wait() and write(*arguments))
    recording = Recording(tmp_path, (64, 64))
    record(recording, 20)
    assert recording.dropped >= 4 * (20 + 1 - 8 - 2)
    go.set()
    done = recording.finish(None, Strength())
    with VideoReader(tmp_path / done["name"]) as video:
        frames = len(list(video))
    assert frames + recording.dropped in (20 * 4, 20 * 4 + 4)  # that of the warm-up may be among the dropped
    assert f"{recording.dropped} frames are missing" in done["text"]


@pytest.mark.parametrize("when", ["while it grows", "at the end"])
def test_a_full_disk_ends_it_with_what_there_is(tmp_path, monkeypatch, when):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    recording = Recording(tmp_path, (64, 64))
    record(recording, 6)
    recording.take_sound(BEGIN, np.full(RATE // 2, 20000, "<i2").tobytes(), RATE)
    if when == "while it grows":
        append = _PartialFile.append
        monkeypatch.setattr(
            _PartialFile, "append", lambda file, data: full() if file.size > 2000 else append(file, data)
        )
        for i in range(6, 200):
            recording.take_chunk(chunk(BEGIN + 4 * i * 0.04, 0.04, i))
            if recording.problem:
                break
            threading.Event().wait(0.005)
        assert "disk is full" in recording.stats()["problem"]
        recording.take_chunk(chunk(BEGIN + 1000))  # does no harm
    else:
        monkeypatch.setattr(VideoWriter, "_copy_to", full)
    done = recording.finish(None, Strength())
    assert "disk is full" in done["text"] and done["name"] == recording.path.name
    with VideoReader(recording.path) as video:
        assert len(list(video)) > 0
    with wave.open(str(recording.path.with_suffix(".wav"))) as sound:
        assert sound.getnframes() >= RATE // 2


def test_what_grows_plays(tmp_path):
    """As it must when the program is killed."""
    recording, frames = Recording(tmp_path, (64, 64)), 0
    record(recording, 1)
    for i in range(1, 200):
        recording.take_chunk(chunk(BEGIN + 4 * i * 0.04, 0.04, i))
        threading.Event().wait(0.01)
        (partial,) = tmp_path.glob(".live_*.mp4.partial.mp4")
        with suppress(av.FFmpegError), av.open(str(partial)) as video:
            frames = sum(1 for _ in video.decode(video=0))
        if frames > 60:
            break
    assert frames > 60
    recording.finish(None, Strength())


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        Recording(tmp_path / "file", (64, 64))
