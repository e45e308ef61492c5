"""How much GPU memory and time the nodes take in a real host, mode by mode, with networks of the published sizes.

    python tests/gpu/host_memory.py COMFYUI WEIGHTS PORTRAIT DRIVING

WEIGHTS is a folder made by `tests/weights_folder.py` and converted; it needs a GPU and 15 GB of disk. In every mode a
Stable Diffusion UNet samples before and after PersonaLive in the same server and must give the same picture; the
latents of PersonaLive are compared with those of the first mode, and the time with that of the core without a host, on
the same card in the same run.
"""

import argparse
import gc
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from fractions import Fraction
from itertools import islice, pairwise, product
from pathlib import Path
from statistics import median

import pynvml
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "host")]

from prompts import node
from server import Run, Server

from personalive_core.media.pictures import fit_picture, read_picture
from personalive_core.media.video_reader import VideoReader
from personalive_core.media.video_writer import VideoWriter
from personalive_core.motion.motion import Motion
from personalive_core.pipeline import Pipeline
from personalive_core.weights.find import find_weights

GIB = 2**30
MODES = {  # arguments of the host; 10^9 bytes of the card that others leave
    "default": ([], None),
    "no dynamic VRAM": (["--disable-dynamic-vram"], None),
    "lowvram": (["--disable-dynamic-vram", "--lowvram"], None),
    "novram": (["--novram"], None),
    "all but 5 GiB reserved": (["--reserve-vram", "{}"], None),
    "card of 12 GB": ([], 12),
    "card of 8 GB": ([], 8),
    "card of 6 GB": ([], 6),
}
PRECISIONS = ("fp16", "fp8")


def card_memory():
    """`total` and `used` bytes of the first GPU, by whichever process."""
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))


class PeakMemory:
    """The most GPU memory that was in use while the block ran, in GiB above `base` bytes."""

    def __init__(self, base: int):
        self.base = self.peak = base

    def __enter__(self) -> "PeakMemory":
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, card_memory().used)
            time.sleep(0.02)

    def __exit__(self, *error) -> None:
        self.running = False
        self.thread.join()

    @property
    def gib(self) -> float:
        return (self.peak - self.base) / GIB


def write_base(base: Path, weights: Path, portrait: Path, driving: Path) -> None:
    """The host's folders, with models linked from the weights folder."""
    for name in ("custom_nodes", "input", "output", "models/vae", "models/clip_vision", "models/diffusion_models"):
        (base / name).mkdir(parents=True)
    repository = HERE.parents[1]
    (base / "custom_nodes" / "personalive").symlink_to(repository)
    (base / "custom_nodes" / "personalive_tests").symlink_to(HERE.parent / "host" / "pack")
    (base / "models" / "personalive").symlink_to(weights)
    vae = weights / "sd-vae-ft-mse" / "diffusion_pytorch_model.safetensors"
    (base / "models" / "vae" / "sd.safetensors").symlink_to(vae)
    encoder = weights / "sd-image-variations-diffusers" / "image_encoder" / "pytorch_model.bin"
    (base / "models" / "clip_vision" / "vit_l.bin").symlink_to(encoder)
    whole = load_file(weights / "personalive" / "denoising_unet.safetensors")
    plain = {key: value for key, value in whole.items() if ".motion_modules." not in key}
    save_file(plain, base / "models" / "diffusion_models" / "sd.safetensors")
    shutil.copy(portrait, base / "input" / "portrait.png")
    shutil.copy(driving, base / "input" / "driving.mp4")


def stable_diffusion(seed: int) -> dict:
    return {
        "unet": node("UNETLoader", unet_name="sd.safetensors", weight_dtype="default"),
        "text": node("TestConditioning"),
        "empty": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "sd": node(
            "KSampler",
            model=["unet", 0],
            positive=["text", 0],
            negative=["text", 0],
            latent_image=["empty", 0],
            seed=seed,
            steps=4,
            cfg=1.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "latents": node("SaveLatent", samples=["sd", 0], filename_prefix="sd"),
    }


def personalive(frames: int, precision: str, seed: int = 42) -> dict:
    return {
        "vae": node("VAELoader", vae_name="sd.safetensors"),
        "clip_vision": node("CLIPVisionLoader", clip_name="vit_l.bin"),
        "portrait": node("LoadImage", image="portrait.png"),
        "driving": node("LoadVideo", file="driving.mp4"),
        "model": node("PersonaLiveLoadModel", weights="official", precision=precision),
        "reference": node(
            "PersonaLiveEncodeReference",
            model=["model", 0],
            vae=["vae", 0],
            clip_vision=["clip_vision", 0],
            image=["portrait", 0],
        ),
        "motion": node(
            "PersonaLiveExtractMotion",
            model=["model", 0],
            reference=["reference", 0],
            driving=["driving", 0],
            count=frames,
        ),
        "sample": node(
            "PersonaLiveSample", model=["model", 0], reference=["reference", 0], motion=["motion", 0], seed=seed
        ),
        "latents": node("SaveLatent", samples=["sample", 0], filename_prefix="personalive"),
    }


def assemble(frames: int, precision: str, seed: int) -> dict:
    return personalive(frames, precision, seed) | {
        "assemble": node("PersonaLiveAssembleVideo", samples=["sample", 0], vae=["vae", 0], frame_rate=["motion", 1]),
        "save": node("SaveVideo", video=["assemble", 0], filename_prefix="video", format="auto", codec="auto"),
    }


def latents(server: Server, run: Run) -> torch.Tensor:
    if run.error:
        raise RuntimeError(f"{run.node}: {run.error}\n{server.log_text()[-4000:]}")
    (file,) = run.outputs["latents"]["latents"]
    return load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def hold_back(cap: int) -> torch.Tensor:
    """Memory that leaves a card of `cap` GB for the others."""
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(free - cap * 10**9, dtype=torch.uint8, device="cuda")


def rate(progress: list[tuple[float, int]]) -> float:
    """Seconds for each count of a node's progress, in its second half."""
    (begin, first), last = progress[len(progress) // 2], progress[-1][1]
    end = next(clock for clock, count in progress if count == last)
    return (end - begin) / (last - first)


def measure_core(weights: Path, portrait: Path, driving: Path, frames: int) -> float:
    """Milliseconds a window without a host, for what Sample and Assemble Video do: from motion to a written video."""
    pipeline = Pipeline.load(find_weights(weights))
    reference = pipeline.encode_reference(fit_picture(read_picture(portrait), 512, 512))
    with VideoReader(driving) as video:
        motion = Motion.cat(list(pipeline.motions(frame.pixels for frame in islice(video, frames))))
    ends, written, rate = [], 0, Fraction(25)
    with tempfile.TemporaryDirectory() as folder, VideoWriter(Path(folder, "core.mp4"), 512, 512, rate) as video:
        for chunk in pipeline.animate_motion(reference, [motion]):
            for pixels in chunk:
                video.write(pixels, written / rate)
                written += 1
            ends.append(time.perf_counter())
    return 1000 * median(end - begin for begin, end in islice(pairwise(ends), len(ends) // 3, None))


def measure(host: Path, base: Path, arguments: list[str], frames: int, precision: str) -> tuple[dict, torch.Tensor]:
    """The numbers of one mode; peaks are of the whole server process, its CUDA context included."""
    idle = card_memory().used
    server = Server(host, base, "--preview-method", "none", "--fp16-vae", *arguments)
    try:
        progress: dict[str, list[tuple[float, int]]] = defaultdict(list)

        def clock(who: str, value: int) -> None:
            progress[who].append((time.perf_counter(), value))

        before = latents(server, server.run(stable_diffusion(1)))
        begun = time.perf_counter()
        with PeakMemory(idle) as sampling:
            ours = latents(server, server.run(personalive(frames, precision), clock))
        seconds = time.perf_counter() - begun
        progress.clear()
        with PeakMemory(idle) as assembling:
            latents(server, server.run(assemble(frames, precision, seed=43), clock))
        latents(server, server.run(stable_diffusion(2)))
        after = latents(server, server.run(stable_diffusion(1)))
        return {
            "peak sampling, GiB": sampling.gib,
            "peak sampling and assembling, GiB": assembling.gib,
            "first run, s": seconds,
            "sample, ms a window": 1000 * rate(progress["sample"]),
            "assemble, ms a window": 4 * 1000 * rate(progress["assemble"]),
            "SD after against before, error": ((after - before).norm() / before.norm()).item(),
        }, ours
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("comfyui", "weights", "portrait", "driving"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--host-arguments", default="", help="further arguments of every host, separated by spaces")
    options = parser.parse_args()
    core = measure_core(options.weights, options.portrait, options.driving, options.frames)
    gc.collect()
    torch.cuda.empty_cache()
    print(f"core alone, from motion to video: {core:.1f} ms a window", flush=True)
    first, all_but_5 = None, card_memory().total // GIB - 5
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        write_base(base, options.weights, options.portrait.absolute(), options.driving.absolute())
        for mode, precision in product(options.modes, options.precisions):
            name, (arguments, cap) = f"{mode}, {precision}", MODES[mode]
            held = hold_back(cap) if cap else None
            try:
                row, ours = measure(
                    options.comfyui,
                    base,
                    [*(word.format(all_but_5) for word in arguments), *options.host_arguments.split()],
                    options.frames,
                    precision,
                )
                first = ours if first is None else first
                together = row["sample, ms a window"] + row["assemble, ms a window"]
                row["sample and assemble against the core, ratio"] = together / core
                row["against the first mode, error"] = ((ours - first).norm() / first.norm()).item()
            except Exception as error:  # the other modes are still worth knowing
                row = {"failed": str(error)[-1500:]}
            print(name, json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
            del held
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
