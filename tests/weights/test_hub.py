"""Fetching, against a stand-in for the hub on this machine: breaks, resuming, wrong answers."""

import hashlib
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from personalive_core.errors import InputError
from personalive_core.weights import hub
from personalive_core.weights.find import find_weights
from personalive_core.weights.hub import DETECTORS, HubFile, download, find_detector

CONTENT = bytes(range(256)) * 4096
LARGE = HubFile("a", "owner/model", "deep/in/large.pth", "part/large.pth", len(CONTENT))
SMALL = HubFile("a", "owner/model", "config.json", "model/config.json", 2)
LARGE_ADDRESS = "/owner/model/resolve/main/deep/in/large.pth"
BLOCK = 1 << 16


class StandIn(ThreadingHTTPServer):
    """Serves `files` (path of the address -> bytes) as the hub does: large ones by way of a storage."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.stored: dict[str, bytes] = {}  # what the storage sends in place of the true file
        self.drops: list[int] = []  # after so many bytes the next answers break off
        self.status = 0  # in place of every answer
        self.ranges = True
        self.pause = 0.0  # seconds after each block
        self.requests = 0
        self.starts: list[tuple[str, int]] = []  # file and first byte of each answer of the storage
        self.sent = 0  # bytes of large files
        super().__init__(("127.0.0.1", 0), Answer)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.server.requests += 1
        content = self.server.files.get(self.path)
        if self.server.status or content is None:
            return self.send_error(self.server.status or 404)
        if len(content) > 100:
            self.send_response(302)
            self.send_header("Location", f"{self.server.address}/storage{self.path}")
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", "0")
        else:
            self.send_response(200)
            self.send_header("ETag", '"small"')
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def do_GET(self):
        path = self.path.removeprefix("/storage")
        if path == self.path:
            self.do_HEAD()
            if self.server.status == 0 and len(self.server.files.get(path, b"")) <= 100:
                self.wfile.write(self.server.files.get(path, b""))
            return
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        content = self.server.stored.get(path, self.server.files[path])[start:]
        self.server.starts.append((Path(path).name, start))
        self.send_response(206 if asked and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.drops:
            content = content[: self.server.drops.pop(0)]
        for first in range(0, len(content), BLOCK):
            block = content[first : first + BLOCK]
            try:
                self.wfile.write(block)
            except ConnectionError:
                return  # who asked has gone
            self.server.sent += len(block)
            time.sleep(self.server.pause)


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setitem(hub.REVISIONS, "owner/model", "main")
    monkeypatch.setattr(hub, "_PAUSE", 0)
    with StandIn({LARGE_ADDRESS: CONTENT, "/owner/model/resolve/main/config.json": b"{}"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def fetch(folder: Path, **arguments):
    download(folder, [LARGE, SMALL], **arguments)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_fetches_what_is_missing_and_asks_nothing_once_all_is_there(stand_in, tmp_path):
    calls = []
    fetch(tmp_path, progress=lambda *call: calls.append(call))
    assert files_in(tmp_path) == ["model/config.json", "part/large.pth"]
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT
    assert (tmp_path / "model/config.json").read_bytes() == b"{}"
    assert calls[-1] == ("model/config.json", len(CONTENT) + 2, len(CONTENT) + 2)
    requests = stand_in.requests
    fetch(tmp_path)
    assert stand_in.requests == requests


def test_a_dropped_connection_is_resumed_with_no_byte_twice(stand_in, tmp_path):
    stand_in.drops = [300_000, 1, 400_000]
    fetch(tmp_path)
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT
    assert stand_in.sent == len(CONTENT)


def test_the_next_run_goes_on_where_a_stopped_one_left(stand_in, tmp_path):
    class Stop(Exception):
        pass

    def stop(name, done, total):
        if done > 200_000:
            raise Stop

    with pytest.raises(Stop):
        fetch(tmp_path, progress=stop)
    (part,) = (tmp_path / "part").iterdir()
    assert part.suffix == ".part"
    have, first = part.stat().st_size, []
    fetch(tmp_path, progress=lambda name, done, total: first.append(done))
    assert first[0] >= have > 200_000
    assert stand_in.starts[1:] == [("large.pth", have)]
    assert files_in(tmp_path) == ["model/config.json", "part/large.pth"]
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT


def test_a_server_that_sends_the_whole_file_again(stand_in, tmp_path):
    stand_in.drops, stand_in.ranges = [300_000], False
    calls = []
    fetch(tmp_path, progress=lambda *call: calls.append(call[1]))
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT
    assert calls[-1] == len(CONTENT) + 2


def test_a_new_version_does_not_go_on_with_the_old_one(stand_in, tmp_path):
    stand_in.drops = [300_000] + [0] * hub._ATTEMPTS
    with pytest.raises(InputError, match="stopped after 300000 of 1048576 bytes"):
        fetch(tmp_path)
    new = CONTENT[::-1]
    stand_in.files[LARGE_ADDRESS] = new
    fetch(tmp_path)
    assert (tmp_path / "part/large.pth").read_bytes() == new
    assert files_in(tmp_path) == ["model/config.json", "part/large.pth"]


@pytest.mark.parametrize("stored", [CONTENT[:-1], CONTENT[:-1] + b"!", CONTENT + b"!"])
def test_a_truncated_or_wrong_file_never_gets_its_name(stand_in, tmp_path, stored):
    stand_in.stored[LARGE_ADDRESS] = stored
    for _ in range(2):
        with pytest.raises(InputError, match=r"large\.pth"):
            fetch(tmp_path)
        assert not (tmp_path / "part/large.pth").exists()
    stand_in.stored.clear()
    fetch(tmp_path)
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_refusal_names_file_address_and_folder(stand_in, tmp_path, status):
    stand_in.status = status
    for _ in range(2):
        with pytest.raises(InputError) as error:
            fetch(tmp_path)
        assert f"the hub answered {status}" in str(error.value)
        assert f"{stand_in.address}{LARGE_ADDRESS} -> {tmp_path / 'part'}" in str(error.value)
        assert "config.json" in str(error.value)  # it is still missing too
        assert files_in(tmp_path) == []


def test_no_network(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot be reached(.|\n)*resolve/main/config.json -> "):
        fetch(tmp_path)


def test_too_little_disk_is_found_before_the_first_byte(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda folder: SimpleNamespace(free=500_000))
    with pytest.raises(InputError, match=r"0\.00 GB free"):
        fetch(tmp_path)
    assert stand_in.sent == 0


def test_an_absolute_target_is_elsewhere_and_its_disk_is_checked(stand_in, tmp_path, monkeypatch):
    vae = replace(LARGE, target=str(tmp_path / "vae/large.pth"))
    with monkeypatch.context() as full:
        full.setattr(hub.shutil, "disk_usage", lambda folder: SimpleNamespace(free=500_000))
        with pytest.raises(InputError, match=r"vae has 0\.00 GB free and 0\.00 GB are still to fetch"):
            download(tmp_path / "weights", [vae])
    download(tmp_path / "weights", [vae])
    assert files_in(tmp_path) == ["vae/large.pth"]


def test_all_that_the_model_needs(stand_in, tmp_path):
    assert len(hub.FILES) == 10
    contents = {file.target: file.target.encode() * (10_000 if file.size > 1000 else 1) + b"!" for file in hub.FILES}
    stand_in.files = {file.address.removeprefix(stand_in.address): contents[file.target] for file in hub.FILES}
    download(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path)} == contents
    assert len(stand_in.starts) == 8  # the two config.json come without the storage
    requests = stand_in.requests
    assert find_weights(tmp_path).missing == ()
    download(tmp_path)
    assert stand_in.requests == requests


def test_a_detector_is_fetched_only_when_it_is_asked_for(stand_in, tmp_path):
    file = DETECTORS["yunet"]
    stand_in.files = {file.address.removeprefix(stand_in.address): CONTENT}
    with pytest.raises(InputError) as error:
        find_detector(tmp_path, "yunet", fetch=False)
    assert file.address in str(error.value) and str(tmp_path / "detectors") in str(error.value)
    assert stand_in.requests == 0
    path = find_detector(tmp_path, "yunet", fetch=True)
    assert path == tmp_path / "detectors" / "face_detection_yunet_2023mar.onnx" and path.read_bytes() == CONTENT
    requests = stand_in.requests
    assert find_detector(tmp_path, "yunet", fetch=False) == find_detector(tmp_path, "yunet", fetch=True) == path
    assert stand_in.requests == requests
    assert not {f.part for f in find_weights(tmp_path).missing} & {"detector"}


def test_address(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub.FILES[0].address == (
        "https://huggingface.co/huaichang/PersonaLive/resolve/main/pretrained_weights/personalive/denoising_unet.pth"
    )
    monkeypatch.setitem(hub.REVISIONS, hub.PERSONALIVE, "0a1b")
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror/")
    assert hub.FILES[0].address.startswith("http://mirror/huaichang/PersonaLive/resolve/0a1b/pretrained_weights/")
