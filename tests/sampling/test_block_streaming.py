"""Streamed blocks: the same bits, each block's weights there when it runs, and the next one's copy under way."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from personalive_core.networks.fp8 import store_in_fp8
from personalive_core.sampling.block_streaming import SLOTS, BlockStreaming, CudaCopies, evenly_spread
from personalive_core.sampling.window import Denoiser
from seeded import normal
from streams import motion_of, run, small_stream
from tiny import unets

CPU = torch.device("cpu")


class LateCopies:
    """Copies as late as a GPU may make them, when they are waited for; until then the slot holds garbage."""

    def __init__(self):
        self.log: list[tuple[str, int]] = []
        self._pending: dict[int, tuple[Tensor, Tensor]] = {}
        self._in_use: set[int] = set()

    def start(self, slot: int, target: Tensor, source: Tensor) -> None:
        assert slot not in self._in_use
        self.log.append(("start", slot))
        target.fill_(255)  # NaN in every type
        self._pending[slot] = target, source

    def wait(self, slot: int) -> None:
        self.log.append(("wait", slot))
        if slot in self._pending:
            target, source = self._pending.pop(slot)
            target.copy_(source)
        self._in_use.add(slot)

    def release(self, slot: int) -> None:
        self.log.append(("release", slot))
        self._in_use.remove(slot)


def spoil(streaming: BlockStreaming) -> None:
    """Whatever uses streamed weights outside of their block gets NaN, in place of weights on another device."""
    for placed in streaming._parameters:
        for i, (x, here, there) in enumerate(placed):
            spoiled = here.clone()
            spoiled.untyped_storage().fill_(255)
            x.data = spoiled
            placed[i] = (x, spoiled, there)


def stream_of(unet: nn.Module, limit: int = 2):
    stream = small_stream(limit=limit, threshold=0.0)
    stream.denoiser = Denoiser(unet, stream.schedule, limit)
    return stream


@pytest.fixture(autouse=True)
def early_keyframes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("personalive_core.sampling.stream.FIRST_WINDOW", 1)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_a_streamed_unet_gives_the_same_bits(fp8: bool, every: int):
    unet, motion = copy.deepcopy(unets()[1]), motion_of(normal("driving", 8, 32, 16))
    if fp8:
        store_in_fp8(unet)
    plain = run(stream_of(unet), motion, [8])
    blocks = unet.blocks()
    spoil(BlockStreaming(blocks[::every], CPU, copies := LateCopies()))
    assert torch.equal(run(stream_of(unet), motion, [8]), plain)
    assert len(copies.log) > 3 * len(blocks[::every])


@torch.inference_mode()
def test_two_blocks_are_there_and_the_next_is_copied_before_the_arithmetic():
    blocks = [(layer, list(layer.parameters())) for layer in (nn.Linear(8, 8) for _ in range(4))]
    network, x, events = nn.Sequential(*(layer for layer, _ in blocks)).requires_grad_(False), torch.ones(1, 8), []
    expected = network(x)
    streaming = BlockStreaming(blocks, CPU, copies := LateCopies())
    slots = [slot.data_ptr() for slot in streaming._slots]
    assert len(slots) == SLOTS == 2

    def there() -> list[int]:
        return [i for i, (layer, _) in enumerate(blocks) if layer.weight.data_ptr() in slots]

    for i, (layer, _) in enumerate(blocks):  # after those of the streaming: just before the arithmetic
        layer.register_forward_pre_hook(lambda *_, i=i: events.append((i, there(), list(copies.log))))
    for _ in range(2):
        copies.log.clear()
        events.clear()
        assert torch.equal(network(x), expected)
        assert there() == []
        assert [(i, found) for i, found, _ in events] == [(i, [i]) for i in range(4)]
        for i, _, log in events:
            assert log[-1] == ("wait", i % 2) and log[-2] == ("start", (i + 1) % 2)
    assert copies.log.count(("start", 0)) == copies.log.count(("start", 1)) == 2  # in the second run: each block once


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_blocks(count: int):
    blocks = [(layer, list(layer.parameters())) for layer in (nn.Linear(8, 8) for _ in range(count))]
    network, x = nn.Sequential(*(layer for layer, _ in blocks)).requires_grad_(False), torch.ones(1, 8)
    expected = network(x)
    BlockStreaming(blocks, CPU, LateCopies())
    assert all(torch.equal(network(x), expected) for _ in range(3))


@torch.inference_mode()
def test_an_error_in_a_block_leaves_the_next_call_right():
    layers = [nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)]
    network, x = nn.Sequential(*layers).requires_grad_(False), torch.ones(1, 8)
    expected = network(x)
    BlockStreaming([(layer, list(layer.parameters())) for layer in layers], CPU, LateCopies())
    with pytest.raises(RuntimeError):
        layers[1](torch.ones(1, 7))
    assert torch.equal(network(x), expected)


@torch.inference_mode()
def test_the_blocks_come_in_the_order_in_which_they_run():
    stream, unet = small_stream(), copy.deepcopy(unets()[1])
    stream.denoiser.denoising_unet, called = unet, []
    for block, _ in unet.blocks():
        block.register_forward_hook(lambda block, *_: called.append(block))
    run(stream, stream.motion, [1])
    assert called[: len(unet.blocks())] == [block for block, _ in unet.blocks()]
    streamed = sum(x.numel() for _, parameters in unet.blocks() for x in parameters)
    assert 0.9 < streamed / sum(x.numel() for x in unet.parameters()) < 0.97


def test_what_stays_fits_and_is_spread_evenly():
    sizes = [3, 1, 4, 1, 5, 9, 2, 6]
    for kept in range(sum(sizes) + 1):
        stay = evenly_spread(sizes, kept)
        assert sum(size for size, is_kept in zip(sizes, stay, strict=True) if is_kept) <= kept
    assert all(stay) and not any(evenly_spread(sizes, 0))
    assert evenly_spread([1] * 6, 3) == [False, True] * 3


class LoggingStream:
    """Writes down what is put on it; an event is the number of the entry that recorded it."""

    def __init__(self, name: str, log: list):
        self.name, self.log = name, log

    def record_event(self) -> int:
        self.log.append((self.name, "event"))
        return len(self.log) - 1

    def wait_event(self, event: int) -> None:
        self.log.append((self.name, "wait", event))


class LoggingTensor:
    def __init__(self, log: list):
        self.log = log

    def record_stream(self, stream: LoggingStream) -> None:
        assert stream.name == "copies"

    def copy_(self, source: object, non_blocking: bool) -> None:
        assert non_blocking
        self.log.append(("copies", "copy"))


def test_cuda_copies_come_after_the_slots_last_use_and_before_the_next(monkeypatch: pytest.MonkeyPatch):
    log: list[tuple] = []
    arithmetic = LoggingStream("arithmetic", log)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: LoggingStream("copies", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: arithmetic)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    copies, target = CudaCopies(torch.device("cuda", 0)), LoggingTensor(log)
    copies.start(0, target, None)
    copies.wait(0)
    assert log == [
        ("arithmetic", "event"),  # the slot's memory may have been another's until here
        ("copies", "wait", 0),
        ("copies", "copy"),
        ("copies", "event"),
        ("arithmetic", "wait", 3),
    ]
    copies.release(0)
    arithmetic.record_event()  # later work, which the next copy need not wait for
    copies.start(0, target, None)
    copies.wait(0)
    assert log[5:] == [
        ("arithmetic", "event"),
        ("arithmetic", "event"),
        ("copies", "wait", 5),
        ("copies", "copy"),
        ("copies", "event"),
        ("arithmetic", "wait", 9),
    ]
