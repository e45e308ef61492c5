"""The templates: readable, served, whole, equal to their API prompts, and these run. The blueprint."""

import json
import math
from itertools import permutations
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote

import pytest
from PIL import Image
from results import saved, succeed

from media import read_frames

PROMPTS = Path(__file__).parent / "workflows"
ROOT = Path(__file__).parents[2]
TEMPLATES, SUBGRAPHS = ROOT / "workflows", ROOT / "subgraphs"
NAMES = sorted(file.stem for file in PROMPTS.glob("*.json"))
WIDGETS = {"COMBO", "INT", "FLOAT", "BOOLEAN", "STRING"}
INPUT_NODE, OUTPUT_NODE = -10, -20  # the ends of a subgraph
EXAMPLE = {"weights", "width", "height"}  # what the drawn example needs other than the defaults
CHANGED = {
    "4 Long video": {"start", "count"},
    "5 Crop, animate, paste back": {"size", "detector", "x", "y", "side", "quality"},
    "6 Two people": {"size", "detector", "x", "y", "side", "quality"},
    "7 Adjust and save motion": {"filename_prefix", "expression"},
}
FRAMES = 6  # of the driving video, which is enough to see that a template runs
SIZES = {"5 Crop, animate, paste back": (192, 320), "6 Two people": (128, 288)}  # height and width of the whole picture
# All nodes used.
IN_EVERY_HOST = {
    "2 Animate a portrait with a video",
    "3 Animate a portrait with one picture",
    "5 Crop, animate, paste back",
    "7 Adjust and save motion",
}

WINDOW = 1600, 1000
FILLED = 0.75  # of the window, by a template that the page opens
READABLE = {"1 Try it without downloads": 0.8, "2 Animate a portrait with a video": 0.8}  # zoom; the others:
LEAST = 0.6
PADDING, TITLE = 10, 30  # around all nodes when the page fits them; above a node
TALLER, WIDGET = 36, 4  # how much taller a node may be in Vue nodes: any, and for each of its widgets

every_template = pytest.mark.parametrize("name", NAMES)


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text("utf-8"))


def graphs(template: dict) -> list[tuple[dict[int, dict], list[list]]]:
    """Nodes by number, and links, of the template and of its subgraphs."""
    keys = "id", "origin_id", "origin_slot", "target_id", "target_slot", "type"
    inside = [
        (graph["nodes"], [[link[key] for key in keys] for link in graph["links"]])
        for graph in template["definitions"]["subgraphs"]
    ]
    return [(_by_number(nodes), links) for nodes, links in [(template["nodes"], template.get("links", [])), *inside]]


def _by_number(nodes: list[dict]) -> dict[int, dict]:
    return {item["id"]: item for item in nodes if item["type"] != "MarkdownNote"}


def flat(template: dict) -> dict[str, tuple[dict, dict[str, list]]]:
    """Each node by its number in a prompt, with the links of its inputs; subgraphs are opened."""
    (nodes, links), *_ = graphs(template)
    opened = {graph["id"]: graph for graph in template["definitions"]["subgraphs"]}
    inside = dict(zip(opened, graphs(template)[1:], strict=True))

    def source(number: int, slot: int) -> list:
        if nodes[number]["type"] not in opened:
            return [str(number), slot]
        for _, origin, output, target, place, _ in inside[nodes[number]["type"]][1]:
            if (target, place) == (OUTPUT_NODE, slot):
                return [f"{number}:{origin}", output]
        raise AssertionError("an output of a subgraph that nothing gives")

    found = {}
    for number, item in nodes.items():
        given = {link[4]: source(*link[1:3]) for link in links if link[3] == number}
        if item["type"] not in opened:
            found[str(number)] = item, {item["inputs"][slot]["name"]: value for slot, value in given.items()}
            continue
        own, inner_links = inside[item["type"]]
        for inner, stage in own.items():
            taken = {}
            for _, origin, output, target, slot, _ in inner_links:
                if target == inner and origin != INPUT_NODE:
                    taken[stage["inputs"][slot]["name"]] = [f"{number}:{origin}", output]
                elif target == inner and output in given:
                    taken[stage["inputs"][slot]["name"]] = given[output]
            found[f"{number}:{inner}"] = stage, taken
    return found


def described(host, class_type: str) -> dict[str, list]:
    """Name -> type and options of each input, in order."""
    info = host.nodes[class_type]
    shown = {kind: names for kind, names in info["input_order"].items() if kind != "hidden"}
    return {name: info["input"][kind][name] for kind, names in shown.items() for name in names}


def test_served(host):
    assert sorted(file.stem for file in TEMPLATES.glob("*.json")) == NAMES
    assert [name[:2] for name in NAMES] == [f"{i} " for i in range(1, len(NAMES) + 1)]
    assert set(host.get("workflow_templates")["personalive"]) == set(NAMES)
    for name in NAMES:
        address = f"api/workflow_templates/personalive/{quote(name)}"
        assert host.get(f"{address}.json") == read(TEMPLATES, name)
        assert host.get_bytes(f"{address}.jpg") == (TEMPLATES / f"{name}.jpg").read_bytes()
        assert Image.open(TEMPLATES / f"{name}.jpg").size == (512, 512)


def blueprint() -> tuple[str, dict]:
    (file,) = SUBGRAPHS.glob("*.json")
    return file.stem, read(SUBGRAPHS, file.stem)


def test_the_blueprint_is_served(host):
    name, content = blueprint()
    try:
        found = host.get("global_subgraphs")
    except HTTPError as error:
        assert error.code == 404
        pytest.skip("this host has no blueprints")
    (key,) = (key for key, entry in found.items() if entry["name"] == name)
    assert json.loads(host.get(f"global_subgraphs/{key}")["data"]) == content


def test_the_blueprint_is_the_node_of_the_first_templates():
    _, content = blueprint()
    (instance,), (definition,) = content["nodes"], content["definitions"]["subgraphs"]
    assert instance["type"] == definition["id"]
    assert [item["name"] for item in instance["inputs"]] == ["portrait", "driving", "weights", "size", "count"]
    for name in READABLE:
        (used,) = read(TEMPLATES, name)["definitions"]["subgraphs"]
        assert {item["type"] for item in used["nodes"]} == {item["type"] for item in definition["nodes"]}
        assert [item["name"] for item in used["inputs"]] == [item["name"] for item in definition["inputs"]]


def box(item: dict, taller: float = 0) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, with the title."""
    (x, y), (width, height) = item["pos"], item["size"]
    return x, y - TITLE, x + width, y + height + taller


def pages(template: dict) -> list[tuple[list[dict], list[list], list[dict]]]:
    """The nodes that stand together, notes too, their links but those to the output of a subgraph, and its inputs."""
    standing = [(template["nodes"], []), *((g["nodes"], g["inputs"]) for g in template["definitions"]["subgraphs"])]
    links = [[link for link in links if link[3] > 0] for _, links in graphs(template)]
    return [(nodes, found, inputs) for (nodes, inputs), found in zip(standing, links, strict=True)]


@every_template
def test_opens_at_a_readable_size(name):
    boxes = [box(item) for item in read(TEMPLATES, name)["nodes"]]
    for axis, side in enumerate(WINDOW):
        length = max(b[axis + 2] for b in boxes) - min(b[axis] for b in boxes) + 2 * PADDING
        assert FILLED * side / length >= READABLE.get(name, LEAST)


@every_template
def test_no_node_stands_on_another(name):
    for nodes, _, _ in pages(read(TEMPLATES, name)):
        for one, other in permutations(nodes, 2):
            left, top, right, bottom = box(one, TALLER + WIDGET * len(one.get("widgets_values", [])))
            x, y, end, _ = box(other)
            assert right <= x or end <= left or not top <= y < bottom, (one["type"], other["type"])


def end_of(item: dict, slot: int, is_output: bool) -> tuple[float, float]:
    """Where the classic canvas draws a slot. Inputs of widgets stand below the others."""
    row = 20
    x, y = item["pos"]
    if is_output:
        return x + item["size"][0], y + 14 + row * slot
    sockets = [i for i, found in enumerate(item["inputs"]) if "widget" not in found]
    if slot in sockets:
        return x, y + 14 + row * sockets.index(slot)
    return x, y + 20 + row * max(len(sockets), len(item["outputs"]))


@every_template
def test_no_wire_runs_backwards_or_behind_a_node(name):
    for nodes, links, inputs in pages(read(TEMPLATES, name)):
        numbered = {item["id"]: item for item in nodes}
        for _, source, output, target, slot, _ in links:
            start = inputs[output]["pos"] if source == INPUT_NODE else end_of(numbered[source], output, True)
            ends = start, end_of(numbered[target], slot, False)
            assert ends[0][0] < ends[1][0]
            others = [box(item) for number, item in numbered.items() if number not in (source, target)]
            hidden = [
                point for point in curve(*ends) for b in others if b[0] < point[0] < b[2] and b[1] < point[1] < b[3]
            ]
            assert not hidden, (source, numbered[target]["type"])


def curve(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """Points of the spline that the page draws as a link."""
    (x, y), (right, bottom) = start, end
    pull = math.dist(start, end) / 4
    parts = [i / 60 for i in range(1, 60)]
    weights = [((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3) for t in parts]
    return [
        (a * x + b * (x + pull) + c * (right - pull) + d * right, (a + b) * y + (c + d) * bottom)
        for a, b, c, d in weights
    ]


@every_template
def test_links(host, name):
    template = read(TEMPLATES, name)
    for nodes, links in graphs(template):
        used = set()
        for number, source, output, target, slot, kind in links:
            used.add(number)
            if source in nodes:
                assert number in nodes[source]["outputs"][output]["links"]
            if target in nodes:
                assert nodes[target]["inputs"][slot]["link"] == number
            if {source, target} <= nodes.keys() and nodes[source]["type"] in host.nodes:
                assert kind == host.nodes[nodes[source]["type"]]["output"][output]
                if nodes[target]["type"] in host.nodes:
                    accepted, *_ = described(host, nodes[target]["type"])[nodes[target]["inputs"][slot]["name"]]
                    assert kind in accepted.split(",")
        ends = [slot["link"] for item in nodes.values() for slot in item["inputs"] if slot.get("link") is not None]
        assert set(ends) <= used and len(ends) == len(set(ends))


@every_template
def test_same_as_prompt(host, name):
    found, prompt = flat(read(TEMPLATES, name)), read(PROMPTS, name)
    assert {number: item["type"] for number, (item, _) in found.items()} == {
        number: item["class_type"] for number, item in prompt.items()
    }
    for number, item in prompt.items():
        stage, links = found[number]
        assert links == {key: value for key, value in item["inputs"].items() if isinstance(value, list)}
        if item["class_type"].startswith("PersonaLive"):
            given = {key: value for key, value in item["inputs"].items() if not isinstance(value, list)}
            assert given == {key: value for key, value in shown_values(host, stage).items() if key not in links}


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
    """They are the drawn example's and the defaults, but for what the template shows."""
    for item, _ in flat(read(TEMPLATES, name)).values():
        if item["type"].startswith("PersonaLive"):
            defaults = {key: options.get("default") for key, (_, options) in described(host, item["type"]).items()}
            changed = {key for key, value in shown_values(host, item).items() if value != defaults[key]}
            assert changed <= EXAMPLE | CHANGED.get(name, set())


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_EVERY_HOST else pytest.param(name, marks=pytest.mark.newest_host)
        for name in NAMES
        if name not in ("1 Try it without downloads", "8 Live")  # see test_example and test_live
    ],
)
def test_runs_as_it_stands(host, name):
    prompt = read(PROMPTS, name)
    for item in prompt.values():
        if item["class_type"] == "PersonaLiveExtractMotion":
            item["inputs"]["count"] = FRAMES
    run = succeed(host, prompt)
    (number,) = (number for number, item in prompt.items() if item["class_type"] in ("SaveVideo", "SaveImage"))
    file = saved(host, run, number)
    if prompt[number]["class_type"] == "SaveImage":
        assert Image.open(file).size == (128, 128)
    else:
        assert read_frames(file).shape == (FRAMES, *SIZES.get(name, (128, 128)), 3)


@every_template
def test_no_template_names_a_file(name):
    assert not [item for item in read(PROMPTS, name).values() if item["class_type"] in ("LoadImage", "LoadVideo")]
