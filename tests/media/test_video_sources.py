"""Videos as phones and cameras make them, and folders of pictures: turned, HDR, of odd size, in natural order."""

from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest
from PIL import Image

from clips import flat, write_clip
from personalive_core.errors import InputError
from personalive_core.media.hdr import HLG, PQ, add_tone_map, tone_map
from personalive_core.media.video_reader import VideoMetadata, VideoReader
from personalive_core.media.video_writer import VideoWriter

TURN = 1 << 16  # one, in the fixed-point numbers of a display matrix


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((0, TURN, -TURN, 0), lambda x: np.rot90(x, -1)),  # a phone held upright
        ((0, -TURN, TURN, 0), lambda x: np.rot90(x, 1)),
        ((-TURN, 0, 0, -TURN), lambda x: np.rot90(x, 2)),
        ((-TURN, 0, 0, TURN), np.fliplr),  # a front camera
        ((0, TURN, TURN, 0), lambda x: x.swapaxes(0, 1)),
    ],
)
def test_the_display_matrix_turns_the_picture(tmp_path, matrix, upright):
    """Patched into the file, where the track header keeps it."""
    picture = np.full((48, 64, 3), 20, np.uint8)
    picture[:16, :16], picture[:16, 48:], picture[32:, :16] = (200, 60, 30), (30, 200, 60), (60, 30, 200)
    path = tmp_path / "phone.mp4"
    with VideoWriter(path, 64, 48, Fraction(25)) as writer:
        for i in range(3):
            writer.write(picture, Fraction(i, 25))
    with VideoReader(path) as reader:
        plain = [frame.pixels for frame in reader]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = matrix
    data[at : at + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data)
    with VideoReader(path) as reader:
        assert (reader.metadata.height, reader.metadata.width) == upright(picture).shape[:2]
        frames = [frame.pixels for frame in reader]
    assert len(frames) == 3
    for found, before in zip(frames, plain, strict=True):
        assert np.array_equal(found, upright(before))


@pytest.mark.parametrize(
    ("transfer", "signal", "expected"),
    [
        (PQ, 0.0, 0),
        (PQ, 0.4401, 135.7),  # 50 candela a square metre are 0.2463 of white: kept exactly
        (PQ, 0.5807, 224.5),  # white itself comes to three quarters
        (HLG, 0.75, 224.5),  # and HLG puts it here
        (HLG, 0.38, 100.7),
    ],
)
def test_hdr_becomes_an_ordinary_picture(tmp_path, transfer, signal, expected):
    """Grey, so that the luma code is the signal's."""
    frame = av.VideoFrame(64, 48, "yuv420p10le")
    for plane, value in zip(frame.planes, (64 + 876 * signal, 512, 512), strict=True):
        plane.update(np.full(plane.buffer_size // 2, round(value), np.uint16).tobytes())
    frame.colorspace, frame.color_range, frame.pts = 9, 1, 0
    with av.open(str(tmp_path / "hdr.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        encoder = stream.codec_context
        encoder.colorspace, encoder.color_range, encoder.color_primaries, encoder.color_trc = 9, 1, 9, transfer
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / "hdr.mkv") as reader:
        (frame,) = reader
    assert np.abs(frame.pixels - expected).max() <= 2


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_the_tone_map_keeps_hue_and_its_table_agrees(transfer):
    rng = np.random.default_rng(0)
    grey = rng.random((64, 64, 1)) * 0.9
    signal = ((grey + rng.random((64, 64, 3)) * 0.05) * 65535).round().astype(np.uint16)
    graph, frame = av.filter.Graph(), av.VideoFrame.from_ndarray(signal, format="rgb48le")
    source = graph.add("buffer", "video_size=64x64:pix_fmt=rgb48le:time_base=1/1")
    graph.link_nodes(source, add_tone_map(graph, transfer), graph.add("format", "rgb24"), graph.add("buffersink"))
    graph.configure()
    frame.pts = None
    graph.push(frame)
    difference = np.abs(graph.pull().to_ndarray() - 255 * tone_map(signal / 65535, transfer))
    assert difference.max() <= 5 and difference.mean() < 0.6

    bright = tone_map(np.array([0.8, 0.7, 0.6]), transfer)  # brighter than white, and warm
    assert 1 > bright[0] > bright[1] > bright[2] > 0.2
    steps = np.diff(tone_map(np.linspace(0, 1, 1000)[:, None].repeat(3, 1), transfer)[:, 0])
    assert (steps >= 0).all()


def test_odd_sizes(tmp_path):
    frame = av.VideoFrame(853, 481, "yuv420p")  # by hand: older FFmpegs spoil the right edge when they convert to it
    for plane, value in zip(frame.planes, (101, 94, 192), strict=True):  # (200, 60, 30) in RGB
        plane.update(bytes([value]) * plane.buffer_size)
    with av.open(str(tmp_path / "odd.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 853, 481, "yuv420p"
        for i in range(2):
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / "odd.mkv") as reader:
        frames = list(reader)
    assert [frame.pixels.shape for frame in frames] == [(481, 853, 3)] * 2
    assert np.abs(frames[1].pixels - np.array([200.0, 60, 30])).max() <= 4


def test_a_folder_of_pictures_in_natural_order(tmp_path):
    names = ["Frame 1.png", "frame 2.jpg", "frame 10.webp", "frame 10b.png"]
    for value, name in zip((10, 60, 110, 160), names, strict=True):
        Image.fromarray(flat(value)).save(tmp_path / name)
    Image.fromarray(flat(210, 64, 32)).save(tmp_path / "frame 11.png")  # of another shape
    (tmp_path / "notes.txt").write_text("no picture")
    with VideoReader(tmp_path) as reader:
        assert reader.metadata == VideoMetadata(64, 48, Fraction(25), 5, False, Fraction(1, 25))
        assert reader.problem is None
        frames = list(reader)
    assert [frame.time for frame in frames] == [Fraction(i, 25) for i in range(5)]
    assert [round(frame.pixels[24, 32].mean(), -1) for frame in frames] == [10, 60, 110, 160, 210]
    assert (frames[-1].pixels[:, :19] == 255).all() and (frames[-1].pixels[:, 21:43] == 210).all()


def test_a_folder_without_a_picture_that_can_be_read(tmp_path):
    with pytest.raises(InputError, match="folder without pictures"):
        VideoReader(tmp_path)
    (tmp_path / "._1.png").write_bytes(b"what a Mac leaves")
    with pytest.raises(InputError, match="folder without pictures"):
        VideoReader(tmp_path)
    (tmp_path / "1.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match="no picture can be read"):
        VideoReader(tmp_path)


def test_bad_pictures_are_left_out_and_named_and_hidden_ones_passed_over(tmp_path):
    for i in 2, 3, 5:
        Image.fromarray(flat(40 * i)).save(tmp_path / f"{i}.png")
    Image.fromarray(flat(250)).save(tmp_path / ".hidden.png")
    (tmp_path / "._2.png").write_bytes(b"what a Mac leaves")
    (tmp_path / "1.png").write_bytes(b"not a picture")
    (tmp_path / "4.png").write_bytes((tmp_path / "5.png").read_bytes()[:60])
    with VideoReader(tmp_path) as reader:
        frames = list(reader)
        assert "2 of the 5 pictures" in reader.problem and reader.problem.endswith(": 1.png, 4.png.")
    assert [(frame.time, frame.pixels[0, 0, 0]) for frame in frames] == [
        (Fraction(i, 25), value) for i, value in enumerate((80, 120, 200))
    ]


def test_absurdly_large_frames(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", [Fraction(0)])
    monkeypatch.setattr("personalive_core.media.video_reader.FRAME_PIXELS", 3000)
    with pytest.raises(InputError, match="64 x 48 pixels, and more than 3000"):
        VideoReader(path)


def test_names_that_cannot_be_files(tmp_path):
    for url in "https://x.example/a.mp4", Path("https://x.example/a.mp4"), "rtsp://x.example/a":
        with pytest.raises(InputError, match="URLs are not supported: download it first"):
            VideoReader(url)
    with pytest.raises(InputError, match="does not exist"):
        VideoReader(tmp_path / ("n" * 300 + ".mp4"))
    name = tmp_path / ("n" * 251 + ".mp4")
    write_clip(tmp_path / "a.mp4", [Fraction(0)]).rename(name)
    with VideoReader(name) as reader:
        assert len(list(reader)) == 1
