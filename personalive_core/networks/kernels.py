"""Triton kernels for what PyTorch leaves unfused; `fused` chooses between them and their plain twins.

Pictures are channels-last throughout: (N, rows, C) in memory, with rows = H x W. Tensors go to the kernels as
addresses: of a tensor itself Triton asks the driver where it is, and the driver does not know yet what cudaMallocAsync
gives out while a CUDA graph is captured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 64  # that one program reads of each row
ROWS = 64  # that it reads at a time


def _launch(kernel, grid: tuple[int, ...], *arguments: Tensor | float | None, **constants) -> None:
    """Start `kernel` with DTYPE, that of the tensors among the arguments. ValueError if 16 bytes do not divide an
    address: kernels read and write so many at a time."""
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    (dtype,) = {x.dtype for x in tensors}
    if any(x.data_ptr() % 16 for x in tensors):
        raise ValueError(f"a tensor for {kernel.__name__} begins at an address that 16 bytes do not divide")
    addresses = (x.data_ptr() if isinstance(x, Tensor) else x for x in arguments)
    kernel[grid](*addresses, DTYPE=getattr(tl, str(dtype).removeprefix("torch.")), **constants)


@triton.jit
def _at(address, DTYPE: tl.constexpr):
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)


@triton.jit
def _channel_sums(
    x, sums, rows, channels, rows_each, DTYPE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Sum and sum of squares of a slice of the rows, by channel, relative to the picture's first pixel (a large mean
    would cost the squares their precision)."""
    x, sums = _at(x, DTYPE), _at(sums, tl.float32)
    n, part, parts = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    picture = x + n * rows * channels + channel
    pivot = tl.load(picture, mask=inside, other=0).to(tl.float32)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS), tl.float32)
    for first in range(part * rows_each, min((part + 1) * rows_each, rows), ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        mask = inside & (row < min((part + 1) * rows_each, rows))
        value = tl.load(picture + row.to(tl.int64) * channels, mask=mask, other=0).to(tl.float32)
        value = tl.where(mask, value - pivot, 0)
        total += value
        squares += value * value
    sums += ((n * parts + part) * channels + channel) * 2
    tl.store(sums, tl.sum(total, 0), mask=inside)
    tl.store(sums + 1, tl.sum(squares, 0), mask=inside)


@triton.jit
def _group_affine(
    x, sums, row, shift, weight, bias, affine, rows, channels, eps,
    DTYPE: tl.constexpr, HAS_ROW: tl.constexpr, HAS_SHIFT: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """From the sums to what the norm multiplies each channel of each picture by, and adds."""
    x, weight, bias = _at(x, DTYPE), _at(weight, DTYPE), _at(bias, DTYPE)
    sums, affine = _at(sums, tl.float32), _at(affine, tl.float32)
    n, group = tl.program_id(1).to(tl.int64), tl.program_id(0)
    i = tl.arange(0, PADDED)
    channel = group * WIDTH + i
    inside = i < WIDTH
    part = sums + ((n * PARTS + tl.arange(0, PARTS)[:, None]) * channels + channel) * 2
    total = tl.sum(tl.load(part, mask=inside[None, :], other=0), 0)
    squares = tl.sum(tl.load(part + 1, mask=inside[None, :], other=0), 0)
    added = tl.zeros((PADDED,), tl.float32)
    if HAS_ROW:
        added += tl.load(_at(row, DTYPE) + channel, mask=inside, other=0).to(tl.float32)
    if HAS_SHIFT:
        added += tl.load(_at(shift, DTYPE) + n * channels + channel, mask=inside, other=0).to(tl.float32)
    mean = tl.load(x + n * rows * channels + channel, mask=inside, other=0).to(tl.float32) + total / rows + added
    group_mean = tl.sum(tl.where(inside, mean, 0), 0) / WIDTH
    apart = tl.where(inside, mean - group_mean, 0)
    variance = (tl.sum(squares - total * total / rows, 0) / rows + tl.sum(apart * apart, 0)) / WIDTH
    scale = tl.load(weight + channel, mask=inside, other=0).to(tl.float32) * tl.rsqrt(variance + eps)
    offset = tl.load(bias + channel, mask=inside, other=0).to(tl.float32) + (added - group_mean) * scale
    tl.store(affine + (n * channels + channel) * 2, scale, mask=inside)
    tl.store(affine + (n * channels + channel) * 2 + 1, offset, mask=inside)


@triton.jit
def _apply_affine(
    x, affine, out, rows, channels,
    DTYPE: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    x, affine, out = _at(x, DTYPE), _at(affine, tl.float32), _at(out, DTYPE)
    n = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = channel < channels
    scale = tl.load(affine + (n * channels + channel) * 2, mask=inside, other=0)
    offset = tl.load(affine + (n * channels + channel) * 2 + 1, mask=inside, other=0)
    place = (n * rows + row) * channels + channel
    mask = inside & (row < rows)
    y = tl.load(x + place, mask=mask, other=0).to(tl.float32) * scale + offset
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(out + place, y.to(DTYPE), mask=mask)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    silu: bool,
    row: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    n, channels, height, width = x.shape
    rows = height * width
    x = x.contiguous(memory_format=torch.channels_last)
    parts = min(256, triton.next_power_of_2(triton.cdiv(rows, 256)))
    rows_each = triton.cdiv(triton.cdiv(rows, parts), 16) * 16
    sums = x.new_empty((n, parts, channels, 2), dtype=torch.float32)
    affine = x.new_empty((n, channels, 2), dtype=torch.float32)
    out = torch.empty_like(x)
    blocks = triton.cdiv(channels, CHANNELS)
    # Measured on one H200: small tiles in many programs keep the most reads in flight.
    _launch(
        _channel_sums, (triton.cdiv(channels, 128), parts, n),
        x, sums.data_ptr(), rows, channels, rows_each, ROWS=16, CHANNELS=128,
    )  # fmt: skip
    _launch(
        _group_affine, (groups, n),
        x, sums.data_ptr(), row, shift, weight, bias, affine.data_ptr(), rows, channels, eps,
        HAS_ROW=row is not None, HAS_SHIFT=shift is not None, PARTS=parts, WIDTH=channels // groups,
        PADDED=triton.next_power_of_2(channels // groups), num_warps=1,
    )  # fmt: skip
    _launch(
        _apply_affine, (blocks, triton.cdiv(rows, ROWS), n),
        x, affine.data_ptr(), out, rows, channels, SILU=silu, ROWS=ROWS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return out


@triton.jit
def _add(x, delta, row, out, tokens, width, DTYPE: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr):
    x, delta, row, out = _at(x, DTYPE), _at(delta, DTYPE), _at(row, DTYPE), _at(out, DTYPE)
    token = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    i = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)[None, :]
    mask = (token < tokens) & (i < width)
    y = tl.load(x + token * width + i, mask=mask, other=0).to(tl.float32)
    y += tl.load(delta + token * width + i, mask=mask, other=0).to(tl.float32)
    y += tl.load(row + i, mask=i < width, other=0).to(tl.float32)
    tl.store(out + token * width + i, y.to(DTYPE), mask=mask)


def add(x: Tensor, delta: Tensor, row: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    x, delta = (t.contiguous(memory_format=torch.channels_last) for t in (x, delta))
    out, pixels = torch.empty_like(x), n * height * width
    _launch(
        _add, (triton.cdiv(channels, CHANNELS), triton.cdiv(pixels, ROWS)),
        x, delta, row, out, pixels, channels, TOKENS=ROWS, WIDTH=CHANNELS,
    )  # fmt: skip
    return out


@triton.jit
def _add_layer_norm(
    h, delta, row, weight, bias, positions, total, out, tokens, width, per_frame, frames, eps,
    DTYPE: tl.constexpr, HAS_DELTA: tl.constexpr, HAS_ROW: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    h, weight, bias, out = _at(h, DTYPE), _at(weight, DTYPE), _at(bias, DTYPE), _at(out, DTYPE)
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    i = tl.arange(0, WIDTH)[None, :]
    inside = i < width
    mask = (token < tokens) & inside
    place = token * width + i
    x = tl.load(h + place, mask=mask, other=0).to(tl.float32)
    if HAS_DELTA:
        x += tl.load(_at(delta, DTYPE) + place, mask=mask, other=0).to(tl.float32)
    if HAS_ROW:
        x += tl.load(_at(row, DTYPE) + i, mask=inside, other=0).to(tl.float32)
    if HAS_DELTA or HAS_ROW:
        x = x.to(DTYPE)
        tl.store(_at(total, DTYPE) + place, x, mask=mask)
        x = x.to(tl.float32)
    mean = tl.sum(x, 1)[:, None] / width
    apart = tl.where(inside, x - mean, 0)
    variance = tl.sum(apart * apart, 1)[:, None] / width
    y = apart * tl.rsqrt(variance + eps) * tl.load(weight + i, mask=inside, other=0).to(tl.float32)
    y += tl.load(bias + i, mask=inside, other=0).to(tl.float32)
    if HAS_POSITIONS:
        frame = (token // per_frame) % frames
        y += tl.load(_at(positions, DTYPE) + frame * width + i, mask=mask, other=0).to(tl.float32)
    tl.store(out + place, y.to(DTYPE), mask=mask)


def add_layer_norm(
    h: Tensor,
    delta: Tensor | None,
    row: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    width = h.shape[-1]
    h = h.contiguous()
    changed = delta is not None or row is not None
    total, out = torch.empty_like(h) if changed else h, torch.empty_like(h)
    padded = triton.next_power_of_2(width)
    each = max(1, 2048 // padded)
    tokens = h.numel() // width
    _launch(
        _add_layer_norm, (triton.cdiv(tokens, each),),
        h, None if delta is None else delta.contiguous(), row, weight, bias, positions, total, out,
        tokens, width, h.shape[1], 1 if positions is None else len(positions), eps,
        HAS_DELTA=delta is not None, HAS_ROW=row is not None, HAS_POSITIONS=positions is not None,
        TOKENS=each, WIDTH=padded,
    )  # fmt: skip
    return total, out


@triton.jit
def _geglu(x, out, tokens, width, DTYPE: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr):
    x, out = _at(x, DTYPE), _at(out, DTYPE)
    token = tl.program_id(1).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    i = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)[None, :]
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
    _launch(_geglu, (triton.cdiv(width, 256), triton.cdiv(tokens, 8)), x, out, tokens, width, TOKENS=8, WIDTH=256)
    return out


@triton.jit
def _join(
    own, shared, out, tokens, more, width, stride, DTYPE: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    own, shared, out = _at(own, DTYPE), _at(shared, DTYPE), _at(out, DTYPE)
    n = tl.program_id(2).to(tl.int64)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)[:, None]
    i = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)[None, :]
    mine = (token < tokens) & (i < width)
    theirs = (token >= tokens) & (token < tokens + more) & (i < width)
    x = tl.load(own + (n * tokens + token) * stride + i, mask=mine, other=0)
    x += tl.load(shared + (token - tokens) * width + i, mask=theirs, other=0)
    tl.store(out + (n * (tokens + more) + token) * width + i, x, mask=mine | theirs)


def join(own: Tensor, shared: Tensor) -> Tensor:
    batch, tokens, width = own.shape
    more = shared.shape[1]
    out = own.new_empty((batch, tokens + more, width))
    _launch(
        _join, (triton.cdiv(width, CHANNELS), triton.cdiv(tokens + more, ROWS), batch),
        own, shared.contiguous(), out, tokens, more, width, own.stride(1), TOKENS=ROWS, WIDTH=CHANNELS,
    )  # fmt: skip
    return out


@triton.jit
def _fold_corners(weight, out, outputs, channels, DTYPE: tl.constexpr, CHANNELS: tl.constexpr):
    """Each of the four corners of a doubled pixel meets 2x2 input pixels, and the weights that meet the same one
    are summed: of three weights in a row or column, those up to the corner's half meet the first pixel, the others the
    second."""
    weight, out = _at(weight, DTYPE), _at(out, DTYPE)
    output = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    mask = channel < channels
    for corner in tl.static_range(4):
        for pixel in tl.static_range(4):
            total = tl.zeros((CHANNELS,), tl.float32)
            for place in tl.static_range(9):
                if (place // 3 > corner // 2) == (pixel // 2 == 1) and (place % 3 > corner % 2) == (pixel % 2 == 1):
                    at = weight + (output * 9 + place) * channels + channel
                    total += tl.load(at, mask=mask, other=0).to(tl.float32)
            at = out + ((corner * outputs + output) * 4 + pixel) * channels + channel
            tl.store(at, total.to(DTYPE), mask=mask)


def fold_corners(weight: Tensor) -> Tensor:
    outputs, channels = weight.shape[:2]
    weight = weight.contiguous(memory_format=torch.channels_last)
    shape = (4 * outputs, channels, 2, 2)
    out = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)
    _launch(
        _fold_corners, (triton.cdiv(channels, 512), outputs), weight, out, outputs, channels, CHANNELS=512,
    )  # fmt: skip
    return out


@triton.jit
def _interleave(
    x, row, out, height, width, channels, DTYPE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    x, row, out = _at(x, DTYPE), _at(row, DTYPE), _at(out, DTYPE)
    n = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    mask = (pixel < 4 * height * width) & (channel < channels)
    i, j = pixel // (2 * width), pixel % (2 * width)
    source = (n * (height + 1) + i // 2 + i % 2) * (width + 1) + j // 2 + j % 2
    value = tl.load(x + (source * 4 + i % 2 * 2 + j % 2) * channels + channel, mask=mask, other=0).to(tl.float32)
    value += tl.load(row + channel, mask=channel < channels, other=0).to(tl.float32)
    place = (n * 4 * height * width + pixel) * channels + channel
    tl.store(out + place, value.to(DTYPE), mask=mask)


def interleave(x: Tensor, row: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    channels, height, width = channels // 4, height - 1, width - 1
    x = x.contiguous(memory_format=torch.channels_last)
    shape = (n, channels, 2 * height, 2 * width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _launch(
        _interleave, (triton.cdiv(channels, CHANNELS), triton.cdiv(4 * height * width, ROWS), n),
        x, row, out, height, width, channels, PIXELS=ROWS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return out


@triton.jit
def _temporal_attention(
    q, k, v, out, pixels, width, stride, scale,
    DTYPE: tl.constexpr, FRAMES: tl.constexpr, PIXELS: tl.constexpr, HEAD: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """A few pixels' frames at once as one small attention, in which a pixel sees itself alone."""
    q, k, v, out = _at(q, DTYPE), _at(k, DTYPE), _at(v, DTYPE), _at(out, DTYPE)
    row = tl.arange(0, PIXELS * FRAMES)
    pixel = tl.program_id(1) * PIXELS + row // FRAMES
    i = tl.arange(0, PADDED)
    token = (tl.program_id(2).to(tl.int64) * FRAMES + row % FRAMES) * pixels + pixel
    place = token[:, None] * stride + tl.program_id(0) * HEAD + i[None, :]
    mask = (pixel < pixels)[:, None] & (i < HEAD)[None, :]
    queries = tl.load(q + place, mask=mask, other=0)
    keys = tl.load(k + place, mask=mask, other=0)
    values = tl.load(v + place, mask=mask, other=0)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where((row // FRAMES)[:, None] == (row // FRAMES)[None, :], scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    result = tl.dot(weights.to(DTYPE), values, input_precision="ieee") / tl.sum(weights, 1)[:, None]
    place = token[:, None] * width + tl.program_id(0) * HEAD + i[None, :]
    tl.store(out + place, result.to(DTYPE), mask=mask)


LOG2_E = 1.4426950408889634


def _rows_together(x: Tensor) -> int:
    """64 in half precision; in single precision half as many, for which the shared memory of every card is enough."""
    return 128 // x.element_size()


def temporal_attention(q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int) -> Tensor:
    batch, pixels, width = q.shape
    head, out = width // heads, q.new_empty(q.shape)
    together = _rows_together(q) // frames
    _launch(
        _temporal_attention, (heads, triton.cdiv(pixels, together), batch // frames),
        q, k, v, out, pixels, width, q.stride(1), head**-0.5 * LOG2_E,
        FRAMES=frames, PIXELS=together, HEAD=head, PADDED=max(16, triton.next_power_of_2(head)),
    )  # fmt: skip
    return out


@triton.jit
def _few_keys_attention(
    q, k, v, out, tokens, width, scale,
    DTYPE: tl.constexpr, TOKENS: tl.constexpr, KEYS: tl.constexpr, HEAD: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    q, k, v, out = _at(q, DTYPE), _at(k, DTYPE), _at(v, DTYPE), _at(out, DTYPE)
    n, head = tl.program_id(2).to(tl.int64), tl.program_id(0)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    i = tl.arange(0, PADDED)
    place = (n * tokens + token[:, None]) * width + head * HEAD + i[None, :]
    mask = (token < tokens)[:, None] & (i < HEAD)[None, :]
    key_place = (n * KEYS + tl.arange(0, KEYS)[:, None]) * width + head * HEAD + i[None, :]
    queries = tl.load(q + place, mask=mask, other=0)
    keys = tl.load(k + key_place, mask=(i < HEAD)[None, :], other=0)
    values = tl.load(v + key_place, mask=(i < HEAD)[None, :], other=0)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    result = tl.dot(weights.to(DTYPE), values, input_precision="ieee") / tl.sum(weights, 1)[:, None]
    tl.store(out + place, result.to(DTYPE), mask=mask)


def few_keys_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    batch, tokens, width = q.shape
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    head, out, together = width // heads, torch.empty_like(q), _rows_together(q)
    _launch(
        _few_keys_attention, (heads, triton.cdiv(tokens, together), batch),
        q, k, v, out, tokens, width, head**-0.5 * LOG2_E,
        TOKENS=together, KEYS=k.shape[1], HEAD=head, PADDED=max(16, triton.next_power_of_2(head)),
    )  # fmt: skip
    return out
