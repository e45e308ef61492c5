"""Fetching, against a stand-in for the hub on this machine: breaks, resuming, wrong answers."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from personalive_core import hub
from personalive_core.errors import InputError
from personalive_core.hub import HubFile, download

CONTENT = bytes(range(256)) * 4096
LARGE = HubFile("a", "owner/model", "deep/in/large.pth", "part/large.pth", len(CONTENT))
SMALL = HubFile("a", "owner/model", "config.json", "model/config.json", 2)
REVISION = {"owner/model": "main"}


class StandIn(ThreadingHTTPServer):
    """Serves `files` (path of the address -> bytes) as the hub does: large ones by way of a storage."""

    daemon_threads = True

    def __init__(self):
        self.files = {
            "/owner/model/resolve/main/deep/in/large.pth": CONTENT,
            "/owner/model/resolve/main/config.json": b"{}",
        }
        self.stored = CONTENT  # what the storage sends
        self.drops: list[int] = []  # after so many bytes the next answers break off
        self.status = 0  # in place of every answer
        self.ranges = True
        self.requests = 0
        self.sent = 0  # bytes of the large file
        super().__init__(("127.0.0.1", 0), Answer)


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
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/storage")
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", "0")
        else:
            self.send_response(200)
            self.send_header("ETag", '"small"')
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def do_GET(self):
        if self.path != "/storage":
            self.do_HEAD()
            if self.server.status == 0 and len(self.server.files.get(self.path, b"")) <= 100:
                self.wfile.write(self.server.files.get(self.path, b""))
            return
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        content = self.server.stored[start:]
        self.send_response(206 if asked and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.drops:
            content = content[: self.server.drops.pop(0)]
        self.server.sent += len(content)
        self.wfile.write(content)


@pytest.fixture
def stand_in(monkeypatch):
    server = StandIn()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub, "_PAUSE", 0)
    yield server
    server.shutdown()
    server.server_close()


def fetch(folder: Path, **arguments):
    download(folder, [LARGE, SMALL], REVISION, **arguments)


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
    have, stand_in.sent, first = part.stat().st_size, 0, []
    fetch(tmp_path, progress=lambda name, done, total: first.append(done))
    assert first[0] > have > 200_000
    assert stand_in.sent == len(CONTENT) - have
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
    stand_in.files["/owner/model/resolve/main/deep/in/large.pth"] = stand_in.stored = new
    fetch(tmp_path)
    assert (tmp_path / "part/large.pth").read_bytes() == new
    assert files_in(tmp_path) == ["model/config.json", "part/large.pth"]


@pytest.mark.parametrize("stored", [CONTENT[:-1], CONTENT[:-1] + b"!", CONTENT + b"!"])
def test_a_truncated_or_wrong_file_never_gets_its_name(stand_in, tmp_path, stored):
    stand_in.stored = stored
    with pytest.raises(InputError, match=r"large\.pth"):
        fetch(tmp_path)
    assert not (tmp_path / "part/large.pth").exists()
    stand_in.stored = CONTENT
    fetch(tmp_path)
    assert (tmp_path / "part/large.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_refusal_names_file_address_and_folder(stand_in, tmp_path, status):
    stand_in.status = status
    with pytest.raises(InputError) as error:
        fetch(tmp_path)
    address = f"http://127.0.0.1:{stand_in.server_port}/owner/model/resolve/main/deep/in/large.pth"
    assert f"the hub answered {status}" in str(error.value)
    assert f"{address} -> {tmp_path / 'part'}" in str(error.value)
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


def test_a_revision_can_be_pinned(stand_in, tmp_path):
    stand_in.files["/owner/model/resolve/0a1b/config.json"] = b"[]"
    download(tmp_path, [SMALL], {"owner/model": "0a1b"})
    assert (tmp_path / "model/config.json").read_bytes() == b"[]"


def test_only_the_files_the_model_needs_are_listed(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert len(hub.FILES) == 10
    assert {Path(file.target).suffix for file in hub.FILES} == {".pth", ".json", ".safetensors", ".bin"}
    assert hub.FILES[0].address("main") == (
        "https://huggingface.co/huaichang/PersonaLive/resolve/main/pretrained_weights/personalive/denoising_unet.pth"
    )
