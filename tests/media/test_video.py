import os
import subprocess
import sys
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clips import copy_with_sound, flat, read_sound, write_clip, write_source
from personalive_core.errors import InputError
from personalive_core.media.video_reader import VideoMetadata, VideoReader
from personalive_core.media.video_writer import VideoWriter

NTSC = Fraction(30000, 1001)


def read_times(path):
    with VideoReader(path) as reader:
        return [frame.time for frame in reader]


@pytest.mark.parametrize("rate", [Fraction(25), NTSC, Fraction(41025, 1643)])
def test_rate_comes_back_exactly(tmp_path, rate):
    times = [i / rate for i in range(40)]
    path = write_clip(tmp_path / "clip.mp4", times, rate, time_base=1 / Fraction(rate.numerator))
    with VideoReader(path) as reader:
        assert reader.metadata == VideoMetadata(64, 48, rate, 40, False, reader.metadata.time_base)
        assert [frame.time for frame in reader] == times
        assert reader.problem is None


def test_variable_times_come_back_exactly(tmp_path):
    ticks = np.cumsum([0, *np.random.default_rng(1).integers(300, 9000, 30)])
    times = [Fraction(int(t), 90000) for t in ticks]
    assert read_times(write_clip(tmp_path / "clip.mov", times, 31 / (times[-1] + Fraction(1, 25)))) == times


def test_mkv_counts_in_milliseconds(tmp_path):
    times = [i / NTSC for i in range(10)]
    back = read_times(write_clip(tmp_path / "clip.mkv", times, NTSC))
    assert max(abs(a - b) for a, b in zip(back, times, strict=True)) <= Fraction(1, 1000)


def test_last_frame_is_held_so_that_the_average_rate_is_the_source_s(tmp_path):
    times = [Fraction(i, 25) for i in range(100)]  # a source of 25 frames per second that ends on a longer frame
    with VideoReader(write_clip(tmp_path / "clip.mp4", times, Fraction(2497, 100))) as reader:
        assert abs(reader.metadata.frame_rate - Fraction(2497, 100)) < Fraction(1, 1000)


@pytest.mark.parametrize("colour", [(200, 60, 30), (30, 60, 200), (10, 250, 120), (0, 0, 0), (255, 255, 255)])
def test_colour_comes_back(tmp_path, colour):
    with VideoWriter(tmp_path / "clip.mp4", 64, 48, Fraction(25)) as writer:
        writer.write(flat(colour), Fraction(0))
    with VideoReader(tmp_path / "clip.mp4") as reader:
        assert np.abs(next(reader).pixels - np.array(colour, float)).max() <= 2
    with av.open(str(tmp_path / "clip.mp4")) as container:
        tags = container.streams.video[0].codec_context
        assert (tags.colorspace, tags.color_primaries, tags.color_trc, tags.color_range) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("matrix", "size", "pixel_format", "full"),
    [
        ("bt709", (64, 48), "yuv420p", False),
        ("bt601", (64, 48), "yuv420p", True),
        ("bt709", (64, 48), "yuv420p10le", False),
        ("bt601", (64, 48), None, False),
        ("bt709", (1280, 720), None, False),
    ],
)
def test_matrix_and_range_of_the_file_are_respected(tmp_path, matrix, size, pixel_format, full):
    """The last two carry no tag: then SD is BT.601 and HD is BT.709."""
    colour = np.array([200.0, 60.0, 30.0])
    red, blue = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114)}[matrix]
    luma = colour @ [red, 1 - red - blue, blue] / 255
    chroma = (colour[2] / 255 - luma) / (2 - 2 * blue), (colour[0] / 255 - luma) / (2 - 2 * red)
    planes = (
        [255 * luma, *(128 + 255 * c for c in chroma)] if full else [16 + 219 * luma, *(128 + 224 * c for c in chroma)]
    )
    deep = pixel_format == "yuv420p10le"
    frame = av.VideoFrame(*size, pixel_format or "yuv420p")
    for plane, value in zip(frame.planes, planes, strict=True):
        kind = np.uint16 if deep else np.uint8
        filled = np.full(plane.buffer_size // kind().itemsize, round(value * (4 if deep else 1)), kind)
        plane.update(filled.tobytes())
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, frame.format.name
        if pixel_format:
            stream.codec_context.colorspace = frame.colorspace = {"bt709": 1, "bt601": 5}[matrix]
            stream.codec_context.color_range = frame.color_range = 2 if full else 1
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / "clip.mkv") as reader:
        assert np.abs(next(reader).pixels - colour).max() <= 3


def test_gif_with_alpha_over_white(tmp_path):
    frames = []
    for column in 8, 16, 24:
        rgba = np.zeros((48, 64, 4), np.uint8)
        rgba[:, :column] = (255, 0, 0, 255)
        frames.append(Image.fromarray(rgba))
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[100, 200, 100], disposal=2)
    with VideoReader(path) as reader:
        frames = list(reader)
        assert reader.problem is None
    assert [frame.time for frame in frames] == [0, Fraction(1, 10), Fraction(3, 10)]
    for frame, column in zip(frames, (8, 16, 24), strict=True):
        assert (frame.pixels[:, : column - 1] == (255, 0, 0)).all() and (frame.pixels[:, column:] == 255).all()


@pytest.mark.parametrize("name", ["still.png", "still.jpg", "still.webp", "deep.png"])
def test_a_single_picture_is_one_frame(tmp_path, name):
    image = Image.fromarray(np.full((48, 64), 40000, np.uint16)) if name == "deep.png" else Image.fromarray(flat(156))
    image.save(tmp_path / name)
    with VideoReader(tmp_path / name) as reader:
        assert reader.metadata == VideoMetadata(64, 48, Fraction(25), 1, False, Fraction(1, 25))
        (frame,) = reader
    assert frame.time == 0 and np.abs(frame.pixels - 156.0).max() <= 2


def test_a_cut_off_file_gives_what_it_has_and_says_so(tmp_path):
    rate = Fraction(25)
    path = tmp_path / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (100, 48, 64, 3), np.uint8)
    with VideoWriter(path, 64, 48, rate) as writer:
        for i, pixels in enumerate(noise):
            writer.write(pixels, i / rate)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with VideoReader(path) as reader:
        times = [frame.time for frame in reader]
        assert "breaks off" in reader.problem and f"{len(times)} frames" in reader.problem
    assert 40 <= len(times) <= 60 and times == [i / rate for i in range(len(times))]

    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(3000) + data[middle + 3000 :])
    with VideoReader(path) as reader:
        times = [frame.time for frame in reader]
        assert "damaged" in reader.problem
    assert 90 <= len(times) <= 100 and times[-1] == 99 / rate
    assert all(a < b for a, b in pairwise(times))


@pytest.mark.parametrize("bad", [3, 30, 57])
def test_a_damaged_frame_takes_no_others_with_it(tmp_path, bad):
    """Frames are decoded several at a time, and an error then loses those beside it."""
    path, noise = tmp_path / "clip.mp4", np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), np.uint8)
    with VideoWriter(path, 64, 48, Fraction(25)) as writer:
        for i, pixels in enumerate(noise):
            writer.write(pixels, Fraction(i, 25))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data, (at, size) = bytearray(path.read_bytes()), packets[bad]
    data[at : at + size] = bytes(size)
    path.write_bytes(data)
    with av.open(str(path)) as container:
        stream, expected = container.streams.video[0], list[int]()
        for packet in container.demux(stream):
            with suppress(av.error.InvalidDataError):
                expected += [round(frame.time * 25) for frame in stream.codec_context.decode(packet)]
    assert len(expected) == 59
    reads = []
    for _ in range(3):
        with VideoReader(path) as reader:
            reads.append(list(reader))
            assert "damaged in 1 places" in reader.problem
    assert [frame.time * 25 for frame in reads[0]] == expected
    for frames in zip(*reads, strict=True):
        assert all(np.array_equal(frame.pixels, frames[0].pixels) for frame in frames)


def test_missing_and_repeated_timestamps_are_repaired(tmp_path):
    """Raw H.264 carries no timestamps at all."""
    write_clip(tmp_path / "clip.mp4", [Fraction(i, 25) for i in range(10)])
    with av.open(str(tmp_path / "clip.mp4")) as source, av.open(str(tmp_path / "raw.h264"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    times = read_times(tmp_path / "raw.h264")
    assert len(times) == 10 and times[0] == 0 and all(a < b for a, b in pairwise(times))


def test_a_change_of_size_is_scaled_to_the_first_frame(tmp_path):
    data = b""
    for width, height, value in (64, 48, 50), (128, 96, 200):
        with av.open(str(tmp_path / "part.h264"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(flat(value, height, width), format="rgb24")))
            container.mux(stream.encode(None))
        data += (tmp_path / "part.h264").read_bytes()
    (tmp_path / "both.h264").write_bytes(data)
    with VideoReader(tmp_path / "both.h264") as reader:
        first, second = reader
    assert (first.pixels.shape, second.pixels.shape) == ((48, 64, 3), (48, 64, 3))
    assert abs(int(second.pixels.mean()) - 200) <= 2


def test_what_is_not_a_video_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video at all")
    (tmp_path / "text.ans").write_text("FFmpeg would draw this as a terminal\n" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    for name, words in {
        "text.mp4": "cannot be read",
        "text.ans": "another kind that is not read",
        "empty.mp4": "cannot be read",
        "sound.wav": "no video",
        "absent.mp4": "does not exist",
        ".": "folder",
    }.items():
        with pytest.raises(InputError, match=words):
            VideoReader(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "target", "codec"),
    [
        ("source.mp4", "out.mp4", "aac"),
        ("source.mkv", "out.mp4", "flac"),
        ("source.mkv", "out.mov", "flac"),
        ("source.mkv", "out.mkv", "aac"),
        ("source.mov", "out.mp4", "pcm_s16le"),
        ("source.avi", "out.mp4", "libmp3lame"),
        ("source.ts", "out.mp4", "aac"),
    ],
)
def test_sound_stays_in_step_and_ends_with_the_video(tmp_path, source, target, codec):
    write_source(tmp_path / source, codec=codec)
    times = copy_with_sound(tmp_path / source, tmp_path / target)
    assert max(abs(time - Fraction(i, 25)) for i, time in enumerate(times)) <= Fraction(1, 1000) and len(times) == 50
    name, onset, _ = read_sound(tmp_path / target)
    copied = codec not in ("pcm_s16le",) and not target.endswith(".mov")
    assert name == (codec.replace("libmp3lame", "mp3float") if copied else "aac")
    assert abs(onset - 1) < 0.03

    copy_with_sound(tmp_path / source, tmp_path / target, count=30)
    _, onset, end = read_sound(tmp_path / target)
    assert abs(onset - 1) < 0.03
    if not target.endswith(".mkv"):  # which does not store where its streams end
        # AVI counts in whole packets of sound, so the last one cannot be shortened.
        assert abs(end - 30 / 25) < (0.027 if source.endswith(".avi") else 0.002)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_sound_that_starts_before_the_video(tmp_path, codec):
    source = write_source(tmp_path / "source.mov", codec=codec, video_start=0.4)
    assert len(copy_with_sound(source, tmp_path / "out.mp4")) == 40
    _, onset, end = read_sound(tmp_path / "out.mp4")
    assert abs(onset - 0.6) < 0.03 and abs(end - 1.6) < 0.03


def test_a_source_without_sound(tmp_path):
    source = write_clip(tmp_path / "silent.mp4", [Fraction(i, 25) for i in range(5)])
    copy_with_sound(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio


def test_nothing_half_written_is_left(tmp_path):
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", 64, 48, Fraction(25)) as writer:
        writer.write(flat(0), Fraction(0))
        raise RuntimeError
    with VideoWriter(tmp_path / "b.mp4", 64, 48, Fraction(25)):
        pass
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "c.mp4", 64, 48, Fraction(25)):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_a_playable_file(tmp_path):
    source = write_source(tmp_path / "source.mp4")
    target = tmp_path / "out" / "part.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(target, 64, 48, Fraction(25), audio_from=source) as writer:
        for i in range(30):
            writer.write(flat(i), Fraction(i, 25))
        raise KeyboardInterrupt
    assert [path.name for path in target.parent.iterdir()] == ["part.mp4"]
    assert len(read_times(target)) == 30
    assert abs(read_sound(target)[2] - 30 / 25) < 0.002


def test_a_target_that_cannot_be_written_is_named_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    for name, words in {"a.avi": "must end in", "folder.mp4": "is a folder", "file/a.mp4": "cannot be written"}.items():
        with pytest.raises(InputError, match=words):
            VideoWriter(tmp_path / name, 64, 48, Fraction(25))
    with pytest.raises(InputError, match="65 x 48"):
        VideoWriter(tmp_path / "a.mp4", 65, 48, Fraction(25))
    with pytest.raises(InputError, match="sound"):
        VideoWriter(tmp_path / "a.mp4", 64, 48, Fraction(25), audio_from=tmp_path / "absent.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        VideoWriter(tmp_path / "a.mp4", 64, 48, Fraction(25))


FULL_DISK = """
import resource, signal, sys
from contextlib import suppress
from fractions import Fraction
import numpy as np
from personalive_core.errors import InputError
from personalive_core.media.video_writer import VideoWriter
path, room = sys.argv[1:]
if room:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
random = np.random.default_rng(0)
try:
    with VideoWriter(path, 64, 48, Fraction(25), crf=1) as writer:
        for i in range(100):
            writer.write(random.integers(0, 255, (48, 64, 3), np.uint8), Fraction(i, 25))
except InputError as error:
    print(error)
"""


def test_a_disk_that_fills_up(tmp_path):
    """A limit on the size of files stands for the full disk: at the header, among the frames, at the very end."""
    pytest.importorskip("resource", reason="needs limits on the size of files")

    def write(room):
        command = [sys.executable, "-c", FULL_DISK, tmp_path / "a.mp4", str(room)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert write("") == ""
    size = (tmp_path / "a.mp4").stat().st_size
    (tmp_path / "a.mp4").unlink()
    for room in 0, size // 2, size - 1:
        assert "a.mp4 cannot be written (File too large)" in write(room)
        assert list(tmp_path.iterdir()) == []


def test_a_pyav_that_writes_no_pictures_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "__version__", "14.4.0")
    with pytest.raises(InputError, match=r"PyAV 14\.4\.0 cannot write .* pip install -U av"):
        VideoWriter(tmp_path / "out.mp4", 64, 64, Fraction(25))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [1, 2])  # when the pieces are looked at, and when they are copied
def test_a_join_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch, stop):
    """Part of a video must not take its name."""
    pieces, opened = [write_clip(tmp_path / f"{i}.mp4", [Fraction(k, 25) for k in range(8)]) for i in range(3)], []

    def interrupt(file, *arguments, real=av.open, **options):
        opened.append(str(file))
        if opened[-1] == str(pieces[1]) and opened.count(opened[-1]) == stop:
            raise KeyboardInterrupt
        return real(file, *arguments, **options)

    monkeypatch.setattr(av, "open", interrupt)
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "joined.mp4", 64, 48, Fraction(25)) as video:
        video.join(pieces)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]


def test_what_the_encoder_fails_with_comes_out_and_nothing_is_left(tmp_path, monkeypatch):
    def fail(self, pixels, time):
        raise MemoryError("no room for a frame")

    monkeypatch.setattr(VideoWriter, "_encode", fail)
    with pytest.raises(MemoryError, match="no room"), VideoWriter(tmp_path / "out.mp4", 64, 64, Fraction(25)) as video:
        for i in range(50):  # more than may wait for the encoder
            video.write(np.zeros((64, 64, 3), np.uint8), i / Fraction(25))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("rate", [NTSC, None])
def test_joined_pieces_are_one_video(tmp_path, suffix, rate):
    """Frames, times, end and sound of one run, at a constant rate and at a varying one; more frames than a segment."""
    ticks = np.cumsum(np.random.default_rng(1).integers(1500, 4500, 130))
    times = [i / rate if rate else Fraction(int(t - ticks[0]), 90000) for i, t in enumerate(ticks)]
    rate = rate or 130 / (times[-1] + Fraction(1, 30))
    settings = dict(time_base=Fraction(1, 90000) if rate != NTSC else Fraction(1, 30000))
    sound = dict(audio_from=write_source(tmp_path / "source.mp4", seconds=6.0), audio_start=Fraction(1, 5))
    whole = write_clip(tmp_path / f"whole{suffix}", times, rate, **settings, **sound)
    seams = [0, 60, 64, 130]
    pieces = [tmp_path / f"{i}.mp4" for i in range(3)]
    for piece, (begin, end) in zip(pieces, pairwise(seams), strict=True):
        with VideoWriter(piece, 64, 48, rate, **settings) as of_piece:
            for k in range(begin, end):
                of_piece.write(flat(20 + 10 * k % 200), times[k] - times[begin])
            of_piece.finish(end=times[end] - times[begin] if end < 130 else None)
    with VideoWriter(joined := tmp_path / f"joined{suffix}", 64, 48, rate, **settings, **sound) as writer:
        assert writer.join(pieces) == 130
    read = []
    for path in (whole, joined):
        with VideoReader(path) as reader, av.open(str(path)) as container:
            frames = [(frame.time, int(frame.pixels.mean())) for frame in reader]
            packets = [(p.pts, p.duration) for p in container.demux(video=0) if p.size]
            read.append((reader.metadata, frames, packets, container.duration, read_sound(path)))
    assert read[0] == read[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["0.mp4", "1.mp4", "2.mp4", "source.mp4", whole.name, joined.name]
    )
