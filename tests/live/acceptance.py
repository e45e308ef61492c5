"""What live mode must show, in a real Chromium with a file as its camera: prints a table, takes minutes.

    python tests/live/acceptance.py [ROW ...] [--minutes 10]

Needs Chromium, and for `hidden` also Xvfb. Run it on a quiet machine.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import av
import numpy as np
import torch
from browser import CHROMIUM, READ_NUMBER, Browser, read_number, write_camera
from fake_model import NEUTRAL, ROWS, SIDE, STRENGTH, FakeModel, Served

FAST, MEDIUM, SLOW = 0.093, 0.4, 0.8  # seconds of a window: 43, 10 and 5 frames per second
FRAMES = 600  # of the camera's file: numbers repeat after that
LIVE = "document.querySelector('#status').textContent === 'Live.'"
PASSES = 4  # windows that a frame goes through
DISPLAY = ":97"

WATCH = f"""(() => {{
  const read = {READ_NUMBER}, camera = document.querySelector("#camera"), picture = document.querySelector("#picture");
  const seen = globalThis.seen = {{camera: [], picture: []}};
  const note = (list, number) => {{
    if (list.at(-1)?.[0] !== number) list.push([number, performance.now()]);
  }};
  const look = () => {{
    note(seen.camera, read(camera));
    note(seen.picture, read(picture));
    requestAnimationFrame(look);
  }};
  look();
}})()"""
"""Notes when each number is first seen in the camera's preview, and in the result."""

NOTE_DRAWS = """(() => {
  const draws = globalThis.draws = [], prototype = OffscreenCanvasRenderingContext2D.prototype;
  const draw = prototype.drawImage;
  prototype.drawImage = function (...values) {
    if (values.length === 3) draws.push(performance.now());
    return draw.apply(this, values);
  };
})()"""
"""In the worker: notes when results are drawn; camera frames are drawn with their size."""

rows: list[tuple[str, str, str, bool]] = []


def report(what: str, found: str, wanted: str, is_good: bool) -> None:
    rows.append((what, found, wanted, is_good))
    print(f"{'ok  ' if is_good else 'MISS'} {what}: {found} (must: {wanted})", flush=True)


class Live:
    """A served session and a page that drives it, live, with `async with`.

    Args:
        window: seconds of a window of the fake model.
        folder: for cameras and recordings.
        rate: of the camera.
        flags: of Chromium.
        display: for a browser that is not headless.
        proxied: the page comes through a proxy, whose connections can be cut.
    """

    def __init__(self, window: float, folder: Path, rate: int = 30, flags=(), display=None, proxied: bool = False):
        self.folder, self.proxied = folder, proxied
        self.served = Served(FakeModel(window), folder)
        camera = folder / f"{rate}.y4m"
        if not camera.exists():
            write_camera(camera, FRAMES, rate)
        self.browser = Browser(camera, display, flags)
        self.proxy: Proxy | None = None

    async def __aenter__(self) -> "Live":
        await self.served.__aenter__()
        await self.browser.__aenter__()
        url = self.served.page
        if self.proxied:
            self.proxy = Proxy(self.served.port)
            url = url.replace(str(self.served.port), str(await self.proxy.start()))
        self.page = await self.browser.open(url)
        await self.page.wait("document.querySelector('#start:enabled') !== null")
        await self.page.evaluate(NOTE_DRAWS, in_worker=True)
        begin = time.monotonic()
        await self.page.click("#start")
        await self.page.wait(LIVE, 60)
        await self.page.wait("document.querySelector('#now').dataset.shown > 0", 60)
        self.started_in = time.monotonic() - begin
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.browser.__aexit__()
        if self.proxy:
            self.proxy.stop()
        await self.served.__aexit__()

    async def delays(self, seconds: float) -> list[float]:
        """ms from the camera's preview to the result, of each number that was seen in both."""
        await self.page.evaluate(WATCH)
        await asyncio.sleep(seconds)
        seen = await self.page.evaluate("seen")
        found, begun = [], seen["camera"][0][1]
        for number, shown in seen["picture"]:
            earlier = [when for n, when in seen["camera"] if n == number and begun < when <= shown]
            if earlier:
                found.append(shown - earlier[-1])
        return found

    async def draws(self) -> list[float]:
        """ms, of the results drawn since the last call."""
        return await self.page.evaluate("draws.splice(0)", in_worker=True)


class Proxy:
    """A TCP proxy whose connections can be cut."""

    def __init__(self, port: int):
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def stop(self) -> None:
        self.cut()
        self._server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()


def percentile(values: list[float], part: float) -> float:
    return float(np.percentile(values, part))


def memory() -> float:
    """MB of this process and of the browser's."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "comm").read_text().strip()
            if int(folder.name) == os.getpid() or name == "chromium":
                total += int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            pass
    return total / 1e6


async def delay(folder: Path, minutes: float) -> None:
    """Delay at 43, 10 and 5 frames per second, with and without early frames."""
    limits = {FAST: (550, 450), MEDIUM: (2100, 1700), SLOW: (4000, 3200)}
    for window, (limit, early_limit) in limits.items():
        async with Live(window, folder) as live:
            if window == FAST:
                report("one click to a moving picture", f"{live.started_in:.2f} s", "2.5 s", live.started_in <= 2.5)
            for is_early in (False, True):
                if is_early:
                    await live.page.click("#early")
                await asyncio.sleep(max(6.0, 15 * window))
                found = await live.delays(min(60 * minutes, 20 + 10 * window))
                p50, p95, most = percentile(found, 50), percentile(found, 95), early_limit if is_early else limit
                what = f"delay at {4 / window:.0f} frames/s{', early' if is_early else ''}"
                p95_most = 650 if (window, is_early) == (FAST, False) else float("inf")
                wanted = f"p50 {most}" + (f", p95 {p95_most}" if p95_most < 1e9 else "")
                report(what, f"p50 {p50:.0f}, p95 {p95:.0f} ms", wanted, p50 <= most and p95 <= p95_most)


async def even(folder: Path, minutes: float) -> None:
    """Evenness at 43 frames per second."""
    async with Live(FAST, folder) as live:
        await asyncio.sleep(8)
        await live.draws()
        await asyncio.sleep(min(60 * minutes, 60))
        gaps = [b - a for a, b in pairwise(await live.draws())]
        deviation, p99 = statistics.pstdev(gaps), percentile(gaps, 99)
        found = f"sd {deviation:.1f}, p99 {p99:.0f} ms of {len(gaps)}"
        report("evenness at 43 frames/s", found, "sd 8, p99 60 ms", deviation <= 8 and p99 <= 60)


async def accounting(folder: Path, minutes: float) -> None:
    """Every frame is counted once."""
    async with Live(FAST, folder) as live:
        await asyncio.sleep(min(60 * minutes, 30))
        await live.page.click("#stop")
        await asyncio.sleep(3)
        stats = live.served.session.stats()
        now = await live.page.evaluate("({...document.querySelector('#now').dataset})")
        sent, made = int(now["sent"]), int(now["made"])
        inside = [stats[name] for name in ("used", "dropped", "waiting")]
        found = f"sent {sent}, received {stats['received']} = {' + '.join(map(str, inside))}"
        report("camera frames", found, "equal", sent == stats["received"] == sum(inside))
        out = [int(now[name]) for name in ("shown", "skipped", "waiting")]
        found = f"made {stats['made']} = {' + '.join(map(str, out))}"
        report("made frames", found, "equal", stats["made"] == made == sum(out))


async def growth(folder: Path, minutes: float) -> None:
    """Delay and memory over minutes at 5 frames per second with a camera of 60."""
    async with Live(SLOW, folder, 60) as live:
        await asyncio.sleep(30)
        begin, end = time.monotonic(), time.monotonic() + 60 * minutes
        times, delays, sizes = [], [], []
        while time.monotonic() < end:
            times.append(time.monotonic() - begin)
            delays.append(float(await live.page.evaluate("document.querySelector('#now').dataset.delay")))
            sizes.append(memory())
            await asyncio.sleep(2)
        slope = float(np.polyfit(times, delays, 1)[0])
        tenth = max(1, len(sizes) // 10)
        grown = statistics.median(sizes[-tenth:]) - statistics.median(sizes[:tenth])
        found = f"{slope:+.2f} ms/s, {grown:+.0f} MB in {minutes:g} min"
        report("growth", found, "1 ms/s, 20 MB", slope <= 1 and grown <= 20)


async def hidden(folder: Path, minutes: float) -> None:
    """A tab behind another one."""
    if not shutil.which("Xvfb"):
        print("hidden: left out, because Xvfb is not installed")
        return
    screen = subprocess.Popen(["Xvfb", DISPLAY, "-screen", "0", "1280x900x24"], stderr=subprocess.DEVNULL)
    try:
        await asyncio.sleep(1)
        async with Live(FAST, folder, display=DISPLAY) as live:
            front = await live.browser.open(live.served.view)
            await asyncio.sleep(2)
            state = await live.page.evaluate("document.visibilityState")
            before = live.served.session.received
            await asyncio.sleep(60 * min(minutes, 5))
            rate = (live.served.session.received - before) / (60 * min(minutes, 5))
            made = live.served.session.stats()["fps_made"]
            watched = await front.evaluate("document.querySelector('#picture').matches('.has-picture')")
            is_good = state == "hidden" and rate >= 29 and made > 35 and watched
            report("hidden tab", f"{state}, {rate:.1f} frames/s in, {made:.0f} made", "29 of 30 in", is_good)
    finally:
        screen.terminate()
        screen.wait()


async def _shown_again(live: Live, begin: float) -> float:
    """Seconds until a new result is drawn."""
    await live.draws()
    while not await live.draws():
        await asyncio.sleep(0.01)
    return time.monotonic() - begin


async def cut(folder: Path, minutes: float) -> None:
    """The connection is cut; the server starts again."""
    async with Live(FAST, folder, proxied=True) as live:
        await live.page.click("#early")
        await asyncio.sleep(3)
        live.proxy.cut()
        await asyncio.sleep(0.05)
        begin = time.monotonic() - 0.05
        seconds = await _shown_again(live, begin)
        is_same = live.served.session.settings.early and await live.page.evaluate(LIVE)
        found = f"{seconds:.2f} s, {'the same' if is_same else 'another'} state"
        report("connection cut", found, "1 s, the same state", seconds <= 1 and is_same)
        await live.served.__aexit__()
        await asyncio.sleep(10)
        await live.served.__aenter__()
        begin = time.monotonic()
        seconds = await _shown_again(live, begin)
        early = live.served.session.settings.early
        report("server started again", f"{seconds:.2f} s, early {early}", "5 s, the same state", seconds <= 5 and early)


async def changes(folder: Path, minutes: float) -> None:
    """A new portrait, another strength and another neutral frame while live."""
    async with Live(FAST, folder) as live:
        session, chunks = live.served.session, []
        on_chunk = session.on_chunk
        session.on_chunk = lambda chunk: (chunks.append((time.monotonic(), chunk)), on_chunk(chunk))
        await asyncio.sleep(5)

        await live.draws()
        session.set_portrait(np.full((SIDE, SIDE, 3), 200, np.uint8))
        await asyncio.sleep(4)
        draws = await live.draws()
        gap = max(b - a for a, b in pairwise(draws))
        has_changed = chunks[-1][1].pictures[-1, -1, -1, 0] == 200
        report("portrait change", f"gap {gap:.0f} ms", "250 ms", gap <= 250 and has_changed)

        def windows_until(is_so: Callable[[np.ndarray], bool], begin: float) -> int:
            """Windows that began after `begin`, up to the one that finished such a picture."""
            later = [chunk for when, chunk in chunks if when > begin]  # the first one's window was under way
            return next(i for i, chunk in enumerate(later) if is_so(chunk.pictures[-1]))

        def value(picture: np.ndarray, which: int) -> int:
            return read_number(picture[which * SIDE // ROWS :])

        before = value(chunks[-1][1].pictures[-1], NEUTRAL)
        begin = time.monotonic()
        set_value = "(e => {e.value = 1.5; e.dispatchEvent(new Event('input'))})"
        await live.page.evaluate(f"{set_value}(document.querySelector('[name=expression]'))")
        while session.settings.strength.expression != 1.5:
            await asyncio.sleep(0.001)
        begin = time.monotonic()
        await asyncio.sleep(2)
        windows = windows_until(lambda picture: value(picture, STRENGTH) == 150, begin)
        report("strength", f"{windows} windows", "4 windows", windows <= 4)

        await live.page.press("c", "KeyC")
        neutral = session.neutral
        while session.neutral is neutral:
            await asyncio.sleep(0.001)
        begin = time.monotonic()
        await asyncio.sleep(2)
        is_used = value(chunks[-1][1].pictures[-1], NEUTRAL) != before
        windows = windows_until(lambda picture: value(picture, NEUTRAL) != before, begin) - PASSES + 1
        report("recalibrated", f"in window {windows}", "1", windows <= 1 and is_used)


BEEP_EVERY, BEEP, RATE = 2.0, 0.1, 48000  # seconds, seconds, Hz
LISTEN = """(async () => {
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: {echoCancellation: false, noiseSuppression: false, autoGainControl: false}});
  const context = new AudioContext(), analyser = new AnalyserNode(context, {fftSize: 256});
  context.createMediaStreamSource(stream).connect(analyser);
  const data = new Float32Array(256), beeps = globalThis.beeps = [];
  let was = false;
  setInterval(() => {
    analyser.getFloatTimeDomainData(data);
    const is = Math.max(...data.map(Math.abs)) > 0.1;
    if (is && !was && performance.now() - (beeps.at(-1) ?? 0) > 500) beeps.push(performance.now());
    was = is;
  }, 4);
})()"""


async def sound(folder: Path, minutes: float) -> None:
    """Sound against picture in the recording, beside what the page itself hears and sees."""
    path, beeps = folder / "beeps.wav", np.zeros(int(BEEP_EVERY * RATE))
    tone = np.arange(int(BEEP * RATE)) / RATE
    beeps[: len(tone)] = np.sin(2 * np.pi * 1000 * tone) * 0.6
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE)
        file.writeframes((np.tile(beeps, 10) * 32767).astype("<i2").tobytes())
    async with Live(FAST, folder, flags=(f"--use-file-for-fake-audio-capture={path}",)) as live:
        choose = "(s => {s.selectedIndex = 1; s.onchange()})(document.querySelector('#microphone-choice'))"
        await live.page.evaluate(choose)
        await live.page.evaluate(LISTEN)
        await asyncio.sleep(2)
        await live.page.click("#record")
        await live.page.evaluate(WATCH)
        await asyncio.sleep(60 * minutes)
        heard, seen = await live.page.evaluate("beeps"), (await live.page.evaluate("seen"))["camera"]
        await live.page.click("#record")
        await live.page.wait("document.querySelector('#notices').textContent.includes('.mp4')", 30)
        recorded = sorted(folder.glob("live_*.mp4"))[-1]
    flashes = [when / 1000 for number, when in seen if number % 60 == 0]
    true = offsets([when / 1000 for when in heard], flashes)
    with av.open(str(recorded)) as file:
        pictures = [(float(f.time), read_number(f.to_ndarray(format="rgb24"))) for f in file.decode(video=0)]
    with av.open(str(recorded)) as file:
        pieces = [(float(f.time), f.sample_rate, f.to_ndarray().reshape(-1)) for f in file.decode(audio=0)]
    found = [t + int(np.argmax(np.abs(x) > 0.1)) / rate for t, rate, x in pieces if np.abs(x).max() > 0.1]
    onsets = [b for a, b in pairwise([-9.0, *found]) if b - a > 0.5]
    first = [t for (_, before), (t, number) in pairwise(pictures) if number % 60 == 0 and before != number]
    made = offsets(onsets, first)
    edges = [middle(made, part) - middle(true, part) for part in (0, -1)]
    result = f"{edges[0] * 1000:+.0f} ms at first, {edges[1] * 1000:+.0f} ms at the end of {minutes:g} min"
    report("sound against picture", result, "40 ms", max(map(abs, edges)) <= 0.04)


def middle(values: list[float], part: int) -> float:
    """The median of the first (0) or last (-1) quarter."""
    quarter = len(values) // 4
    return statistics.median(values[:quarter] if part == 0 else values[-quarter:])


def offsets(beeps: list[float], flashes: list[float]) -> list[float]:
    """Seconds from the nearest flash to each beep."""
    return [min((beep - flash for flash in flashes), key=abs) for beep in beeps]


ROWS_TO_RUN: dict[str, Callable[[Path, float], Awaitable[None]]] = {
    function.__name__: function for function in (delay, even, accounting, growth, hidden, cut, changes, sound)
}


async def run(names: list[str], minutes: float) -> None:
    with tempfile.TemporaryDirectory(prefix="live-") as folder:
        for name in names:
            await ROWS_TO_RUN[name](Path(folder), minutes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS_TO_RUN)}; all of them if not given")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the long ones; the others are cut to it")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS_TO_RUN):
        parser.error(f"no row {', '.join(sorted(unknown))}")
    if CHROMIUM is None:
        parser.error("no Chromium is installed")
    torch.set_num_threads(1)
    asyncio.run(run(options.rows or list(ROWS_TO_RUN), options.minutes))
    print("\n| what | found | must |  |\n|---|---|---|---|")
    for what, found, wanted, is_good in rows:
        print(f"| {what} | {found} | {wanted} | {'yes' if is_good else '**no**'} |")
    return 0 if all(row[-1] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
