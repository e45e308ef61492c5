"""The service: HTTP in front of workers. Whatever is sent is on the disk before it is answered, so nothing is lost."""

import asyncio
import hmac
import json
import logging
import re
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, web

from ..errors import InputError
from ..limits import UPLOAD_BYTES
from .driver import ATTEMPTS
from .jobs import Job

log = logging.getLogger(__name__)

FILES = {"portrait": "ref-image", "driving": "driving-video", "motion": "motion"}
FIELD_BYTES = 1000  # of an option
MAX_FIELDS = 50
UPLOAD_SECONDS = 600.0
PAUSE = 1.0  # seconds before a job is done again, in which a dead worker is noticed
REQUEST, RESULT, FAILURE = "request.json", "result.mp4", "failure.txt"


class Service:
    """Takes requests, queues them, and hands them to workers.

    Each request has a folder: what was sent, `request.json` once it is complete, and in the end `result.mp4` or
    `failure.txt`. A service that starts goes on with what it finds there.

    Args:
        folder: Of the requests' folders, which the workers see too.
        token: Whoever has it can use the service.
        job_of: Makes a job of the fields of a request and the folder of its video. InputError: there is no such.
        animate: Makes a job's video, and returns when it is there. `InputError` fails the request; anything else means
            that a worker died, and the job is done again.
        workers: Jobs at a time.
        queue: Requests that may wait; more are answered 429.
        keep: Seconds until a finished request is deleted.
    """

    def __init__(
        self,
        folder: Path,
        token: str,
        job_of: Callable[[dict[str, str], str], Job],
        animate: Callable[[Job], Awaitable[object]],
        *,
        workers: int,
        queue: int,
        keep: float,
    ):
        self._folder, self._token, self._job_of, self._animate = folder, token, job_of, animate
        self._workers, self._limit, self._keep = workers, queue, keep
        self._waiting: dict[str, Job] = {}
        self._running: set[str] = set()
        self._coming = 0  # uploads
        self._wakes = asyncio.Event()
        self._seconds = 60.0  # that a job takes, on average
        self._tasks: list[asyncio.Task] = []

    def application(self) -> web.Application:
        """To be run by aiohttp."""
        application = web.Application(middlewares=[self._check], client_max_size=UPLOAD_BYTES)
        application.add_routes(
            [
                web.post("/videos", self._post),
                web.get("/videos/{id:[0-9a-f]{32}}", self._state),
                web.get("/videos/{id:[0-9a-f]{32}}/result", self._result),
            ]
        )
        application.on_startup.append(self._start)
        application.on_cleanup.append(self._stop)
        return application

    async def _start(self, _: web.Application) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime):
            if (path / REQUEST).is_file() and not self._is_over(path):
                try:
                    self._waiting[path.name] = self._job_of(json.loads((path / REQUEST).read_text()), str(path))
                except InputError as error:  # the limits are others now
                    (path / FAILURE).write_text(str(error), "utf-8")
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        self._tasks.append(asyncio.create_task(self._forget()))
        self._wakes.set()

    async def _stop(self, _: web.Application) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @web.middleware
    async def _check(self, request: web.Request, handler: Callable[[web.Request], Awaitable]) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            return _refusal(401, "send the header  Authorization: Bearer TOKEN  with the token that was printed")
        try:
            return await handler(request)
        except ValueError as error:  # InputError, or no form
            return _refusal(400, str(error))
        except asyncio.TimeoutError:
            return _refusal(408, f"what is sent must be here within {UPLOAD_SECONDS:.0f} seconds")
        except web.HTTPException as error:
            return _refusal(error.status, error.reason)

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if len(self._waiting) + self._coming >= self._limit:
            seconds = round(self._seconds * (1 + len(self._waiting)) / self._workers)
            refusal = _refusal(429, f"{self._limit} requests are waiting: try again in {seconds} seconds")
            refusal.headers["Retry-After"] = str(seconds)
            return refusal
        name, self._coming = secrets.token_hex(16), self._coming + 1
        folder = self._folder / name
        try:
            fields = await asyncio.wait_for(_receive(request, folder), UPLOAD_SECONDS)
            job = await asyncio.to_thread(self._job_of, fields, str(folder))  # reads the driver's header
            (folder / "new").write_text(json.dumps(fields))
            (folder / "new").rename(folder / REQUEST)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self._coming -= 1
        self._waiting[name] = job
        self._wakes.set()
        return web.json_response(self._described(name), status=202, headers={"Location": f"/videos/{name}"})

    async def _state(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._described(request.match_info["id"]))

    async def _result(self, request: web.Request) -> web.StreamResponse:
        state = self._described(name := request.match_info["id"])
        if state["state"] != "done":
            return web.json_response(state, status=409)
        return web.FileResponse(self._folder / name / RESULT, headers={"Content-Type": "video/mp4"})

    def _described(self, name: str) -> dict[str, Any]:
        folder, state = self._folder / name, {"id": name}
        if name in self._running:
            return state | {"state": "running"}
        if name in self._waiting:
            return state | {"state": "waiting", "before": list(self._waiting).index(name)}
        if (folder / RESULT).is_file():
            return state | {"state": "done", "result": f"/videos/{name}/result"}
        if (folder / FAILURE).is_file():
            return state | {"state": "failed", "error": (folder / FAILURE).read_text("utf-8")}
        raise web.HTTPNotFound(reason="there is no such request, or it is too old")

    async def _work(self) -> None:
        """One request after the other."""
        while True:
            while not self._waiting:
                self._wakes.clear()
                await self._wakes.wait()
            name = next(iter(self._waiting))
            job = self._waiting.pop(name)
            self._running.add(name)
            begun = time.monotonic()
            try:
                await self._make(job)
                self._seconds += (time.monotonic() - begun - self._seconds) / 8
            except InputError as error:
                (self._folder / name / FAILURE).write_text(str(error), "utf-8")
            finally:
                self._running.discard(name)

    async def _make(self, job: Job) -> None:
        for _ in range(ATTEMPTS):
            try:
                await self._animate(job)
                return
            except InputError:
                raise
            except Exception as error:
                log.warning("%s is done again (%s)", job.output, str(error).partition("\n")[0])
                await asyncio.sleep(PAUSE)
        raise InputError(f"{ATTEMPTS} workers died while they made this video.")

    async def _forget(self) -> None:
        """Deletes what is finished for long, and what was never complete."""
        while True:
            for folder in self._folder.iterdir():
                with suppress(OSError):
                    is_idle = folder.name not in self._waiting and folder.name not in self._running
                    if is_idle and time.time() - folder.stat().st_mtime > max(self._keep, UPLOAD_SECONDS):
                        await asyncio.to_thread(shutil.rmtree, folder)
            await asyncio.sleep(60)

    @staticmethod
    def _is_over(folder: Path) -> bool:
        return (folder / RESULT).is_file() or (folder / FAILURE).is_file()


async def _receive(request: web.Request, folder: Path) -> dict[str, str]:
    """Writes what is sent to the folder, piece by piece.

    Returns:
        The options, and the paths of the files, by the options of `animate`.
    """
    if request.content_type != "multipart/form-data":
        raise InputError("send a form (multipart/form-data) with the files portrait and driving or motion.")
    folder.mkdir()
    fields: dict[str, str] = {}
    form = await request.multipart()
    while (part := await form.next()) is not None:
        if not isinstance(part, BodyPartReader) or not part.name or len(fields) == MAX_FIELDS:
            raise InputError("the form has parts without a name, or too many of them.")
        if part.name in FILES:
            suffix = re.fullmatch(r".*(\.\w{1,12})", ".safetensors" if part.name == "motion" else part.filename or "")
            path = folder / f"{part.name}{suffix[1] if suffix else ''}"
            fields[FILES[part.name]], size = str(path), 0
            with path.open("xb") as file:
                while data := await part.read_chunk(1 << 16):
                    if (size := size + len(data)) > UPLOAD_BYTES:
                        raise web.HTTPRequestEntityTooLarge(UPLOAD_BYTES, size, reason=f"{part.name} is too large")
                    await asyncio.to_thread(file.write, data)
        elif part.name in FILES.values():
            raise InputError(f"{part.name} is no field: send files as portrait, driving or motion.")
        else:
            text = b""
            while data := await part.read_chunk(1 << 12):
                if len(text := text + data) > FIELD_BYTES:
                    raise InputError(f"{part.name:.100} has more than {FIELD_BYTES} bytes.")
            fields[part.name] = text.decode("utf-8", "replace")
    return fields


def _refusal(status: int, reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=status)
