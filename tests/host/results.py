"""Prompts that succeed, and what they leave in the host's output folder."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from server import Run, Server


def succeed(host: Server, prompt: dict, **options) -> Run:
    run = host.run(prompt, **options)
    assert run.error is None and not run.interrupted, f"{run.node}: {run.error}"
    return run


def saved(host: Server, run: Run, name: str, kind: str = "images") -> Path:
    """The path of the one file that the node `name` wrote."""
    (file,) = run.outputs[name][kind]
    return host.base / "output" / file["subfolder"] / file["filename"]


def latents(host: Server, run: Run) -> torch.Tensor:
    return load_file(saved(host, run, "latents", "latents"))["latent_tensor"]
