"""Fetches the published weights from the Hugging Face hub, file by file and only when asked.

It speaks HTTP itself, because huggingface_hub (2.x) throws a half-fetched file away when a run ends: here a break,
also one between two runs, costs no byte twice.
"""

import hashlib
import logging
import os
import re
import shutil
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, HTTPSHandler, OpenerDirector, Request, build_opener

from ..errors import InputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""(name of the file, bytes done, bytes in all); the two numbers are of the whole job, not of the file. While another
process fetches: (a sentence that says so, 0, 0)."""

PERSONALIVE = "huaichang/PersonaLive"
VAE = "stabilityai/sd-vae-ft-mse"
IMAGE_ENCODER = "lambdalabs/sd-image-variations-diffusers"
YUNET = "opencv/face_detection_yunet"

# Branches, because the hub could not be asked for commit ids when this was written. A commit id in the environment's
# PERSONALIVE_REVISION pins the model's own weights.
REVISIONS = dict.fromkeys((PERSONALIVE, VAE, IMAGE_ENCODER, YUNET), "main")
REVISIONS[PERSONALIVE] = os.environ.get("PERSONALIVE_REVISION", "main")


@dataclass(frozen=True)
class HubFile:
    """One file on the hub and where it belongs."""

    part: str  # the field of `WeightFiles` that needs it, or "detector"
    repo: str
    path: str  # in the repository
    target: str  # in the weights folder, or absolute
    size: int  # bytes, about

    @property
    def address(self) -> str:
        """Where to fetch it; HF_ENDPOINT names another hub, as it does for the hub's own tools."""
        endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"
        if "://" not in endpoint:
            endpoint = f"https://{endpoint}"
        return f"{endpoint}/{self.repo}/resolve/{REVISIONS[self.repo]}/{self.path}"


def _checkpoint(name: str, size: int) -> HubFile:
    return HubFile(name, PERSONALIVE, f"pretrained_weights/personalive/{name}.pth", f"personalive/{name}.pth", size)


def _folder_file(part: str, repo: str, path: str, size: int) -> HubFile:
    return HubFile(part, repo, path, f"{repo.split('/')[1]}/{path}", size)


FILES: tuple[HubFile, ...] = (
    _checkpoint("denoising_unet", 4_927_000_000),
    _checkpoint("temporal_module", 1_818_000_000),
    _checkpoint("reference_unet", 3_438_000_000),
    _checkpoint("motion_encoder", 246_600_000),
    _checkpoint("motion_extractor", 112_500_000),
    _checkpoint("pose_guider", 4_350_000),
    _folder_file("vae", VAE, "config.json", 550),
    _folder_file("vae", VAE, "diffusion_pytorch_model.safetensors", 334_600_000),
    _folder_file("image_encoder", IMAGE_ENCODER, "image_encoder/config.json", 700),
    _folder_file("image_encoder", IMAGE_ENCODER, "image_encoder/pytorch_model.bin", 1_216_000_000),
)
"""All that the model needs. The repositories hold much more (ONNX files, an engine for one kind of GPU)."""

_YUNET_FILE = "face_detection_yunet_2023mar.onnx"
DETECTORS = {"yunet": HubFile("detector", YUNET, _YUNET_FILE, f"detectors/{_YUNET_FILE}", 232_589)}
"""Face detectors by name. The model does not need them: each is fetched when the user asks for it."""

_BLOCK = 1 << 20
_ATTEMPTS = 5  # in a row without a new byte
_PAUSE = 1.0  # seconds after the first of these, then twice that, ...
_TIMEOUT = 30.0  # seconds of silence
_LOOK = 0.2  # seconds from one look at another process's lock to the next
_BROKEN = (URLError, ConnectionError, TimeoutError, ssl.SSLError, HTTPException)  # no OSError: that may be the disk


def by_hand(files: Sequence[HubFile], folder: Path) -> str:
    """One line a file, to fetch it without this tool: its address and the folder it belongs in."""
    return "\n".join(f"  {file.address} -> {(folder / file.target).parent}" for file in files)


def download(folder: Path, files: Sequence[HubFile] = FILES, progress: Progress | None = None) -> None:
    """Fetches those of `files` that are not yet at their target in `folder`; without any, the hub is not asked.

    For what is missing in every layout and form, give `find_weights(folder).missing`. A file gets its name only when
    it is whole: its size agrees and, for large files, the SHA-256 that the hub states. Until then it is a `.part`
    file that the next call goes on with, also after an exception from `progress`. While another process fetches into
    one of the folders, this one waits. InputError: no network, an answer such as 404, another checksum, too little
    disk (found before the first byte).
    """
    targets = [folder / file.target for file in files]
    try:
        with ExitStack() as locks:
            for parent in sorted({target.parent.resolve() for target in targets if not target.is_file()}):
                locks.enter_context(_locked(parent, progress))
            _download(folder, [f for f, target in zip(files, targets, strict=True) if not target.is_file()], progress)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}): choose another folder.") from error


@contextmanager
def _locked(folder: Path, progress: Progress | None) -> Iterator[None]:
    """Keeps other processes from fetching into a folder. The system lets go of the lock of one that has died."""
    folder.mkdir(parents=True, exist_ok=True)
    path, waited = folder / ".download.lock", False
    while True:
        with path.open("ab") as file:
            if _lock(file) and _is_at(file, path):
                try:
                    yield
                    return
                finally:
                    with suppress(OSError):  # Windows removes no open file; an old one does no harm
                        path.unlink()
        if not waited:
            _log.warning("another process is fetching into %s: waiting for it", folder)
        waited = True
        if progress:
            progress(f"another process is fetching into {folder}: waiting for it", 0, 0)
        time.sleep(_LOOK)


def _lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        _log.warning("%s cannot be locked (%s): let no other process fetch the same files", file.name, error)
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """False where the one who had the lock before has removed the file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _download(folder: Path, missing: Sequence[HubFile], progress: Progress | None) -> None:
    try:
        sources = []
        for file in missing:  # a loop, as the message below names the file
            sources.append(_ask(file.address))
        parts = [_part(folder / file.target, source) for file, source in zip(missing, sources, strict=True)]
        total = sum(source.size for source in sources)
        done = sum(part.stat().st_size for part in parts)
        _check_disk(parts, sources)
        for file, source, part in zip(missing, sources, parts, strict=True):
            with closing(_fetch(source, part)) as counts:
                for count in counts:
                    done += count
                    if progress:
                        progress(file.target, done, total)
            part.replace(folder / file.target)
    except _BROKEN as error:
        reason = (
            f"the hub answered {error.code}" if isinstance(error, HTTPError) else f"the hub cannot be reached: {error}"
        )
        left = [file for file in missing if not (folder / file.target).is_file()]
        raise InputError(
            f"{file.target} could not be fetched ({reason}); try again, which goes on from here, or fetch by hand:"
            f"\n{by_hand(left, folder)}"
        ) from error


def find_detector(folder: Path, name: str, fetch: bool) -> Path:
    """Finds one of `DETECTORS` in a weights folder, and fetches it first if that is allowed.

    Args:
        folder: of the weights; the detector is in its folder `detectors`.
        name: a key of `DETECTORS`.
        fetch: whether to ask the hub if the file is not there.

    Raises:
        InputError: it is not there and must not be fetched, or fetching failed.
    """
    file = DETECTORS[name]
    path = folder / file.target
    if fetch:
        download(folder, [file])
    elif not path.is_file():
        raise InputError(
            f"the detector {name} is not there yet: switch on download to fetch it ({file.size / 1e6:.1f} MB), or put "
            f"{file.address} into {path.parent}."
        )
    return path


@dataclass(frozen=True)
class _Source:
    """What the hub says of a file."""

    address: str
    size: int  # bytes
    etag: str
    sha256: str | None  # the hub knows it of large files only


class _StopAtChecksum(HTTPRedirectHandler):
    """Takes the answer that names the checksum, not that of the storage to which it sends on."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if "X-Linked-Etag" in headers:
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(*handlers: HTTPRedirectHandler) -> OpenerDirector:
    context = ssl.create_default_context()
    try:
        import certifi  # python.org's Python for macOS knows no authorities of its own

        context.load_verify_locations(certifi.where())
    except ImportError:
        pass
    return build_opener(HTTPSHandler(context=context), *handlers)


def _ask(address: str) -> _Source:
    try:
        with _opener(_StopAtChecksum()).open(Request(address, method="HEAD"), timeout=_TIMEOUT) as response:
            headers = response.headers
    except HTTPError as error:
        if error.code // 100 != 3:
            raise
        headers = error.headers
    etag = headers.get("X-Linked-Etag") or headers.get("ETag") or ""
    size = headers.get("X-Linked-Size") or headers.get("Content-Length")
    if size is None:
        raise HTTPException("it does not say how large the file is")
    sha256 = re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get("X-Linked-Etag") or "")
    return _Source(address, int(size), etag, sha256 and sha256[1])


def _part(target: Path, source: _Source) -> Path:
    """The file that collects `source`, made if it is not there; the name tells versions of a file apart."""
    version = hashlib.sha256(f"{source.etag} {source.size}".encode()).hexdigest()[:12]
    part = target.with_name(f"{target.name}.{version}.part")
    for old in target.parent.glob(f"{target.name}.*.part"):
        if old != part:
            old.unlink()
    part.touch()
    return part


def _check_disk(parts: Sequence[Path], sources: Sequence[_Source]) -> None:
    needed, folders = Counter(), {}  # by disk: the targets may lie on several
    for part, source in zip(parts, sources, strict=True):
        state = part.stat()
        needed[state.st_dev] += source.size - state.st_size
        folders[state.st_dev] = part.parent
    for disk, folder in folders.items():
        free = shutil.disk_usage(folder).free
        if needed[disk] > free:
            raise InputError(
                f"{folder} has {free / 1e9:.2f} GB free and {needed[disk] / 1e9:.2f} GB are still to fetch: "
                "free some space or choose another folder."
            )


def _fetch(source: _Source, part: Path) -> Generator[int, None, None]:
    """Adds to `part` what it lacks; yields the count of bytes of each block (below 0: bytes that had to go)."""
    attempts = 0
    with part.open("a+b") as out:
        digest, done = hashlib.sha256(), 0
        out.seek(0)
        while block := out.read(_BLOCK):
            digest.update(block)
            done += len(block)
            yield 0  # who watches may stop here too
        while done < source.size:
            try:
                request = Request(source.address, headers={"Range": f"bytes={done}-"})
                with _opener().open(request, timeout=_TIMEOUT) as response:
                    if response.status != 206 and done:  # it sends the whole file
                        out.truncate(0)
                        yield -done
                        digest, done = hashlib.sha256(), 0
                    while block := response.read1(_BLOCK):
                        out.write(block)
                        digest.update(block)
                        done += len(block)
                        attempts = 0
                        yield len(block)
                if done < source.size:
                    raise ConnectionError(f"it stopped after {done} of {source.size} bytes")
            except _BROKEN as error:
                attempts += 1
                if isinstance(error, HTTPError) or attempts == _ATTEMPTS:
                    raise
                _log.warning("%s: %s; going on from byte %d", source.address, error, done)
                yield 0
                time.sleep(attempts * _PAUSE)
    if done != source.size or source.sha256 not in (None, digest.hexdigest()):
        part.unlink()
        raise InputError(
            f"{source.address} sent {done} bytes that are not the {source.size} bytes of which the hub gives the size "
            "and checksum: they were thrown away; try again, without a proxy that changes files."
        )
