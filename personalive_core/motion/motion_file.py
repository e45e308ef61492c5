"""A performance in a small file: the motion of a driver, to be used again for any portrait without its video."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError
from .motion import Motion
from .performance import Performance, Strength, parse_frame_rate

FORMAT, VERSION = "personalive motion", 1
SUFFIX = ".motion.safetensors"
SHAPES: dict[str, Sequence[int]] = {  # of one frame
    "tokens": (32, 16),
    "boxes": (4,),
    "held": (),
    "pose.angles": (3,),
    "pose.translation": (3,),
    "pose.scale": (1,),
    "pose.keypoints": (21, 3),
}


def save_motion(performance: Performance, path: str | Path) -> None:
    """Writes a safetensors file of 2.4 KB a frame, whole or not at all; a rate that varies becomes constant.

    Raises:
        InputError: the file cannot be written.
    """
    path, performance = Path(path).absolute(), performance.at_constant_rate()
    tensors = dict(performance.motion.tensors())
    if performance.neutral is not None:
        # Copied, because it may be a part of the motion's own memory, which safetensors refuses to write twice.
        tensors |= {f"neutral.{key}": value.clone() for key, value in performance.neutral.tensors().items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "frame_rate": str(performance.frame_rate),
        "source": performance.source,
        "strength": json.dumps(asdict(performance.strength)),
    }
    temporary = path.with_name(f".personalive-{uuid4().hex[:8]}")  # short: `path` may have the longest name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, temporary, metadata)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):  # where there can be no file, there is none to remove
            temporary.unlink()
        raise InputError(f"{path} cannot be written ({error}): choose another place with enough room.") from error


def load_motion(path: str | Path) -> Performance:
    """Reads what `save_motion` wrote.

    Raises:
        InputError: the file is missing, damaged, not a motion file, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the path of a motion file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 it is no dict
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or no motion file ({error}): save the motion again.") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is no motion file: give one that was saved as motion.")
    version = metadata.get("version", "")
    if not version.isdigit() or int(version) != VERSION:
        raise InputError(
            f"{path} is a motion file of version {version}, and this reads version {VERSION}: update PersonaLive."
        )
    try:
        rate, source = parse_frame_rate(metadata["frame_rate"]), metadata["source"]
        strength = Strength(**json.loads(metadata["strength"]))
        motion = _checked({key: x for key, x in tensors.items() if not key.startswith("neutral.")})
        neutral = {key.removeprefix("neutral."): x for key, x in tensors.items() if key.startswith("neutral.")}
        performance = Performance(motion, rate, source, strength, _checked(neutral) if neutral else None)
        if rate <= 0:
            raise ValueError(f"a frame rate of {rate}")
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): save the motion again.") from error
    strength.check()
    return performance


def _checked(tensors: dict[str, Tensor]) -> Motion:
    """ValueError unless these are the tensors of a motion."""
    frames = len(tensors["tokens"])
    for key, shape in SHAPES.items():
        value = tensors[key]
        if not frames or tuple(value.shape) != (frames, *shape):
            raise ValueError(f"{key} is {tuple(value.shape)} in place of {(frames, *shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{key} holds numbers that are not finite")
    if unknown := tensors.keys() - SHAPES.keys():
        raise ValueError(f"unknown {', '.join(sorted(unknown))}")
    if tensors["held"].dtype != torch.uint8:
        raise ValueError(f"held is {tensors['held'].dtype}")
    return Motion.of_tensors(tensors)
