"""Crop Portrait, Crop Driving and Paste Back in a real host."""

import argparse

import av
import numpy as np
import pytest
from PIL import Image
from prompts import node, sampling, video
from results import latents, saved, succeed

from face import DETECTOR_FILE, draw_face
from media import FACES, FRAMES, RATE, SIZE, read_frames
from personalive_core.cli.crop_options import CropOptions, add_crop_options
from personalive_core.media.video_writer import VideoWriter

WIDTH, HEIGHT = 641, 400


def crop(**options) -> dict:
    """From the group to the cropped square and the preview."""
    return {
        "group": node("LoadImage", image="group.png"),
        "crop": node("PersonaLiveCropPortrait", image=["group", 0], size=SIZE, **options),
        "square": node("SaveImage", images=["crop", 0], filename_prefix="square"),
        "preview": node("SaveImage", images=["crop", 2], filename_prefix="preview"),
    }


def picture(host, run, name) -> np.ndarray:
    return np.asarray(Image.open(saved(host, run, name)).convert("RGB"))


def group(host) -> np.ndarray:
    return np.asarray(Image.open(host.base / "input" / "group.png").convert("RGB"))


def yellow(preview: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the square in a preview."""
    rows, columns = np.nonzero((preview == (255, 255, 0)).all(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize(
    "options, face",
    [
        (dict(detector="drawn.onnx"), FACES[1]),
        (dict(detector="drawn.onnx", face="number", number=0), FACES[0]),
        (dict(side=176, x=40, y=60), FACES[0]),
    ],
    ids=["largest", "number 0", "by hand"],
)
def test_crop(host, options, face):
    run = succeed(host, crop(**options))
    square, preview = picture(host, run, "square"), picture(host, run, "preview")
    assert square.shape == (SIZE, SIZE, 3) and preview.shape == (HEIGHT, WIDTH, 3)
    left, top, right, bottom = yellow(preview)
    assert abs((left + right) / 2 - face[0] - face[2] / 2) < 25
    assert abs((right - left) - (bottom - top)) <= 2
    if "side" in options:
        expected = group(host)[60:236, 40:216]
        shrunk = np.asarray(Image.fromarray(expected).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
        assert np.abs(square.astype(int) - shrunk)[8:-8, 8:-8].mean() < 1


def test_the_same_square_as_on_the_command_line(host):
    """With the same detector and numbers, in a picture of two faces."""
    run = succeed(host, crop(detector="drawn.onnx", face="centre", margin=0.3, vertical_offset=-0.1))
    options = argparse.ArgumentParser()
    add_crop_options(options)
    chosen = ["--crop", "--detector", str(DETECTOR_FILE), "--face", "centre"]
    given = options.parse_args([*chosen, "--margin", "0.3", "--vertical-offset", "-0.1"])
    given.ref_image, given.width, given.height = host.base / "input" / "group.png", SIZE, SIZE
    expected = CropOptions(given).portrait(None, "cpu").astype(int)
    assert np.abs(picture(host, run, "square") - expected).max() <= 1  # the host rounds down


def test_boxes_of_the_hosts_own_nodes(host):
    if "PrimitiveBoundingBox" not in host.nodes:
        pytest.skip("this host has no nodes that make a BOUNDING_BOX")
    box = node("PrimitiveBoundingBox", x=70, y=70, width=120, height=120)
    run = succeed(host, crop(boxes=["box", 0], margin=0.5, vertical_offset=0.0) | {"box": box})
    assert np.allclose(yellow(picture(host, run, "preview")), (10, 10, 249, 249), atol=2)


def test_the_models_keypoints_alone_find_a_square(host):
    run = succeed(host, crop(model=["model", 0]) | {"model": node("PersonaLiveLoadModel", weights="tiny")})
    assert picture(host, run, "square").shape == (SIZE, SIZE, 3)


BAD = {
    "nothing says where": (dict(), ["detector", "side"]),
    "no such number": (dict(detector="drawn.onnx", face="number", number=7), ["7", "2"]),
    "outside": (dict(side=50, x=900, y=0), ["900", "641 x 400"]),
    "refine without a model": (dict(detector="drawn.onnx", refine=True), ["refine", "model"]),
    "not fetched": (dict(detector="yunet"), ["yunet", "download", "models/personalive/detectors"]),
}


@pytest.mark.parametrize("options, words", BAD.values(), ids=BAD)
def test_one_sentence(host, options, words):
    run = host.run(crop(**options))
    assert run.node == "crop" and all(word in run.error for word in words), run.error


def paste(**options) -> dict:
    return {
        "back": node(
            "PersonaLivePasteBack", **{"picture": ["group", 0], "crop": ["crop", 1], "animated": ["crop", 0]} | options
        )
    }


@pytest.mark.newest_host
def test_what_is_left_out_is_said(host):
    """Of two portraits the second, of three squares for two pictures the third."""
    prompt = crop(side=176, x=40, y=60) | {
        "two": node("RepeatImageBatch", image=["group", 0], amount=2),
        "three": node("RepeatImageBatch", image=["crop", 0], amount=3),
        **paste(picture=["two", 0], animated=["three", 0]),
        "save": node("SaveVideo", video=["back", 0], filename_prefix="video/x", format="auto", codec="auto"),
        **{name: item for name, item in sampling().items() if name in ("model", "vae", "clip_vision", "reference")},
        "shown": node("PreviewAny", source=["reference", 0]),
    }
    for name in ("crop", "reference"):
        prompt[name]["inputs"]["image"] = ["two", 0]
    run = succeed(host, prompt)
    first = "2 images came in: the first is used. Connect a single one to use another."
    assert run.texts == {
        "crop": [first],
        "reference": [first],
        "back": [
            "3 images are taken as 25 frames a second (0.1 s): set 'frame_rate' if they were made at another rate.",
            "the picture has 2 frames, the animated video 3: the result has 2.",
        ],
    }


def test_round_trip(host):
    prompt = crop(detector="drawn.onnx") | paste(images=True)
    prompt |= {
        "result": node("SaveImage", images=["back", 1], filename_prefix="result"),
        "mask_image": node("MaskToImage", mask=["back", 2]),
        "mask": node("SaveImage", images=["mask_image", 0], filename_prefix="mask"),
    }
    run = succeed(host, prompt)
    result, mask = (picture(host, run, name).astype(int) for name in ("result", "mask"))
    assert 0 < (mask > 0).mean() < 0.6
    assert np.array_equal(result[mask[..., 0] == 0], group(host)[mask[..., 0] == 0])
    assert np.abs(result - group(host)).max() <= 2


def whole_way(number: int, name: str) -> dict:
    """One person of the group, animated; the names of the nodes end in `name`."""
    prompt = video() | crop(detector="drawn.onnx", face="number", number=number)
    prompt["reference"]["inputs"]["image"] = ["crop", 0]
    prompt["assemble"]["inputs"]["quality"] = "high"
    for unneeded in ("portrait", "save", "latents", "square", "preview"):
        del prompt[unneeded]
    own = {"crop", "reference", "motion", "sample", "assemble"}

    def renamed(link):
        return [link[0] + name, link[1]] if isinstance(link, list) and link[0] in own else link

    return {
        key + name if key in own else key: {
            **item,
            "inputs": {slot: renamed(value) for slot, value in item["inputs"].items()},
        }
        for key, item in prompt.items()
    }


@pytest.mark.newest_host
def test_two_people_pasted_into_one_video(host):
    prompt = whole_way(0, "") | whole_way(1, "_2")
    prompt |= paste(animated=["assemble", 0], quality="high")
    prompt["back_2"] = node(
        "PersonaLivePasteBack",
        picture=["back", 0],
        crop=["crop_2", 1],
        animated=["assemble_2", 0],
        quality="high",
        match_colours=True,
    )
    prompt["save"] = node("SaveVideo", video=["back_2", 0], filename_prefix="video/two", format="auto", codec="auto")
    run = succeed(host, prompt)
    file = saved(host, run, "save")
    frames, still = read_frames(file).astype(int), group(host)[:, : WIDTH - 1].astype(int)
    assert frames.shape == (FRAMES, HEIGHT, WIDTH - 1, 3)
    difference = np.abs(frames - still).max(-1)
    for left, top, side in FACES:
        middle = np.s_[:, top + side // 3 : top + side // 2, left + side // 3 : left + side * 2 // 3]
        assert difference[middle].mean() > 10  # animated
    assert difference[:, 300:, 250:330].max() < 12  # between them: as it was, but for the coding
    with av.open(str(file)) as container:
        assert container.streams.audio and container.streams.video[0].average_rate == RATE
    values = [value for who, value, _ in run.progress if who == "back_2"]
    assert values == list(range(1, FRAMES + 1)) and run.previews["back_2"]


@pytest.mark.parametrize(
    ("mode", "detector"), [("smoothed", "drawn.onnx"), ("fixed", "none"), ("per-frame", "drawn.onnx")]
)
def test_crop_driving(host, mode, detector):
    prompt = sampling() | {"settings": node("PersonaLiveCropDriving", mode=mode, detector=detector, margin=0.1)}
    whole = latents(host, succeed(host, sampling()))
    prompt["motion"]["inputs"]["crop"] = ["settings", 0]
    cropped = latents(host, succeed(host, prompt))
    assert cropped.shape == whole.shape
    assert (cropped - whole).norm() / whole.norm() > 0.01


def test_the_driver_leaves_and_the_square_is_shown(host):
    """For six frames of an ordinary picture without the face."""
    with VideoWriter(host.base / "input" / "leaving.mp4", 320, 200, RATE) as writer:
        for i in range(20):
            frame = Image.new("RGB", (320, 200), "#cfd8dc")
            if not 8 <= i < 14:
                frame.paste(Image.fromarray(draw_face()).resize((111, 111)), (150, 40))
            frame.paste("#5a5a5a", (0, 170, 200, 200))
            writer.write(np.asarray(frame), i / RATE)
    prompt = sampling() | {"driving": node("LoadVideo", file="leaving.mp4")}
    prompt["settings"] = node("PersonaLiveCropDriving", mode="smoothed", detector="drawn.onnx", margin=1.0)
    prompt["motion"]["inputs"] |= {"crop": ["settings", 0], "mirror": True}
    prompt["text"] = node("PreviewAny", source=["motion", 3])
    prompt["shown"] = node("PersonaLivePreviewMotion", motion=["motion", 0], start=0, count=1)
    prompt["pictures"] = node("SaveImage", images=["shown", 0], filename_prefix="leaving")
    prompt["sheet"] = node("PersonaLiveContactSheet", motion=["motion", 0])
    prompt["sheet_file"] = node("SaveImage", images=["sheet", 0], filename_prefix="leaving_sheet")
    run = succeed(host, prompt)
    (held,) = run.outputs["text"]["text"]
    assert held == "held the last good motion in 3 of 20 frames: 11 to 13 (no face)"
    shown = picture(host, run, "pictures").astype(int)
    assert shown.shape == (256, 3 * 256, 3)  # the frame with its square, the face, the dots
    line = shown[:, :256, :2].min(-1) - shown[:, :256, 2] > 60  # yellow, after JPEG
    columns = np.nonzero(line.any(0))[0]
    face = 256 - (150 + 111 / 2) * 256 / 320  # mirrored
    assert abs((columns.min() + columns.max()) / 2 - face) < 10
    assert picture(host, run, "sheet_file").shape == (3 * 128, 10 * 128, 3)
    assert run.previews["motion"]


def test_an_animated_video_that_is_not_square(host):
    prompt = crop(detector="drawn.onnx") | {"driving": node("LoadVideo", file="driving.mp4")}
    prompt |= paste(animated=["driving", 0])
    prompt["save"] = node("SaveVideo", video=["back", 0], filename_prefix="video/x", format="auto", codec="auto")
    run = host.run(prompt)
    assert run.node == "back" and "160 x 128" in run.error and "square" in run.error, run.error
