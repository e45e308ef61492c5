"""Load PersonaLive Model: the weights, checked, in networks that the host's memory management holds."""

from dataclasses import dataclass, field, replace

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor, nn

from ..personalive_core import memory
from ..personalive_core.config import ModelConfig
from ..personalive_core.errors import InputError
from ..personalive_core.media.video_writer import check_pyav
from ..personalive_core.networks.denoising_unet import DenoisingUNet
from ..personalive_core.networks.fp8 import FP8
from ..personalive_core.networks.motion_encoder import MotionEncoder
from ..personalive_core.networks.motion_extractor import MotionExtractor
from ..personalive_core.networks.pose_guider import PoseGuider
from ..personalive_core.networks.reference_unet import ReferenceUNet
from ..personalive_core.networks.spatial import UNet
from ..personalive_core.weights.find import WeightFiles
from ..personalive_core.weights.load import checked_state_dict, meta_networks, network_dtype
from . import compat
from .say import say
from .unet import UNetModel, UNetPatcher
from .weights import OFFICIAL, checkpoint_files, fingerprint, require, set_fingerprint, weight_sets


@dataclass(frozen=True)
class PersonaLiveModel:
    """The five networks, each behind a patcher of the host (which holds patchers only weakly)."""

    patchers: dict[str, object] = field(repr=False)
    files: WeightFiles
    dtype: torch.dtype  # of the UNets
    identity: str  # tells models apart: a reference belongs to the model that made it

    def get_models(self) -> list:
        return list(self.patchers.values())

    @property
    def device(self) -> torch.device:
        return self.patchers["denoising_unet"].load_device

    def network(self, name: str) -> nn.Module:
        model = self.patchers[name].model
        return model.diffusion_model if isinstance(model, UNetModel) else model

    def load(self, *names: str, memory: int) -> list[nn.Module]:
        """Brings networks to the device with `memory` bytes to spare for activations; as much of them as fits."""
        compat.load([self.patchers[name] for name in names], memory)
        return [self.network(name) for name in names]

    def with_unet(self, unet) -> "PersonaLiveModel":
        """The same with its denoising UNet as other nodes have patched it: a MODEL, or None.

        Raises:
            InputError: It is not of this model, or has patches that would have no effect.
        """
        own = self.patchers["denoising_unet"]
        unet = own if unet is None else unet
        if not own.is_clone(unet):
            raise InputError("the UNet is of another model: connect that of the same Load PersonaLive Model.")
        unet.check()
        if unet is not own and not unet.patches and not unet.model_options["transformer_options"]:
            say(
                "What is connected to 'unet' changes nothing: a LoRA may be made for another model, or name its keys "
                "otherwise."
            )
        own.model.attention.transformer_options = unet.model_options["transformer_options"]
        return replace(self, patchers=self.patchers | {"denoising_unet": unet})

    def load_motion_extractor(self) -> MotionExtractor:
        """For the keypoints of one picture at a time."""
        return self.load("motion_extractor", memory=memory.motion(512, 512))[0]


ModelType = io.Custom("PERSONALIVE_MODEL")


def load_model(files: WeightFiles, precision: str) -> PersonaLiveModel:
    device = comfy.model_management.get_torch_device()
    if precision == "fp8" and not comfy.model_management.supports_cast(device, FP8):
        raise InputError(f"ComfyUI cannot use fp8 on {device}: set another 'precision' in Load PersonaLive Model.")
    networks = meta_networks(files.config)
    bar = comfy.utils.ProgressBar(len(networks))
    patchers = {}
    for name, expected in networks.items():
        comfy.model_management.throw_exception_if_processing_interrupted()
        parameters = sum(value.numel() for value in expected.parameters())
        dtype = network_dtype(name, compat.float_dtype("auto" if precision == "fp8" else precision, parameters))
        state_dict = checked_state_dict(expected, files.paths(name), dtype)
        patchers[name] = _patcher(name, files.config, dtype, state_dict, precision == "fp8")
        bar.update(1)
    dtype = patchers["denoising_unet"].model.get_dtype()
    return PersonaLiveModel(patchers, files, dtype, f"{fingerprint(checkpoint_files(files))} {precision}")


def _patcher(name: str, config: ModelConfig, dtype: torch.dtype, state_dict: dict[str, Tensor], in_fp8: bool):
    """The patcher of a network with these weights, of which the UNets' may be stored in fp8."""
    layers = dict(dtype=dtype, device="meta", operations=comfy.ops.disable_weight_init)
    attention = compat.Attention()
    network: nn.Module
    if name == "denoising_unet":
        network = DenoisingUNet(config.unet, attention=attention, **layers)
    elif name == "reference_unet":
        network = ReferenceUNet(config.unet, attention=attention, **layers)
    elif name == "motion_encoder":
        network = MotionEncoder(config.motion_encoder, attention=attention, **layers)
    elif name == "motion_extractor":
        network = MotionExtractor(config.motion_extractor, **layers)
    else:
        network = PoseGuider(config.pose_guider, **layers)
    network.load_state_dict(state_dict, strict=True, assign=True)
    if in_fp8 and isinstance(network, UNet):
        compat.store_in_fp8(network)
    if isinstance(network, DenoisingUNet):
        return compat.make_patcher(UNetModel(network, attention), UNetPatcher)
    return compat.make_patcher(network)


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveLoadModel",
            display_name="Load PersonaLive Model",
            category="PersonaLive",
            **compat.search_aliases(
                "live portrait, liveportrait, face animate, animate portrait, talking head, avatar, portrait video, "
                "reenact, miniature, persona live"
            ),
            description="Loads the networks of PersonaLive: the official weights, others in models/personalive, or the "
            "small ones that come with the nodes.",
            inputs=[
                io.Combo.Input(
                    "weights",
                    options=list(weight_sets()),
                    default=OFFICIAL,
                    tooltip="The set of weights: 'official', or a folder under models/personalive. 'miniature' comes "
                    "with the nodes: small networks that know drawn faces alone, 128 x 128, to try everything without "
                    "a download.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", "fp16", "bf16", "fp32", "fp8"],
                    default="auto",
                    tooltip="Number format of the networks. 'auto' is what ComfyUI chooses for your card. 'fp8' stores "
                    "most weights of the UNets in 8 bits and computes as 'auto': less memory, less exact, slower.",
                ),
            ],
            outputs=[
                ModelType.Output(
                    display_name="model",
                    tooltip="The five networks. Connect the same model to every node that takes one.",
                ),
                io.Model.Output(
                    display_name="unet",
                    tooltip="The denoising UNet alone, for nodes that load a LoRA or replace attention. Connect what "
                    "comes out to 'unet' of Sample or Live.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, weights: str, **_) -> str:
        return set_fingerprint(weights)

    @classmethod
    def execute(cls, weights: str, precision: str) -> io.NodeOutput:
        check_pyav()  # now, and not when everything is sampled
        model = load_model(require(weights), precision)
        return io.NodeOutput(model, model.patchers["denoising_unet"])
