"""Together with nodes of the host and of VideoHelperSuite, each in one graph."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from prompts import node, sampling, video
from results import saved, succeed
from safetensors.torch import load_file, save_file
from server import Run, Server

from media import FACES, FRAMES, SIZE

BACKGROUND = 0x204060
COLOUR = (0x20, 0x40, 0x60)
AS_PICTURES = dict(images=True, quality="good")


def files(host: Server, run: Run, name: str, kind: str = "images") -> list[Path]:
    return [host.base / "output" / file["subfolder"] / file["filename"] for file in run.outputs[name][kind]]


def pictures(host: Server, run: Run, name: str) -> np.ndarray:
    """uint8 (F, H, W, 3)"""
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files(host, run, name)])


def frames() -> dict:
    """From the files to the frames, which are saved."""
    prompt = video()
    prompt["assemble"]["inputs"] |= AS_PICTURES
    return prompt | {"frames": node("SaveImage", images=["assemble", 1], filename_prefix="frames")}


@pytest.mark.newest_host
def test_a_list_runs_each_of_its_pictures(host):
    """The host's own way to loop: a node that gives a list has what follows run once for each item."""

    def of(*names: str) -> list[torch.Tensor]:
        prompt = sampling() | {"single": node("RebatchImages", images=["portrait", 0], batch_size=1)}
        if len(names) == 2:
            prompt["other"] = node("LoadImage", image=names[1])
            prompt["both"] = node("ImageBatch", image1=["portrait", 0], image2=["other", 0])
            prompt["single"]["inputs"]["images"] = ["both", 0]
        prompt["portrait"]["inputs"]["image"] = names[0]
        prompt["reference"]["inputs"]["image"] = ["single", 0]
        found = files(host, succeed(host, prompt), "latents", "latents")
        return [load_file(file)["latent_tensor"] for file in found]

    together = of("portrait.png", "smile.png")
    apart = of("portrait.png") + of("smile.png")
    assert len(together) == 2 and not torch.equal(*together)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def write_interpolation(path: Path) -> None:
    """The host's RIFE with weights of 0: no motion, so what it puts between two frames is their mean."""
    convolutions = {"encode.cnn0": (16, 3, 3), "encode.cnn1": (16, 16, 3), "encode.cnn2": (16, 16, 3)}
    convolutions["encode.cnn3"] = (16, 4, 4)  # this and lastconv are transposed
    for i in range(5):
        convolutions[f"block{i}.conv0.0.0"] = (4, 15 if i == 0 else 28, 3)
        convolutions[f"block{i}.conv0.1.0"] = (8, 4, 3)
        convolutions |= {f"block{i}.convblock.{j}.conv": (8, 8, 3) for j in range(8)}
        convolutions[f"block{i}.lastconv.0"] = (8, 52, 4)
    weights = {f"{name}.weight": torch.zeros(a, b, k, k) for name, (a, b, k) in convolutions.items()}
    for name, (first, second, k) in convolutions.items():
        weights[f"{name}.bias"] = torch.zeros(second if k == 4 else first)
    weights |= {f"block{i}.convblock.{j}.beta": torch.zeros(1, 8, 1, 1) for i in range(5) for j in range(8)}
    path.parent.mkdir(exist_ok=True)
    save_file(weights, path)


def test_frame_interpolation(host):
    if "FrameInterpolate" not in host.nodes:
        pytest.skip("this host has no FrameInterpolate")
    write_interpolation(host.base / "models" / "frame_interpolation" / "mean.safetensors")
    prompt = frames() | {
        "rife": node("FrameInterpolationModelLoader", model_name="mean.safetensors"),
        "between": node("FrameInterpolate", interp_model=["rife", 0], images=["assemble", 1], multiplier=2),
        "more": node("SaveImage", images=["between", 0], filename_prefix="more"),
    }
    run = succeed(host, prompt)
    made, more = pictures(host, run, "frames"), pictures(host, run, "more")
    assert len(made) == FRAMES and len(more) == 2 * FRAMES - 1
    assert (more[::2] == made).all()
    means = (made[1:].astype(float) + made[:-1]) / 2
    assert np.abs(more[1::2] - means).max() <= 1


def test_image_composite_masked(host):
    """With Paste Back's frames and mask, the animated head stands before another background."""
    (left, top, side), width, height = FACES[0], 641, 400
    prompt = frames() | {
        "group": node("LoadImage", image="group.png"),
        "crop": node("PersonaLiveCropPortrait", image=["group", 0], size=SIZE, x=left, y=top, side=side),
        "back": node(
            "PersonaLivePasteBack",
            picture=["group", 0],
            crop=["crop", 1],
            animated=["assemble", 0],
            **AS_PICTURES,
        ),
        "whole": node("SaveImage", images=["back", 1], filename_prefix="whole"),
        "colour": node("EmptyImage", width=width, height=height, batch_size=FRAMES, color=BACKGROUND),
        "composite": node(
            "ImageCompositeMasked", destination=["colour", 0], source=["back", 1], mask=["back", 2], x=0, y=0
        ),
        "before": node("SaveImage", images=["composite", 0], filename_prefix="before"),
    }
    prompt["portrait"] = node("LoadImage", image="portrait.png")
    prompt["reference"]["inputs"]["image"] = ["crop", 0]
    run = succeed(host, prompt)
    whole, before = pictures(host, run, "whole"), pictures(host, run, "before")
    assert before.shape == whole.shape == (FRAMES, height, width, 3)
    square = np.zeros((height, width), bool)
    square[top : top + side, left : left + side] = True
    assert (before[:, ~square] == COLOUR).all()
    middle = (slice(None), slice(top + side // 4, top + 3 * side // 4), slice(left + side // 4, left + 3 * side // 4))
    assert (before[middle] == whole[middle]).all() and (before[middle] != COLOUR).any()


def test_videohelpersuite(host):
    if "VHS_LoadVideo" not in host.nodes:
        pytest.skip("VIDEOHELPERSUITE_PATH names no checkout of ComfyUI-VideoHelperSuite")
    load = node("VHS_LoadVideo", video="driving.mp4", custom_width=0, custom_height=0)
    prompt = frames() | {"driving": load, "info": node("VHS_VideoInfoLoaded", video_info=["driving", 3])}
    prompt["combine"] = node(
        "VHS_VideoCombine", images=["assemble", 1], frame_rate=["info", 0], format="image/webp", filename_prefix="vhs"
    )
    prompt["assemble"]["inputs"]["frame_rate"] = ["info", 0]
    del prompt["assemble"]["inputs"]["audio"]  # that of a video without a reader of sound
    run = succeed(host, prompt)
    with Image.open(saved(host, run, "combine", "gifs")) as animation:
        combined = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)])
    made = pictures(host, run, "frames")
    assert len(combined) == len(made) == FRAMES
    assert np.abs(combined.astype(int) - made).max() <= 1  # one rounds, the other cuts
