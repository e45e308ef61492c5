"""What differs between ComfyUI versions, from 0.3.64 on."""

import inspect
import math
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import comfy.model_patcher
import comfyui_version
import torch
from comfy.cli_args import args
from torch import Tensor, nn

from ..personalive_core.networks.attention import pytorch_attention
from ..personalive_core.networks.fp8 import FP8, stored_layers
from ..personalive_core.networks.spatial import UNet
from ..personalive_core.sampling import cuda

OLDEST = (0, 3, 64)


def require_host() -> None:
    version = comfyui_version.__version__
    if tuple(int(part) for part in version.split(".")[:3]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RuntimeError(f"PersonaLive needs ComfyUI {oldest} or newer, and this is {version}: update ComfyUI.")


def make_patcher(network: nn.Module, make=comfy.model_patcher.ModelPatcher):
    """Puts a network under the host's memory management: whole on the GPU if there is room.

    Newer hosts also have a patcher that loads weights as they are used. That would slow down every layer of every
    window; this one keeps weights at fixed addresses, as CUDA graphs need them.

    Args:
        network: On its offload device, with its weights.
        make: The host's ModelPatcher, or a class made from it.
    """
    network.eval().requires_grad_(False)
    return make(
        network,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def is_whole(patcher) -> bool:
    """Whether all of a patcher's network is on the device where it works."""
    there = patcher.load_device.type  # not its index: Apple's device is "mps", and its tensors' is "mps:0"
    return all(p.device.type == there for p in patcher.model.parameters())


def can_capture(patcher) -> bool:
    """Whether a patcher's network may be captured as a CUDA graph: it is whole on a GPU that has them, attention is
    PyTorch's, and the user has not switched graphs off (in newer hosts)."""
    is_on_gpu = all(p.device.type == "cuda" for p in patcher.model.parameters())
    is_allowed = not getattr(args, "disable_cuda_graphs", False)
    is_plain = Attention(patcher.model_options["transformer_options"]).is_pytorchs
    return is_on_gpu and is_allowed and is_plain and cuda.can_capture(patcher.load_device)


class Attention:
    """The attention that the user chose, looked up each time it is used: packs may replace it while the host runs.

    Shapes are those of `pytorch_attention`.

    Attributes:
        transformer_options: Those of the MODEL, where `optimized_attention_override` may be.
    """

    def __init__(self, transformer_options: dict[str, Any] | None = None):
        self.transformer_options = transformer_options or {}

    @property
    def is_pytorchs(self) -> bool:
        return not self.transformer_options and host_attention.optimized_attention is host_attention.attention_pytorch

    @property
    def may_fuse(self) -> bool:
        """Whether the fused kernels may stand in for it: they know nothing of a MODEL's override."""
        return not self.transformer_options

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.is_pytorchs:  # through the host it may take a slower kernel
            return pytorch_attention(q, k, v)
        return host_attention.optimized_attention(
            q,
            k,
            v,
            heads=q.shape[1],
            skip_reshape=True,
            skip_output_reshape=True,
            transformer_options=self.transformer_options,
        )


def store_in_fp8(unet: UNet) -> None:
    """Stores the weights of a UNet's `stored_layers` in fp8, which the host casts when it uses them.

    The host's cast knows no scale. So each weight is stored divided by a power of two that brings it to where fp8 is
    exact, and its layer's input is multiplied by that.
    """
    for layer in stored_layers(unet):
        deviation = layer.weight.float().std().clamp(min=torch.finfo(torch.float16).tiny).item()
        scale = 2.0 ** round(math.log2(deviation))
        layer.weight = nn.Parameter((layer.weight / scale).to(FP8), requires_grad=False)
        layer.comfy_cast_weights = True
        layer.register_forward_pre_hook(partial(_scaled, scale))


def _scaled(scale: float, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] * scale,)


def load(patchers: list, memory: int) -> None:
    """Loads networks onto their device, as much of them as fits.

    Args:
        patchers: From `make_patcher`.
        memory: Bytes to keep free for activations.
    """
    for patcher in patchers:
        set_layout(patcher.model, patcher.load_device)
    comfy.model_management.load_models_gpu(patchers, memory_required=memory)
    for patcher in patchers:
        move_other_layers(patcher.model, patcher.load_device)
        set_layout(patcher.model, patcher.load_device)


def set_layout(network: nn.Module, device: torch.device) -> None:
    """Makes the weights of convolutions channels-last on the device that they work on, where that is fastest, and
    contiguous elsewhere: the host pins no others, and copies others to the GPU number by number."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            layout = torch.channels_last if module.weight.device == device else torch.contiguous_format
            if not module.weight.is_contiguous(memory_format=layout):  # those of 1x1 are both, and must stay in place
                module.weight.data = module.weight.data.contiguous(memory_format=layout)


def move_other_layers(network: nn.Module, device: torch.device) -> None:
    """Moves what the host's partial loading leaves on the CPU: layers that are not its own, such as norms, as it does
    not move them when they are used. They are small."""
    for module in network.modules():
        if not hasattr(module, "comfy_cast_weights") and not list(module.children()):
            module.to(device)


def trim_window(video) -> tuple[float, float]:
    """The part of a VIDEO to use, as start and duration in seconds; duration 0 is all. Older hosts cannot trim."""
    return video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0.0, 0.0)


def advanced(input_class, *args, **kwargs):
    """Makes an input that the page hides under "advanced"; hosts before 0.33 take that as an extra."""
    if "advanced" in inspect.signature(input_class.__init__).parameters:
        return input_class(*args, advanced=True, **kwargs)
    made = input_class(*args, **kwargs)
    made.extra_dict = {**(made.extra_dict or {}), "advanced": True}
    return made


def search_aliases(words: str) -> dict[str, list[str]]:
    """Other words, with commas between them, by which the page's search finds a node: a field of io.Schema, which older
    hosts lack."""
    from comfy_api.latest import io  # not before the host's version is checked

    return {"search_aliases": words.split(", ")} if "search_aliases" in inspect.signature(io.Schema).parameters else {}


def float_dtype(name: str, parameters: int) -> torch.dtype:
    """The type of this name; "auto" is what the host would choose for a network with so many parameters."""
    if name != "auto":
        return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]
    return comfy.model_management.unet_dtype(
        device=comfy.model_management.get_torch_device(),
        model_params=parameters,
        supported_dtypes=[torch.float16, torch.bfloat16, torch.float32],
    )
