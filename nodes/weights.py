"""Sets of weights in the host's folders: found where people have them, converted when the user asks."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import folder_paths

from ..personalive_core.errors import InputError
from ..personalive_core.weights import hub
from ..personalive_core.weights.convert import convert
from ..personalive_core.weights.find import CHECKPOINTS, MINIATURE, WeightFiles, find_weights, weights_in

OFFICIAL = "official"
FOLDER = "personalive"
# Files of the official set that belong in the host's own folders, where other workflows find them too.
HOST_FILES = {
    "sd-vae-ft-mse/diffusion_pytorch_model.safetensors": "vae",
    "sd-image-variations-diffusers/image_encoder/pytorch_model.bin": "clip_vision",
}
# Folders of the official set, as it is fetched, in the authors' tool and in another pack: no sets of their own.
PARTS = ("personalive", "pretrained_weights", "persona_live")

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER), is_default=True)
folder_paths.folder_names_and_paths[FOLDER][1].update({".pth", ".safetensors"})


def weight_sets() -> dict[str, Path]:
    """Name -> folder of each set, whole or not: "official" wherever it is, folders under models/personalive, and the
    "miniature" of this pack."""
    bases = [Path(base) for base in folder_paths.get_folder_paths(FOLDER)]
    found = [base for base in (*bases, Path(folder_paths.models_dir)) if _holds_weights(base)]
    sets = {OFFICIAL: found[0] if found else bases[0]}
    for base in bases:
        folders = (entry for entry in entries(base) if os.path.isdir(entry) and entry.name not in PARTS)
        sets |= {folder.name: folder for folder in folders if folder.name not in sets and _holds_weights(folder)}
    return sets | {MINIATURE.name: MINIATURE}


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing where it is missing or cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _holds_weights(folder: Path) -> bool:
    files = find_weights(folder)
    return any(getattr(files, name) for name in CHECKPOINTS)


def require(name: str) -> WeightFiles:
    """The six checkpoints of a set. InputError: no such set, or a file is missing."""
    folder = weight_sets().get(name)
    if folder is None:
        raise InputError(f"there are no weights {name!r} in models/{FOLDER}: choose another set.")
    files = find_weights(folder)
    lacking = [Path(file.target).name for file in files.missing if file.part in CHECKPOINTS]
    if lacking:
        size = sum(file.size for file in missing_official()) / 1e9
        official = f"press 'Download weights' on this node ({size:.1f} GB), or run `personalive download`"
        advice = official if name == OFFICIAL else "put them beside the other files"
        raise InputError(f"the weights {name!r} lack {', '.join(lacking)}: {advice}.")
    return files


def missing_official() -> list[hub.HubFile]:
    """What to download: missing checkpoints, and VAE and image encoder into the host's own folders, unless they are
    there or come with the set."""
    found = find_weights(weight_sets()[OFFICIAL])
    files = [file for file in found.missing if file.part in CHECKPOINTS]
    for file in hub.FILES:
        if file.target in HOST_FILES and getattr(found, file.part) is None:
            path, target = host_file(file.part)
            if path is None:
                files.append(replace(file, target=str(target)))
    return files


def host_file(part: str) -> tuple[Path | None, Path]:
    """The official "vae" or "image_encoder" in the host's own folders, by the name that it has on the hub: where it is,
    if it is there, and where it is put."""
    ((kind, name),) = (
        (HOST_FILES[file.target], Path(file.target).name)
        for file in hub.FILES
        if file.part == part and file.target in HOST_FILES
    )
    path = folder_paths.get_full_path(kind, name)
    return Path(path) if path else None, Path(folder_paths.get_folder_paths(kind)[0], name)


def convert_official(progress: hub.Progress) -> str:
    """Converts the official set; returns which files may be deleted then."""
    files = require(OFFICIAL)
    convert(files, files.pose_guider.parent, progress)
    files = find_weights(files.folder)
    old = [path for name in CHECKPOINTS if (path := getattr(files, name).with_suffix(".pth")).is_file()]
    size = sum(path.stat().st_size for path in old) / 1e9
    return f"The .safetensors files in {files.pose_guider.parent} are used now." + (
        f" You may delete {', '.join(path.name for path in old)} ({size:.1f} GB)." if old else ""
    )


def encoder_files(files: WeightFiles) -> dict[str, Path | None]:
    """The weights of "vae" and "image_encoder": the set's own, else the official ones in the host's folders."""
    return {
        part: weights_in(folder) if (folder := getattr(files, part)) else host_file(part)[0]
        for part in ("vae", "image_encoder")
    }


def checkpoint_files(files: WeightFiles) -> list[Path | None]:
    return [getattr(files, name) for name in CHECKPOINTS]


def fingerprint(paths: Iterable[Path | None]) -> str:
    """Another one when a file is another."""
    return " ".join(f"{path} {path.stat().st_mtime_ns}" for path in paths if path)


def set_fingerprint(name: str) -> str:
    """Another one when a file of a set, its VAE or its image encoder is another."""
    folder = weight_sets().get(name)
    if folder is None:
        return ""
    files = find_weights(folder)
    return fingerprint([*checkpoint_files(files), *encoder_files(files).values()])
