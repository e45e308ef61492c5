"""Finds the published weights in the layouts that people have."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..config import ModelConfig
from ..errors import InputError
from . import hub

_log = logging.getLogger(__name__)

NETWORK_FILES: dict[str, tuple[str, ...]] = {
    "denoising_unet": ("denoising_unet", "temporal_module"),
    "reference_unet": ("reference_unet",),
    "motion_encoder": ("motion_encoder",),
    "motion_extractor": ("motion_extractor",),
    "pose_guider": ("pose_guider",),
}
"""Network -> the names of the checkpoints that hold it."""

CHECKPOINTS = tuple(name for names in NETWORK_FILES.values() for name in names)

SIZES_FILE = "sizes.json"

MINIATURE = Path(__file__).parents[1] / "miniature"
"""A weights folder that comes with the package: small networks that know drawn faces (tools/train_miniature.py)."""

EXAMPLE = MINIATURE / "example"
"""Input for it, drawn by tools/make_example.py: portrait.png, driving.mp4, and right_answer.mp4 to compare with."""

# Where the six files are in a weights folder: flat or as `download` puts them, as the authors' tool has them, as
# another pack has them in the host's models folder.
_LAYOUTS = (
    "",
    "personalive",
    "pretrained_weights/personalive",
    "persona_live/persona_live/pretrained_weights/personalive",
)


@dataclass(frozen=True)
class WeightFiles:
    """What was found in a weights folder: the path of each part, None where it is missing."""

    folder: Path
    denoising_unet: Path | None
    temporal_module: Path | None
    reference_unet: Path | None
    motion_encoder: Path | None
    motion_extractor: Path | None
    pose_guider: Path | None
    vae: Path | None  # a folder, as diffusers reads it
    image_encoder: Path | None  # a folder, as transformers reads it

    @property
    def config(self) -> ModelConfig:
        """The published sizes, unless a model of other sizes says so in a `sizes.json` beside its checkpoints."""
        beside = self.pose_guider.with_name(SIZES_FILE) if self.pose_guider else None
        return ModelConfig.read(beside) if beside and os.path.isfile(beside) else ModelConfig()

    @property
    def missing(self) -> tuple[hub.HubFile, ...]:
        """The files to fetch for the parts that are not there."""
        return tuple(
            file
            for file in hub.FILES
            if getattr(self, file.part) is None and not os.path.isfile(self.folder / file.target)
        )

    def paths(self, network: str) -> list[Path]:
        """The checkpoints of a network ("denoising_unet" has two), for `load_network`; InputError if one is missing."""
        self.require(NETWORK_FILES[network])
        paths: list[Path] = [getattr(self, name) for name in NETWORK_FILES[network]]
        for path in paths:
            if path.suffix == ".pth" and os.path.isfile(converted := path.with_suffix(".safetensors")):
                _log.warning("%s is newer than %s and is used in its place: convert it, or delete one", path, converted)
        return paths

    def require(self, parts: Iterable[str] = (*CHECKPOINTS, "vae", "image_encoder")) -> None:
        """InputError if one of `parts` is missing: it lists each file with its address and the folder it belongs in."""
        parts = set(parts)
        missing = [file for file in self.missing if file.part in parts]
        if missing:
            raise InputError(
                f"{len(missing)} weight files are not in {self.folder} (about "
                f"{sum(file.size for file in missing) / 1e9:.1f} GB): run `python -m personalive_core download`, or "
                f"fetch by hand:\n{hub.by_hand(missing, self.folder)}"
            )


def find_weights(folder: Path | str) -> WeightFiles:
    """Looks for the parts in `folder`, in the layouts people have: as `download` makes it, the six files alone, the
    `pretrained_weights` of the authors' tool, that of another pack in a host's models folder. A converted
    `.safetensors` goes before the `.pth` beside it, unless the `.pth` is newer."""
    folder = Path(folder).absolute()
    homes = [folder / layout for layout in _LAYOUTS]
    found = {
        name: next(filter(None, (_newer(home / f"{name}.safetensors", home / f"{name}.pth") for home in homes)), None)
        for name in CHECKPOINTS
    }
    # The two folders are beside the six files' folder or further up.
    bases = [base for home in homes for base in (home, *home.parents[:2])]

    def model_folder(*names: str) -> Path | None:
        return next(filter(_holds_model, (base / name for base in bases for name in names)), None)

    return WeightFiles(
        folder,
        **found,
        vae=model_folder("sd-vae-ft-mse", "vae"),
        image_encoder=model_folder("sd-image-variations-diffusers/image_encoder", "image_encoder"),
    )


def _first(paths: Iterable[Path]) -> Path | None:
    return next(filter(os.path.isfile, paths), None)  # False also where it cannot be looked at


def _newer(converted: Path, original: Path) -> Path | None:
    """The one that was written last; of both at once, the converted one."""
    there = [path for path in (converted, original) if os.path.isfile(path)]
    return max(there, key=os.path.getmtime, default=None)


def _holds_model(folder: Path) -> bool:
    return weights_in(folder) is not None and os.path.isfile(folder / "config.json")


def weights_in(folder: Path) -> Path | None:
    """The weights in a folder of diffusers or transformers."""
    stems = ("diffusion_pytorch_model", "model", "pytorch_model")
    return _first(folder / f"{stem}{suffix}" for stem in stems for suffix in (".safetensors", ".bin"))
