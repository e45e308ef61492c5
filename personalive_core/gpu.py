"""What keeps a CUDA GPU from waiting for the CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


def send(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """x on the device, in its own floating-point type or another; through pinned memory the CPU need not wait."""
    x = x.to(dtype=dtype or x.dtype)
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


class Arrival:
    """A tensor on its way to the CPU."""

    def __init__(self, x: Tensor):
        self._event = None
        if x.is_cuda:
            self._pixels = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._pixels.copy_(x, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._pixels = x

    def wait(self) -> Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._pixels


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Work that another stream need not wait for; None where the device has no streams."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def on_stream(stream: torch.cuda.Stream | None):
    return nullcontext() if stream is None else torch.cuda.stream(stream)


@contextmanager
def visiting(device: torch.device, *networks: nn.Module) -> Iterator[None]:
    """Networks that wait on the CPU and are needed for a moment: on the device for that long."""
    waiting = [
        (module, name, x, x.data)
        for network in networks
        for module in network.modules()
        for name, x in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    ]
    with torch.inference_mode(False):  # weights must stay ordinary tensors
        for network in networks:
            network.to(device)
    try:
        yield
    finally:
        with torch.inference_mode(False):
            for module, name, x, data in waiting:  # nothing need come back
                x.data = data
                setattr(module, name, x)  # `to` may have put another in its place


class Captured:
    """A function of tensors as one CUDA graph: the CPU starts it whole instead of kernel by kernel.

    The first call runs as it is, which brings out what is only made once; the second captures. All calls take
    tensors of the same shapes and give a tensor, or a dataclass of tensors. What else the function uses must stay
    where it is in memory. Graphs captured on one `stream` share the workspace of their products, so those that may run
    at the same time must be captured on different ones; None is the stream that PyTorch keeps for it.
    """

    def __init__(self, function: Callable[..., Any], stream: torch.cuda.Stream | None = None):
        self._function, self._stream = function, stream
        self._warm = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        if not self._warm:
            self._warm = True
            torch.cuda.empty_cache()  # what a graph before this one held
            return self._function(*inputs)
        if self._graph is None:
            self._inputs = [x.clone() for x in inputs]
            torch.cuda.synchronize()  # no other work may be under way while a stream is captured
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._output = self._function(*self._inputs)
            self._graph = graph
        for mine, x in zip(self._inputs, inputs, strict=True):
            mine.copy_(x)
        self._graph.replay()
        if is_dataclass(self._output) and not isinstance(self._output, type):
            return replace(self._output, **{name: x.clone() for name, x in vars(self._output).items()})
        return self._output.clone()


class CapturedNetwork:
    """Stands in for a network of one input: a CUDA graph for each shape that comes again, which runs beside others."""

    def __init__(self, network: Any):
        self.config: Any = network.config
        self.get_dtype: Callable[[], torch.dtype] = network.get_dtype
        self._network = network
        self._stream = torch.cuda.Stream()
        self._by_shape: dict[torch.Size, Captured] = {}

    def __call__(self, x: Tensor) -> Any:
        return self._by_shape.setdefault(x.shape, Captured(self._network, self._stream))(x)


def can_capture(device: torch.device) -> bool:
    """Whether a CUDA graph can be trusted here: over cudaMallocAsync, which hosts choose, the window's graph ends in an
    illegal memory access (PyTorch 2.11), and AMD's have not been tried."""
    if torch.version.cuda is None or device.type != "cuda":
        return False
    return torch.cuda.get_allocator_backend() == "native"
