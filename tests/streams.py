"""Streams over the small seeded networks."""

import torch
from torch import Tensor

from personalive_core.config import PoseGuiderConfig
from personalive_core.motion.motion import Motion
from personalive_core.networks.head_pose import HeadPose
from personalive_core.networks.pose_guider import PoseGuider
from personalive_core.sampling.keyframes import KeyframeSettings
from personalive_core.sampling.reference import Reference
from personalive_core.sampling.schedule import Schedule
from personalive_core.sampling.stream import Stream
from personalive_core.sampling.window import Denoiser
from seeded import normal
from tiny import seeded, unets


def motion_of(tokens: Tensor) -> Motion:
    """Motion with these tokens (F, 32, 16) and head poses that follow from them."""
    frames = len(tokens)
    head = tokens.flatten(1)
    pose = HeadPose(head[:, :3] * 10, head[:, 3:6] / 10, 1 + head[:, 6:7] / 10, head[:, 7:70].view(frames, 21, 3) / 4)
    return Motion(pose, tokens, torch.zeros(frames, 4, dtype=torch.long))


def make_stream(reference_tokens: Tensor, latents: Tensor, image_embeds: Tensor, pose_guider, steps=4, **keyframes):
    reference_unet, denoising_unet = unets()
    features, settings = reference_unet(latents, image_embeds), KeyframeSettings(**keyframes)
    return Stream(
        Reference(latents, image_embeds, features, motion_of(reference_tokens)),
        denoiser=Denoiser(denoising_unet, Schedule(steps), settings.limit),
        reference_unet=reference_unet,
        pose_guider=pose_guider,
        keyframes=settings,
        device="cpu",
    )


def small_stream(**settings) -> Stream:
    pose_guider = seeded(PoseGuider(PoseGuiderConfig(out_channels=32), device="meta"), "pose_guider")
    return make_stream(
        normal("portrait", 1, 32, 16), normal("latents", 1, 4, 5, 4), normal("e", 1, 1, 24), pose_guider, **settings
    )


@torch.inference_mode()
def run(stream: Stream, motion: Motion, cuts: list[int], seed: int = 1) -> Tensor:
    """All frames of a stream whose motion comes in pieces of these sizes."""
    state = stream.start(motion, seed)
    chunks = []
    for cut in cuts:
        chunks += stream.push(state, motion[:cut])
        motion = motion[cut:]
    return torch.cat([*chunks, *stream.flush(state)], dim=2)
