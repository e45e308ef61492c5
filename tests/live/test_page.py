"""The page in a real Chromium, over the real server and session, with a camera that plays numbered frames."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("aiohttp", reason="aiohttp is not installed: live mode needs it")

from browser import CHROMIUM, READ_NUMBER, Browser, Page, write_camera
from fake_model import DRIVER, FakeModel, Served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to look at the page with")

FRAMES = 120  # of the camera's file
LAN = "lan.example"
CAN_START = "document.querySelector('#start:enabled') !== null"
LIVE = "document.querySelector('#status').textContent === 'Live.'"
SHOWN = "Number(document.querySelector('#now').dataset.shown)"


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def browser(loop, tmp_path_factory):
    camera = write_camera(tmp_path_factory.mktemp("camera") / "numbers.y4m", FRAMES)
    browser = Browser(camera, flags=(f"--host-resolver-rules=MAP {LAN} 127.0.0.1",))
    loop.run_until_complete(browser.__aenter__())
    yield browser
    loop.run_until_complete(browser.__aexit__())


@pytest.fixture
def served(loop, tmp_path):
    served = Served(FakeModel(0.05, 0.01), tmp_path)
    loop.run_until_complete(served.__aenter__())
    yield served
    loop.run_until_complete(served.__aexit__())


@pytest.fixture
def page(loop, browser, served):
    page = loop.run_until_complete(browser.open(served.page))
    yield page
    loop.run_until_complete(page.close())


async def start(page: Page) -> None:
    await page.wait(CAN_START)
    await page.click("#start")
    await page.wait(LIVE)


async def number(page: Page, selector: str) -> int:
    return await page.evaluate(f"({READ_NUMBER})(document.querySelector({selector!r}))")


def test_one_click_to_a_moving_picture(loop, browser, served, page):
    async def run():
        await page.wait(CAN_START)
        await page.click("#start")
        await page.wait("document.querySelector('#status').textContent.startsWith('Look straight')")
        await page.wait(LIVE)
        first = await page.wait(SHOWN)
        await page.wait(f"{SHOWN} > {first} + 40")
        shown, now = await number(page, "#picture"), await number(page, "#camera")
        assert 0 < (now - shown) % FRAMES < 45  # 30 a second: at most 1.5 s old

        await page.click("#record")
        await page.wait("!document.querySelector('#on-air').hidden")
        await page.press("c", "KeyC")
        await page.wait("document.querySelector('#status').textContent.startsWith('Look straight')")
        await page.wait(LIVE)
        view = await browser.open(served.view)
        await view.wait("document.querySelector('#picture').matches('.has-picture')")
        assert await view.text("#label") == "synthetic"
        await view.close()
        await page.click("#record")
        await page.wait("document.querySelector('#notices').textContent.includes('.mp4')")
        assert page.errors + view.errors == []
        host = f"//127.0.0.1:{served.port}/"
        assert [url for url in page.requests + view.requests if host not in url and url != "about:blank"] == []

    loop.run_until_complete(run())


def test_playout_passes_the_vectors(loop, page):
    vectors = json.loads(Path(__file__).with_name("playout_vectors.json").read_text())
    play = """async (vectors) => {
      const { Playout } = await import("./playout.js");
      const play = ({ steps }) => {
        const playout = new Playout(), seen = [];
        for (const [kind, ...values] of steps) {
          if (kind === "push") playout.push({ seq: values[0], capture: values[1], isReady: true }, values[2]);
          else if (kind === "hold") playout.held = values[0];
          else {
            const left = playout.tick(...values).map(({ seq }) => seq);
            seen.push([left, playout.made, playout.shown, playout.skipped, playout.waiting.length, playout.delay]);
          }
        }
        return seen;
      };
      return Object.fromEntries(Object.entries(vectors).map(([name, vector]) => [name, play(vector)]));
    }"""
    seen = loop.run_until_complete(page.evaluate(f"({play})({json.dumps(vectors)})"))
    assert seen == {name: vector["seen"] for name, vector in vectors.items()}


def test_controls_reach_the_session(loop, served, page):
    async def run():
        await start(page)
        set_value = "(e => {e.value = 1.5; e.dispatchEvent(new Event('input'))})"
        await page.evaluate(f"{set_value}(document.querySelector('[name=expression]'))")
        await page.click("#early")
        await page.click("#mirror")
        await until(lambda: served.session.settings.mirror)
        assert served.session.settings.strength.expression == 1.5
        assert served.session.settings.early
        await page.click("#reset")
        await until(lambda: served.session.settings.strength.expression == 1)
        await page.evaluate("document.activeElement.blur()")
        await page.press(" ", "Space")
        await page.wait("document.querySelector('#status').textContent.startsWith('Paused')")
        await page.press(" ", "Space")
        await page.wait(LIVE)
        await page.click("#hold")
        await page.wait("document.querySelector('#delay').textContent === '800'")
        assert "delay=800" in await page.evaluate("document.querySelector('#view-link').value")
        await page.click("#stop")
        await page.wait("document.querySelector('#status').textContent === 'Stopped.'")
        assert page.errors == []

    loop.run_until_complete(run())


def test_it_comes_back_after_the_server_was_started_again(loop, served, page, tmp_path):
    async def run():
        await start(page)
        await page.click("#early")
        await until(lambda: served.session.settings.early)
        await served.__aexit__()
        await page.wait("document.querySelector('#status').textContent.includes('Reconnecting')")
        async with Served(FakeModel(0.05, 0.01), tmp_path, served.port) as again:
            await page.wait(LIVE)
            shown = await page.evaluate(SHOWN)
            await page.wait(f"{SHOWN} > {shown} + 20")
            assert again.session.settings.early
        assert [error for error in page.errors if "WebSocket" not in error] == []
        await served.__aenter__()

    loop.run_until_complete(run())


def test_a_second_driver_can_take_over(loop, browser, served, page):
    async def run():
        await start(page)
        other = await browser.open(served.page)
        await other.wait("document.querySelector('#act').textContent === 'Take over'")
        await other.click("#act")
        await start(other)
        await page.wait("document.querySelector('#act').textContent === 'Take it back'")
        assert await other.wait(SHOWN)
        await other.close()

    loop.run_until_complete(run())


def test_a_portrait_is_turned_and_made_smaller(loop, served, page, tmp_path):
    picture = Image.fromarray(np.zeros((900, 2048, 3), np.uint8) + 200)
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "portrait.jpg", exif=exif)
    given = []
    served.session.set_portrait = given.append

    async def run():
        await page.wait(CAN_START)
        await page.choose_file("#portrait-file", tmp_path / "portrait.jpg")
        await until(lambda: given)

    loop.run_until_complete(run())
    assert given[0].shape == (1024, 450, 3)


@pytest.mark.parametrize(
    "name, says", [("NotAllowedError", "may not use"), ("NotReadableError", "in use"), ("NotFoundError", "No camera")]
)
def test_no_camera(loop, page, name, says):
    async def run():
        await page.wait(CAN_START)
        await page.evaluate(
            f"navigator.mediaDevices.getUserMedia = async () => {{throw new DOMException('', '{name}')}}"
        )
        await page.click("#start")
        await page.wait(f"document.querySelector('#status').textContent.includes({says!r})")
        assert await page.evaluate(CAN_START)

    loop.run_until_complete(run())


def test_http_on_a_lan_says_what_to_do(loop, browser, tmp_path):
    async def run():
        async with Served(FakeModel(0.05), tmp_path, hosts={LAN}) as served:
            page = await browser.open(f"http://{LAN}:{served.port}/#{DRIVER}")
            await page.wait(f"document.querySelector('#status').textContent.includes('ssh -L {served.port}:')")
            assert "--tls-cert" in await page.text("#status")
            await page.close()

    loop.run_until_complete(run())


def test_every_state_has_its_words(loop, page):
    states = ["off", "loading", "ready", "calibrating", "live", "stalled", "paused", "stopped", "error"]
    describe = """async (states) => {
      const { describe } = await import("./words.js");
      const session = (state) => ({ state, message: "No memory.", lost: 2.2 });
      const page = { link: "open", refused: null, camera: "", isDriving: true };
      return [...states, "face lost"].map((state) => describe({ ...page, session: session(state) }));
    }"""
    said = loop.run_until_complete(page.evaluate(f"({describe})({json.dumps(states)})"))
    assert all(words["text"] for words in said)
    assert len({words["text"] for words in said}) == len(states) + 1
    assert said[-1]["text"] == "No face for 2 s: the last movement is held."
    assert said[-2]["act"] == ["Start again", "restart"]


@pytest.mark.parametrize("early", [False, True])
def test_a_slow_computer_is_told_what_helps(loop, page, early):
    session = {"state": "live", "period": 0.4, "window": 0.32, "decode": 0.08, "fps_in": 30, "fps_made": 10}
    advise = f"""async () => {{
      const {{ advise }} = await import("./words.js");
      return advise({json.dumps(session | {"early": early})}, [512, 512], 1900);
    }}"""
    [lines] = loop.run_until_complete(page.evaluate(f"({advise})()"))
    assert lines.startswith("10 pictures a second are made; the delay is 1.9 s.")
    assert ("choose “Less delay” (about 1.5 s)" in lines) is not early
    assert "a small decoder" in lines and "256 x 256" in lines


async def until(condition) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.025)
    raise TimeoutError
