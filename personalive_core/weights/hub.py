"""Downloads the published weights from the Hugging Face hub, file by file and only when asked.

huggingface_hub does the asking: endpoint, token, proxy, offline switch, commit, checksum, shared cache. What it lacks
since 1.0 is here: a download that goes on after the process has ended.
"""

import hashlib
import logging
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError

_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""(name of the file, bytes done, bytes in all); the two numbers are of the whole job, not of the file. While another
process downloads: (a sentence that says so, 0, 0)."""

PERSONALIVE = "huaichang/PersonaLive"
VAE = "stabilityai/sd-vae-ft-mse"
IMAGE_ENCODER = "lambdalabs/sd-image-variations-diffusers"
YUNET = "opencv/face_detection_yunet"
TAESD = "madebyollin/taesd"

# Of a branch, a download takes the commit that the hub names first. A commit id in PERSONALIVE_REVISION pins the model.
REVISIONS = {
    PERSONALIVE: os.environ.get("PERSONALIVE_REVISION", "main"),
    VAE: "31f26fdeee1355a5c34592e401dd41e45d25a493",
    IMAGE_ENCODER: "main",  # its file is pinned by checksum
    YUNET: "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310",
    TAESD: "614f76814bbe30edbe2e627ace1c2234c81a2c0e",
}


@dataclass(frozen=True)
class HubFile:
    """One file on the hub and where it belongs."""

    part: str  # the field of `WeightFiles` that needs it, "detector" or "small decoder"
    repo: str
    path: str  # in the repository
    target: str  # in the weights folder, or absolute
    size: int  # bytes; about, where there is no checksum
    sha256: str | None = None  # None: the hub's own is taken

    @property
    def address(self) -> str:
        """Where to download it, from HF_ENDPOINT if that is set."""
        return self.address_at(REVISIONS[self.repo])

    def address_at(self, revision: str) -> str:
        _check_endpoint()
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.path, revision=revision)


def _check_endpoint() -> None:
    """huggingface_hub cannot be imported with an endpoint that is no address."""
    given = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        parts = urlsplit(given)
        if parts.scheme in ("http", "https") and parts.hostname:
            return
    except ValueError:
        pass
    raise InputError(f"HF_ENDPOINT is {given!r}, which is no address: give one as in https://huggingface.co, or none.")


def _checkpoint(name: str, size: int) -> HubFile:
    return HubFile(name, PERSONALIVE, f"pretrained_weights/personalive/{name}.pth", f"personalive/{name}.pth", size)


def _folder_file(part: str, repo: str, path: str, size: int, sha256: str | None = None) -> HubFile:
    return HubFile(part, repo, path, f"{repo.split('/')[1]}/{path}", size, sha256)


FILES: tuple[HubFile, ...] = (
    _checkpoint("denoising_unet", 4_927_000_000),
    _checkpoint("temporal_module", 1_818_000_000),
    _checkpoint("reference_unet", 3_438_000_000),
    _checkpoint("motion_encoder", 246_600_000),
    _checkpoint("motion_extractor", 112_500_000),
    _checkpoint("pose_guider", 4_350_000),
    _folder_file("vae", VAE, "config.json", 547, "92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e"),
    _folder_file(
        "vae",
        VAE,
        "diffusion_pytorch_model.safetensors",
        334_643_276,
        "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
    ),
    _folder_file("image_encoder", IMAGE_ENCODER, "image_encoder/config.json", 700),
    _folder_file(
        "image_encoder",
        IMAGE_ENCODER,
        "image_encoder/pytorch_model.bin",
        1_215_993_967,
        "89d2aa29b5fdf64f3ad4f45fb4227ea98bc45156bbae673b85be1af7783dbabb",
    ),
)
"""All that the model needs. The repositories hold much more (ONNX files, an engine for one kind of GPU)."""

_YUNET_FILE = "face_detection_yunet_2023mar.onnx"
_YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
DETECTORS = {"yunet": HubFile("detector", YUNET, _YUNET_FILE, f"detectors/{_YUNET_FILE}", 232_589, _YUNET_SHA256)}
"""Face detectors by name. The model does not need them: each is downloaded when the user asks for it."""

SMALL_DECODER = (
    _folder_file("small decoder", TAESD, "config.json", 1_000),
    _folder_file(
        "small decoder",
        TAESD,
        "diffusion_pytorch_model.safetensors",
        9_793_292,
        "db169d69145ec4ff064e49d99c95fa05d3eb04ee453de35824a6d0f325513549",
    ),
)
"""TAESD, which decodes faster and softer than the VAE. It is downloaded when the user asks for it."""

_BLOCK = 1 << 20
_TRIES = 5  # in a row that bring less than a block together
_PAUSE = 1.0  # seconds after the first of these, then twice that, ...
_LONGEST_WAIT = 600.0  # seconds that the hub may ask for
_TIMEOUT = 30.0  # seconds of silence
_LOOK = 0.2  # seconds from one call of `progress` to the next while waiting


class _Failure(Exception):
    """What the network or the hub did wrong, and the least seconds until the next try; infinity: there is no use."""

    def __init__(self, reason: str, wait: float = 0):
        super().__init__(reason)
        self.wait = wait


def by_hand(files: Sequence[HubFile], folder: Path) -> str:
    """One line a file, to download it without this tool: its address and the folder it belongs in."""
    return "\n".join(f"  {file.address} -> {(folder / file.target).parent}" for file in files)


def download(folder: Path, files: Sequence[HubFile] = FILES, progress: Progress | None = None) -> None:
    """Downloads those of `files` that are not yet at their target in `folder`; without any, the hub is not asked.

    A file in the shared cache of huggingface_hub (HF_HOME) is not downloaded again: the target becomes a link to it. A
    file gets its name only when it is whole and has its checksum. Until then it is a `.part` file that the next call
    goes on with, also after an exception from `progress`. While another process downloads into one of the folders,
    this one waits.

    Args:
        folder: of the weights.
        files: what to download; for what is missing in every layout and form, `find_weights(folder).missing`.
        progress: called ten times a second or more, also while it waits; may raise to stop.

    Raises:
        InputError: no network, a refusal, another checksum, too little disk (found before the first byte).
    """

    def missing() -> list[HubFile]:
        return [file for file in files if not (folder / file.target).is_file()]

    report = progress or (lambda *_: None)
    try:
        with ExitStack() as locks:
            for parent in sorted({(folder / file.target).parent.resolve() for file in missing()}):
                locks.enter_context(_locked(parent, report))
            _download(folder, missing(), report)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}): choose another folder.") from error


@contextmanager
def _locked(folder: Path, report: Progress) -> Iterator[None]:
    """Keeps other processes and threads from downloading into a folder. The system unlocks for one that has died."""
    from filelock import FileLock, Timeout  # comes with huggingface_hub

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".download.lock")
    try:
        while not lock.is_locked:
            try:
                lock.acquire(timeout=_LOOK)
            except Timeout:
                report(f"another process is fetching into {folder}: waiting for it", 0, 0)
            except NotImplementedError as error:  # the checksum still keeps a mixed file from getting its name
                _log.warning("%s cannot be locked (%s): let no other process download into it", folder, error)
                break
        yield
    finally:
        lock.release()


def _download(folder: Path, files: Sequence[HubFile], report: Progress) -> None:
    files = [file for file in files if not _link_cached(file, folder / file.target, report)]
    _check_disk(folder, files)
    commits: dict[str, str] = {}  # repository -> the one commit that all its files come from
    before, total = 0, sum(file.size for file in files)
    for i, file in enumerate(files):
        try:
            step = partial(lambda name, before, done: report(name, before + done, total), file.target, before)
            _fetch(file, folder / file.target, commits, step)
        except _Failure as failure:
            raise InputError(
                f"{file.target} could not be fetched ({failure}); try again, which goes on from here, or fetch by hand:"
                f"\n{by_hand(files[i:], folder)}"
            ) from failure
        before += file.size


def _link_cached(file: HubFile, target: Path, report: Progress) -> bool:
    """Uses a file where another program has put it, in the cache that huggingface_hub's programs share."""
    _check_endpoint()
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.path, revision=REVISIONS[file.repo])
    if not isinstance(found, str):
        return False
    path = Path(found).resolve()
    checksum = file.sha256 or _sha256_in(path.name)  # the cache names large files by it
    if checksum and checksum != _hash(path, lambda: report(f"checking {path}", 0, 0)):
        _log.warning("%s is damaged: it is not used", path)
        return False
    target.unlink(missing_ok=True)  # a link to a file that has gone
    for link in (os.symlink, os.link):  # Windows lets few users make symbolic links
        with suppress(OSError):
            link(path, target)
            return True
    return False


def _check_disk(folder: Path, files: Sequence[HubFile]) -> None:
    needed, folders = Counter(), {}  # by disk: the targets may lie on several
    for file in files:
        target = folder / file.target
        disk = target.parent.stat().st_dev
        needed[disk] += file.size - sum(part.stat().st_size for part in _parts(target))
        folders[disk] = target.parent
    for disk, parent in folders.items():
        free = shutil.disk_usage(parent).free
        if needed[disk] > free:
            raise InputError(
                f"{parent} has {free / 1e9:.2f} GB free and {needed[disk] / 1e9:.2f} GB are still to fetch: "
                "free some space or choose another folder."
            )


@dataclass(frozen=True)
class _Source:
    """What the hub says of a file."""

    address: str  # at a commit
    size: int  # bytes
    etag: str
    sha256: str | None


def _fetch(file: HubFile, target: Path, commits: dict[str, str], step: Callable[[int], None]) -> None:
    """Puts a file in its place. Calls `step` with the number of bytes that are there."""
    tries, most = 0, 0
    while True:
        try:
            source = _ask(file, commits)  # at each try, as the file may be another by now
            part = _part(target, source)
            for done in _append(source, part):
                if done >= most + _BLOCK:
                    tries, most = 0, done
                step(done)
            break
        except _Failure as failure:
            tries += 1
            wait = max(failure.wait, _PAUSE * 2 ** (tries - 1))
            if tries == _TRIES or wait > _LONGEST_WAIT:
                raise
            _log.warning("%s: %s; the next try is in %.0f s", file.path, failure, wait)
            until = time.monotonic() + wait
            while (left := until - time.monotonic()) > 0:
                step(most)
                time.sleep(min(left, _LOOK))
    if source.sha256 and source.sha256 != _hash(part, lambda: step(source.size)):
        part.unlink()
        raise _Failure(f"{source.address} sent bytes that have not the checksum {source.sha256}: they were thrown away")
    part.replace(target)


def _ask(file: HubFile, commits: dict[str, str]) -> _Source:
    from huggingface_hub import get_hf_file_metadata

    try:
        found = get_hf_file_metadata(file.address_at(commits.get(file.repo, REVISIONS[file.repo])), timeout=_TIMEOUT)
    except Exception as error:  # those of requests or httpx, whichever huggingface_hub uses
        raise _failure(error) from error
    stated = _sha256_in(found.etag)
    if found.size is None:
        raise _Failure("the hub does not say how large it is", math.inf)
    if file.sha256 and stated not in (None, file.sha256):
        raise _Failure(f"the hub has another file, with the checksum {stated} in place of {file.sha256}", math.inf)
    revision = commits.setdefault(file.repo, found.commit_hash or REVISIONS[file.repo])
    return _Source(file.address_at(revision), found.size, found.etag or "", file.sha256 or stated)


def _sha256_in(etag: str | None) -> str | None:
    """The ETag of a large file is its checksum."""
    return etag if etag and re.fullmatch("[0-9a-f]{64}", etag) else None


def _failure(error: Exception) -> _Failure:
    from huggingface_hub import constants

    response = getattr(error, "response", None)
    if response is None:
        return _Failure(f"the hub cannot be reached: {error}", math.inf if constants.HF_HUB_OFFLINE else 0)
    status, wait = response.status_code, response.headers.get("Retry-After", "")
    if status in (408, 429) or status >= 500:
        return _Failure(f"the hub answered {status}", float(wait) if wait.isdigit() else 0)
    advice = ": if it asks for a login, set HF_TOKEN" if status in (401, 403) else ""
    return _Failure(f"the hub answered {status}{advice}", math.inf)


def _parts(target: Path) -> list[Path]:
    return list(target.parent.glob(f"{target.name}.*.part"))


def _part(target: Path, source: _Source) -> Path:
    """The file that collects `source`; the name tells versions of a file apart."""
    version = hashlib.sha256(f"{source.etag} {source.size}".encode()).hexdigest()[:12]
    part = target.with_name(f"{target.name}.{version}.part")
    for old in _parts(target):
        if old != part:
            old.unlink()
    return part


def _append(source: _Source, part: Path) -> Iterator[int]:
    """Adds to `part` what it lacks; yields how many bytes it has."""
    with part.open("ab") as file:
        yield (done := file.tell())
        for whole, block in _blocks(source, done) if done < source.size else ():
            if whole:
                file.truncate(done := 0)
            done += len(block)
            if done > source.size:
                file.truncate(0)
                raise _Failure(f"{source.address} sends more than the {source.size} bytes that it announced", math.inf)
            file.write(block)
            yield done
    if done < source.size:
        raise _Failure(f"{source.address} stopped after {done} of {source.size} bytes")


def _blocks(source: _Source, first: int) -> Iterator[tuple[bool, bytes]]:
    """The bytes from `first` on, in blocks; True with a block that is the first of the file in their place."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    session, headers = get_session(), build_hf_headers(library_name="personalive")
    headers |= {"Accept-Encoding": "identity", "Range": f"bytes={first}-"}
    given: dict[str, Any] = dict(url=source.address, headers=headers, timeout=_TIMEOUT)
    try:
        with ExitStack() as stack:
            # Where the hub sends on to a storage, both keep the token from it.
            if callable(session.stream):  # httpx, since huggingface_hub 1.0
                response = stack.enter_context(session.stream("GET", follow_redirects=True, **given))
                blocks = response.iter_bytes()
            else:  # requests
                response = stack.enter_context(session.get(stream=True, **given))
                blocks = response.iter_content(1 << 16)
            hf_raise_for_status(response)
            etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')
            if not source.sha256 and not response.history and etag not in ("", source.etag):
                raise _Failure("it has changed on the hub meanwhile")
            whole = response.status_code == 200
            for block in blocks:
                yield whole, block
                whole = False
    except _Failure:
        raise
    except Exception as error:
        raise _failure(error) from error


def _hash(path: Path, look: Callable[[], None]) -> str:
    """The SHA-256 of a file; calls `look` after each block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            look()
    return digest.hexdigest()


def find_detector(folder: Path, name: str, fetch: bool) -> Path:
    """Finds one of `DETECTORS` in a weights folder, and downloads it first if that is allowed.

    Args:
        folder: of the weights; the detector is in its folder `detectors`.
        name: a key of `DETECTORS`.
        fetch: whether to ask the hub if the file is not there.

    Raises:
        InputError: it is not there and must not be downloaded, or the download failed.
    """
    return _find(folder, (DETECTORS[name],), f"detector {name}", fetch)


def find_small_decoder(folder: Path, fetch: bool, progress: Progress | None = None) -> Path:
    """Finds TAESD in a weights folder, and downloads it first if that is allowed.

    Args:
        folder: of the weights; TAESD is in its folder `taesd`.
        fetch: whether to ask the hub if it is not there.
        progress: of the download.

    Returns:
        Its folder, as diffusers reads it.

    Raises:
        InputError: it is not there and must not be downloaded, or the download failed.
    """
    return _find(folder, SMALL_DECODER, "small decoder TAESD", fetch, progress).parent


def _find(folder: Path, files: Sequence[HubFile], what: str, fetch: bool, progress: Progress | None = None) -> Path:
    """The last of the files."""
    if fetch:
        download(folder, files, progress)
    missing = [file for file in files if not (folder / file.target).is_file()]
    if missing:
        addresses = " and ".join(file.address for file in missing)
        raise InputError(
            f"the {what} is not there yet: download it ({sum(file.size for file in missing) / 1e6:.1f} MB; a button on "
            f"the node, --download on the command line), or put {addresses} into {(folder / missing[0].target).parent}."
        )
    return folder / files[-1].target
