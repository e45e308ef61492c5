"""Nodes and a page for the tests alone, linked beside the pack: what no file can hold, and what no user can ask."""

import copy
import sys
import time
from types import SimpleNamespace

import av
import comfy.model_management
import torch
from aiohttp import web
from server import PromptServer

PICTURES = {
    "empty": lambda: torch.zeros(0, 128, 128, 3),
    "nan": lambda: torch.full((1, 128, 128, 3), float("nan")),
    "one pixel": lambda: torch.full((1, 1, 1, 3), 0.5),
    "grey": lambda: torch.full((1, 128, 128, 1), 0.5),
}


class TestPicture:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (list(PICTURES),)}}

    def make(self, kind):
        return (PICTURES[kind](),)


class TestFloatRate:
    """Sound with its rate as a float, as some nodes make it."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("AUDIO",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"audio": ("AUDIO",)}}

    def make(self, audio):
        return ({**audio, "sample_rate": float(audio["sample_rate"])},)


class TestOutOfMemory:
    """Passes the model on; the next call of its denoising UNet finds no memory, the one after that does."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "arm", ("PERSONALIVE_MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("PERSONALIVE_MODEL",)}}

    def arm(self, model):
        (module,) = (m for name, m in sys.modules.items() if name.endswith("networks.denoising_unet"))
        network, forward = module.DenoisingUNet, module.DenoisingUNet.forward

        def fail(*args, **kwargs):
            network.forward = forward
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        network.forward = fail
        return (model,)


class TestNoRoom:
    """Passes the model on; the next time that it is asked, no network of ours is whole on its device."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "arm", ("PERSONALIVE_MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("PERSONALIVE_MODEL",)}}

    def arm(self, model):
        (module,) = (m for name, m in sys.modules.items() if name.endswith("nodes.compat"))
        is_whole = module.is_whole

        def fail(patcher):
            module.is_whole = is_whole
            return False

        module.is_whole = fail
        return (model,)


class TestPyAV:
    """Has PyAV say that it is of this version; empty is the real one."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "pretend", ("STRING",)
    real = av.__version__

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"version": ("STRING", {})}}

    def pretend(self, version):
        av.__version__ = version or self.real
        return (av.__version__,)


class TestAttention:
    """Replaces the attention of a MODEL by its own, times a factor."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "patch", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "scale": ("FLOAT", {})}}

    def patch(self, model, scale):
        model = model.clone()
        options = model.model_options["transformer_options"]
        options["optimized_attention_override"] = lambda function, *args, **kwargs: scale * function(*args, **kwargs)
        return (model,)


class TestConditioning:
    """Conditioning for a Stable Diffusion UNet without a text encoder."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return ([[torch.zeros(1, 77, 768), {}]],)


class TestDecoders:
    """How far the pack's decoding is from the host's own."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "compare", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def compare(self, samples, vae):
        (module,) = (m for name, m in sys.modules.items() if name.endswith("nodes.decode"))
        ours = torch.cat([frames.cpu() for frames in module.decoded(vae, samples["samples"])])
        theirs = vae.decode(samples["samples"])
        return {"ui": {"error": [((ours - theirs).norm() / theirs.norm()).item()], "frames": [len(ours)]}}


class TestDecoderTypes:
    """The types of the weights of the pack's decoder, for a VAE whose own are of another type than the one that it
    works in, with layers as the host makes them for dynamic VRAM. Older hosts have none."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "make", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",)}}

    def make(self, vae):
        (module,) = (m for name, m in sys.modules.items() if name.endswith("nodes.decode"))
        settings = sys.modules.get("comfy.memory_management", SimpleNamespace(aimdo_enabled=False))
        before, settings.aimdo_enabled = settings.aimdo_enabled, True
        try:
            with_other_type = SimpleNamespace(first_stage_model=vae.first_stage_model, vae_dtype=torch.bfloat16)
            decoder = module._make_patcher(with_other_type, vae.first_stage_model.decoder).model
        finally:
            settings.aimdo_enabled = before
        return {"ui": {"types": sorted({str(x.dtype) for x in decoder.parameters()})}}


class TestStrays:
    """What `move_other_layers` moves of each network, with the meta device in place of a GPU."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "move", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("PERSONALIVE_MODEL",), "vae": ("VAE",)}}

    def move(self, model, vae):
        (module,) = (m for name, m in sys.modules.items() if name.endswith("nodes.compat"))
        (decoding,) = (m for name, m in sys.modules.items() if name.endswith("nodes.decode"))
        moved, stayed = set(), set()
        for patcher in (*model.patchers.values(), decoding.patcher_of(vae)):
            network = copy.deepcopy(patcher.model)
            module.move_other_layers(network, torch.device("meta"))
            for layer in network.modules():
                for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
                    (moved if tensor.is_meta else stayed).add(type(layer).__name__)
        return {"ui": {"moved": sorted(moved), "stayed": sorted(stayed)}}


class TestProgress:
    """Says something, and makes slow progress."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "go", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING",)}}

    def go(self, text):
        (module,) = (m for name, m in sys.modules.items() if name.endswith("nodes.say"))
        if text:
            module.say(text)
        progress = module.Progress(4, "frames")
        for done in range(1, 5):
            time.sleep(0.6)
            progress.update(done, 4)
        return {}


class TestCompiling:
    """Says what the kernels say when two of them are compiled."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "go", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def go(self):
        (module,) = (m for name, m in sys.modules.items() if name.endswith("networks.fused"))
        for _ in range(2):
            module.say_compiling(module.COMPILING)
        return {}


@PromptServer.instance.routes.get("/test/loaded_models")
async def loaded_models(request):
    return web.json_response([loaded.model.model.__class__.__name__ for loaded in _loaded()])


def _loaded():
    return [loaded for loaded in comfy.model_management.current_loaded_models if loaded.model is not None]


NODE_CLASS_MAPPINGS = {
    "TestPicture": TestPicture,
    "TestFloatRate": TestFloatRate,
    "TestOutOfMemory": TestOutOfMemory,
    "TestNoRoom": TestNoRoom,
    "TestPyAV": TestPyAV,
    "TestAttention": TestAttention,
    "TestConditioning": TestConditioning,
    "TestDecoders": TestDecoders,
    "TestDecoderTypes": TestDecoderTypes,
    "TestStrays": TestStrays,
    "TestProgress": TestProgress,
    "TestCompiling": TestCompiling,
}
