"""Patches of other nodes on the denoising UNet: LoRAs and attention have their effect, all else is refused."""

import shutil

import pytest
import torch
from prompts import node, sampling
from results import latents, succeed
from safetensors.torch import save_file

from seeded import normal
from tiny import error

RANK, ALPHA, STRENGTH = 4, 2.0, 0.7
LAYERS = {  # of the first spatial transformer and its residual block, as the checkpoint names them
    **{f"attentions.0.transformer_blocks.0.attn1.{name}": 1 for name in ("to_q", "to_k", "to_v", "to_out.0")},
    **{f"attentions.0.transformer_blocks.0.attn2.{name}": 1 for name in ("to_v", "to_out.0")},
    **{f"attentions.0.transformer_blocks.0.ff.net.{name}": 1 for name in ("0.proj", "2")},
    "attentions.0.proj_in": 1,
    "resnets.0.conv1": 3,
    "resnets.0.time_emb_proj": 1,
}
"""Layer -> size of its kernel."""


@pytest.fixture(scope="module")
def lora(models):
    """A LoRA for Stable Diffusion 1.x, named as kohya's tools do, and a set of weights `merged` with it built in."""
    tiny, merged = (models / "personalive" / name / "personalive" for name in ("tiny", "merged"))
    shutil.copytree(tiny, merged)
    weights = torch.load(merged / "denoising_unet.pth", weights_only=True)
    lora = {}
    for layer, kernel in LAYERS.items():
        weight = weights[f"down_blocks.2.{layer}.weight"]
        outputs, inputs = weight.shape[:2]
        up, down = normal(f"up {layer}", outputs, RANK), normal(f"down {layer}", RANK, inputs * kernel**2) / inputs**0.5
        weight += STRENGTH * ALPHA / RANK * (up @ down).reshape(weight.shape)
        square = (1, 1) if weight.ndim == 4 else ()
        name = f"lora_unet_down_blocks_2_{layer.replace('.', '_')}"
        lora[f"{name}.lora_up.weight"] = up.reshape(outputs, RANK, *square)
        lora[f"{name}.lora_down.weight"] = down.reshape(RANK, *weight.shape[1:])
        lora[f"{name}.alpha"] = torch.tensor(ALPHA)
    torch.save(weights, merged / "denoising_unet.pth")
    (models / "loras").mkdir()
    save_file(lora, models / "loras" / "seeded.safetensors")
    yield "seeded.safetensors"
    shutil.rmtree(merged.parent)
    shutil.rmtree(models / "loras")


def patched(*nodes: dict) -> dict:
    """The prompt with these nodes between the UNet and Sample, one after the other."""
    prompt, unet = sampling(), ["model", 1]
    prompt["motion"]["inputs"]["count"] = 1
    for i, patch in enumerate(nodes):
        prompt[f"patch {i}"] = node(patch["class_type"], **patch["inputs"], model=unet)
        unet = [f"patch {i}", 0]
    prompt["sample"]["inputs"]["unet"] = unet
    return prompt


def test_a_lora_has_the_effect_of_merged_weights_and_goes_with_its_node(host, lora):
    plain = latents(host, succeed(host, patched()))
    load = node("LoraLoaderModelOnly", lora_name=lora, strength_model=STRENGTH)
    found = latents(host, succeed(host, patched(load)))
    merged = patched()
    merged["model"]["inputs"]["weights"] = "merged"
    expected = latents(host, succeed(host, merged))
    assert error(found, expected) < 1e-5 < 1e-2 < error(plain, expected)
    prompt = patched()
    prompt["sample"]["inputs"]["return_every"] = 100.0  # runs again, on the same network, without the patches
    assert torch.equal(latents(host, succeed(host, prompt)), plain)


def test_a_lora_of_another_model_is_said_to_change_nothing(host, lora, models):
    file = models / "loras" / "another.safetensors"
    save_file(
        {"lora_unet_nowhere.lora_up.weight": torch.ones(8, 1), "lora_unet_nowhere.lora_down.weight": torch.ones(1, 8)},
        file,
    )
    run = succeed(host, patched(node("LoraLoaderModelOnly", lora_name=file.name, strength_model=STRENGTH)))
    assert run.texts["sample"][0].startswith("What is connected to 'unet' changes nothing")
    assert torch.equal(latents(host, run), latents(host, succeed(host, patched())))


def test_a_lora_on_fp8_is_refused(host, lora):
    prompt = patched(node("LoraLoaderModelOnly", lora_name=lora, strength_model=STRENGTH))
    prompt["model"]["inputs"]["precision"] = "fp8"
    run = host.run(prompt)
    assert run.node == "sample" and "a LoRA cannot change weights in fp8" in run.error
    del prompt["sample"]["inputs"]["unet"]
    assert latents(host, succeed(host, prompt)).isfinite().all()


def test_attention_that_a_node_replaces_is_called_everywhere(host):
    plain = latents(host, succeed(host, patched()))
    same = succeed(host, patched(node("TestAttention", scale=1.0)))
    assert error(latents(host, same), plain) < 1e-5
    other = succeed(host, patched(node("TestAttention", scale=0.5)))
    assert error(latents(host, other), plain) > 1e-2
    prompt = patched()
    prompt["sample"]["inputs"]["return_every"] = 200.0
    assert torch.equal(latents(host, succeed(host, prompt)), plain)


@pytest.mark.parametrize(
    ("patch", "name"),
    [
        (node("TorchCompileModel", backend="cudagraphs"), "torch.compile"),
        (node("TomePatchModel", ratio=0.3), "attn1_patch"),
        (node("PerturbedAttentionGuidance", scale=3.0), "sampler_post_cfg_function"),
        (node("ModelSamplingDiscrete", sampling="lcm", zsnr=False), "model_sampling"),
    ],
)
def test_what_would_have_no_effect_is_refused(host, patch, name):
    run = host.run(patched(patch))
    assert run.node == "sample"
    assert "patches that PersonaLive cannot apply" in run.error and name in run.error


def test_the_unet_of_another_model_is_refused(host):
    prompt = patched()
    prompt["another"] = node("PersonaLiveLoadModel", weights="bare")
    prompt["sample"]["inputs"]["unet"] = ["another", 1]
    run = host.run(prompt)
    assert run.node == "sample" and "the UNet is of another model" in run.error


def test_other_samplers_are_told_where_the_unet_belongs(host):
    sampler = node(
        "KSampler",
        model=["model", 1],
        positive=["text", 0],
        negative=["text", 0],
        latent_image=["latent", 0],
        sampler_name="euler",
        scheduler="normal",
        seed=1,
    )
    prompt = {
        "model": sampling()["model"],
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "text": node("TestConditioning"),
        "refused": sampler,
        "save": node("SaveLatent", samples=["refused", 0], filename_prefix="latents/test"),
    }
    run = host.run(prompt)
    assert run.node == "refused" and "connect it to 'unet' of PersonaLive Sample" in run.error
