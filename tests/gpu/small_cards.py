"""Measures `--vram auto` and `--dtype fp8` on one GPU, as a whole and held to the memory of smaller cards.

    python tests/weights_folder.py WEIGHTS
    python tests/gpu/small_cards.py WEIGHTS

Each run is a process of its own. Beside it this program holds what the smaller card would not have. It prints a table:

- **peak**: what PyTorch reserved, in 10^9 bytes, from loading on.
- **window**: the median of the second half, with three keyframes, from driving frames to decoded ones.
- **error**: of the frames against those of the whole card in fp16; RMS, in 8-bit steps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice, pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from personalive_core.config import CHUNK
from personalive_core.errors import InputError
from personalive_core.media.pictures import fit_picture, read_picture
from personalive_core.media.video_reader import VideoReader
from personalive_core.memory import Budget
from personalive_core.pipeline import Pipeline
from personalive_core.sampling.keyframes import KeyframeSettings
from personalive_core.weights.find import EXAMPLE, find_weights

FRAMES = 120  # three keyframes have joined after 52
CARDS = (12, 8, 6)
KEYFRAMES = KeyframeSettings(limit=3, threshold=0.0)


def run(weights: Path, dtype: str, card: float | None, size: int, frames_file: Path) -> dict:
    """One row, in this process; the frames go into a file."""
    if card:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, card * 1e9 / total))
    budget = Budget(size, size, KEYFRAMES.limit)
    pipeline = Pipeline.load(find_weights(weights), "cuda", dtype, budget=budget)
    reference = pipeline.encode_reference(fit_picture(read_picture(EXAMPLE / "portrait.png"), size, size))
    with VideoReader(EXAMPLE / "driving.mp4") as video:
        driving = [fit_picture(frame.pixels, size, size) for frame in video]
    ends, chunks = [], []
    for chunk in pipeline.animate(reference, islice(cycle(driving), FRAMES), hold=False, keyframes=KEYFRAMES):
        chunks.append(chunk)
        ends.append(time.perf_counter())
    np.save(frames_file, np.concatenate(chunks))
    windows = [1000 * (end - begin) for begin, end in islice(pairwise(ends), len(ends) // 2, len(ends) - 4)]
    return {
        "placement": pipeline.placement,
        "peak": torch.cuda.max_memory_reserved() / 1e9,
        "window": median(windows),
    }


def hold_back(card: float) -> torch.Tensor:
    """Memory that leaves a card of so many GB for another process."""
    torch.cuda.empty_cache()
    return torch.empty(torch.cuda.mem_get_info()[0] - int(card * 1e9), dtype=torch.uint8, device="cuda")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--cards", type=float, nargs="*", default=CARDS, help="GB (10^9 bytes)")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # dtype, card or 0, file: what each process does
    options = parser.parse_args()
    if options.run:
        dtype, card, file = options.run
        try:
            row = run(options.weights, dtype, float(card) or None, options.size, Path(file))
        except (InputError, torch.cuda.OutOfMemoryError) as error:
            row = {"failed": str(error).partition("\n")[0]}
        print(json.dumps(row))
        return
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {options.size} x {options.size}\n")
    print("| card | dtype | peak | window | frames/s | error | |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        first: np.ndarray | None = None
        for card in (0, *options.cards):
            held = hold_back(card) if card else None
            for dtype in ("fp16", "fp8"):
                file = Path(folder, "frames.npy")
                command = [sys.executable, __file__, str(options.weights), "--size", str(options.size)]
                command += ["--run", dtype, str(card), str(file)]
                found = subprocess.run(command, capture_output=True, text=True)
                row = json.loads(found.stdout.splitlines()[-1]) if found.returncode == 0 else {"failed": found.stderr}
                name = f"{card:g} GB" if card else "whole"
                if "failed" in row:
                    print(f"| {name} | {dtype} | | | | | {row['failed'][-300:]} |", flush=True)
                    continue
                frames = np.load(file).astype(np.float32)
                first = frames if first is None else first
                error = float(np.sqrt(((frames - first) ** 2).mean()))
                print(
                    f"| {name} | {dtype} | {row['peak']:.2f} GB | {row['window']:.1f} ms | "
                    f"{1000 * CHUNK / row['window']:.1f} | {error:.2f} | {row['placement']} |",
                    flush=True,
                )
            del held


if __name__ == "__main__":
    main()
