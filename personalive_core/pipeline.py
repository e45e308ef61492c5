"""The whole way without a host: diffusers' VAE and transformers' image encoder around the core."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers import ModelMixin as DiffusersModel
from einops import rearrange
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from .config import LATENT_SCALE, WARM_UP
from .device import pick_device, pick_dtype, resize, to_pixels
from .errors import InputError
from .memory import Budget
from .motion.extraction import DrivingFrame, ExtractedChunk, extract_motion, extract_motions
from .motion.motion import Motion
from .motion.parts import Part, record_part
from .motion.performance import PUBLISHED, Strength
from .networks.denoising_unet import DenoisingUNet
from .networks.fp8 import store_in_fp8
from .networks.motion_encoder import MotionEncoder
from .networks.motion_extractor import MotionExtractor
from .networks.pose_guider import PoseGuider
from .networks.reference_unet import ReferenceFeatures, ReferenceUNet
from .networks.spatial import UNet
from .networks.vae_decoder import VAEDecoder
from .sampling.block_streaming import SLOTS, CudaCopies, stream_blocks
from .sampling.cuda import (
    DecodedFrames,
    GraphedNetwork,
    can_capture,
    free_memory,
    on_stream,
    on_stream_after,
    one_behind,
    onload,
    side_stream,
    usable_memory,
    waiting_bytes,
)
from .sampling.keyframes import KeyframeSettings
from .sampling.reference import Reference, check_size, reference_features
from .sampling.schedule import Schedule
from .sampling.stream import Stream, StreamState
from .sampling.window import Denoiser
from .weights.find import WeightFiles
from .weights.load import load_network, meta_networks, network_dtype, some_keys

DECODER_BATCH = 2  # frames; four at once take twice the memory and are 3 % faster on one H200
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's own
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Pipeline:
    """All networks on one device. Pictures are uint8 (H, W, 3), frames uint8 (F, H, W, 3), RGB.

    `reference_unet`, `vae` and `image_encoder` are for the portrait (the first also for the few keyframes) and wait on
    the CPU, unless `onload` keeps them on the device; `decoder` makes the frames.
    """

    reference_unet: ReferenceUNet
    denoising_unet: DenoisingUNet
    motion_encoder: MotionEncoder
    motion_extractor: MotionExtractor
    pose_guider: PoseGuider
    vae: AutoencoderKL
    decoder: "VAEDecoder | TinyDecoder"
    image_encoder: CLIPVisionModelWithProjection
    device: torch.device
    placement: str = field(default="", init=False)  # what `fit` decided, as a sentence
    is_streamed: bool = field(default=False, init=False)  # whether blocks of the denoising UNet come and go
    _denoiser: Denoiser | None = field(default=None, init=False)  # of the last stream
    motion_stream: torch.cuda.Stream | None = field(init=False)
    decoder_stream: torch.cuda.Stream | None = field(init=False)

    def __post_init__(self) -> None:
        self.motion_stream, self.decoder_stream = side_stream(self.device), side_stream(self.device)

    @classmethod
    def load(
        cls,
        weights: WeightFiles,
        device: str = "auto",
        dtype: str = "auto",
        small_decoder: Path | None = None,
        report: Callable[[str, float], None] = lambda name, done: None,
        budget: Budget | None = None,
    ) -> "Pipeline":
        """Loads all networks.

        Args:
            weights: From `find_weights`.
            device: "auto", or as PyTorch names it.
            dtype: "auto", "fp32", "fp16", "bf16", or "fp8" for UNets whose weights are stored in 8 bits.
            small_decoder: Folder of an AutoencoderTiny that makes the frames in place of the VAE.
            report: Gets the name of each network before it is loaded, and the fraction that is done.
            budget: See `fit`; None needs a device on which the denoising UNet fits. Only CUDA devices have one.

        Raises:
            InputError: A file is missing or not what it should be, or the device cannot be used or is too small.
        """
        target = pick_device(device)
        precision = pick_dtype(dtype, target)
        if target.type != "cuda":
            budget = None
        weights.require()
        networks, config = dict[str, Any](), weights.config
        metas = meta_networks(config)
        for i, (name, network) in enumerate(metas.items()):
            report(name, i / (len(metas) + 2))
            network = load_network(network, weights.paths(name))
            waits = name == "reference_unet" or (name == "denoising_unet" and budget is not None)
            networks[name] = place(name, network, target, precision, waits=waits, fp8=dtype == "fp8")
        report("vae", len(metas) / (len(metas) + 2))
        latents = dict(latent_channels=config.unet.latent_channels)
        vae = _load(AutoencoderKL, weights.vae, precision, latents)
        decoder: VAEDecoder | TinyDecoder = decoder_of(vae)
        if small_decoder is not None:
            decoder = TinyDecoder(_load(AutoencoderTiny, small_decoder, precision, latents))
        decoder = place("decoder", decoder, target, precision)
        report("image_encoder", (len(metas) + 1) / (len(metas) + 2))
        embeds = dict(projection_dim=config.unet.image_embeds_width)
        image_encoder = _load(CLIPVisionModelWithProjection, weights.image_encoder, precision, embeds)
        pipeline = cls(**networks, vae=vae, decoder=decoder, image_encoder=image_encoder, device=target)
        if budget:
            pipeline.fit(budget)
        return pipeline

    def fit(self, budget: Budget) -> None:
        """Brings the denoising UNet to the device: the whole of it, or as much as fits beside what a video needs.

        The rest waits in pinned memory and comes block by block, ahead of its use. Then there are no CUDA graphs, and
        everything runs on one stream, so that one thing after the other can use the same memory.

        Raises:
            InputError: The device is too small even so.
        """
        unet, dtype = self.denoising_unet, self.denoising_unet.get_dtype()
        waiting = max(waiting_bytes(self.device, x) for x in (self.reference_unet, self.vae, self.image_encoder))
        free, size = usable_memory(self.device, budget.gigabytes), waiting_bytes(self.device, unet)
        blocks = unet.blocks()
        sizes = [sum(x.nbytes for x in parameters) for _, parameters in blocks]
        least = budget.streamed(dtype, waiting) + size - sum(sizes) + SLOTS * max(sizes)
        there = f"{free / 1e9:.1f} GB of GPU memory can be used"
        if size + budget.whole(dtype, waiting) <= free:
            unet.to(self.device)
            self.placement = f"{there}: the denoising UNet stays there"
        elif least <= free:
            stream_blocks(unet, blocks, free - least, self.device, CudaCopies(self.device))
            self.is_streamed, self.motion_stream, self.decoder_stream = True, None, None
            stays = min(1.0, (free - least) / sum(sizes))
            how = "it works without CUDA graphs"
            if stays < 1:
                how = f"{stays:.0%} of it stays there, and each window copies the rest"
            whole = size + budget.whole(dtype, waiting)
            self.placement = f"{there}, and the denoising UNet and its work take {whole / 1e9:.1f}: {how}"
        else:
            raise InputError(
                f"{there} for networks that take {least / 1e9:.1f} GB more at {budget.width} x {budget.height}: use a "
                "smaller -W and -H, or --dtype fp8."
            )

    @contextmanager
    def onload(self, spare: int = 2 * 2**30) -> Iterator[bool]:
        """Keeps the networks that wait on the CPU on the device for as long as the context lasts, if they fit.

        Then neither a portrait nor a keyframe has to wait for weights.

        Args:
            spare: Bytes that must stay free on the device: for what has not run yet, and for other programs.

        Yields:
            Whether they are there.
        """
        networks = (self.reference_unet, self.vae, self.image_encoder)
        size = waiting_bytes(self.device, *networks)
        is_resident = size == 0 or size + spare <= free_memory(self.device)
        with onload(self.device, *networks) if is_resident else nullcontext():
            yield is_resident

    def encode_reference(self, picture: np.ndarray) -> Reference:
        """A portrait in the size of the result, uint8 (H, W, 3)."""
        stages = self.encode_reference_stages(picture)
        while True:
            try:
                next(stages)
            except StopIteration as end:
                return end.value

    @torch.inference_mode()
    def encode_reference_stages(self, picture: np.ndarray) -> Generator[None, None, Reference]:
        """`encode_reference` piece by piece, so that a stream can run a window between two of them.

        Yields:
            Nothing: after the VAE, after the image encoder and after the reference UNet.

        Returns:
            The reference.
        """
        check_size(picture.shape[1], picture.shape[0])
        if waiting_bytes(self.device, self.vae, self.image_encoder, self.reference_unet):
            self._denoiser = None  # where they come and go, they take its graphs' place: `Budget` counts on that
        pixels = to_pixels(picture[None], self.device)
        with onload(self.device, self.vae):
            vae_mean = self.vae.encode((pixels * 2 - 1).to(self.vae.dtype)).latent_dist.mean
        latents = vae_mean.float() * LATENT_SCALE
        yield
        with onload(self.device, self.image_encoder):
            image_embeds = self.image_encoder(clip_pixels(pixels).to(self.image_encoder.dtype)).image_embeds[:, None]
        yield
        features = self._reference_features(latents, image_embeds)
        yield
        return Reference(latents, image_embeds, features, self.extract_motion(picture[None]))

    @torch.inference_mode()
    def extract_motion(self, frames: np.ndarray, previous: Motion | None = None) -> Motion:
        """uint8 (F, H, W, 3) of any size; `previous` is the motion before them."""
        return extract_motion(self.motion_extractor, self.motion_encoder, to_pixels(frames, self.device), previous)

    @torch.inference_mode()
    def stream(
        self,
        reference: Reference,
        steps: int = 4,
        keyframes: KeyframeSettings | None = None,
        strength: Strength = PUBLISHED,
    ) -> Stream:
        """A stream with the buffers and CUDA graphs of the last one, if that had the same steps and limit of keyframes.

        Streams may take turns, but not run in several threads at once. Arguments as of `animate_motion`.
        """
        keyframes = keyframes or KeyframeSettings()
        return Stream(
            reference,
            denoiser=self._denoiser_for(Schedule(steps), keyframes.limit),
            reference_unet=self._reference_features,
            pose_guider=self.pose_guider,
            keyframes=keyframes,
            device=self.device,
            strength=strength,
        )

    def _denoiser_for(self, schedule: Schedule, keyframes: int) -> Denoiser:
        kept = self._denoiser
        if kept is None or (kept.schedule, kept.keyframes) != (schedule, keyframes):
            self._denoiser = kept = None  # first, because another one may need its memory
            self._denoiser = kept = Denoiser(self.denoising_unet, schedule, keyframes)
        kept.set_capture(self._can_capture())
        return kept

    def _can_capture(self) -> bool:
        return can_capture(self.device) and not self.is_streamed

    def _reference_features(self, latents: Tensor, image_embeds: Tensor) -> ReferenceFeatures:
        with onload(self.device, self.reference_unet):
            return reference_features(self.reference_unet, latents, image_embeds)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Scaled latents (1, 4, F, h, w) -> uint8 (F, H, W, 3)."""
        return self.start_decoding(latents).result()

    def start_decoding(self, latents: Tensor) -> DecodedFrames:
        """`decode` without waiting, on a stream of its own, so that the next window need not wait either."""
        with on_stream_after(self.decoder_stream, latents):
            samples = rearrange(latents / LATENT_SCALE, "1 c f h w -> f c h w").to(self.decoder.get_dtype())
            pixels = torch.cat([self.decoder(part) for part in samples.split(DECODER_BATCH)])
            return DecodedFrames(rearrange(pixels.float() / 2 + 0.5, "f c h w -> f h w c"))

    def motions(self, frames: Iterable[np.ndarray | DrivingFrame], hold: bool = True) -> Iterator[Motion]:
        """Extracts the motion of driving frames as they come, see `extract_motions`.

        Args:
            frames: uint8 (H, W, 3), or what a `DrivingCrop` gives.
            hold: whether the last good motion stands in for frames without a face, see `hold.Hold`.

        Returns:
            Their motion in pieces, as many frames in all.
        """
        driving = (frame if isinstance(frame, DrivingFrame) else DrivingFrame(frame) for frame in frames)
        return (chunk.motion for chunk in self._chunks(driving, hold))

    def extract_part(self, frames: Iterable[DrivingFrame], part: Part) -> dict[str, Tensor]:
        """Extracts the motion of a part of the driving frames, without hold.

        Args:
            frames: all driving frames; the pixels of those in other parts may be missing.
            part: which of them are extracted.

        Returns:
            What `join_parts` takes.
        """
        own = part.of(frames)
        first = next(own, None)
        return record_part([] if first is None else self._chunks(chain([first], own), hold=False))

    def _chunks(self, frames: Iterable[DrivingFrame], hold: bool) -> Iterator[ExtractedChunk]:
        return extract_motions(
            self.motion_extractor,
            self.motion_encoder,
            frames,
            self.device,
            hold=hold,
            context=lambda: on_stream(self.motion_stream),
        )

    def animate(
        self, reference: Reference, frames: Iterable[np.ndarray | DrivingFrame], *, hold: bool = True, **settings: Any
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
        resume: Path | None = None,
        watch: Callable[[StreamState], None] | None = None,
    ) -> Generator[np.ndarray, None, None]:
        """Motion in pieces of any length -> as many animated frames, up to four at a time.

        Args:
            reference: The portrait.
            motions: Of the driver.
            steps: Denoising steps a frame, a multiple of 4.
            seed: Of the noise: any integer, of which the lowest 32 bits count.
            keyframes: When a frame becomes a keyframe; None is as published.
            strength: How much of the motion is taken.
            neutral: The driver's motion that counts as normal, one frame; None takes the first.
            resume: A file that `StreamState.save` wrote. The motion still comes from its beginning on; the frames go on
                from there.
            watch: Gets the state after each window before the last motion has come.

        Raises:
            InputError: A setting makes no sense, or half precision overflowed.
        """
        stream = self.stream(reference, steps, keyframes, strength)

        def windows() -> Iterator[Tensor]:
            state = stream.resume(resume) if resume else None
            known = state.frames if state else 0
            for motion in motions:
                motion, known = motion[known:], max(0, known - len(motion))
                if len(motion):
                    state = state or stream.start(motion, seed, neutral)
                    for latents in stream.push(state, motion):
                        yield latents
                        if watch:
                            watch(state)
            if state is not None:
                yield from stream.flush(state)

        yield from self._decoded(windows())

    def animate_piece(
        self,
        reference: Reference,
        motion: Motion,
        piece: range,
        *,
        steps: int = 4,
        seed: int = 42,
        keyframes: KeyframeSettings | None = None,
        strength: Strength = PUBLISHED,
        neutral: Motion | None = None,
        resume: Path | None = None,
        watch: Callable[[StreamState], None] | None = None,
    ) -> Generator[np.ndarray, None, None]:
        """Makes some of the frames of `animate_motion`, nearly the same ones; see `Stream.start_at`.

        Args:
            reference: The portrait.
            motion: All of the driver's.
            piece: Which frames, as `split_motion` gives them.
            steps: As in `animate_motion`, like the rest.
        """
        stream = self.stream(reference, steps, keyframes, strength)

        def windows() -> Iterator[Tensor]:
            state = stream.resume(resume) if resume else stream.start_at(piece.start, motion, seed, neutral)
            for latents in stream.push(state, motion[state.frames : piece.stop + WARM_UP]):
                yield latents
                if watch:
                    watch(state)
            if piece.stop == len(motion):
                yield from stream.flush(state)

        yield from self._decoded(windows())

    def _decoded(self, latents: Iterator[Tensor]) -> Iterator[np.ndarray]:
        """The frames of a stream's windows, which are decoded while the next window runs."""

        def decoding() -> Iterator[DecodedFrames]:
            while True:
                with torch.inference_mode():  # around the work alone: a generator must not leave it on between frames
                    chunk = next(latents, None)
                    if chunk is None:
                        return
                    started = self.start_decoding(chunk) if chunk.shape[2] else None
                if started:
                    yield started

        yield from one_behind(decoding())


class TinyDecoder(torch.nn.Module):
    """The decoder of a diffusers AutoencoderTiny (TAESD), called as `VAEDecoder` is."""

    def __init__(self, autoencoder: AutoencoderTiny):
        super().__init__()
        self.scale = autoencoder.config.scaling_factor
        self.decoder = autoencoder.decoder

    def get_dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, latents: Tensor) -> Tensor:
        """Unscaled latents (F, 4, h, w) -> pictures (F, 3, 8 h, 8 w) in [-1, 1], not yet clamped."""
        return self.decoder(latents.contiguous(memory_format=torch.channels_last) * LATENT_SCALE / self.scale)


def decoder_of(vae: AutoencoderKL) -> VAEDecoder:
    """Takes the decoder out of diffusers' autoencoder, with its weights."""
    config = vae.config
    decoder = VAEDecoder(
        tuple(config.block_out_channels),
        config.layers_per_block,
        config.latent_channels,
        config.norm_num_groups,
        device="meta",
    )
    weights = vae.decoder.state_dict() | {
        f"post_quant_conv.{k}": v for k, v in vae.post_quant_conv.state_dict().items()
    }
    decoder.load_state_dict(weights, assign=True)
    del vae.decoder, vae.post_quant_conv
    return decoder.eval().requires_grad_(False)


def place(
    name: str,
    network: torch.nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    *,
    waits: bool = False,
    fp8: bool = False,
) -> Any:
    """A network of the pipeline where it works, or on the CPU if it waits, channels-last as is fastest; the motion
    networks as CUDA graphs where there are any; the weights of UNets in fp8 if asked."""
    home = torch.device("cpu") if waits else device
    if fp8 and isinstance(network, UNet):
        network.to(network_dtype(name, dtype))
        store_in_fp8(network)  # where it is, so that a small device need not hold it in half precision
        network.to(home)
    else:
        network.to(home, network_dtype(name, dtype))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    is_graphed = name in ("motion_encoder", "motion_extractor") and can_capture(device)
    return GraphedNetwork(network) if is_graphed else network


def clip_pixels(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, 224, 224) as CLIP was trained: bicubic, in 8 bit, its mean and deviation."""
    small = resize(pixels, (224, 224), "bicubic", antialias=True)
    small = (small * 255).clamp(0, 255).round() / 255
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (small - mean) / std


def _load(model_class, folder, dtype: torch.dtype, expected: dict[str, int]):
    """A model of diffusers or transformers, with all its weights from the folder and these values in its config."""
    # diffusers otherwise asks for another package, which would only save it a moment's memory.
    options = dict(low_cpu_mem_usage=False) if issubclass(model_class, DiffusersModel) else {}
    try:
        model, info = model_class.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, output_loading_info=True, **options
        )
        if info["missing_keys"]:  # which it fills with random numbers
            raise ValueError(f"it lacks {some_keys(sorted(info['missing_keys']))}")
        if model_class is AutoencoderTiny and info["unexpected_keys"]:
            raise ValueError(f"it has unknown keys: {some_keys(sorted(info['unexpected_keys']))}")
        for name, value in expected.items():
            if (found := getattr(model.config, name)) != value:
                raise ValueError(f"its {name} is {found} in place of {value}")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{folder} cannot be loaded as {model_class.__name__} ({reason}): download it again, or give the folder of "
            "one."
        ) from error
    return model.eval().requires_grad_(False)
