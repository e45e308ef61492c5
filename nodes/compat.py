"""Everything that differs between host versions, from 0.3.64 on."""

import inspect

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfyui_version
import torch
from comfy.cli_args import args
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from torch import Tensor, nn

from ..personalive_core.networks.attention import pytorch_attention
from ..personalive_core.sampling import cuda

OLDEST = (0, 3, 64)


def require_host() -> None:
    version = comfyui_version.__version__
    if tuple(int(part) for part in version.split(".")[:3]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RuntimeError(f"PersonaLive needs ComfyUI {oldest} or newer, and this is {version}: update ComfyUI.")


def make_patcher(network: nn.Module, state_dict: dict[str, Tensor]):
    """A network with its weights, behind the host's memory management: whole on the GPU where there is room.

    Newer hosts have a patcher that maps weights in as they are used. It costs every layer of every window; this one
    does not, and keeps weights where a CUDA graph can rely on them.
    """
    network.to(memory_format=torch.channels_last)
    network.load_state_dict(state_dict, strict=True)
    network.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(
        network,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def can_capture(patcher) -> bool:
    """Whether a network stands whole on a GPU that has CUDA graphs, with an attention that was tried in one, and the
    user has not switched graphs off, as newer hosts let them."""
    is_whole = all(p.device.type == "cuda" for p in patcher.model.parameters())
    is_allowed = not getattr(args, "disable_cuda_graphs", False)
    return (
        is_whole and is_allowed and optimized_attention is attention_pytorch and cuda.can_capture(patcher.load_device)
    )


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The user's choice of attention, without the choices that quantise."""
    if optimized_attention is attention_pytorch:  # the host's way through it can take a slower kernel
        return pytorch_attention(q, k, v)
    return optimized_attention(
        q, k, v, heads=q.shape[1], skip_reshape=True, skip_output_reshape=True, low_precision_attention=False
    )


def load(patchers: list, memory: int) -> None:
    """Bring networks to their device with `memory` bytes to spare for activations; as much of them as fits."""
    comfy.model_management.load_models_gpu(patchers, memory_required=memory)
    for patcher in patchers:
        bring_over(patcher.model, patcher.load_device)


def bring_over(network: nn.Module, device: torch.device) -> None:
    """Put what the host's partial loading left behind on the device: norms, which are not layers of its own and which
    it therefore does not move as they are used. They are small."""
    for module in network.modules():
        if not hasattr(module, "comfy_cast_weights") and not list(module.children()):
            module.to(device)


def trim_window(video) -> tuple[float, float]:
    """Start and duration in seconds that a VIDEO is cut to; duration 0 is all. Older hosts cannot cut."""
    return video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0.0, 0.0)


def advanced(input_class, *args, **kwargs):
    """An input that the page hides under "advanced"; hosts before 0.33 take that as an extra."""
    if "advanced" in inspect.signature(input_class.__init__).parameters:
        return input_class(*args, advanced=True, **kwargs)
    made = input_class(*args, **kwargs)
    made.extra_dict = {**(made.extra_dict or {}), "advanced": True}
    return made


def float_dtype(name: str, parameters: int) -> torch.dtype:
    """The precision asked for; "auto" is what the host would choose for a network of this size."""
    if name != "auto":
        return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]
    return comfy.model_management.unet_dtype(
        device=comfy.model_management.get_torch_device(),
        model_params=parameters,
        supported_dtypes=[torch.float16, torch.bfloat16, torch.float32],
    )
