"""The denoising UNet as a MODEL of the host: for LoRAs, and for the attention of other packs."""

from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
from torch import Tensor, nn

from ..personalive_core.errors import InputError
from ..personalive_core.networks.blocks import PackedAttention
from ..personalive_core.networks.denoising_unet import DenoisingUNet
from ..personalive_core.networks.fp8 import FP8
from . import compat

OVERRIDE = "optimized_attention_override"


class UNetModel(nn.Module):
    """The denoising UNet under the name that the host gives to a MODEL's network.

    Its state dict has the packed weights as well as their parts: the host finds a LoRA's target by the names of the
    parts, and patches the packed weights.
    """

    def __init__(self, diffusion_model: DenoisingUNet, attention: compat.Attention):
        super().__init__()
        self.diffusion_model, self.attention = diffusion_model, attention
        self.model_config = SimpleNamespace(unet_config={}, sampling_settings={})  # its names need no translation

    def get_dtype(self):
        return self.diffusion_model.get_dtype()

    def _refuse(self):
        raise InputError(
            "only PersonaLive's own nodes can sample this UNet: connect it to 'unet' of PersonaLive Sample or Live, "
            "not to another sampler."
        )

    latent_format = model_sampling = property(_refuse)  # what samplers ask for first

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        return super().state_dict(*args, **kwargs) | dict(self.named_parameters())


class UNetPatcher(comfy.model_patcher.ModelPatcher):
    """The host's patcher of a `UNetModel`."""

    def model_size(self) -> int:
        """In bytes. The host reads it from the state dict, which here holds some weights twice."""
        return comfy.model_management.module_size(self.model.diffusion_model)

    def add_patches(self, patches: dict, strength_patch: float = 1.0, strength_model: float = 1.0) -> list:
        """Those of queries, keys and values go to their part of the packed weights."""
        placed = {self._placed(key): key for key in patches}
        moved = {place: patches[key] for place, key in placed.items()}
        return [placed[place] for place in super().add_patches(moved, strength_patch, strength_model)]

    def _placed(self, key: Any) -> Any:
        """The packed weight of a part, with the rows of the part, as the host writes it."""
        path, _, part = key.rpartition(".to_") if isinstance(key, str) else ("", "", "")
        parts = [part.removeprefix("to_") for part in PackedAttention.PARTS]
        layer = self.model.get_submodule(path) if part in parts else None
        if not isinstance(layer, PackedAttention):
            return key
        width = layer.to_qkv.in_features
        return (f"{path}.to_qkv.weight", (0, width * parts.index(part), width))

    def check(self) -> None:
        """InputError where a node has left a patch that would have no effect here."""
        options = self.model_options
        ignored = [name for name in options if name != "transformer_options" and options[name]]
        for name, value in options["transformer_options"].items():
            if name != OVERRIDE and value:
                ignored += value if name in ("patches", "patches_replace") else [name]
        ignored += [key for wrappers in self.wrappers.values() for key, found in wrappers.items() if found]
        ignored += [*self.object_patches, *self.weight_wrapper_patches, *self.injections]
        if any(comfy.utils.get_attr(self.model, key).dtype == FP8 for key in self.patches):
            raise InputError("a LoRA cannot change weights in fp8: set another 'precision' in Load PersonaLive Model.")
        if ignored:
            raise InputError(
                f"the UNet has patches that PersonaLive cannot apply ({', '.join(dict.fromkeys(ignored))}): remove the "
                "node that adds them. LoRAs and replaced attention can be applied."
            )
