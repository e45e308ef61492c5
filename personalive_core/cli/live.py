"""`live`: a camera or a video drives the portrait now, on a page that this serves."""

import argparse
import asyncio
import errno
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..framing.crop import crop_portrait
from ..live.model import LiveModel, Report
from ..live.session import LiveSession, LiveSettings, State
from ..live.tokens import load_tokens, state_folder
from ..media.pictures import fit_picture, read_picture
from ..media.video_reader import VideoReader
from ..memory import Budget
from ..sampling.keyframes import KeyframeSettings
from ..sampling.reference import check_size
from ..weights import hub
from ..weights.find import EXAMPLE, MINIATURE, find_weights
from .crop_options import open_detector
from .options import (
    SIZES,
    add_device_options,
    add_small_decoder_option,
    add_vram_option,
    arithmetic,
    small_decoder,
    vram,
)

if TYPE_CHECKING:
    from ..live.server import LiveServer

PORT = 7870
HERE, EVERYWHERE = ("127.0.0.1", "localhost", "::1"), ("0.0.0.0", "::")


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    live = commands.add_parser("live", parents=parents, help="a camera drives the portrait now, on a page")
    live.add_argument("--ref-image", type=Path, metavar="FILE", help="portrait: a picture of one face")
    live.add_argument("--demo", action="store_true", help="the miniature with its example, without weights or a camera")
    live.add_argument("--video", type=Path, metavar="FILE", help="drive with this video in place of a camera")
    live.add_argument("--size", default="512", metavar="N", help=f"pixels of the result, {SIZES}; or WIDTHxHEIGHT")
    live.add_argument("--early", action="store_true", help="show frames one window sooner, after 3 of 4 steps")
    add_small_decoder_option(live)
    live.add_argument("--seed", type=int, default=42, metavar="N", help="the same seed starts from the same noise")
    live.add_argument("--crop", action="store_true", help="cut a square around the face out of each portrait")
    live.add_argument("--detector", metavar="NAME", help="with --crop: yunet, or a YuNet file of your own (.onnx)")
    live.add_argument("--no-crop-driving", action="store_true", help="use the whole camera picture: do not follow")
    live.add_argument("--recordings", type=Path, default=Path("outputs"), metavar="DIR", help="where Record writes")
    live.add_argument("--port", type=int, default=PORT, metavar="N", help="of the page")
    live.add_argument("--host", default=HERE[0], metavar="NAME", help="address to listen on; 0.0.0.0 is all")
    live.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate (PEM): others can drive, over https")
    live.add_argument("--tls-key", type=Path, metavar="FILE", help="its key (PEM)")
    live.add_argument("--download", action="store_true", help="fetch missing weights first")
    add_device_options(live)
    add_vram_option(live)
    live.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Raises:
        InputError: Before any work, for options that cannot be, files that cannot be read, and a port that is taken.
    """
    try:
        from ..live.server import LiveServer
    except ImportError as error:
        raise InputError(
            f"live needs the package aiohttp ({error}): run  pip install aiohttp  and try again."
        ) from error
    if options.demo:
        options.weights, options.device = MINIATURE, "cpu"
        options.ref_image = options.ref_image or EXAMPLE / "portrait.png"
        options.video = options.video or EXAMPLE / "driving.mp4"
    elif options.ref_image is None:
        raise InputError("live needs --ref-image: give a picture of one face, or --demo to try it without.")
    if options.detector and not options.crop:
        raise InputError("--detector does nothing without --crop: add that, or leave it out.")
    portrait = read_picture(options.ref_image)
    if options.demo:
        options.size = "{1}x{0}".format(*portrait.shape)
    size = _size(options.size)
    computing = arithmetic(options)
    vram(options)
    if options.video:
        VideoReader(options.video).close()
    context = _tls(options)
    driver_token, viewer_token = load_tokens(state_folder())
    server = LiveServer(
        driver_token=driver_token,
        viewer_token=viewer_token,
        recordings=options.recordings,
        allowed_hosts=[options.host],
    )
    server.video = options.video and options.video.name
    settings = LiveSettings(early=options.early, seed=options.seed)
    if options.no_crop_driving:
        settings = replace(settings, crop=None)
    sessions = _Sessions(server, settings, portrait, size, _loader(options, size), options.video, loops=options.demo)
    with computing:
        asyncio.run(_serve(options, server, sessions, context))


async def _serve(
    options: argparse.Namespace, server: "LiveServer", sessions: "_Sessions", context: ssl.SSLContext | None
) -> None:
    from aiohttp import web

    application = web.Application()
    application.add_routes(server.routes())
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    before = _on_signals(lambda: loop.call_soon_threadsafe(stop.set))
    try:
        site = web.TCPSite(runner, options.host, options.port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"port {options.port} is in use by another program: give another --port.") from error
            raise InputError(f"{options.host}:{options.port} cannot be served ({error.strerror}).") from error
        _print_links(options, server.driver_token, sessions.viewer_token)
        sessions.start(lambda: loop.call_soon_threadsafe(stop.set))
        await stop.wait()
        print("stopping")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # a second Ctrl-C does not wait
        await asyncio.to_thread(sessions.stop)
        await server.close()
        await runner.cleanup()
    if sessions.failure:
        raise sessions.failure


class _Sessions:
    """The thread that runs the session, and the next one when a page asks for it after a stop.

    Args:
        server: Shows them.
        settings: Of each.
        portrait: Of the first; a later one has the last one's.
        size: Width and height of the result.
        load: Makes the model, once.
        video: What drives in place of a camera.
        loops: Whether it plays again and again.
    """

    def __init__(
        self,
        server: "LiveServer",
        settings: LiveSettings,
        portrait: np.ndarray,
        size: tuple[int, int],
        load: Callable[[Report], LiveModel],
        video: Path | None,
        *,
        loops: bool,
    ):
        self.failure: BaseException | None = None
        self.viewer_token = server.viewer_token
        self._server, self._settings, self._portrait, self._size = server, settings, portrait, size
        self._load = load
        self._model: LiveModel | None = None
        self._video, self._loops = video, loops
        self._session: LiveSession | None = None
        self._is_wanted, self._is_over = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        server.on_restart = self._is_wanted.set

    def start(self, ended: Callable[[], object]) -> None:
        """Runs sessions until `stop`, or until one fails; then it calls `ended`, in its own thread."""

        def work() -> None:
            try:
                while not self._is_over.is_set():
                    self._run()
                    if not self._is_over.is_set():  # `stop` may have come before the session's end cleared the other
                        self._is_wanted.wait()
            except _Over:
                pass
            except BaseException as error:
                self.failure = error
            ended()

        self._thread = threading.Thread(target=work, name="live session", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends within a window, and completes what is being recorded."""
        self._is_over.set()
        self._is_wanted.set()
        if self._session:
            self._session.stop()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        session = self._session = LiveSession(self._settings)
        session.set_portrait(self._portrait)
        self._server.attach(session, self._size)
        driver = threading.Thread(target=self._drive, args=(session,), name="driving video", daemon=True)
        if self._video:
            driver.start()
        try:
            session.run(self._loaded, self._check)
        finally:
            self._is_wanted.clear()
            self._server.detach()
            self._settings = session.settings
            if session.given is not None:
                self._portrait = session.given

    def _loaded(self, report: Report) -> LiveModel:
        if self._model is None:
            self._model = self._load(report)
        return self._model

    def _check(self) -> None:
        if self._is_over.is_set():
            raise _Over

    def _drive(self, session: LiveSession) -> None:
        """Plays the video into the session at its own speed, on the clock that pages use."""
        assert self._video is not None
        begin = 0.0
        while True:
            with VideoReader(self._video) as video:
                for frame in video:
                    while session.state is State.LOADING or session.portrait is None:
                        if session.state is State.STOPPED or self._is_over.wait(0.1):
                            return
                    begin = begin or time.time()
                    due = begin + float(frame.time)
                    if self._is_over.wait(max(0.0, due - time.time())) or session.state is State.STOPPED:
                        return
                    session.push(due, frame.pixels)
                begin = due + float(1 / video.metadata.frame_rate)
            if not self._loops:
                return


class _Over(Exception):
    """The program is to end while a session loads."""


def _loader(options: argparse.Namespace, size: tuple[int, int]) -> Callable[[Report], LiveModel]:
    def load(report: Report) -> LiveModel:
        from transformers.utils import logging as transformers_logging

        from ..live.pipeline_model import PipelineModel
        from ..pipeline import Pipeline

        transformers_logging.disable_progress_bar()
        missing = find_weights(options.weights).missing if options.download else ()

        def progress(name: str, done: int, total: int) -> None:
            report(f"fetching {name}", done / total if total else 0.0)

        if missing:
            hub.download(options.weights, missing, progress)
        decoder = small_decoder(options, progress)
        detector = open_detector(options) if options.detector else None
        budget = Budget(*size, KeyframeSettings().limit, vram(options))
        weights = find_weights(options.weights)
        pipeline = Pipeline.load(weights, options.device, options.dtype, decoder, report, budget)
        if pipeline.placement:
            print(pipeline.placement)

        def fit(picture: np.ndarray) -> np.ndarray:
            if not options.crop:
                return fit_picture(picture, *size)
            found = crop_portrait(
                picture, detector=detector, extractor=lambda: pipeline.motion_extractor, device=pipeline.device
            )
            return found.crop.cut(picture, size[0])

        report("preparing the windows", 1.0)
        return PipelineModel(pipeline, fit, *size)

    return load


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found:
        raise InputError(f"--size is {text!r}: give a number of pixels such as 512, or WIDTHxHEIGHT.")
    size = int(found[1]), int(found[2] or found[1])
    check_size(*size)
    return size


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if not (options.tls_cert or options.tls_key):
        return None
    if not (options.tls_cert and options.tls_key):
        raise InputError("--tls-cert and --tls-key belong together: give both.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key, password="")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{options.tls_cert} and {options.tls_key} cannot be used ({error}): give a certificate and its key, "
            "without a password, as PEM files."
        ) from error
    return context


def _print_links(options: argparse.Namespace, driver_token: str, viewer_token: str) -> None:
    scheme, port = "https" if options.tls_cert else "http", options.port
    is_here = options.host in HERE
    name = HERE[0] if options.host in EVERYWHERE else options.host
    other = _own_address() if options.host in EVERYWHERE else options.host
    drive = other if options.tls_cert else name
    print("Open this link in Chrome or Edge, and press Start there:")
    print(f"  {scheme}://{_bracketed(drive)}:{port}/#{driver_token}")
    print("This link shows the result alone, for OBS's browser source. It cannot drive:")
    print(f"  {scheme}://{_bracketed(other)}:{port}/view#{viewer_token}")
    if not is_here and not options.tls_cert:
        print("From another computer this address is for viewers only: browsers give their camera to https alone.")
        print("To drive from there, give --tls-cert and --tls-key, or run there:")
        print(f"  ssh -L {port}:127.0.0.1:{port} {other}")
        print("and open the first link there.")
    print("Ctrl-C ends it.", flush=True)


def _own_address() -> str:
    """Of this computer in its network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _on_signals(stop: Callable[[], object]) -> dict[int, Any]:
    """Calls it on Ctrl-C, SIGTERM and a closed terminal; returns the handlers before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
    return {number: signal.signal(number, lambda *_: stop()) for number in numbers}
