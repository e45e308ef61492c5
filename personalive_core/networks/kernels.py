"""Triton kernels for what PyTorch does not fuse.

Each is launched by the function of the same name without the underscore, which `fused` documents next to the same in
plain PyTorch. Pictures are channels-last: (N, rows, C) in memory, with rows = H x W. Kernels receive addresses, not
tensors: for a tensor Triton asks the driver where it lies, and during the capture of a CUDA graph the driver does not
yet know about cudaMallocAsync's new allocations.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_M = 64  # rows: pixels or tokens
BLOCK_N = 64  # channels


def _launch(kernel, grid: tuple[int, ...], *arguments: Tensor | float | None, **constants) -> None:
    """Launches a kernel on its tensors' device; they share one dtype and are 16-byte aligned, else ValueError."""
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    (dtype,) = {x.dtype for x in tensors}
    if any(x.data_ptr() % 16 for x in tensors):  # kernels read and write 16 bytes at a time
        raise ValueError(f"{kernel.__name__} needs tensors that start at a multiple of 16 bytes")
    addresses = (x.data_ptr() if isinstance(x, Tensor) else x for x in arguments)
    with torch.cuda.device_of(tensors[0]):
        kernel[grid](*addresses, DTYPE=getattr(tl, str(dtype).removeprefix("torch.")), **constants)


def _jit(function: Callable):
    """A kernel. The key of Triton's cache has the line on which a kernel begins: here it is the same for all, so that
    what changes elsewhere in this file, as in an update, compiles no kernel again."""
    kernel = triton.jit(function)
    kernel.starting_line_number = 1
    return kernel


def on_compile(call: Callable[[], None]) -> None:
    """Has a function called whenever one of these kernels was compiled, because it was not in Triton's cache: from
    Triton 3.4 on, and unless something else in the process listens already."""

    def listen(*, src, cache_hit: bool, **_) -> None:
        if not cache_hit and getattr(getattr(src, "fn", None), "__module__", None) == __name__:
            call()

    if hasattr(triton, "knobs") and triton.knobs.compilation.listener is None:
        triton.knobs.compilation.listener = listen


@_jit
def _ptr(address, DTYPE: tl.constexpr):
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)


@_jit
def _channel_sums(
    x, sums, rows, channels, rows_per_part, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Per channel, sum and sum of squares over one part of the rows, relative to the picture's first pixel: with a
    large mean the squares would lose precision."""
    x, sums = _ptr(x, DTYPE), _ptr(sums, tl.float32)
    n, part, parts = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = channel < channels
    picture = x + n * rows * channels + channel
    pivot = tl.load(picture, mask=mask_n, other=0).to(tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(part * rows_per_part, min((part + 1) * rows_per_part, rows), BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)[:, None]
        mask = mask_n & (row < min((part + 1) * rows_per_part, rows))
        value = tl.load(picture + row.to(tl.int64) * channels, mask=mask, other=0).to(tl.float32)
        value = tl.where(mask, value - pivot, 0)
        total += value
        squares += value * value
    sums += ((n * parts + part) * channels + channel) * 2
    tl.store(sums, tl.sum(total, 0), mask=mask_n)
    tl.store(sums + 1, tl.sum(squares, 0), mask=mask_n)


@_jit
def _group_affine(
    x, sums, bias, time_bias, norm_weight, norm_bias, affine, rows, channels, eps,
    DTYPE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_TIME_BIAS: tl.constexpr, PARTS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Turns the sums into the scale and offset of each channel of each picture."""
    x, norm_weight, norm_bias = _ptr(x, DTYPE), _ptr(norm_weight, DTYPE), _ptr(norm_bias, DTYPE)
    sums, affine = _ptr(sums, tl.float32), _ptr(affine, tl.float32)
    n, group = tl.program_id(1).to(tl.int64), tl.program_id(0)
    i = tl.arange(0, BLOCK_N)
    channel = group * GROUP_CHANNELS + i
    inside = i < GROUP_CHANNELS
    part = sums + ((n * PARTS + tl.arange(0, PARTS)[:, None]) * channels + channel) * 2
    total = tl.sum(tl.load(part, mask=inside[None, :], other=0), 0)
    squares = tl.sum(tl.load(part + 1, mask=inside[None, :], other=0), 0)
    added = tl.zeros((BLOCK_N,), tl.float32)
    if HAS_BIAS:
        added += tl.load(_ptr(bias, DTYPE) + channel, mask=inside, other=0).to(tl.float32)
    if HAS_TIME_BIAS:
        added += tl.load(_ptr(time_bias, DTYPE) + n * channels + channel, mask=inside, other=0).to(tl.float32)
    mean = tl.load(x + n * rows * channels + channel, mask=inside, other=0).to(tl.float32) + total / rows + added
    group_mean = tl.sum(tl.where(inside, mean, 0), 0) / GROUP_CHANNELS
    centred = tl.where(inside, mean - group_mean, 0)
    variance = (tl.sum(squares - total * total / rows, 0) / rows + tl.sum(centred * centred, 0)) / GROUP_CHANNELS
    scale = tl.load(norm_weight + channel, mask=inside, other=0).to(tl.float32) * tl.rsqrt(variance + eps)
    offset = tl.load(norm_bias + channel, mask=inside, other=0).to(tl.float32) + (added - group_mean) * scale
    tl.store(affine + (n * channels + channel) * 2, scale, mask=inside)
    tl.store(affine + (n * channels + channel) * 2 + 1, offset, mask=inside)


@_jit
def _apply_affine(
    x, affine, out, rows, channels,
    DTYPE: tl.constexpr, SILU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    x, affine, out = _ptr(x, DTYPE), _ptr(affine, tl.float32), _ptr(out, DTYPE)
    n = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    inside = channel < channels
    scale = tl.load(affine + (n * channels + channel) * 2, mask=inside, other=0)
    offset = tl.load(affine + (n * channels + channel) * 2 + 1, mask=inside, other=0)
    at = (n * rows + row) * channels + channel
    mask = inside & (row < rows)
    y = tl.load(x + at, mask=mask, other=0).to(tl.float32) * scale + offset
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(out + at, y.to(DTYPE), mask=mask)


def group_norm(
    x: Tensor,
    groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    silu: bool,
    bias: Tensor | None,
    time_bias: Tensor | None,
) -> Tensor:
    n, channels, height, width = x.shape
    rows = height * width
    x = x.contiguous(memory_format=torch.channels_last)
    parts = min(256, triton.next_power_of_2(triton.cdiv(rows, 256)))
    rows_per_part = triton.cdiv(triton.cdiv(rows, parts), 16) * 16
    sums = x.new_empty((n, parts, channels, 2), dtype=torch.float32)
    affine = x.new_empty((n, channels, 2), dtype=torch.float32)
    out = torch.empty_like(x)
    blocks = triton.cdiv(channels, BLOCK_N)
    # Fastest on one H200: many programs with small tiles keep the most reads in flight.
    _launch(
        _channel_sums, (triton.cdiv(channels, 128), parts, n),
        x, sums.data_ptr(), rows, channels, rows_per_part, BLOCK_M=16, BLOCK_N=128,
    )  # fmt: skip
    _launch(
        _group_affine, (groups, n),
        x, sums.data_ptr(), bias, time_bias, norm_weight, norm_bias, affine.data_ptr(), rows, channels, eps,
        HAS_BIAS=bias is not None, HAS_TIME_BIAS=time_bias is not None, PARTS=parts, GROUP_CHANNELS=channels // groups,
        BLOCK_N=triton.next_power_of_2(channels // groups), num_warps=1,
    )  # fmt: skip
    _launch(
        _apply_affine, (blocks, triton.cdiv(rows, BLOCK_M), n),
        x, affine.data_ptr(), out, rows, channels, SILU=silu, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
    )  # fmt: skip
    return out


@_jit
def _add(x, delta, bias, out, tokens, width, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    x, delta, bias, out = _ptr(x, DTYPE), _ptr(delta, DTYPE), _ptr(bias, DTYPE), _ptr(out, DTYPE)
    token = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    mask = (token < tokens) & (i < width)
    y = tl.load(x + token * width + i, mask=mask, other=0).to(tl.float32)
    y += tl.load(delta + token * width + i, mask=mask, other=0).to(tl.float32)
    y += tl.load(bias + i, mask=i < width, other=0).to(tl.float32)
    tl.store(out + token * width + i, y.to(DTYPE), mask=mask)


def add(x: Tensor, delta: Tensor, bias: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    x, delta = (t.contiguous(memory_format=torch.channels_last) for t in (x, delta))
    out, pixels = torch.empty_like(x), n * height * width
    _launch(
        _add, (triton.cdiv(channels, BLOCK_N), triton.cdiv(pixels, BLOCK_M)),
        x, delta, bias, out, pixels, channels, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
    )  # fmt: skip
    return out


@_jit
def _add_layer_norm(
    h, delta, bias, norm_weight, norm_bias, positions, total, out, tokens, width, per_frame, frames, eps,
    DTYPE: tl.constexpr, HAS_DELTA: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    h, out = _ptr(h, DTYPE), _ptr(out, DTYPE)
    norm_weight, norm_bias = _ptr(norm_weight, DTYPE), _ptr(norm_bias, DTYPE)
    token = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    i = tl.arange(0, BLOCK_N)[None, :]
    inside = i < width
    mask = (token < tokens) & inside
    at = token * width + i
    x = tl.load(h + at, mask=mask, other=0).to(tl.float32)
    if HAS_DELTA:
        x += tl.load(_ptr(delta, DTYPE) + at, mask=mask, other=0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(_ptr(bias, DTYPE) + i, mask=inside, other=0).to(tl.float32)
    if HAS_DELTA or HAS_BIAS:
        x = x.to(DTYPE)
        tl.store(_ptr(total, DTYPE) + at, x, mask=mask)
        x = x.to(tl.float32)
    mean = tl.sum(x, 1)[:, None] / width
    centred = tl.where(inside, x - mean, 0)
    variance = tl.sum(centred * centred, 1)[:, None] / width
    y = centred * tl.rsqrt(variance + eps) * tl.load(norm_weight + i, mask=inside, other=0).to(tl.float32)
    y += tl.load(norm_bias + i, mask=inside, other=0).to(tl.float32)
    if HAS_POSITIONS:
        frame = (token // per_frame) % frames
        y += tl.load(_ptr(positions, DTYPE) + frame * width + i, mask=mask, other=0).to(tl.float32)
    tl.store(out + at, y.to(DTYPE), mask=mask)


def add_layer_norm(
    h: Tensor,
    delta: Tensor | None,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    width = h.shape[-1]
    h = h.contiguous()
    changed = delta is not None or bias is not None
    total, out = torch.empty_like(h) if changed else h, torch.empty_like(h)
    block_n = triton.next_power_of_2(width)
    block_m = max(1, 2048 // block_n)
    tokens = h.numel() // width
    _launch(
        _add_layer_norm, (triton.cdiv(tokens, block_m),),
        h, None if delta is None else delta.contiguous(), bias, norm_weight, norm_bias, positions, total, out,
        tokens, width, h.shape[1], 1 if positions is None else len(positions), eps,
        HAS_DELTA=delta is not None, HAS_BIAS=bias is not None, HAS_POSITIONS=positions is not None,
        BLOCK_M=block_m, BLOCK_N=block_n,
    )  # fmt: skip
    return total, out


@_jit
def _geglu(x, out, tokens, width, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    x, out = _ptr(x, DTYPE), _ptr(out, DTYPE)
    token = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    mask = (token < tokens) & (i < width)
    value = tl.load(x + token * 2 * width + i, mask=mask, other=0).to(tl.float32)
    gate = tl.load(x + token * 2 * width + width + i, mask=mask, other=0).to(tl.float32)
    y = value * 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + token * width + i, y.to(DTYPE), mask=mask)


def geglu(x: Tensor) -> Tensor:
    width = x.shape[-1] // 2
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], width))
    tokens = out.numel() // width
    _launch(_geglu, (triton.cdiv(width, 256), triton.cdiv(tokens, 8)), x, out, tokens, width, BLOCK_M=8, BLOCK_N=256)
    return out


@_jit
def _concat_reference(
    own, reference, out, tokens, reference_tokens, width, stride,
    DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    own, reference, out = _ptr(own, DTYPE), _ptr(reference, DTYPE), _ptr(out, DTYPE)
    n = tl.program_id(2).to(tl.int64)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    is_own = (token < tokens) & (i < width)
    is_reference = (token >= tokens) & (token < tokens + reference_tokens) & (i < width)
    x = tl.load(own + (n * tokens + token) * stride + i, mask=is_own, other=0)
    x += tl.load(reference + (token - tokens) * width + i, mask=is_reference, other=0)
    tl.store(out + (n * (tokens + reference_tokens) + token) * width + i, x, mask=is_own | is_reference)


def concat_reference(own: Tensor, reference: Tensor) -> Tensor:
    batch, tokens, width = own.shape
    reference_tokens = reference.shape[1]
    out = own.new_empty((batch, tokens + reference_tokens, width))
    _launch(
        _concat_reference, (triton.cdiv(width, BLOCK_N), triton.cdiv(tokens + reference_tokens, BLOCK_M), batch),
        own, reference.contiguous(), out, tokens, reference_tokens, width, own.stride(1),
        BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
    )  # fmt: skip
    return out


@_jit
def _fold_corners(weight, out, out_channels, channels, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Sums the 3x3 weights that fall on the same input pixel, for each of the four corners of a doubled pixel. Along
    each axis two input pixels are in reach: weights up to the corner's half fall on the first, others on the second."""
    weight, out = _ptr(weight, DTYPE), _ptr(out, DTYPE)
    out_channel = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = channel < channels
    for corner in tl.static_range(4):
        for pixel in tl.static_range(4):
            total = tl.zeros((BLOCK_N,), tl.float32)
            for place in tl.static_range(9):
                if (place // 3 > corner // 2) == (pixel // 2 == 1) and (place % 3 > corner % 2) == (pixel % 2 == 1):
                    at = weight + (out_channel * 9 + place) * channels + channel
                    total += tl.load(at, mask=mask, other=0).to(tl.float32)
            at = out + ((corner * out_channels + out_channel) * 4 + pixel) * channels + channel
            tl.store(at, total.to(DTYPE), mask=mask)


def fold_corners(weight: Tensor) -> Tensor:
    out_channels, channels = weight.shape[:2]
    weight = weight.contiguous(memory_format=torch.channels_last)
    shape = (4 * out_channels, channels, 2, 2)
    out = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)
    _launch(
        _fold_corners, (triton.cdiv(channels, 512), out_channels), weight, out, out_channels, channels, BLOCK_N=512,
    )  # fmt: skip
    return out


@_jit
def _interleave(
    x, bias, out, height, width, channels, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    x, bias, out = _ptr(x, DTYPE), _ptr(bias, DTYPE), _ptr(out, DTYPE)
    n = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    mask = (pixel < 4 * height * width) & (channel < channels)
    i, j = pixel // (2 * width), pixel % (2 * width)
    source = (n * (height + 1) + i // 2 + i % 2) * (width + 1) + j // 2 + j % 2
    value = tl.load(x + (source * 4 + i % 2 * 2 + j % 2) * channels + channel, mask=mask, other=0).to(tl.float32)
    value += tl.load(bias + channel, mask=channel < channels, other=0).to(tl.float32)
    at = (n * 4 * height * width + pixel) * channels + channel
    tl.store(out + at, value.to(DTYPE), mask=mask)


def interleave(x: Tensor, bias: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    channels, height, width = channels // 4, height - 1, width - 1
    x = x.contiguous(memory_format=torch.channels_last)
    shape = (n, channels, 2 * height, 2 * width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _launch(
        _interleave, (triton.cdiv(channels, BLOCK_N), triton.cdiv(4 * height * width, BLOCK_M), n),
        x, bias, out, height, width, channels, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
    )  # fmt: skip
    return out


@_jit
def _temporal_attention(
    q, k, v, out, pixels, width, stride, scale,
    DTYPE: tl.constexpr, FRAMES: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Takes the frames of a few pixels as one small attention, masked so that a pixel sees itself alone."""
    q, k, v, out = _ptr(q, DTYPE), _ptr(k, DTYPE), _ptr(v, DTYPE), _ptr(out, DTYPE)
    row = tl.arange(0, BLOCK_PIXELS * FRAMES)
    pixel = tl.program_id(1) * BLOCK_PIXELS + row // FRAMES
    d = tl.arange(0, BLOCK_D)
    token = (tl.program_id(2).to(tl.int64) * FRAMES + row % FRAMES) * pixels + pixel
    at = token[:, None] * stride + tl.program_id(0) * HEAD_DIM + d[None, :]
    mask = (pixel < pixels)[:, None] & (d < HEAD_DIM)[None, :]
    queries = tl.load(q + at, mask=mask, other=0)
    keys = tl.load(k + at, mask=mask, other=0)
    values = tl.load(v + at, mask=mask, other=0)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where((row // FRAMES)[:, None] == (row // FRAMES)[None, :], scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    result = tl.dot(weights.to(DTYPE), values, input_precision="ieee") / tl.sum(weights, 1)[:, None]
    at = token[:, None] * width + tl.program_id(0) * HEAD_DIM + d[None, :]
    tl.store(out + at, result.to(DTYPE), mask=mask)


LOG2_E = 1.4426950408889634


def _block_m(x: Tensor) -> int:
    """Rows of queries per tile: 64 in half precision, 32 in single, to fit the shared memory of every supported GPU."""
    return 128 // x.element_size()


def temporal_attention(q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int) -> Tensor:
    batch, pixels, width = q.shape
    head_dim, out = width // heads, q.new_empty(q.shape)
    block_pixels = _block_m(q) // frames
    _launch(
        _temporal_attention, (heads, triton.cdiv(pixels, block_pixels), batch // frames),
        q, k, v, out, pixels, width, q.stride(1), head_dim**-0.5 * LOG2_E,
        FRAMES=frames, BLOCK_PIXELS=block_pixels, HEAD_DIM=head_dim, BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
    )  # fmt: skip
    return out


@_jit
def _short_cross_attention(
    q, k, v, out, tokens, width, scale,
    DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    q, k, v, out = _ptr(q, DTYPE), _ptr(k, DTYPE), _ptr(v, DTYPE), _ptr(out, DTYPE)
    n, head = tl.program_id(2).to(tl.int64), tl.program_id(0)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    at = (n * tokens + token[:, None]) * width + head * HEAD_DIM + d[None, :]
    mask = (token < tokens)[:, None] & (d < HEAD_DIM)[None, :]
    key_at = (n * KEYS + tl.arange(0, KEYS)[:, None]) * width + head * HEAD_DIM + d[None, :]
    queries = tl.load(q + at, mask=mask, other=0)
    keys = tl.load(k + key_at, mask=(d < HEAD_DIM)[None, :], other=0)
    values = tl.load(v + key_at, mask=(d < HEAD_DIM)[None, :], other=0)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    result = tl.dot(weights.to(DTYPE), values, input_precision="ieee") / tl.sum(weights, 1)[:, None]
    tl.store(out + at, result.to(DTYPE), mask=mask)


def short_cross_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    batch, tokens, width = q.shape
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    head_dim, out, block_m = width // heads, torch.empty_like(q), _block_m(q)
    _launch(
        _short_cross_attention, (heads, triton.cdiv(tokens, block_m), batch),
        q, k, v, out, tokens, width, head_dim**-0.5 * LOG2_E,
        BLOCK_M=block_m, KEYS=k.shape[1], HEAD_DIM=head_dim, BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
    )  # fmt: skip
    return out
