"""The official weights, fetched and converted by the node, in the newest host: a stand-in for the hub on this machine
serves the small set under the published names. `fresh` empties the host's models folder."""

import os
import shlex
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prompts import node, sampling, with_own_encoders
from safetensors.torch import save_file
from server import Server

from hub_stand_in import StandIn
from media import write_inputs
from personalive_core.weights import hub
from personalive_core.weights.find import CHECKPOINTS, SIZES_FILE

REPOSITORY = Path(__file__).parents[2]
NAMED = os.environ.get("COMFYUI_PATH")
HOSTS = NAMED.split(os.pathsep) if NAMED else sorted(Path.home().glob("ComfyUI*"))
TARGETS = {
    **{name: f"personalive/personalive/{name}.pth" for name in CHECKPOINTS},
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "image_encoder": "clip_vision/pytorch_model.bin",
}
"""Part -> where the node has to put it, in the host's models folder."""
FOLDERS = ("sd-vae-ft-mse", "sd-image-variations-diffusers")  # VAE and image encoder as other tools have them
UNPIN = """
import sys
from dataclasses import replace

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


@PromptServer.instance.routes.post("/unpin")
async def unpin(request):
    (hub,) = (module for name, module in sys.modules.items() if name.endswith("personalive_core.weights.hub"))
    hub.FILES = tuple(replace(file, sha256=None) for file in hub.FILES)
    hub._PAUSE = 0.1
    return web.json_response({})
"""
"""The small files have not the checksums of the published ones."""


@pytest.fixture(scope="module")
def stand_in(models: Path) -> Iterator[StandIn]:
    tiny = {name: models / "personalive" / "tiny" / "personalive" / f"{name}.pth" for name in CHECKPOINTS}
    sources = tiny | {
        "vae": models / "vae" / "taesd.safetensors",
        "image_encoder": models / "clip_vision" / "vit_l.bin",
    }
    files = {
        f"/{file.repo}/resolve/{hub.REVISIONS[file.repo]}/{file.path}": sources[file.part].read_bytes()
        for file in hub.FILES
        if Path(file.path).suffix != ".json"
    }
    with StandIn(files) as server:
        yield server


@pytest.fixture(scope="module")
def host(models: Path, stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not HOSTS:
        pytest.skip("no ComfyUI")
    base = tmp_path_factory.mktemp("official")
    for name in ("custom_nodes", "input", "output"):
        (base / name).mkdir()
    (base / "custom_nodes" / "personalive").symlink_to(REPOSITORY)
    (base / "custom_nodes" / "unpin").mkdir()
    (base / "custom_nodes" / "unpin" / "__init__.py").write_text(UNPIN)
    tiny = models / "personalive" / "tiny" / "personalive"
    (base / "outside").symlink_to(tiny)
    (base / "models" / "personalive" / "personalive").mkdir(parents=True)
    shutil.copy(tiny / SIZES_FILE, base / "models" / "personalive" / "personalive")
    write_inputs(base / "input")
    arguments = os.environ.get("COMFYUI_ARGUMENTS", "--cpu --fp32-text-enc --preview-method auto")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", stand_in.address)
        environment.setenv("NO_PROXY", "127.0.0.1,localhost")
        environment.setenv("HF_HOME", str(base / "cache"))
        server = Server(Path(HOSTS[-1]), base, *shlex.split(arguments))
    server.post("unpin", {})
    yield server
    server.stop()


@pytest.fixture
def fresh(host: Server, stand_in: StandIn) -> None:
    for path in (host.base / "models").rglob("*"):
        if path.is_file() and path.name != SIZES_FILE:
            path.unlink()
    stand_in.stored, stand_in.drops, stand_in.status, stand_in.pause = {}, [], 0, 0.0
    stand_in.requests, stand_in.starts, stand_in.sent = 0, [], 0


def load(**inputs) -> dict:
    return {
        "model": node("PersonaLiveLoadModel", **{"weights": "official", **inputs}),
        "shown": node("PreviewAny", source=["model", 0]),
    }


def press(host: Server, task: str) -> dict:
    """Presses a button of the page and waits; returns how the job ended."""
    job = host.post("personalive/weights", {"task": task})["job"]
    while job["running"]:
        time.sleep(0.05)
        job = host.get("personalive/weights")["job"]
    return job


def template(**inputs) -> dict:
    """The whole way, as the templates have it."""
    return with_own_encoders(sampling()) | load(**inputs)


def files_in(host: Server) -> set[str]:
    models = host.base / "models"
    files = (path for path in models.rglob("*") if path.is_file() and path.name not in (SIZES_FILE, ".download.lock"))
    return {path.relative_to(models).as_posix() for path in files}


def test_no_prompt_downloads_or_converts(host, stand_in, fresh):
    assert not {"download", "convert"} & set(host.nodes["PersonaLiveLoadModel"]["input"]["required"])
    run = host.run(load(download=True, convert=True))
    assert "pose_guider.pth" in run.error and "press 'Download weights'" in run.error
    assert stand_in.requests == 0 and not files_in(host)


@pytest.mark.parametrize(
    "kind, origin, status", [("json", "http://evil.example", 403), ("x-www-form-urlencoded", "", 400)]
)
def test_no_other_page_starts_a_download(host, stand_in, fresh, kind, origin, status):
    headers = {"Content-Type": f"application/{kind}"} | ({"Origin": origin} if origin else {})
    address = f"http://127.0.0.1:{host.port}/personalive/weights"
    request = urllib.request.Request(address, b'{"task": "official"}', headers)
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=30)
    assert error.value.code == status
    assert not host.get("personalive/weights")["job"] or stand_in.requests == 0


@pytest.mark.parametrize("name", ["../../outside", "..", "absolute"])
def test_no_weights_outside_the_hosts_folders(host, fresh, name):
    outside = str(host.base / "outside") if name == "absolute" else name
    assert host.run(load(weights=outside)).error_type == "value_not_in_list"
    linked = load(weights=["switch", 0]) | {
        "name": node("PrimitiveString", value=outside),
        "switch": node("ComfySwitchNode", switch=True, on_true=["name", 0], on_false=["name", 0]),
    }
    assert "there are no weights" in host.run(linked).error


@pytest.mark.parametrize("folder", ["personalive/pretrained_weights", "persona_live/persona_live/pretrained_weights"])
def test_what_other_tools_fetched_is_used_in_place(host, models, stand_in, fresh, folder):
    """The VAE and the image encoder too, so that nothing is left to fetch."""
    parts = [host.base / "models" / folder / name for name in ("personalive", *FOLDERS)]
    parts[0].parent.mkdir(parents=True)
    for part in parts:
        part.symlink_to(models / "personalive" / "tiny" / part.name)
    encode = {
        "encoders": node("PersonaLiveLoadEncoders", model=["model", 0]),
        "portrait": node("LoadImage", image="portrait.png"),
        "encode": node("VAEEncode", pixels=["portrait", 0], vae=["encoders", 0]),
        "latents": node("SaveLatent", samples=["encode", 0], filename_prefix="latents/test"),
    }
    try:
        run = host.run(load() | encode)
        assert run.error is None and run.outputs["latents"]
        described = host.get("object_info")["PersonaLiveLoadModel"]["input"]["required"]["weights"]
        assert ["official", "miniature"] in (described[0], described[1].get("options"))  # older hosts, newer hosts
    finally:
        for part in parts:
            part.unlink()
    assert stand_in.requests == 0


@pytest.mark.parametrize("status", [404, 503])
def test_refused(host, stand_in, fresh, status):
    stand_in.status = status
    for _ in range(2):
        error = press(host, "official")["text"]
        assert f"denoising_unet.pth could not be fetched (the hub answered {status})" in error
        for address, target in zip(stand_in.files, TARGETS.values(), strict=True):
            assert f"{stand_in.address}{address} -> {(host.base / 'models' / target).parent}\n" in f"{error}\n"
    assert not files_in(host)


def test_wrong_file(host, stand_in, fresh):
    address, content = next(item for item in stand_in.files.items() if "pose_guider" in item[0])
    stand_in.stored[address] = content[::-1]
    for _ in range(2):
        error = press(host, "official")["text"]
        assert f"{stand_in.address}" in error and "thrown away" in error
    assert TARGETS["pose_guider"] not in files_in(host)


def test_cancelled_halfway_it_goes_on_from_there(host, stand_in, fresh):
    sizes = [len(content) for content in stand_in.files.values()]
    total, largest = sum(sizes), sizes.index(max(sizes))
    middle = sum(sizes[:largest]) + sizes[largest] / 3  # far from its end: a whole file need not be asked for again
    stand_in.pause = 0.005
    host.post("personalive/weights", {"task": "official"})
    while stand_in.sent <= middle:
        time.sleep(0.02)
    assert press(host, "stop")["text"].startswith("Stopped")
    sizes = {name: (host.base / "models" / name).stat().st_size for name in files_in(host)}
    have = sum(sizes.values())
    assert middle < have < total
    ((part, size),) = ((name, size) for name, size in sizes.items() if name.endswith(".part") and size)
    _wait_until_quiet(stand_in)
    stand_in.pause, stand_in.sent, stand_in.starts = 0.0, 0, []
    press(host, "official")
    assert stand_in.starts[0] == (Path(part).name.rsplit(".", 2)[0], size)
    assert stand_in.sent == total - have
    assert files_in(host) == set(TARGETS.values())


def _wait_until_quiet(stand_in: StandIn) -> None:
    """Its last answer notices a moment later that nobody listens any more."""
    sent = -1
    while sent != stand_in.sent:
        sent = stand_in.sent
        time.sleep(10 * stand_in.pause)


@pytest.mark.parametrize("part, words", [("vae", "is no VAE"), ("image_encoder", "is no image encoder")])
def test_another_file_of_the_same_name(host, fresh, part, words):
    path = host.base / "models" / TARGETS[part]
    path.parent.mkdir(exist_ok=True)
    (save_file if path.suffix == ".safetensors" else torch.save)({"weight": torch.zeros(1)}, path)
    press(host, "official")
    run = host.run(template())
    assert run.node == "encoders" and words in run.error and path.name in run.error


def test_a_new_user_downloads_and_runs_the_template(host, stand_in, fresh):
    total = sum(map(len, stand_in.files.values()))
    offered = host.get("personalive/weights")["official"]
    assert [file["address"].removeprefix(stand_in.address) for file in offered] == list(stand_in.files)
    press(host, "official")
    assert files_in(host) == set(TARGETS.values()) and stand_in.sent == total
    assert not host.get("personalive/weights")["official"]

    requests = stand_in.requests
    run = host.run(template(precision="fp32"))
    assert run.error is None and run.outputs["latents"]
    run = host.run(template(precision="fp32"))
    assert run.error is None and {"model", "encoders", "reference", "sample"} <= run.cached
    assert stand_in.requests == requests


def test_hosts_own_loaders_take_the_fetched_files(host):
    prompt = sampling() | load(precision="fp32")
    prompt["vae"]["inputs"]["vae_name"] = Path(TARGETS["vae"]).name
    prompt["clip_vision"]["inputs"]["clip_name"] = Path(TARGETS["image_encoder"]).name
    run = host.run(prompt)
    assert run.error is None and run.outputs["latents"]


def test_convert(host):
    text = press(host, "convert")["text"]
    assert f"You may delete {', '.join(f'{name}.pth' for name in CHECKPOINTS)}" in text
    converted = {f"personalive/personalive/{name}.safetensors" for name in CHECKPOINTS}
    assert files_in(host) == set(TARGETS.values()) | converted
    for name in CHECKPOINTS:
        (host.base / "models" / TARGETS[name]).unlink()
    run = host.run(template(precision="fp32"))
    assert run.error is None and run.outputs["latents"]


def test_the_small_decoder_is_fetched_by_its_button(host, stand_in, fresh):
    (offered,) = host.get("personalive/weights")["taesd"]
    assert offered["address"].endswith("/taesd_decoder.safetensors")
    assert Path(offered["folder"]) == host.base / "models" / "vae_approx"
    path = offered["address"].removeprefix(stand_in.address)
    stand_in.files[path] = bytes(1000)
    assert "TAESD is there" in press(host, "taesd")["text"]
    del stand_in.files[path]  # the hub has the official files alone again
    assert (host.base / "models" / "vae_approx" / "taesd_decoder.safetensors").read_bytes() == bytes(1000)
    assert host.get("personalive/weights")["taesd"] == []


def test_offline(host, stand_in, fresh):
    stand_in.shutdown()
    stand_in.server_close()
    error = press(host, "official")["text"]
    assert "denoising_unet.pth could not be fetched (the hub cannot be reached" in error
    for address, target in zip(stand_in.files, TARGETS.values(), strict=True):
        assert f"{stand_in.address}{address} -> {(host.base / 'models' / target).parent}\n" in f"{error}\n"
