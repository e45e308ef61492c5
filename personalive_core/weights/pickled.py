"""Reads what a `.pth` file holds as data. Nothing in it is called, made or given memory, as unpickling would.

A `.pth` file is a zip: `data.pkl`, a pickle of protocol 2 that builds dicts of tensors, and `data/0`, `data/1` and so
on, the numbers, uncompressed.
"""

import pickletools
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import torch

from ..limits import HEADER_BYTES

_DTYPES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
_ORDERED, _TENSOR, _PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class UnknownCode(ValueError):
    """The pickle wants to use something that no weights need."""


class Name(str):
    """Of a function or class in the pickle."""


class StoredTensor(NamedTuple):
    """Where a tensor is in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # in bytes


class _Storage(NamedTuple):
    dtype: torch.dtype
    offset: int  # in bytes
    size: int  # in numbers


def read_pickled(path: Path) -> Any:
    """What a `.pth` file holds: dicts, lists and tuples of numbers, texts and `StoredTensor`.

    Raises:
        UnknownCode: It wants to use other functions or classes than weights do.
        Exception: Of any kind, where it is damaged.
    """
    size = path.stat().st_size
    with ZipFile(path) as archive, path.open("rb") as file:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if any(entry.compress_type != ZIP_STORED or entry.file_size > size for entry in entries.values()):
            raise ValueError("it is packed")
        if entries["data.pkl"].file_size > HEADER_BYTES:
            raise ValueError("its list of weights is too long")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise ValueError("its numbers are big-endian")

        def storage(kind: str, dtype: str, key: str, device: str, count: int) -> _Storage:
            entry, known = entries[f"data/{key}"], _DTYPES[dtype]
            if kind != "storage" or not 0 <= count * known.itemsize <= entry.file_size:
                raise ValueError(f"{count} numbers are more than {entry.file_size} bytes")
            file.seek(entry.header_offset + 26)
            lengths = file.read(4)  # of name and extra field, which stand between the header's 30 bytes and the numbers
            offset = entry.header_offset + 30 + sum(int.from_bytes(x, "little") for x in (lengths[:2], lengths[2:]))
            return _Storage(known, offset, count)

        return _interpret(archive.read(entries["data.pkl"]), storage)


def _interpret(pickle: bytes, storage) -> Any:
    """The value of a pickle of protocol 2, in which `storage` makes the persistent objects."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # stacks, one for each mark
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            if argument not in (*_DTYPES, _ORDERED, _TENSOR, _PARAMETER):
                raise UnknownCode(argument.replace(" ", ".")[:100])
            stack.append(Name(argument))
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"):
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("TUPLE", "SETITEMS", "APPENDS"):
            items, stack = stack, below.pop()
            if name == "TUPLE":
                stack.append(tuple(items))
            elif name == "APPENDS":
                stack[-1].extend(items)
            else:
                _set(stack[-1], items)
        elif name == "SETITEM":
            items, stack[-2:] = stack[-2:], []
            _set(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "BINPERSID":
            stack[-1] = storage(*stack[-1])
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_rebuild(function, arguments))
        elif name == "BUILD":  # attributes of a dict, such as the versions of its modules
            stack.pop()
        elif name != "PROTO":
            raise ValueError(f"it has {name}")
    raise ValueError("it has no end")


def _set(target: dict, items: list) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str and type(key) is not int:  # an optimizer counts its parameters
            raise ValueError("a key is no name")
        target[key] = value


def _rebuild(function: Any, arguments: tuple) -> Any:
    if type(function) is not Name or function in _DTYPES:
        raise ValueError("it calls what is no function")
    if function == _ORDERED:
        if arguments:
            raise ValueError("a dict of another kind")
        return {}
    if function == _PARAMETER:
        return arguments[0]
    storage, offset, shape, stride = arguments[:4]
    if type(storage) is not _Storage or len(shape) != len(stride):
        raise ValueError("a tensor without numbers")
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *stride)):
        raise ValueError("a tensor without a size")
    if 0 not in shape and offset + reach(shape, stride) > storage.size:
        raise ValueError("a tensor larger than its numbers")
    return StoredTensor(storage.dtype, shape, stride, storage.offset + offset * storage.dtype.itemsize)


def reach(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many numbers there are from a tensor's first to its last."""
    return 0 if 0 in shape else 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
