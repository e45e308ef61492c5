"""Chromium, driven over the DevTools protocol, with a file as its camera."""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-port=0",
)
BITS = 12  # of a frame number
STARTS_WITHIN = 30.0  # seconds


def draw_number(picture: np.ndarray, number: int) -> None:
    """Draws a number into the top rows of uint8 (H, W) or (H, W, 3), as white and black cells."""
    cell = picture.shape[1] // BITS
    for i in range(BITS):
        picture[: cell // 2, i * cell : (i + 1) * cell] = 235 if number >> i & 1 else 16


def read_number(picture: np.ndarray) -> int:
    """The number that `draw_number` drew."""
    cell = picture.shape[1] // BITS
    middle = picture[cell // 4, cell // 2 :: cell][:BITS].reshape(BITS, -1)
    return sum(int(value > 128) << i for i, value in enumerate(middle.mean(-1)))


READ_NUMBER = f"""(source) => {{
  const width = source.videoWidth ?? source.width, height = source.videoHeight ?? source.height;
  const canvas = globalThis.numberCanvas ??= new OffscreenCanvas({BITS}, 1);
  const context = canvas.getContext("2d", {{willReadFrequently: true}});
  const cell = Math.floor(width / {BITS});
  context.imageSmoothingEnabled = false;
  context.drawImage(source, 0, Math.floor(cell / 4), cell * {BITS}, 1, 0, 0, {BITS}, 1);
  const data = context.getImageData(0, 0, {BITS}, 1).data;
  let number = 0;
  for (let i = 0; i < {BITS}; i++) if (data[4 * i + 1] > 128) number |= 1 << i;
  return number;
}}"""
"""`read_number` in a page, of a video or canvas."""


def write_camera(path: Path, frames: int, rate: int = 30, side: int = 256) -> Path:
    """Writes a y4m file of numbered frames, which Chromium plays over and over."""
    ramp = np.linspace(60, 200, side, dtype=np.uint8)
    picture = np.tile(ramp, (side, 1))
    colours = np.full(side * side // 2, 128, np.uint8).tobytes()
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W{side} H{side} F{rate}:1 Ip A1:1 C420mpeg2\n".encode())
        for number in range(frames):
            draw_number(picture, number)
            file.write(b"FRAME\n" + picture.tobytes() + colours)
    return path


class Page:
    """One tab.

    Attributes:
        errors: what its scripts and workers threw or logged as errors.
        requests: every address that it asked for.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._numbers = count()
        self._answers: dict[int, asyncio.Future] = {}
        self._tasks: list[asyncio.Task] = []
        self._worker: str | None = None
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                self._answers.pop(data["id"]).set_result(data)
            else:
                self._heed(data["method"], data["params"])

    def _heed(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(str(params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Target.attachedToTarget" and params["targetInfo"]["type"] == "worker":
            self._worker = params["sessionId"]
            self._tasks.append(asyncio.create_task(self._listen_to(self._worker)))

    async def _listen_to(self, session: str) -> None:
        for method in ("Runtime.enable", "Log.enable", "Network.enable"):
            await self._ask(method, {}, session)

    async def _ask(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self._socket.send_str(json.dumps(message | ({"sessionId": session} if session else {})))
        return await answer

    async def call(self, method: str, **params: Any) -> Any:
        answer = await self._ask(method, params)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    async def close(self) -> None:
        await self.call("Page.close")
        await self._reader

    async def listen(self) -> None:
        for method in ("Page.enable", "Runtime.enable", "Log.enable", "Network.enable"):
            await self.call(method)
        await self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)

    async def evaluate(self, expression: str, in_worker: bool = False) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": not in_worker}
        answer = await self._ask("Runtime.evaluate", options, self._worker if in_worker else None)
        result = answer.get("result") or answer
        if "result" not in result or "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result}")
        return result["result"].get("value")

    async def wait(self, expression: str, seconds: float = 10.0) -> Any:
        """Waits until an expression is true, and returns it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not (value := await self.evaluate(expression)):
            if loop.time() > end:
                text = await self.evaluate("document.body.innerText")
                raise TimeoutError(f"{expression} is {value} after {seconds} s; errors {self.errors}; page: {text}")
            await asyncio.sleep(0.05)
        return value

    async def text(self, selector: str) -> str:
        return await self.evaluate(f"document.querySelector({selector!r}).textContent")

    async def click(self, selector: str) -> None:
        """Clicks in the middle of what is shown."""
        x, y = await self.evaluate(
            f"(() => {{const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def press(self, key: str, code: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code, text=key * (kind == "keyDown"))

    async def choose_file(self, selector: str, path: Path) -> None:
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    async def screenshot(self, path: Path, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        await asyncio.sleep(0.3)
        picture = await self.call("Page.captureScreenshot", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(picture["data"]))


class Browser:
    """A Chromium of its own, with `async with`.

    Args:
        camera: a file of `write_camera`, in place of a camera; None for a browser without one.
        display: of an X server to be shown on; None for no display.
        flags: more of them.
    """

    def __init__(self, camera: Path | None, display: str | None = None, flags: tuple[str, ...] = ()):
        self._folder = tempfile.mkdtemp(prefix="chromium-")
        self._flags = [*FLAGS, f"--user-data-dir={self._folder}", *flags]
        if camera:
            self._flags += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={camera}"]
        if display is None:
            self._flags.append("--headless=new")
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            self._flags.append("--no-sandbox")
        self._environment = os.environ | ({"DISPLAY": display} if display else {})

    async def __aenter__(self) -> "Browser":
        assert CHROMIUM
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [CHROMIUM, *self._flags, "about:blank"]
        self._process = subprocess.Popen(command, env=self._environment, start_new_session=True, **quiet)
        self._http = aiohttp.ClientSession()
        file, loop = Path(self._folder, "DevToolsActivePort"), asyncio.get_running_loop()
        end = loop.time() + STARTS_WITHIN
        while not (file.exists() and "\n" in file.read_text()):
            if loop.time() > end or self._process.poll() is not None:
                raise RuntimeError("Chromium did not start")
            await asyncio.sleep(0.05)
        self._address = f"http://127.0.0.1:{file.read_text().split()[0]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()
        os.killpg(self._process.pid, signal.SIGKILL)  # Chromium's own processes are in its group
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def open(self, url: str, prepare: Callable[[Page], Any] | None = None) -> Page:
        """A new tab, in front of the others.

        Args:
            url: of the page.
            prepare: is awaited before the page is loaded.
        """
        async with self._http.put(f"{self._address}/json/new?about:blank") as answer:
            target = await answer.json()
        page = Page(await self._http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0))
        await page.listen()
        if prepare:
            await prepare(page)
        await page.call("Page.navigate", url=url)
        await page.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        return page
