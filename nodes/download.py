"""Downloads and conversion, which the user starts with a button in the page: no workflow, no API prompt and no page of
another site can ask for them."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from server import PromptServer

from ..personalive_core.errors import InputError
from ..personalive_core.weights import hub
from .decode import missing_taesd
from .detectors import missing_detectors
from .live import live_server
from .weights import OFFICIAL, convert_official, missing_official, weight_sets

_log = logging.getLogger("personalive")


class _Stopped(Exception):
    pass


@dataclass
class _Job:
    """What the button has started, as the page asks for it once a second."""

    task: str
    text: str = ""
    done: int = 0
    total: int = 0
    running: bool = True
    stop: threading.Event = field(default_factory=threading.Event)

    def show(self, text: str, done: int, total: int) -> None:
        if self.stop.is_set():
            raise _Stopped
        self.text, self.done, self.total = text, done, total

    def run(self) -> None:
        try:
            self.text = _TASKS[self.task](self.show)
        except _Stopped:
            self.text = "Stopped. The next download goes on from here."
        except InputError as error:
            self.text = str(error)
        except Exception as error:
            _log.exception("%s failed", self.task)
            self.text = f"{type(error).__name__}: {error}"
        finally:
            self.running = False
        _log.info(self.text)


def _download_official(progress: hub.Progress) -> str:
    hub.download(weight_sets()[OFFICIAL], missing_official(), progress)
    return "All files are there. Press Run."


def _download_yunet(progress: hub.Progress) -> str:
    hub.download(*missing_detectors(), progress)
    return "The detector yunet is there. Press Run."


def _download_taesd(progress: hub.Progress) -> str:
    hub.download(*missing_taesd(), progress)
    return "TAESD is there. Switch on small_decoder, and press Run."


_TASKS: dict[str, Callable[[hub.Progress], str]] = {
    "official": _download_official,
    "yunet": _download_yunet,
    "taesd": _download_taesd,
    "convert": convert_official,
}
_job: _Job | None = None


def _described(folder, files) -> list[dict]:
    return [
        {"address": file.address, "folder": str((folder / file.target).parent), "size": file.size} for file in files
    ]


def add_routes() -> None:
    """Adds the requests of the buttons to the host, while it loads its nodes."""
    routes = PromptServer.instance.routes
    routes.get("/personalive/weights")(_status)
    routes.post("/personalive/weights")(_start)


async def _status(request: web.Request) -> web.Response:
    """What each download would bring, and how the running one gets on."""
    live_server().check_origin(request)
    job = _job and {name: getattr(_job, name) for name in ("task", "text", "done", "total", "running")}
    return web.json_response(
        {
            "official": _described(weight_sets()[OFFICIAL], missing_official()),
            "yunet": _described(*missing_detectors()),
            "taesd": _described(*missing_taesd()),
            "job": job,
        }
    )


async def _start(request: web.Request) -> web.Response:
    """{"task": "official", "yunet", "taesd", "convert" or "stop"}; JSON, which no form of another page can send."""
    global _job
    live_server().check_origin(request)
    task = (await request.json())["task"] if request.content_type == "application/json" else None
    if task == "stop":
        if _job:
            _job.stop.set()
    elif task not in _TASKS:
        raise web.HTTPBadRequest(text=f"there is no task {task!r}")
    elif not (_job and _job.running):
        _job = _Job(task)
        threading.Thread(target=_job.run, name=f"personalive {task}", daemon=True).start()
    return await _status(request)
