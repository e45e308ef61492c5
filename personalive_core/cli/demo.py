"""The whole way on a CPU in under a minute, with nothing downloaded: the miniature, whose small networks know drawn
faces, moves one character by another's performance."""

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import InputError
from ..media.pictures import contact_sheet, read_picture
from ..media.video_reader import VideoReader
from ..media.video_writer import VideoWriter
from ..weights.find import EXAMPLE, MINIATURE, find_weights
from .outputs import check_outputs, save_picture, stopped_by_signals

COLUMNS = 8  # moments on the sheet


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser("demo", parents=parents, help="the whole way on the CPU, with nothing downloaded")
    demo.add_argument(
        "--output", "-o", type=Path, default=Path("outputs/demo.mp4"), metavar="FILE", help="video to write"
    )
    demo.add_argument("--overwrite", action="store_true", help="replace files that exist")
    demo.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    video, sheet = options.output, options.output.with_suffix(".png")
    check_outputs({"--output": video, "its sheet": sheet}, {"the example": EXAMPLE}, overwrite=options.overwrite)
    with stopped_by_signals():
        run_demo(video)


def run_demo(output: Path) -> None:
    """Writes the video to `output`, and beside it (`.png`) a sheet: the portrait and the driver, the result, the right
    answer, which was drawn. InputError: the weights are not in the package, or `output` cannot be written."""
    from transformers.utils import logging as transformers_logging

    from ..pipeline import Pipeline

    files = find_weights(MINIATURE)
    if files.missing:
        raise InputError(f"the miniature's weights are not in {MINIATURE}: install the package again, as a whole.")
    portrait = read_picture(EXAMPLE / "portrait.png")
    driving, rate = _read(EXAMPLE / "driving.mp4")
    answers, _ = _read(EXAMPLE / "right_answer.mp4")
    results: list[np.ndarray] = []
    height, width = portrait.shape[:2]
    with VideoWriter(output, width, height, rate) as video, tqdm(total=len(driving), unit="frame") as bar:
        transformers_logging.disable_progress_bar()  # ours is enough
        pipeline = Pipeline.load(files, "cpu")
        for chunk in pipeline.animate(pipeline.encode_reference(portrait), driving):
            for pixels in chunk:
                video.write(pixels, len(results) / rate)
                results.append(pixels)
                bar.update()
    sheet, blank = output.with_suffix(".png"), np.full_like(portrait, 255)
    rows = ((portrait, driving), (blank, results), (blank, answers))
    step = len(driving) // COLUMNS
    save_picture(Image.fromarray(contact_sheet([[left, *row[::step]] for left, row in rows])), sheet)
    print(f"{output}: {len(results)} frames of {width} x {height}; {sheet}: portrait and driver, result, right answer.")
    print("This is the miniature, which knows drawn faces alone: `download` has the weights for real ones.")


def _read(path: Path) -> tuple[list[np.ndarray], Fraction]:
    with VideoReader(path) as video:
        return [frame.pixels for frame in video], video.metadata.frame_rate
