"""`animate --split`: one file of all frames, their times and the sound, from pieces that are nearly those of the whole."""

from pathlib import Path

import av
import numpy as np
import pytest
from commands import RATE, animate, write_clip

from clips import write_source
from personalive_core.batch.driver import Outcome
from personalive_core.batch.jobs import Job
from personalive_core.cli import split as split_module
from personalive_core.cli.batch import animate_parser
from personalive_core.cli.split import Pieces, pieces_folder, pieces_that_pay
from personalive_core.media.video_reader import VideoReader
from personalive_core.media.video_writer import VideoWriter


def read(path: Path):
    with VideoReader(path) as video, av.open(str(path)) as container:
        frames = list(video)
        sound = [(p.pts, p.size) for p in container.demux(audio=0) if p.size] if container.streams.audio else []
        return np.stack([frame.pixels for frame in frames]), [frame.time for frame in frames], video.metadata, sound


def driving_with_sound(folder: Path, frames: int) -> Path:
    sound = write_source(folder / "sound.mp4", seconds=frames / 25)
    with (
        VideoReader(write_clip(folder / "silent.mp4", frames)) as clip,
        VideoWriter(folder / "driving.mp4", 128, 96, RATE, audio_from=sound, time_base=1 / RATE) as video,
    ):
        for frame in clip:
            video.write(frame.pixels, frame.time)
    return folder / "driving.mp4"


def test_a_split_video_has_the_frames_times_and_sound_of_a_whole_one(weights, portrait, tmp_path, capsys):
    driving = driving_with_sound(tmp_path, 72)
    assert animate(weights, portrait, driving, whole := tmp_path / "whole.mp4") == 0
    assert animate(weights, portrait, driving, split := tmp_path / "split.mp4", "--split", "2") == 0
    assert f"{split}: 72 frames" in capsys.readouterr().out
    (a, *rest), (b, *rest_of_split) = read(whole), read(split)
    assert rest == rest_of_split and rest[-1]
    print([float(np.abs(x.astype(float)-y).mean()) for x,y in zip(a,b)])
    assert not pieces_folder(split).exists()
    assert 0
