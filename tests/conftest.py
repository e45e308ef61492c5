import os
import re

import pytest
import torch

# The test networks are tiny: one thread is as fast as many, and does not crawl where others use the same cores.
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

TOGETHER = (
    "test_official_weights",
    "test_kernels",
    "test_miniature",
    "test_miniature_streams",
    "test_driver",
    "test_unets",
)  # one costly fixture, or so much memory that two at once do not fit


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """In one process: all tests of a host, which so starts once, and those of a file in TOGETHER. Every other test goes
    to the process that is free. (--dist loadgroup would be it, but pytest-xdist 3.8 groups nothing with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            host, file = re.search(r"\((.+?)\)", nodeid), nodeid.partition(".py::")[0].rpartition("/")[2]
            return host[1] if host and "host/" in nodeid else file if file in TOGETHER else nodeid

    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Here, because with pytest-xdist the process that reports reads no other conftest."""
    from tiny import NO_HOST

    if any(NO_HOST in str(report.longrepr) for report in terminalreporter.getreports("skipped")):
        terminalreporter.section(NO_HOST, sep="!", yellow=True)
