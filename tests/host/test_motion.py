"""Motion that is adjusted, saved, loaded and shown, and driving videos with made-up trouble, in a real host."""

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from prompts import node, sampling, video
from results import latents, saved, succeed
from safetensors import safe_open
from server import Server

from face import draw_face
from media import FRAMES, RATE, SIZE, read_frames
from personalive_core.media.audio import read_audio
from personalive_core.media.video_reader import VideoReader
from personalive_core.media.video_writer import VideoWriter


def adjusted(**settings) -> dict:
    """To the latents, with Adjust Motion in between."""
    prompt = sampling()
    prompt["adjust"] = node("PersonaLiveAdjustMotion", motion=["motion", 0], **settings)
    prompt["sample"]["inputs"]["motion"] = ["adjust", 0]
    return prompt


@pytest.mark.newest_host
def test_strengths_of_one_change_no_bit_and_others_do(host):
    smile = {"driving": node("LoadImage", image="smile.png")}
    plain = latents(host, succeed(host, sampling() | smile))
    assert torch.equal(latents(host, succeed(host, adjusted() | smile)), plain)
    changed = {
        name: latents(host, succeed(host, adjusted(**{name: value}) | smile))
        for name, value in (("expression", 0.0), ("rotation", 3.0), ("relative", True))
    }
    for other in changed.values():
        assert other.shape == plain.shape and not torch.equal(other, plain)


@pytest.mark.newest_host
def test_trimmed_looped_and_at_another_rate(host):
    prompt = adjusted(start=1, count=4, frame_rate=float(2 * RATE), loop=2, back_and_forth=True, audio=["motion", 2])
    run = succeed(host, prompt)
    assert len(latents(host, run)) == 8 + 7
    assert run.texts["adjust"] == ["The motion is played 2 times: a loop has no sound, and the audio is left out."]
    prompt = video() | {
        "float": node("TestFloatRate", audio=["motion", 2]),
        "adjust": node("PersonaLiveAdjustMotion", motion=["motion", 0], audio=["float", 0], start=2),
    }
    prompt["sample"]["inputs"]["motion"] = ["adjust", 0]
    prompt["assemble"]["inputs"] |= {"frame_rate": ["adjust", 1], "audio": ["adjust", 2]}
    file = saved(host, succeed(host, prompt), "save")
    assert len(read_frames(file)) == FRAMES - 2
    assert abs(sound_seconds(file) - (FRAMES - 2) / RATE) < 0.05


def sound_seconds(file) -> float:
    with av.open(str(file)) as container:
        (sound,) = container.streams.audio
        return sum(frame.samples for frame in container.decode(sound)) / sound.rate


@pytest.mark.newest_host
def test_saved_motion_drives_two_portraits(host):
    prompt = adjusted(expression=0.5) | {"keep": node("PersonaLiveSaveMotion", motion=["adjust", 0])}
    run = succeed(host, prompt)
    direct = latents(host, run)
    file = saved(host, run, "keep", "motion")
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["source"] == "driving.mp4" and opened.metadata()["frame_rate"] == str(RATE)

    name = f"{file.relative_to(host.base / 'output').as_posix()} [output]"
    loaded = sampling() | {"motion": node("PersonaLiveLoadMotion", reference=["reference", 0], file=name)}
    del loaded["driving"]
    assert torch.equal(latents(host, succeed(host, loaded)), direct)

    other = latents(host, succeed(host, loaded | {"portrait": node("LoadImage", image="smile.png")}))
    assert other.shape == direct.shape and not torch.equal(other, direct)

    prompt = loaded | {
        "smile": node("LoadImage", image="smile.png"),
        "reference_2": loaded["reference"] | {"inputs": loaded["reference"]["inputs"] | {"image": ["smile", 0]}},
        # The strength in the file stays.
        "adjust": node("PersonaLiveAdjustMotion", motion=["motion", 0], reference=["reference_2", 0]),
    }
    prompt["sample"] = {**prompt["sample"], "inputs": prompt["sample"]["inputs"] | {"reference": ["reference_2", 0]}}
    run = host.run(prompt)
    assert run.node == "sample" and "extracted for another reference" in run.error
    prompt["sample"]["inputs"]["motion"] = ["adjust", 0]
    assert torch.equal(latents(host, succeed(host, prompt)), other)

    (host.base / "input" / "broken.motion.safetensors").write_bytes(file.read_bytes()[:500])
    shutil.copy(file, host.base / "input" / "copied.motion.safetensors")
    loaded["motion"]["inputs"]["file"] = "copied.motion.safetensors"
    succeed(host, loaded)
    loaded["motion"]["inputs"]["file"] = "broken.motion.safetensors"
    run = host.run(loaded)
    assert run.node == "motion" and "is damaged or no motion file" in run.error
    loaded["motion"]["inputs"]["file"] = "../../secret.motion.safetensors"
    error = host.run(loaded).error  # newer hosts refuse it themselves
    assert "not in list" in error.lower() or "there is no motion file" in error


def write_trouble(folder, rate: Fraction = RATE) -> int:
    """trouble.mp4, 1080 x 1920 with a tone: a face, black frames, the face, another scene. Returns its frames."""
    kinds = ["face"] * 6 + ["black"] * 3 + ["face"] * 8 + ["other"] * 7
    with VideoWriter(folder / "trouble.mp4", 1080, 1920, rate, audio_from=folder / "tone.wav") as writer:
        for i, kind in enumerate(kinds):
            frame = Image.new("RGB", (1080, 1920), "#402010" if kind == "other" else "#cfd8dc")
            face = Image.fromarray(draw_face(yaw=np.sin(i / 3))).resize((900, 900))
            frame.paste(face, (90, 800 if kind == "other" else 200))
            pixels = np.asarray(frame)
            writer.write(np.zeros_like(pixels) if kind == "black" else pixels, i / rate)
    return len(kinds)


@pytest.mark.newest_host
def test_a_clip_with_trouble(host):
    frames = write_trouble(host.base / "input")
    prompt = video() | {"driving": node("LoadVideo", file="trouble.mp4")}
    prompt["text"] = node("PreviewAny", source=["motion", 3])
    prompt["preview"] = node("PersonaLivePreviewMotion", motion=["motion", 0], start=5, count=4)
    prompt["pictures"] = node("SaveImage", images=["preview", 0], filename_prefix="trouble")
    run = succeed(host, prompt)
    (held,) = run.outputs["text"]["text"]
    assert held == f"held the last good motion in 4 of {frames} frames: 6 to 8 (no picture), 17 (scene cut)"
    file = saved(host, run, "save")
    with VideoReader(file) as reader:
        assert reader.metadata.frame_rate == RATE
        assert len(list(reader)) == frames
    assert abs(sound_seconds(file) - frames / RATE) < 1 / RATE
    assert len(latents(host, run)) == frames
    marked = []
    for picture in run.outputs["pictures"]["images"]:
        pixels = np.asarray(Image.open(host.base / "output" / picture["subfolder"] / picture["filename"]))
        marked.append(bool((pixels[0] == (229, 57, 53)).all()))
    assert marked == [False, True, True, True]


def test_sound_that_begins_late_stays_late(host):
    """Through the decoded sound of Extract Motion and of Adjust Motion: the tone begins half a second into the clip."""
    folder = host.base / "input"
    tone = dict(audio_from=folder / "tone.wav", audio_start=Fraction(-1, 2))
    with VideoWriter(folder / "late.mp4", 128, 128, Fraction(25), **tone) as writer:
        for i in range(20):
            writer.write(draw_face(yaw=np.sin(i / 9))[::2, ::2].copy(), Fraction(i, 25))
    prompt = video() | {"driving": node("LoadVideo", file="late.mp4")}
    assert abs(sound_begins(saved(host, succeed(host, prompt), "save")) - 0.5) < 0.04
    prompt["adjust"] = node("PersonaLiveAdjustMotion", motion=["motion", 0], audio=["motion", 2], start=5)
    prompt["sample"]["inputs"]["motion"] = ["adjust", 0]
    prompt["assemble"]["inputs"]["audio"] = ["adjust", 2]
    assert abs(sound_begins(saved(host, succeed(host, prompt), "save")) - 0.3) < 0.04


def sound_begins(file) -> float:
    waveform, rate = read_audio(file, Fraction(0), Fraction(2))
    return int((abs(waveform) > 0.1).any(0).argmax()) / rate


def test_a_clip_without_a_face_says_so(host):
    with VideoWriter(host.base / "input" / "black.mp4", 64, 64, RATE) as writer:
        for i in range(5):
            writer.write(np.zeros((64, 64, 3), np.uint8), i / RATE)
    run = host.run(sampling() | {"driving": node("LoadVideo", file="black.mp4")})
    assert run.node == "motion"
    assert "none of the 5 driving frames shows a face (no picture in 5)" in run.error


def test_a_video_of_variable_rate_stays_in_step(host):
    """Half a second at 10 frames a second, then half a second at 40: 25 frames in all, at an average of 25."""
    times = [Fraction(i, 10) for i in range(5)] + [Fraction(1, 2) + Fraction(i, 40) for i in range(20)]
    with VideoWriter(host.base / "input" / "variable.mp4", 128, 128, Fraction(25)) as writer:
        for i, time in enumerate(times):
            writer.write(draw_face(yaw=np.sin(i / 9))[::2, ::2].copy(), time)
    prompt = sampling() | {"driving": node("LoadVideo", file="variable.mp4")}
    prompt["faces"] = node("PersonaLivePreviewMotion", motion=["motion", 0], count=100)
    prompt["pictures"] = node("SaveImage", images=["faces", 0], filename_prefix="variable")
    run = succeed(host, prompt)
    assert abs(len(latents(host, run)) - 25) <= 1


@pytest.mark.newest_host
def test_mirrored_pictures_are_mirrored_before_they_are_read(host):
    Image.open(host.base / "input" / "smile.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        host.base / "input" / "mirrored.png"
    )
    mirror = sampling() | {"driving": node("LoadImage", image="smile.png")}
    mirror["motion"]["inputs"]["mirror"] = True
    expected = latents(host, succeed(host, sampling() | {"driving": node("LoadImage", image="mirrored.png")}))
    assert torch.equal(latents(host, succeed(host, mirror)), expected)


@pytest.mark.parametrize("result", [pytest.param(None, marks=pytest.mark.newest_host), ["assemble", 0]])
def test_contact_sheet(host: Server, result):
    sheet = node("PersonaLiveContactSheet", motion=["motion", 0], columns=6, **({"result": result} if result else {}))
    prompt = video() | {"sheet": sheet, "pictures": node("SaveImage", images=["sheet", 0], filename_prefix="sheet")}
    file = saved(host, succeed(host, prompt), "pictures")
    assert Image.open(file).size == (6 * 128, (3 if result else 2) * 128)


@pytest.mark.newest_host
def test_the_portrait_returns(host):
    prompt = sampling() | {"driving": node("RepeatImageBatch", image=["smile", 0], amount=32)}
    prompt |= {"smile": node("LoadImage", image="smile.png")}
    plain = latents(host, succeed(host, prompt))
    prompt["sample"]["inputs"]["return_every"] = 1.0
    found = latents(host, succeed(host, prompt))
    assert found.shape == plain.shape == (32, 4, SIZE // 8, SIZE // 8)
    assert torch.equal(found[:16], plain[:16]) and not torch.equal(found, plain)
