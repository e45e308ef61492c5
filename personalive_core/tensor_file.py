"""Tensors in files. Files are read without mapping them into memory: where another program cuts off a mapped file, the
next access to it ends the process with SIGBUS.
"""

import json
import math
from io import FileIO
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .limits import HEADER_BYTES

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


PIECE = 1 << 22  # numbers that are converted at a time: so few stay in the processor's cache


def read_at(path: Path, offset: int, count: int, stored: torch.dtype, dtype: torch.dtype) -> Tensor:
    """`count` numbers of a file from byte `offset` on, converted to `dtype`; ValueError where the file has fewer."""
    numbers = torch.empty(count, dtype=dtype)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        if stored == dtype:
            _fill(file, numbers)
        else:
            piece = torch.empty(min(PIECE, count), dtype=stored)
            for part in numbers.split(PIECE) if count else ():
                _fill(file, piece[: len(part)])
                part.copy_(piece[: len(part)])
    return numbers


def _fill(file: FileIO, numbers: Tensor) -> None:
    view = memoryview(numbers.view(torch.uint8).numpy().data)
    while view:
        if not (done := file.readinto(view)):  # which is 2 GB at most
            raise ValueError("it ends before its numbers do")
        view = view[done:]


def safetensors_header(path: Path) -> tuple[dict[str, tuple[torch.dtype, list[int], int]], dict[str, str]]:
    """What a safetensors file says about itself; nothing else of it is read.

    Returns:
        Name -> type, shape and the byte of the file at which the tensor begins; and the metadata.

    Raises:
        ValueError: It is no such file, or shorter than it says.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > min(size, HEADER_BYTES):
            raise ValueError("it has no header")
        header = json.loads(file.read(start - 8))
    try:
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata is no text")
        tensors, total = {}, start
        for name, entry in header.items():
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
                raise ValueError(f"{name} has no size")
            dtype = _DTYPES[entry["dtype"]]
            if math.prod(shape) * dtype.itemsize != end - begin or start + end > size:
                raise ValueError(f"{name} lies outside the file")
            tensors[name] = dtype, shape, start + begin
            total += end - begin
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header is damaged: {error}") from error
    if total != size:
        raise ValueError(f"it has {size} bytes and says {total}")
    return tensors, metadata


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata; raises as `safetensors_header`."""
    tensors, metadata = safetensors_header(path)
    return {
        name: read_at(path, offset, math.prod(shape), dtype, dtype).view(shape)
        for name, (dtype, shape, offset) in tensors.items()
    }, metadata


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a file that the same people may read as any other new file: safetensors, from 0.8 on, gives its files to
    their owner alone.

    Raises:
        OSError, SafetensorError: It cannot be written; an empty or cut file may be left.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata)
    path.chmod(mode)
