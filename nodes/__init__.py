"""ComfyUI's dialect: schemas, memory, progress, files. All arithmetic is in personalive_core."""

from . import compat

compat.require_host()

from comfy_api.latest import ComfyExtension, io  # noqa: E402

from .assemble import AssembleVideo  # noqa: E402
from .load import LoadModel  # noqa: E402
from .motion import ExtractMotion, PreviewMotion  # noqa: E402
from .reference import EncodeReference  # noqa: E402
from .sample import Sample  # noqa: E402


class PersonaLiveExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadModel, EncodeReference, ExtractMotion, PreviewMotion, Sample, AssembleVideo]


async def comfy_entrypoint() -> PersonaLiveExtension:
    return PersonaLiveExtension()
