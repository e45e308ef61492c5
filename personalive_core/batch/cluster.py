"""Ray: this machine or a cluster, and the workers on it."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..errors import InputError


class Cluster(NamedTuple):
    """What is there to work on.

    Attributes:
        workers: How many can work at once.
        has_gpu: Whether each has a GPU of its own.
        dashboard: Address of Ray's dashboard, "" where there is none.
    """

    workers: int
    has_gpu: bool
    dashboard: str

    @property
    def threads(self) -> int:
        """PyTorch's, in each worker. Beside a GPU the CPU has little to compute, and more would only be waited for."""
        return 1 if self.has_gpu else max(1, (os.cpu_count() or 1) // self.workers)

    @property
    def resources(self) -> dict[str, int]:
        """What Ray reserves for each worker."""
        return {"num_cpus": self.threads, "num_gpus": int(self.has_gpu)}


@contextmanager
def connected(address: str | None, gpus: int | None, workers: int) -> Iterator[Cluster]:
    """Starts Ray on this machine, or connects to a cluster, for as long as the context lasts. Where the process has
    Ray already, that is taken, and stays.

    Args:
        address: Of a cluster; None is this machine alone.
        gpus: How many to use; None is all.
        workers: How many to use where there is no GPU.

    Raises:
        InputError: Ray is not installed, the cluster cannot be reached, or it has not so many GPUs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # we send no telemetry
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # or it starts an idle process for each core
    try:
        import ray
    except ImportError as error:
        raise InputError(f"this needs the package ray ({error}): run  pip install ray  and try again.") from error
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Ray counts cores only to share them out; each worker takes its part of them, see `Cluster.threads`.
        cores = max(workers, os.cpu_count() or 1)
        settings |= {"num_cpus": cores, "num_gpus": gpus, "_node_ip_address": "127.0.0.1"}
    is_ours = not ray.is_initialized()
    try:
        context = ray.init(address, ignore_reinit_error=True, **settings)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise InputError(f"Ray cannot be reached at {address} ({error}): start it there, or leave it out.") from error
    try:
        yield _cluster(context, address, gpus, workers)
    finally:
        if is_ours:
            ray.shutdown()


def _cluster(context: Any, address: str | None, gpus: int | None, workers: int) -> Cluster:
    import ray

    found = int(ray.cluster_resources().get("GPU", 0))
    if gpus and address is None and gpus > found:
        raise InputError(f"--gpus is {gpus}, and this machine has {found}: lower it.")
    dashboard = getattr(context, "dashboard_url", None)
    wanted = found if gpus is None else gpus  # a cluster that grows may have fewer now
    return Cluster(wanted or workers, wanted > 0, f"http://{dashboard}" if dashboard else "")


def hiring(worker: type, cluster: Cluster) -> Callable[..., Any]:
    """What makes Ray actors of this class, a `driver.Worker`: called with its arguments."""
    import ray

    actor = ray.remote(concurrency_groups={"progress": 1}, **cluster.resources)(worker)
    return actor.remote
