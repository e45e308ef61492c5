"""The programs in docs/examples/ run as the documentation says, on the miniature."""

import os
import re
import subprocess
import sys
from pathlib import Path

from personalive_core import VideoReader
from personalive_core.weights.find import EXAMPLE

ROOT = Path(__file__).parents[1]
FRAMES = 5


def run(example: str, *options: str) -> str:
    """The example's output. One thread, because the miniature is too small to share between cores that others use."""
    command = [sys.executable, ROOT / "docs" / "examples" / example, "--max_frames", str(FRAMES), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_animate(tmp_path: Path):
    output = tmp_path / "animated.mp4"
    assert run("animate.py", "--output", str(output)) == f"{output}\n"
    with VideoReader(output) as video, VideoReader(EXAMPLE / "driving.mp4") as driving:
        frames = [frame.pixels for frame in video]
        assert video.metadata.frame_rate == driving.metadata.frame_rate
    assert [frame.shape for frame in frames] == [(128, 128, 3)] * FRAMES
    assert (frames[0] != frames[-1]).any()


def test_stream_prints_when_each_frame_comes_out():
    lines = re.findall(r"^frame (\d+): in at ([\d.]+) s, out at ([\d.]+) s", run("stream.py"), re.MULTILINE)
    assert [int(number) for number, _, _ in lines] == list(range(FRAMES))
    assert all(float(came_in) < float(came_out) for _, came_in, came_out in lines)
