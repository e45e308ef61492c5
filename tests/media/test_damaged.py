"""Damaged files of many kinds: one sentence or what can be decoded, never a traceback, a hang or all memory."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

READ_ALL = """
import faulthandler, resource, sys
from fractions import Fraction
from itertools import islice
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from personalive_core.errors import InputError
from personalive_core.media.audio import read_audio
from personalive_core.media.pictures import read_picture
from personalive_core.media.video_reader import VideoReader

def frames(path):
    with VideoReader(path) as reader:
        return sum(1 for _ in islice(reader, 200))

for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in frames, read_picture, lambda path: read_audio(path, Fraction(0), Fraction(1)):
        print(path.name, flush=True)
        faulthandler.dump_traceback_later(20, exit=True)
        try:
            read(path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1, error
faulthandler.cancel_dump_traceback_later()
# getrusage would give the peak of the process that started this one, where that is higher.
print(*[line for line in open("/proc/self/status") if line.startswith("VmHWM:")])
"""
CODECS = {
    "a.mp4": ("libx264", "aac"),
    "a.mov": ("libx264", "pcm_s16le"),
    "a.mkv": ("libx265", "flac"),
    "a.webm": ("libvpx-vp9", "libopus"),
    "a.avi": ("mpeg4", "libmp3lame"),
    "a.ts": ("mpeg2video", "mp2"),
    "a.mpg": ("mpeg1video", "mp2"),
    "a.flv": ("flv", "libmp3lame"),
    "a.wmv": ("wmv2", "wmav2"),
    "a.h264": ("libx264", None),
}
PICTURES = "a.gif", "a.png", "a.webp", "a.jpg", "a.tif"


def write_video(path, video, audio):
    noise = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(video, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if audio:
            sound = container.add_stream(audio, rate=48000)
            sound.codec_context.layout = "mono"
            sound.codec_context.bit_rate = 64000
        for i, pixels in enumerate(noise):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            frame = av.AudioFrame.from_ndarray(noise[:1].reshape(1, -1).view(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48000, 0
            fifo = av.AudioResampler(sound.codec_context.format, "mono", 48000, sound.codec_context.frame_size or 1024)
            for part in [*fifo.resample(frame), *fifo.resample(None)]:
                container.mux(sound.encode(part))
            container.mux(sound.encode(None))


def damaged(data, rng):
    """Cut off, with bytes changed, with a stretch zeroed or repeated."""
    data, kind = bytearray(data), rng.integers(4)
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 400))
    if kind == 0:
        return data[:at]
    if kind == 1:
        for _ in range(int(rng.choice([1, 5, 50]))):
            # Half of the changes are in the first kilobyte, where the headers are.
            place = int(rng.integers(min(len(data), rng.choice([1024, len(data)]))))
            data[place] = rng.integers(256)
        return data
    if kind == 2:
        data[at : at + length] = bytes(len(data[at : at + length]))
        return data
    return data[:at] + data[at : at + length] + data[at:]


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_damaged_files(tmp_path, count):
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux, which tells a process's peak of memory")
    whole, folder = tmp_path / "whole", tmp_path / "damaged"
    whole.mkdir()
    folder.mkdir()
    for name, (video, audio) in CODECS.items():
        write_video(whole / name, video, audio)
    pictures = [Image.fromarray(x) for x in np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), np.uint8)]
    for name in PICTURES:
        several = {} if name in ("a.jpg", "a.tif") else {"save_all": True, "append_images": pictures[1:]}
        pictures[0].save(whole / name, **several)
    rng = np.random.default_rng(count)
    files = sorted(whole.iterdir())
    for i in range(count):
        file = files[i % len(files)]
        (folder / f"{i:03}{file.suffix}").write_bytes(damaged(file.read_bytes(), rng))
    command = [sys.executable, "-c", READ_ALL, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=600)
    assert done.returncode == 0, done.stdout.splitlines()[-1] + "\n" + done.stderr
    assert int(done.stdout.split()[-2]) < 500_000, done.stdout.splitlines()[-1]  # kB
