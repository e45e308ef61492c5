"""The files that a command writes: none replaces an input or, unasked, what is there, and an unfinished run goes on."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import CHUNK, WARM_UP
from ..errors import InputError
from ..media.video_reader import PICTURES
from ..media.video_writer import SEGMENT, VideoWriter
from ..sampling.stream import StreamState
from ..tensor_file import write_safetensors

LONGEST = 225  # bytes of a name, which gets longer while its file grows; disks take 255
SAVE_EVERY = 60.0  # seconds
SUFFIXES = {"--sheet": PICTURES, "--crop-preview": PICTURES, "--save-motion": (".safetensors",)}


def check_outputs(outputs: dict[str, Path | None], inputs: dict[str, Path | None], *, overwrite: bool) -> None:
    """Checks, before any work, that every file can be written and that none takes the place of another.

    Args:
        outputs: By the options that name them.
        inputs: Likewise; of a folder, its files count.
        overwrite: Whether existing outputs may be replaced.

    Raises:
        InputError: A file would be lost, or cannot be written.
    """
    written = {name: path for name, path in outputs.items() if path}
    found: dict[object, tuple[str, Path]] = {}
    for name, path in inputs.items():
        if path:
            for file in path.iterdir() if path.is_dir() else [path]:
                found.setdefault(_identity(file), (name, file))
    for name, path in written.items():
        if (size := len(os.fsencode(path.name))) > LONGEST:
            raise InputError(f"the name of {name} is {size} bytes long: give a name of {LONGEST} bytes at most.")
        other, file = found.setdefault(_identity(path), (name, path))
        if other != name:
            raise InputError(
                f"{name} {path} and {other} {file} are the same file, which would be overwritten: give another name."
            )
    for name, path in written.items():
        folder = next((parent for parent in path.absolute().parents if parent.exists()), Path(path.anchor))
        if path.is_dir():
            raise InputError(f"{name} {path} is a folder: give the name of a file.")
        if name in SUFFIXES and path.suffix.lower() not in SUFFIXES[name]:
            raise InputError(f"{name} {path} cannot be written: the name must end in {' or '.join(SUFFIXES[name])}.")
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise InputError(f"{name} {path} cannot be written: {folder} is not a folder that you may write to.")
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists already: give {name} another name, or --overwrite to replace it.")


def _identity(path: Path) -> object:
    """The same for all names of one file. Upper and lower case are not told apart, as on many disks."""
    try:
        status = path.stat()
    except OSError:
        return str(path.resolve()).casefold()
    return status.st_dev, status.st_ino


def save_picture(image: Image.Image, path: Path) -> None:
    """Raises InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error}): choose another place with enough room.") from error


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within it, SIGTERM and a closed terminal (SIGHUP) end a run as Ctrl-C does."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # others cannot set handlers
    before = {number: signal.getsignal(number) for number in numbers}  # nohup has SIGHUP ignored

    def stop(number: int, frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # often both come: the second must not end what the first began
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Checkpoint:
    """Where an unfinished run stands, in a file beside its growing video.

    Args:
        output: The video.
        settings: What must be the same in the run that goes on, by the names of the options.
        first: Driving frame that the video begins with.
    """

    def __init__(self, output: Path, settings: dict[str, str], first: int = 0):
        self.path = output.with_name(f".{output.name}.partial.safetensors")
        self._settings, self._first = settings, first
        self._saved = time.monotonic()
        self._pending: tuple[int, dict[str, Tensor]] | None = None

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """How many frames were done, 0 where there is no such file, and the tensors given to `save`.

        Raises:
            InputError: The settings were others.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata()
                more = {key[1:]: file.get_tensor(key).clone() for key in file.keys() if key[0] == "+"}  # noqa: SIM118
        except (OSError, SafetensorError):
            return 0, {}
        before = json.loads(metadata["settings"])
        for name, value in self._settings.items():
            if before.get(name) != value:
                raise InputError(
                    f"the run to resume had {name} {before.get(name)}, not {value}: give the same options and files, "
                    "or --overwrite in place of --resume to begin again."
                )
        return int(metadata["frames"]), more

    def watch(self, state: StreamState) -> None:
        """After a window: takes a copy of the state, once a minute and where a segment of the video ends."""
        frames = CHUNK * state.window - WARM_UP - self._first
        if frames > 0 and frames % SEGMENT == 0 and time.monotonic() - self._saved >= SAVE_EVERY:
            self._pending = self._pending or (frames, state.tensors())

    def save(self, video: VideoWriter, more: dict[str, Tensor]) -> None:
        """Writes that copy as soon as the video's file holds all frames before it, with other tensors."""
        if self._pending is None or video.saved < self._pending[0]:
            return
        (frames, tensors), self._pending, self._saved = self._pending, None, time.monotonic()
        temporary = self.path.with_suffix(".new")
        metadata = {"frames": str(frames), "settings": json.dumps(self._settings)}
        try:
            video.sync()
            write_safetensors(tensors | {f"+{key}": value for key, value in more.items()}, temporary, metadata)
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except (OSError, SafetensorError):  # the one before stands; if the disk is full, the video will say so
            with suppress(OSError):
                temporary.unlink()

    def remove(self) -> None:
        """The run is finished."""
        self.path.unlink(missing_ok=True)
