"""A performance in a small file: the motion of a driver, to be used again for any portrait without its video."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import InputError
from ..files import check_file
from ..limits import MOTION_FRAMES, MOTION_RATES
from ..tensor_file import read_safetensors, write_safetensors
from .hold import Reason
from .keypoints import BOX_GRID
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
TIME_UNIT = Fraction(1, 10**6)  # seconds
DTYPES = {"boxes": torch.int64, "held": torch.uint8}  # the rest is float32


def save_motion(performance: Performance, path: str | Path) -> None:
    """Writes a safetensors file of 2.4 KB a frame, whole or not at all. Where the rate varies, the frames' times are in
    it in microseconds.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path).absolute()
    tensors = dict(performance.motion.tensors())
    if performance.times is not None:
        tensors["times"] = torch.tensor([round(time / TIME_UNIT) for time in performance.times])
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
        write_safetensors({key: value.cpu().contiguous() for key, value in tensors.items()}, temporary, metadata)
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
    check_file(path, "motion file")
    try:
        tensors, metadata = read_safetensors(path)
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} is damaged or no motion file ({error}): save the motion again.") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is no motion file: give one that was saved as motion.")
    if (version := metadata.get("version", "")) != str(VERSION):
        raise InputError(
            f"{path} is a motion file of version {version:.20}, and this reads version {VERSION}: update PersonaLive."
        )
    try:
        rate, source = parse_frame_rate(metadata["frame_rate"]), metadata["source"]
        if not MOTION_RATES[0] <= rate <= MOTION_RATES[1]:
            raise ValueError(f"a frame rate of {metadata['frame_rate']}")
        strength = _strength(json.loads(metadata["strength"]))
        times = _times(tensors.pop("times", None))
        motion = _checked({key: x for key, x in tensors.items() if not key.startswith("neutral.")})
        if times is not None and len(times) != len(motion):
            raise ValueError(f"{len(times)} times of {len(motion)} frames")
        neutral = {key.removeprefix("neutral."): x for key, x in tensors.items() if key.startswith("neutral.")}
        performance = Performance(motion, rate, source, strength, _checked(neutral, 1) if neutral else None, times)
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): save the motion again.") from error
    return performance


def _times(given: Tensor | None) -> tuple[Fraction, ...] | None:
    """Seconds. ValueError unless they begin at 0 and grow."""
    if given is None:
        return None
    if given.ndim != 1 or given.dtype != torch.int64 or given[:1].any() or (given.diff() <= 0).any():
        raise ValueError("its times do not grow from 0")
    return tuple(time * TIME_UNIT for time in given.tolist())


def _strength(given: Any) -> Strength:
    """ValueError or TypeError unless these are strengths."""
    if not isinstance(given, dict):
        raise ValueError("the strengths have no names")
    for name, value in given.items():
        if (name == "relative") != (type(value) is bool) or not isinstance(value, bool | int | float):
            raise ValueError(f"the strength {name} is {value!r:.40}")
    strength = Strength(**given)
    strength.check()
    return strength


def _checked(tensors: dict[str, Tensor], most: int = MOTION_FRAMES) -> Motion:
    """KeyError or ValueError unless these are the tensors of a motion of so many frames at most."""
    frames = tensors["tokens"].shape[0] if tensors["tokens"].ndim else 0
    if not 0 < frames <= most:
        raise ValueError(f"{frames} frames, and it may have 1 to {most}")
    for key, shape in SHAPES.items():
        value, dtype = tensors[key], DTYPES.get(key, torch.float32)
        if tuple(value.shape) != (frames, *shape):
            raise ValueError(f"{key} is {tuple(value.shape)} in place of {(frames, *shape)}")
        if value.dtype != dtype:
            raise ValueError(f"{key} is {value.dtype} in place of {dtype}")
        if not value.isfinite().all():
            raise ValueError(f"{key} holds numbers that are not finite")
    if unknown := tensors.keys() - SHAPES.keys():
        raise ValueError(f"unknown {', '.join(sorted(unknown)):.200}")
    if tensors["held"].max() > max(Reason):
        raise ValueError(f"held is {tensors['held'].max()}")
    boxes = tensors["boxes"]
    if boxes.min() < 0 or boxes.max() > BOX_GRID:
        raise ValueError(f"the boxes leave the grid of {BOX_GRID} x {BOX_GRID}")
    return Motion.of_tensors(tensors)
