"""The pictures, video and sound that the prompts name, drawn and counted."""

import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from face import draw_face
from personalive_core.media.video_reader import VideoReader
from personalive_core.media.video_writer import VideoWriter
from personalive_core.motion.motion import Motion
from personalive_core.motion.motion_file import save_motion
from personalive_core.motion.performance import Performance
from personalive_core.networks.head_pose import HeadPose
from seeded import normal

RATE = Fraction(30000, 1001)
FRAMES = 6
SIZE = 128
FACES = (40, 60, 176), (361, 60, 220)  # left, top, side of the drawn portraits in the group


def write_inputs(folder: Path) -> None:
    """portrait.png and smile.png, SIZE x SIZE; driving.mp4, FRAMES of 160 x 128 with a tone, at RATE; group.png, two
    people of FACES in 641 x 400; performance.motion.safetensors, FRAMES of made-up motion."""
    _face().save(folder / "portrait.png")
    _face(yaw=0.4, mouth=1.0).save(folder / "smile.png")
    group = Image.new("RGB", (641, 400), "#cfd8dc")
    for left, top, side in FACES:
        group.paste(_face(yaw=0.2).resize((side, side), Image.Resampling.LANCZOS), (left, top))
    group.save(folder / "group.png")
    save_motion(Performance(_motion(), RATE, "driving.mp4"), folder / "performance.motion.safetensors")
    with wave.open(str(folder / "tone.wav"), "wb") as sound:
        sound.setparams((1, 2, 48000, 0, "NONE", ""))
        sound.writeframes((np.sin(np.arange(48000) / 10) * 12000).astype("<i2").tobytes())
    tone = folder / "tone.wav"
    with VideoWriter(folder / "driving.mp4", 160, 128, RATE, audio_from=tone) as video:
        for i in range(FRAMES):
            frame = Image.new("RGB", (160, 128), "#cfd8dc")
            frame.paste(_face(yaw=np.sin(i / 3), mouth=i / FRAMES), (16, 0))
            video.write(np.asarray(frame), i / RATE)


def _face(**pose: float) -> Image.Image:
    return Image.fromarray(draw_face(**pose)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _motion() -> Motion:
    pose = HeadPose(
        angles=20 * normal("angles", FRAMES, 3),
        translation=normal("translation", FRAMES, 3) / 10,
        scale=torch.ones(FRAMES, 1),
        keypoints=normal("keypoints", FRAMES, 21, 3) / 4,
    )
    return Motion(pose, normal("tokens", FRAMES, 32, 16) / 4, torch.zeros(FRAMES, 4, dtype=torch.long))


def read_frames(path: Path) -> np.ndarray:
    """uint8 (F, H, W, 3)"""
    with VideoReader(path) as video:
        return np.stack([frame.pixels for frame in video])
