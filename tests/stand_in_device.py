"""A stand-in for a GPU that can do less than NVIDIA's: it computes on the CPU, and refuses what one of them refuses."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("mps", 0)
SCORES = 300_000  # that attention may make at once; the tests have small pictures


class Refused(Exception):
    """What the device cannot do. No error that the program expects, so that nothing catches it."""


class DeviceTensor(Tensor):
    """A tensor on the device; `numbers` holds its numbers."""

    numbers: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor):
        tensor = Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), storage_offset=numbers.storage_offset(), dtype=numbers.dtype,
            device="meta",  # to PyTorch's own code, which has no other without a backend
        )  # fmt: skip
        tensor.numbers = numbers
        return tensor

    @property
    def device(self) -> torch.device:
        return DEVICE

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise Refused(f"{function} on the device's tensors outside of its mode")


class StandInDevice(TorchDispatchMode):
    """While it is entered, PyTorch has the device `DEVICE`.

    Args:
        bf16: Whether the device has bfloat16: GPUs before Ampere lack it.
    """

    def __init__(self, bf16: bool = True):
        super().__init__()
        self.bf16, self.calls = bf16, Counter[str]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, leaves = dict(kwargs or {}), []
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            with self:  # inference mode does not take it apart itself
                return function.decompose(*args, **kwargs)
        tree_map(lambda x: leaves.append(x) if isinstance(x, Tensor) else None, (args, kwargs))
        on_device = [x for x in leaves if isinstance(x, DeviceTensor)]
        target = kwargs.get("device")
        if target is not None and leaves and torch.device(target).type == "meta":
            target = DEVICE  # of one of the tensors, as PyTorch's own code sees it
        makes = bool(on_device) if target is None else torch.device(target).type == DEVICE.type
        name = function._overloadpacket.__name__
        if name == "_pin_memory" or kwargs.get("pin_memory"):
            raise Refused("there is no pinned memory without CUDA")
        if on_device or makes:
            self.calls[name] += 1
            self._check(function, name, args, kwargs, leaves, makes)
        if makes and target is not None:
            kwargs["device"] = torch.device("cpu")
        found = function(*tree_map(_unwrapped, args), **tree_map(_unwrapped, kwargs))
        if name in ("_local_scalar_dense", "equal", "is_same_size"):
            return found
        if not makes and target is None:
            return found
        written = {id(_unwrapped(x)): x for x in leaves}  # an operation in place gives back its own tensor

        def wrapped(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            with torch.inference_mode(False):  # whose tensors PyTorch could not mark as views of weights
                return written[id(x)] if id(x) in written else DeviceTensor(x) if makes else x

        return tree_map(wrapped, found)

    def _check(self, function: Any, name: str, args: tuple, kwargs: dict, leaves: list[Tensor], makes: bool) -> None:
        moves = name in ("_to_copy", "copy_")
        indices = name in ("index", "index_put_", "index_put", "_index_put_impl_")
        for x in leaves:
            if x.dtype.is_complex or x.dtype == torch.float64:
                raise Refused(f"{function} of {x.dtype}")
            if x.dtype == torch.bfloat16 and not self.bf16:
                raise Refused(f"{function} of {x.dtype}")
            if not (isinstance(x, DeviceTensor) or x.ndim == 0 or moves or indices):
                raise Refused(f"{function} of tensors on two devices")
        dtype = kwargs.get("dtype")
        if makes and (dtype in (torch.float64, torch.complex64) or (dtype == torch.bfloat16 and not self.bf16)):
            raise Refused(f"{function} to {dtype}")
        for refuses in REFUSALS:
            if refuses(name, args):
                raise Refused(f"{function} of {[tuple(x.shape) for x in leaves]}")


def _unwrapped(x: Any) -> Any:
    return x.numbers if isinstance(x, DeviceTensor) else x


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
def stand_in_device(**settings: bool) -> Iterator[StandInDevice]:
    """The device is there for as long as the context lasts."""
    torch._C._set_only_lift_cpu_tensors(True)  # so that the mode sees torch.tensor(..., device=...)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # whose `.data` would lose `numbers`
    try:
        with StandInDevice(**settings) as device:
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
