"""`live`: what is refused before any work, what it prints, and that it ends cleanly. The page's own way is tested in
tests/live."""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator

import aiohttp
import numpy as np
import pytest

from personalive_core.cli import live
from personalive_core.cli.main import main
from personalive_core.errors import InputError


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "state_folder", lambda: tmp_path / "state")


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    "options, words",
    [
        ([], "--ref-image"),
        (["--demo", "--detector", "yunet"], "--crop"),
        (["--ref-image", "PORTRAIT", "--size", "100"], "multiple of 8"),
        (["--ref-image", "PORTRAIT", "--size", "512x"], "WIDTHxHEIGHT"),
        (["--ref-image", "PORTRAIT", "--size", "big"], "WIDTHxHEIGHT"),
        (["--ref-image", "none.png"], "none.png does not exist"),
        (["--demo", "--video", "none.mp4"], "none.mp4 does not exist"),
        (["--demo", "--tls-cert", "PORTRAIT"], "give both"),
        (["--demo", "--tls-cert", "PORTRAIT", "--tls-key", "PORTRAIT"], "PEM"),
        (["--demo", "--host", "192.0.2.1"], "192.0.2.1:7870 cannot be served"),
    ],
)
def test_what_cannot_be(portrait, capsys, options, words):
    assert main(["live", *(str(portrait) if option == "PORTRAIT" else option for option in options)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_port_in_use(capsys, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert main(["live", "--demo", "--port", str(port)]) == 2
    assert f"port {port} is in use" in capsys.readouterr().err


def test_without_aiohttp(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "personalive_core.live.server", raising=False)
    assert main(["live", "--demo"]) == 2
    assert "pip install aiohttp" in capsys.readouterr().err


class Model:
    width = height = 128

    def encode(self, picture: np.ndarray) -> Generator[None, None, None]:
        yield
        raise InputError(f"no face in {picture.shape}")


def test_it_loads_fails_starts_stops_and_begins_again(monkeypatch, tmp_path, capsys, port):
    go = threading.Event()
    loads = []

    def load(report):
        loads.append(1)
        report("denoising_unet", 0.5)
        go.wait(10)
        if len(loads) == 1:
            raise InputError("a file is damaged")
        return Model()

    async def drive() -> None:
        (token, _) = live.load_tokens(tmp_path / "state")
        async with aiohttp.ClientSession() as client:
            while True:
                try:
                    page = await client.ws_connect(f"http://127.0.0.1:{port}/ws")
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.02)
            await page.send_json({"type": "hello", "role": "driver", "token": token, "version": 1})

            problems = []

            async def wait_for(state: str, message: str = "") -> dict:
                while True:
                    text = await page.receive_json()
                    if text["type"] == "problem":
                        problems.append(text["text"])
                    if text["type"] in ("state", "stats") and (text["state"], text["message"]) == (state, message):
                        return text

            assert (await wait_for("loading", "denoising_unet"))["progress"] == 0.5
            go.set()
            await wait_for("error", "a file is damaged")
            await page.send_json({"type": "restart"})
            assert (await wait_for("ready"))["video"] is None
            while not problems:
                await wait_for("ready")
            assert problems[0].startswith("no face in")
            await page.send_json({"type": "record", "on": True})
            await page.send_json({"type": "stop"})
            await wait_for("off")
            await page.send_json({"type": "restart"})
            await wait_for("ready")

    failures = []

    def be_the_page() -> None:
        try:
            asyncio.run(asyncio.wait_for(drive(), 20))
        except BaseException as error:
            failures.append(error)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(live, "_loader", lambda options, size: load)
    before = signal.getsignal(signal.SIGTERM)
    page = threading.Thread(target=be_the_page)
    page.start()
    portrait = str(live.EXAMPLE / "portrait.png")
    assert main(["live", "--ref-image", portrait, "--size", "128", "--port", str(port), "--device", "cpu"]) == 0
    page.join()
    assert not failures and len(loads) == 2
    assert signal.getsignal(signal.SIGTERM) is before
    driver, viewer = live.load_tokens(tmp_path / "state")
    printed = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}/#{driver}" in printed and f"http://127.0.0.1:{port}/view#{viewer}" in printed
    assert "ssh -L" not in printed


def test_links_for_another_computer(capsys):
    from argparse import Namespace

    options = Namespace(host="0.0.0.0", port=7870, tls_cert=None)
    live._print_links(options, "d", "v")
    printed = capsys.readouterr().out
    assert "http://127.0.0.1:7870/#d" in printed and "ssh -L 7870:127.0.0.1:7870" in printed
    assert "viewers only" in printed and "http://127.0.0.1:7870/view#v" not in printed
    live._print_links(Namespace(host="box.example", port=1, tls_cert="cert.pem"), "d", "v")
    printed = capsys.readouterr().out
    assert "https://box.example:1/#d" in printed and "ssh" not in printed
