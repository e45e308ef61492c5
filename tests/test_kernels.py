"""The Triton kernels as machine code, for which Triton needs no GPU; what they compute is in test_fused.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

COMPILE = """
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from personalive_core.kernels import _geglu

signature = dict.fromkeys(_geglu.arg_names, "i64") | dict.fromkeys(["tokens", "width"], "i32")
constants = dict(DTYPE=tl.float16, TOKENS=8, WIDTH=256)
signature |= dict.fromkeys(constants, "constexpr")
divisible = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(_geglu.arg_names) if name not in constants}
source = ASTSource(_geglu, signature, constexprs=constants, attrs=divisible)
print(compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"])
"""


def test_sixteen_bytes_are_read_and_written_at_a_time():
    """Addresses that Triton does not know to be even are read number by number, which nothing but the clock shows."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    operations = re.findall(r"\b(?:ld|st)\.global\S*", run.stdout)
    assert set(operations) == {"ld.global.v4.b32", "st.global.v4.b32"}
