"""The whole way without a host: diffusers' VAE and transformers' image encoder around the core."""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from .adjust import PUBLISHED, Strength
from .config import CHUNK, LATENT_SCALE
from .errors import InputError
from .held import Hold
from .keyframes import KeyframeSettings
from .motion import Motion, extract_motion
from .networks.denoising_unet import DenoisingUNet
from .networks.motion_encoder import MotionEncoder
from .networks.motion_extractor import MotionExtractor
from .networks.pose_guider import PoseGuider
from .networks.reference_unet import ReferenceUNet
from .reference import Reference, check_size, encode_reference
from .schedule import Schedule
from .stream import Stream
from .weights import WeightFiles, load_network, meta_networks

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's own
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def pick_device(name: str = "auto") -> torch.device:
    """ "auto" takes a CUDA GPU, then Apple's, then the CPU. InputError if the one asked for is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"device {name} cannot be used here ({reason}): try --device auto or --device cpu.") from error


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is float16 on a GPU and float32 on a CPU."""
    if name == "auto":
        name = "fp32" if device.type == "cpu" else "fp16"
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


@dataclass
class Pipeline:
    """All networks on one device. Pictures are uint8 (H, W, 3), frames uint8 (F, H, W, 3), RGB."""

    reference_unet: ReferenceUNet
    denoising_unet: DenoisingUNet
    motion_encoder: MotionEncoder
    motion_extractor: MotionExtractor
    pose_guider: PoseGuider
    vae: AutoencoderKL
    image_encoder: CLIPVisionModelWithProjection
    device: torch.device

    @classmethod
    def load(cls, weights: WeightFiles, device: str = "auto", dtype: str = "auto") -> "Pipeline":
        """InputError where a file is missing or not what it should be."""
        target = pick_device(device)
        precision = pick_dtype(dtype, target)
        weights.require()
        networks: dict[str, Any] = {}
        for name, network in meta_networks(weights.config).items():
            # The motion extractor's keypoints are rounded to pixels, so it keeps full precision everywhere.
            own = torch.float32 if name == "motion_extractor" else precision
            networks[name] = load_network(network, weights.paths(name)).to(target, own)
        # Without the option diffusers asks for another package, which would only save it a moment's memory.
        vae = _load(AutoencoderKL, weights.vae, precision, low_cpu_mem_usage=False).to(target)
        image_encoder = _load(CLIPVisionModelWithProjection, weights.image_encoder, precision).to(target)
        return cls(**networks, vae=vae, image_encoder=image_encoder, device=target)

    @torch.inference_mode()
    def encode_reference(self, picture: np.ndarray) -> Reference:
        """A portrait in the size of the result, uint8 (H, W, 3)."""
        check_size(picture.shape[1], picture.shape[0])
        pixels = self._pixels(picture[None])
        vae_mean = self.vae.encode((pixels * 2 - 1).to(self.vae.dtype)).latent_dist.mean
        image_embeds = self.image_encoder(clip_pixels(pixels).to(self.image_encoder.dtype)).image_embeds[:, None]
        return encode_reference(
            self.reference_unet, self.motion_extractor, self.motion_encoder, pixels, vae_mean, image_embeds
        )

    @torch.inference_mode()
    def extract_motion(self, frames: np.ndarray, previous: Motion | None = None) -> Motion:
        """uint8 (F, H, W, 3) of any size; `previous` is the motion before them."""
        return extract_motion(self.motion_extractor, self.motion_encoder, self._pixels(frames), previous)

    @torch.inference_mode()
    def stream(
        self,
        reference: Reference,
        steps: int = 4,
        keyframes: KeyframeSettings | None = None,
        strength: Strength = PUBLISHED,
    ) -> Stream:
        return Stream(
            reference,
            denoising_unet=self.denoising_unet,
            reference_unet=self.reference_unet,
            pose_guider=self.pose_guider,
            schedule=Schedule(steps),
            keyframes=keyframes or KeyframeSettings(),
            device=self.device,
            strength=strength,
        )

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Scaled latents (1, 4, F, h, w) -> uint8 (F, H, W, 3)."""
        frames = rearrange(latents / LATENT_SCALE, "1 c f h w -> f c h w").to(self.vae.dtype)
        pixels = (self.vae.decode(frames).sample.float() / 2 + 0.5).clamp(0, 1)
        return rearrange((pixels * 255).round().byte(), "f c h w -> f h w c").cpu().numpy()

    def motions(self, frames: Iterable[np.ndarray], hold: bool = True) -> Iterator[Motion]:
        """Driving frames, uint8 (H, W, 3) one after the other -> their motion, in pieces, as many frames in all.

        With `hold`, the last good motion stands in for frames without a face: see `held.Hold`. InputError where there
        is no frame, or none with a face.
        """
        frames, holding, motion = iter(frames), Hold(), None
        while chunk := list(islice(frames, CHUNK)):
            with torch.inference_mode():
                pixels = self._pixels(np.stack(chunk))
                motion = extract_motion(self.motion_extractor, self.motion_encoder, pixels, motion)
                ready = holding.push(motion, pixels) if hold else motion
            yield ready
        if motion is None:
            raise InputError("there are no driving frames: give a video or a picture with at least one.")
        holding.finish()

    def animate(
        self, reference: Reference, frames: Iterable[np.ndarray], *, hold: bool = True, **settings: Any
    ) -> Generator[np.ndarray, None, None]:
        """Driving frames, uint8 (H, W, 3) one after the other -> as many animated ones, up to four at a time.

        Frames are asked for only as they are needed, and none are kept: memory does not grow. `settings` are those of
        `animate_motion`.
        """
        return self.animate_motion(reference, self.motions(frames, hold), **settings)

    def animate_motion(
        self,
        reference: Reference,
        motions: Iterable[Motion],
        *,
        steps: int = 4,
        seed: int = 42,
        keyframes: KeyframeSettings | None = None,
        strength: Strength = PUBLISHED,
        neutral: Motion | None = None,
    ) -> Generator[np.ndarray, None, None]:
        """Motion in pieces of any length -> as many animated frames, up to four at a time.

        `neutral` is the driver's motion that counts as normal, one frame; None takes the first.
        """
        stream, state = self.stream(reference, steps, keyframes, strength), None
        for motion in motions:
            if len(motion):
                with torch.inference_mode():
                    state = state or stream.start(motion, seed, neutral)
                yield from self._decoded(stream.push(state, motion))
        if state is not None:
            yield from self._decoded(stream.flush(state))

    def _decoded(self, chunks: Iterator[Tensor]) -> Iterator[np.ndarray]:
        while True:
            with torch.inference_mode():  # around the work alone: a generator must not leave it on between frames
                latents = next(chunks, None)
            if latents is None:
                return
            if latents.shape[2]:
                yield self.decode(latents)

    def _pixels(self, frames: np.ndarray) -> Tensor:
        """uint8 (F, H, W, 3) -> float32 (F, 3, H, W) in [0, 1]."""
        return rearrange(torch.tensor(frames, device=self.device).float() / 255, "f h w c -> f c h w")


def clip_pixels(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, 224, 224) as CLIP was trained: bicubic, in 8 bit, its mean and deviation."""
    small = F.interpolate(pixels, size=(224, 224), mode="bicubic", antialias=True)
    small = (small * 255).clamp(0, 255).round() / 255
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (small - mean) / std


def _load(model_class, folder, dtype: torch.dtype, **options):
    try:
        model = model_class.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{folder} cannot be loaded as {model_class.__name__} ({reason}): download it again."
        ) from error
    return model.eval().requires_grad_(False)
