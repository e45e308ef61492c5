import os

import pytest
import torch

# The test networks are tiny: one thread is as fast as many, and does not crawl where others use the same cores.
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Here, because with pytest-xdist the process that reports reads no other conftest."""
    from tiny import NO_HOST

    if any(NO_HOST in str(report.longrepr) for report in terminalreporter.getreports("skipped")):
        terminalreporter.section(NO_HOST, sep="!", yellow=True)
