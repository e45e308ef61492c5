"""PersonaLive without a host: one portrait, moved by the motion of a driving video (arXiv 2512.11253).

    from personalive_core import Pipeline

The public names below are imported when they are first used, because `Pipeline` needs diffusers and transformers, which
a host such as ComfyUI need not have.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import ModelConfig as ModelConfig
    from .errors import InputError as InputError
    from .media.pictures import fit_picture as fit_picture
    from .media.pictures import read_picture as read_picture
    from .media.video_reader import VideoReader as VideoReader
    from .media.video_writer import VideoWriter as VideoWriter
    from .motion.motion_file import load_motion as load_motion
    from .motion.motion_file import save_motion as save_motion
    from .motion.performance import Performance as Performance
    from .motion.performance import Strength as Strength
    from .pipeline import Pipeline as Pipeline
    from .sampling.keyframes import KeyframeSettings as KeyframeSettings
    from .weights.find import find_weights as find_weights

_HOMES = {
    "InputError": "errors",
    "KeyframeSettings": "sampling.keyframes",
    "ModelConfig": "config",
    "Performance": "motion.performance",
    "Pipeline": "pipeline",
    "Strength": "motion.performance",
    "VideoReader": "media.video_reader",
    "VideoWriter": "media.video_writer",
    "find_weights": "weights.find",
    "fit_picture": "media.pictures",
    "load_motion": "motion.motion_file",
    "read_picture": "media.pictures",
    "save_motion": "motion.motion_file",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
