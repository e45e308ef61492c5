"""A stand-in for the hub on this machine."""

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
