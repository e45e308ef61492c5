"""Trains the miniature from nothing, on drawn faces, and writes the weights that the package holds.

    python tools/train_miniature.py RUN [--output personalive_core/miniature] [--stop-after SECONDS]
    python tools/train_miniature.py RUN --measure-speed

RUN keeps the checkpoint, the curves, the sample sheets and the log. Started again with the same RUN it goes on where
it was: after `--stop-after`, after SIGTERM, after a crash. A step depends on its number alone, never on when it ran.

Four stages: the autoencoder; the motion extractor and motion encoder, told the truth; both UNets, the pose guider and
the image encoder on single pictures; the temporal modules on windows of 16 frames. Both as at inference: at its noise
levels, and going on from what was made before. Needs what `personalive[standalone]` needs and OpenCV; 24 minutes on one
H200.
"""

import argparse
import copy
import json
import math
import mmap
import multiprocessing
import signal
import sys
import time
from collections import defaultdict
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from drawn import (
    Pose,
    canonical_keypoints,
    draw,
    perform,
    random_character,
    random_pose,
    right_answer,
    warm_up_answers,
)
from personalive_core.config import (
    CHUNK,
    LATENT_SCALE,
    PIXELS_PER_LATENT,
    WARM_UP,
    WINDOW,
    ModelConfig,
    MotionEncoderConfig,
    MotionExtractorConfig,
    PoseGuiderConfig,
    UNetConfig,
)
from personalive_core.media.pictures import contact_sheet
from personalive_core.motion.keypoints import (
    BOX_GRID,
    draw_keypoint_map,
    face_boxes,
    fill_empty_boxes,
    retarget,
    transform_keypoints,
)
from personalive_core.networks.attention import pytorch_attention
from personalive_core.networks.denoising_unet import Conditioning, DenoisingUNet
from personalive_core.networks.head_pose import HeadPose
from personalive_core.networks.motion_encoder import MotionEncoder
from personalive_core.networks.motion_extractor import GlobalResponseNorm, LayerNorm, MotionExtractor
from personalive_core.networks.pose_guider import PoseGuider
from personalive_core.networks.reference_unet import ReferenceUNet
from personalive_core.pipeline import Pipeline, clip_pixels
from personalive_core.sampling.schedule import Schedule, alphas_cumprod
from personalive_core.weights.find import SIZES_FILE, find_weights

SIZE = 128  # pixels
LATENT_SIDE = SIZE // PIXELS_PER_LATENT
FRAMES = 32  # of a take: two windows
EXPRESSION = slice(6, 13)  # of a pose: gaze, blink, brows, mouth, smile, pucker
SHORTEST, LONGEST = 8, 40  # windows that streams may have in training, at its begin and at its end
HALF_SCALE = 4096.0  # of losses, so that their gradients are no smaller than 16-bit floats can be
FIRST_SEED = 1_000_000  # of takes; tests, demo and sample sheets use smaller ones

CONFIG = ModelConfig(
    unet=UNetConfig(channels=(48, 64), layers=1, heads=4, norm_groups=4, image_embeds_width=48),
    motion_encoder=MotionEncoderConfig(
        image_size=96,
        stem_channels=32,
        channels=48,
        hourglass_depth=3,
        attention_width=64,
        norm_groups=8,
        landmarks=32,
    ),
    motion_extractor=MotionExtractorConfig(image_size=SIZE, depths=(1, 1, 2, 1), widths=(24, 48, 72, 128)),
    pose_guider=PoseGuiderConfig(channels=(8, 16, 32, 48), out_channels=48),
)
VAE = dict(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(64,) * 4,
    layers_per_block=1,
    latent_channels=4,
    scaling_factor=LATENT_SCALE,
    sample_size=SIZE,
)
IMAGE_ENCODER = dict(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=224,
    patch_size=16,
    projection_dim=CONFIG.unet.image_embeds_width,
)


@dataclass(frozen=True)
class Stage:
    name: str  # of the method of `Run` that says what is wrong
    networks: tuple[str, ...]  # which are trained
    steps: int
    batch: int  # pictures, or takes in the stages of the UNets
    rate: float  # of learning, at most
    pools: int  # how often new takes come
    kept: int = CHUNK  # frames of a take; the fewer, the more takes are drawn
    half: bool = True  # in 16-bit floats, on a GPU
    temporal: bool = False  # the temporal modules alone, else all but these


GENERATOR = ("reference_unet", "denoising_unet", "pose_guider", "image_encoder")


@dataclass(frozen=True)
class Plan:
    """How long and how large; the default is what the command does."""

    stages: tuple[Stage, ...] = (
        Stage("autoencoder", ("vae",), steps=2500, batch=64, rate=1e-3, pools=5),
        Stage(
            "motion",
            ("motion_extractor", "motion_encoder", "expression"),
            steps=3500,
            batch=256,
            rate=2e-3,
            pools=5,
            half=False,
        ),
        Stage("single_pictures", GENERATOR, steps=11000, batch=128, rate=2e-3, pools=30),
        Stage("windows", GENERATOR, steps=2500, batch=16, rate=1e-3, pools=6, kept=FRAMES, temporal=True),
    )
    pictures: int = 67584  # drawn at a time, then used until the next are drawn
    workers: int = 15

    def takes(self, pool: int) -> tuple[int, int]:
        """How many there are in a pool, and how many frames each keeps."""
        for stage in self.stages:
            if pool < stage.pools:
                break
            pool -= stage.pools
        return self.pictures // (2 + 2 * stage.kept), stage.kept


SMOKE = Plan(
    tuple(replace(stage, steps=4, batch=2, pools=2) for stage in Plan().stages),
    pictures=4 * (2 + 2 * FRAMES),
    workers=1,
)


# Takes: what is drawn


class Takes:
    """A pool of takes in memory that the drawing processes share.

    The pictures of a take are the portrait, the driver's first frame, the kept frames of the driver, and as many right
    answers.
    """

    def __init__(self, takes: int, kept: int):
        def shared(*shape: int, dtype) -> np.ndarray:
            memory = mmap.mmap(-1, math.prod(shape) * np.dtype(dtype).itemsize)
            return np.frombuffer(memory, dtype).reshape(shape)

        self.pictures = shared(takes, 2 + 2 * kept, SIZE, SIZE, 3, dtype=np.uint8)
        self.poses = shared(takes, 2 + 2 * kept, len(astuple(Pose())), dtype=np.float32)
        self.keypoints = shared(takes, 2, CONFIG.motion_extractor.keypoints, 3, dtype=np.float32)
        self.begins = shared(takes, dtype=np.uint8)  # whether the take begins with the warm-up
        self.kept = shared(takes, kept, dtype=np.int64)  # which frames of the take

    def draw(self, index: int, seed: int) -> None:
        """One portrait, one driver who is somebody else, and the right answers."""
        random = np.random.default_rng(seed)
        portrait, driver = (random_character(int(s)) for s in random.integers(FIRST_SEED, 2**31, 2))
        pose = random_pose(int(random.integers(FIRST_SEED, 2**31)))
        performance = perform(int(random.integers(FIRST_SEED, 2**31)), 200, random.uniform(12, 30))
        begins = bool(random.random() < 0.25)
        if begins:
            driving = performance[: FRAMES - WARM_UP]
            first = driving[0]
            answers = warm_up_answers(pose, first) + [right_answer(pose, p, first) for p in driving]
            driving = [first] * WARM_UP + driving
        else:
            start = int(random.integers(len(performance) - FRAMES))
            driving, first = performance[start : start + FRAMES], performance[int(random.integers(len(performance)))]
            answers = [right_answer(pose, p, first) for p in driving]
        kept = np.sort(random.choice(FRAMES, self.kept.shape[1], replace=False))
        poses = [pose, first, *(driving[i] for i in kept), *(answers[i] for i in kept)]
        self.begins[index], self.kept[index] = begins, kept
        self.keypoints[index] = canonical_keypoints(portrait), canonical_keypoints(driver)
        self.poses[index] = [astuple(p) for p in poses]
        for i, p in enumerate(poses):
            by_portrait = i == 0 or i >= 2 + len(kept)
            self.pictures[index, i] = draw(portrait if by_portrait else driver, p, SIZE)


class Drawing:
    """Processes that draw the next pool while the last one is trained on. Make it before a GPU is used."""

    def __init__(self, plan: Plan):
        self.plan, self.asked = plan, None
        every = {(plan.pictures // (2 + 2 * stage.kept), stage.kept) for stage in plan.stages}
        self.pools = {size: [Takes(*size), Takes(*size)] for size in every}
        context = multiprocessing.get_context("fork")
        self.todo, self.done = context.Queue(), context.Queue()
        self.todo.cancel_join_thread()
        for _ in range(plan.workers):
            context.Process(target=self._work, daemon=True).start()

    def _work(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        cv2.setNumThreads(1)
        while True:
            pool, index = self.todo.get()
            try:
                self._takes(pool).draw(index, FIRST_SEED + 1_000_000 * pool + index)
            except Exception as error:
                self.done.put(repr(error))
                raise
            self.done.put(None)

    def _takes(self, pool: int) -> Takes:
        return self.pools[self.plan.takes(pool)][pool % 2]

    def ask(self, pool: int) -> None:
        self.asked = pool
        for index in range(self.plan.takes(pool)[0]):
            self.todo.put((pool, index))

    def pool(self, number: int) -> Takes:
        """Waits until it is drawn, and has the next one begun. Valid until the call after the next."""
        if self.asked != number:
            if self.asked is not None:
                self._wait()
            self.ask(number)
        self._wait()
        self.ask(number + 1)
        return self._takes(number)

    def _wait(self) -> None:
        for _ in range(self.plan.takes(self.asked)[0]):
            if error := self.done.get():
                raise RuntimeError(f"a take could not be drawn: {error}")


# Networks


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's, but for the few frames of a window written out: its kernels are made for long sequences."""
    if k.shape[-2] > WINDOW:
        return pytorch_attention(q, k, v)
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def build(seed: int = 0) -> dict[str, nn.Module]:
    """All networks, ready to be trained, float32 on the CPU. "expression" reads tokens and is not kept."""
    torch.manual_seed(seed)
    unet, tokens = CONFIG.unet, CONFIG.motion_encoder.tokens * CONFIG.motion_encoder.token_width
    networks: dict[str, nn.Module] = {
        "vae": AutoencoderKL(**VAE),
        "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE_ENCODER)),
        "reference_unet": ReferenceUNet(unet),
        "denoising_unet": DenoisingUNet(unet, attention=attention),
        "motion_encoder": MotionEncoder(CONFIG.motion_encoder),
        "motion_extractor": MotionExtractor(CONFIG.motion_extractor),
        "pose_guider": PoseGuider(CONFIG.pose_guider),
        "expression": nn.Linear(tokens, EXPRESSION.stop - EXPRESSION.start),
    }
    for name, network in networks.items():
        for path, module in network.named_modules():
            if isinstance(module, LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, GlobalResponseNorm):
                nn.init.zeros_(module.gamma)
                nn.init.zeros_(module.beta)
            elif name.endswith("unet") and path.endswith(("proj_out", "conv2")):
                nn.init.zeros_(module.weight)  # each residual branch begins as nothing
                nn.init.zeros_(module.bias)
    _let_noise_through(networks["denoising_unet"], networks["pose_guider"])
    detector = networks["motion_extractor"].detector
    nn.init.constant_(detector.fc_scale.bias, 0.55)
    with torch.no_grad():
        networks["vae"].quant_conv.bias[VAE["latent_channels"] :] -= 6  # latents begin with little noise
    return networks


@torch.no_grad()
def _let_noise_through(unet: DenoisingUNet, pose_guider: PoseGuider) -> None:
    """The denoising UNet begins by giving back the noisy latents, which is nearly right at the first level. There an
    error in the noise is one in the picture that is 66 times as large, and a network this small learns to copy late.

    The latents and their negatives go into the first channels, from there over the last skip into the last norm, and
    are subtracted: silu(x) - silu(-x) = x. Large constants in the same group see to it that the norm divides by nearly
    the same for each picture.
    """
    latent, group, constant = unet.conv_in.in_channels, unet.conv_norm_out.num_channels // CONFIG.unet.norm_groups, 6.0
    last = unet.up_blocks[-1].resnets[-1].conv_shortcut
    from_skip = last.in_channels - unet.conv_in.out_channels
    for layer in (unet.conv_in, pose_guider.conv_out_modify, last):
        layer.weight[:group], layer.bias[:group] = 0, 0
    unet.conv_out.weight.zero_()
    unet.conv_out.bias.zero_()
    unet.conv_in.bias[2 * latent : group : 2], unet.conv_in.bias[2 * latent + 1 : group : 2] = constant, -constant
    deviation = math.sqrt((2 * latent + (group - 2 * latent) * constant**2) / group)
    for channel in range(group):
        last.weight[channel, from_skip + channel] = 1
    for channel in range(latent):
        for copied, sign in ((channel, 1), (channel + latent, -1)):
            unet.conv_in.weight[copied, channel, 1, 1] = sign
            unet.conv_out.weight[channel, copied, 1, 1] = sign * deviation


@dataclass
class Group:
    """Parameters of one shape as one tensor: many small operations are what takes the time."""

    indices: list[int]
    is_matrix: bool
    value: Tensor  # (N, ...)
    momentum: Tensor
    square: Tensor  # mean of the squared gradients; of a matrix it stays 0
    average: Tensor  # of the values


class Optimizer:
    """Muon (Jordan et al. 2024) for matrices, AdamW for vectors, first and last layers; and the average of the weights.

    Muon gives all singular values of a step about the same size, so what is rare is learnt as fast as what is common.
    Gradients are scaled back, and clipped to a norm of 1; those that overflowed count as none. A GPU replays a step as
    one graph.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], running: list[nn.Parameter], scale: float):
        """`running` are those that the networks run with, and whose gradients are `scale` times too large."""
        self.parameters, self.running, self.scale = list(parameters.values()), running, scale
        self.gradients = [torch.zeros_like(p) for p in self.parameters]
        indices = defaultdict(list)
        for i, (name, parameter) in enumerate(parameters.items()):
            indices[parameter.shape, _is_matrix(name, parameter)].append(i)
        self.groups = []
        for (_, is_matrix), same in indices.items():
            value = torch.stack([self.parameters[i].detach() for i in same])
            zeros = torch.zeros_like(value)
            self.groups.append(Group(same, is_matrix, value, zeros.clone(), zeros, value.clone()))
        self.rate, self.count = (torch.zeros((), device=self.gradients[0].device) for _ in range(2))
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Takes the gradients of the running parameters, and gives these their new values."""
        given = [(kept, p.grad) for kept, p in zip(self.gradients, self.running, strict=True) if p.grad is not None]
        torch._foreach_copy_(*map(list, zip(*given, strict=True)))
        self.rate.fill_(rate)
        self.calls += 1
        if self.rate.is_cuda and self.calls == 3:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._update()
        if self.graph:
            self.graph.replay()
        else:
            self._update()

    def _update(self) -> None:
        self.count += 1
        norm = torch.stack(torch._foreach_norm(self.gradients)).norm() / self.scale
        factor = (1 / norm).clamp(max=1) / self.scale
        keep = ((1 + self.count) / (10 + self.count)).clamp(max=0.999)
        for group in self.groups:
            gradient = torch.stack([self.gradients[i] for i in group.indices])
            gradient = torch.where(norm.isfinite(), gradient * factor, 0)
            if group.is_matrix:
                group.momentum.lerp_(gradient, 0.05)
                change = 0.6 * _same_size_in_all_directions(gradient.lerp(group.momentum, 0.95))
            else:
                group.momentum.lerp_(gradient, 0.1)
                group.square.lerp_(gradient**2, 0.01)
                change = group.momentum / (1 - 0.9**self.count)
                change = change / ((group.square / (1 - 0.99**self.count)).sqrt() + 1e-8)
            decay = 0.1 if group.is_matrix else 0.01
            group.value.mul_(1 - decay * self.rate).sub_(self.rate * change)
            group.average.lerp_(group.value, 1 - keep)
            for parameters in (self.parameters, self.running):
                torch._foreach_copy_([parameters[i] for i in group.indices], group.value.unbind())

    @torch.no_grad()
    def use_average(self) -> None:
        for group in self.groups:
            torch._foreach_copy_([self.parameters[i] for i in group.indices], group.average.unbind())

    def state(self) -> dict:
        """What `resume` takes; the values are those of the networks."""
        kept = [{"momentum": g.momentum, "square": g.square, "average": g.average} for g in self.groups]
        return {"count": self.count, "groups": kept}

    def resume(self, state: dict) -> None:
        self.count.copy_(state["count"])
        for group, kept in zip(self.groups, state["groups"], strict=True):
            for name, tensor in kept.items():
                getattr(group, name).copy_(tensor)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Muon is not for first and last layers, nor for that which lets the noise through."""
    others = ("conv_in", "conv_out", "time_embedding", ".embeddings.", "up_blocks.1.resnets.1.conv_shortcut")
    return parameter.ndim >= 2 and not any(part in name for part in others)


def _same_size_in_all_directions(matrices: Tensor) -> Tensor:
    """(N, R, ...) as N matrices -> the same with singular values of 0.7 to 1.2 times what makes the root mean square
    of an element 1: Newton-Schulz iterations, with the coefficients that get there in five."""
    x = matrices.flatten(2)
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)).bfloat16()
    for _ in range(5):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    x = x.float() * max(x.shape[1:]) ** 0.5
    return (x.mT if is_tall else x).reshape(matrices.shape)


class Nothing(nn.Module):
    """In place of a temporal module that does nothing yet."""

    def forward(self, h: Tensor, frames: int) -> Tensor:
        return h


def _leave_out_temporal_modules(unet: DenoisingUNet) -> None:
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        level.temporal_modules = nn.ModuleList(Nothing() for _ in level.temporal_modules)


class Generator(nn.Module):
    """The networks that make the pictures, as one function of tensors, which a GPU can replay as one graph."""

    def __init__(self, networks: dict[str, nn.Module]):
        super().__init__()
        self.networks = nn.ModuleDict({name: networks[name] for name in GENERATOR})

    def forward(
        self,
        portraits: Tensor,
        references: Tensor,
        keypoint_map: Tensor,
        motion_tokens: Tensor,
        latents: Tensor,
        timesteps: Tensor,
    ) -> Tensor:
        """portraits (R, 3, 224, 224) for the image encoder, references (1 + K, R, 4, h, w) latents of the portrait and
        of K keyframes, keypoint map (1, 3, B x F, H, W), motion tokens (B, F, 32, 16), latents (B, 4, F, h, w),
        timesteps (F,) -> noise (B, 4, F, h, w). There may be a portrait for each window or for each frame.

        What inference shares between the frames of a window stands here once for each of them.
        """
        denoising_unet, batch = self.networks["denoising_unet"], len(portraits)
        frames = latents.shape[0] * latents.shape[2]
        embeds = self.networks["image_encoder"](portraits).image_embeds[:, None]
        features = self.networks["reference_unet"](references.flatten(0, 1), embeds.repeat(len(references), 1, 1))
        first, *keyframes = (
            {path: x[i : i + batch] for path, x in features.items()} for i in range(0, batch * len(references), batch)
        )
        conditioning = denoising_unet.condition(embeds, first)
        for keyframe in keyframes:
            conditioning = denoising_unet.add_keyframe(conditioning, keyframe)

        def each_frame(x: Tensor) -> Tensor:
            return x.repeat_interleave(frames // batch, 0)

        conditioning = Conditioning(
            cross={path: each_frame(x) for path, x in conditioning.cross.items()},
            keys_values={path: (each_frame(k), each_frame(v)) for path, (k, v) in conditioning.keys_values.items()},
        )
        pose_features = rearrange(
            self.networks["pose_guider"](keypoint_map), "1 c (b f) h w -> b c f h w", b=len(latents)
        )
        return denoising_unet(latents, timesteps, conditioning, motion_tokens, pose_features)


def fold_latent_scale(vae: AutoencoderKL, latents: Tensor) -> None:
    """Changes the autoencoder's first and last 1x1 convolutions so that `latents` (N, 4, h, w), its means as they
    are, would come out with mean 0 and deviation 1 / 0.18215 in each channel; its pictures stay the same."""
    mean, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) * LATENT_SCALE
    channels = len(mean)
    with torch.no_grad():
        quant, post = vae.quant_conv, vae.post_quant_conv
        quant.weight[:channels] /= scale[:, None, None, None]
        quant.bias[:channels] = (quant.bias[:channels] - mean) / scale
        quant.bias[channels:] -= 2 * scale.log()
        post.bias += (post.weight * mean[:, None, None]).sum((1, 2, 3))
        post.weight *= scale[:, None, None]


# From takes to batches


def head_pose(poses: Tensor, keypoints: Tensor) -> HeadPose:
    """The true head of poses (F, 13), keypoints (F, 21, 3)."""
    translation = F.pad(poses[:, 3:5], (0, 1))
    yaw, pitch, roll = poses[:, :3].unbind(1)
    return HeadPose(torch.stack([pitch, yaw, roll], 1), translation, poses[:, 5:6], keypoints)


def importance(pose: HeadPose, side: int) -> Tensor:
    """(F, 1, side, side): how much an error counts; eyes and mouth are few pixels, and most of what one looks at."""
    left_eye, right_eye, left, right = (transform_keypoints(pose)[:, i, :2] for i in (3, 4, 15, 20))
    points = torch.stack([left_eye, right_eye, left, right, (left + right) / 2], 1)
    line = (torch.arange(side, device=points.device) + 0.5) * (2 / side) - 1
    width = 2 * (0.26 * pose.scale[:, :, None]) ** 2
    x = torch.exp(-((line - points[:, :, :1]) ** 2) / width)
    y = torch.exp(-((line - points[:, :, 1:]) ** 2) / width)
    return 1 + 3 * torch.einsum("fpx,fpy->fyx", x, y).clamp(max=1)[:, None]


def crop_squares(frames: Tensor, boxes: Tensor, size: int) -> Tensor:
    """`keypoints.crop_faces` of all frames at once: the same crops (F, 3, size, size) in [-1, 1]."""
    height, width = frames.shape[-2:]
    x1, y1, x2, y2 = boxes.unbind(-1)
    steps = (torch.arange(size, device=frames.device) + 0.5) / size

    def positions(low: Tensor, high: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        low, high = low * side // BOX_GRID, -(-high * side // BOX_GRID)
        at = (steps * (high - low)[:, None] - 0.5).clamp(min=0)
        before = at.floor()
        after = torch.minimum(before + 1, (high - low - 1)[:, None])
        return (low[:, None] + before).long(), (low[:, None] + after).long(), at - before

    left, right, across = positions(x1, x2, width)
    top, bottom, down = positions(y1, y2, height)
    frame = torch.arange(len(frames), device=frames.device)[:, None, None]
    pixels = frames.permute(0, 2, 3, 1)

    def row(y: Tensor) -> Tensor:
        a, b = pixels[frame, y[:, :, None], left[:, None]], pixels[frame, y[:, :, None], right[:, None]]
        return torch.lerp(a, b, across[:, None, :, None])

    return torch.lerp(row(top), row(bottom), down[:, :, None, None]).permute(0, 3, 1, 2) * 2 - 1


@dataclass
class Pool:
    """Takes on the device, and what frozen networks make of them."""

    pictures: Tensor  # uint8 (N, 2 + 2 K, side, side, 3)
    poses: Tensor  # (N, 2 + 2 K, 13)
    keypoints: Tensor  # (N, 2, 21, 3)
    begins: Tensor  # (N,) bool
    kept: Tensor  # (N, K) which frames of the take
    portraits: Tensor | None = None  # (N, 3, 224, 224) as the image encoder sees them
    latents: Tensor | None = None  # (N, 1 + K, 4, h, w) scaled: the portrait and the right answers
    heads: HeadPose | None = None  # N x (2 + K) as extracted: the portrait, the driver's first frame, the driver
    tokens: Tensor | None = None  # (N, 2 + K, 32, 16) motion tokens of the same

    @property
    def first_answer(self) -> int:
        return 2 + self.kept.shape[1]

    def pixels(self, take: Tensor, picture: Tensor) -> Tensor:
        """(F, 3, side, side) in [0, 1]."""
        return self.pictures[take, picture].permute(0, 3, 1, 2).float() / 255

    def true_heads(self, take: Tensor, picture: Tensor) -> HeadPose:
        is_driver = ((picture > 0) & (picture < self.first_answer)).long()
        return head_pose(self.poses[take, picture], self.keypoints[take, is_driver])

    def head(self, take: Tensor, number: Tensor) -> HeadPose:
        """As extracted, of the flat index of (take, number)."""
        index = (take * self.first_answer + number).flatten()
        return HeadPose(*(value[index] for value in vars(self.heads).values()))


@dataclass
class Window:
    """What the generator is given and told for windows of B takes and F frames, but for the noisy latents."""

    portraits: Tensor  # (B, 3, 224, 224) for the image encoder
    references: Tensor  # (1 + K, B, 4, h, w) latents: the portrait and K keyframes
    keypoint_map: Tensor  # (1, 3, B x F, H, W)
    motion_tokens: Tensor  # (B, F, 32, 16)
    answers: Tensor  # (B, 4, F, h, w) latents
    weights: Tensor  # (B, 1, F, h, w) importance
    take: Tensor  # (B,)
    slots: Tensor  # (B, F)


@dataclass
class Streams:
    """Streams under way, B of them, or single pictures: what inference keeps from one window to the next."""

    take: Tensor  # (B,)
    start: Tensor  # (B,) the take's frame at which the window begins; of pictures 0
    left: Tensor  # (B,) windows, of a picture steps, until it ends and another begins in its place
    latents: Tensor  # (B, 4, 12, h, w), of pictures (B, 4, 4, h, w)

    def with_new(self, begun: "Streams") -> "Streams":
        """Those that have ended are replaced."""
        ended = self.left == 0

        def next_of(ours: Tensor, new: Tensor) -> Tensor:
            return torch.where(ended.view(-1, *[1] * (new.ndim - 1)), new, ours)

        return Streams(*map(next_of, vars(self).values(), vars(begun).values()))


@dataclass
class Run:
    """All that is kept from step to step."""

    folder: Path
    plan: Plan
    device: torch.device
    networks: dict[str, nn.Module] = field(default_factory=build)
    stage: int = 0
    step: int = 0  # done in this stage
    seconds: float = 0.0  # of training, all runs together
    history: list = field(default_factory=list)  # (stage, step, {name: value})
    streams: Streams | None = None  # under way

    def __post_init__(self) -> None:
        for network in self.networks.values():
            network.to(self.device, memory_format=torch.channels_last)
        self.schedule, self.alphas = Schedule(), alphas_cumprod().to(self.device)
        self.frames = torch.arange(WINDOW, device=self.device)
        self._begin_stage()

    @property
    def now(self) -> Stage:
        return self.plan.stages[self.stage]

    @property
    def steps_per_pool(self) -> int:
        return -(-self.now.steps // self.now.pools)

    @property
    def pool_number(self) -> int:
        return sum(stage.pools for stage in self.plan.stages[: self.stage]) + self.step // self.steps_per_pool

    @property
    def is_done(self) -> bool:
        return self.stage == len(self.plan.stages)

    def _begin_stage(self) -> None:
        if self.is_done:
            return
        for name, network in self.networks.items():
            is_trained = name in self.now.networks
            network.train(is_trained)
            # All of it: PyTorch 2.13 crashes on a CPU in the backward pass of group norms whose weights need none.
            network.requires_grad_(is_trained)
            for module in network.modules():
                if isinstance(module, nn.LayerNorm):
                    module.requires_grad_(False)
        parameters = self._parameters(self.networks)
        self.is_half = self.now.half and self.device.type == "cuda"
        # Copies of the networks run: in 16-bit floats, without what does nothing yet. What is kept and changed is the
        # originals.
        self.running = self.networks
        has_idle = self.now.networks == GENERATOR and not self.now.temporal
        if self.is_half or has_idle:
            self.running = copy.deepcopy(self.networks)
        if self.is_half:
            for network in self.running.values():
                network.half()
        if has_idle:
            _leave_out_temporal_modules(self.running["denoising_unet"])
        self.generators: dict[int, Generator] = {}
        running = list(self._parameters(self.running).values())
        self.optimizer = Optimizer(parameters, running, HALF_SCALE if self.is_half else 1.0)

    def _parameters(self, networks: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
        """Those that the stage trains. Layer norms stay as they are: the products after them can do all that they can,
        and their gradients take a tenth of a step."""
        return {
            f"{name}.{path}.{key}": parameter
            for name in self.now.networks
            for path, module in networks[name].named_modules()
            if not isinstance(module, nn.LayerNorm) and (".temporal_modules." in path) == self.now.temporal
            for key, parameter in module.named_parameters(recurse=False)
        }

    # Keeping and finding again

    def save(self) -> None:
        state = {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizer": self.optimizer.state(),
            "counts": (self.stage, self.step, self.seconds),
            "history": self.history,
            "streams": self.streams and vars(self.streams),
        }
        partial = self.folder / "checkpoint.part"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        self.stage, self.step, self.seconds = state["counts"]
        self.history = state["history"]
        self.streams = state["streams"] and Streams(**state["streams"])
        self._begin_stage()
        if not self.is_done:
            self.optimizer.resume(state["optimizer"])

    # Training

    def train(self, drawing: Drawing, should_stop, log) -> None:
        """Until it is done, or `should_stop`."""
        pool, number, begun = None, None, time.perf_counter()
        while not self.is_done and not should_stop():
            if number != self.pool_number:
                waited, number = time.perf_counter(), self.pool_number
                takes = drawing.pool(number)
                waited = time.perf_counter() - waited
                pool = self.load(takes)
                log(f"{self.now.name} {self.step}: pool {number}, waited {waited:.1f} s for it")
            values = self.train_step(pool)
            if self.step % 50 == 0 or self.step == self.now.steps:
                now = time.perf_counter()
                self.seconds, begun = self.seconds + now - begun, now
                values = {name: float(value) for name, value in values.items()}
                values = {name: round(value, 6) for name, value in values.items() if not math.isnan(value)}
                self.history.append((self.now.name, self.step, values))
                log(f"{self.now.name} {self.step}/{self.now.steps} {self.seconds:.0f} s {json.dumps(values)}")
            if self.step == self.now.steps:
                name = self.now.name
                self.end_stage(pool)
                self.stage, self.step, number = self.stage + 1, 0, None
                self._begin_stage()
                self.save()
                self.sheet(name, pool)
        self.seconds += time.perf_counter() - begun
        self.save()

    def train_step(self, pool: Pool) -> dict[str, Tensor]:
        """One change of the weights -> what is worth a curve."""
        random = torch.Generator(self.device).manual_seed(1_000_003 * self.stage + self.step)
        stage = self.now
        warm = min(1.0, (self.step + 1) / 100)
        rate = stage.rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * self.step / stage.steps)) / 2)
        for parameter in self.optimizer.running:
            parameter.grad = None
        loss, values = getattr(self, stage.name)(pool, random)
        (loss * self.optimizer.scale).backward()
        self.optimizer.step(rate)
        self.step += 1
        return {name: value.detach() for name, value in values.items()}

    def end_stage(self, pool: Pool) -> None:
        """The averages become the weights."""
        self.optimizer.use_average()
        if self.now.name == "autoencoder":
            fold_latent_scale(self.networks["vae"], self._vae_means(self._some(pool, 512)))
        if self.now.name == "motion":
            self._settle_batch_norms(pool)

    def _half(self, x: Tensor) -> Tensor:
        """As the running networks want it."""
        return x.half() if self.is_half else x

    def _indices(self, random: torch.Generator, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=random, device=self.device)

    def _chances(self) -> list[float]:
        """Three numbers in [0, 1) for this step, without waiting for the device."""
        return np.random.default_rng((self.stage, self.step)).random(3).tolist()

    def _noise(self, random: torch.Generator, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random, device=self.device)

    def _some(self, pool: Pool, count: int) -> Tensor:
        random = torch.Generator(self.device).manual_seed(1)
        return pool.pixels(
            self._indices(random, len(pool.begins), count), self._indices(random, pool.pictures.shape[1], count)
        )

    def _any_pictures(self, pool: Pool, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Takes and numbers of a batch of pictures of all kinds."""
        batch = self.now.batch
        return self._indices(random, len(pool.begins), batch), self._indices(random, pool.pictures.shape[1], batch)

    # Stage 1

    def autoencoder(self, pool: Pool, random: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        vae = self.running["vae"]
        take, picture = self._any_pictures(pool, random)
        pixels = (pool.pixels(take, picture) * 2 - 1).contiguous(memory_format=torch.channels_last)
        weights = importance(pool.true_heads(take, picture), SIZE)
        posterior = vae.encode(self._half(pixels)).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        result = vae.decode(self._half(mean + deviation * self._noise(random, mean))).sample
        difference = result.float() - pixels
        edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
        loss = (weights * (difference.abs() + 4 * difference**2)).mean() + edges
        spread = (mean**2 + deviation**2 - 1 - 2 * deviation.log()).mean() / 2
        return loss + 1e-4 * spread, {"loss": loss, "psnr": -10 * ((difference**2).mean() / 4).log10()}

    # Stage 2

    def motion(self, pool: Pool, random: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.now.batch
        take, picture = self._any_pictures(pool, random)
        pixels, truth = pool.pixels(take, picture), pool.true_heads(take, picture)
        tint = 1 + 0.1 * (2 * torch.rand(batch, 3, 1, 1, generator=random, device=self.device) - 1)
        pixels = (pixels * tint).clamp(0, 1)
        found = self.networks["motion_extractor"](pixels)
        angles = (found.angles - truth.angles).abs().mean()
        points = (transform_keypoints(found) - transform_keypoints(truth)).abs().mean()
        shift = (found.translation - truth.translation).abs().mean() + (found.scale - truth.scale).abs().mean()
        canonical = (found.keypoints - truth.keypoints).abs().mean()

        boxes = face_boxes(transform_keypoints(truth))
        boxes = (boxes + self._indices(random, 25, batch, 4) - 12).clamp(0, BOX_GRID - 1)
        boxes[:, :2] = boxes[:, :2].clamp(max=BOX_GRID - 17)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 16)
        tokens, loss = self._tokens(crop_squares(pixels, boxes, CONFIG.motion_encoder.image_size))
        expression = self._expression_loss(tokens, pool.poses[take, picture][:, EXPRESSION])
        total = angles / 8 + 10 * points + 10 * shift + 3 * canonical + 5 * expression + loss
        return (
            total,
            {"degrees": angles, "points": points, "shift and scale": shift, "expression": expression, "size": loss},
        )

    def _tokens(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (F, 3, side, side) -> motion tokens (F, 32, 16), and a loss that gives them their size: two faces are
        then about 16 apart, and those that differ much more than 17, the keyframes' threshold."""
        tokens = self.networks["motion_encoder"](faces)[0]
        return tokens, 0.2 * (tokens.var(0).mean() - 0.25) ** 2

    def _expression_loss(self, tokens: Tensor, truth: Tensor) -> Tensor:
        """Tokens (F, 32, 16), truth (F, 7). The gaze of closed eyes is nobody's to know."""
        weights = torch.ones_like(truth)
        weights[:, :2] = 1 - truth[:, 2:3]
        return (weights * (self.networks["expression"](tokens.flatten(1)) - truth) ** 2).mean()

    def _settle_batch_norms(self, pool: Pool) -> None:
        """The statistics of the averaged weights, over many batches."""
        norms = [m for m in self.networks["motion_encoder"].modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        random = torch.Generator(self.device).manual_seed(2)
        for _ in range(16):
            self.motion(pool, random)
        for norm in norms:
            norm.momentum = 0.1

    # Stages 3 and 4

    def load(self, takes: Takes) -> Pool:
        """Onto the device; for the UNets with what the networks say that are frozen by then."""
        pool = Pool(
            *(torch.from_numpy(x).to(self.device) for x in (takes.pictures, takes.poses, takes.keypoints)),
            torch.from_numpy(takes.begins).to(self.device).bool(),
            torch.from_numpy(takes.kept).to(self.device),
        )
        if self.now.networks != GENERATOR:
            return pool
        portraits, latents, heads, tokens = [], [], [], []
        extractor, encoder = self.networks["motion_extractor"], self.networks["motion_encoder"]
        for pictures in pool.pictures.split(max(1, 1024 // pool.pictures.shape[1])):
            pixels = pictures.permute(0, 1, 4, 2, 3).float() / 255
            drawn = torch.cat([pixels[:, :1], pixels[:, pool.first_answer :]], 1)
            means = self._vae_means(drawn.flatten(0, 1)).unflatten(0, drawn.shape[:2])
            portraits.append(self._half(clip_pixels(pixels[:, 0])))
            latents.append(means * LATENT_SCALE)
            seen = pixels[:, : pool.first_answer].flatten(0, 1)
            heads.append(extractor(seen))
            boxes = fill_empty_boxes(face_boxes(transform_keypoints(heads[-1])), None)
            tokens.append(encoder(crop_squares(seen, boxes, CONFIG.motion_encoder.image_size))[0])
        pool.portraits, pool.latents, pool.heads = torch.cat(portraits), torch.cat(latents), HeadPose.cat(heads)
        pool.tokens = torch.cat(tokens).unflatten(0, (len(pool.begins), -1))
        return pool

    @torch.no_grad()
    def _vae_means(self, pixels: Tensor) -> Tensor:
        """(N, 3, side, side) in [0, 1] -> (N, 4, h, w) unscaled."""
        parts = (pixels * 2 - 1).split(128)
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            return torch.cat([self.networks["vae"].encode(part).latent_dist.mean.float() for part in parts])

    def window(self, pool: Pool, take: Tensor, slots: Tensor, keyframes: Tensor) -> Window:
        """Slots (B, F) of takes (B,), with others (B, K) as keyframes."""
        many = repeat(take, "b -> b f", f=slots.shape[1])
        reference = pool.latents[take, 0]

        # The driver, and in the warm-up what lies between the portrait and the driver's first frame
        number = pool.kept[take[:, None], slots]
        is_warm_up = pool.begins[take][:, None] & (number < WARM_UP)
        weight = number / WARM_UP
        portrait, first = pool.tokens[take, :1], pool.tokens[take, 1:2]
        between = torch.lerp(portrait, first, weight[:, :, None, None])
        tokens = torch.where(is_warm_up[:, :, None, None], between, pool.tokens[take[:, None], slots + 2])

        portrait, first = pool.head(many, torch.zeros_like(many)), pool.head(many, torch.ones_like(many))
        pose = retarget(portrait, pool.head(many, slots + 2), first)
        angles = torch.lerp(portrait.angles, first.angles, weight.reshape(-1, 1))
        warm = is_warm_up.reshape(-1, 1)
        pose = replace(
            pose,
            angles=torch.where(warm, angles, pose.angles),
            translation=torch.where(warm, portrait.translation, pose.translation),
        )
        return Window(
            portraits=pool.portraits[take],
            references=torch.stack([reference, *(pool.latents[take, 1 + slot] for slot in keyframes.unbind(1))]),
            keypoint_map=draw_keypoint_map(transform_keypoints(pose), SIZE, SIZE),
            motion_tokens=tokens,
            answers=rearrange(pool.latents[take[:, None], 1 + slots], "b f c h w -> b c f h w"),
            weights=self._weights(pool, take, slots),
            take=take,
            slots=slots,
        )

    def _weights(self, pool: Pool, take: Tensor, slots: Tensor) -> Tensor:
        many = repeat(take, "b -> (b f)", f=slots.shape[1])
        heads = pool.true_heads(many, slots.flatten() + pool.first_answer)
        return rearrange(importance(heads, LATENT_SIDE), "(b f) 1 h w -> b 1 f h w", b=len(take))

    def predict(self, window: Window, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents (B, 4, F, h, w) at timesteps (F,) -> the noise in them, float32.

        On a GPU the work of each number of keyframes is captured once and replayed.
        """
        floats = (window.portraits, window.references, window.keypoint_map, window.motion_tokens, latents)
        given = (*map(self._half, floats), timesteps)
        keyframes = len(window.references) - 1
        if keyframes not in self.generators:
            generator = Generator(self.running).train()
            if self.device.type == "cuda":
                # Copies, for each replay writes its inputs where these are: the schedule's timesteps must stay.
                torch.cuda.make_graphed_callables(generator, tuple(x.clone() for x in given), allow_unused_input=True)
            self.generators[keyframes] = generator
        return self.generators[keyframes](*given).float()

    def denoising_loss(self, window: Window, x0: Tensor, timesteps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of predicted pictures (B, 4, F, h, w) in latents.

        An error e in the noise is an error k e in the picture, k from 0.03 at the last level to 66 at the first. The
        loss is w (k e)^2 with w = 1 / k, halfway between that of the noise and that of the picture; less at the first
        level, where most of what can be learnt is to copy the noise more precisely, and never more than 1.
        """
        error = (window.weights * (x0 - window.answers) ** 2).mean((0, 1, 3, 4)) / window.weights.mean()  # (F,)
        alphas = self.alphas[timesteps]
        k = ((1 - alphas) / alphas).sqrt()
        loss = ((k.clamp(max=12) / k**2).clamp(max=1) * error).mean()
        values = {"loss": loss}
        for level in Schedule(4).ladder[:-1]:
            there = timesteps == level
            values[f"error at {level}"] = ((error * there).sum() / there.sum()).sqrt()
        return loss, values

    def single_pictures(self, pool: Pool, random: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures on their way from noise, four of each portrait, which share a level: all as one window, whose frames
        do not see each other yet. An eighth of them go in eight steps."""
        steps = torch.where(torch.arange(self.now.batch, device=self.device) % 8 == 0, 8, 4)
        streams = self._next_pictures(pool, random, steps)
        slots = self.frames[:CHUNK].expand(self.now.batch, -1)
        window = self.window(pool, streams.take, slots, keyframes=slots[:, :0])
        window.motion_tokens = rearrange(window.motion_tokens, "b f t c -> 1 (b f) t c")
        window.answers, window.weights, latents = (
            rearrange(x, "b c f h w -> 1 c (b f) h w") for x in (window.answers, window.weights, streams.latents)
        )
        timesteps, after = (
            self._levels(steps, left).repeat_interleave(CHUNK) for left in (streams.left, streams.left - 1)
        )
        noise = self.predict(window, latents, timesteps)
        latents, x0 = self.schedule.step(latents, noise, timesteps, after)
        # The last level can change little; most are spared it.
        left = (streams.left - 1) * ((streams.left > 2) | (self._indices(random, 4, len(steps)) == 0))
        latents = rearrange(latents.detach(), "1 c (b f) h w -> b c f h w", f=CHUNK).clone()
        self.streams = Streams(streams.take, streams.start, left, latents)
        return self.denoising_loss(window, x0, timesteps)

    def _levels(self, steps: Tensor, left: Tensor) -> Tensor:
        """The timesteps of pictures that go in `steps` (B,), of which some are `left` (B,)."""
        ladders = {count: torch.tensor(Schedule(count).ladder[::-1], device=self.device) for count in (4, 8)}
        return torch.where(steps == 4, ladders[4][left.clamp(max=4)], ladders[8][left])

    def _next_pictures(self, pool: Pool, random: torch.Generator, steps: Tensor) -> Streams:
        """Those under way, and the portrait under noise in place of those that have come to their end. With a new pool,
        all are others, somewhere on the way."""
        batch = self.now.batch
        take = self._indices(random, len(pool.begins), batch)
        is_new_pool = self.streams is None or self.step % self.steps_per_pool == 0
        left = 1 + self._indices(random, 8, batch) % steps if is_new_pool else steps
        begins = (left == steps)[:, None, None, None, None]
        clean = torch.where(begins, pool.latents[take, :1], pool.latents[take, 1 : 1 + CHUNK])
        clean = rearrange(clean, "b f c h w -> 1 c (b f) h w")
        levels = self._levels(steps, left).repeat_interleave(CHUNK)
        latents = self.schedule.add_noise(clean, self._noise(random, clean), levels)
        begun = Streams(take, torch.zeros_like(take), left, rearrange(latents, "1 c (b f) h w -> b c f h w", f=CHUNK))
        return begun if is_new_pool else self.streams.with_new(begun)

    def windows(self, pool: Pool, random: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The next window of every stream. The driver does the take forth and back, without an end. In every fourth
        pool there are eight steps, so two passes a window."""
        schedule = Schedule(8 if self.step // self.steps_per_pool % 4 == 3 else 4)
        step = self.step % self.steps_per_pool % schedule.passes
        timesteps, after = (schedule.timesteps(i, self.device) for i in (step, step + 1))
        streams, choice = self._next_streams(pool, random, schedule), self._chances()
        slots = (streams.start[:, None] + self.frames) % (2 * FRAMES - 2)
        keyframes = self._indices(random, FRAMES, len(slots), _some_keyframes(choice[0]))
        window = self.window(pool, streams.take, torch.minimum(slots, 2 * FRAMES - 2 - slots), keyframes)

        latents = streams.latents
        if step == 0:
            new = window.references[0][:, :, None].expand(-1, -1, CHUNK, -1, -1)
            new = schedule.add_noise(new, self._noise(random, new), timesteps[WARM_UP:])
            latents = torch.cat([latents, new], 2)
        noise = self.predict(window, latents, timesteps)
        latents, x0 = schedule.step(latents, noise, timesteps, after)
        loss, values = self.denoising_loss(window, x0, timesteps)
        pixels = self._pixel_loss(pool, window, x0, CHUNK + int(CHUNK * choice[1]))
        latents = latents.detach().clone()
        if step == schedule.passes - 1:
            self.streams = Streams(streams.take, streams.start + CHUNK, streams.left - 1, latents[:, :, CHUNK:])
        else:
            self.streams = Streams(streams.take, streams.start, streams.left, latents)
        return loss + 0.1 * pixels, {**values, "pixels": pixels}

    def _next_streams(self, pool: Pool, random: torch.Generator, schedule: Schedule) -> Streams:
        """Those under way; where one has ended, and everywhere with a new pool, another that begins."""
        is_new_pool = self.streams is None or self.step % self.steps_per_pool == 0
        if not is_new_pool and self.streams.latents.shape[2] == WINDOW:  # between two passes
            return self.streams
        batch = self.now.batch
        take = self._indices(random, len(pool.begins), batch)
        known = rearrange(pool.latents[take, 1 : 1 + WARM_UP], "b f c h w -> b c f h w")
        known = torch.where(pool.begins[take][:, None, None, None, None], pool.latents[take, 0][:, :, None], known)
        known = schedule.add_noise(known, self._noise(random, known), schedule.warm_up_timesteps(self.device))
        longest = SHORTEST + (LONGEST - SHORTEST) * self.step // self.now.steps
        begun = Streams(take, torch.zeros_like(take), 1 + self._indices(random, longest, batch), known)
        return begun if is_new_pool else self.streams.with_new(begun)

    def _pixel_loss(self, pool: Pool, window: Window, x0: Tensor, frame: int) -> Tensor:
        """Of one frame of the second oldest chunk, after which little can change."""
        picture = window.slots[:, frame] + pool.first_answer
        weights = importance(pool.true_heads(window.take, picture), SIZE)
        decoded = self.running["vae"].decode(self._half(x0[:, :, frame] / LATENT_SCALE)).sample.float()
        difference = decoded - (pool.pixels(window.take, picture) * 2 - 1)
        return (weights * (difference.abs() + 2 * difference**2)).mean()

    # What there is to see

    @torch.no_grad()
    def sheet(self, stage: str, pool: Pool) -> None:
        """A picture of what a stage has learnt."""
        if stage == "autoencoder":
            pixels = self._some(pool, 12)
            decoded = self.networks["vae"].decode(self._vae_means(pixels)).sample
            rows = [_pictures(pixels), _pictures(decoded / 2 + 0.5)]
        elif stage == "motion":
            pixels = self._some(pool, 12)
            pose = self.networks["motion_extractor"](pixels)
            keypoint_map = draw_keypoint_map(transform_keypoints(pose), SIZE, SIZE)[0].movedim(0, 1)
            rows = [_pictures(pixels), _pictures(torch.maximum(keypoint_map, pixels * 0.5))]
        else:
            rows, _ = self.unseen(pairs=3, frames=20)
        write_png(self.folder / f"{stage}.png", contact_sheet(rows))

    def unseen(self, pairs: int, frames: int) -> tuple[list[list[np.ndarray]], dict[str, float]]:
        """Sheet and figures of characters and performances that are in no take, on the CPU as a user has it."""
        folder = self.folder / "weights"
        export(self.networks, folder)
        pipeline = Pipeline.load(find_weights(folder), "cpu")
        rows, scores = [], {"result": [], "portrait unmoved": []}
        for i in range(pairs):
            character, other, poses = random_character(2 * i), random_character(2 * i + 1), perform(i, frames)
            pose = Pose(smile=0.2)
            portrait, driving = draw(character, pose, SIZE), [draw(other, p, SIZE) for p in poses]
            answers = [draw(character, right_answer(pose, p, poses[0]), SIZE) for p in poses]
            chunks = pipeline.animate(pipeline.encode_reference(portrait), driving, hold=False)
            results = [picture for chunk in chunks for picture in chunk]
            shown = range(2, frames, -(-frames // 10))
            for name, pictures in (("driver", driving), ("result", results), ("answer", answers)):
                rows.append(
                    [portrait if name == "result" else np.full_like(portrait, 255), *(pictures[j] for j in shown)]
                )
            scores["result"].append(_psnr(results, answers))
            scores["portrait unmoved"].append(_psnr([portrait] * frames, answers))
        return rows, {name: round(float(np.mean(values)), 2) for name, values in scores.items()}


def _some_keyframes(chance: float) -> int:
    """None in half of the cases, else one, two or three."""
    return max(0, int(chance * 6) - 2)


def _psnr(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return float(10 * np.log10(255**2 / ((np.stack(a).astype(np.float32) - np.stack(b)) ** 2).mean()))


def _pictures(pixels: Tensor) -> list[np.ndarray]:
    """(N, 3, H, W) in [0, 1] -> uint8 pictures."""
    return list((pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())


def write_png(path: Path, picture: np.ndarray) -> None:
    cv2.imwrite(str(path), picture[..., ::-1])


def draw_curves(history: list, path: Path) -> None:
    """One panel a stage, one line a value, on a logarithmic scale."""
    stages = list(dict.fromkeys(stage for stage, _, _ in history))
    height, width = 300, 1200
    image = np.full((height * len(stages), width, 3), 255, np.uint8)
    for i, stage in enumerate(stages):
        entries = [(step, values) for name, step, values in history if name == stage]
        names = list(dict.fromkeys(name for _, values in entries for name in values))
        top, last = i * height, max(step for step, _ in entries)
        cv2.putText(image, stage, (8, top + 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 2, cv2.LINE_AA)
        for j, name in enumerate(names):
            points = [(step, values[name]) for step, values in entries if values.get(name, 0) > 0]
            if not points:
                continue
            steps, logs = np.array([p[0] for p in points]), np.log10([p[1] for p in points])
            low, high = logs.min(), max(logs.max(), logs.min() + 0.1)
            x, y = 300 + 880 * steps / last, top + 280 - 250 * (logs - low) / (high - low)
            hue = np.uint8([[[180 * j // len(names), 220, 190]]])
            colour = tuple(int(c) for c in cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0])
            cv2.polylines(image, [np.stack([x, y], 1).round().astype(np.int32)], False, colour, 1, cv2.LINE_AA)
            text = f"{name}: {points[0][1]:.4g} to {points[-1][1]:.4g}"
            cv2.putText(image, text, (8, top + 52 + 22 * j), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
    cv2.imwrite(str(path), image)


def export(networks: dict[str, nn.Module], folder: Path) -> None:
    """The weights in the layout of the published ones, float16, with their sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    CONFIG.write(folder / SIZES_FILE)

    def kept(network: nn.Module) -> dict[str, Tensor]:
        return {
            key: value.detach().to("cpu", torch.float16).contiguous()
            for key, value in network.state_dict().items()
            if value.is_floating_point()
        }

    def write(state_dict: dict[str, Tensor], path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        save_file(state_dict, path, metadata={"format": "pt"})

    unet = kept(networks["denoising_unet"])
    temporal = {key: value for key, value in unet.items() if ".temporal_modules." in key}
    write(temporal, folder / "temporal_module.safetensors")
    write({k: v for k, v in unet.items() if k not in temporal}, folder / "denoising_unet.safetensors")
    for name in ("reference_unet", "motion_encoder", "motion_extractor", "pose_guider"):
        write(kept(networks[name]), folder / f"{name}.safetensors")
    write(kept(networks["vae"]), folder / "vae" / "diffusion_pytorch_model.safetensors")
    networks["vae"].save_config(folder / "vae")
    write(kept(networks["image_encoder"]), folder / "image_encoder" / "model.safetensors")
    networks["image_encoder"].config.architectures = ["CLIPVisionModelWithProjection"]
    networks["image_encoder"].config.save_pretrained(folder / "image_encoder")


def measure_speed(run: Run, drawing: Drawing) -> None:
    """Seconds a step of every stage, seconds a pool, and what the plan comes to."""
    pool_seconds = []
    total = 0.0
    for stage in run.plan.stages:
        run.step = 0
        run._begin_stage()
        begun = time.perf_counter()
        takes = drawing.pool(run.pool_number)
        pool_seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        pool = run.load(takes)
        loading = time.perf_counter() - begun
        for i in range(30):
            if i == 10:
                _synchronize()
                begun = time.perf_counter()
            run.train_step(pool)
        _synchronize()
        step = (time.perf_counter() - begun) / 20
        seconds = stage.steps * step + stage.pools * loading
        total += seconds
        print(f"{stage.name}: {1000 * step:.1f} ms a step, {loading:.1f} s to load a pool, {seconds:.0f} s in all")
        run.stage += 1
    print(f"drawing: {pool_seconds[0]:.1f} s a pool; in all {total / 60:.1f} minutes")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(arguments: list[str] | None = None, plan: Plan | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder for checkpoint, curves, sheets and log")
    parser.add_argument("--output", type=Path, help="where to write the weights when all is done")
    parser.add_argument("--stop-after", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, on a CPU")
    parser.add_argument("--measure-speed", action="store_true", help="time the steps of every stage and stop")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    options.run.mkdir(parents=True, exist_ok=True)
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    plan = plan or (SMOKE if options.smoke else Plan())
    drawing = Drawing(plan)  # before anything touches the GPU
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    run = Run(options.run, plan, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if options.measure_speed:
        measure_speed(run, drawing)
        return 0
    with (options.run / "log.txt").open("a") as file:

        def log(text: str) -> None:
            print(text, flush=True)
            print(text, file=file, flush=True)

        run.resume()
        saved = time.perf_counter()

        def should_stop() -> bool:
            nonlocal saved
            if time.perf_counter() - saved > 120:
                run.save()
                saved = time.perf_counter()
            return bool(stopping) or time.perf_counter() - begun > options.stop_after

        run.train(drawing, should_stop, log)
        draw_curves(run.history, options.run / "curves.png")
        if not run.is_done:
            log(f"stopped in {run.now.name} at step {run.step}; start again to go on")
            return 0
        if options.output:
            export(run.networks, options.output)
            size = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file())
            log(f"{options.output}: {size / 1e6:.2f} MB")
        rows, figures = run.unseen(pairs=6, frames=40)
        write_png(options.run / "unseen.png", contact_sheet(rows))
        log(f"unseen, PSNR against the right answer in dB: {json.dumps(figures)}; {run.seconds:.0f} s of training")
    return 0


if __name__ == "__main__":
    sys.exit(main())
