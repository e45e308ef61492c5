"""What comes with the nodes: the miniature's weights and its example, as the template without downloads has them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prompts import node
from results import succeed

from personalive_core.media.pictures import read_picture
from personalive_core.media.video_reader import VideoReader
from personalive_core.pipeline import Pipeline
from personalive_core.weights.find import EXAMPLE, MINIATURE, find_weights

TEMPLATE = Path(__file__).parent / "workflows" / "1 Try it without downloads.json"


def template() -> dict:
    """The template's prompt, node by name, with the frames as pictures."""
    prompt = json.loads(TEMPLATE.read_text("utf-8"))
    (assemble,) = (name for name, item in prompt.items() if item["class_type"] == "PersonaLiveAssembleVideo")
    prompt[assemble]["inputs"]["images"] = True
    return prompt | {"pictures": node("SaveImage", images=[assemble, 1], filename_prefix="example")}


def pictures(host, run, name: str) -> np.ndarray:
    """uint8 (F, H, W, 3)"""
    folder = host.base / "output"
    files = [folder / file["subfolder"] / file["filename"] for file in run.outputs[name]["images"]]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


@pytest.fixture(scope="module")
def driving() -> np.ndarray:
    with VideoReader(EXAMPLE / "driving.mp4") as video:
        return np.stack([frame.pixels for frame in video])


@pytest.fixture(scope="module")
def expected(driving: np.ndarray) -> np.ndarray:
    """What the core makes of the example."""
    pipeline = Pipeline.load(find_weights(MINIATURE), "cpu")
    reference = pipeline.encode_reference(read_picture(EXAMPLE / "portrait.png"))
    return np.concatenate(list(pipeline.animate(reference, driving)))


def test_a_size_that_the_miniature_does_not_know_is_said_on_the_node(host):
    prompt = json.loads(TEMPLATE.read_text("utf-8"))
    (name,) = (name for name, item in prompt.items() if item["class_type"] == "PersonaLiveEncodeReference")
    needed, wanted = {}, [name]
    while wanted:
        key = wanted.pop()
        needed[key] = prompt[key]
        wanted += [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    needed["shown"] = node("PreviewAny", source=[name, 0])
    assert not succeed(host, needed).texts
    needed[name]["inputs"] |= {"width": 256, "height": 128}
    (said,) = succeed(host, needed).texts[name]
    assert "trained at 128 x 128" in said and "256 x 128 looks worse and takes 2 times as long" in said


def test_example_input(host, driving):
    prompt = {
        "example": node("PersonaLiveExampleInput"),
        "portrait": node("SaveImage", images=["example", 0], filename_prefix="portrait"),
        "parts": node("GetVideoComponents", video=["example", 1]),
        "driving": node("SaveImage", images=["parts", 0], filename_prefix="driving"),
    }
    run = succeed(host, prompt)
    assert np.array_equal(pictures(host, run, "portrait")[0], read_picture(EXAMPLE / "portrait.png"))
    found = pictures(host, run, "driving")
    assert found.shape == driving.shape
    assert abs(found.astype(int) - driving).mean() < 2  # the host's own decoder rounds colours otherwise


@pytest.mark.newest_host
def test_the_template_gives_the_cores_frames(host, expected):
    found = pictures(host, succeed(host, template()), "pictures")
    assert found.shape == expected.shape
    assert abs(found.astype(int) - expected).max() <= 1  # the host rounds down, the core to the nearest


def test_a_stray_download_and_convert_leave_the_package_alone(host):
    before = {path: path.stat().st_mtime_ns for path in MINIATURE.rglob("*")}
    load = {
        "model": node("PersonaLiveLoadModel", weights="miniature", download=True, convert=True),
        "shown": node("PreviewAny", source=["model", 0]),
    }
    succeed(host, load)
    assert {path: path.stat().st_mtime_ns for path in MINIATURE.rglob("*")} == before
