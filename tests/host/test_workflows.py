"""The templates: served, whole, equal to their API prompts, and these run."""

import json
from pathlib import Path
from urllib.parse import quote

import av
import pytest
from PIL import Image
from results import saved, succeed

from media import FRAMES, SIZE, read_frames

PROMPTS = Path(__file__).parent / "workflows"
TEMPLATES = Path(__file__).parents[2] / "workflows"
NAMES = sorted(file.stem for file in PROMPTS.glob("*.json"))
WIDGETS = {"COMBO", "INT", "FLOAT", "BOOLEAN", "STRING"}
TEST_FILES = {
    "PersonaLiveLoadModel": {"weights": "other"},
    "PersonaLiveEncodeReference": {"width": SIZE, "height": SIZE},
    "PersonaLiveCropPortrait": {"detector": "drawn.onnx"},
    "PersonaLiveCropDriving": {"detector": "drawn.onnx"},
}
TEST_PICTURES = {"expression.png": "smile.png", "photo.png": "group.png"}
CHANGED = {  # of the defaults
    "Long video": {"count"},
    "Crop, animate, paste back": {"detector", "quality"},
    "Two people": {"detector", "quality", "face", "number"},
    "Reuse motion": {"file"},
    "Try it without downloads": {"weights", "width", "height"},
}
IN_EVERY_HOST = {"Animate a portrait with one picture", "Crop, animate, paste back", "Reuse motion"}  # all nodes used
NATIVE = {"Crop, animate, paste back": (400, 640), "Two people": (400, 640)}  # height and width of what they show whole

every_template = pytest.mark.parametrize("name", NAMES)


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text("utf-8"))


def nodes_of(template: dict) -> dict[int, dict]:
    return {item["id"]: item for item in template["nodes"] if item["type"] != "MarkdownNote"}


def described(host, class_type: str) -> dict[str, list]:
    """Name -> type and options of each input, in order."""
    info = host.nodes[class_type]
    shown = {kind: names for kind, names in info["input_order"].items() if kind != "hidden"}
    return {name: info["input"][kind][name] for kind, names in shown.items() for name in names}


def test_served(host):
    assert sorted(file.stem for file in TEMPLATES.glob("*.json")) == NAMES
    assert set(host.get("workflow_templates")["personalive"]) == set(NAMES)
    for name in NAMES:
        address = f"api/workflow_templates/personalive/{quote(name)}"
        assert host.get(f"{address}.json") == read(TEMPLATES, name)
        assert host.get_bytes(f"{address}.jpg") == (TEMPLATES / f"{name}.jpg").read_bytes()
        assert Image.open(TEMPLATES / f"{name}.jpg").size == (512, 512)


@every_template
def test_links(host, name):
    template = read(TEMPLATES, name)
    nodes = nodes_of(template)
    for number, source, output, target, slot, _ in template["links"]:
        made, taken = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert number in made["links"] and number == taken["link"]
        assert made["type"] == host.nodes[nodes[source]["type"]]["output"][output]
        accepted, *_ = described(host, nodes[target]["type"])[taken["name"]]
        assert taken["type"] == accepted
        assert made["type"] in accepted.split(",")
    used = {link[0] for link in template["links"]}
    ends = [slot["link"] for item in nodes.values() for slot in item["inputs"] if slot.get("link") is not None]
    assert sorted(ends) == sorted(used)


@every_template
def test_same_as_prompt(host, name):
    template, prompt = read(TEMPLATES, name), read(PROMPTS, name)
    nodes = nodes_of(template)
    assert {str(number): item["type"] for number, item in nodes.items()} == {
        number: item["class_type"] for number, item in prompt.items()
    }
    links = {
        (str(target), nodes[target]["inputs"][slot]["name"]): [str(source), output]
        for _, source, output, target, slot, _ in template["links"]
    }
    assert links == {
        (number, key): value
        for number, item in prompt.items()
        for key, value in item["inputs"].items()
        if isinstance(value, list)
    }
    for number, item in prompt.items():
        if item["class_type"].startswith("PersonaLive"):
            shown = shown_values(host, nodes[int(number)])
            given = {key: value for key, value in item["inputs"].items() if not isinstance(value, list)}
            assert given == {key: value for key, value in shown.items() if (number, key) not in links}


def shown_values(host, item: dict) -> dict:
    """Name -> value of the node's widgets in a template, which holds the values alone."""
    names = []
    for key, (kind, *options) in described(host, item["type"]).items():
        if isinstance(kind, list) or kind in WIDGETS:
            names.append(key)
            if options and options[0].get("control_after_generate"):
                names.append("control")
    values = dict(zip(names, item.get("widgets_values", []), strict=True))
    assert values.pop("control", "fixed") == "fixed"
    return values


@every_template
def test_defaults(host, name):
    for item in nodes_of(read(TEMPLATES, name)).values():
        if item["type"].startswith("PersonaLive"):
            defaults = {key: options.get("default") for key, (_, options) in described(host, item["type"]).items()}
            shown = shown_values(host, item)
            changed = {key for key, value in shown.items() if value != defaults[key]}
            assert changed <= CHANGED.get(name, set())


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_EVERY_HOST else pytest.param(name, marks=pytest.mark.newest_host)
        for name in NAMES
        if name not in ("Try it without downloads", "Live")  # see test_example and test_live
    ],
)
def test_runs(host, name):
    prompt = read(PROMPTS, name)
    for item in prompt.values():
        item["inputs"] |= TEST_FILES.get(item["class_type"], {})
        if item["class_type"] == "LoadImage":
            item["inputs"]["image"] = TEST_PICTURES.get(item["inputs"]["image"], item["inputs"]["image"])
    run = succeed(host, prompt)
    results = [number for number, item in prompt.items() if item["class_type"] in ("SaveVideo", "SaveImage")]
    assert len(results) == (2 if name == "Reuse motion" else 1)
    for number in results:
        file = saved(host, run, number)
        if prompt[number]["class_type"] == "SaveImage":
            assert Image.open(file).size == (SIZE, SIZE)
            continue
        assert read_frames(file).shape == (FRAMES, *NATIVE.get(name, (SIZE, SIZE)), 3)
        with av.open(str(file)) as container:
            assert bool(container.streams.audio) == (name != "Reuse motion")
