"""Sets of weights in the host's folders: found where people have them, fetched and converted when the user asks."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import comfy.model_management
import comfy.utils
import folder_paths

from ..personalive_core.errors import InputError
from ..personalive_core.weights import hub
from ..personalive_core.weights.convert import convert
from ..personalive_core.weights.find import CHECKPOINTS, MINIATURE, WeightFiles, find_weights, weights_in
from .say import say

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


def prepare(name: str, download: bool, convert: bool) -> WeightFiles:
    """The six checkpoints of a set, fetched and converted if asked. InputError: no such set, or a file is missing."""
    folder = weight_sets().get(name)
    if folder is None:
        raise InputError(f"there are no weights {name!r} in models/{FOLDER}: choose another set.")
    if name == OFFICIAL and download:
        hub.download(folder, _official_files(folder), progress=_progress())
    files = find_weights(folder)
    lacking = [Path(file.target).name for file in files.missing if file.part in CHECKPOINTS]
    if lacking:
        advice = "switch on 'download' to fetch them" if name == OFFICIAL else "put them beside the other files"
        raise InputError(f"the weights {name!r} lack {', '.join(lacking)}: {advice}.")
    return _convert(files) if convert else files


def _official_files(folder: Path) -> list[hub.HubFile]:
    """What to fetch: missing checkpoints, and VAE and image encoder into the host's own folders, unless they are there
    or come with the set."""
    found = find_weights(folder)
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


def _convert(files: WeightFiles) -> WeightFiles:
    if any(getattr(files, name).suffix == ".pth" for name in CHECKPOINTS):
        convert(files, files.pose_guider.parent, progress=_progress())
        files = find_weights(files.folder)
    old = [path for name in CHECKPOINTS if (path := getattr(files, name).with_suffix(".pth")).is_file()]
    if old:
        names, size = ", ".join(path.name for path in old), sum(path.stat().st_size for path in old)
        say(f"The .safetensors files in {old[0].parent} are used now. You may delete {names} ({size / 1e9:.1f} GB).")
    return files


def _progress() -> hub.Progress:
    """The node's progress in bytes. It comes with every few kilobytes, of which the page is told ten times a second."""
    bar, shown, said = comfy.utils.ProgressBar(1), 0.0, False

    def show(name: str, done: int, total: int) -> None:
        nonlocal shown, said
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not total:
            if not said:
                say(name)
            said = True
        elif time.monotonic() - shown > 0.1 or done == total:
            bar.update_absolute(done, total)
            shown = time.monotonic()

    return show


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


_same: dict[str, str] = {}  # fingerprint -> the one that the host's cache knows it by


def set_fingerprint(name: str) -> str:
    """Another one when a file of a set, its VAE or its image encoder is another; but what a run has fetched or
    converted keeps that of before the run, so that the next run finds it in the host's cache."""
    found = _set_fingerprint(name)
    return _same.get(found, found)


@contextmanager
def keep_fingerprint(name: str) -> Iterator[None]:
    """Around what fetches or converts."""
    before = _set_fingerprint(name)
    yield
    after = _set_fingerprint(name)
    if after != before:
        _same[after], _same[before] = _same.get(before, before), uuid4().hex


def _set_fingerprint(name: str) -> str:
    folder = weight_sets().get(name)
    if folder is None:
        return ""
    files = find_weights(folder)
    return fingerprint([*checkpoint_files(files), *encoder_files(files).values()])
