"""The error of each of ComfyUI's attentions on the goldens of the UNets, and its time at 512 x 512.

    COMFYUI/.venv/bin/python tests/gpu/attention.py COMFYUI

Every attention that is installed there and runs on this device takes its turn; install sageattention, flash-attn or
xformers to have them measured. Without a GPU only the small golden is computed, and nothing is timed.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("comfyui", type=Path, help="a ComfyUI checkout")
folder = parser.parse_args().comfyui
sys.argv[1:] = ["--use-pytorch-cross-attention"]  # for the host; it decides nothing here
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = map(str, (folder, ROOT, ROOT / "tests"))

import torch

if not torch.cuda.is_available():
    sys.argv.append("--cpu")

import comfy.options

comfy.options.enable_args_parsing()

from comfy.ldm.modules.attention import REGISTERED_ATTENTION_FUNCTIONS
from torch import Tensor

from personalive_core.config import UNetConfig
from personalive_core.networks.attention import Attention
from tiny import UNET, unet_errors

WINDOW = (16, 8, 4096, 8192, 40)  # the largest attention of a window: frames, heads, queries, keys, head size
RUNS = 20


class Complaints(logging.Handler):
    """Counts what the host logs when it takes PyTorch's attention in place of the one that failed."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.levelno >= logging.WARNING


def adapted(function) -> Attention:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return function(q, k, v, heads=q.shape[1], skip_reshape=True, skip_output_reshape=True)

    attention.may_fuse = False
    return attention


def milliseconds(attention: Attention) -> float:
    frames, heads, queries, keys, size = WINDOW
    q, k, v = (torch.randn(frames, heads, n, size, device="cuda", dtype=torch.float16) for n in (queries, keys, keys))
    attention(q, k, v)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(RUNS):
        attention(q, k, v)
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / RUNS * 1000


def main() -> None:
    on_gpu = torch.cuda.is_available()
    golden = ("unets_full", UNetConfig(), "cuda", torch.float16) if on_gpu else ("unets_tiny", UNET)
    print(f"{torch.cuda.get_device_name() if on_gpu else 'CPU, float32'}: {golden[0]}")
    for name, function in REGISTERED_ATTENTION_FUNCTIONS.items():
        complaints, attention = Complaints(), adapted(function)
        logging.getLogger().addHandler(complaints)
        try:
            line = f"{name:20} largest error {max(unet_errors(*golden, attention=attention).values()):.2e}"
            line += f"  {milliseconds(attention):.2f} ms" if on_gpu else ""
        except Exception as error:  # each library refuses a GPU or a shape in its own way
            line = f"{name:20} failed: {str(error).partition(chr(10))[0]}"
        logging.getLogger().removeHandler(complaints)
        print(line + (f"  ({complaints.count} times PyTorch's in its place)" if complaints.count else ""), flush=True)


if __name__ == "__main__":
    main()
