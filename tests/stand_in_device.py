"""Stand-ins for GPUs that compute on the CPU: one that refuses what Apple's, Intel's, AMD's and old NVIDIA GPUs refuse,
and the second of two NVIDIA GPUs, which notices whatever goes to the first."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MPS, SECOND = torch.device("mps", 0), torch.device("cuda", 1)
SCORES = 300_000  # that attention may make at once; the tests have small pictures


class Refused(Exception):
    """What the device cannot do. No error that the program expects, so that nothing catches it."""


class DeviceTensor(Tensor):
    """A tensor on the device; `numbers` holds its numbers."""

    numbers: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor, device: torch.device):
        tensor = Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), storage_offset=numbers.storage_offset(), dtype=numbers.dtype,
            device="meta",  # to PyTorch's own code, which has no other without a backend
        )  # fmt: skip
        tensor.numbers, tensor._device = numbers, device
        return tensor

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def is_cuda(self) -> bool:
        return self._device.type == "cuda"

    def get_device(self) -> int:
        return self._device.index

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def record_stream(self, stream: "Stream") -> None:
        assert stream.device == self._device

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise Refused(f"{function} on the device's tensors outside of its mode")


class StandInDevice(TorchDispatchMode):
    """While it is entered, PyTorch has this device.

    Args:
        device: Which; one of CUDA's refuses nothing but tensors of other devices.
        bf16: Whether the other has bfloat16: GPUs before Ampere lack it.
    """

    def __init__(self, device: torch.device, bf16: bool = True):
        super().__init__()
        self.device, self.bf16, self.calls = device, bf16, Counter[str]()
        self.captured: list[Callable[[], None]] | None = None  # by the CUDA graph of the moment

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, leaves = dict(kwargs or {}), []
        if _is_composite(function):
            with self:  # inference mode does not take it apart itself
                return function.decompose(*args, **kwargs)
        _mapped(lambda x: leaves.append(x) if isinstance(x, Tensor) else None, (args, kwargs))
        on_device = [x for x in leaves if isinstance(x, DeviceTensor)]
        target = kwargs.get("device")
        if target is not None and leaves and torch.device(target).type == "meta":
            target = self.device  # of one of the tensors, as PyTorch's own code sees it
        makes = bool(on_device) if target is None else torch.device(target).type == self.device.type
        name = function._overloadpacket.__name__
        if name == "_pin_memory" or kwargs.pop("pin_memory", False):
            if self.device.type != "cuda":
                raise Refused("there is no pinned memory without CUDA")
            if name == "_pin_memory":
                return args[0].clone()
        if on_device or makes:
            self.calls[name] += 1
            self._check(function, name, args, kwargs, leaves, makes)
        if makes and target is not None:
            assert torch.device(target).index in (None, self.device.index), f"{function} on {target}"
            kwargs["device"] = torch.device("cpu")
        args_there, kwargs_there = _mapped(_unwrapped, args), _mapped(_unwrapped, kwargs)
        found = function(*args_there, **kwargs_there)
        if self.captured is not None:
            assert name != "_local_scalar_dense", "a capture cannot wait for a number"
            self.captured.append(lambda: _again(function, args_there, kwargs_there, found))
        if not makes and target is None:
            return found
        written = {id(_unwrapped(x)): x for x in leaves}  # an operation in place gives back its own tensor

        def wrapped(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            with torch.inference_mode(False):  # whose tensors PyTorch could not mark as views of weights
                return written[id(x)] if id(x) in written else DeviceTensor(x, self.device) if makes else x

        return _mapped(wrapped, found)

    def _check(self, function: Any, name: str, args: tuple, kwargs: dict, leaves: list[Tensor], makes: bool) -> None:
        moves = name in ("_to_copy", "copy_")
        indices = name in ("index", "index_put_", "index_put", "_index_put_impl_")
        for x in leaves:
            if not (isinstance(x, DeviceTensor) or x.ndim == 0 or moves or indices):
                raise Refused(f"{function} of tensors on two devices")
        if self.device.type == "cuda":
            return
        for dtype in (*(x.dtype for x in leaves), kwargs.get("dtype") if makes else None):
            refused = (torch.float64, torch.complex64, torch.complex128, *(() if self.bf16 else (torch.bfloat16,)))
            if dtype in refused:
                raise Refused(f"{function} of {dtype}")
        for refuses in REFUSALS:
            if refuses(name, args):
                raise Refused(f"{function} of {[tuple(x.shape) for x in leaves]}")


@cache
def _is_composite(function: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")


def _mapped(change: Callable[[Any], Any], x: Any) -> Any:
    """Applies a function to all that arguments or results hold."""
    if isinstance(x, dict):
        return {key: _mapped(change, value) for key, value in x.items()}
    return type(x)(_mapped(change, y) for y in x) if type(x) in (tuple, list) else change(x)


def _unwrapped(x: Any) -> Any:
    return x.numbers if isinstance(x, DeviceTensor) else x


def _again(function: Any, args: tuple, kwargs: dict, found: Any) -> None:
    """Does what a graph captured, into the same memory."""
    new = function(*args, **kwargs)
    pairs = zip(found, new, strict=True) if isinstance(found, (tuple, list)) else [(found, new)]
    for old, x in pairs:
        if isinstance(x, Tensor) and x.data_ptr() != old.data_ptr():
            old.copy_(x)


def _pools_unevenly(name: str, args: tuple) -> bool:
    """What "area" interpolation is made of; MPS has it where one size divides the other."""
    if "adaptive_avg_pool" not in name:
        return False
    return any(max(a, b) % min(a, b) for a, b in zip(args[0].shape[-2:], args[1], strict=True))


def _accumulates_integers(name: str, args: tuple) -> bool:
    return name in ("cumsum", "cumprod") and not args[0].is_floating_point()


REFUSALS: list[Callable[[str, tuple], bool]] = [
    _pools_unevenly,
    _accumulates_integers,
    lambda name, args: name.endswith("_aa"),  # resampling with antialias
    lambda name, args: name.startswith(("grid_sampler", "_fft", "fft", "linalg_eig", "linalg_svd", "cummax", "cummin")),
    lambda name, args: "adaptive_max_pool" in name or "pool3d" in name or name == "upsample_nearest3d",
    lambda name, args: "softmax" in name and len(args[0]) > 1 and args[0].numel() > SCORES,
]


@contextmanager
def stand_in_device(device: torch.device = MPS, bf16: bool = True) -> Iterator[StandInDevice]:
    """The device is there for as long as the context lasts."""
    torch._C._set_only_lift_cpu_tensors(True)  # so that the mode sees torch.tensor(..., device=...)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # whose `.data` would lose `numbers`
    try:
        with StandInDevice(device, bf16) as mode:
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(False)


class Stream:
    def __init__(self, device: torch.device | str | int, priority: int = 0):
        self.device, self.priority = torch.device(device), priority

    def wait_stream(self, other: "Stream") -> None:
        assert other.device == self.device

    def record_event(self) -> "Event":
        event = Event()
        event.record(self)
        return event


class Event:
    def __init__(self, **_):
        self.device: torch.device | None = None

    def record(self, stream: Stream) -> None:
        self.device = stream.device

    def synchronize(self) -> None:
        assert self.device == SECOND

    def query(self) -> bool:
        return self.device == SECOND


class TwoGPUs:
    """PyTorch's `torch.cuda` with two GPUs, of which the first is the current one and must not be used.

    Attributes:
        index: Of the current GPU, which a library that launches by itself would use: Triton, for one.
        log: What was done, and on which GPU.
    """

    def __init__(self, mode: StandInDevice, patch: pytest.MonkeyPatch):
        self._mode, self.index, self.log = mode, 0, Counter[tuple[str, int]]()
        self._streams = {0: Stream("cuda:0"), 1: Stream(SECOND)}
        two = self
        properties = SimpleNamespace(name="Stand-in", major=7, minor=5, total_memory=2**34)

        class CUDAGraph:
            def __init__(self):
                self.operations: list[Callable[[], None]] = []

            def pool(self) -> tuple[int, int]:
                return 0, 1

            def replay(self) -> None:
                two.note("replay")
                for operation in self.operations:
                    operation()

            def reset(self) -> None:
                two.log["reset", 1] += 1

        @contextmanager
        def graph(made: CUDAGraph, pool=None, stream: Stream | None = None, capture_error_mode: str = "") -> Iterator:
            two.note("capture", stream.device.index)
            assert two.index == 1
            mode.captured = made.operations
            with two.stream(stream):
                yield
            mode.captured = None

        def noted(name: str, result: Any = None) -> Callable[..., Any]:
            def call(device: Any = None, *_: Any) -> Any:
                two.note(name, two.index if device is None else torch.device(device).index)
                return result

            return call

        for name, value in dict(
            is_available=lambda: True,
            _lazy_init=lambda: None,
            device_count=lambda: 2,
            current_device=lambda: two.index,
            device=two.device,
            device_of=lambda x: two.device(x.device),
            stream=two.stream,
            current_stream=two.current_stream,
            Stream=Stream,
            Event=Event,
            CUDAGraph=CUDAGraph,
            graph=graph,
            synchronize=noted("synchronize"),
            empty_cache=lambda: None,
            mem_get_info=noted("mem_get_info", (2**34, 2**34)),
            max_memory_reserved=noted("max_memory_reserved", 3 * 2**30),
            memory_reserved=noted("memory_reserved", 2**30),
            get_device_properties=noted("get_device_properties", properties),
            get_device_capability=noted("get_device_capability", (7, 5)),
            get_device_name=noted("get_device_name", "Stand-in"),
            get_allocator_backend=lambda: "native",
        ).items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.version, "cuda", "13.0")

    def note(self, what: str, index: int | None = None) -> None:
        index = self.index if index is None else index
        assert index == 1, f"{what} on the first GPU"
        self.log[what, index] += 1

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before, self.index = self.index, device if isinstance(device, int) else torch.device(device).index
        try:
            yield
        finally:
            self.index = before

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        index = stream.device.index
        before, self._streams[index] = self._streams[index], stream
        try:
            with self.device(stream.device):
                yield
        finally:
            self._streams[index] = before

    def current_stream(self, device: Any = None) -> Stream:
        return self._streams[self.index if device is None else torch.device(device).index]
