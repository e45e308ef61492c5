"""Files of face detectors in the host's folders."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..personalive_core.errors import InputError
from ..personalive_core.framing.face_detector import SUFFIXES, Detector, load_detector
from .weights import FOLDER

NONE = "none"


def detector_files() -> dict[str, Path]:
    """Name -> path of each detector in models/personalive/detectors."""
    folders = [Path(base, "detectors") for base in folder_paths.get_folder_paths(FOLDER)]
    files = (file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()))
    return {file.name: file for file in files if file.suffix.lower() in SUFFIXES}


def detector_input() -> io.Combo.Input:
    return io.Combo.Input(
        "detector",
        options=[NONE, *detector_files()],
        default=NONE,
        tooltip="A face detector of OpenCV in models/personalive/detectors: YuNet (.onnx) or a Haar cascade (.xml).",
    )


def open_detector(name: str) -> Detector | None:
    """None where none is chosen. InputError where there is no such file, or where it cannot be used."""
    if name == NONE:
        return None
    file = detector_files().get(name)
    if file is None:
        raise InputError(f"there is no face detector {name!r} in models/{FOLDER}/detectors: choose another one.")
    return load_detector(file)
