"""How live: a client of the page's protocol sends camera frames and takes results, in a process of its own, while
full-size networks with random weights run here."""

import asyncio
import io
import json
import multiprocessing
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from aiohttp import ClientSession, WSMsgType, web
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..config import CHUNK
from ..device import dtype_name, pick_device, pick_dtype
from ..errors import InputError
from ..live.pipeline_model import PipelineModel
from ..live.playout import Playout
from ..live.protocol import PROTOCOL, Kind, Message
from ..live.server import LiveServer
from ..live.session import LiveSession, LiveSettings
from ..media.pictures import fit_picture
from ..media.video_reader import VideoReader
from ..pipeline import Pipeline
from ..sampling.cuda import on_device
from ..sampling.keyframes import FIRST_WINDOW, KeyframeSettings
from ..sampling.reference import check_size
from ..sampling.schedule import Schedule
from ..weights.find import EXAMPLE
from .measure import fill_randomly, make_pipeline

CAMERA_SIZE = 512  # pixels
SETTLED = 60  # windows until calibration, keyframes and the playout's delay have settled
AFTER = 16  # windows after a change that count as its own
TICK = 0.004  # seconds between two looks of the playout


@dataclass
class LiveFigures:
    """Times in milliseconds. Delays are from the camera's frame to the same moment in the result, as a page that knew
    no camera and no screen would see it."""

    device: str
    torch: str
    size: int
    steps: int
    dtype: str
    decoder: str
    early: bool
    camera_fps: float
    keyframes: int  # the most; 0 where the networks do not fit on the device
    start: float  # of the first frame, from when the networks were prepared; a second of it is calibration
    period: float  # from window to window
    window: float  # one window by itself
    decode: float  # until its frames were there
    frames_per_second: float
    delay_p50: float  # until shown
    delay_p95: float
    arrival_p50: float
    arrival_p95: float
    gap_sd: float  # between frames shown
    gap_p99: float
    keyframe_stall: float  # the longest period while keyframes join, less a median one
    portrait_stall: float  # the same after a portrait was changed
    delay_growth: float  # of the arrival's median, from the second quarter to the last, a second
    received: int
    used: int
    dropped: int
    memory_gb: float | None  # highest amount that PyTorch held; 10^9 bytes
    memory_growth_gb: float | None  # between the middle and the end


def run_live_benchmark(
    frames: int,
    size: int,
    steps: int,
    device: str,
    dtype: str,
    decoder: str,
    keyframes: int,
    early: bool,
    camera_fps: float,
    as_json: bool,
) -> None:
    """Measures and prints. InputError for sizes or devices that cannot be."""
    check_size(size, size)
    Schedule(steps)
    least = CHUNK * (SETTLED + 3 * AFTER)
    if frames < least:
        raise InputError(f"--frames is {frames}, but a live session takes at least {least} to settle.")
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    pipeline = with_encoders(make_pipeline(target, precision, decoder, dtype == "fp8"), precision)
    with on_device(target):  # which memory reports take
        figures = _measure(
            lambda: PipelineModel(
                pipeline,
                lambda picture: fit_picture(picture, size, size),
                size,
                size,
                KeyframeSettings(keyframes, threshold=0.0),  # a keyframe joins in every window from the tenth on
                steps,
            ),
            dict(
                device=torch.cuda.get_device_name(target) if target.type == "cuda" else target.type,
                torch=torch.__version__,
                size=size,
                steps=steps,
                dtype=dtype if dtype == "fp8" else dtype_name(precision),
                decoder=decoder,
                early=early,
                camera_fps=camera_fps,
            ),
            frames,
        )
    print(json.dumps(asdict(figures)) if as_json else _table(figures))


def with_encoders(pipeline: Pipeline, dtype: torch.dtype) -> Pipeline:
    """The pipeline with the two networks that encode a portrait, at full size, with random weights."""
    pipeline.vae = fill_randomly(pipeline.vae, torch.device("cpu")).to(dtype)
    image_encoder = CLIPVisionModelWithProjection(  # CLIP ViT-L/14
        CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
            projection_dim=768,
        )
    )
    pipeline.image_encoder = image_encoder.eval().requires_grad_(False).to(dtype)
    return pipeline


def _measure(load: Callable[[], PipelineModel], about: dict[str, Any], frames: int) -> LiveFigures:
    # Random weights find no face: nothing is held, and no crop follows one.
    session = LiveSession(LiveSettings(early=about["early"], hold=False, crop=None))
    pictures = _camera_pictures()
    session.set_portrait(pictures[0])
    models: list[PipelineModel] = []

    def run() -> None:
        session.run(lambda report: models.append(load()) or models[0])  # type: ignore[func-returns-value]

    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        server = LiveServer(driver_token=token, viewer_token=secrets.token_hex(16), recordings=Path(folder))
        server.attach(session, (about["size"], about["size"]))
        loop = asyncio.new_event_loop()
        port = loop.run_until_complete(_serve(server))
        threading.Thread(target=loop.run_forever, daemon=True).start()
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while not session.portraits:
            time.sleep(0.05)
            if not thread.is_alive() or session.message:
                raise InputError(session.message or "the networks could not be prepared: the log says why.")
        context = multiprocessing.get_context("spawn")
        answers: Any = context.Queue()
        jpegs = [_jpeg(picture) for picture in pictures]
        client = context.Process(
            target=_run_client, args=(port, token, jpegs, about["camera_fps"], frames, answers), daemon=True
        )
        is_cuda = torch.cuda.is_available() and about["device"] != "cpu"
        client.start()
        held = []
        while answers.empty() and client.is_alive():
            time.sleep(0.25)
            held.append(torch.cuda.memory_reserved() if is_cuda else 0)
        began, results, shown, changed = answers.get(timeout=10)
        stats = session.stats()
        session.stop()
        thread.join()
        server.detach()
        loop.call_soon_threadsafe(loop.stop)
    settled = [result for result in results if result.window >= SETTLED and not changed <= result.arrival < changed + 3]
    delays = [1e3 * (time - capture) for capture, time in shown if time >= settled[0].arrival]
    arrivals = [1e3 * (result.arrival - result.capture) for result in settled]
    gaps = [1e3 * (b - a) for (_, a), (_, b) in pairwise(shown) if a >= settled[0].arrival]
    ends = {result.window: result.arrival for result in reversed(results)}  # of each window the first frame
    periods = {window: 1e3 * (ends[window] - ends[window - 1]) for window in ends if window - 1 in ends}
    period = median([time for window, time in periods.items() if window >= SETTLED])
    limit = models[0].keyframes.limit
    joining = [periods.get(FIRST_WINDOW + i, period) for i in range(limit + 3)]
    first = min(window for window, arrival in ends.items() if arrival >= changed)
    changing = [periods.get(first + i, period) for i in range(AFTER)]
    quarter = len(arrivals) // 4
    seconds = (settled[-1].arrival - settled[quarter].arrival) * 3 / 4 or 1.0
    return LiveFigures(
        **about,
        keyframes=limit,
        start=1e3 * (results[0].arrival - began),
        period=period,
        window=1e3 * stats["window"],
        decode=1e3 * stats["decode"],
        frames_per_second=1e3 * CHUNK / period,
        delay_p50=float(np.percentile(delays, 50)),
        delay_p95=float(np.percentile(delays, 95)),
        arrival_p50=float(np.percentile(arrivals, 50)),
        arrival_p95=float(np.percentile(arrivals, 95)),
        gap_sd=float(np.std(gaps)),
        gap_p99=float(np.percentile(gaps, 99)),
        keyframe_stall=max(joining) - period if limit else 0.0,
        portrait_stall=max(changing) - period,
        delay_growth=(median(arrivals[-quarter:]) - median(arrivals[quarter : 2 * quarter])) / seconds,
        received=stats["received"],
        used=stats["used"],
        dropped=stats["dropped"],
        memory_gb=torch.cuda.max_memory_reserved() / 1e9 if is_cuda else None,
        memory_growth_gb=(held[-1] - held[len(held) // 2]) / 1e9 if is_cuda else None,
    )


async def _serve(server: LiveServer) -> int:
    """Returns the port."""
    app = web.Application()
    app.add_routes(server.routes())
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner.addresses[0][1]


def _camera_pictures() -> list[np.ndarray]:
    """The miniature's driving video at a camera's size."""
    with VideoReader(EXAMPLE / "driving.mp4") as video:
        return [fit_picture(frame.pixels, CAMERA_SIZE, CAMERA_SIZE) for frame in islice(video, 48)]


def _jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@dataclass
class _Result:
    window: int
    capture: float  # seconds, like the next
    arrival: float


def _run_client(port: int, token: str, jpegs: list[bytes], fps: float, frames: int, answers: Any) -> None:
    """Another process: what a page does, without a camera and a screen."""
    answers.put(asyncio.run(_client(port, token, jpegs, fps, frames)))


async def _client(
    port: int, token: str, jpegs: list[bytes], fps: float, frames: int
) -> tuple[float, list[_Result], list[tuple[float, float]], float]:
    """When it began, all results, (capture, time) of those shown, and when the portrait was changed."""
    results: list[_Result] = []
    shown: list[tuple[float, float]] = []
    playout, began, changed = Playout(), time.time(), [0.0]

    async def send(socket: Any) -> None:
        number = 0
        while True:
            await asyncio.sleep(max(0.0, began + number / fps - time.time()))
            jpeg = jpegs[number % len(jpegs)]
            await socket.send_bytes(Message(Kind.CAMERA, jpeg, time.time() * 1e3, number).pack())
            number += 1

    async def show() -> None:
        while True:
            now = time.time()
            due = playout.tick(now * 1e3)
            if due:
                shown.append((due[-1][1] / 1e3, now))
            await asyncio.sleep(TICK)

    async with (
        ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{port}/ws", max_msg_size=0) as socket,
    ):
        await socket.send_json({"type": "hello", "role": "driver", "token": token, "version": PROTOCOL})
        tasks = [asyncio.create_task(send(socket)), asyncio.create_task(show())]
        async for received in socket:
            if received.type is WSMsgType.BINARY:
                message = Message.unpack(received.data)
                if message.kind is not Kind.RESULT:
                    continue
                with Image.open(io.BytesIO(message.data)) as image:
                    image.load()
                arrival = time.time()
                playout.push(message.number, message.time, arrival * 1e3)
                results.append(_Result(message.window, message.time / 1e3, arrival))
                if not changed[0] and len(results) >= max(frames // 2, CHUNK * (SETTLED + AFTER)):
                    changed[0] = arrival
                    await socket.send_bytes(Message(Kind.PORTRAIT, jpegs[len(jpegs) // 2]).pack())
                if len(results) >= frames:
                    break
        for task in tasks:
            task.cancel()
    return began, results, shown, changed[0]


def _table(f: LiveFigures) -> str:
    lines = [
        f"{f.device}, PyTorch {f.torch}, {f.dtype}, {f.size} x {f.size}, {f.steps} steps, decoder "
        f"{f.decoder}, up to {f.keyframes} keyframes, camera {f.camera_fps:g} frames/s"
        + (", early frames" if f.early else ""),
        "",
        f"first frame    {f.start:8.1f} ms after the start, of which 1000 are calibration",
        f"a window every {f.period:8.1f} ms = {f.frames_per_second:.1f} frames/s (window {f.window:.1f}, decoded after "
        f"{f.decode:.1f})",
        f"delay          {f.delay_p50:8.1f} ms until shown (95 %: {f.delay_p95:.1f}); until there {f.arrival_p50:.1f} "
        f"(95 %: {f.arrival_p95:.1f}); grows by {f.delay_growth:.2f} ms a second",
        f"evenness       {f.gap_sd:8.1f} ms standard deviation between frames shown (99 %: {f.gap_p99:.1f})",
        f"stalls         {f.keyframe_stall:8.1f} ms where keyframes join, {f.portrait_stall:.1f} at a new portrait",
        f"camera frames  {f.received:8d} received, {f.used} used, {f.dropped} dropped",
    ]
    if f.memory_gb is not None:
        lines.append(f"memory         {f.memory_gb:8.2f} GB at most, {f.memory_growth_gb:+.3f} GB in the second half")
    return "\n".join(lines)
