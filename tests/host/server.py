"""A real host as a subprocess, and a client for it: start, prompt, watch, interrupt, free, stop."""

import base64
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 180
MESSAGE_SECONDS = 180  # the longest a host may stay silent within a prompt
# The host's binary events: 4 bytes event, then
PREVIEW_IMAGE = 1  # 4 bytes picture type, the picture
PROGRESS_TEXT = 3  # 4 bytes length of the node's name, the name, the text


@dataclass
class Run:
    """What became of one prompt. Nodes are named as in the prompt."""

    outputs: dict[str, dict] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    progress: list[tuple[str, int, int]] = field(default_factory=list)  # node, value, maximum
    previews: dict[str, list[bytes]] = field(default_factory=dict)  # node -> JPEGs
    texts: dict[str, list[str]] = field(default_factory=dict)  # node -> what it says
    prompt: str | None = None  # the host's name for it
    interrupted: bool = False
    node: str | None = None  # the one that failed
    error: str | None = None
    error_type: str | None = None


class Server:
    """`folder`: a ComfyUI checkout with its `.venv`; `base`: where models, input, output and custom_nodes lie."""

    def __init__(self, folder: Path, base: Path, *arguments: str):
        self.folder, self.base = folder, base
        self.log = base / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [python_of(folder), "main.py", "--port", str(self.port), "--base-directory", str(base)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes", *arguments]
        # As in tests/conftest.py: one thread does not crawl where others use the same cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = str(base / "opencv")  # see conftest.py; other bases have none
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_ready()
            self.nodes = self.get("object_info")
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the host ended with {self.process.returncode}:\n{self.log_text()}")
            try:
                self.get("system_stats")
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"the host was not ready after {START_SECONDS} s:\n{self.log_text()}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_text(self) -> str:
        return self.log.read_bytes().decode(errors="replace")

    def get(self, path: str):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=30) as answer:
            return json.load(answer)

    def get_bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=30) as answer:
            return answer.read()

    def post(self, path: str, body: dict) -> dict:
        """The host's answer, of an HTTP error too."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def interrupt(self) -> None:
        self.post("interrupt", {})

    def free(self, forget_outputs: bool) -> None:
        """Have all models unloaded, and the cached outputs forgotten too if asked for; returns at once."""
        self.post("free", {"unload_models": True, "free_memory": forget_outputs})

    def with_defaults(self, prompt: dict) -> dict:
        """The prompt as the page would send it: widgets that it leaves out have their defaults."""
        return {
            name: {**node, "inputs": self._defaults(node["class_type"]) | node["inputs"]}
            for name, node in prompt.items()
        }

    def _defaults(self, class_type: str) -> dict:
        inputs = self.nodes.get(class_type, {}).get("input", {})
        defaults = {}
        for name, (_, *options) in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
            if options and "default" in options[0]:
                defaults[name] = options[0]["default"]
        return defaults

    def run(self, prompt: dict, on_progress: Callable[[str, int], None] | None = None) -> Run:
        """Post an API prompt, defaults added, and watch it to its end. `on_progress(node, value)` may interrupt it."""
        client = uuid.uuid4().hex
        with WebSocket(self.port, f"/ws?clientId={client}") as messages:
            answer = self.post("prompt", {"prompt": self.with_defaults(prompt), "client_id": client})
            run = _complaint(answer)
            if "prompt_id" not in answer:
                return run
            run.prompt, running = answer["prompt_id"], None
            while True:
                message = messages.receive()
                if isinstance(message, bytes):
                    event, length = struct.unpack_from(">II", message)
                    if event == PREVIEW_IMAGE:
                        run.previews.setdefault(running, []).append(message[8:])
                    elif event == PROGRESS_TEXT:
                        name, text = (part.decode() for part in (message[8 : 8 + length], message[8 + length :]))
                        run.texts.setdefault(name, []).append(text)
                    continue
                kind, data = message["type"], message["data"]
                if data.get("prompt_id") != run.prompt:
                    continue
                if kind == "execution_cached":
                    run.cached.update(data["nodes"])
                elif kind == "executing":
                    running = data["node"]
                elif kind == "executed":
                    run.outputs[data["node"]] = data["output"]
                elif kind == "progress":
                    run.progress.append((data["node"], data["value"], data["max"]))
                    if on_progress:
                        on_progress(data["node"], data["value"])
                elif kind == "execution_error":
                    run.node, run.error = data["node_id"], data["exception_message"].strip()
                    run.error_type = data["exception_type"]
                    return run
                elif kind == "execution_interrupted":
                    run.interrupted = True
                    return run
                elif kind == "execution_success":
                    return run

    def status(self, run: Run) -> str:
        """ "success" or "error", as the host's history has it a moment after the end."""
        while not (history := self.get(f"history/{run.prompt}")):
            time.sleep(0.05)
        return history[run.prompt]["status"]["status_str"]


def python_of(folder: Path) -> str:
    for python in (folder / ".venv" / "bin" / "python", folder / ".venv" / "Scripts" / "python.exe"):
        if python.exists():
            return str(python)
    return sys.executable


def _complaint(answer: dict) -> Run:
    """What the host found wrong before running: the first about a node, or about the whole. Output nodes that do not
    depend on that node run nevertheless."""
    for node, complaint in answer["node_errors"].items():
        for error in complaint["errors"]:
            return Run(node=node, error=f"{error['message']}: {error['details']}", error_type=error["type"])
    if "error" in answer:
        return Run(error=answer["error"]["message"], error_type=answer["error"]["type"])
    return Run()


class WebSocket:
    """Just enough of RFC 6455 to talk to the host: no dependency for a test. Fails where the host refuses."""

    TEXT, BINARY, CLOSE = 1, 2, 8

    def __init__(self, port: int, path: str, **headers: str):
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=MESSAGE_SECONDS)
        self.stream = self.connection.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        headers = {"Host": f"127.0.0.1:{port}", "Upgrade": "websocket", "Connection": "Upgrade", **headers}
        headers |= {"Sec-WebSocket-Key": key, "Sec-WebSocket-Version": "13"}
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self.connection.sendall("\r\n".join(lines).encode())
        status = self.stream.readline()
        if b" 101 " not in status:
            raise ConnectionError(f"no websocket: {status!r}")
        while self.stream.readline().strip():
            pass

    def send(self, message: dict | bytes) -> None:
        """As JSON, or as bytes. The mask is zero, which changes nothing."""
        is_binary = isinstance(message, bytes)
        payload = message if is_binary else json.dumps(message).encode()
        kind = 128 | (self.BINARY if is_binary else self.TEXT)
        self.connection.sendall(struct.pack(">BBQI", kind, 128 | 127, len(payload), 0) + payload)

    def receive(self) -> dict | bytes:
        """The next message: JSON decoded, or bytes. The host sends each in one frame, unmasked. Its pings need an
        answer, which anything that is sent counts as."""
        while True:
            first, length = self._read(2)
            if length == 126:
                (length,) = struct.unpack(">H", self._read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self._read(8))
            payload = self._read(length)
            kind = first & 15
            if kind == self.TEXT:
                return json.loads(payload)
            if kind == self.BINARY:
                return payload
            if kind == self.CLOSE:
                raise ConnectionError("the host closed the websocket")

    def _read(self, count: int) -> bytes:
        data = self.stream.read(count)
        if len(data) < count:
            raise ConnectionError("the host ended")
        return data

    def __enter__(self) -> "WebSocket":
        return self

    def __exit__(self, *error) -> None:
        self.stream.close()
        self.connection.close()
