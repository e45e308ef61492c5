"""What a player shows is what drives: edit lists, rates from times, square pixels, deinterlaced frames, animations."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from clips import copy_with_sound, flat, read_sound, write_source
from personalive_core.media.audio import read_audio
from personalive_core.media.video_reader import VideoReader


def remux(source, target, video=0.0, audio=0.0):
    """The same packets, the times of the streams changed by so many seconds; what is then before 0 is hidden."""
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        streams = {x.index: output.add_stream_from_template(x, opaque=True) for x in container.streams}
        for packet in container.demux():
            if packet.size:
                shift = round((video if packet.stream.type == "video" else audio) / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    return target


def read_step(path):
    """Number of frames, and the seconds at which picture and sound begin, by the reader and by `read_audio`."""
    with VideoReader(path) as reader:
        frames = [(frame.pixels.mean(), frame.time) for frame in reader]
        assert reader.problem is None
        assert reader.metadata.frame_count == len(frames) and reader.metadata.frame_rate == 25
    waveform, rate = read_audio(path, Fraction(0), Fraction(2))
    loud = np.flatnonzero(np.abs(waveform[0]) > 0.2)
    return len(frames), float(next(time for mean, time in frames if mean > 128)), loud[0] / rate


@pytest.mark.parametrize(
    ("codec", "video", "audio", "expected"),
    [
        ("aac", -0.6, -0.6, (35, 0.4, 0.4)),  # cut at the beginning without recoding
        ("pcm_s16le", -0.6, -0.6, (35, 0.4, 0.4)),
        ("aac", -0.6, 0, (35, 0.4, 1.0)),  # the picture alone
        ("aac", 0, -0.6, (50, 1.0, 0.4)),
        ("aac", 0.5, 0, (50, 1.0, 0.5)),  # an empty edit
        ("aac", 0.5, 0.5, (50, 1.0, 1.0)),
        ("aac", 0.5, -0.3, (50, 1.0, 0.2)),
    ],
)
def test_an_edit_list_hides_frames_and_sound_alike(tmp_path, codec, video, audio, expected):
    source = remux(write_source(tmp_path / "plain.mov", codec=codec), tmp_path / "edited.mov", video, audio)
    frames, flash, beep = read_step(source)
    assert frames == expected[0] and abs(flash - expected[1]) < 0.001 and abs(beep - expected[2]) < 0.03
    assert len(copy_with_sound(source, tmp_path / "out.mp4")) == frames
    assert abs(read_sound(tmp_path / "out.mp4")[1] - expected[2]) < 0.03


def test_an_edit_list_hides_the_end(tmp_path):
    """Patched into the file: the edit of the picture lasts a second."""
    path = remux(write_source(tmp_path / "plain.mp4", onset=0.4), tmp_path / "edited.mp4")
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    duration, begin, _ = struct.unpack(">IiI", data[at : at + 12])
    assert duration == 2000 and begin >= 0
    data[at : at + 4] = struct.pack(">I", 1000)
    path.write_bytes(data)
    frames, flash, beep = read_step(path)
    assert frames == 25 and flash == 0.4 and abs(beep - 0.4) < 0.03


def write_times(path, milliseconds, declared):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=declared, options={"deadline": "realtime", "cpu-used": "8"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(flat(20 + 4 * i), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("declared", [1000, 120, 5])
def test_a_rate_that_the_times_belie_is_measured(tmp_path, declared):
    """As browsers record: milliseconds with jitter, and a rate that is none."""
    steps = np.random.default_rng(0).integers(20, 55, 40)
    times = [0, *np.cumsum(steps).tolist()]
    with VideoReader(write_times(tmp_path / "recorded.webm", times, declared)) as reader:
        assert abs(reader.metadata.frame_rate - Fraction(40000, times[-1])) < Fraction(1, 100)
        assert reader.metadata.frame_count == 41
        assert [frame.time for frame in reader] == [Fraction(time, 1000) for time in times]


def test_a_rate_that_fits_the_times_is_kept(tmp_path):
    times = [round(1000 * i * 1001 / 30000) for i in range(30)]
    with VideoReader(write_times(tmp_path / "ntsc.webm", times, Fraction(30000, 1001))) as reader:
        assert reader.metadata.frame_rate == Fraction(30000, 1001)


SCENE = np.random.default_rng(1).integers(0, 2, (12, 16)).repeat(8, 0).repeat(8, 1).astype(np.uint8) * 160 + 40


def write_frames(path, frames, codec="ffv1", pixel_format="yuv444p", aspect=None, options=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames[0].shape
        stream.pix_fmt = pixel_format
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels[..., None].repeat(3, -1), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("aspect", "width"),
    [
        (Fraction(2), 128),
        (Fraction(1, 2), 32),
        (Fraction(64, 45), 91),
        (Fraction(1), 64),
        (Fraction(1000, 1001), 64),
        (Fraction(50), 64),
    ],
)
def test_pixels_become_square(tmp_path, aspect, width):
    """Blocks of 8 x 8 square pixels, of which every second column is stored."""
    path = write_frames(tmp_path / "anamorphic.mkv", [SCENE[:, ::2]], "libx264", aspect=aspect, options={"qp": "0"})
    with VideoReader(path) as reader:
        assert (reader.metadata.width, reader.metadata.height) == (width, 96)
        (frame,) = reader
    assert frame.pixels.shape == (96, width, 3)
    if aspect == 2:
        assert np.abs(frame.pixels[4::8, 4::8, 1] - SCENE[4::8, 4::8].astype(float)).max() <= 4


def combs(pixels):
    """How much rows differ from the mean of their neighbours."""
    rows = pixels[..., 1].astype(float)
    return np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean()


def moving_bar(fields):
    """Frames of which the second field is half a frame later."""
    frames = []
    for i in range(10):
        frame = np.full((96, 128), 40, np.uint8)
        for field in 0, 1:
            left = 8 * i + 4 * field * fields
            frame[field::2, left : left + 16] = 200
        frames.append(frame)
    return frames


def test_interlaced_video_is_deinterlaced(tmp_path):
    settings = {"codec": "mpeg2video", "pixel_format": "yuv420p"}
    options = {"flags": "+ildct+ilme", "qmin": "2", "qmax": "2"}
    interlaced = write_frames(tmp_path / "fields.mkv", moving_bar(1), options=options, **settings)
    plain = write_frames(tmp_path / "frames.mkv", moving_bar(1), options={"qmin": "2", "qmax": "2"}, **settings)
    with VideoReader(interlaced) as first, VideoReader(plain) as second:
        without, combed = list(first), list(second)
    assert [frame.time for frame in without] == [frame.time for frame in combed] == [Fraction(i, 25) for i in range(10)]
    assert combs(combed[5].pixels) > 5 and combs(without[5].pixels) < 2
    bar = np.flatnonzero(without[5].pixels[48, :, 1] > 120)
    assert abs(bar.mean() - 47.5 - 2) <= 3  # frame 5, not its neighbour


@pytest.mark.parametrize("fields", [0, 1])
def test_skipped_frames_change_no_other(tmp_path, fields):
    options = {"flags": "+ildct+ilme"} if fields else {}
    settings = {"codec": "mpeg2video", "pixel_format": "yuv420p", "options": options}
    path = write_frames(tmp_path / "bar.mkv", moving_bar(fields) * 4, **settings)
    path.write_bytes((whole := path.read_bytes())[: len(whole) // 2])
    with VideoReader(path) as reader, VideoReader(path, lambda number: number in (4, 5, 7)) as skipping:
        frames, found = list(reader), list(skipping)
    assert [frame.time for frame in found] == [frame.time for frame in frames]
    assert all(np.array_equal(found[i].pixels, frames[i].pixels) for i in (4, 5, 7))
    assert (found[6].pixels.size == 0) == (fields == 0)  # a deinterlacer needs it
    assert skipping.problem == reader.problem and "breaks off" in reader.problem


DURATIONS = [40, 80, 40, 120]


@pytest.mark.parametrize("name", ["moving.webp", "moving.png", "moving.avif", "moving.gif"])
def test_an_animation_drives_with_all_its_frames(tmp_path, name):
    if name.endswith("avif") and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    frames = [Image.fromarray(flat(50 * i + 40)) for i in range(4)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=DURATIONS)
    with VideoReader(tmp_path / name) as reader:
        assert reader.metadata.frame_count == 4
        found = list(reader)
        assert reader.problem is None
        rate = reader.metadata.frame_rate
    assert [frame.time for frame in found] == [Fraction(sum(DURATIONS[:i]), 1000) for i in range(4)]
    assert [round(float(frame.pixels.mean())) for frame in found] == pytest.approx([40, 90, 140, 190], abs=3)
    assert 12 <= rate <= 25


def test_a_damaged_animation_gives_what_it_has_and_says_so(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), np.uint8)
    frames = [Image.fromarray(pixels) for pixels in noise]
    path = tmp_path / "moving.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, lossless=True)
    data = path.read_bytes()
    fourth = data.index(b"VP8L", [i for i in range(len(data)) if data.startswith(b"ANMF", i)][3])
    path.write_bytes(data[: fourth + 13] + b"\xff" * 200 + data[fourth + 213 :])
    with VideoReader(path) as reader:
        assert len(list(reader)) == 3 and "3 frames" in reader.problem


def test_sound_that_ends_later_is_no_sign_of_a_cut(tmp_path):
    source = remux(write_source(tmp_path / "plain.mp4"), tmp_path / "late.mkv", audio=0.7)
    with VideoReader(source) as reader:
        assert len(list(reader)) == 50 and reader.problem is None
