"""Sample: the portrait's latents, moved by the motion, window by window."""

from collections.abc import Callable
from itertools import chain

import comfy.latent_formats
import comfy.model_management
import latent_preview
import torch
from comfy_api.latest import io
from torch import Tensor

from ..personalive_core import memory
from ..personalive_core.config import CHUNK, PIXELS_PER_LATENT, WARM_UP
from ..personalive_core.motion.performance import Strength
from ..personalive_core.networks.reference_unet import ReferenceFeatures
from ..personalive_core.sampling.cuda import PinnedCopy, on_stream, one_behind, side_stream
from ..personalive_core.sampling.keyframes import MAX_KEYFRAMES, KeyframeSettings
from ..personalive_core.sampling.schedule import Schedule
from ..personalive_core.sampling.stream import Stream
from ..personalive_core.sampling.window import Denoiser
from . import compat, convert
from .load import ModelType, PersonaLiveModel
from .motion import MotionType, NodeMotion
from .reference import NodeReference, ReferenceType
from .say import Progress

WINDOW_NETWORKS = ("denoising_unet", "pose_guider")


class Sample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveSample",
            display_name="PersonaLive Sample",
            category="PersonaLive",
            **compat.search_aliases(
                "face animate, animate face, animate portrait, live portrait, liveportrait, talking head, avatar, "
                "puppet, reenact, face reenactment, portrait video, expression transfer, sampler"
            ),
            description="Makes the portrait do what the driving video does. As many frames come out as went in.",
            inputs=[
                ModelType.Input("model", tooltip="From Load PersonaLive Model."),
                ReferenceType.Input("reference", tooltip="From Encode Reference."),
                MotionType.Input("motion", tooltip="From Extract Motion, for the same reference."),
                io.Model.Input(
                    "unet",
                    optional=True,
                    tooltip="The output 'unet' of Load PersonaLive Model, after nodes that load a LoRA or replace "
                    "attention.",
                ),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=4,
                    max=64,
                    step=4,
                    tooltip="Denoising steps a frame. The model was made for 4; twice the steps take twice the time.",
                ),
                compat.advanced(
                    io.Int.Input,
                    "keyframes",
                    default=3,
                    min=0,
                    max=MAX_KEYFRAMES,
                    tooltip="How many frames with a new expression are remembered as further references.",
                ),
                compat.advanced(
                    io.Float.Input,
                    "keyframe_threshold",
                    default=17.0,
                    min=0.0,
                    max=1000.0,
                    step=0.5,
                    tooltip="How different an expression must be from all remembered ones to count as new.",
                ),
                compat.advanced(
                    io.Float.Input,
                    "return_every",
                    default=0.0,
                    min=0.0,
                    max=3600.0,
                    step=1.0,
                    tooltip="For long takes: after so many seconds forget all remembered frames, and begin again with "
                    "the portrait in their place. 0 is never.",
                ),
                io.Int.Input(
                    "seed",
                    default=42,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same video.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The latents of all frames, for Assemble Video or VAE Decode.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: PersonaLiveModel,
        reference: NodeReference,
        motion: NodeMotion,
        steps: int,
        keyframes: int,
        keyframe_threshold: float,
        return_every: float,
        seed: int,
        unet=None,
    ) -> io.NodeOutput:
        reference.check_model(model)
        model = model.with_unet(unet)
        motion.check_reference(reference)
        performance = motion.performance
        settings = KeyframeSettings.in_seconds(keyframes, keyframe_threshold, return_every, performance.frame_rate)
        stream = _make_stream(model, reference, Schedule(steps), settings, performance.strength)

        frames, total = len(performance.motion), -(-len(performance.motion) // CHUNK) + WARM_UP // CHUNK
        keep = comfy.model_management.intermediate_device()
        samples = torch.empty(frames, *reference.reference.latents.shape[1:], device=keep)
        draw_preview = _previewer(model.device)
        progress = Progress(total, "windows")
        state = stream.start(performance.motion, seed, performance.neutral)
        windows = chain(stream.push(state, performance.motion), stream.flush(state))
        done = 0
        for finished in one_behind(PinnedCopy(convert.to_host_latents(latents)) for latents in windows):
            samples[done : done + len(finished)] = finished
            done += len(finished)
            progress.update(state.window, total, draw_preview(finished))
        return io.NodeOutput({"samples": samples})


def _previewer(device: torch.device) -> Callable[[Tensor], tuple | None]:
    """What makes the host's preview of finished frames, unscaled latents (F, 4, h, w) on the CPU; of none, None.

    On a stream of its own: to look at a preview is to wait for it, and the GPU is already at the next window.
    """
    previewer, stream = latent_preview.get_previewer(device, comfy.latent_formats.SD15()), side_stream(device)

    def draw(finished: Tensor) -> tuple | None:
        if previewer is None or not len(finished):
            return None
        with on_stream(stream):
            return previewer.decode_latent_to_preview_image("JPEG", convert.to_latents(finished[:1].to(device)))

    return draw


def _make_stream(
    model: PersonaLiveModel,
    reference: NodeReference,
    schedule: Schedule,
    keyframes: KeyframeSettings,
    strength: Strength,
) -> Stream:
    height, width = (PIXELS_PER_LATENT * side for side in reference.reference.latents.shape[-2:])
    room = memory.window(width, height, model.dtype, keyframes.limit)

    def may_capture() -> bool:
        return compat.can_capture(model.patchers["denoising_unet"])

    def reference_unet(latents: Tensor, image_embeds: Tensor) -> ReferenceFeatures:
        """Loaded only for the few keyframes: most cards would rather hold the denoising UNet whole."""
        (network,) = model.load("reference_unet", memory=memory.reference(width, height, model.dtype))
        features = network(latents, image_embeds)
        model.load(*WINDOW_NETWORKS, memory=room)
        denoiser.set_capture(may_capture())
        return features

    denoising_unet, pose_guider = model.load(*WINDOW_NETWORKS, memory=room)
    denoiser = Denoiser(denoising_unet, schedule, keyframes.limit, may_capture())
    return Stream(
        reference.reference,
        denoiser=denoiser,
        reference_unet=reference_unet,
        pose_guider=pose_guider,
        keyframes=keyframes,
        device=model.device,
        strength=strength,
    )
