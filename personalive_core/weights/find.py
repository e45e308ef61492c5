"""Finds the published weights, reads them safely, checks every key and shape, and makes a smaller set of them."""

import logging
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import InputError
from ..networks.denoising_unet import DenoisingUNet
from ..networks.motion_encoder import MotionEncoder
from ..networks.motion_extractor import MotionExtractor
from ..networks.pose_guider import PoseGuider
from ..networks.reference_unet import ReferenceUNet
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
_COMPUTED = {
    "pe",
    "idx_tensor",
    "num_batches_tracked",
}  # buffers that are made anew, whether a checkpoint has them or not
_UNUSED = "detector.fc_exp."  # expression head of the motion extractor: trained, published, not used by the model

Network = TypeVar("Network", bound=nn.Module)


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
        return ModelConfig.read(beside) if beside and beside.is_file() else ModelConfig()

    @property
    def missing(self) -> tuple[hub.HubFile, ...]:
        """The files to fetch for the parts that are not there."""
        return tuple(
            file for file in hub.FILES if getattr(self, file.part) is None and not (self.folder / file.target).is_file()
        )

    def paths(self, network: str) -> list[Path]:
        """The checkpoints of a network ("denoising_unet" has two), for `load_network`; InputError if one is missing."""
        self.require(NETWORK_FILES[network])
        return [getattr(self, name) for name in NETWORK_FILES[network]]

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
    `.safetensors` goes before the `.pth` beside it."""
    folder = Path(folder).absolute()
    homes = [folder / layout for layout in _LAYOUTS]
    found = {
        name: _first(home / f"{name}{suffix}" for home in homes for suffix in (".safetensors", ".pth"))
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
    return next((path for path in paths if path.is_file()), None)


def _holds_model(folder: Path) -> bool:
    return weights_in(folder) is not None and (folder / "config.json").is_file()


def weights_in(folder: Path) -> Path | None:
    """The weights in a folder of diffusers or transformers."""
    stems = ("diffusion_pytorch_model", "model", "pytorch_model")
    return _first(folder / f"{stem}{suffix}" for stem in stems for suffix in (".safetensors", ".bin"))


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.safetensors` file, mapped (read when used) where the format allows it, on the CPU.

    Code in a pickle is refused, never run. InputError: not there, empty, truncated, no checkpoint, code in it.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file: run `python -m personalive_core download`.")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}).") from error
    if head.startswith(b"version https://git-"):
        raise InputError(f"{path} ({size} bytes) only points to a file kept by git-lfs: download the file itself.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        zipped = head.startswith(b"PK")  # only this form of `torch.save` can be mapped
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise anything; PyTorch's words advise to load it unsafely
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} ({size} bytes) is a pickle that wants to use {code[1]}, which was refused and not run: "
                "delete the file and download it from its own address."
            ) from error
        raise InputError(
            f"{path} ({size} bytes) is truncated or no checkpoint (nothing in it was run): download it again."
        ) from error
    if not isinstance(checkpoint, dict) or not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise InputError(f"{path} ({size} bytes) does not hold names and tensors alone: download it again.")
    return checkpoint


def checked_state_dict(network: nn.Module, paths: Sequence[Path]) -> dict[str, Tensor]:
    """What `network` (best on the meta device) loads strictly from its checkpoints, on the CPU in the files' types.

    Merges the files; leaves out buffers that are computed and weights the model has no use for; starts the batch
    counters of batch norms at 0. InputError names file and keys: missing, unknown, in two files, of another shape or
    not floating point. Of two paths the first is the 2D UNet with motion modules, the second the temporal modules.
    """
    expected = network.state_dict()
    merged, origin = {}, {}
    for path in paths:
        for key, value in _used(path, load_checkpoint(path), expected).items():
            if key in merged:
                raise InputError(f"{key} is both in {origin[key]} and in {path}: download both again.")
            merged[key], origin[key] = value, path
    counters = {key: torch.zeros_like(value, device="cpu") for key, value in expected.items() if _is_computed(key)}
    problems = []
    for path in paths:
        missing = [
            key
            for key in expected.keys() - counters.keys() - merged.keys()
            if path == (paths[-1] if ".temporal_modules." in key else paths[0])
        ]
        mine = [key for key in merged if origin[key] == path]
        unknown = [key for key in mine if key not in expected]
        other = [
            f"{key} {tuple(merged[key].shape)} in place of {tuple(expected[key].shape)}"
            for key in mine
            if key in expected and merged[key].shape != expected[key].shape
        ]
        integer = [f"{key} {merged[key].dtype}" for key in mine if not merged[key].is_floating_point()]
        for what, keys in (
            ("lacks", sorted(missing)),
            ("has unknown keys:", unknown),
            ("has other shapes:", other),
            ("is not floating point at", integer),
        ):
            if keys:
                problems.append(f"{path} {what} {_some(keys)}")
    if problems:
        raise InputError(
            f"{'; '.join(problems)}: this is not the published {type(network).__name__}, download it again."
        )
    return {key: counters[key] if key in counters else merged[key] for key in expected}


def _is_computed(key: str) -> bool:
    return key.rpartition(".")[2] in _COMPUTED


def _used(path: Path, checkpoint: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    used = {k: v for k, v in checkpoint.items() if not _is_computed(k) and not k.startswith(_UNUSED)}
    if path.stem == "motion_extractor":  # published with heads of its training that the model has no use for
        extra = [key for key in used if key not in expected]
        if extra:
            _log.info("%s: not used: %s", path, _some(extra))
        used = {key: value for key, value in used.items() if key in expected}
    return used


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(keys[:5]) + more


def load_network(network: Network, paths: Sequence[Path], dtype: torch.dtype | None = None) -> Network:
    """Gives `network`, made on the meta device, the weights of its checkpoints; on the CPU, ready for inference.

    dtype None keeps the files' own, and the weights stay mapped. InputError as in `checked_state_dict`.
    """
    state_dict = checked_state_dict(network, paths)
    if dtype is not None:
        state_dict = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_dict.items()}
    network.load_state_dict(state_dict, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def meta_networks(config: ModelConfig | None = None) -> dict[str, nn.Module]:
    """The five networks without weights (on the meta device), by the names in `NETWORK_FILES`."""
    config = config or ModelConfig()
    return {
        "denoising_unet": DenoisingUNet(config.unet, device="meta"),
        "reference_unet": ReferenceUNet(config.unet, device="meta"),
        "motion_encoder": MotionEncoder(config.motion_encoder, device="meta"),
        "motion_extractor": MotionExtractor(config.motion_extractor, device="meta"),
        "pose_guider": PoseGuider(config.pose_guider, device="meta"),
    }


def convert(source: WeightFiles, target: Path, progress: hub.Progress | None = None) -> None:
    """Writes the six checkpoints to `target` as `<name>.safetensors`, checked, without what the model does not use.

    In float16, but the motion extractor in float32: its keypoints are rounded to pixels. One file in memory at a
    time; a file gets its name once it is whole, and one that is there and whole stays. InputError: a file is missing,
    does not fit the model or float16, or the disk is too small. An exception from `progress` leaves no half file.
    """
    networks = meta_networks(source.config)
    todo = []
    for network, names in NETWORK_FILES.items():
        paths = source.paths(network)
        used = checked_state_dict(networks[network], paths).keys()
        for name, path in zip(names, paths, strict=True):
            keys = {key for key in load_checkpoint(path) if key in used and not _is_computed(key)}
            if not _is_converted(target / f"{name}.safetensors", keys):
                todo.append((name, path, keys))
    total = sum(
        value.numel() * _dtype(name).itemsize
        for name, path, keys in todo
        for key, value in load_checkpoint(path).items()
        if key in keys
    )
    try:
        target.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target).free
        if total > free:
            raise InputError(
                f"{target} has {free / 1e9:.2f} GB free and the converted files need {total / 1e9:.2f} GB: "
                "free some space or choose another folder."
            )
        if source.config != ModelConfig():
            source.config.write(target / SIZES_FILE)
        done = 0
        for name, path, keys in todo:
            cast, dtype = {}, _dtype(name)
            for key, value in load_checkpoint(path).items():
                if key in keys:
                    cast[key] = _cast(path, key, value, dtype)
                    done += cast[key].nbytes
                    if progress:
                        progress(f"{name}.safetensors", done, total)
            _write(cast, target / f"{name}.safetensors", path.name)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target} cannot be written ({error}): choose another folder.") from error


def _dtype(name: str) -> torch.dtype:
    return torch.float32 if name == "motion_extractor" else torch.float16


def _is_converted(path: Path, keys: set[str]) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys()) == keys
    except (OSError, SafetensorError):
        return False


def _cast(path: Path, key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    limit = torch.finfo(dtype).max
    low, high = value.aminmax()
    if not (-limit <= low and high <= limit):  # also for NaN
        raise InputError(
            f"{key} in {path} goes from {low:.3g} to {high:.3g}, which {dtype} cannot hold: use the file as it is, "
            "without converting."
        )
    return value.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _write(state_dict: dict[str, Tensor], path: Path, source: str) -> None:
    partial = path.with_name(f"{path.name}.part")
    try:
        save_file(state_dict, partial, metadata={"format": "pt", "source": source})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
