"""ComfyUI's dialect: schemas, memory, progress, files. All arithmetic is in personalive_core."""

from . import compat

compat.require_host()

from comfy_api.latest import ComfyExtension, io

from . import download, live
from .adjust import AdjustMotion
from .assemble import AssembleVideo
from .driving_crop import CropDriving
from .encoders import LoadEncoders
from .example import ExampleInput
from .load import LoadModel
from .motion import ExtractMotion, MakeContactSheet, PreviewMotion
from .motion_file import LoadMotion, SaveMotion
from .portrait import CropPortrait, PasteBackNode
from .reference import EncodeReference
from .sample import Sample


class PersonaLiveExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadModel,
            LoadEncoders,
            CropPortrait,
            EncodeReference,
            CropDriving,
            ExtractMotion,
            PreviewMotion,
            AdjustMotion,
            SaveMotion,
            LoadMotion,
            Sample,
            live.Live,
            AssembleVideo,
            PasteBackNode,
            MakeContactSheet,
            ExampleInput,
        ]


async def comfy_entrypoint() -> PersonaLiveExtension:
    download.add_routes()
    live.add_routes()
    return PersonaLiveExtension()
