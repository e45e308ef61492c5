"""Makes the templates in workflows/, their API prompts in tests/host/workflows/ and the blueprint in subgraphs/, in the
page of a running host. `make_pictures.py` makes the thumbnails.

Needs Chromium with its driver, and a ComfyUI of the oldest supported version with this pack:

    PYTHONPATH=. python tools/make_workflows.py http://127.0.0.1:8188

With `--check` nothing is made: each template is opened in the page and compared with its API prompt. Both leave
screenshots in the folder that `--screenshots` names.
"""

import argparse
import base64
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

from personalive_core.weights.find import MINIATURE

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "workflows"
PROMPTS = ROOT / "tests" / "host" / "workflows"
SUBGRAPHS = ROOT / "subgraphs"

BLUEPRINT = "PersonaLive (portrait + video to video)"
DESCRIPTION = "Animates a portrait by a driving video. Open it to see the stages."
ALIASES = "live portrait, liveportrait, face animate, driving video, talking head, avatar, reenact, expression"

LOADERS = "*Load Image* and *Load Video*"
OFFICIAL = f"""\
**Your own portrait and video**: use {LOADERS} in place of *Example Input*, choose *official* for *weights*, and set
*width* and *height* to 512. *Download weights* on *Load PersonaLive Model* fetches them: 12.1 GB, for **research use**.
"""

TRY_NOTE = """\
# Try it without downloads

Press **Run**. A drawn character does what another one does. On a CPU this takes less than a minute.

The *miniature* weights come with the nodes and know only drawn faces, at 128 x 128. **PersonaLive** opens into its
stages: click *Enter subgraph*, or the icon at its top right.
"""

VIDEO_NOTE = """\
# Animate a portrait with a video

Press **Run** to see the drawn example. The result has the length, the speed and the sound of the driving video.

1. **Your own files**: connect *Load Image* and *Load Video* in place of *Example Input*.
2. **Official weights**, for **research use**: set *weights* to *official* and *size* to 512, and press
**Download weights** (12.1 GB).
3. For a first try set *count* to 50 frames. Animate only people who agreed to it.
"""

PICTURE_NOTE = f"""\
# Animate a portrait with one picture

Press **Run**. One picture comes out: the portrait with the expression of one frame, its head turned that way.

{OFFICIAL.replace("portrait and video", "pictures").replace(LOADERS, "*Load Image* twice")}"""

LONG_NOTE = f"""\
# Long video, or a part of one

*start* and *count* in *Extract Motion* choose the part; *count* 0 is everything. GPU memory does not grow with the
length. The computer keeps about 70 KB of each frame: 8 GB for an hour. Leave *images* in *Assemble Video* off.

{OFFICIAL}"""

CROP_NOTE = """\
# Crop, animate, paste back

For a picture of more than head and shoulders. *x*, *y* and *side* say what to cut out: the preview shows it in yellow.
*Paste Back* puts the moving square back. If you see its edge, raise *feather* or switch *match_colours* on.

**Your own files**: *Load Image* in place of *Pad Image*, *Load Video* in place of *Example Input*, *official* weights,
*size* 512. To find the face, set *side* to 0 and *detector* to *yunet*, and press **Download yunet**.
"""

TWO_NOTE = """\
# Two people

Each *Crop Portrait* cuts out one person, and each **PersonaLive** takes a driving video of its own. The second *Paste
Back* pastes into the video of the first.

**Your own files**: *Load Image* in place of *Stitch Images*, a *Load Video* for each person, *official* weights, *size*
512. To find the faces, set *side* to 0, *detector* to *yunet*, *face* to *number* and *number* to 0 and 1, and press
**Download yunet**.
"""

REUSE_NOTE = f"""\
# Adjust and save motion

*Adjust Motion* says how much of the motion the portrait takes. *Save Motion* writes it to *output/motion*: next time
use *Load Motion* in place of *Extract Motion*, for any portrait and without the video.

{OFFICIAL}"""

LIVE_NOTE = f"""\
# Live

Press **Run**, open the tab **Live** (the camera at the left edge), press **Start** there and look straight
at the camera for a second. **Stop** ends the run. The recording is in *output/live*.

{OFFICIAL.replace("portrait and video", "portrait").replace(LOADERS, "*Load Image*")}"""


def node(class_type: str, title: str | None = None, **inputs) -> dict:
    """Links are [name, output], or ["", name] inside a subgraph for an input of it. Our nodes have short titles here:
    with the pack's name in each they are too wide."""
    if title is None and class_type.startswith("PersonaLive") and class_type != "PersonaLiveLoadModel":
        title = " ".join(re.findall("[A-Z][a-z]+", class_type.removeprefix("PersonaLive")))
    return {"class_type": class_type, "inputs": inputs} | ({"_meta": {"title": title}} if title else {})


def until_latent(driving: list, **options) -> dict:
    """The stages with the miniature, from `example` to the latents."""
    model, reference = ["model", 0], ["reference", 0]
    return {
        "model": node("PersonaLiveLoadModel", weights=MINIATURE.name),
        "encoders": node("PersonaLiveLoadEncoders", model=model),
        "example": node("PersonaLiveExampleInput"),
        "reference": node(
            "PersonaLiveEncodeReference",
            model=model,
            vae=["encoders", 0],
            clip_vision=["encoders", 1],
            image=["example", 0],
            width=128,
            height=128,
        ),
        "motion": node("PersonaLiveExtractMotion", model=model, reference=reference, driving=driving, **options),
        "sample": node("PersonaLiveSample", model=model, reference=reference, motion=["motion", 0]),
    }


def assemble() -> dict:
    links = dict(samples=["sample", 0], vae=["encoders", 0], frame_rate=["motion", 1], audio=["motion", 2])
    return {"assemble": node("PersonaLiveAssembleVideo", **links)}


def save(video: str) -> dict:
    return {"save": node("SaveVideo", video=[video, 0], filename_prefix="video/PersonaLive")}


def stages(*more: str, **options) -> dict:
    """What is inside the subgraph; `more`: further inputs of Extract Motion."""
    inner = until_latent(["", "driving"], count=["", "count"], **{key: ["", key] for key in more}) | assemble()
    del inner["example"]
    inner["model"]["inputs"]["weights"] = ["", "weights"]
    inner["reference"]["inputs"] |= dict(image=["", "portrait"], width=["", "size"], height=["", "size"])
    inner["assemble"]["inputs"] |= options
    return inner


INPUTS = "portrait", "driving", "crop", "weights", "size", "count"  # of the subgraph, in order
VALUES = dict(weights=MINIATURE.name, size=128, count=0)  # of the subgraph's widgets


def animate(portrait: list, driving: list, **more: list) -> dict:
    """The subgraph's node."""
    return {"class_type": BLUEPRINT, "inputs": dict(portrait=portrait, driving=driving, **more) | VALUES}


def whole() -> dict:
    return {
        "example": node("PersonaLiveExampleInput"),
        "animate": animate(["example", 0], ["example", 1]),
        **save("animate"),
    }


def picture() -> dict:
    return until_latent(["frame", 0]) | {
        "parts": node("GetVideoComponents", video=["example", 1]),
        "frame": node("ImageFromBatch", "Expression", image=["parts", 0], batch_index=12, length=1),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["encoders", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="PersonaLive"),
    }


def crop_and_paste() -> dict:
    return {
        "example": node("PersonaLiveExampleInput"),
        "picture": node("ImagePadForOutpaint", image=["example", 0], left=96, top=64, right=96, bottom=0, feathering=0),
        "crop": node("PersonaLiveCropPortrait", image=["picture", 0], size=128, detector="none", x=96, y=64, side=128),
        "preview": node("PreviewImage", images=["crop", 2]),
        "follow": node("PersonaLiveCropDriving", detector="none"),
        "animate": animate(["crop", 0], ["example", 1], crop=["follow", 0]),
        "back": node("PersonaLivePasteBack", picture=["picture", 0], crop=["crop", 1], animated=["animate", 0]),
        **save("back"),
    }


def two_people() -> dict:
    nodes = {
        "example": node("PersonaLiveExampleInput"),
        "picture": node("ImageStitch", "Stitch Images", image1=["example", 0], image2=["example", 0], spacing_width=32),
    }
    for number, person, x, under, quality in ((1, "", 0, "picture", "high"), (2, "_2", 160, "back", "good")):
        hand = dict(detector="none", x=x, y=0, side=128)
        nodes |= {
            "crop" + person: node("PersonaLiveCropPortrait", image=["picture", 0], size=128, **hand),
            "driving" + person: node("PersonaLiveExampleInput", f"Driving video {number}"),
            "animate" + person: animate(["crop" + person, 0], ["driving" + person, 1]),
            "back" + person: node(
                "PersonaLivePasteBack",
                picture=[under, 0],
                crop=["crop" + person, 1],
                animated=["animate" + person, 0],
                quality=quality,
            ),
        }
    return nodes | save("back_2")


def reuse() -> dict:
    nodes = until_latent(["example", 1]) | assemble() | save("assemble")
    nodes["keep"] = node("PersonaLiveSaveMotion", motion=["motion", 0], filename_prefix="motion/PersonaLive")
    nodes["adjust"] = node("PersonaLiveAdjustMotion", motion=["motion", 0], expression=1.2)
    nodes["sample"]["inputs"]["motion"] = ["adjust", 0]
    return nodes


def live() -> dict:
    nodes = {key: item for key, item in until_latent([]).items() if key not in ("motion", "sample")}
    links = dict(model=["model", 0], vae=["encoders", 0], clip_vision=["encoders", 1], reference=["reference", 0])
    return nodes | {"live": node("PersonaLiveLive", **links)}


COLUMN, WIDTH = 272, 244  # from one column to the next; of a node
LINK = "id", "origin_id", "origin_slot", "target_id", "target_slot", "type"  # in a subgraph
INPUT_NODE, OUTPUT_NODE = -10, -20  # the two ends of a subgraph, as the page numbers them
TITLE = "PersonaLive"  # of the subgraph's node in a template
INSIDE = {
    "model": (0, 80),
    "encoders": (1, 0),
    "reference": (2, 350),
    "motion": (3, 70),
    "sample": (4, 400),
    "assemble": (5, -20),
}
INSIDE_INPUTS = 310  # y of the subgraph's inputs


def tight(places: dict[str, tuple[float, int]]) -> dict[str, tuple[float, int, int]]:
    """Eight columns where there is room for seven."""
    return {key: (column * 240 / COLUMN, y, 214) for key, (column, y) in places.items()}


WIDE = {"example": (0, 0), "animate": (1.35, 0), "save": (2.7, 0)}

# Name -> nodes, stages of the subgraph, column and y of each node, note with its y, width and height.
WORKFLOWS = {
    "1 Try it without downloads": (whole(), stages(), WIDE, (TRY_NOTE, -190, 978, 110)),
    "2 Animate a portrait with a video": (whole(), stages(), WIDE, (VIDEO_NOTE, -230, 978, 150)),
    "3 Animate a portrait with one picture": (
        picture(),
        {},
        {
            "model": (0, 325),
            "example": (0, 160),
            "encoders": (1, 0),
            "parts": (1, 400),
            "reference": (2, 90),
            "frame": (2, 420),
            "motion": (3, 350),
            "sample": (4, 275),
            "decode": (5, 50),
            "save": (6, 50),
        },
        (PICTURE_NOTE, -190, 1000, 115),
    ),
    "4 Long video": (
        until_latent(["example", 1], start=8, count=24) | assemble() | save("assemble"),
        {},
        {
            "model": (0, 300),
            "example": (1, 150),
            "encoders": (1, 0),
            "reference": (2, 420),
            "motion": (3, 120),
            "sample": (4, 400),
            "assemble": (5, 80),
            "save": (6, 80),
        },
        (LONG_NOTE, -200, 1000, 125),
    ),
    "5 Crop, animate, paste back": (
        crop_and_paste(),
        stages("crop", quality="high"),
        {
            "example": (0, 20),
            "picture": (1, 340),
            "crop": (2, 400),
            "preview": (3.15, 480),
            "follow": (2, 110),
            "animate": (3.15, 0),
            "back": (4.15, 340),
            "save": (5.15, 340),
        },
        (CROP_NOTE, -200, 788, 130),
    ),
    "6 Two people": (
        two_people(),
        stages(quality="high"),
        {
            "example": (0, 579),
            "picture": (1, 579),
            "driving": (2.12, 0),
            "crop": (2.12, 165),
            "crop_2": (2.12, 645),
            "driving_2": (2.12, 1092),
            "animate": (3.12, 0),
            "animate_2": (3.12, 967),
            "back": (4.12, 579),
            "back_2": (5.12, 937),
            "save": (6.12, 780),
        },
        (TWO_NOTE, 0, 500, 150),
    ),
    "7 Adjust and save motion": (
        reuse(),
        {},
        tight(
            {
                "model": (0, 290),
                "example": (0, 140),
                "encoders": (1.03, 0),
                "reference": (2, 80),
                "motion": (3, 340),
                "keep": (4, 112),
                "adjust": (4, 430),
                "sample": (5, 280),
                "assemble": (6, 50),
                "save": (7, 50),
            }
        ),
        (REUSE_NOTE, -190, 1000, 115),
    ),
    "8 Live": (
        live(),
        {},
        {"model": (0, 230), "example": (0, 80), "encoders": (1, 0), "reference": (2, 170), "live": (3, 0)},
        (LIVE_NOTE, -200, 788, 125),
    ),
}

RANDOM = "PersonaLiveSample", "PersonaLiveLive"  # to assemble in another quality must not sample anew
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --lang=en --window-size=2560,1400"""


class Page:
    """A host's page in headless Chromium, through chromedriver (W3C WebDriver)."""

    def __init__(self, address: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        self.session = f"http://127.0.0.1:{port}/session"
        try:
            self._wait(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/status"))
            arguments = [*FLAGS.split(), f"--user-data-dir={self.folder.name}"]
            options = {"goog:chromeOptions": {"args": arguments}}
            answer = self._send("", {"capabilities": {"alwaysMatch": options}})
            self.session += "/" + answer["sessionId"]
            self._send("/timeouts", {"script": 60_000})
            self._send("/url", {"url": address})
            self._wait(lambda: self.run("return LiteGraph.registered_node_types.PersonaLiveSample.title"))
        except BaseException:
            self.close()
            raise
        time.sleep(5)  # for what the page opens by itself
        self.close_dialogs()

    def _wait(self, ready) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                return ready()
            except (OSError, RuntimeError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _send(self, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.session + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def run(self, script: str, *arguments):
        """What an asynchronous function with this body gives; RuntimeError with what it throws."""
        script = f"""
            const done = arguments[arguments.length - 1];
            const run = async (...arguments) => {{ {script} }};
            run(...arguments).then(value => done([JSON.stringify(value)]), error => done([null, String(error)]))"""
        answer = self._send("/execute/async", {"script": script, "args": arguments})
        if len(answer) > 1:
            raise RuntimeError(answer[1])
        return json.loads(answer[0] or "null")

    def close_dialogs(self) -> None:
        escape = [{"type": kind, "value": "\ue00c"} for kind in ("keyDown", "keyUp")]
        self._send("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": escape}]})
        time.sleep(1)

    def screenshot(self) -> bytes:
        """PNG of the window."""
        return base64.b64decode(self._send("/screenshot"))

    def open(self, workflow: dict) -> dict:
        """Show a template as a whole; returns the API prompt that the page makes of it."""
        self.run("await app.loadGraphData(arguments[0], true, true)", workflow)
        time.sleep(2)
        return self.run("return (await app.graphToPrompt()).output")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it may have never begun
            urllib.request.urlopen(urllib.request.Request(self.session, method="DELETE"))
        self.driver.terminate()
        self.driver.wait()
        self.folder.cleanup()


def make(page: Page, name: str) -> None:
    graph, inner, places, note = WORKFLOWS[name]
    numbers = {key: i for i, key in enumerate([*graph, *(f"inside {key}" for key in inner)], 1)}
    outside = {key: item for key, item in graph.items() if item["class_type"] != BLUEPRINT}
    made = _serialized(page, {str(numbers[key]): item for key, item in outside.items()})
    subgraphs = [subgraph(page, name, inner, numbers)] if inner else []
    for key, item in graph.items():
        if item["class_type"] == BLUEPRINT:
            made[numbers[key]] = _instance(numbers[key], subgraphs[0], TITLE)
    links = _link(graph, made, numbers)
    for key in graph:
        _place(made[numbers[key]], *places[key])
    last = len(numbers) + 1
    made[last] = _note(last, *note)
    workflow = {
        "id": _uuid(name),
        "revision": 0,
        "last_node_id": last,
        "last_link_id": len(links),
        "nodes": list(made.values()),
        "links": links,
        "groups": [],
        "definitions": {"subgraphs": subgraphs},
        "config": {},
        "extra": {},
        "version": 0.4,
    }
    _write(TEMPLATES / f"{name}.json", workflow)
    prompt = page.open(workflow)
    for item in prompt.values():
        item["inputs"].pop("video-preview", None)  # the player of Load Video, once it is drawn
    _write(PROMPTS / f"{name}.json", prompt)


def make_blueprint(page: Page) -> None:
    inner = stages()
    numbers = {f"inside {key}": i for i, key in enumerate(inner, 2)}
    definition = subgraph(page, BLUEPRINT, inner, numbers)
    blueprint = {
        "id": _uuid(BLUEPRINT),
        "revision": 0,
        "last_node_id": 1 + len(inner),
        "last_link_id": 0,
        "nodes": [_instance(1, definition, BLUEPRINT, 350)],
        "links": [],
        "definitions": {"subgraphs": [definition]},
        "extra": {"BlueprintDescription": DESCRIPTION, "BlueprintSearchAliases": ALIASES.split(", ")},
        "version": 0.4,
    }
    _write(SUBGRAPHS / f"{BLUEPRINT}.json", blueprint)


def subgraph(page: Page, name: str, inner: dict, numbers: dict[str, int]) -> dict:
    """The definition of the subgraph with these stages. Its inputs are those that the stages name; it gives the
    video."""
    inside = {key: numbers[f"inside {key}"] for key in inner}
    ends: dict[str, list] = {}  # of each input: stages and their inputs
    prompt = {}
    for key, item in inner.items():
        outside = {k: v[1] for k, v in item["inputs"].items() if isinstance(v, list) and not v[0]}
        for k, outer in outside.items():
            ends.setdefault(outer, []).append((key, k))
        values = {k: VALUES[outer] for k, outer in outside.items() if outer in VALUES}
        prompt[str(inside[key])] = {**item, "inputs": item["inputs"] | values}
    made = _serialized(page, prompt)
    links = [dict(zip(LINK, link, strict=True)) for link in _link(inner, made, inside)]

    def connect(*link) -> int:
        links.append(dict(zip(LINK, (len(links) + 1, *link), strict=True)))
        return len(links)

    inputs = []
    for outer in sorted(ends, key=INPUTS.index):
        numbers_of_links, kind = [], ""
        for key, k in ends[outer]:
            target = made[inside[key]]
            slot = _slot(target, k, "COMBO" if outer == "weights" else "INT")
            kind = target["inputs"][slot]["type"]
            target["inputs"][slot]["link"] = connect(INPUT_NODE, len(inputs), target["id"], slot, kind)
            numbers_of_links.append(len(links))
        place = [-80, INSIDE_INPUTS + 20 + 20 * len(inputs)]
        inputs.append({"id": _uuid(outer), "name": outer, "type": kind, "linkIds": numbers_of_links, "pos": place})
    last, right = made[inside["assemble"]], 6 * COLUMN
    last["outputs"][0]["links"] = [connect(last["id"], 0, OUTPUT_NODE, 0, "VIDEO")]
    video = {"id": _uuid("video"), "name": "video", "type": "VIDEO", "linkIds": [len(links)], "pos": [right + 20, 20]}
    for key, number in inside.items():
        _place(made[number], *INSIDE[key])
    return {
        "id": _uuid(f"stages of {name}"),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(numbers.values()), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": BLUEPRINT,
        "inputNode": {"id": INPUT_NODE, "bounding": [-220, INSIDE_INPUTS, 140, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUT_NODE, "bounding": [right, 0, 120, 60]},
        "inputs": inputs,
        "outputs": [video],
        "widgets": [],
        "nodes": list(made.values()),
        "groups": [],
        "links": links,
        "extra": {},
    }


def _uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))  # the same each time


def _serialized(page: Page, prompt: dict) -> dict[int, dict]:
    """The nodes of a prompt, by number, as the page writes them, without links."""
    values = {
        number: {**item, "inputs": {k: v for k, v in item["inputs"].items() if not isinstance(v, list)}}
        for number, item in prompt.items()
    }
    page.run("await app.loadApiJson(arguments[0], 'nodes')", values)
    nodes = page.run("return (await app.graphToPrompt()).workflow.nodes")
    for item in nodes:
        for slot in item.get("inputs", []):
            slot["link"] = None
        if item["type"] in RANDOM:
            item["widgets_values"] = ["fixed" if value == "randomize" else value for value in item["widgets_values"]]
    return {item["id"]: item for item in sorted(nodes, key=lambda item: item["id"])}


def _link(graph: dict, made: dict[int, dict], numbers: dict[str, int]) -> list[list]:
    """Connects the nodes; returns the links as a workflow has them."""
    links = []
    for key, item in graph.items():
        target = made[numbers[key]]
        for name, value in item["inputs"].items():
            if not isinstance(value, list) or not value[0]:
                continue
            source, output = made[numbers[value[0]]], value[1]
            kind = source["outputs"][output]["type"]
            place = _slot(target, name, kind)
            links.append([len(links) + 1, source["id"], output, target["id"], place, kind])
            target["inputs"][place]["link"] = len(links)
            source["outputs"][output]["links"] = [*(source["outputs"][output].get("links") or []), len(links)]
    return links


def _slot(item: dict, name: str, kind: str) -> int:
    """The number of an input; that of a widget is made when something is connected to it."""
    names = [slot["name"] for slot in item["inputs"]]
    if name not in names:
        item["inputs"].append({"name": name, "type": kind, "widget": {"name": name}, "link": None})
    return [*names, name].index(name)


def _instance(number: int, definition: dict, title: str, width: int = WIDTH) -> dict:
    inputs = [
        {"name": item["name"], "type": item["type"], "link": None}
        | ({"widget": {"name": item["name"]}} if item["name"] in VALUES else {})
        for item in definition["inputs"]
    ]
    return {
        "id": number,
        "type": definition["id"],
        "pos": [0, 0],
        "size": [width, 150],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": [{"name": "video", "type": "VIDEO", "links": []}],
        "title": title,
        "properties": {},
        "widgets_values": [],
    }


def _place(item: dict, column: float, y: float, width: float = WIDTH) -> None:
    item["pos"], item["size"] = [column * COLUMN, y], [width, item["size"][1]]


def _note(number: int, text: str, y: int, width: int, height: int) -> dict:
    text = re.sub(r"(?<=\S)\n(?!\n|\d\. |$)", " ", text)  # some pages swallow a single line break
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [0, y],
        "size": [width, height],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {},
        "widgets_values": [text],
    }


def _write(file: Path, content: dict) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check(page: Page, name: str) -> None:
    """Exits if the page makes another prompt of the template than the recorded one."""
    workflow, prompt = (json.loads((folder / f"{name}.json").read_text("utf-8")) for folder in (TEMPLATES, PROMPTS))
    found = page.open(workflow)
    for number, item in found.items():  # newer pages add inputs to the host's own nodes
        recorded = prompt.get(number, {"inputs": {}})["inputs"]
        item["inputs"] = {key: value for key, value in item["inputs"].items() if key in recorded}
    if found != prompt:
        sys.exit(f"{name}: the page makes\n{json.dumps(found)}\nin place of\n{json.dumps(prompt)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the host")
    parser.add_argument("--check", action="store_true", help="make nothing")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the page")
    options = parser.parse_args()
    page = Page(options.address)
    try:
        if not options.check:
            make_blueprint(page)
        for name in WORKFLOWS:
            if not options.check:
                make(page, name)
            check(page, name)
            if options.screenshots:
                options.screenshots.mkdir(parents=True, exist_ok=True)
                (options.screenshots / f"{name}.png").write_bytes(page.screenshot())
    finally:
        page.close()


if __name__ == "__main__":
    main()
