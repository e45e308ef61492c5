"""API prompts, node by node; the client adds the defaults of what they leave out."""

from media import SIZE


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def sampling(seed: int = 1) -> dict:
    """From the files to the sampled latents, which are saved."""
    return {
        "vae": node("VAELoader", vae_name="taesd.safetensors"),
        "clip_vision": node("CLIPVisionLoader", clip_name="vit_l.bin"),
        "portrait": node("LoadImage", image="portrait.png"),
        "driving": node("LoadVideo", file="driving.mp4"),
        "model": node("PersonaLiveLoadModel", weights="tiny"),
        "reference": node(
            "PersonaLiveEncodeReference",
            model=["model", 0],
            vae=["vae", 0],
            clip_vision=["clip_vision", 0],
            image=["portrait", 0],
            width=SIZE,
            height=SIZE,
        ),
        "motion": node(
            "PersonaLiveExtractMotion", model=["model", 0], reference=["reference", 0], driving=["driving", 0]
        ),
        "sample": node(
            "PersonaLiveSample", model=["model", 0], reference=["reference", 0], motion=["motion", 0], seed=seed
        ),
        "latents": node("SaveLatent", samples=["sample", 0], filename_prefix="latents/test"),
    }


def video(seed: int = 1) -> dict:
    """The whole way: the video with the driving video's rate and sound."""
    return sampling(seed) | {
        "assemble": node(
            "PersonaLiveAssembleVideo",
            samples=["sample", 0],
            vae=["vae", 0],
            frame_rate=["motion", 1],
            audio=["motion", 2],
        ),
        "save": node("SaveVideo", video=["assemble", 0], filename_prefix="video/test", format="auto", codec="auto"),
    }


def with_own_encoders(prompt: dict) -> dict:
    """The same with the VAE and the image encoder that go with the model, as the templates have it."""
    moved = {"vae": ["encoders", 0], "clip_vision": ["encoders", 1]}
    relinked = {
        name: node(
            item["class_type"],
            **{k: moved.get(v[0], v) if isinstance(v, list) else v for k, v in item["inputs"].items()},
        )
        for name, item in prompt.items()
        if name not in moved
    }
    return relinked | {"encoders": node("PersonaLiveLoadEncoders", model=["model", 0])}
