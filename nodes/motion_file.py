"""Save Motion and Load Motion: one performance for many portraits, without its video."""

import os
from contextlib import suppress
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..personalive_core.errors import InputError
from ..personalive_core.motion.motion_file import SUFFIX, load_motion, save_motion
from . import compat
from .motion import MotionType, NodeMotion
from .reference import NodeReference, ReferenceType

OUTPUT = " [output]"  # the host's mark for a file in its output folder


def motion_files() -> list[str]:
    """Those in the host's input folder, then those in its output folder, the newest first; what cannot be looked at
    is left out."""
    found = []
    for folder, mark in ((folder_paths.get_input_directory(), ""), (folder_paths.get_output_directory(), OUTPUT)):
        times = {}
        for parent, _, names in os.walk(folder):
            for file in (Path(parent, name) for name in names if name.endswith(SUFFIX)):
                with suppress(OSError):
                    times[file] = file.stat().st_mtime
        found += [file.relative_to(folder).as_posix() + mark for file in sorted(times, key=times.get, reverse=True)]
    return found


class SaveMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveSaveMotion",
            display_name="PersonaLive Save Motion",
            category="PersonaLive",
            **compat.search_aliases("save expression, export motion, motion template"),
            description="Writes motion into a small file in ComfyUI's output folder, to be used for other portraits.",
            inputs=[
                MotionType.Input("motion", tooltip="From Extract Motion or Adjust Motion."),
                io.String.Input(
                    "filename_prefix",
                    default="motion/PersonaLive",
                    tooltip="Folder and beginning of the file's name; a number follows.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, motion: NodeMotion, filename_prefix: str) -> io.NodeOutput:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        file = Path(folder, f"{name}_{counter:05}_{SUFFIX}")
        save_motion(motion.performance, file)
        return io.NodeOutput(ui={"motion": [{"filename": file.name, "subfolder": subfolder, "type": "output"}]})


class LoadMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveLoadMotion",
            display_name="PersonaLive Load Motion",
            category="PersonaLive",
            **compat.search_aliases("load expression, import motion, motion template"),
            description="Reads motion that Save Motion wrote, for any portrait.",
            inputs=[
                ReferenceType.Input("reference", tooltip="From Encode Reference: the portrait that will move."),
                io.Combo.Input(
                    "file",
                    options=motion_files(),
                    tooltip="A file in ComfyUI's output or input folder that Save Motion wrote. Press R for new ones.",
                ),
            ],
            outputs=[
                MotionType.Output(
                    display_name="motion", tooltip="The loaded motion, for Sample, Adjust Motion and Preview Motion."
                ),
                io.Float.Output(
                    display_name="frame_rate", tooltip="Frames per second of the motion, for Assemble Video."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_) -> str:
        path = Path(folder_paths.get_annotated_filepath(file))
        return f"{file} {path.stat().st_mtime_ns}" if path.is_file() else ""

    @classmethod
    def execute(cls, reference: NodeReference, file: str) -> io.NodeOutput:
        if file not in motion_files():
            raise InputError(f"there is no motion file {file} in ComfyUI's output or input folder: choose another one.")
        performance = load_motion(folder_paths.get_annotated_filepath(file)).at_constant_rate()
        return io.NodeOutput(NodeMotion(performance, reference.reference.motion, []), float(performance.frame_rate))
