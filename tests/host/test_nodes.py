"""The nodes as the host describes them, and the whole way through them, in a real host.

In this order a test finds results of the one before it in the host's cache, which saves time and nothing else."""

import os
import time

import av
import numpy as np
import pytest
import torch
from prompts import node, sampling, video
from results import latents, saved, succeed
from safetensors.torch import load_file, save_file
from server import Server

from media import FRAMES, RATE, SIZE, read_frames
from personalive_core.networks.fused import COMPILING

NODES = {
    "PersonaLiveCropPortrait",
    "PersonaLiveCropDriving",
    "PersonaLivePasteBack",
    "PersonaLiveLoadModel",
    "PersonaLiveLoadEncoders",
    "PersonaLiveEncodeReference",
    "PersonaLiveExtractMotion",
    "PersonaLivePreviewMotion",
    "PersonaLiveAdjustMotion",
    "PersonaLiveSaveMotion",
    "PersonaLiveLoadMotion",
    "PersonaLiveSample",
    "PersonaLiveLive",
    "PersonaLiveAssembleVideo",
    "PersonaLiveContactSheet",
    "PersonaLiveExampleInput",
}


LISTED = (
    ("PersonaLiveLoadModel", "weights"),
    ("PersonaLiveLoadMotion", "file"),
    ("PersonaLiveCropPortrait", "detector"),
)


def choices(host: Server, name: str, key: str) -> list[str]:
    """What can be chosen; older hosts have it in another place."""
    kind, described = host.nodes[name]["input"]["required"][key]
    return kind if isinstance(kind, list) else described["options"]


def test_nodes_are_described(host):
    ours = {name: info for name, info in host.nodes.items() if name.startswith("PersonaLive")}
    assert set(ours) == NODES
    for name, info in ours.items():
        assert "PersonaLive" in info["display_name"]
        assert info["search_aliases"] if "search_aliases" in host.nodes["LoadImage"] else True
        assert len(info.get("output_tooltips", [])) == len(info["output"]) and all(info.get("output_tooltips", [])), (
            name
        )
        assert info["category"] == "PersonaLive"
        assert info["description"]
        for inputs in (info["input"].get(kind, {}) for kind in ("required", "optional")):
            for key, (_, options) in inputs.items():
                assert options.get("tooltip"), f"{name}.{key} has no tooltip"
        assert host.get_bytes(f"extensions/personalive/docs/{name}.md")
    described = [choices(host, name, key) for name, key in LISTED]
    assert not [name for names in described for name in names if name.startswith(("gone", "itself", "long", "strange"))]
    order = host.nodes["PersonaLiveSample"]["input_order"]
    assert order["required"][-1] == "seed" and order["optional"] == ["unet"]  # which has no widget


def test_whole_way(host):
    prompt = video()
    prompt["motion"]["inputs"]["count"] = FRAMES  # all; asked for like this nowhere else, so that nothing is cached
    run = succeed(host, prompt)
    file = saved(host, run, "save")
    frames = read_frames(file)
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    assert frames.std() > 5
    with av.open(str(file)) as container:
        (picture,), (sound,) = container.streams.video, container.streams.audio
        assert picture.average_rate == RATE
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(sound)])
        assert abs(len(samples) / sound.rate - FRAMES / RATE) < 0.05
        assert abs(samples).max() > 0.1
    assert latents(host, run).shape == (FRAMES, 4, SIZE // 8, SIZE // 8)

    for name in ("motion", "sample", "assemble"):
        values = [value for who, value, _ in run.progress if who == name]
        assert values == sorted(values) and values[-1] == next(m for who, _, m in run.progress if who == name)
        assert run.previews[name] and all(preview.startswith(b"\xff\xd8") for preview in run.previews[name])


def test_progress_is_told_on_the_node_after_what_was_said(host):
    prompt = {name: node("TestProgress", text=text) for name, text in (("silent", ""), ("talking", "One thing."))}
    run = succeed(host, prompt)
    assert run.texts == {
        "silent": ["2 frames of 4, 1 s left", "4 frames in 2 s"],
        "talking": ["One thing.", "One thing.\n2 frames of 4, 1 s left", "One thing.\n4 frames in 2 s"],
    }
    assert [value for who, value, _ in run.progress if who == "silent"][-1] == 4


def test_compiling_is_said_once_on_the_node(host):
    assert succeed(host, {"first": node("TestCompiling")}).texts == {"first": [COMPILING]}


def test_host_nodes_take_the_latents(host):
    prompt = sampling() | {
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "create": node("CreateVideo", images=["decode", 0], fps=["motion", 1], audio=["motion", 2]),
        "save": node("SaveVideo", video=["create", 0], filename_prefix="video/test", format="auto", codec="auto"),
    }
    assert read_frames(saved(host, succeed(host, prompt), "save")).shape == (FRAMES, SIZE, SIZE, 3)


def test_assemble_video_decodes_as_the_host_does(host):
    prompt = sampling() | {
        "sd": node("VAELoader", vae_name="sd.safetensors"),
        "compare": node("TestDecoders", samples=["sample", 0], vae=["sd", 0]),
    }
    prompt["motion"]["inputs"]["count"] = 1  # the published VAE takes seconds a frame
    found = succeed(host, prompt).outputs["compare"]
    assert found["frames"] == [1]
    assert found["error"][0] < 1e-4


def test_assemble_video_decodes_with_the_hosts_taesd_by_one_switch(host):
    folder, prompt = host.base / "models" / "vae_approx", video()
    folder.mkdir(exist_ok=True)
    prompt["assemble"]["inputs"]["small_decoder"] = True
    run = host.run(prompt)
    assert run.node == "assemble" and "the small decoder is not in models/vae_approx" in run.error
    weights = {
        key.removeprefix("taesd_decoder."): value
        for key, value in load_file(host.base / "models" / "vae" / "taesd.safetensors").items()
        if key.startswith("taesd_decoder.")
    }
    last = max(weights, key=lambda key: int(key.split(".")[0]) + key.endswith("bias") / 2)
    brighter = weights | {last: weights[last] + 1}
    contents = {"the same": weights, "brighter": brighter, "more": weights | {"more": torch.zeros(1)}}
    frames, file = {}, folder / "taesd_decoder.safetensors"
    try:
        for i, (name, content) in enumerate(contents.items()):
            save_file(content, file)
            os.utime(file, (i + 1, i + 1))
            prompt["assemble"]["inputs"]["frame_rate"] = 20.0 + i  # so that the host runs it again
            run = host.run(prompt)
            if name != "more":
                assert run.error is None, run.error
                frames[name] = read_frames(saved(host, run, "save")).astype(int)
        assert run.node == "assemble" and "is not TAESD (missing, unknown or of another shape: more)" in run.error
    finally:
        file.unlink()
    plain = read_frames(saved(host, succeed(host, video()), "save")).astype(int)
    assert np.abs(frames["the same"] - plain).mean() < 8  # another rate is coded in another way
    assert (frames["brighter"] - plain).mean() > 20


def test_the_decoder_is_of_one_type_although_the_host_keeps_that_of_the_file(host):
    prompt = {
        "sd": node("VAELoader", vae_name="sd.safetensors"),
        "types": node("TestDecoderTypes", vae=["sd", 0]),
    }
    assert succeed(host, prompt).outputs["types"]["types"] == ["torch.bfloat16"]


def test_norms_are_where_the_pictures_are_although_the_host_forgets_them(host):
    """Of partly loaded networks it moves its own layers as they are used, and no others."""
    prompt = {
        "model": sampling()["model"],
        "sd": node("VAELoader", vae_name="sd.safetensors"),
        "strays": node("TestStrays", model=["model", 0], vae=["sd", 0]),
    }
    found = succeed(host, prompt).outputs["strays"]
    assert {"GroupNorm", "LayerNorm", "GlobalResponseNorm"} <= set(found["moved"])
    assert found["stayed"] and set(found["stayed"]) <= {"Conv2d", "Linear", "BatchNorm2d"}
    assert not {"Conv2d", "Linear"} & set(found["moved"])


@pytest.mark.newest_host
def test_another_seed_reuses_reference_and_motion(host):
    first = succeed(host, sampling(seed=1))
    second = succeed(host, sampling(seed=2))
    assert {"model", "reference", "motion"} <= second.cached
    assert not {"sample", "latents"} & second.cached
    a, b = latents(host, first), latents(host, second)
    assert (a - b).norm() / a.norm() > 0.1


@pytest.mark.newest_host
def test_images_and_video_drive_alike(host):
    images = {"file": node("LoadVideo", file="driving.mp4"), "driving": node("GetVideoComponents", video=["file", 0])}
    a = latents(host, succeed(host, sampling(seed=2)))
    run = succeed(host, sampling(seed=2) | images)
    b = latents(host, run)
    said = (
        f"{FRAMES} images are taken as 25 frames a second (0.2 s): set 'frame_rate' if they were made at another rate."
    )
    assert run.texts["motion"][0] == said
    assert (a - b).norm() / a.norm() < 0.02  # the host's own decoder rounds colours otherwise


def test_preview_motion(host):
    prompt = sampling() | {
        "preview": node("PersonaLivePreviewMotion", motion=["motion", 0]),
        "pictures": node("SaveImage", images=["preview", 0], filename_prefix="preview"),
    }
    del prompt["sample"], prompt["latents"]
    assert len(succeed(host, prompt).outputs["pictures"]["images"]) == FRAMES


@pytest.mark.newest_host
def test_one_picture_drives(host):
    run = succeed(host, video() | {"driving": node("LoadImage", image="smile.png")})
    assert len(latents(host, run)) == 1
    assert len(read_frames(saved(host, run, "save"))) == 1


def test_cancel_anywhere_and_go_on(host):
    prompt = video() | {
        "smile": node("LoadImage", image="smile.png"),
        "driving": node("RepeatImageBatch", image=["smile", 0], amount=2 * FRAMES),
    }
    for name in ("motion", "sample", "assemble"):
        seen = []

        def on_progress(who: str, value: int, name=name, seen=seen) -> None:
            if who == name:
                seen.append(value)
                if len(seen) == 1:
                    host.interrupt()

        run = host.run(prompt, on_progress)
        assert run.interrupted and run.error is None
        assert len(seen) <= 2
    assert len(latents(host, succeed(host, prompt))) == 2 * FRAMES


def loaded(host: Server) -> set[str]:
    return set(host.get("test/loaded_models"))


def free(host: Server, forget_outputs: bool) -> None:
    """Asks until it is done: a host that is tidying up after a prompt may not wake up for it."""
    deadline = time.monotonic() + 20
    while loaded(host):
        assert time.monotonic() < deadline, f"still loaded: {loaded(host)}"
        host.free(forget_outputs)
        time.sleep(0.2)


def test_models_are_unloaded_and_come_back(host):
    succeed(host, sampling(seed=1))
    assert {"UNetModel", "PoseGuider"} <= loaded(host)
    free(host, forget_outputs=False)
    run = succeed(host, sampling(seed=2))
    assert {"model", "reference", "motion"} <= run.cached
    before = latents(host, run)
    free(host, forget_outputs=True)
    run = succeed(host, sampling(seed=2))
    assert not run.cached
    assert torch.equal(latents(host, run), before)


def test_out_of_memory(host):
    prompt = sampling(seed=3)
    prompt["short"] = node("TestOutOfMemory", model=["model", 0])
    prompt["sample"]["inputs"]["model"] = ["short", 0]
    run = host.run(prompt)
    assert run.node == "sample" and "memory" in run.error
    succeed(host, sampling(seed=3))
