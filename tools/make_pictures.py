"""Makes the pictures of README and help pages, and the thumbnails of the templates: what the demo makes, what the
templates make in a host that this starts, and screenshots of its page.

Needs Chromium with its driver, and the folder of a ComfyUI with its `.venv`; no GPU:

    PYTHONPATH=. python tools/make_pictures.py ~/ComfyUI

All faces are drawn by programs; the results are the miniature's.
Use the newest ComfyUI that is supported.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from make_workflows import PROMPTS, ROOT, TEMPLATES, WORKFLOWS, Page, node
from personalive_core.cli.demo import run_demo
from personalive_core.media.video_reader import VideoReader

sys.path.append(str(ROOT / "tests" / "host"))

from server import Server

PICTURES = ROOT / "docs" / "pictures"
HELP = ROOT / "nodes" / "web" / "docs"
THUMBNAIL, TILE = 512, 400  # pixels on a side; of a face on it

RESULTS = "SaveVideo", "SaveImage"
WORKFLOW_ZOOM, NODE_ZOOM = 0.8, 1.0
LARGEST = 2300, 1120  # width and height of a picture that the window has room for
NODE_MARGINS = 170, 80, 60  # at the sides, above and below, for its links and a bit of its neighbours
NODES = {  # of which template
    "4 Long video": (
        "PersonaLiveLoadModel",
        "PersonaLiveLoadEncoders",
        "PersonaLiveEncodeReference",
        "PersonaLiveExtractMotion",
        "PersonaLiveSample",
        "PersonaLiveAssembleVideo",
    ),
    "5 Crop, animate, paste back": ("PersonaLiveCropPortrait", "PersonaLiveCropDriving", "PersonaLivePasteBack"),
    "7 Adjust and save motion": ("PersonaLiveAdjustMotion",),
    "1 Try it without downloads": ("PersonaLiveExampleInput",),
    "8 Live": ("PersonaLiveLive",),
}

# These are in no template.
SHOWN = {"1": node("PersonaLiveExtractMotion"), "3": node("PreviewImage", images=["2", 0])}
ALONE = {
    "PersonaLivePreviewMotion": SHOWN | {"2": node("PersonaLivePreviewMotion", motion=["1", 0])},
    "PersonaLiveContactSheet": SHOWN | {"2": node("PersonaLiveContactSheet", motion=["1", 0])},
    "PersonaLiveLoadMotion": {
        "1": node("PersonaLiveEncodeReference"),
        "2": node("PersonaLiveLoadMotion", reference=["1", 0]),
    },
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
NODES_BOX = """
    const boxes = app.graph.nodes.map(node => [...node.boundingRect]);
    const [x, y] = [0, 1].map(axis => Math.min(...boxes.map(box => box[axis])));
    const [right, bottom] = [0, 1].map(axis => Math.max(...boxes.map(box => box[axis] + box[axis + 2])));
    return [x, y, right - x, bottom - y]"""
LOOK_AT = """
    const [x, y, zoom, left, top] = arguments;
    app.canvas.ds.scale = zoom;
    app.canvas.ds.offset = [left / zoom - x, top / zoom - y];
    app.canvas.setDirty(true, true);"""


def take_thumbnails(server: Server) -> None:
    """Runs each template. Live needs a camera: it shows what the first makes."""
    for name in WORKFLOWS:
        prompt = json.loads(
            (PROMPTS / f"{name if 'Live' not in name else next(iter(WORKFLOWS))}.json").read_text("utf-8")
        )
        prompt["before"] = node("SaveImage", images=_shown_before(prompt), filename_prefix="before")
        run = server.run(prompt)
        (result,) = (key for key, item in prompt.items() if key != "before" and item["class_type"] in RESULTS)
        before, after = (_frames(server, run.outputs[key]["images"][0]) for key in ("before", result))
        thumbnail(before[0], after).save(TEMPLATES / f"{name}.jpg", quality=88, optimize=True)


def _shown_before(prompt: dict) -> list:
    """The link of the whole picture, or of the portrait."""
    for class_type, key in (("PersonaLivePasteBack", "picture"), ("PersonaLiveEncodeReference", "image")):
        for item in prompt.values():
            if item["class_type"] == class_type:
                return item["inputs"][key]
    raise ValueError("no picture in this prompt")


def _frames(server: Server, file: dict) -> list[Image.Image]:
    path = server.base / "output" / file["subfolder"] / file["filename"]
    if path.suffix == ".png":
        return [Image.open(path).convert("RGB")]
    with VideoReader(path) as video:
        return [Image.fromarray(frame.pixels) for frame in video]


def thumbnail(before: Image.Image, frames: list[Image.Image]) -> Image.Image:
    """Before, and the frame that differs most from it: faces side by side, wide pictures one above the other."""
    start = np.asarray(before.resize(frames[0].size), np.float32)
    after = max(frames, key=lambda frame: np.abs(np.asarray(frame) - start).mean())
    sheet, half = Image.new("RGB", (THUMBNAIL, THUMBNAIL)), THUMBNAIL // 2
    for i, picture in enumerate((before, after)):
        if picture.width > picture.height:
            sheet.paste(ImageOps.fit(picture, (THUMBNAIL, half - 2), centering=(0.5, 1.0)), (0, i * (half + 2)))
        else:
            face = picture.resize((TILE, TILE), Image.Resampling.LANCZOS)
            left = (TILE - half) // 2
            sheet.paste(face.getpixel((TILE // 2, 0)), (i * half, 0, (i + 1) * half, THUMBNAIL))
            sheet.paste(face.crop((left, 0, left + half, TILE)), (i * half, THUMBNAIL - TILE))
    return sheet


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
        for name in ("custom_nodes", "input", "output"):
            (base / name).mkdir(parents=True)
        (base / "custom_nodes" / "personalive").symlink_to(ROOT)
        server = Server(options.comfyui, base, "--cpu")
        try:
            take_thumbnails(server)
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
        box = page.run(NODES_BOX)
        zoom = min(WORKFLOW_ZOOM, *(most / side for most, side in zip(LARGEST, box[2:], strict=True)))
        save(screenshot(page, box, zoom), PICTURES / f"{name[2:].lower().replace(',', '').replace(' ', '-')}.webp")
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
