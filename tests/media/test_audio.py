"""Sound in step with the picture: the command line's copy and the nodes' decoded sound have one clock."""

import wave
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from clips import copy_with_sound, flat, write_clip
from personalive_core.errors import InputError
from personalive_core.media.audio import read_audio, trim_audio, write_wav

RATE = 48000
BEEPS = (0.2, 0.6, 1.2)  # seconds from the first sample, each of 0.1 s
AAC_FRAME = 1024 / RATE
STEP = 0.04


def beeps(seconds=1.6):
    clock = np.arange(round(seconds * RATE)) / RATE
    is_loud = sum((clock >= at) & (clock < at + 0.1) for at in BEEPS)
    return (np.sin(2 * np.pi * 1000 * clock) * is_loud * 20000).astype(np.int16)


def write_beeps(path, codec="aac", audio_start=0.7, video_start=0.0, damage=()):
    """Two seconds of video, and beeps in a stream that begins `audio_start` seconds into the file; the packets of the
    numbers in `damage` are filled with noise."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(codec, rate=RATE)
        audio.codec_context.layout = "mono"
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(flat(20), format="rgb24")
            frame.pts, frame.time_base = i + round(video_start * 25), Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples, packets = beeps(), []
        for i in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, i : i + 1024], format="s16", layout="mono")
            frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
            frame.pts = i + round(audio_start * RATE)
            packets += audio.encode(frame)
        for i, packet in enumerate([*packets, *audio.encode(None)]):
            if i in damage:
                noise = av.Packet(b"\x77" * packet.size)
                noise.pts, noise.dts, noise.time_base = packet.pts, packet.dts, packet.time_base
                noise.duration, noise.stream = packet.duration, audio
                packet = noise
            container.mux(packet)
    return path


def onsets(waveform, rate):
    """Where beeps begin after silence, in seconds."""
    loud = np.flatnonzero(np.abs(waveform).max(0) > 0.1)
    return [float(i) / rate for i in loud[np.diff(loud, prepend=-RATE) > 0.05 * rate]]


def read_onsets(path, begin=0.0, length=2.0):
    return onsets(*read_audio(path, Fraction(begin).limit_denominator(100), Fraction(length).limit_denominator(100)))


def assert_times(found, expected):
    assert len(found) == len(expected), (found, expected)
    assert np.abs(np.subtract(found, expected)).max(initial=0) <= STEP, (found, expected)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "aac"),
        ("a.mkv", "aac"),
        ("a.mkv", "flac"),
        ("a.mkv", "libopus"),
        ("a.mov", "pcm_s16le"),
        ("a.ts", "aac"),
    ],
)
@pytest.mark.parametrize(("audio_start", "video_start"), [(0.7, 0.0), (0.0, 0.4), (1.1, 0.4)])
def test_sound_that_begins_late_or_early_comes_in_step_both_ways(tmp_path, name, codec, audio_start, video_start):
    source = write_beeps(tmp_path / name, codec, audio_start, video_start)
    expected = [at + audio_start - video_start for at in BEEPS if 0 <= at + audio_start - video_start < 2]
    decoded = read_onsets(source)
    assert_times(decoded, expected)
    copy_with_sound(source, tmp_path / "out.mp4")
    copied = read_onsets(tmp_path / "out.mp4")
    assert_times(copied, expected)
    assert_times(copied, decoded)


def test_a_part_is_exactly_as_long_as_asked_for(tmp_path):
    source = write_beeps(tmp_path / "a.mp4")
    waveform, rate = read_audio(source, Fraction(1), Fraction(1, 2))
    assert (waveform.shape, waveform.dtype, rate) == ((1, RATE // 2), np.float32, RATE)
    assert_times(onsets(waveform, rate), [0.3])
    whole, _ = read_audio(source, Fraction(0), Fraction(3))
    assert whole.shape == (1, 3 * RATE)
    assert np.array_equal(waveform, trim_audio(whole, rate, Fraction(1), Fraction(1, 2)))
    assert not whole[:, : round(0.65 * RATE)].any() and not whole[:, round(2.4 * RATE) :].any()
    late, _ = read_audio(source, Fraction(5), Fraction(1))
    assert late.shape == (1, RATE) and not late.any()


def test_milliseconds_of_a_container_tear_no_holes(tmp_path):
    """MKV rounds the time of every packet: a tone of full strength must have no silence in it."""
    tone = np.full((1, 1024), 20000, np.int16)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        audio = container.add_stream("flac", rate=44100)
        audio.codec_context.layout = "mono"
        for i in range(40):
            frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, 1024 * i, Fraction(1, 44100)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    waveform, rate = read_audio(tmp_path / "a.mkv", Fraction(0), Fraction(9, 10))
    assert rate == 44100 and np.abs(waveform - 20000 / 32768).max() < 1e-4


def test_damaged_packets_are_silence_and_the_rest_stays_in_step(tmp_path, caplog):
    damage = range(round(0.55 / AAC_FRAME), round(0.8 / AAC_FRAME))  # the second beep
    source = write_beeps(tmp_path / "a.mkv", damage=damage)
    assert_times(read_onsets(source), [0.9, 1.9])
    assert "cannot be decoded" in caplog.text


def test_metadata_that_is_not_utf_8(tmp_path):
    path = tmp_path / "titled.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "QQQQQQ"
        audio = container.add_stream("flac", rate=RATE)
        audio.codec_context.layout = "mono"
        frame = av.AudioFrame.from_ndarray(beeps()[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    path.write_bytes(path.read_bytes().replace(b"QQQQQQ", b"\xff\xfe\xe9\xff\xfe\xe9"))
    assert_times(read_onsets(path), BEEPS)


def test_without_sound(tmp_path):
    silent = write_clip(tmp_path / "silent.mp4", [Fraction(i, 25) for i in range(5)])
    assert read_audio(silent, Fraction(0), Fraction(1)) is None
    damaged = write_beeps(tmp_path / "a.mkv", damage=range(1000))
    assert read_audio(damaged, Fraction(0), Fraction(1)) is None
    with pytest.raises(InputError, match=r"absent\.mp4 does not exist; give the path of a video or sound file"):
        read_audio(tmp_path / "absent.mp4", Fraction(0), Fraction(1))


@pytest.mark.parametrize("rate", [RATE, 48000.0, 44099.6])
def test_wav_comes_back(tmp_path, rate):
    waveform = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 3 * RATE // 2)).astype(np.float32)
    write_wav(tmp_path / "a.wav", waveform, rate)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, round(rate), 3 * RATE // 2)
    found, _ = read_audio(tmp_path / "a.wav", Fraction(0), Fraction(waveform.shape[1], round(rate)))
    assert np.abs(found - waveform.clip(-1, 1)).max() <= 2 / 32767


def test_trimming_takes_arrays_and_tensors_and_float_rates():
    tensor = torch.arange(100).reshape(1, 1, 100)
    assert trim_audio(tensor, 10.0, Fraction(1), Fraction(2)).flatten().tolist() == list(range(10, 30))
    assert trim_audio(tensor.numpy(), 10, Fraction(9), Fraction(2)).shape == (1, 1, 10)
