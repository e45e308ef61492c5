"""Compiles every Triton kernel as the networks start it, for which Triton needs no GPU, and prints a line of JSON for
each: its name, the bytes of shared memory that it takes, and its instructions that read and write memory.

    python tests/networks/compile_kernels.py CAPABILITY [CAPABILITY ...]

In a process of its own: the tests' interpreter cannot be switched off again.
"""

import json
import re
import sys
from pathlib import Path

import torch
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from personalive_core.networks import kernels

WIDTH, HEADS = 1280, 8  # the widest, which takes most


def launches() -> list[tuple]:
    """Kernel, arguments and constants of each, in half and in single precision."""
    recorded = []
    kernels._launch = lambda kernel, grid, *arguments, **constants: recorded.append((kernel, arguments, constants))
    for dtype in (torch.float16, torch.float32):
        x, bias, time_bias, h, positions, keys = (
            torch.empty(shape, dtype=dtype, device="meta")
            for shape in ((1, WIDTH, 16, 16), (WIDTH,), (1, WIDTH), (16, 4, WIDTH), (16, WIDTH), (16, 32, WIDTH))
        )
        kernels.group_norm(x, 32, bias, bias, 1e-5, True, bias, time_bias)
        kernels.add(x, x, bias)
        kernels.add_layer_norm(h, h, bias, bias, bias, 1e-5, positions)
        kernels.geglu(h)
        kernels.concat_reference(h, h)
        kernels.fold_corners(torch.empty(WIDTH, WIDTH, 3, 3, dtype=dtype, device="meta"))
        kernels.interleave(x, bias[: WIDTH // 4])
        kernels.temporal_attention(h, h, h, 16, HEADS)
        kernels.short_cross_attention(h, keys, keys, HEADS)
    return recorded


def compiled(kernel, arguments: tuple, constants: dict, capability: int):
    (dtype,) = {x.dtype for x in arguments if isinstance(x, Tensor)}
    constants = constants | {"DTYPE": getattr(tl, str(dtype).removeprefix("torch."))}
    warps = constants.pop("num_warps", 4)
    signature, divisible = {}, {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if value is None:
            constants[name] = None
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            is_address = isinstance(value, Tensor) or value == 0  # where a tensor of the meta device begins
            signature[name] = "i64" if is_address else "i32"
            if is_address or value % 16 == 0:
                divisible[(i,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def main() -> None:
    for capability in map(int, sys.argv[1:]):
        for kernel, arguments, constants in launches():
            made = compiled(kernel, arguments, constants, capability)
            operations = sorted(set(re.findall(r"\b(?:ld|st)\.global\S*", made.asm["ptx"])))
            line = {"name": kernel.__name__, "shared": made.metadata.shared, "operations": operations}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
