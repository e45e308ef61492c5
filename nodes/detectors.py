"""Face detectors: YuNet from the hub, and files in the host's folders."""

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..personalive_core.errors import InputError
from ..personalive_core.framing.face_detector import SUFFIX, Detector, load_detector
from ..personalive_core.weights.hub import DETECTORS, HubFile, find_detector
from .weights import FOLDER, entries

NONE = "none"


def _folders() -> list[Path]:
    return [Path(base) for base in folder_paths.get_folder_paths(FOLDER)]


def _own_files() -> dict[str, Path]:
    """Name -> path of each file in models/personalive/detectors that the user put there."""
    files = (file for folder in _folders() for file in entries(folder / "detectors"))
    fetched = {Path(file.target).name for file in DETECTORS.values()}
    return {
        file.name: file
        for file in files
        if file.suffix.lower() == SUFFIX and os.path.isfile(file) and file.name not in fetched
    }


def detector_input() -> io.Combo.Input:
    return io.Combo.Input(
        "detector",
        options=[NONE, *DETECTORS, *_own_files()],
        default=NONE,
        tooltip="What finds faces: 'yunet', which the button 'Download yunet' fetches, or a YuNet file (.onnx) in "
        "models/personalive/detectors. They need OpenCV. With 'none' the model's own keypoints find the face.",
    )


def missing_detectors() -> tuple[Path, list[HubFile]]:
    """The folder for detectors of the hub, and those that are not there."""
    return _hub_folder(), [file for file in DETECTORS.values() if not (_hub_folder() / file.target).is_file()]


def _hub_folder() -> Path:
    folders, targets = _folders(), [file.target for file in DETECTORS.values()]
    return next((f for f in folders if any((f / target).is_file() for target in targets)), folders[0])


def open_detector(name: str) -> Detector | None:
    """None where none is chosen. InputError where there is no such file, or where it cannot be used."""
    if name == NONE:
        return None
    if name in DETECTORS:
        return load_detector(find_detector(_hub_folder(), name, fetch=False))
    file = _own_files().get(name)
    if file is None:
        raise InputError(f"there is no face detector {name!r} in models/{FOLDER}/detectors: choose another one.")
    return load_detector(file)
