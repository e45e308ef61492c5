"""Pinned copies, streams and CUDA graphs: what keeps a GPU from waiting for the CPU."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError

Result = TypeVar("Result", covariant=True)
_capture_lock = Lock()  # PyTorch allows one capture at a time, and no emptying of its cache during one


class Started(Protocol[Result]):
    """Work that is under way."""

    def result(self) -> Result:
        """Waits for the work."""

    def done(self) -> bool:
        """Whether `result` would not wait."""


class PinnedCopy:
    """A copy from a GPU to the CPU, from CUDA to pinned memory and started on the current stream. A tensor on the CPU
    stays as it is."""

    def __init__(self, x: Tensor):
        self._event = None
        if x.is_cuda:
            self._copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._copy.copy_(x, non_blocking=True)
            self._event = torch.cuda.current_stream(x.device).record_event()
        else:
            self._copy = x.cpu()

    def result(self) -> Tensor:
        """Waits until the copy is complete, and returns it."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy

    def done(self) -> bool:
        """Whether the copy is complete."""
        return self._event is None or self._event.query()


class DecodedFrames:
    """Decoded frames on their way to the CPU, as bytes.

    Args:
        frames: (F, H, W, 3), in [0, 1] but for what is to be clamped.
    """

    def __init__(self, frames: Tensor):
        self._is_finite = PinnedCopy(frames.isfinite().all())  # goes along, so that the GPU is not waited for
        self._pictures = PinnedCopy((frames.float().clamp(0, 1) * 255).round().byte().contiguous())

    def result(self) -> np.ndarray:
        """Waits until the copy is complete.

        Returns:
            uint8 (F, H, W, 3).

        Raises:
            InputError: A number is not finite, because half precision overflowed.
        """
        if not self._is_finite.result():
            raise InputError(
                "the decoded video holds numbers that are not finite (NaN): choose another precision, bf16 or fp32."
            )
        return self._pictures.result().numpy()

    def done(self) -> bool:
        """Whether the copy is complete."""
        return self._pictures.done()


def one_behind(started: Iterable[Started[Result]]) -> Iterator[Result]:
    """Yields each result only after the next piece of work has been started, so the GPU never runs dry.

    Args:
        started: Starts a piece of work each time it is asked for the next.
    """
    previous = None
    for work in started:
        if previous is not None:
            yield previous.result()
        previous = work
    if previous is not None:
        yield previous.result()


URGENT = -1  # the priority of a stream whose small kernels go before the large ones of others


def side_stream(device: torch.device, priority: int = 0) -> torch.cuda.Stream | None:
    """A stream for work that other streams need not wait for; None where the device has no streams."""
    return torch.cuda.Stream(device, priority) if device.type == "cuda" else None


def on_stream(stream: torch.cuda.Stream | None):
    """A context manager: GPU work goes to this stream, or where it went before if None."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


@contextmanager
def on_stream_after(stream: torch.cuda.Stream | None, tensor: Tensor) -> Iterator[None]:
    """`on_stream` for work that begins with `tensor`, made on the stream that is left."""
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        tensor.record_stream(stream)
    with on_stream(stream):
        yield


def on_device(device: torch.device):
    """A context manager: what goes to PyTorch's current GPU goes to this one, if it is a GPU of CUDA."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def waiting_bytes(device: torch.device, *networks: nn.Module) -> int:
    """The size of the weights that are not on this device."""
    weights = (x for network in networks for x in (*network.parameters(), *network.buffers()))
    return sum(x.nbytes for x in weights if x.device != device)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a CUDA device, after PyTorch's cache has been emptied; 0 on other devices."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()  # of what stays reserved, graphs hold the most, and nothing else can use it
    return torch.cuda.mem_get_info(device)[0]


def usable_memory(device: torch.device, gigabytes: float | None = None) -> int:
    """Bytes that this process can still take on a CUDA device, of so many (10^9 bytes) in all; None sets no limit."""
    free = free_memory(device)
    if gigabytes is None:
        return free
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1e9 * gigabytes / total), device)
    return min(free, int(1e9 * gigabytes) - torch.cuda.memory_reserved(device))


@contextmanager
def onload(device: torch.device, *networks: nn.Module) -> Iterator[None]:
    """Keeps networks that wait on the CPU on the device for as long as the context lasts.

    Their CPU weights are kept, not copied back. If moving them fails, nothing stays on the device. Networks that are
    already there stay there.
    """
    networks = tuple(network for network in networks if waiting_bytes(device, network))
    offloaded = [
        (module, name, x, x.data)
        for network in networks
        for module in network.modules()
        for name, x in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    ]
    try:
        with torch.inference_mode(False):  # weights must stay ordinary tensors
            for network in networks:
                network.to(device)
        yield
    finally:
        with torch.inference_mode(False):
            for module, name, x, data in offloaded:
                x.data = data
                setattr(module, name, x)  # `to` may have put another in its place


class GraphedFunctions:
    """Functions of the same CUDA tensors, each as a CUDA graph: the CPU launches it whole instead of kernel by kernel.

    The first call runs all functions as they are, so that they can allocate what they keep. After it, each is captured
    when it is first called. The graphs share their inputs and their memory, so only one may run at a time.

    Args:
        functions: Take tensors and return a tensor or a dataclass of tensors. All calls must have the same shapes, and
            whatever else they use must stay at the same addresses. The last takes the most memory.
        stream: Where to capture. Graphs captured on one stream share a cuBLAS workspace, so those that may run at the
            same time need different streams. None takes one stream per device, shared by all.
    """

    def __init__(self, *functions: Callable[..., Any], stream: torch.cuda.Stream | None = None):
        self._functions, self._stream = functions, stream
        self._inputs: list[Tensor] = []
        self._output: Any = None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def __call__(self, *inputs: Tensor, index: int = 0) -> Any:
        """Runs the function of this index."""
        with torch.cuda.device(inputs[0].device):
            if self._output is None:
                self._warm_up(inputs, index)
            else:
                self._replay(inputs, index)
            return _map(Tensor.clone, self._output)

    def reset(self) -> None:
        """Drops the graphs, because something that they use has moved. The next calls capture again."""
        if self._graphs:
            for graph in self._graphs.values():
                graph.reset()
            self._graphs.clear()
            _trim_graph_memory(self._inputs[0].device)

    def _warm_up(self, inputs: tuple[Tensor, ...], index: int) -> None:
        """Runs on the capture's stream, so cuBLAS allocates its workspace now: a capture must not allocate what
        outlives its graph."""
        with _capture_lock:
            torch.cuda.empty_cache()  # what an earlier graph held
            if self._stream is None:
                self._stream = _capture_stream(inputs[0].device)
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                results = [_map(Tensor.clone, function(*inputs)) for function in reversed(self._functions)]
            current.wait_stream(self._stream)
        self._inputs = [x.clone() for x in inputs]
        self._output = _map(Tensor.clone, results[-1 - index])

    def _replay(self, inputs: tuple[Tensor, ...], index: int) -> None:
        for i in (len(self._functions) - 1, index):  # first the one that takes the most memory: the others fit into it
            if i not in self._graphs:
                self._graphs[i] = self._capture(self._functions[i])
        for static, x in zip(self._inputs, inputs, strict=True):
            static.copy_(x)
        self._graphs[index].replay()

    def _capture(self, function: Callable[..., Any]) -> torch.cuda.CUDAGraph:
        """The graph copies its result out of its memory, which the other graphs overwrite."""
        pool = next((graph.pool() for graph in self._graphs.values()), None)
        graph = torch.cuda.CUDAGraph()
        with _capture_lock:
            torch.cuda.synchronize()  # no other work may be under way during a capture
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                _map(Tensor.copy_, self._output, function(*self._inputs))
        return graph

    def __del__(self) -> None:
        self.reset()


@lru_cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _map(function: Callable[..., Tensor], result: Any, *others: Any) -> Any:
    """Applies a function to a tensor, or to each field of a dataclass of tensors, together with those of others."""
    if not is_dataclass(result) or isinstance(result, type):
        return function(result, *others)
    fields = ((name, function(x, *(getattr(other, name) for other in others))) for name, x in vars(result).items())
    return replace(result, **dict(fields))


def _trim_graph_memory(device: torch.device) -> None:
    """cudaMallocAsync keeps the memory of deleted graphs from all other use, and PyTorch cannot give it back."""
    if torch.cuda.get_allocator_backend() == "cudaMallocAsync":
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        driver.cuDeviceGraphMemTrim(device.index)


class GraphedNetwork:
    """Stands in for a small network with one input: one CUDA graph per input shape, on an urgent stream of its own.

    Args:
        network: Already on its CUDA device, where it must stay. Has `config` and `get_dtype()`.
    """

    def __init__(self, network: Any):
        self.config: Any = network.config
        self.get_dtype: Callable[[], torch.dtype] = network.get_dtype
        self._network = network
        self._stream = torch.cuda.Stream(next(network.parameters()).device, URGENT)
        self._by_shape: dict[torch.Size, GraphedFunctions] = {}

    def __call__(self, x: Tensor) -> Any:
        return self._by_shape.setdefault(x.shape, GraphedFunctions(self._network, stream=self._stream))(x)


def can_capture(device: torch.device) -> bool:
    """Whether CUDA graphs can be relied on: on NVIDIA GPUs, as AMD's are untested."""
    return torch.version.cuda is not None and device.type == "cuda"
