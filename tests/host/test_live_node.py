"""Live: the node in a real host, driven with the miniature by the example's driver over the page's own protocol."""

import asyncio
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
from browser import CHROMIUM, Browser, Page
from PIL import Image
from prompts import node
from results import latents, saved
from server import Run, Server, WebSocket

from media import read_frames
from personalive_core.live.protocol import Kind, Message
from personalive_core.media.video_reader import VideoReader
from personalive_core.motion.motion_file import load_motion
from personalive_core.weights.find import EXAMPLE

TEMPLATE = Path(__file__).parent / "workflows" / "8 Live.json"
SECONDS = 120  # the longest that anything may take; windows of the miniature take a second or two on a loaded machine
CAMERA = 15  # frames a second
SIZE = 128


def prompt(**live) -> dict:
    encoders = dict(model=["model", 0], vae=["encoders", 0], clip_vision=["encoders", 1])
    return {
        "model": node("PersonaLiveLoadModel", weights="miniature"),
        "encoders": node("PersonaLiveLoadEncoders", model=["model", 0]),
        "example": node("PersonaLiveExampleInput"),
        "reference": node("PersonaLiveEncodeReference", **encoders, image=["example", 0], width=SIZE, height=SIZE),
        "live": node("PersonaLiveLive", **encoders, reference=["reference", 0], crop=False, **live),
    }


def template() -> dict:
    """The template, for a driver that fills the picture as the portrait does."""
    prompt = json.loads(TEMPLATE.read_text("utf-8"))
    (live,) = (item for item in prompt.values() if item["class_type"] == "PersonaLiveLive")
    live["inputs"]["crop"] = False
    return prompt


def with_results(prompt: dict) -> dict:
    """With all outputs used: the video saved, the motion sampled again."""
    sample = dict(model=["model", 0], reference=["reference", 0], motion=["live", 1], steps=8)
    return prompt | {
        "save": node("SaveVideo", video=["live", 0], filename_prefix="video/live", format="auto", codec="auto"),
        "sample": node("PersonaLiveSample", **sample),
        "latents": node("SaveLatent", samples=["sample", 0], filename_prefix="latents/live"),
        "rate": node("PreviewAny", source=["live", 2]),
    }


def request(host: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """Status and body."""
    address = f"http://127.0.0.1:{host.port}/personalive/live/{path}"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, method=method, headers=headers), timeout=30
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def token(host: Server) -> str:
    status, body = request(host, "token", "POST", Origin=f"http://127.0.0.1:{host.port}")
    assert status == 200
    return json.loads(body)["token"]


class Driver:
    """What the page does, without a page: shows a camera the example's driver, and keeps what comes back."""

    def __init__(self, host: Server, **hello):
        self.socket = WebSocket(host.port, "/personalive/live/ws")
        self.results: list[Message] = []
        self.portraits: list[Message] = []
        self.messages: dict[str, dict] = {}  # the newest of each type
        self.states: list[str] = []
        self.socket.send({"type": "hello", "role": "driver", "version": 1, "token": token(host), **hello})
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._film)]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        try:
            while True:
                message = self.socket.receive()
                if isinstance(message, bytes):
                    unpacked = Message.unpack(message)
                    (self.results if unpacked.kind is Kind.RESULT else self.portraits).append(unpacked)
                else:
                    self.messages[message["type"]] = message
                    if message["type"] == "state":
                        self.states.append(message["state"])
        except (ConnectionError, OSError, ValueError):
            self._closed.set()

    def _film(self) -> None:
        files = [jpeg(frame) for frame in driving_frames()]
        count = 0
        try:
            while not self._closed.wait(1 / CAMERA):
                self.socket.send(Message(Kind.CAMERA, files[count % len(files)], time.time() * 1000, count).pack())
                count += 1
        except OSError:
            self._closed.set()

    def wait_for(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not happened():
            assert time.monotonic() < deadline, f"not after {SECONDS} s: {what}; {self.messages}"
            assert not self._closed.is_set(), f"the connection was closed before: {what}; {self.messages}"
            time.sleep(0.05)

    def close(self) -> None:
        self._closed.set()
        self.socket.connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self.socket.connection.close()


def driving_frames() -> Iterator[np.ndarray]:
    with VideoReader(EXAMPLE / "driving.mp4") as video:
        yield from (frame.pixels for frame in video)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(message: Message) -> np.ndarray:
    """int (H, W, 3)"""
    return np.asarray(Image.open(io.BytesIO(message.data)).convert("RGB")).astype(int)


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@contextmanager
def running(host: Server, prompt: dict) -> Iterator[tuple[Future[Run], Driver]]:
    """The prompt in the host, and a page that drives it. It is interrupted at the end if it still runs."""
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(host.run, prompt)
        page = Driver(host)
        try:
            page.wait_for(lambda: bool(page.results) or run.done(), "a result")
            assert not run.done(), run.result()
            yield run, page
        finally:
            if not run.done():
                host.interrupt()
            page.close()


def recordings(host: Server) -> set[str]:
    return {file.name for file in (host.base / "output" / "live").glob("*") if not file.name.startswith(".")}


def test_from_start_to_stop(host):
    before = recordings(host)
    with running(host, with_results(prompt())) as (run, page), ThreadPoolExecutor(1) as pool:
        other = pool.submit(host.run, {"a": node("PersonaLiveExampleInput"), "b": node("PreviewAny", source=["a", 0])})
        page.wait_for(lambda: page.messages.get("stats", {}).get("waiting_jobs") == 1, "the other prompt waits")
        page.wait_for(lambda: len(page.results) >= 20 and "live" in page.states, "five windows")
        page.socket.send({"type": "stop"})
        result = run.result(SECONDS)
        assert other.result(SECONDS).error is None
        page.wait_for(lambda: page.messages["state"]["state"] == "off", "the session is over")
    assert result.error is None and not result.interrupted, f"{result.node}: {result.error}"

    shown = [pixels(message) for message in page.results]
    assert {frame.shape for frame in shown} == {(SIZE, SIZE, 3)}
    assert abs(shown[-1] - shown[0]).mean() > 1  # it moves
    times = [message.time for message in page.results]
    assert times == sorted(times) and time.time() * 1000 - SECONDS * 1000 < times[0]

    video, motion = sorted(recordings(host) - before, key=lambda name: "motion" in name)
    assert host.status(result) == "success"
    assert result.outputs["live"]["images"] == [{"filename": video, "subfolder": "live", "type": "output"}]
    performance = load_motion(host.base / "output" / "live" / motion)
    frames = read_frames(saved(host, result, "save"))
    assert len(frames) > 0 and frames.shape[1:] == (SIZE, SIZE, 3)
    assert len(latents(host, result)) == len(performance.motion) >= 20
    assert performance.neutral is not None
    (rate,) = result.outputs["rate"]["text"]
    assert float(rate) == pytest.approx(float(performance.frame_rate))
    assert any("tab 'Live'" in text for text in result.texts["live"])


def test_cancel_keeps_the_recording(host):
    before = recordings(host)
    with running(host, with_results(prompt())) as (run, page):
        page.wait_for(lambda: len(page.results) >= 20, "five windows")
        begun, period = time.monotonic(), page.messages["stats"]["period"]
        host.interrupt()
        assert run.result(SECONDS).interrupted
        assert time.monotonic() - begun < 2 * period + 5  # a window, and the end of the recording
    (video,) = (name for name in recordings(host) - before if name.endswith(".mp4"))
    assert len(read_frames(host.base / "output" / "live" / video))


def test_without_a_recording_nothing_comes_out(host):
    before = recordings(host)
    with running(host, with_results(prompt(record=False))) as (run, page):
        page.socket.send({"type": "stop"})
        result = run.result(SECONDS)
    assert host.status(result) == "success"
    assert not result.outputs.keys() & {"save", "latents", "rate"}
    assert any("Nothing was recorded" in text for text in result.texts["live"])
    assert recordings(host) == before


def test_another_portrait_and_an_error(host):
    """A new portrait takes over; one that cannot be read leaves the old one, and says so."""
    with running(host, prompt(record=False)) as (run, page):
        page.socket.send(Message(Kind.PORTRAIT, b"no picture").pack())
        page.wait_for(lambda: "problem" in page.messages, "the sentence")
        seen, other = len(page.portraits), next(driving_frames())
        page.socket.send(Message(Kind.PORTRAIT, png(other.repeat(2, 0).repeat(2, 1))).pack())
        page.wait_for(lambda: len(page.portraits) > seen, "the other portrait")
        made = len(page.results)
        page.wait_for(lambda: len(page.results) >= made + 16, "its frames")
        page.socket.send({"type": "stop"})
        result = run.result(SECONDS)
    assert host.status(result) == "success"
    shown, still = (pixels(messages[-1]) for messages in (page.results, page.portraits))
    before = pixels(page.results[0])
    assert shown.shape == still.shape == (SIZE, SIZE, 3)  # that of the first
    assert abs(shown - still).mean() < abs(before - still).mean() / 2


def test_without_room_there_are_no_keyframes(host):
    nodes = prompt(record=False)
    nodes["live"]["inputs"]["model"] = ["no room", 0]
    with running(host, nodes | {"no room": node("TestNoRoom", model=["model", 0])}) as (run, page):
        page.socket.send({"type": "stop"})
        assert any("without keyframes" in text for text in run.result(SECONDS).texts["live"])


@pytest.mark.parametrize("path", ["", "view", "live.js", "ws"])
def test_other_names_are_refused(host, path):
    assert request(host, path, Host=f"127.0.0.1:{host.port}")[0] != 403
    assert request(host, path, Host="evil.example")[0] == 403


def test_other_sites_are_refused(host):
    here = f"127.0.0.1:{host.port}"
    for headers in (
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Host": here, "Origin": "http://evil.example"},
        {"Host": here, "Origin": "null"},
    ):
        assert request(host, "token", "POST", **headers)[0] == 403
        with pytest.raises(ConnectionError, match="403"):
            WebSocket(host.port, "/personalive/live/ws", **headers)
    assert request(host, "token")[0] != 200  # only as POST, which needs an Origin


def test_the_page_keeps_its_own_policy(host):
    """Under the host's, which --disable-api-nodes sets, the page could not play a file in place of a camera."""
    with urllib.request.urlopen(f"http://127.0.0.1:{host.port}/personalive/live/", timeout=30) as answer:
        assert "media-src 'self' blob:" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_only_the_token_drives(host):
    with WebSocket(host.port, "/personalive/live/ws") as page:
        page.send({"type": "hello", "role": "driver", "version": 1, "token": "0" * 32})
        assert page.receive()["reason"] == "token"


def write_camera(path: Path) -> Path:
    """The example's driver, which Chromium plays over and over."""
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W{SIZE} H{SIZE} F{CAMERA}:1 Ip A1:1 C420mpeg2\n".encode())
        for pixels in driving_frames():
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")
            file.write(b"FRAME\n" + frame.to_ndarray().tobytes())
    return path


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to look at the page with")
def test_the_tab_at_the_side(host, tmp_path):
    """One click shows the page, one more the moving portrait; Stop there ends the run with its outputs."""
    frame = "document.querySelector('iframe[title=\"PersonaLive Live\"]')"
    tab = "document.querySelector('.personalive-live-tab-button, [data-testid=personalive-live-tab-button]')"

    def inside(selector: str) -> str:
        return f"{frame}?.contentDocument?.querySelector('{selector}')"

    async def click(page: Page, element: str) -> None:
        await page.wait(f"{element} && !{element}.hidden && !{element}.disabled", SECONDS)
        await page.evaluate(f"{element}.click()")

    async def drive(run: Future[Run]) -> None:
        async with Browser(write_camera(tmp_path / "driver.y4m")) as browser:
            page = await browser.open(f"http://127.0.0.1:{host.port}/")
            await click(page, tab)
            await click(page, inside("#start"))
            await page.wait(f"{inside('#status')}.textContent === 'Live.'", SECONDS)
            await page.wait(f"Number({inside('#made')}.textContent) >= 20", SECONDS)
            await click(page, inside("#stop"))
            await asyncio.wrap_future(run)
            await page.wait(f"{inside('#status')}.textContent.startsWith('Waiting for the Live node')", SECONDS)
            assert not [error for error in page.errors if "personalive" in error]
            assert {urlsplit(url).netloc for url in page.requests if "personalive" in url} == {f"127.0.0.1:{host.port}"}

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(host.run, template())
        try:
            asyncio.run(drive(run))
        finally:
            host.interrupt()
    (output,) = run.result().outputs.values()
    assert output["images"]
