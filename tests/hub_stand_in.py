"""A stand-in for the hub on this machine."""

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

BLOCK = 1 << 16
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """As if the environment had named this hub before huggingface_hub was imported."""
    from huggingface_hub import constants, file_download

    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for module in (constants, file_download):  # the latter in huggingface_hub before 0.25
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


class StandIn(ThreadingHTTPServer):
    """Serves `files` (path of the address, of the branch main or of a commit -> bytes) as the hub does: large ones by
    way of a storage, which is another host."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.stored: dict[str, bytes] = {}  # what the storage sends in place of the true file
        self.commit = COMMIT
        self.plain = False  # a mirror: no commit, no checksum, no storage
        self.drops: list[int] = []  # after so many bytes the next answers break off
        self.most = 0  # bytes after which every answer breaks off
        self.status = 0  # in place of every answer
        self.statuses: list[int] = []  # in place of the next answers
        self.retry_after = ""
        self.ranges = True
        self.pause = 0.0  # seconds after each block
        self.requests = 0
        self.asked: list[str] = []  # path of each question for a large or small file's facts
        self.tokens: set[tuple[str, str | None]] = set()  # host and token of every request
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

    def content(self, path: str) -> bytes | None:
        return self.files.get(path, self.files.get(path.replace(f"/{self.commit}/", "/main/")))


class Answer(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *args):
        pass

    def note(self) -> bool:
        """Whether to go on; False where a refusal was sent."""
        host = self.headers["Host"].partition(":")[0]
        self.server.tokens.add((host, self.headers.get("Authorization")))
        status = self.server.statuses.pop(0) if self.server.statuses else self.server.status
        if status or self.server.content(self.path.removeprefix("/storage")) is None:
            self.send_response(status or 404)
            if self.server.retry_after:
                self.send_header("Retry-After", self.server.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
        return not status and self.server.content(self.path.removeprefix("/storage")) is not None

    def do_HEAD(self):
        self.server.requests += 1
        self.server.asked.append(self.path)
        if self.note():
            self.facts()

    def facts(self) -> bool:
        """Sends what the hub says of a file; True where the bytes are to follow."""
        content = self.server.content(self.path)
        stored = len(content) > 100 and not self.server.plain
        self.send_response(302 if stored else 200)
        if not self.server.plain:
            revision = self.path.split("/")[4]
            self.send_header("X-Repo-Commit", self.server.commit if revision == "main" else revision)
        if stored:
            self.send_header("Location", f"http://localhost:{self.server.server_port}/storage{self.path}")
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", "0")
        else:
            self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return not stored

    def do_GET(self):
        if not self.note():
            return
        path = self.path.removeprefix("/storage")
        content = self.server.content(path)
        if path == self.path and not (self.server.plain and len(content) > 100):
            if self.facts():
                self.wfile.write(content)
            return
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        etag = hashlib.md5(content).hexdigest()
        content = self.server.stored.get(path.replace(f"/{self.server.commit}/", "/main/"), content)[start:]
        self.server.starts.append((Path(path).name, start))
        self.send_response(206 if asked and self.server.ranges else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.drops:
            content = content[: self.server.drops.pop(0)]
        if self.server.most:
            content = content[: self.server.most]
        for first in range(0, len(content), BLOCK):
            block = content[first : first + BLOCK]
            try:
                self.wfile.write(block)
            except ConnectionError:
                return  # who asked has gone
            self.server.sent += len(block)
            time.sleep(self.server.pause)
