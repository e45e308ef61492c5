"""Makes the pictures of README and help pages: what the demo makes, and screenshots in the page of a host that it
starts.

Needs Chromium with its driver, and the folder of a ComfyUI with its `.venv`; no GPU:

    PYTHONPATH=. python tools/make_pictures.py ~/ComfyUI

All faces are drawn by programs. Nothing is run in the page, so only the demo's sheet shows a result: the miniature's.
Use the newest ComfyUI that is supported.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from make_workflows import (
    MOTION,
    ROOT,
    SURPRISED,
    TEMPLATES,
    WORKFLOWS,
    Page,
    driver,
    node,
    photo,
    portrait,
)
from personalive_core.cli.demo import run_demo
from personalive_core.media.video_writer import VideoWriter

sys.path.append(str(ROOT / "tests" / "host"))

from server import Server

PICTURES = ROOT / "docs" / "pictures"
HELP = ROOT / "nodes" / "web" / "docs"
FRAMES, RATE = 48, Fraction(24)
FACE = 512  # pixels on a side

WORKFLOW_ZOOM, NODE_ZOOM = 0.8, 1.0
LARGEST = 2300, 1120  # width and height of a picture that the window has room for
NODE_MARGINS = 170, 80, 60  # at the sides, above and below, for its links and a bit of its neighbours
NODES = {  # of which template
    "Animate a portrait with a video": (
        "PersonaLiveLoadModel",
        "PersonaLiveLoadEncoders",
        "PersonaLiveEncodeReference",
        "PersonaLiveExtractMotion",
        "PersonaLiveSample",
        "PersonaLiveAssembleVideo",
    ),
    "Crop, animate, paste back": ("PersonaLiveCropPortrait", "PersonaLiveCropDriving", "PersonaLivePasteBack"),
    "Reuse motion": ("PersonaLiveLoadMotion", "PersonaLiveAdjustMotion"),
    "Try it without downloads": ("PersonaLiveExampleInput",),
    "Live": ("PersonaLiveLive",),
}

# These are in no template.
SHOWN = {"1": node("PersonaLiveExtractMotion"), "3": node("PreviewImage", images=["2", 0])}
ALONE = {
    "PersonaLivePreviewMotion": SHOWN | {"2": node("PersonaLivePreviewMotion", motion=["1", 0])},
    "PersonaLiveContactSheet": SHOWN | {"2": node("PersonaLiveContactSheet", motion=["1", 0])},
    "PersonaLiveSaveMotion": {
        "1": node("PersonaLiveExtractMotion"),
        "2": node("PersonaLiveSaveMotion", motion=["1", 0]),
    },
}
IN_A_ROW = """
    await app.loadApiJson(arguments[0], "preview");
    for (const [i, node] of app.graph.computeExecutionOrder().entries()) {
        node.pos = [400 * i, 0];
        node.setSize([300, node.size[1]]);
    }"""
NODE_BOX = """
    const [node] = app.graph.findNodesByType(arguments[0]);
    return [...node.pos, ...node.size]"""
GROUPS_BOX = """
    const boxes = app.graph.groups.map(group => [...group.pos, ...group.size]);
    const [x, y] = [0, 1].map(axis => Math.min(...boxes.map(box => box[axis])));
    const [right, bottom] = [0, 1].map(axis => Math.max(...boxes.map(box => box[axis] + box[axis + 2])));
    return [x, y, right - x, bottom - y]"""
LOOK_AT = """
    const [x, y, zoom, left, top] = arguments;
    app.canvas.ds.scale = zoom;
    app.canvas.ds.offset = [left / zoom - x, top / zoom - y];
    app.canvas.setDirty(true, true);"""


def write_base(base: Path) -> None:
    """The folders of a host with everything that the templates name."""
    for name in ("custom_nodes", "input", "output"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "personalive").symlink_to(ROOT)
    (base / "input" / MOTION).touch()  # its name alone counts
    _large(portrait()).save(base / "input" / "portrait.png")
    _large(driver(**SURPRISED)).save(base / "input" / "expression.png")
    photo({}, {}).save(base / "input" / "photo.png")
    with VideoWriter(base / "input" / "driving.mp4", FACE, FACE, RATE) as video:
        for i in range(FRAMES):
            phase = 2 * np.pi * i / FRAMES
            face = driver(yaw=np.sin(phase), mouth=(1 - np.cos(2 * phase)) / 2)
            video.write(np.asarray(_large(face)), i / RATE)


def _large(face: Image.Image) -> Image.Image:
    return face.resize((FACE, FACE), Image.Resampling.LANCZOS)


def screenshot(page: Page, box: list[float], zoom: float) -> Image.Image:
    """The part x, y, width, height of the graph."""
    left, top = 120, 120  # pixels of the window, clear of the page's own bars
    page.run(LOOK_AT, *box[:2], zoom, left, top)
    time.sleep(2)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        x, y = page.run("const {x, y} = app.canvas.canvas.getBoundingClientRect(); return [x, y]")
        width, height = (round(side * zoom) for side in box[2:])
        return image.convert("RGB").crop((x + left, y + top, x + left + width, y + top + height))


def save_demo() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder, "demo.mp4"))
        with Image.open(Path(folder, "demo.png")) as sheet:
            save(sheet, PICTURES / "miniature.webp")


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=80, method=6)
    print(path.relative_to(ROOT), image.size, path.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, help="folder of a ComfyUI, 0.3.64 or newer")
    options = parser.parse_args()
    save_demo()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        write_base(base)
        server = Server(options.comfyui, base, "--cpu")
        try:
            page = Page(f"http://127.0.0.1:{server.port}")
            try:
                take_pictures(page)
            finally:
                page.close()
        finally:
            server.stop()


def take_pictures(page: Page) -> None:
    templates = {name: json.loads((TEMPLATES / f"{name}.json").read_text("utf-8")) for name in WORKFLOWS}
    for name, template in templates.items():
        page.open(template)
        box = page.run(GROUPS_BOX)
        zoom = min(WORKFLOW_ZOOM, *(most / side for most, side in zip(LARGEST, box[2:], strict=True)))
        save(screenshot(page, box, zoom), PICTURES / f"{name.lower().replace(',', '').replace(' ', '-')}.webp")
    for template, names in NODES.items():
        page.open(templates[template])
        for name in names:
            save(picture_of(page, name), HELP / f"{name}.webp")
    for name, prompt in ALONE.items():
        page.run(IN_A_ROW, prompt)
        save(picture_of(page, name), HELP / f"{name}.webp")


def picture_of(page: Page, name: str) -> Image.Image:
    x, y, width, height = page.run(NODE_BOX, name)
    across, above, below = NODE_MARGINS
    return screenshot(page, [x - across, y - above, width + 2 * across, height + above + below], NODE_ZOOM)


if __name__ == "__main__":
    main()
