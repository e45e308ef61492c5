"""`info`: versions, device, weights found and missing."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from ..device import DeviceKind, devices, kind_of
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
    for device in devices():
        kind = kind_of(device)
        print(f"{device}: {_describe(device)}; {kind.name}; {kind.dtype} by default; {_tried(kind)}")
        if device.type == "cuda":
            print(f"  Triton kernels {kernels_status(device)}")
    files = find_weights(options.weights)
    print(f"weights in {files.folder}:")
    for part in dict.fromkeys(file.part for file in hub.FILES):
        print(f"  {part}: {getattr(files, part) or 'missing'}")


def _describe(device: torch.device) -> str:
    if device.type == "mps":
        return "Apple's GPU"
    if device.type == "cpu":
        return platform.machine()
    gpu = getattr(torch, device.type).get_device_properties(device)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB"


def _tried(kind: DeviceKind) -> str:
    return f"tried on {kind.tried}" if kind.tried else "not tried by the authors of this program"
