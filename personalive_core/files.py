"""Files from somebody else, which may be anything: what is a file, and JSON."""

import json
import os
import re
from pathlib import Path
from typing import Any

from .errors import InputError
from .limits import TEXT_BYTES


def check_file(path: str | Path, kind: str) -> None:
    """Check that a file is there and is a file: opening a pipe would wait for ever.

    Args:
        path: As the user gave it.
        kind: "picture", "video" or the like, for the message.

    Raises:
        InputError: There is nothing of that name, or it is a URL, a folder, a pipe or a device.
    """
    if os.path.isfile(path):  # of a name that is too long, Path.is_file raises OSError
        return
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give the path of a {kind}.")
    if os.path.exists(path):
        raise InputError(f"{path} is a pipe or a device and no file; give the path of a {kind}.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]", str(path)):
        raise InputError(f"{path} is a URL; URLs are not supported: download it first.")
    raise InputError(f"{path} does not exist; give the path of a {kind}.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        InputError: It is no file, cannot be read, is over 1 MB, or holds something else.
    """
    check_file(path, "JSON file")
    try:
        with path.open("rb") as file:
            text = file.read(TEXT_BYTES + 1)
        if len(text) > TEXT_BYTES:
            raise ValueError(f"it has more than {TEXT_BYTES} bytes")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is no object in braces")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be used ({error}): remove it or fetch it again.") from error
    return found
