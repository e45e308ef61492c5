"""Ray, as `batch`, `serve` and `--split` start it on this machine."""

import os
import sys
from pathlib import Path

import pytest

from personalive_core.batch.cluster import connected, hiring

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]


class Idler:
    def parent(self) -> int:
        return os.getppid()


def test_only_what_is_hired_is_started(monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the extra `batch`")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # which the workers inherit
    with connected(None, 0, 4) as cluster:
        raylet = ray.get(hiring(Idler, cluster)().parent.remote())
        children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
        names = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children]
    assert len([name for name in names if name.startswith("ray::Idler")]) == 1
    assert not [name for name in names if "IDLE" in name or "default_worker" in name], names
