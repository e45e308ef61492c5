"""What keeps a CUDA GPU from waiting for the CPU."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass, replace
from functools import lru_cache
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
    at the same time must be captured on different ones; None is one that all others share.
    """

    def __init__(self, function: Callable[..., Any], stream: torch.cuda.Stream | None = None):
        self._function, self._stream = function, stream
        self._output: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        if self._output is None:
            self._output = self._run_once(inputs)
            return _each(Tensor.clone, self._output)
        if self._graph is None:
            self._inputs = [x.clone() for x in inputs]
            torch.cuda.synchronize()  # no other work may be under way while a stream is captured
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                _each(Tensor.copy_, self._output, self._function(*self._inputs))
            self._graph = graph
        for mine, x in zip(self._inputs, inputs, strict=True):
            mine.copy_(x)
        self._graph.replay()
        return _each(Tensor.clone, self._output)

    def _run_once(self, inputs: tuple[Tensor, ...]) -> Any:
        """On the stream of the capture, whose products then have their workspace: a capture must not allocate what
        outlives its graph."""
        torch.cuda.empty_cache()  # what a graph before this one held
        if self._stream is None:
            self._stream = _capture_stream(inputs[0].device)
        current = torch.cuda.current_stream(inputs[0].device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._function(*inputs)
        current.wait_stream(self._stream)
        return _each(Tensor.clone, result)

    def __del__(self) -> None:
        if self._graph is not None:
            self._graph.reset()
            _trim_graph_memory(self._inputs[0].device)


@lru_cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _each(function: Callable[..., Tensor], result: Any, *others: Any) -> Any:
    """Of a tensor, or of each field of a dataclass of tensors, and the same of others."""
    if not is_dataclass(result) or isinstance(result, type):
        return function(result, *others)
    fields = ((name, function(x, *(getattr(other, name) for other in others))) for name, x in vars(result).items())
    return replace(result, **dict(fields))


def _trim_graph_memory(device: torch.device) -> None:
    """What cudaMallocAsync keeps for graphs that are gone is nobody's else, and PyTorch has no way to give it back."""
    if torch.cuda.get_allocator_backend() == "cudaMallocAsync":
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        driver.cuDeviceGraphMemTrim(device.index)


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
    """Whether a CUDA graph can be trusted here: AMD's have not been tried."""
    return torch.version.cuda is not None and device.type == "cuda"
