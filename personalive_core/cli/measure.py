"""How fast, and in how much memory: full-size networks with random weights, a drawn driving clip, real files.

Every figure is the median of many, on CUDA events where there is a GPU.
"""

import copy
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..config import CHUNK, PIXELS_PER_LATENT, WINDOW, ModelConfig
from ..device import dtype_name, pick_device, pick_dtype, to_device
from ..errors import InputError
from ..media.pictures import fit_picture
from ..media.video_reader import VideoReader
from ..media.video_writer import VideoWriter
from ..networks.denoising_unet import DenoisingUNet
from ..networks.reference_unet import ReferenceUNet
from ..pipeline import Pipeline, TinyDecoder, decoder_of, place
from ..sampling.cuda import PinnedCopy, on_device, onload
from ..sampling.keyframes import FIRST_WINDOW, KeyframeSettings
from ..sampling.reference import Reference, check_size, encode_reference
from ..sampling.schedule import Schedule
from ..weights.find import EXAMPLE
from ..weights.load import meta_networks

CPU, RATE = torch.device("cpu"), Fraction(25)
REPEATS = 20
WRITTEN = 10  # windows' frames in a file whose writing is timed
SETTLED = FIRST_WINDOW + 6  # windows until all keyframes have joined and the window is captured
PEAK_SIZE = 8192  # of the square matrices whose product tells the chip's speed


@dataclass
class Figures:
    """Times in milliseconds for one window, which takes four frames in and gives four out."""

    device: str
    torch: str
    size: int
    steps: int
    dtype: str
    decoder: str
    keyframes: int
    frames: int
    window: float  # of the whole pipeline, all parts overlapping as they do in `animate`
    frames_per_second: float
    read: float
    motion: float
    denoise: float
    decode: float
    copy: float
    write: float
    latency: float  # from four frames handed in to their pictures, every window run by itself
    latency_windows: float  # of those windows
    tflop_denoise: float
    tflop_decode: float
    share_of_peak: float | None  # of the arithmetic of both in `window`
    peak_tflops: float | None
    memory_gb: float | None  # highest amount that PyTorch held, weights included; 10^9 bytes
    memory_growth_gb: float | None  # between the middle and the end


def run_benchmark(
    frames: int, size: int, steps: int, device: str, dtype: str, decoder: str, keyframes: int, as_json: bool
) -> None:
    """Measures and prints. InputError for sizes, steps or devices that cannot be."""
    check_size(size, size)
    Schedule(steps)
    if frames < CHUNK * (SETTLED + 8):
        raise InputError(f"--frames is {frames}, but medians need at least {CHUNK * (SETTLED + 8)}.")
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    with on_device(target):  # which events, waits and memory reports take
        pipeline = make_pipeline(target, precision, decoder, dtype == "fp8")
        figures = _measure(pipeline, frames, size, steps, precision, decoder, keyframes)
    if dtype == "fp8":
        figures.dtype = dtype
    print(json.dumps(asdict(figures)) if as_json else _table(figures))


@torch.no_grad()
def fill_randomly(network: nn.Module, device: torch.device) -> nn.Module:
    """Random weights of a size at which activations neither grow nor vanish."""
    network = network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, value in network.state_dict().items():
        if not value.is_floating_point() or name.endswith(("bias", "running_mean")):
            value.zero_()
        elif value.ndim < 2:
            value.fill_(1)
        else:
            value.normal_(generator=generator).mul_(value[0].numel() ** -0.5)
    return network.eval().requires_grad_(False)


def make_pipeline(device: torch.device, dtype: torch.dtype, decoder: str, fp8: bool = False) -> Pipeline:
    """All networks at full size, with random weights."""
    networks: dict[str, Any] = {
        name: place(name, fill_randomly(network, device), device, dtype, waits=name == "reference_unet", fp8=fp8)
        for name, network in meta_networks(ModelConfig()).items()
    }
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
        tiny = AutoencoderTiny()
        # Never run here: the embeds are drawn at random.
        image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=768))
    chosen = fill_randomly(TinyDecoder(tiny) if decoder == "tiny" else decoder_of(vae), device)
    placed = place("decoder", chosen, device, dtype)
    return Pipeline(**networks, vae=vae, decoder=placed, image_encoder=image_encoder, device=device)


@torch.inference_mode()
def _reference(pipeline: Pipeline, size: int) -> Reference:
    generator = torch.Generator().manual_seed(1)
    side = size // PIXELS_PER_LATENT
    with onload(pipeline.device, pipeline.reference_unet):
        return encode_reference(
            pipeline.reference_unet,
            pipeline.motion_extractor,
            pipeline.motion_encoder,
            torch.rand(1, 3, size, size, generator=generator).to(pipeline.device),
            torch.randn(1, 4, side, side, generator=generator).to(pipeline.device),
            torch.randn(1, 1, pipeline.image_encoder.config.projection_dim, generator=generator).to(pipeline.device),
        )


def _timed(function: Callable[[], object], device: torch.device) -> float:
    """Milliseconds, median."""
    times = []
    for _ in range(REPEATS + 3):
        if device.type == "cuda":
            torch.cuda.synchronize()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - start))
    return median(times[3:])


def _measure(
    pipeline: Pipeline, frames: int, size: int, steps: int, dtype: torch.dtype, decoder: str, keyframes: int
) -> Figures:
    device = pipeline.device
    reference = _reference(pipeline, size)
    # Threshold 0: a keyframe joins in every window from the tenth on, up to the limit.
    settings = KeyframeSettings(limit=keyframes, threshold=0.0)
    with tempfile.TemporaryDirectory() as folder:
        clip = _write_clip(Path(folder, "driving.mp4"), size)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        # The first to run, so that its memory includes the capture of CUDA graphs.
        window, growth = _whole(pipeline, reference, clip, frames, steps, settings)
        memory = torch.cuda.max_memory_reserved() / 1e9 if device.type == "cuda" else None
        parts = _parts(pipeline, reference, clip, steps, settings)
        latency, latency_windows = _latency(pipeline, reference, clip, steps, settings)
    tflop_denoise, tflop_decode = _tflop(pipeline, size, steps, keyframes)
    peak = _peak(device, dtype) if device.type == "cuda" else None
    return Figures(
        device=torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        torch=torch.__version__,
        size=size,
        steps=steps,
        dtype=dtype_name(dtype),
        decoder=decoder,
        keyframes=keyframes,
        frames=frames,
        window=window,
        frames_per_second=1e3 * CHUNK / window,
        **parts,
        latency=latency,
        latency_windows=latency_windows,
        tflop_denoise=tflop_denoise,
        tflop_decode=tflop_decode,
        share_of_peak=(tflop_denoise + tflop_decode) / (window * 1e-3) / peak if peak else None,
        peak_tflops=peak,
        memory_gb=memory,
        memory_growth_gb=growth,
    )


def _write_clip(path: Path, size: int) -> Path:
    """The miniature's driving video in the size of the result."""
    with VideoReader(EXAMPLE / "driving.mp4") as source, VideoWriter(path, size, size, RATE) as video:
        for i, frame in enumerate(source):
            video.write(fit_picture(frame.pixels, size, size), i / RATE)
    return path


def _read(clip: Path) -> Iterator[np.ndarray]:
    """Its frames, again and again."""
    while True:
        with VideoReader(clip) as video:
            for frame in video:
                yield frame.pixels


def _parts(
    pipeline: Pipeline, reference: Reference, clip: Path, steps: int, settings: KeyframeSettings
) -> dict[str, float]:
    """Each part by itself, for four frames."""
    device, frames = pipeline.device, _read(clip)
    chunk = np.stack(list(islice(frames, CHUNK)))
    motion = pipeline.extract_motion(chunk)
    stream = pipeline.stream(reference, steps, settings)
    with torch.inference_mode():
        state = stream.start(motion, seed=42)
        for _ in range(SETTLED):
            latents = stream.step(state, motion)
            chunk = np.stack(list(islice(frames, CHUNK)))
            motion = pipeline.extract_motion(chunk, motion)  # the same again would be no keyframe
    pictures = pipeline.decode(latents)
    on_device = to_device(torch.from_numpy(pictures), device)

    @torch.inference_mode()
    def denoise() -> None:
        stream.step(state, motion)

    def copy_both_ways() -> None:
        to_device(torch.from_numpy(chunk), device)
        PinnedCopy(on_device).result()

    def write() -> None:
        height, width = pictures.shape[1:3]
        with VideoWriter(clip.with_name("part.mp4"), width, height, RATE) as video:
            for i in range(CHUNK * WRITTEN):
                video.write(pictures[i % CHUNK], i / RATE)

    return {
        "read": _timed(lambda: list(islice(frames, CHUNK)), CPU),
        "motion": _timed(lambda: pipeline.extract_motion(chunk), device),
        "denoise": _timed(denoise, device),
        "decode": _timed(lambda: pipeline.decode(latents), device),
        "copy": _timed(copy_both_ways, device),
        "write": _timed(write, CPU) / WRITTEN,
    }


def _whole(
    pipeline: Pipeline,
    reference: Reference,
    clip: Path,
    frames: int,
    steps: int,
    settings: KeyframeSettings,
) -> tuple[float, float | None]:
    """From file to file, as `animate` does it -> milliseconds a window, and how much memory grew in the second half."""
    driving = islice(_read(clip), frames)
    ends, held = [], []
    with (
        VideoReader(clip) as first,
        VideoWriter(clip.with_name("result.mp4"), first.metadata.width, first.metadata.height, RATE) as video,
    ):
        written = 0
        animated = pipeline.animate(reference, driving, hold=False, steps=steps, keyframes=settings)
        for chunk in animated:
            for pixels in chunk:
                video.write(pixels, written / RATE)
                written += 1
            ends.append(time.perf_counter())
            held.append(torch.cuda.memory_reserved() if pipeline.device.type == "cuda" else 0)
    # The first windows warm up and capture; the last three are run with no new frames.
    windows = [1e3 * (b - a) for a, b in pairwise(ends[SETTLED:-3])]
    growth = (held[-1] - held[len(held) // 2]) / 1e9 if pipeline.device.type == "cuda" else None
    return median(windows), growth


def _latency(
    pipeline: Pipeline, reference: Reference, clip: Path, steps: int, settings: KeyframeSettings
) -> tuple[float, float]:
    """Live: four frames are handed in, and their pictures waited for before the next four are looked at ->
    milliseconds from a frame in to its picture out, and how many windows' time that is."""
    frames = _read(clip)
    begins, ends, motion, state = [], [], None, None
    stream = pipeline.stream(reference, steps, settings)
    for _ in range(SETTLED + REPEATS + 4):
        begins.append(time.perf_counter())
        motion = pipeline.extract_motion(np.stack(list(islice(frames, CHUNK))), motion)
        with torch.inference_mode():
            state = state or stream.start(motion, seed=42)
            for latents in stream.push(state, motion):
                if latents.shape[2]:
                    pipeline.decode(latents)
        ends.append(time.perf_counter())
    # What goes in at the beginning of a window comes out at the end of the third after it.
    latencies = [1e3 * (out - begin) for begin, out in zip(begins[SETTLED:], ends[SETTLED + 3 :], strict=False)]
    windows = [1e3 * (end - begin) for begin, end in zip(begins[SETTLED:], ends[SETTLED:], strict=True)]
    return median(latencies), median(latencies) / median(windows)


def _tflop(pipeline: Pipeline, size: int, steps: int, keyframes: int) -> tuple[float, float]:
    """The arithmetic of one window and of decoding four frames, counted on the meta device as the networks define it:
    products, convolutions and attention, without what is computed once and kept."""
    side, meta = size // PIXELS_PER_LATENT, torch.device("meta")
    unet, reference_unet = DenoisingUNet(device=meta), ReferenceUNet(device=meta)
    embeds = torch.empty(1, 1, 768, device=meta)
    with torch.no_grad():
        features = reference_unet(torch.empty(1, 4, side, side, device=meta), embeds)
        conditioning = unet.condition(embeds, features)
        for _ in range(keyframes):
            conditioning = unet.add_keyframe(conditioning, features)
        with FlopCounterMode(display=False) as window:
            unet(
                torch.empty(1, 4, WINDOW, side, side, device=meta),
                torch.empty(WINDOW, device=meta),
                conditioning,
                torch.empty(1, WINDOW, 32, 16, device=meta),
                torch.empty(1, 320, WINDOW, side, side, device=meta),
            )
        with FlopCounterMode(display=False) as decoding:
            copy.deepcopy(pipeline.decoder).to(meta)(
                torch.empty(CHUNK, 4, side, side, device=meta, dtype=pipeline.decoder.get_dtype())
            )
    return window.get_total_flops() * Schedule(steps).passes / 1e12, decoding.get_total_flops() / 1e12


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of the product of two large random matrices."""
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=device, dtype=dtype) for _ in range(2))
    return 2 * PEAK_SIZE**3 / (_timed(lambda: a @ b, device) * 1e-3) / 1e12


def _table(figures: Figures) -> str:
    f = figures
    lines = [
        f"{f.device}, PyTorch {f.torch}, {f.dtype}, {f.size} x {f.size}, {f.steps} steps, decoder {f.decoder}, "
        f"{f.keyframes} keyframes, {f.frames} frames",
        "",
        f"whole pipeline   {f.window:8.1f} ms a window = {f.frames_per_second:.1f} frames/s",
        "its parts, each by itself, for the four frames of a window:",
        f"  read video     {f.read:8.1f} ms",
        f"  motion         {f.motion:8.1f} ms = {1e3 * CHUNK / f.motion:.0f} frames/s",
        f"  denoise        {f.denoise:8.1f} ms, {f.tflop_denoise:.1f} TFLOP",
        f"  decode         {f.decode:8.1f} ms, {f.tflop_decode:.1f} TFLOP",
        f"  copies         {f.copy:8.1f} ms",
        f"  write video    {f.write:8.1f} ms",
        f"latency          {f.latency:8.1f} ms from a frame in to its picture out = {f.latency_windows:.2f} windows",
    ]
    if f.peak_tflops and f.share_of_peak:
        lines.append(f"arithmetic       {f.share_of_peak:8.0%} of the {f.peak_tflops:.0f} TFLOP/s measured here")
    if f.memory_gb is not None:
        lines.append(f"GPU memory       {f.memory_gb:8.2f} GB at most, {f.memory_growth_gb:+.2f} GB in the second half")
    return "\n".join(lines)
