"""The Triton kernels as machine code, for which Triton needs no GPU; what they compute is in test_fused.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.3", reason="needs Triton's compiler as it is since 3.3")

PROGRAM = Path(__file__).with_name("compile_kernels.py")
SHARED = 99 * 1024  # bytes that a block may have on GeForce cards from the RTX 30 series on, the least of all
STREAMING = {"_add", "_geglu", "_concat_reference", "_interleave"}  # that read and write pictures and do little else


@pytest.fixture(scope="module")
def kernels() -> list[dict]:
    """For the RTX 30 and the RTX 50 series, in half and in single precision."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, PROGRAM, "86", "120"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_kernel_compiles_and_fits_into_the_shared_memory_of_every_card(kernels):
    source = PROGRAM.parents[2].joinpath("personalive_core", "networks", "kernels.py").read_text()
    assert {kernel["name"] for kernel in kernels} == set(re.findall(r"_launch\(\s*(_\w+),", source))
    assert max(kernel["shared"] for kernel in kernels) <= SHARED


def test_sixteen_bytes_are_read_and_written_at_a_time(kernels):
    """Addresses that Triton does not know to be even are read number by number, which nothing but the clock shows."""
    streaming = [kernel for kernel in kernels if kernel["name"] in STREAMING]
    assert {kernel["name"] for kernel in streaming} == STREAMING
    for kernel in streaming:
        assert kernel["operations"] == ["ld.global.v4.b32", "st.global.v4.b32"], kernel["name"]
