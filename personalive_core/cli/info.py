"""`info`: versions, device, weights found and missing."""

import argparse
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from ..device import DeviceKind, devices, kind_of
from ..networks.fused import kernels_status
from ..weights import hub
from ..weights.find import find_weights

PACKAGES = {  # the name to install by: what imports it, and what needs it if not everything does
    **{name: (name, "") for name in ("torch", "diffusers", "transformers", "av", "einops", "safetensors", "numpy")},
    "pillow": ("PIL", ""),
    "huggingface_hub": ("huggingface_hub", ", which downloads need"),
    "opencv-python-headless": ("cv2", ", which the detector yunet needs"),
    "aiohttp": ("aiohttp", ", which live needs"),
}


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    info = commands.add_parser("info", parents=parents, help="versions, device, weights found and missing")
    info.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    print(f"Python {platform.python_version()} on {platform.platform()}")
    print(f"personalive {_version('personalive')}")
    for name, (module, needed) in PACKAGES.items():
        if find_spec(module):
            print(f"{name} {_version(name)}")
        else:
            print(f"{name} is not installed{needed}: type  {sys.executable} -m pip install {name}")
    if sys.platform != "darwin" and not (torch.version.cuda or torch.version.hip or torch.version.xpu):
        print("  this PyTorch is for the CPU alone: for a graphics card see https://pytorch.org/get-started/locally")
    for device in devices():
        kind = kind_of(device)
        print(f"{device}: {_describe(device)}; {kind.name}; {kind.dtype} by default; {_tried(kind)}")
        if device.type == "cuda":
            print(f"  Triton kernels {kernels_status(device)}")
    files = find_weights(options.weights)
    print(f"weights in {files.folder}:")
    for part in dict.fromkeys(file.part for file in hub.FILES):
        print(f"  {part}: {getattr(files, part) or 'missing'}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of unknown version"  # a folder, or a package of another name


def _describe(device: torch.device) -> str:
    if device.type == "mps":
        return "Apple's GPU"
    if device.type == "cpu":
        return platform.machine()
    gpu = getattr(torch, device.type).get_device_properties(device)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB"


def _tried(kind: DeviceKind) -> str:
    return f"tried on {kind.tried}" if kind.tried else "not tried by the authors of this program"
