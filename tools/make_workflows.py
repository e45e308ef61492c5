"""Makes the templates in workflows/ and their API prompts in tests/host/workflows/, in the page of a running host.

Needs Chromium with its driver, and a ComfyUI of the oldest supported version with this pack:

    PYTHONPATH=. python tools/make_workflows.py http://127.0.0.1:8188

With `--check` nothing is made: each template is opened in the page and compared with its API prompt. Both leave
screenshots in the folder that `--screenshots` names.
"""

import argparse
import base64
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from face import draw_face
from personalive_core.cli.demo import run_demo
from personalive_core.media.video_reader import VideoReader
from personalive_core.weights.find import EXAMPLE, MINIATURE

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "workflows"
PROMPTS = ROOT / "tests" / "host" / "workflows"
HUB = "https://huggingface.co"
MOTION = "performance.motion.safetensors"
DETECTOR = "yunet"

FILES = f"""
## Which files go where

Press **Download weights** on *Load PersonaLive Model*: it fetches what is missing (12.1 GB). Or put the files into the
folder *models* of ComfyUI yourself:

- **models/personalive**: the six files ending in *.pth* from
[huaichang/PersonaLive]({HUB}/huaichang/PersonaLive/tree/main/pretrained_weights/personalive).
- **models/vae**: *diffusion_pytorch_model.safetensors* from
[stabilityai/sd-vae-ft-mse]({HUB}/stabilityai/sd-vae-ft-mse/tree/main).
- **models/clip_vision**: *pytorch_model.bin* from
[lambdalabs/sd-image-variations-diffusers]({HUB}/lambdalabs/sd-image-variations-diffusers/tree/main/image_encoder).

If you have the last two under other names, use *Load VAE* and *Load CLIP Vision* in place of *Load VAE and Image
Encoder*.

The official weights are for **research use**: read their terms first. Animate only people who agreed to it, and say
that the result is synthetic.
"""

VIDEO_NOTE = """\
# Animate a portrait with a video

1. **Portrait**: a picture of one person, head and shoulders. Its middle is cut out, 512 x 512.
2. **Driving video**: one face, large in the picture. Another person will do.
3. Press **Run**. The result has the length, the speed and the sound of the driving video.

For a first try set *count* in *Extract Motion* to 50: two seconds.
"""

PICTURE_NOTE = """\
# Animate a portrait with one picture

1. **Portrait**: a picture of one person, head and shoulders. Its middle is cut out, 512 x 512.
2. **Expression**: a photo of a face. Another person will do.
3. Press **Run**. One picture comes out: the portrait with that expression, its head turned that way.

To try another expression choose another photo: the portrait is not encoded again.
"""

EXAMPLE_NOTE = """\
# Try it without downloads

Press **Run**. A drawn character takes on what another one does; on a CPU it takes less than a minute.

*miniature* in *Load PersonaLive Model* is small: the same networks with less in them, which come with these nodes. They
know nothing but faces drawn in this way, at 128 x 128, and say nothing about how the official weights do.

**With the official weights** everything is connected in the same way, only that the portrait and the driving video are
yours, at 512 x 512: see the template *Animate a portrait with a video*.
"""

LONG_NOTE = """\
# Long video

As *Animate a portrait with a video*, for minutes and hours.

- **Memory** of the graphics card does not grow with the length. The computer's own keeps about 70 KB of each frame,
and the sound: 8 GB for an hour at 25 frames a second. Leave *images* in *Assemble Video* off, for that would keep
40 times as much.
- **A part first**: *start* skips frames and *count* says how many to use. Here they are 0 and 250: the first ten
seconds at 25 frames a second. Set *count* to **0** for the whole video.
- **In parts**: 0 and 15000, then 15000 and 15000, and so on. Each part begins anew, so the head may jump a little
where they meet.
- **Quality**: *small* makes files of about half the size of *good*. To change it does not sample again as long as
*control after generate* is *fixed*.
- **Speed**: a video of 50 or 60 frames a second takes half the time with *frame_rate* 25 or 30.
"""


DETECTOR_NOTE = """
## The face detector

*yunet* finds the faces. Press **Download yunet** on the node that uses it (0.2 MB). It needs OpenCV: run
`python -m pip install opencv-python-headless` with ComfyUI's own Python, and start ComfyUI again.

Or set *detector* to *none* and say by hand in *Crop Portrait* what to cut out: *x*, *y* and *side* in pixels of the
picture. *Crop Driving* then follows the head by the model's own keypoints.
"""

CROP_NOTE = f"""\
# Crop, animate, paste back

For a picture that shows more than head and shoulders.

1. **Picture**: any size, any shape. The preview shows in yellow what is cut out of it: change *margin* and
*vertical_offset* until head and shoulders are in it.
2. **Driving video**: a person, the face to the camera. *Crop Driving* follows the head; delete it if the video shows
nothing but a head.
3. Press **Run**. The result is the whole picture in its own size, with the square moving in it.

You see the edge of the square? Make *feather* in *Paste Back* larger, or set *match_colours* to true.
{DETECTOR_NOTE}"""

TWO_NOTE = f"""\
# Two people

One picture, two people, each with a driving video of its own.

1. **Picture**: the preview numbers the faces from 0 at the left. *number* in each *Crop Portrait* says which one it is.
2. **Two driving videos**. The result is as long as the shorter one.
3. Press **Run**. The first *Paste Back* makes a video of the picture, the second pastes into that video; a third person
would be one more row.

The sound is that of the second video; if it has none, that of the first. For both, merge them with *AudioMerge* and
connect that to *audio* of the last *Paste Back*.
{DETECTOR_NOTE}"""


REUSE_NOTE = """\
# Reuse motion

One performance, two portraits, and no driving video.

1. Save a motion first: in *Animate a portrait with a video* add the node **Save Motion**, connect it to *motion* of
*Extract Motion*, and press **Run**. The file is in *output/motion*.
2. Come back here, press **R**, and choose it in **Load Motion**.
3. **Portrait** and **Second portrait**: pictures of one person each, head and shoulders.
4. Press **Run**. Two videos come out, moving alike.

*Adjust Motion* hands the motion to the second portrait. Its strengths say how much of it that one takes: *expression*
0.5 is half, 1.5 half as much again. For a third portrait copy the second row.

A saved motion has no sound. Connect *Load Audio* to *audio* of *Assemble Video* if you have it.
"""

LIVE_NOTE = """\
# Live

Your camera moves the portrait.

1. **Portrait**: a picture of one person, head and shoulders. Its middle is cut out, 512 x 512.
2. Press **Run**.
3. Open the tab **PersonaLive Live**, the camera at the left edge. Press **Start**, allow the camera, and look straight
at it for one second.
4. **Stop** in the tab ends the run. The recording is in *output/live*: a video, and the motion, which *Load Motion*
reads.

Other prompts wait while Live runs.

**The same take in better quality**: connect *motion* of *Live* to *Sample*, and set *steps* to 8 or 12.
"""


def node(class_type: str, title: str | None = None, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs} | ({"_meta": {"title": title}} if title else {})


def until_latent(driving: dict, **options) -> dict:
    model, reference = ["model", 0], ["reference", 0]
    return {
        "model": node("PersonaLiveLoadModel", weights="official"),
        "encoders": node("PersonaLiveLoadEncoders", model=model),
        "portrait": node("LoadImage", "Portrait", image="portrait.png"),
        "driving": driving,
        "reference": node(
            "PersonaLiveEncodeReference",
            model=model,
            vae=["encoders", 0],
            clip_vision=["encoders", 1],
            image=["portrait", 0],
        ),
        "motion": node("PersonaLiveExtractMotion", model=model, reference=reference, driving=["driving", 0], **options),
        "sample": node("PersonaLiveSample", model=model, reference=reference, motion=["motion", 0]),
    }


def video(**options) -> dict:
    return until_latent(node("LoadVideo", "Driving video", file="driving.mp4"), **options) | {
        "assemble": node(
            "PersonaLiveAssembleVideo",
            samples=["sample", 0],
            vae=["encoders", 0],
            frame_rate=["motion", 1],
            audio=["motion", 2],
        ),
        "save": node("SaveVideo", video=["assemble", 0], filename_prefix="video/PersonaLive"),
    }


def example() -> dict:
    """`video`, of what comes with the nodes."""
    nodes = video() | {"example": node("PersonaLiveExampleInput")}
    del nodes["portrait"], nodes["driving"], nodes["assemble"]["inputs"]["audio"]
    nodes["model"]["inputs"]["weights"] = MINIATURE.name
    nodes["reference"]["inputs"] |= dict(image=["example", 0], width=128, height=128)
    nodes["motion"]["inputs"]["driving"] = ["example", 1]
    return nodes


def picture() -> dict:
    return until_latent(node("LoadImage", "Expression", image="expression.png")) | {
        "assemble": node("VAEDecode", samples=["sample", 0], vae=["encoders", 0]),
        "save": node("SaveImage", images=["assemble", 0], filename_prefix="PersonaLive"),
    }


def cropped(person: str = "", **crop) -> dict:
    """`video`, of a square that is cut out of the picture; the names of a person's own nodes end in `person`."""
    nodes = video() | {
        "crop": node("PersonaLiveCropPortrait", image=["portrait", 0], detector=DETECTOR, **crop),
        "preview": node("PreviewImage", images=["crop", 2]),
    }
    del nodes["save"]
    nodes["portrait"] = node("LoadImage", "Picture", image="photo.png")
    nodes["reference"]["inputs"]["image"] = ["crop", 0]
    nodes["assemble"]["inputs"]["quality"] = "high"  # it is coded once more
    own = nodes.keys() - {"model", "encoders", "portrait"}
    for item in nodes.values():
        item["inputs"] |= {k: [v[0] + person, v[1]] for k, v in item["inputs"].items() if _links_to(v, own)}
    return {name + person if name in own else name: item for name, item in nodes.items()}


def _links_to(value, names: set[str]) -> bool:
    return isinstance(value, list) and value[0] in names


def pasted(picture: list, person: str = "", **options) -> dict:
    links = dict(picture=picture, crop=["crop" + person, 1], animated=["assemble" + person, 0])
    return {"back" + person: node("PersonaLivePasteBack", **links, **options)}


def crop_and_paste() -> dict:
    follow = {"follow": node("PersonaLiveCropDriving", detector=DETECTOR)}
    nodes = cropped() | follow | pasted(["portrait", 0])
    nodes["motion"]["inputs"]["crop"] = ["follow", 0]
    return nodes | {"save": node("SaveVideo", video=["back", 0], filename_prefix="video/PersonaLive")}


def two_people() -> dict:
    nodes = cropped(face="number", number=0) | cropped("_2", face="number", number=1)
    nodes |= pasted(["portrait", 0], quality="high") | pasted(["back", 0], "_2")
    nodes["driving"]["_meta"] = {"title": "Driving video of number 0"}
    nodes["driving_2"]["_meta"] = {"title": "Driving video of number 1"}
    return nodes | {"save": node("SaveVideo", video=["back_2", 0], filename_prefix="video/PersonaLive")}


def reuse() -> dict:
    """`video` from a saved motion, and once more for a second portrait."""
    first = video()
    del first["driving"], first["assemble"]["inputs"]["audio"]
    first["motion"] = node("PersonaLiveLoadMotion", reference=["reference", 0], file=MOTION)
    own = ("portrait", "reference", "motion", "sample", "assemble", "save")
    second = {}
    for name in own:
        item = first[name]
        inputs = {k: [v[0] + "_2", v[1]] if _links_to(v, {*own}) else v for k, v in item["inputs"].items()}
        second[name + "_2"] = {**item, "inputs": inputs}
    second["portrait_2"] = node("LoadImage", "Second portrait", image="expression.png")
    second["motion_2"] = node("PersonaLiveAdjustMotion", motion=["motion", 0], reference=["reference_2", 0])
    return first | second


def live() -> dict:
    """`video` with a camera in place of the driving video."""
    nodes = {name: item for name, item in video().items() if name in ("model", "encoders", "portrait", "reference")}
    links = dict(model=["model", 0], vae=["encoders", 0], clip_vision=["encoders", 1], reference=["reference", 0])
    return nodes | {"live": node("PersonaLiveLive", **links)}


def portrait(**pose: float) -> Image.Image:
    return Image.fromarray(draw_face(hair="#5a3825", shirt="#3f6f8f", **pose))


def driver(**pose: float) -> Image.Image:
    return Image.fromarray(draw_face(hair="#c9a227", shirt="#7d4f50", **pose))


def both(*poses: dict) -> list[list[Image.Image]]:
    return [[person(**pose) for pose in poses] for person in (driver, portrait)]


def photo(*poses: dict) -> Image.Image:
    """One or two people with room around them."""
    picture, size = Image.new("RGB", (512, 512), "#cfd8dc"), 240
    for i, (person, pose) in enumerate(zip((portrait, driver), poses, strict=False)):
        left = (512 - size * len(poses)) // 2 + size * i
        picture.paste(person(**pose).resize((size, size), Image.Resampling.LANCZOS), (left, 512 - size))
    return picture


def animated() -> list[list[Image.Image]]:
    """Two moments of the example's driver, and what the miniature makes of them."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.mp4")
        run_demo(result)
        return [_moments(video) for video in (EXAMPLE / "driving.mp4", result)]


def _moments(path: Path) -> list[Image.Image]:
    with VideoReader(path) as video:
        pictures = [Image.fromarray(frame.pixels) for frame in video]
    return [pictures[len(pictures) * i // 8] for i in (3, 7)]


LEFT, RIGHT, SURPRISED = dict(yaw=-1.0, mouth=0.2), dict(yaw=1.0, mouth=0.4), dict(yaw=0.3, mouth=1.0)

# Name -> prompt, note, and what gives the rows of faces on the thumbnail.
WORKFLOWS = {
    "Try it without downloads": (example(), EXAMPLE_NOTE, animated),
    "Animate a portrait with a video": (video(), VIDEO_NOTE + FILES, lambda: both(LEFT, SURPRISED)),
    "Animate a portrait with one picture": (
        picture(),
        PICTURE_NOTE + FILES,
        lambda: [[portrait(), driver(**SURPRISED)], [portrait(**SURPRISED)]],
    ),
    "Long video": (
        video(count=250),
        LONG_NOTE + FILES,
        lambda: both({}, LEFT, SURPRISED, RIGHT) + both(SURPRISED, {}, RIGHT, LEFT),
    ),
    "Crop, animate, paste back": (
        crop_and_paste(),
        CROP_NOTE + FILES,
        lambda: [[photo({}), driver(**LEFT)], [photo(LEFT), portrait(**LEFT)]],
    ),
    "Two people": (
        two_people(),
        TWO_NOTE + FILES,
        lambda: [[driver(**LEFT), portrait(**SURPRISED)], [photo(LEFT, SURPRISED)]],
    ),
    "Reuse motion": (
        reuse(),
        REUSE_NOTE + FILES,
        lambda: [[portrait(**LEFT), portrait(**SURPRISED)], [driver(**LEFT), driver(**SURPRISED)]],
    ),
    "Live": (live(), LIVE_NOTE + FILES, lambda: both(SURPRISED, RIGHT)),
}

THUMBNAIL = 512  # pixels on a side
WIDTH = 300  # of a node, at least
PLACES = {  # x, y, and the height at least, which is for the pictures that some nodes show
    "model": (0, 0, 0),
    "encoders": (0, 240, 0),
    "portrait": (400, 0, 360),
    "reference": (740, 0, 0),
    "driving": (400, 500, 360),
    "motion": (740, 500, 500),
    "sample": (1140, 0, 520),
    "assemble": (1540, 0, 460),
    "save": (1540, 580, 420),
}
NOTE_BOX = (-500, -80, 440, 660)
GROUPS = {
    "Load the models": ("model", "encoders"),
    "Reference: who is shown": ("portrait", "reference"),
    "Motion: what happens": ("driving", "motion"),
    "Sample": ("sample",),
    "Assemble": ("assemble", "save"),
}
CROP_PLACES = {
    "portrait": (400, -640, 360),
    "crop": (740, -640, 0),
    "preview": (1140, -640, 420),
    "follow": (400, 920, 0),
    "reference": (400, 0, 0),
    "driving": (400, 460, 360),
    "back": (1940, 0, 520),
    "save": (1940, 640, 420),
}
SECOND = 1700  # how much lower the second person stands
LOWER = 1100  # how much lower the second portrait stands
REUSE_PLACES = {"motion": (740, 460, 0)}
OWN_PLACES = {  # where a template differs
    "Try it without downloads": {"example": (370, 0, 0), "motion": (740, 400, 500)},
    "Reuse motion": REUSE_PLACES
    | {f"{k}_2": (x, y + LOWER, h) for k, (x, y, h) in (PLACES | REUSE_PLACES).items()}
    | {"motion_2": (740, LOWER + 240, 0)},
    "Crop, animate, paste back": CROP_PLACES,
    "Live": {"live": (1140, 0, 520)},
    "Two people": CROP_PLACES
    | {f"{k}_2": (x, y + SECOND, h) for k, (x, y, h) in (PLACES | CROP_PLACES).items()}
    | {"portrait": (0, -640, 360), "crop": (400, -640, 0), "preview": (740, -640, 420)}
    | {"crop_2": (400, SECOND - 640, 0), "preview_2": (740, SECOND - 640, 420), "save": (2340, SECOND, 500)},
}
OWN_GROUPS = {
    "Try it without downloads": {
        "Load the models": ("model", "encoders"),
        "Portrait and driving video": ("example",),
        "Reference: who is shown": ("reference",),
        "Motion: what happens": ("motion",),
        "Sample": ("sample",),
        "Assemble": ("assemble", "save"),
    },
    "Reuse motion": {
        "Load the models": ("model", "encoders"),
        "Portrait": ("portrait", "reference", "motion", "sample", "assemble", "save"),
        "Second portrait": ("portrait_2", "reference_2", "motion_2", "sample_2", "assemble_2", "save_2"),
    },
    "Live": {
        "Load the models": ("model", "encoders"),
        "Reference: who is shown": ("portrait", "reference"),
        "Live": ("live",),
    },
    "Crop, animate, paste back": {
        "Load the models": ("model", "encoders"),
        "Crop": ("portrait", "crop", "preview"),
        "Reference: who is shown": ("reference",),
        "Motion: what happens": ("driving", "follow", "motion"),
        "Sample": ("sample",),
        "Assemble": ("assemble",),
        "Paste back": ("back", "save"),
    },
    "Two people": {
        "Load the models": ("model", "encoders"),
        "Picture": ("portrait",),
        "Number 0": ("crop", "preview", "reference", "driving", "motion", "sample", "assemble", "back"),
        "Number 1": (
            *("crop_2", "preview_2", "reference_2", "driving_2"),
            *("motion_2", "sample_2", "assemble_2", "back_2"),
        ),
        "Result": ("save",),
    },
}
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --lang=en --window-size=2560,1400"""
GROUP_COLOUR = "#3f789e"
MARGIN, TITLE = 30, 80  # of a group around its nodes; titles of group and node above them


def arrange(template: str, workflow: dict, names: dict[str, str], note: str) -> None:
    """Give the nodes their places; add groups and note. `names`: of each node, by its number."""
    boxes, places = {}, PLACES | OWN_PLACES.get(template, {})
    for item in workflow["nodes"]:
        name = names[str(item["id"])]
        x, y, height = places[name]
        item["pos"], item["size"] = [x, y], [max(WIDTH, item["size"][0]), max(height, item["size"][1])]
        boxes[name] = (*item["pos"], *item["size"])
        if name.startswith(("sample", "live")):  # to assemble in another quality must not sample anew
            item["widgets_values"] = ["fixed" if value == "randomize" else value for value in item["widgets_values"]]
    workflow["groups"] = []
    for title, members in OWN_GROUPS.get(template, GROUPS).items():
        x, y = (min(boxes[name][axis] for name in members) for axis in (0, 1))
        right, bottom = (max(boxes[name][axis] + boxes[name][axis + 2] for name in members) for axis in (0, 1))
        bounding = [x - MARGIN, y - TITLE, right - x + 2 * MARGIN, bottom - y + TITLE + MARGIN]
        number = len(workflow["groups"]) + 1
        workflow["groups"].append({"id": number, "title": title, "bounding": bounding, "color": GROUP_COLOUR})
    x, y, width, height = NOTE_BOX
    workflow["last_node_id"] += 1
    workflow["nodes"].append(
        {
            "id": workflow["last_node_id"],
            "type": "MarkdownNote",
            "pos": [x, y],
            "size": [width, height],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": "Read me",
            "properties": {},
            "widgets_values": [note],
        }
    )


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
    named, note, faces = WORKFLOWS[name]
    numbers = {key: str(i) for i, key in enumerate(named, 1)}
    prompt = {numbers[key]: {**item, "inputs": _numbered(item["inputs"], numbers)} for key, item in named.items()}
    page.run("await app.loadApiJson(arguments[0], arguments[1])", prompt, name)
    made = page.run("return await app.graphToPrompt()")
    workflow = made["workflow"]
    arrange(name, workflow, {number: key for key, number in numbers.items()}, note)
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, name))  # the same each time
    workflow["extra"] = {}
    _write(TEMPLATES / f"{name}.json", workflow)
    for item in made["output"].values():
        item["inputs"].pop("video-preview", None)  # the player of Load Video, once it is drawn
    _write(PROMPTS / f"{name}.json", made["output"])
    thumbnail(faces()).save(TEMPLATES / f"{name}.jpg", quality=88, optimize=True)


def _numbered(inputs: dict, numbers: dict[str, str]) -> dict:
    return {key: [numbers[v[0]], v[1]] if isinstance(v, list) else v for key, v in inputs.items()}


def _write(file: Path, content: dict) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def thumbnail(rows: list[list[Image.Image]]) -> Image.Image:
    size = THUMBNAIL // len(rows)
    sheet = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "#cfd8dc")  # as behind the faces
    for i, row in enumerate(rows):
        for j, face in enumerate(row):
            sheet.paste(face.resize((size, size)), ((THUMBNAIL - size * len(row)) // 2 + size * j, size * i))
    return sheet


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
