"""`serve`: a service that makes videos, with Ray Serve."""

import argparse
import asyncio
import errno
import logging
from collections.abc import Awaitable
from functools import partial
from pathlib import Path
from typing import Any

from ..batch.cluster import Cluster, connected
from ..batch.driver import sentence
from ..batch.jobs import Job
from ..errors import InputError
from ..live.tokens import load_tokens, state_folder
from ..weights.find import find_weights
from . import batch
from .outputs import stopped_by_signals

COST = 4 * 512 * 512  # of a frame of 512 x 512 with 4 steps
ALLOWED = {"crop", "crop_driving", "face", "frame_rate", "ref_image", "driving_video", "motion"}
"""The texts among a job's options that a stranger may choose; numbers and switches are free."""


def add_parser(commands: argparse._SubParsersAction, parents: list[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser("serve", parents=parents, help="a service that makes videos, with Ray Serve")
    serve.add_argument(
        "--requests", type=Path, default=Path("requests"), metavar="DIR", help="folder of what is sent and made"
    )
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on")
    serve.add_argument("--port", type=int, default=7880, metavar="N", help="port to listen on")
    serve.add_argument("--queue", type=int, default=100, metavar="N", help="requests that may wait")
    serve.add_argument(
        "--max-length", type=int, default=3000, metavar="N", help="most frames of a video, of 512 x 512 at 4 steps"
    )
    serve.add_argument("--keep", type=float, default=24.0, metavar="H", help="hours until a finished video is deleted")
    serve.add_argument("--download", action="store_true", help="fetch missing weights first")
    serve.add_argument("--dtype", default="auto", choices=("auto", "fp32", "fp16", "bf16"), help="as in `animate`")
    batch.add_cluster_options(serve)
    serve.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Serves until Ctrl-C or SIGTERM. Raises InputError for options that cannot be, and a port that is taken."""
    batch.check_cluster_options(options)
    for name in ("queue", "max_length"):
        if (value := getattr(options, name)) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}, but must be 1 or more.")
    batch.fetch_here(options)
    if options.address is None:  # else they are on the nodes
        find_weights(options.weights).require()
    with connected(options.address, options.gpus, options.workers) as cluster:
        try:
            with stopped_by_signals():  # Ray has set handlers of its own
                serve(options, cluster)
        except KeyboardInterrupt:  # its ordinary end
            print("stopping")


def serve(options: argparse.Namespace, cluster: Cluster) -> None:
    """On workers of this cluster."""
    try:
        from ray import serve
    except ImportError as error:
        raise InputError(f"this needs Ray Serve ({error}): run  pip install 'ray[serve]'  and try again.") from error
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    from ..batch.service import Service
    from .worker import PreparedWorker

    parser = batch.animate_parser(options)
    parser.set_defaults(dtype=options.dtype)
    defaults = parser.parse_args(["--ref-image=none", "--driving-video=none"])
    defaults.weights = options.weights.absolute()
    serve_worker = serve.deployment(
        name="worker",
        num_replicas=cluster.workers,
        max_ongoing_requests=1,
        ray_actor_options=cluster.resources,
        graceful_shutdown_timeout_s=0,  # what is under way is done again
    )(PreparedWorker)
    serve.start(proxy_location="Disabled")  # ours takes files of any size, and keeps what it has taken
    worker = serve.run(serve_worker.bind(defaults, cluster.threads), name="personalive", route_prefix=None)
    token, _ = load_tokens(state_folder() / "serve")
    service = Service(
        options.requests.absolute(),
        token,
        partial(job_of, parser, options.max_length),
        partial(_animate, worker),
        workers=cluster.workers,
        queue=options.queue,
        keep=3600 * options.keep,
    )
    asyncio.run(_listen(service.application(), options.host, options.port, token))


async def _listen(application: Any, host: str, port: int, token: str) -> None:
    from aiohttp import web

    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        print(f"POST to http://{host}:{port}/videos with the header  Authorization: Bearer {token}")
        print("Ctrl-C ends it.", flush=True)
        await asyncio.Event().wait()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} is in use by another program: give another --port.") from error
        raise InputError(f"{host}:{port} cannot be served ({error.strerror}).") from error
    finally:
        await runner.cleanup()


def _animate(worker: Any, job: Job) -> Awaitable[Any]:
    return _told(worker.animate.remote(job, None, None))


async def _told(response: Awaitable[Any]) -> Any:
    """What the worker's call comes to, with what it says of bad input."""
    from ray.exceptions import RayError, RayTaskError

    try:
        return await response
    except RayTaskError as error:
        if isinstance(error.cause, RayError):
            raise
        raise InputError(sentence(error.cause)) from error


def job_of(parser: argparse.ArgumentParser, longest: int, fields: dict[str, str], folder: str) -> Job:
    """A request's job. InputError: it cannot be, or is not for strangers to ask for."""
    for name in fields:
        action = parser._option_string_actions.get(f"--{name}")
        is_free = action is not None and (action.dest in ALLOWED or action.nargs == 0 or action.type in (int, float))
        if not is_free:
            raise InputError(f"{name:.100} cannot be chosen here: send numbers and switches of animate.")
    job = batch.job_of(parser, {**fields, "output": "result.mp4"}, folder)
    if not job.frames:
        raise InputError("the driving video cannot be read.")
    if (work := job.cost / COST) > longest:
        raise InputError(f"this is the work of {work:.0f} frames, and {longest} are the most: send or ask for less.")
    return job
