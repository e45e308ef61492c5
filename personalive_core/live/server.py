"""The live page's server: aiohttp handlers over a session, which may come and go.

The handlers run in the event loop of whoever mounts `routes`; the session runs in another thread, which never waits.
"""

import asyncio
import hmac
import io
import ipaddress
import json
import logging
import socket as sockets
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web
from PIL import Image

from ..errors import InputError
from ..media.pictures import decode_picture
from . import protocol
from .protocol import Kind, Message
from .recording import Recording
from .session import DrivenMotion, LiveChunk, LiveSession

log = logging.getLogger(__name__)

WEB = Path(__file__).parent / "web"
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
QUALITY = 90  # of JPEG
ENCODER_WINDOWS = 2  # that may wait for the encoder
SEND_BUFFER = 2**18  # bytes that the system keeps of what a slow client has not taken

REFUSED = {
    "version": (protocol.BAD_REQUEST, "this page is of another version than the server: reload it"),
    "token": (protocol.BAD_TOKEN, "this link is not valid: open the one that the server printed"),
    "insecure": (
        protocol.BAD_TOKEN,
        "from another computer you can only watch: to drive, start the server with --tls-cert and --tls-key, or use "
        "an SSH tunnel",
    ),
    "busy": (protocol.ONE_DRIVER, "driven from another page: take over?"),
    "full": (protocol.TOO_MANY, f"{protocol.MAX_VIEWERS} people are watching, and no more can"),
}


class _Client:
    """A page, and what waits to be sent to it: the newest message of each type, and a few frames."""

    def __init__(self, socket: web.WebSocketResponse, page: str | None):
        self.socket, self.page = socket, page
        self.dropped = 0
        self.is_replaced = asyncio.Event()  # by another driver
        self._messages: dict[str, str | bytes] = {}
        self._frames: deque[bytes] = deque()
        self._wakes = asyncio.Event()

    def say(self, kind: str, message: str | bytes) -> None:
        self._messages.pop(kind, None)
        self._messages[kind] = message
        self._wakes.set()

    def show(self, frame: bytes) -> None:
        if len(self._frames) == protocol.MAX_WAITING:
            self._frames.popleft()
            self.dropped += 1
        self._frames.append(frame)
        self._wakes.set()

    async def send(self) -> None:
        """For as long as the page is there."""
        with suppress(ConnectionError):
            while True:
                await self._wakes.wait()
                self._wakes.clear()
                while self._messages or self._frames:
                    if self._messages:
                        message = self._messages.pop(next(iter(self._messages)))
                    else:
                        message = self._frames.popleft()
                    if isinstance(message, str):
                        await self.socket.send_str(message)
                    else:
                        await self.socket.send_bytes(message)


class LiveServer:
    """One page for a driver, another for viewers, over one session at a time.

    Args:
        driver_token: whoever has it can drive.
        viewer_token: whoever has it can watch.
        recordings: the folder that recordings go to.
        allowed_hosts: names, besides this computer's own and numeric addresses, that the server may be called by;
            others are refused, because a page of another site can be called by a name that leads here.

    Attributes:
        video: name of the file that drives the session in place of a camera; camera frames are then passed over.
        waiting_jobs: how many other jobs wait for the session to end.
        recorded: what `Recording.finish` said of the last recording of the present session.
        on_restart: is called in the event loop when a page wants a session that has stopped to begin again.
    """

    def __init__(
        self, *, driver_token: str, viewer_token: str, recordings: Path, allowed_hosts: Iterable[str] | None = None
    ):
        self.video: str | None = None
        self.waiting_jobs: Callable[[], int] = lambda: 0
        self.on_restart: Callable[[], None] = lambda: None
        self.driver_token, self.viewer_token = driver_token, viewer_token
        self.recorded: dict[str, Any] | None = None
        self._tokens = {"driver": driver_token, "viewer": viewer_token}
        self._recordings = recordings
        self._allowed_hosts = {"localhost", *_own_names(), *map(str.lower, allowed_hosts or ())}
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the pages, once there is one
        self._session: LiveSession | None = None
        self._size = 0, 0
        self._driver: _Client | None = None
        self._viewers: list[_Client] = []
        self._ticker: asyncio.Task | None = None
        self._tasks: set[asyncio.Task] = set()  # else they are collected as garbage
        self._portrait, self._portraits = b"", 0
        self._made = 0  # frames of this session, for their numbers
        self._changed = threading.Condition()
        self._chunks: deque[tuple[LiveChunk, int]] = deque()  # that wait for the encoder, with the first one's number
        self._encoder: threading.Thread | None = None
        self._encoder_dropped = 0
        self._recording: Recording | None = None
        self._records = threading.Lock()

    # ---------------------------------------------------------------------------------------------- the session

    def attach(self, session: LiveSession, size: tuple[int, int]) -> None:
        """Serves this session; from any thread, before it runs.

        Args:
            session: its callbacks become ours.
            size: width and height of the result.
        """
        self._size, self.recorded = size, None
        self._portrait, self._portraits, self._made, self._encoder_dropped = b"", 0, 0, 0
        self._session = session
        session.on_chunk, session.on_motion = self._take_chunk, self._take_motion
        session.on_state, session.on_problem = self._take_state, self.say_problem
        self._encoder = threading.Thread(
            target=self._encode_all, args=(session,), name="encoder of live frames", daemon=True
        )
        self._encoder.start()
        self._take_state()

    def detach(self) -> None:
        """The session is over; what is being recorded is finished. From any thread but that of the event loop."""
        self.record(False)
        self._session = None
        with self._changed:
            encoder, self._encoder = self._encoder, None
            self._changed.notify_all()
        if encoder:
            encoder.join()
        self._chunks.clear()
        self._soon(self._say_state, "state")

    def say_problem(self, text: str) -> None:
        """Tells the pages, and the log; from any thread."""
        log.warning(text)
        self._soon(self._say_all, "problem", json.dumps({"type": "problem", "text": text}))

    def record(self, on: bool) -> None:
        """Begins or ends a recording, and waits for its end; from any thread but that of the event loop."""
        with self._records:
            session = self._session
            if on and not self._recording and session:
                try:
                    self._recording = Recording(self._recordings, self._size)
                except InputError as error:
                    self.say_problem(str(error))
            elif not on and self._recording:
                recording, self._recording = self._recording, None
                self.recorded = recording.finish(
                    *((session.neutral, session.settings.strength) if session else (None, None))
                )
                self._soon(self._say_all, "recorded", json.dumps({"type": "recorded", **self.recorded}))
        self._soon(self._say_state, "state")

    # ------------------------------------------------------------------------------------- the session's callbacks

    def _take_chunk(self, chunk: LiveChunk) -> None:
        if recording := self._recording:
            recording.take_chunk(chunk)
        with self._changed:
            self._chunks.append((chunk, self._made))
            self._made += len(chunk.times)
            if len(self._chunks) > ENCODER_WINDOWS:
                self._encoder_dropped += len(self._chunks.popleft()[0].times)
            self._changed.notify_all()

    def _take_motion(self, driven: DrivenMotion) -> None:
        if recording := self._recording:
            recording.take_motion(driven)

    def _take_state(self) -> None:
        with self._changed:
            self._changed.notify_all()  # the portrait may be another
        self._soon(self._say_state, "state")

    def _encode_all(self, session: LiveSession) -> None:
        """The encoder's thread: each frame is encoded once, for all pages."""
        me = threading.current_thread()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._chunks or session.portraits != self._portraits or self._encoder is not me
                )
                if self._encoder is not me:
                    return
                chunk, number = self._chunks.popleft() if self._chunks else (None, 0)
            if session.portraits != self._portraits and session.portrait is not None:
                self._portraits = session.portraits
                self._portrait = Message(Kind.PORTRAIT, _jpeg(session.portrait)).pack()
                self._soon(self._say_all, "portrait", self._portrait)
                self._soon(self._say_state, "state")
            if chunk and (self._driver or self._viewers):
                flags = protocol.EARLY if session.settings.early else 0
                for i, (pixels, time) in enumerate(zip(chunk.pictures, chunk.times, strict=True)):
                    frame = Message(Kind.RESULT, _jpeg(pixels), time * 1000, number + i, chunk.window, flags)
                    self._soon(self._show_all, frame.pack())

    # -------------------------------------------------------------------------------- in the event loop: to the pages

    def _soon(self, function: Callable[..., None], *arguments: Any) -> None:
        """In the event loop, if there has been a page; from any thread."""
        if self._loop:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(function, *arguments)

    def _clients(self) -> list[_Client]:
        return [*self._viewers, self._driver] if self._driver else list(self._viewers)

    def _show_all(self, frame: bytes) -> None:
        for client in self._clients():
            client.show(frame)

    def _say_all(self, kind: str, message: str | bytes) -> None:
        for client in self._clients():
            client.say(kind, message)

    def _say_state(self, kind: str) -> None:
        """To all, as "state" or "stats"."""
        session, recording = self._session, self._recording
        state = {
            "type": kind,
            "size": self._size,
            "video": self.video,
            **(session.stats() if session else {"state": "off", "message": ""}),
            "viewers": len(self._viewers),
            "driver": self._driver is not None,
            "encoder_dropped": self._encoder_dropped,
            "recording": recording.stats() if recording else None,
            "portrait": self._portraits,
            "waiting_jobs": self.waiting_jobs(),
        }
        for client in self._clients():
            client.say(kind, json.dumps(state | {"client_dropped": client.dropped}))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(protocol.STATS_EVERY)
            self._say_state("stats")

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -------------------------------------------------------------------------------------------- requests

    def routes(self, prefix: str = "") -> list[web.RouteDef]:
        """What to add to an aiohttp application: the pages, their files and the WebSocket."""
        return [
            web.get(f"{prefix}/", self._page),
            web.get(f"{prefix}/view", self._page),
            web.get(f"{prefix}/ws", self._connect),
            web.get(f"{prefix}/{{name}}", self._page),
        ]

    async def close(self) -> None:
        """Closes all pages' connections."""
        for client in self._clients():
            with suppress(ConnectionError):
                await client.socket.close(code=WSCloseCode.GOING_AWAY)

    async def _page(self, request: web.Request) -> web.Response:
        self._check_host(request)
        name = request.match_info.get("name") or ("view.html" if request.path.endswith("/view") else "index.html")
        path = WEB / name
        if path.suffix not in TYPES or path.name != name or not path.is_file():
            raise web.HTTPNotFound()
        return web.Response(body=path.read_bytes(), content_type=TYPES[path.suffix], charset="utf-8", headers=HEADERS)

    def _check_host(self, request: web.Request) -> None:
        """A name that is not ours is a page of another site that got here by DNS rebinding. A number cannot be, and TLS
        has checked the name."""
        if request.secure:
            return
        try:
            name = (urlsplit(f"//{request.host}").hostname or "").lower()
        except ValueError:
            name = ""
        if name not in self._allowed_hosts and not _address(name):
            raise web.HTTPForbidden(text="This server is not called by that name. Use its numeric address.")

    def check_origin(self, request: web.Request) -> None:
        """Raises HTTPForbidden for what a page of another site asks for, or a page that came by a name of another's."""
        self._check_host(request)
        origin = request.headers.get("Origin")  # every browser sends it
        if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
            raise web.HTTPForbidden(text="Pages of other sites cannot connect to this server.")

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        self.check_origin(request)
        socket = web.WebSocketResponse(
            heartbeat=protocol.HEARTBEAT, max_msg_size=protocol.MAX_MESSAGE, compress=False, timeout=1.0
        )
        await socket.prepare(request)
        hello = await _read_hello(socket)
        if hello is None:
            await socket.close(code=protocol.BAD_REQUEST, message=b"the first message must be hello")
            return socket
        if reason := self._refusal(hello, request):
            code, text = REFUSED[reason]
            with suppress(ConnectionError):
                await socket.send_json({"type": "refused", "reason": reason, "text": text})
                await socket.close(code=code)
            return socket
        if request.transport and (raw := request.transport.get_extra_info("socket")):
            raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, SEND_BUFFER)
        client, role = _Client(socket, hello.get("page")), hello["role"]
        self._enter(client, role)
        sender = asyncio.create_task(client.send())
        listener = asyncio.create_task(self._listen(client, role))
        replaced = asyncio.create_task(client.is_replaced.wait())
        try:
            await asyncio.wait((listener, replaced), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._leave(client)
            for task in (sender, listener, replaced):
                task.cancel()
        if client.is_replaced.is_set():
            with suppress(ConnectionError, asyncio.TimeoutError):
                await asyncio.wait_for(socket.send_json({"type": "taken_over"}), 1)
                await socket.close(code=protocol.ONE_DRIVER)
        return socket

    def _refusal(self, hello: dict[str, Any], request: web.Request) -> str | None:
        role = str(hello.get("role"))
        if hello.get("version") != protocol.PROTOCOL or role not in self._tokens:
            return "version"
        if not hmac.compare_digest(str(hello.get("token")).encode(), self._tokens[role].encode()):
            return "token"
        if role == "viewer":
            return "full" if len(self._viewers) >= protocol.MAX_VIEWERS else None
        if not (request.secure or _is_here(request.remote)):
            return "insecure"
        if self._driver is None or hello.get("take_over"):
            return None
        is_back = self._driver.page is not None and self._driver.page == hello.get("page")
        return None if is_back else "busy"  # the same page may be back before its lost connection is noticed

    def _enter(self, client: _Client, role: str) -> None:
        self._loop = asyncio.get_running_loop()
        welcome = {"type": "welcome", "version": protocol.PROTOCOL, "role": role, "size": self._size}
        if role == "driver":
            if self._driver:
                self._driver.is_replaced.set()
            self._driver = client
            welcome["viewer_token"] = self._tokens["viewer"]
        else:
            self._viewers.append(client)
        client.say("welcome", json.dumps(welcome))
        if self._portrait:
            client.say("portrait", self._portrait)
        self._say_state("state")
        self._ticker = self._ticker or asyncio.create_task(self._tick())

    def _leave(self, client: _Client) -> None:
        if client in self._viewers:
            self._viewers.remove(client)
        if client is self._driver:
            self._driver = None
        if self._ticker and not self._clients():
            self._ticker.cancel()
            self._ticker = None
        self._say_state("state")

    async def _listen(self, client: _Client, role: str) -> None:
        async for message in client.socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                continue
            if role == "viewer":
                await client.socket.close(code=protocol.VIEWER_DRIVES, message=b"a viewer can only watch")
                return
            if client is not self._driver:  # it was taken over
                return
            try:
                if message.type is WSMsgType.TEXT:
                    self._obey(json.loads(message.data))
                else:
                    self._receive(Message.unpack(message.data))
            except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
                text = str(error) if isinstance(error, InputError) else f"the page sent what is no message ({error})"
                client.say("problem", json.dumps({"type": "problem", "text": text}))

    def _obey(self, order: dict[str, Any]) -> None:
        session, kind = self._session, order["type"]
        if kind == "record":
            self._start(asyncio.to_thread(self.record, bool(order["on"])))
        if kind in ("start", "restart"):
            self.on_restart()
        if session is None:
            return
        if kind == "set":
            settings: dict[str, Any] = {name: bool(order[name]) for name in ("early", "mirror") if name in order}
            if "strength" in order:
                settings["strength"] = replace(session.settings.strength, **order["strength"])
            session.set(**settings)
            self._say_state("state")
        elif kind in ("calibrate", "start"):
            session.calibrate()
        elif kind == "pause":
            session.pause(bool(order["on"]))
        elif kind == "stop":
            session.stop()
        if kind in ("start", "restart"):
            session.restart()

    def _receive(self, message: Message) -> None:
        session = self._session
        if message.kind is Kind.CAMERA and session and self.video is None:
            session.push(message.time / 1000, message.data)
        elif message.kind is Kind.SOUND and self._recording:
            self._recording.take_sound(message.time / 1000, message.data, message.sample_rate)
        elif message.kind is Kind.PORTRAIT and session:
            self._start(asyncio.to_thread(self._change_portrait, session, message.data))

    def _change_portrait(self, session: LiveSession, data: bytes) -> None:
        try:
            session.set_portrait(decode_picture(data, "The portrait", protocol.MAX_PORTRAIT))
        except InputError as error:
            self.say_problem(str(error))


async def _read_hello(socket: web.WebSocketResponse) -> dict[str, Any] | None:
    """None where the first message is late or something else."""
    try:
        hello = json.loads(await socket.receive_str(timeout=protocol.HEARTBEAT))
    except (asyncio.TimeoutError, TypeError, ValueError):
        return None
    return hello if isinstance(hello, dict) and hello.get("type") == "hello" else None


def _address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_here(remote: str | None) -> bool:
    address = _address(remote)
    return address is not None and address.is_loopback


def _own_names() -> set[str]:
    name = sockets.gethostname().lower()
    return {name, f"{name.partition('.')[0]}.local"}


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return buffer.getvalue()
