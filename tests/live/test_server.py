"""The server over a session that only notes what it is told: who gets in, what comes through, who is dropped."""

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from motions import motion_of
from personalive_core.live import server as server_module
from personalive_core.live.protocol import MAX_VIEWERS, MAX_WAITING, PROTOCOL, Kind, Message
from personalive_core.live.server import LiveServer
from personalive_core.live.session import DrivenMotion, LiveChunk, LiveSession
from personalive_core.live.tokens import load_tokens
from personalive_core.motion.performance import Strength

SIZE = 64, 48


class Session(LiveSession):
    """Real, but it runs no window; what it is told is noted."""

    def __init__(self):
        super().__init__()
        self.told: list[tuple[str, Any]] = []

    def push(self, time, picture):
        self.told.append(("push", (time, picture)))

    def set_portrait(self, picture):
        self.told.append(("portrait", picture.shape))

    def calibrate(self):
        self.told.append(("calibrate", None))

    def make(self, begin: float = 1.0, window: int = 0) -> None:
        """A window's frames."""
        width, height = SIZE
        self.on_motion(DrivenMotion(motion_of(str(begin), 4), [begin + i * 0.04 for i in range(4)]))
        self.on_chunk(
            LiveChunk(np.zeros((4, height, width, 3), np.uint8), [begin + i * 0.04 for i in range(4)], window)
        )


class Pages:
    """A server with a session, and pages that connect to it."""

    def __init__(self, client: TestClient, server: LiveServer, session: Session):
        self.client, self.server, self.session = client, server, session

    async def connect(self, role: str, headers: dict[str, str] | None = None, /, **hello: Any) -> "Page":
        socket = await self.client.ws_connect("/ws", headers=headers, max_msg_size=0)
        await socket.send_json({"type": "hello", "role": role, "token": role, "version": PROTOCOL} | hello)
        return Page(socket)


class Page:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket = socket

    async def next(self, kind: str | Kind, when: Callable[[Any], bool] = lambda message: True) -> Any:
        """The next message of a kind, the rest passed over; "closed" gives the code."""
        return await asyncio.wait_for(self._next(kind, when), 5)

    async def _next(self, kind: str | Kind, when: Callable[[Any], bool]) -> Any:
        while True:
            message = await self.socket.receive()
            if message.type is WSMsgType.TEXT:
                text = json.loads(message.data)
                if text["type"] == kind and when(text):
                    return text
            elif message.type is WSMsgType.BINARY:
                found = Message.unpack(message.data)
                if found.kind is kind and when(found):
                    return found
            elif kind == "closed":
                return self.socket.close_code
            else:
                raise AssertionError(f"closed with {self.socket.close_code} before {kind}")

    async def tell(self, **message: Any) -> None:
        await self.socket.send_json(message)

    async def send(self, *message: Any) -> None:
        await self.socket.send_bytes(Message(*message).pack())


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Pages]:
    server = LiveServer(driver_token="driver", viewer_token="viewer", recordings=folder)
    session = Session()
    server.attach(session, SIZE)
    application = web.Application()
    application.add_routes(server.routes())
    async with TestClient(TestServer(application)) as client:
        yield Pages(client, server, session)
        await asyncio.to_thread(server.detach)


@pytest.fixture
def run(tmp_path) -> Callable[[Callable[[Pages], Coroutine]], None]:
    async def main(test: Callable[[Pages], Coroutine]) -> None:
        async with served(tmp_path) as pages:
            await test(pages)

    return lambda test: asyncio.run(main(test))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def test_a_driver_drives_and_a_viewer_sees(run):
    async def test(pages: Pages):
        driver, viewer = await pages.connect("driver"), await pages.connect("viewer")
        welcome = await driver.next("welcome")
        assert (welcome["size"], welcome["viewer_token"]) == ([*SIZE], "viewer")
        assert "viewer_token" not in await viewer.next("welcome")
        await driver.send(Kind.CAMERA, b"jpeg", 5250.0)
        await driver.tell(type="set", strength={"expression": 1.5}, early=True)
        await driver.tell(type="start")
        state = await viewer.next("state", lambda state: state["early"])
        assert (state["driver"], state["viewers"], state["strength"]["expression"]) == (True, 1, 1.5)
        await until(lambda: len(pages.session.told) == 2)
        assert pages.session.told == [("push", (5.25, b"jpeg")), ("calibrate", None)]
        assert pages.session.settings.strength == Strength(expression=1.5)
        pages.session.make(begin=1.0, window=7)
        for page in (driver, viewer):
            frames = [await page.next(Kind.RESULT) for _ in range(4)]
            assert [frame.number for frame in frames] == [0, 1, 2, 3]
            assert [round(frame.time) for frame in frames] == [1000, 1040, 1080, 1120]
            assert {(frame.window, frame.flags) for frame in frames} == {(7, 1)}
            assert Image.open(io.BytesIO(frames[0].data)).size == SIZE
        assert (await driver.next("stats"))["client_dropped"] == 0

    run(test)


@pytest.mark.parametrize(
    "hello, reason, code",
    [
        ({"token": "viewer"}, "token", 4401),
        ({"token": "drive\u00fc"}, "token", 4401),
        ({"token": None}, "token", 4401),
        ({"version": 2}, "version", 4400),
        ({"role": "owner"}, "version", 4400),
        ({"role": ["driver"]}, "version", 4400),
    ],
)
def test_refused(run, hello, reason, code):
    async def test(pages: Pages):
        page = await pages.connect("driver", **hello)
        refused = await page.next("refused")
        assert refused["reason"] == reason and refused["text"]
        assert await page.next("closed") == code
        pages.session.make()
        assert pages.server._driver is None

    run(test)


def test_a_first_message_that_is_none(run):
    async def test(pages: Pages):
        for send in ("[]", "{", '{"type": "set"}'):
            socket = await pages.client.ws_connect("/ws")
            await socket.send_str(send)
            assert await Page(socket).next("closed") == 4400
        socket = await pages.client.ws_connect("/ws")
        await socket.send_bytes(b"hello")
        assert await Page(socket).next("closed") == 4400

    run(test)


@pytest.mark.parametrize("path", ["/", "/view", "/ws", "/live.js"])
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "evil.example:7870", "["])
def test_another_host_is_refused(run, path, host):
    async def test(pages: Pages):
        response = await pages.client.get(path, headers={"Host": host})
        assert response.status == 403 or (host == "[" and response.status == 400)

    run(test)


def test_hosts_that_may_call(run):
    async def test(pages: Pages):
        for host in ("localhost:7870", "127.0.0.1", "[::1]:7870", "192.168.1.5:7870", "LOCALHOST"):
            response = await pages.client.get("/", headers={"Host": host})
            assert response.status == 200, host
            assert "default-src 'self'" in response.headers["Content-Security-Policy"]
            assert response.headers["X-Content-Type-Options"] == "nosniff"

    run(test)


def test_a_page_of_another_site_is_refused(run):
    async def test(pages: Pages):
        for origin in ("https://evil.example", "null", "http://localhost:1"):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await pages.connect("driver", {"Origin": origin})
        own = f"http://{pages.client.host}:{pages.client.port}"
        await (await pages.connect("driver", {"Origin": own})).next("welcome")

    run(test)


def test_files_outside_the_page_are_not_served(run):
    async def test(pages: Pages):
        for path in ("/server.py", "/..%2fserver.py", "/%2e%2e/protocol.py", "/ws.html"):
            assert (await pages.client.get(path)).status in (403, 404), path
        response = await pages.client.get("/live.js")
        assert response.status == 200 and response.content_type == "text/javascript"

    run(test)


def test_from_another_computer_one_can_watch_but_drive_only_with_tls(run, monkeypatch):
    async def test(pages: Pages):
        monkeypatch.setattr(web.Request, "remote", "192.168.1.5")
        page = await pages.connect("driver")
        assert (await page.next("refused"))["reason"] == "insecure"
        assert await page.next("closed") == 4401
        await (await pages.connect("viewer")).next("welcome")
        monkeypatch.setattr(web.Request, "secure", True)
        await (await pages.connect("driver")).next("welcome")

    run(test)


def test_the_ninth_viewer_is_refused_until_one_goes(run):
    async def test(pages: Pages):
        viewers = [await pages.connect("viewer") for _ in range(MAX_VIEWERS)]
        for viewer in viewers:
            await viewer.next("welcome")
        ninth = await pages.connect("viewer")
        assert (await ninth.next("refused"))["reason"] == "full"
        assert await ninth.next("closed") == 4429
        await viewers[0].socket.close()
        await until(lambda: len(pages.server._viewers) < MAX_VIEWERS)
        await (await pages.connect("viewer")).next("welcome")

    run(test)


def test_a_message_of_3_mb_ends_the_connection(run):
    async def test(pages: Pages):
        driver = await pages.connect("driver")
        await driver.next("welcome")
        await driver.socket.send_bytes(bytes(3_000_000))
        assert await driver.next("closed") == 1009
        await until(lambda: pages.server._driver is None)
        assert not pages.session.told

    run(test)


def test_a_viewer_cannot_drive(run):
    async def test(pages: Pages):
        for send in ('{"type": "stop"}', Message(Kind.CAMERA, b"jpeg", 1.0).pack()):
            viewer = await pages.connect("viewer")
            await viewer.next("welcome")
            await (viewer.socket.send_str if isinstance(send, str) else viewer.socket.send_bytes)(send)
            assert await viewer.next("closed") == 4403
        assert not pages.session.told and not pages.session._is_stopped

    run(test)


def test_a_second_driver_is_asked_and_may_take_over(run):
    async def test(pages: Pages):
        first = await pages.connect("driver", page="a")
        await first.next("welcome")
        second = await pages.connect("driver", page="b")
        assert "take over?" in (await second.next("refused"))["text"]
        assert await second.next("closed") == 4409
        third = await pages.connect("driver", page="b", take_over=True)
        await third.next("welcome")
        await first.next("taken_over")
        assert await first.next("closed") == 4409
        await third.send(Kind.CAMERA, b"jpeg", 1000.0)
        await until(lambda: pages.session.told == [("push", (1.0, b"jpeg"))])

    run(test)


def test_a_page_that_comes_back_drives_on_though_its_lost_connection_still_seems_there(run):
    async def test(pages: Pages):
        await (await pages.connect("driver", page="a")).next("welcome")
        again = await pages.connect("driver", page="a")
        await again.next("welcome")
        await again.tell(type="set", mirror=True)
        assert (await again.next("state", lambda state: state["mirror"]))["driver"]
        await again.socket.close()
        await until(lambda: pages.server._driver is None)
        assert (await (await pages.connect("driver", page="a")).next("state"))["mirror"]

    run(test)


def test_every_frame_is_encoded_once_for_all(run, monkeypatch):
    async def test(pages: Pages):
        encoded, jpeg = [], server_module._jpeg
        monkeypatch.setattr(server_module, "_jpeg", lambda pixels: encoded.append(1) or jpeg(pixels))
        pages.session.make()
        await until(lambda: not pages.server._chunks)
        assert not encoded  # nobody looks
        watching = [await pages.connect(role) for role in ("driver", "viewer", "viewer")]
        for page in watching:
            await page.next("welcome")
        pages.session.make()
        assert [(await page.next(Kind.RESULT)).number for page in watching] == [4, 4, 4]
        await until(lambda: len(encoded) == 4)

    run(test)


def test_a_slow_encoder_drops_the_oldest_window_and_the_session_does_not_wait(run, monkeypatch):
    async def test(pages: Pages):
        go, began = threading.Event(), threading.Event()
        monkeypatch.setattr(server_module, "_jpeg", lambda pixels: began.set() or (go.wait(5) and b"jpeg"))
        viewer = await pages.connect("viewer")
        await viewer.next("welcome")
        pages.session.make()
        await asyncio.to_thread(began.wait, 5)
        for _ in range(4):
            pages.session.make()
        go.set()
        numbers = [-1]
        while numbers[-1] < 19:
            numbers.append((await viewer.next(Kind.RESULT)).number)
        stats = await viewer.next("stats")
        assert not {*range(4, 12)} & {*numbers}
        assert stats["encoder_dropped"] == 8 and len(numbers) - 1 + stats["client_dropped"] == 12

    run(test)


def test_a_slow_viewer_loses_frames_and_slows_nobody(run, monkeypatch):
    async def test(pages: Pages):
        monkeypatch.setattr(server_module, "_jpeg", lambda pixels: bytes(400_000))
        slow, quick = await pages.connect("viewer"), await pages.connect("viewer")
        await quick.next("welcome")
        windows = 30  # 48 MB: more than all buffers between here and there
        for window in range(windows):
            pages.session.make()
            got = [(await quick.next(Kind.RESULT)).number for _ in range(4)]
            assert got == [4 * window + i for i in range(4)]
        numbers, dropped = [], 0
        while not numbers or numbers[-1] < 4 * windows - 1:
            numbers.append((await slow.next(Kind.RESULT)).number)
        dropped = (await slow.next("stats"))["client_dropped"]
        assert len(numbers) + dropped == 4 * windows and dropped > 0
        assert numbers[-MAX_WAITING:] == list(range(4 * windows - MAX_WAITING, 4 * windows))
        assert (await quick.next("stats"))["client_dropped"] == 0

    run(test)


def picture(mode: str, size: tuple[int, int], form: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, form)
    return data.getvalue()


@pytest.mark.parametrize(
    "data, words",
    [
        (b"no picture", "not a picture"),
        (picture("RGB", (64, 64))[:60], "damaged"),
        (picture("1", (8192, 4097)), "more than"),
        (picture("1", (20_000, 20_000)), "too large"),
        (picture("RGB", (8, 8)), "at least 32"),
        (picture("RGB", (64, 64), "TIFF"), "not a picture"),
    ],
)
def test_portraits_that_cannot_be(run, data, words):
    async def test(pages: Pages):
        driver = await pages.connect("driver")
        await driver.send(Kind.PORTRAIT, data)
        problem = await driver.next("problem")
        assert words in problem["text"] and problem["text"].startswith("The portrait")
        assert not pages.session.told

    run(test)


def test_a_portrait_goes_to_the_session_and_comes_back_as_the_networks_see_it(run):
    async def test(pages: Pages):
        driver = await pages.connect("driver")
        await driver.send(Kind.PORTRAIT, picture("RGB", (100, 80), "WEBP"))
        await until(lambda: pages.session.told == [("portrait", (80, 100, 3))])
        pages.session.portrait, pages.session.portraits = np.full((48, 64, 3), 200, np.uint8), 1
        pages.session.on_state()
        still = await driver.next(Kind.PORTRAIT)
        assert Image.open(io.BytesIO(still.data)).size == SIZE
        assert (await (await pages.connect("viewer")).next(Kind.PORTRAIT)).data == still.data

    run(test)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"type": "set", "strength": {"expression": 9}}',
        '{"type": "set", "strength": {"expression": NaN}}',
        '{"type": "set", "strength": {"expression": "1"}}',
        '{"type": "set", "strength": {"smile": 1}}',
        '{"type": "set", "strength": 1}',
        '{"type": "pause"}',
        '{"on": true}',
    ],
)
def test_orders_that_make_no_sense_change_nothing(run, text):
    async def test(pages: Pages):
        before = pages.session.settings
        driver = await pages.connect("driver")
        await driver.socket.send_str(text)
        assert (await driver.next("problem"))["text"]
        assert pages.session.settings == before
        await driver.socket.send_bytes(b"short")
        assert "24" in (await driver.next("problem"))["text"]

    run(test)


def test_record(run, tmp_path):
    async def test(pages: Pages):
        driver = await pages.connect("driver")
        await driver.tell(type="record", on=True)
        await driver.next("state", lambda state: state["recording"] is not None)
        for window in range(3):
            pages.session.make(1.0 + window)
        await driver.send(Kind.SOUND, bytes(9600), 1000.0, 0, 0, 0, 48000)
        await driver.next("stats", lambda stats: stats["recording"]["seconds"] > 2)
        await driver.tell(type="record", on=False)
        recorded = await driver.next("recorded")
        assert {path.name for path in tmp_path.iterdir()} == {recorded["name"], recorded["motion"]}
        assert pages.server.recorded["name"] == recorded["name"]

    run(test)


def test_a_session_that_goes_finishes_its_recording_and_the_page_says_off(run, tmp_path):
    async def test(pages: Pages):
        driver = await pages.connect("driver")
        await driver.next("welcome")
        await asyncio.to_thread(pages.server.record, True)
        pages.session.make()
        await asyncio.to_thread(pages.server.detach)
        await driver.next("recorded")
        assert (await driver.next("state", lambda state: state["state"] == "off"))["driver"]
        assert list(tmp_path.glob("live_*.mp4"))
        await driver.send(Kind.CAMERA, b"jpeg", 1.0)
        await driver.tell(type="calibrate")
        another = Session()
        pages.server.attach(another, SIZE)
        await driver.next("state", lambda state: state["state"] == "loading")
        another.make()
        assert (await driver.next(Kind.RESULT)).number == 0

    run(test)


def test_tokens_are_kept_and_private(tmp_path):
    driver, viewer = load_tokens(tmp_path / "state")
    assert driver != viewer and len(bytes.fromhex(driver)) == len(bytes.fromhex(viewer)) == 16
    assert load_tokens(tmp_path / "state") == (driver, viewer)
    path = tmp_path / "state" / "live.json"
    assert path.stat().st_mode & 0o077 == 0
    path.write_text('["", ""]')
    assert len(load_tokens(tmp_path / "state")[0]) == 32
    (tmp_path / "file").touch()
    assert len(load_tokens(tmp_path / "file")[0]) == 32


def test_servers_that_start_at_once_have_the_same_tokens(tmp_path):
    starts = threading.Barrier(8)

    def load(number: int) -> tuple[str, str]:
        starts.wait()
        return load_tokens(tmp_path / "state")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(load, range(8)))) == 1
