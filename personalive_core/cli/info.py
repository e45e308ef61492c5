"""`info`: versions, device, weights found and missing."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from ..networks.fused import kernels_status
from ..weights import hub
from ..weights.find import find_weights


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    info = commands.add_parser("info", parents=parents, help="versions, device, weights found and missing")
    info.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    names = ("personalive", "torch", "diffusers", "transformers", "av", "einops", "safetensors", "numpy")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for name in names:
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            print(f"{name} is not installed")
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        print(f"GPU: {gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, compute capability {gpu.major}.{gpu.minor}")
        print(f"Triton kernels: {kernels_status(torch.device('cuda', 0))}")
    else:
        print("GPU: none that PyTorch can use")
    files = find_weights(options.weights)
    print(f"weights in {files.folder}:")
    for part in dict.fromkeys(file.part for file in hub.FILES):
        print(f"  {part}: {getattr(files, part) or 'missing'}")
