"""ComfyUI's dialect: schemas, memory, progress, files. All arithmetic is in personalive_core."""

from . import compat

compat.require_host()

from comfy_api.latest import ComfyExtension, io

from .assemble import AssembleVideo
from .load import LoadModel
from .motion import ExtractMotion, PreviewMotion
from .reference import EncodeReference
from .sample import Sample


class PersonaLiveExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadModel, EncodeReference, ExtractMotion, PreviewMotion, Sample, AssembleVideo]


async def comfy_entrypoint() -> PersonaLiveExtension:
    return PersonaLiveExtension()
