"""Whatever is wrong, one node turns red with one sentence, and the server goes on."""

import shutil

import pytest
from prompts import node, video, with_own_encoders
from results import saved, succeed

from media import FRAMES, SIZE, read_frames

pytestmark = pytest.mark.newest_host

BAD_VAE = node("VAELoader", vae_name="sixteen_channels.safetensors")
LOAD_OTHER = node("PersonaLiveLoadModel", weights="other")


def with_input(name: str, key: str, value, **more: dict) -> dict:
    """The whole way with one input changed, and perhaps more nodes."""
    prompt = video() | more
    prompt[name]["inputs"][key] = value
    return prompt


def picture(kind: str, name: str, key: str) -> dict:
    return with_input(name, key, ["bad", 0], bad=node("TestPicture", kind=kind))


def other_reference() -> dict:
    prompt = video() | {"smile": node("LoadImage", image="smile.png")}
    inputs = prompt["reference"]["inputs"] | {"image": ["smile", 0]}
    prompt["another"] = node("PersonaLiveEncodeReference", **inputs)
    prompt["sample"]["inputs"]["reference"] = ["another", 0]
    return prompt


def own_encoders(weights: str) -> dict:
    prompt = with_own_encoders(video())
    prompt["model"]["inputs"]["weights"] = weights
    return prompt


def trimmed_away(name: str, key: str) -> dict:
    """Newer hosts can trim a VIDEO, to nothing too."""
    trim = node("Video Slice", video=["driving", 0], start_time=1000.0, duration=0.5, strict_duration=False)
    return with_input(name, key, ["bad", 0], bad=trim)


def trimmed_portrait() -> dict:
    prompt = trimmed_away("motion", "driving")
    prompt["portrait"] = node("PersonaLiveCropPortrait", image=["bad", 0], side=50)
    return prompt


def late_vae() -> dict:
    prompt = with_input("assemble", "vae", ["bad", 0], bad=BAD_VAE)
    prompt["sample"] = node("EmptyLatentImage", width=SIZE, height=SIZE)
    return prompt


BAD = {
    "empty portrait": (picture("empty", "reference", "image"), "reference", ["no picture"]),
    "portrait of NaN": (picture("nan", "reference", "image"), "reference", ["NaN"]),
    "portrait of one pixel": (picture("one pixel", "reference", "image"), "reference", ["1 x 1", "32"]),
    "grey portrait": (picture("grey", "reference", "image"), "reference", ["1 channel"]),
    "empty driving": (picture("empty", "motion", "driving"), "motion", ["no picture"]),
    "driving of NaN": (picture("nan", "motion", "driving"), "motion", ["NaN"]),
    "driving of one pixel": (picture("one pixel", "motion", "driving"), "motion", ["1 x 1", "32"]),
    "driving trimmed away": (trimmed_away("motion", "driving"), "motion", ["driving.mp4", "1000 s to 1000.5 s"]),
    "portrait trimmed away": (trimmed_portrait(), "portrait", ["driving.mp4", "1000 s to 1000.5 s"]),
    "video as portrait": (with_input("reference", "image", ["driving", 0]), "reference", ["VIDEO", "IMAGE"]),
    "odd width": (with_input("reference", "width", 132), "reference", ["132", "multiple of 8"]),
    "small height": (with_input("reference", "height", 64), "reference", ["64", "128"]),
    "VAE of pixels": (
        with_input("reference", "vae", ["bad", 0], bad=node("VAELoader", vae_name="pixel_space")),
        "reference",
        ["VAE", "Stable Diffusion 1"],
    ),
    "VAE of 16 channels": (
        with_input("reference", "vae", ["bad", 0], bad=BAD_VAE),
        "reference",
        ["VAE", "(1, 16,", "(1, 4,"],
    ),
    "VAE of 16 channels at the end": (late_vae(), "assemble", ["(1, 4,", "VAE of 16 channels"]),
    "CLIP of another width": (with_input("reference", "model", ["bad", 0], bad=LOAD_OTHER), "reference", ["768", "24"]),
    "reference of another model": (with_input("sample", "model", ["bad", 0], bad=LOAD_OTHER), "sample", ["model"]),
    "reference of another model, earlier": (
        with_input("motion", "model", ["bad", 0], bad=LOAD_OTHER),
        "motion",
        ["model"],
    ),
    "motion of another reference": (other_reference(), "sample", ["reference"]),
    "weights that are not there": (with_input("model", "weights", "nowhere"), "model", ["nowhere"]),
    "official weights missing": (with_input("model", "weights", "official"), "model", ["pose_guider", "download"]),
    "weights with a file missing": (with_input("model", "weights", "incomplete"), "model", ["pose_guider"]),
    "weights with a file cut off": (with_input("model", "weights", "cut_off"), "model", ["pose_guider.pth", "1000"]),
    "no VAE": (own_encoders("bare"), "encoders", ["diffusion_pytorch_model.safetensors", "Download", "Load VAE"]),
    "VAE of unknown sizes": (own_encoders("no_sizes"), "encoders", ["config.json", "block_out_channels"]),
    "VAE of damaged sizes": (own_encoders("no_json"), "encoders", ["config.json", "cannot be used"]),
    "half an image encoder": (own_encoders("half_encoder"), "encoders", ["pytorch_model.bin", "post_layernorm"]),
    "steps": (with_input("sample", "steps", 5), "sample", ["5", "4"]),
    "start after the end": (with_input("motion", "start", 1000), "motion", ["1000"]),
}


@pytest.mark.parametrize("prompt, name, words", BAD.values(), ids=BAD)
def test_one_sentence(host, prompt, name, words):
    run = host.run(prompt)
    assert run.node == name, run
    sentence = run.error.partition("\n")[0]  # missing files are listed under it
    assert len(sentence) < 300 and all(word in sentence for word in words), run.error


def test_a_prompt_without_a_valid_output_is_refused(host):
    """Nothing of it runs; its one Load PersonaLive Model could."""
    run = host.run(with_input("sample", "steps", 0))
    assert run.prompt is None and run.node == "sample" and run.error_type == "value_smaller_than_min"


def test_a_pyav_that_writes_no_pictures_is_said_before_anything_is_loaded(host):
    def pretend(version: str) -> None:
        succeed(host, {"set": node("TestPyAV", version=version), "show": node("PreviewAny", source=["set", 0])})

    pretend("14.4.0")
    try:
        run = host.run(with_input("model", "precision", "bf16"))  # which no other test has loaded
        assert run.node == "model" and run.error.startswith("PyAV 14.4.0 cannot write") and "install" in run.error
    finally:
        pretend("")


def test_images_that_are_switched_off_fail_whoever_takes_them(host):
    """Also where the host has the video in its cache."""
    prompt = video() | {"pictures": node("PreviewImage", images=["assemble", 1])}
    for _ in range(2):
        run = host.run(prompt)
        assert run.node == "pictures" and run.error == (
            "switch on 'images' in Assemble Video to get the frames as images."
        )
        assert host.status(run) == "error"
    assert "assemble" in run.cached


def test_the_temporary_folder_is_removed(host):
    """While a video is written into it: one sentence. Afterwards, while the host has the video in its cache: another
    is made."""
    removed = []

    def remove(name: str, value: int) -> None:
        if name == "assemble" and not removed:
            removed.append(value)
            shutil.rmtree(host.base / "temp")

    prompt = video(seed=11)
    run = host.run(prompt, remove)
    assert run.node == "assemble" and f"{host.base / 'temp'} was removed" in run.error and "run again" in run.error
    succeed(host, prompt)
    shutil.rmtree(host.base / "temp")
    prompt["save"]["inputs"]["filename_prefix"] = "video/again"
    assert len(read_frames(saved(host, succeed(host, prompt), "save"))) == FRAMES


def test_server_goes_on(host):
    prompt = video() | {"preview": node("PersonaLivePreviewMotion", motion=["motion", 0])}
    prompt["pictures"] = node("PreviewImage", images=["preview", 0])
    for name in ("sample", "latents", "assemble", "save"):
        del prompt[name]
    assert host.run(prompt).error is None
