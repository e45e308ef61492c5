"""Files by path or by URL of an fsspec file system, such as s3://bucket/portrait.png."""

import getpass
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..errors import InputError


def is_url(name: str) -> bool:
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name))


def fetch(url: str) -> Path:
    """The copy on this machine, which is made once for each version of the file.

    Raises:
        InputError: It cannot be read.
    """
    with _file_system(url) as (system, path):
        target = local_path(url, system.ukey(path))
        if not target.is_file():
            temporary = target.with_name(uuid4().hex)
            system.get_file(path, str(temporary))
            os.replace(temporary, target)
    return target


def exists(name: str) -> bool:
    """Whether there is a file of this path or URL. InputError: the URL's system cannot be reached."""
    if not is_url(name):
        return Path(name).is_file()
    with _file_system(name) as (system, path):
        return bool(system.exists(path))


def publish(file: Path, url: str) -> None:
    """Moves a finished file to a URL, where it takes its name only when it is complete.

    Raises:
        InputError: It cannot be written there.
    """
    with _file_system(url) as (system, path):
        folder, _, name = path.rpartition("/")
        temporary = f"{folder}/.{name}.partial"
        system.makedirs(folder, exist_ok=True)
        system.put_file(str(file), temporary)
        system.mv(temporary, path)
    file.unlink()


def working_path(output: str) -> Path:
    """Where a video grows that is to have this path or URL."""
    return local_path(output) if is_url(output) else Path(output)


def local_path(url: str, version: str = "") -> Path:
    """Where this machine keeps its copy, in a folder for this user alone."""
    folder = Path(tempfile.gettempdir(), f"personalive-{getpass.getuser()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder} belongs to another user: set TMPDIR to a folder of your own.")
    folder /= sha256(f"{url} {version}".encode()).hexdigest()[:20]
    folder.mkdir(exist_ok=True)
    return folder / url.rpartition("/")[2]


@contextmanager
def _file_system(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL, and the path in it. What goes wrong with it is an InputError."""
    import fsspec

    try:
        yield fsspec.core.url_to_fs(url)
    except InputError:
        raise
    except Exception as error:  # each file system has its own
        raise InputError(f"{url} cannot be used ({type(error).__name__}: {error}).") from error
