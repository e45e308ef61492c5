"""Runs a network that does not fit on its device: its blocks' weights are copied there just ahead of their use."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

Blocks = Sequence[tuple[nn.Module, list[nn.Parameter]]]
SLOTS = 2  # one for the block that runs, one for the next
ALIGNMENT = 256  # bytes; what cudaMalloc gives, and the kernels of PyTorch's libraries may count on


class Copies(Protocol):
    """Copies weights to the device beside the arithmetic. Slots are what is copied into."""

    def start(self, slot: int, target: Tensor, source: Tensor) -> None:
        """Copies as soon as the slot's last use is over."""

    def wait(self, slot: int) -> None:
        """Lets the arithmetic that follows wait for the slot's copy."""

    def release(self, slot: int) -> None:
        """Says that the arithmetic so far was the slot's last use."""


class CudaCopies:
    """Copies on a stream of their own, which events keep in step with the current stream."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._copied = dict[int, torch.cuda.Event]()
        self._used = dict[int, torch.cuda.Event]()

    def start(self, slot: int, target: Tensor, source: Tensor) -> None:
        used = self._used.get(slot) or torch.cuda.current_stream(self._device).record_event()
        self._stream.wait_event(used)
        target.record_stream(self._stream)  # else it could be given to others during the copy
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            self._copied[slot] = self._stream.record_event()

    def wait(self, slot: int) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._copied[slot])

    def release(self, slot: int) -> None:
        self._used[slot] = torch.cuda.current_stream(self._device).record_event()


class BlockStreaming:
    """Keeps the parameters of blocks on the CPU, and on the device those of the block that runs and of the next.

    Args:
        blocks: What each call of the network runs, in this order. Each is called as a module, in one thread at a time.
            Of each, the parameters that are streamed, which nothing else uses.
        device: Where they run. On CUDA the copy on the CPU is pinned.
        copies: How weights get there.
    """

    def __init__(self, blocks: Blocks, device: torch.device, copies: Copies):
        self._copies = copies
        sizes = [_laid_out(parameters)[1] for _, parameters in blocks]
        self._slots = [torch.empty(max(sizes), dtype=torch.uint8, device=device) for _ in range(SLOTS)]
        self._waiting: list[Tensor] = []  # all parameters of a block in one piece, so that one copy takes them
        self._parameters: list[list[tuple[nn.Parameter, Tensor, Tensor]]] = []  # with their data here and there
        self._held: list[int | None] = [None] * SLOTS
        for i, (block, parameters) in enumerate(blocks):
            piece = torch.empty(sizes[i], dtype=torch.uint8, pin_memory=device.type == "cuda")
            offsets, _ = _laid_out(parameters)
            placed = []
            for x, offset in zip(parameters, offsets, strict=True):
                here = _view(piece, offset, x)
                here.copy_(x.data)
                x.data = here
                placed.append((x, here, _view(self._slots[i % SLOTS], offset, x)))
            self._waiting.append(piece)
            self._parameters.append(placed)
            block.register_forward_pre_hook(partial(self._before, i))
            block.register_forward_hook(partial(self._after, i), always_call=True)

    def _before(self, i: int, *call) -> None:
        self._start(i)  # unless the block before did
        following = (i + 1) % len(self._waiting)
        if following % SLOTS != i % SLOTS:
            self._start(following)
        self._copies.wait(i % SLOTS)
        for x, _, there in self._parameters[i]:
            x.data = there

    def _start(self, i: int) -> None:
        slot, piece = i % SLOTS, self._waiting[i]
        if self._held[slot] != i:
            self._copies.start(slot, self._slots[slot][: len(piece)], piece)
            self._held[slot] = i

    def _after(self, i: int, *call) -> None:
        for x, here, _ in self._parameters[i]:
            x.data = here
        self._copies.release(i % SLOTS)


def stream_blocks(network: nn.Module, blocks: Blocks, kept: int, device: torch.device, copies: Copies) -> None:
    """Moves a network to a device, but for blocks that are streamed from now on.

    Args:
        network: On the CPU.
        blocks: As `BlockStreaming` takes them.
        kept: Bytes of blocks that may stay on the device.
        device: Where the network runs.
        copies: How weights get there.
    """
    sizes = [sum(x.nbytes for x in parameters) for _, parameters in blocks]
    streamed = [block for block, stays in zip(blocks, evenly_spread(sizes, kept), strict=True) if not stays]
    if streamed:
        BlockStreaming(streamed, device, copies)
    come_and_go = {id(x) for _, parameters in streamed for x in parameters}
    network._apply(lambda x: x if id(x) in come_and_go else x.to(device))


def evenly_spread(sizes: Sequence[int], kept: int) -> list[bool]:
    """Which blocks stay on the device: spread evenly, so that there is arithmetic beside every copy.

    Args:
        sizes: Of the blocks, in bytes.
        kept: The most that may stay, in bytes.
    """
    stay, seen, total = list[bool](), 0, sum(sizes)
    held = 0
    for size in sizes:
        seen += size
        stay.append((held + size) * total <= kept * seen)
        held += size * stay[-1]
    return stay


def _laid_out(parameters: list[nn.Parameter]) -> tuple[list[int], int]:
    """Where each begins in the block's piece, and the size of that, in bytes."""
    offsets, end = list[int](), 0
    for x in parameters:
        offsets.append(end)
        end += -(-x.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _view(flat: Tensor, offset: int, like: Tensor) -> Tensor:
    return flat[offset : offset + like.nbytes].view(like.dtype).as_strided(like.shape, like.stride())
