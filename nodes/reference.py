"""Encode Reference: everything that the portrait contributes, computed once."""

from collections.abc import Generator
from dataclasses import dataclass, replace

import comfy.model_management
import numpy as np
from comfy_api.latest import io

from ..personalive_core import memory
from ..personalive_core.config import MAX_SIDE, MIN_SIDE, PIXELS_PER_LATENT
from ..personalive_core.device import to_pixels
from ..personalive_core.errors import InputError
from ..personalive_core.media.pictures import fit_picture
from ..personalive_core.sampling.reference import Reference, check_size, encode_reference
from ..personalive_core.weights.find import MINIATURE
from . import compat, convert
from .load import ModelType, PersonaLiveModel
from .say import say, say_first

MINIATURE_SIDE = 128  # pixels of the drawn faces that the miniature was trained on


@dataclass(frozen=True)
class NodeReference:
    """The core's reference on the host's intermediate device, and the model that made it."""

    reference: Reference
    picture: np.ndarray  # uint8 (H, W, 3), as the networks saw it
    model: str

    def check_model(self, model: PersonaLiveModel) -> None:
        if self.model != model.identity:
            raise InputError("the reference was made by another model: connect the same model to both nodes.")


ReferenceType = io.Custom("PERSONALIVE_REFERENCE")


def _side(name: str) -> io.Int.Input:
    return io.Int.Input(
        name,
        default=512,
        min=MIN_SIDE,
        max=MAX_SIDE,
        step=PIXELS_PER_LATENT,
        tooltip=f"{name.capitalize()} of the result in pixels: 512 for the official weights, 128 for the miniature.",
    )


class EncodeReference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveEncodeReference",
            display_name="PersonaLive Encode Reference",
            category="PersonaLive",
            **compat.search_aliases("reference image, source image, portrait, avatar, live portrait, liveportrait"),
            description="Looks at the portrait once: its appearance, its pose, its expression.",
            inputs=[
                ModelType.Input("model", tooltip="From Load PersonaLive Model."),
                io.Vae.Input("vae", tooltip="A VAE of Stable Diffusion 1.x, such as sd-vae-ft-mse."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="CLIP ViT-L/14 with projection: the image encoder of sd-image-variations-diffusers.",
                ),
                io.Image.Input("image", tooltip="The portrait: head and shoulders of one person. The first is taken."),
                _side("width"),
                _side("height"),
                io.Combo.Input(
                    "fit",
                    options=["crop", "pad", "stretch"],
                    default="crop",
                    tooltip="How a portrait of another shape becomes that size.",
                ),
            ],
            outputs=[
                ReferenceType.Output(
                    display_name="reference",
                    tooltip="The encoded portrait. Connect the same one to Extract Motion and Sample.",
                )
            ],
        )

    @classmethod
    def execute(cls, model: PersonaLiveModel, vae, clip_vision, image, width: int, height: int, fit: str):
        check_size(width, height)
        say_first(image, "images")
        if model.files.folder == MINIATURE and max(width, height) > MINIATURE_SIDE:
            say(
                f"The miniature was trained at {MINIATURE_SIDE} x {MINIATURE_SIDE}: set width and height to that. "
                f"{width} x {height} looks worse and takes {width * height / MINIATURE_SIDE**2:.0f} times as long."
            )
        picture = fit_picture(convert.to_pictures(image[:1], "the portrait")[0], width, height, fit)
        reference = finish(encode_reference_stages(model, vae, clip_vision, picture))
        keep = comfy.model_management.intermediate_device()
        reference = replace(
            reference,
            latents=reference.latents.to(keep),
            image_embeds=reference.image_embeds.to(keep),
            features={path: value.to(keep) for path, value in reference.features.items()},
        )
        return io.NodeOutput(NodeReference(reference, picture, model.identity))


def encode_reference_stages(
    model: PersonaLiveModel, vae, clip_vision, picture: np.ndarray
) -> Generator[None, None, Reference]:
    """Encodes a portrait, uint8 (H, W, 3), piece by piece: after the VAE, after the image encoder, and the rest. Each
    stage may load networks."""
    height, width = picture.shape[:2]
    portrait = convert.to_image(picture[None])
    samples = vae.encode(portrait)
    convert.check_vae_latents(samples, width, height)
    yield
    image_embeds = clip_vision.encode_image(portrait, crop=False)["image_embeds"]
    expected = model.files.config.unet.image_embeds_width
    if image_embeds is None or image_embeds.shape[-1] != expected:
        found = "no" if image_embeds is None else f"{image_embeds.shape[-1]}-wide"
        raise InputError(
            f"this CLIP vision model gives {found} image embeds in place of {expected}-wide ones: load the image "
            "encoder of sd-image-variations-diffusers (CLIP ViT-L/14 with its projection)."
        )
    yield
    networks = model.load(
        "reference_unet", "motion_extractor", "motion_encoder", memory=memory.reference(width, height, model.dtype)
    )
    device = model.device
    return encode_reference(
        *networks, to_pixels(picture[None], device), samples.to(device), image_embeds[:, None].to(device)
    )


def finish(stages: Generator[None, None, Reference]) -> Reference:
    """Runs all stages."""
    while True:
        try:
            next(stages)
        except StopIteration as end:
            return end.value
