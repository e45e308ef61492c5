import logging
import os
import sys
from collections.abc import Iterator

import pytest
from workers import SEGMENT

from personalive_core.media import video_writer


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """Room for two workers, once for all tests of a module."""
    ray = pytest.importorskip("ray", reason="needs the extra `batch`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # which the workers inherit
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the workers of these tests have them."""
    monkeypatch.setattr(video_writer, "SEGMENT", SEGMENT)
