"""Jobs: what a batch makes, as rows of a table or as all pairs of two folders."""

import csv
import json
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import check_file
from ..limits import TABLE_BYTES
from ..media.video_reader import PICTURES

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".safetensors")


@dataclass(frozen=True)
class Job:
    """One video to make.

    Args:
        name: For people: the name of its file.
        output: The video's path or URL. The job is done when there is something of this name.
        options: What the worker needs.
        frames: An estimate, for progress and order; None where the driver's file does not tell.
        cost: In pixels to denoise; the longest job goes first.
        portrait: Equal for jobs that can share the encoded portrait.
        performance: Equal for jobs that can share the extracted motion; None where this job can share none.
        parts: In how many parts at most that motion is extracted, by as many workers at the same time.
    """

    name: str
    output: str
    options: Any
    frames: int | None = None
    cost: float = float("inf")
    portrait: Hashable = None
    performance: Hashable = None
    parts: int = 1


def read_table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads the rows of a table: CSV with a line of names first, or JSONL with an object a line.

    Returns:
        Where each row stands in the file, for messages, and its cells by their names. Empty cells are left out.

    Raises:
        InputError: It is no file, is too long, or no such table.
    """
    check_file(path, "table of jobs (.csv or .jsonl)")
    if path.stat().st_size > TABLE_BYTES:
        raise InputError(f"{path} has more than {TABLE_BYTES} bytes: split it into several tables.")
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() == ".csv":
            reader = csv.DictReader(text.splitlines(), strict=True)
            rows = [(reader.line_num, row) for row in reader]
        else:
            rows = [(i, json.loads(line)) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        for number, row in rows:
            if not isinstance(row, dict) or None in row or not all(_is_cell(value) for value in row.values()):
                raise ValueError(f"line {number} is no row of names and values")
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise InputError(f"{path} is no table of jobs ({error}): give CSV with names first, or JSONL.") from error
    if not rows:
        raise InputError(f"{path} has no jobs: give a row for each video.")
    for number, row in rows:
        yield f"line {number}", {key.strip(): value for key, value in row.items() if value not in (None, "")}


def _is_cell(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def all_pairs(portraits: Path, driving: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each portrait of one folder with each driving video, animation or motion file of another, as `read_table`.

    Raises:
        InputError: One of them is no folder, or has none.
    """
    pictures, performances = _files(portraits, PICTURES, "pictures"), _files(driving, VIDEOS, "videos")
    for portrait, performance in product(pictures, performances):
        column = "motion" if performance.suffix.lower() == ".safetensors" else "driving"
        yield f"{portrait.name} and {performance.name}", {"portrait": str(portrait), column: str(performance)}


def _files(folder: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give one with {what}.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != ".")
    if not found:
        raise InputError(f"{folder} has no {what} ({', '.join(suffixes)}): give another folder.")
    return found
