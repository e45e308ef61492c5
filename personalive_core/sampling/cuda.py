"""Pinned copies, streams and CUDA graphs: what keeps a GPU from waiting for the CPU."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError

Result = TypeVar("Result", covariant=True)


class Started(Protocol[Result]):
    """Work that is under way."""

    def result(self) -> Result:
        """Waits for the work."""


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


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for work that other streams need not wait for; None where the device has no streams."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def on_stream(stream: torch.cuda.Stream | None):
    """A context manager: GPU work goes to this stream, or where it went before if None."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


@contextmanager
def onload(device: torch.device, *networks: nn.Module) -> Iterator[None]:
    """Keeps networks that wait on the CPU on the device for as long as the context lasts.

    Their CPU weights are kept, not copied back. If moving them fails, nothing stays on the device.
    """
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


class GraphedFunction:
    """A function of CUDA tensors as one CUDA graph: the CPU launches it whole instead of kernel by kernel.

    The first call runs the function as it is, so that it can allocate what it keeps; the second captures it.

    Args:
        function: Takes tensors and returns a tensor or a dataclass of tensors. All calls must have the same shapes, and
            whatever else it uses must stay at the same addresses.
        stream: Where to capture. Graphs captured on one stream share a cuBLAS workspace, so those that may run at the
            same time need different streams. None takes one stream per device, shared by all.
    """

    def __init__(self, function: Callable[..., Any], stream: torch.cuda.Stream | None = None):
        self._function, self._stream = function, stream
        self._output: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.cuda.device(inputs[0].device):
            if self._output is None:
                self._output = self._run_once(inputs)
            else:
                self._replay(inputs)
            return _map(Tensor.clone, self._output)

    def _run_once(self, inputs: tuple[Tensor, ...]) -> Any:
        """Runs on the capture's stream, so cuBLAS allocates its workspace now: a capture must not allocate what
        outlives its graph."""
        torch.cuda.empty_cache()  # what an earlier graph held
        if self._stream is None:
            self._stream = _capture_stream(inputs[0].device)
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._function(*inputs)
        current.wait_stream(self._stream)
        return _map(Tensor.clone, result)

    def _replay(self, inputs: tuple[Tensor, ...]) -> None:
        if self._graph is None:
            self._inputs = [x.clone() for x in inputs]
            torch.cuda.synchronize()  # no other work may be under way during a capture
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                _map(Tensor.copy_, self._output, self._function(*self._inputs))
            self._graph = graph
        for static, x in zip(self._inputs, inputs, strict=True):
            static.copy_(x)
        self._graph.replay()

    def __del__(self) -> None:
        if self._graph is not None:
            self._graph.reset()
            _trim_graph_memory(self._inputs[0].device)


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
    """Stands in for a network with one input: one CUDA graph per input shape, on a stream of its own.

    Args:
        network: Already on its CUDA device, where it must stay. Has `config` and `get_dtype()`.
    """

    def __init__(self, network: Any):
        self.config: Any = network.config
        self.get_dtype: Callable[[], torch.dtype] = network.get_dtype
        self._network = network
        self._stream = torch.cuda.Stream(next(network.parameters()).device)
        self._by_shape: dict[torch.Size, GraphedFunction] = {}

    def __call__(self, x: Tensor) -> Any:
        return self._by_shape.setdefault(x.shape, GraphedFunction(self._network, self._stream))(x)


def can_capture(device: torch.device) -> bool:
    """Whether CUDA graphs can be relied on: on NVIDIA GPUs, as AMD's are untested."""
    return torch.version.cuda is not None and device.type == "cuda"
