"""A model for `LiveSession` that takes a set time, and shows which camera frame each of its frames comes from."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from aiohttp import web
from browser import draw_number, read_number
from torch import Tensor

from personalive_core.config import CHUNK, WARM_UP
from personalive_core.framing.driving_crop import DrivingCropSettings
from personalive_core.live.model import EncodedPortrait
from personalive_core.live.server import LiveServer
from personalive_core.live.session import LiveSession
from personalive_core.motion.extraction import DrivingFrame
from personalive_core.motion.motion import Motion
from personalive_core.motion.performance import PUBLISHED
from personalive_core.networks.head_pose import HeadPose
from personalive_core.sampling.reference import Reference

SIDE = 256  # pixels of a result
ROWS = 4  # numbers in a result, from the top
FRAME, STRENGTH, NEUTRAL = range(3)  # which: the camera frame, 100 x expression, the camera frame that is neutral
DRIVER, VIEWER = "driver-token", "viewer-token"


class WholePicture:
    """A crop that leaves everything in."""

    square = None

    def cut(self, picture: np.ndarray) -> DrivingFrame:
        return DrivingFrame(picture, True)


@dataclass
class FakeState:
    neutral: Motion
    chunks: deque[Tensor]  # latents inside the window, oldest first
    early: Tensor | None = None


class FakeStream:
    """Four windows deep. Its latents are numbers: what the frame shows."""

    def __init__(self, reference: Reference, begin_window: Callable[[], None]):
        self.strength = PUBLISHED
        self._shade, self._begin_window = reference.latents.mean(), begin_window

    def start(self, first: Motion, seed: int, neutral: Motion) -> FakeState:
        state = FakeState(neutral, deque())
        state.chunks.extend(self._latents(state, first[[0] * CHUNK]) for _ in range(WARM_UP // CHUNK))
        return state

    def step(self, state: FakeState, motion: Motion) -> Tensor:
        self._begin_window()
        state.chunks.append(self._latents(state, motion))
        done, state.early = state.chunks.popleft(), state.chunks[0]
        return done

    def _latents(self, state: FakeState, motion: Motion) -> Tensor:
        latents = torch.zeros(1, 4, len(motion), 1, 1)
        latents[0, FRAME, :, 0, 0] = motion.tokens[:, 0, 0]
        latents[0, STRENGTH] = self.strength.expression * 100
        latents[0, NEUTRAL] = state.neutral.tokens[0, 0, 0]
        latents[0, ROWS - 1] = self._shade
        return latents


class FakeDecoding:
    def __init__(self, latents: Tensor, seconds: float):
        self._latents, self._done = latents, time.monotonic() + seconds

    def done(self) -> bool:
        return time.monotonic() >= self._done

    def result(self) -> np.ndarray:
        time.sleep(max(0.0, self._done - time.monotonic()))
        pictures = []
        for frame in self._latents[0, :, :, 0, 0].T.tolist():
            picture = np.full((SIDE, SIDE, 3), frame[-1], np.uint8)
            for row, number in enumerate(frame[:-1]):
                draw_number(picture[row * SIDE // ROWS :], round(number))
            pictures.append(picture)
        return np.stack(pictures)


class FakeModel:
    """Args: seconds of a window, and of decoding, which goes on beside the next window."""

    width = height = SIDE

    def __init__(self, window: float, decode: float = 0.02):
        self.window, self.decoding, self._done = window, decode, 0.0

    def encode(self, picture: np.ndarray) -> Generator[None, None, EncodedPortrait]:
        for _ in range(3):
            time.sleep(self.window / 10)
            yield
        shade = torch.tensor(picture.mean())
        reference = Reference(shade.expand(1, 4, 1, 1), torch.zeros(1, 1, 1), {}, motion_of([0]))
        return EncodedPortrait(reference, picture)

    def stream(self, reference: Reference) -> FakeStream:
        return FakeStream(reference, self._begin_window)

    def open_crop(self, settings: DrivingCropSettings) -> WholePicture:
        return WholePicture()

    def extract(self, pictures: Sequence[np.ndarray], previous: Motion | None) -> tuple[Motion, Tensor]:
        small = torch.from_numpy(np.stack([picture[::4, ::4] for picture in pictures]))
        return motion_of([read_number(picture) for picture in pictures]), small.permute(0, 3, 1, 2) / 255

    def decode(self, latents: Tensor) -> FakeDecoding:
        return FakeDecoding(latents, self.decoding)

    def wait(self) -> None:
        time.sleep(max(0.0, self._done - time.monotonic()))

    def _begin_window(self) -> None:
        self._done = time.monotonic() + self.window


def motion_of(numbers: list[int]) -> Motion:
    """Numbers in the tokens, under a head that `Hold` takes for one."""
    frames = len(numbers)
    angle = torch.arange(21) * 0.3
    head = torch.stack([angle.cos() * 0.4, angle.sin() * 0.4, angle * 0], dim=-1)
    pose = HeadPose(torch.zeros(frames, 3), torch.zeros(frames, 3), torch.ones(frames, 1), head.expand(frames, -1, -1))
    tokens = torch.tensor(numbers, dtype=torch.float32)[:, None, None].expand(-1, 32, 16).contiguous()
    return Motion(pose, tokens, torch.tensor([[100, 100, 400, 400]]).expand(frames, -1))


class Served:
    """A session with a fake model and its server, on 127.0.0.1, with `async with`.

    Args:
        model: the fake one.
        recordings: the folder for them.
        port: 0 takes a free one.
        hosts: more names that the server may be called by.
    """

    def __init__(self, model: FakeModel, recordings: Path, port: int = 0, hosts: set[str] | None = None):
        self.model, self.port = model, port
        tokens = {"driver_token": DRIVER, "viewer_token": VIEWER}
        self.server = LiveServer(**tokens, recordings=recordings, allowed_hosts=hosts)

    async def __aenter__(self) -> "Served":
        self.session = LiveSession()
        portrait = np.full((SIDE, SIDE, 3), 90, np.uint8)
        self.server.attach(self.session, (SIDE, SIDE))
        self.session.set_portrait(portrait)
        self._thread = Thread(target=self.session.run, args=(lambda report: self.model,), daemon=True)
        self._thread.start()
        app = web.Application()
        app.add_routes(self.server.routes())
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.session.stop()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self.server.detach)
        await self.server.close()
        await self._runner.cleanup()

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self.port}/#{DRIVER}"

    @property
    def view(self) -> str:
        return f"http://127.0.0.1:{self.port}/view#{VIEWER}"
