"""CUDA graphs on the CPU: operations are recorded with the tensors that they read and write, and replayed on these."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraph(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, Any]] = []
        self.memory = object()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, result))
        return result

    def pool(self) -> object:
        return self.memory

    def replay(self) -> None:
        for operation, args, kwargs, results in self.operations:
            again = operation(*args, **kwargs)
            for x, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(x, Tensor) and x.data_ptr() != new.data_ptr():  # neither a view nor in place
                    x.copy_(new)

    def reset(self) -> None:
        self.operations.clear()


def record_graphs(monkeypatch: pytest.MonkeyPatch) -> list[RecordedGraph]:
    """Replaces torch.cuda's graphs and streams by recordings on the CPU -> the graphs, as they are captured."""
    captured: list[RecordedGraph] = []

    @contextmanager
    def capture(graph: RecordedGraph, pool: object, **_) -> Iterator[None]:
        graph.memory = pool or graph.memory
        with graph:
            yield
        captured.append(graph)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    replacements = dict(
        CUDAGraph=RecordedGraph,
        graph=capture,
        Stream=lambda device: stream,
        current_stream=lambda: stream,
        stream=lambda stream: nullcontext(),
        device=lambda device: nullcontext(),
        synchronize=lambda: None,
        empty_cache=lambda: None,
        get_allocator_backend=lambda: "native",
    )
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    return captured
