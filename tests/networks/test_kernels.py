"""The Triton kernels as machine code, for which Triton needs no GPU; what they compute is in test_fused.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", minversion="3.3", reason="needs Triton's compiler as it is since 3.3")

HERE = Path(__file__).parent
PROGRAM = HERE / "compile_kernels.py"
SHARED = 99 * 1024  # bytes that a block may have on GeForce cards from the RTX 30 series on, the least of all
STREAMING = {"_add", "_geglu", "_concat_reference", "_interleave"}  # that read and write pictures and do little else


def run(*arguments: str | Path, **environment: str) -> str:
    """What a program of Python prints, outside of Triton's interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    kept["PYTHONPATH"] = os.pathsep.join(map(str, (HERE, HERE.parents[1])))
    done = subprocess.run([sys.executable, *arguments], env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def kernels() -> list[dict]:
    """For the RTX 30 and the RTX 50 series, in half and in single precision."""
    return [json.loads(line) for line in run(PROGRAM, "86", "120").splitlines()]


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


MOVED = """
import importlib.util
import sys
from pathlib import Path

from personalive_core.networks import kernels

moved = Path(sys.argv[1], "moved.py")
source = Path(kernels.__file__).read_text().replace("def geglu(", "UNUSED = 1\\n\\n\\ndef geglu(")
moved.write_text("\\n\\n" + source.replace("+ tl.erf", "- tl.erf"))
spec = importlib.util.spec_from_file_location("another_pack.moved", moved)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for name, kernel in vars(kernels).items():
    if hasattr(kernel, "cache_key"):
        print(name, kernel.cache_key == getattr(module, name).cache_key)
"""


def test_an_update_compiles_again_only_the_kernels_that_have_changed(tmp_path: Path):
    """Under another path, on other lines, after other edits: their keys in Triton's cache are the same."""
    same = dict(line.split() for line in run("-c", MOVED, tmp_path).splitlines())
    assert {"_ptr", "_geglu", "_add", "_short_cross_attention"} <= set(same)
    assert {name for name in same if same[name] != "True"} == {"_geglu"}


TOLD = """
import compile_kernels
from personalive_core.networks import kernels

kernels.on_compile(lambda: print("compiled"))
kernel, arguments, constants = next(x for x in compile_kernels.launches() if x[0] is kernels._geglu)
compile_kernels.compiled(kernel, arguments, constants, 86)
"""


def test_compiling_is_told_and_what_is_in_the_cache_is_not(tmp_path: Path):
    pytest.importorskip("triton", minversion="3.4", reason="Triton tells since 3.4")
    told = [run("-c", TOLD, TRITON_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert told == ["compiled\n", ""]
