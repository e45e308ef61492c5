"""Files made to harm: that name other files or addresses, start programs, hang, or fill memory."""

import os
import struct
from fractions import Fraction

import pytest

from clips import write_clip
from personalive_core.errors import InputError
from personalive_core.limits import FRAME_PIXELS
from personalive_core.media.audio import read_audio
from personalive_core.media.pictures import read_picture
from personalive_core.media.video_reader import VideoReader

PLAYLISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{}\n#EXT-X-ENDLIST\n",
    "address.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "list.mp4": "ffconcat version 1.0\nfile real.mp4\n",
    "a.ffconcat": "ffconcat version 1.0\nfile real.mp4\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


def read_sound(path):
    return read_audio(path, Fraction(0), Fraction(1))


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_that_names_others_is_not_followed(tmp_path, name):
    real = write_clip(tmp_path / "real.mp4", [Fraction(i, 25) for i in range(5)])
    (tmp_path / name).write_text(PLAYLISTS[name].format(real))
    for read in VideoReader, read_sound:
        with pytest.raises(InputError, match=f"{name} is a playlist or of another kind that is not read; give a"):
            read(tmp_path / name)


def test_a_program_in_postscript_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    path = tmp_path / "portrait.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n")
    for read in read_picture, VideoReader:
        with pytest.raises(InputError, match=r"portrait\.png is not a picture that can be read; give a PNG, JPEG or"):
            read(path)


def test_a_huge_canvas_is_not_drawn(tmp_path):
    path = tmp_path / "a.gif"
    canvas = struct.pack("<HH", 16000, 16000)
    path.write_bytes(b"GIF89a" + canvas + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;")
    with pytest.raises(InputError, match=f"is 16000 x 16000 pixels, and more than {FRAME_PIXELS} are not read"):
        VideoReader(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for read in VideoReader, read_picture, read_sound:
        with pytest.raises(InputError, match=rf"{name} is a pipe or a device and no file; give the path of a"):
            read(tmp_path / name)
    with pytest.raises(InputError, match="of which no picture can be read" if name == "a.png" else "without pictures"):
        VideoReader(tmp_path)
