"""Counts what a GPU would be given to do, and how often a CPU would wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counter(TorchDispatchMode):
    """Counts operators, and those whose result a CPU has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.waits = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        name = str(func)
        masks = name == "aten.index.Tensor" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masks or name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique")):
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


_READ = {"item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "__bool__", "__float__", "__int__", "__index__"}
"""Functions of a tensor whose result a CPU waits for."""
_MADE = {"tensor", "as_tensor"}
"""Functions that make a tensor of numbers; on a GPU they wait until these have been copied."""


GPU = torch.device("cpu", 0)
"""Name of the pretended GPU; tensors of the CPU itself are on ``cpu``, without a number."""


class Pretence(TorchFunctionMode):
    """Takes given tensors, and all that is computed from them or made on `GPU`, for tensors on a GPU.

    Reading them makes a CPU wait, and so does every copy to the GPU that is not ``non_blocking``. Reading the CPU's own
    tensors takes no time.

    Attributes:
        waits: Name of the function of each wait, in order.
    """

    def __init__(self, *there: Tensor) -> None:
        super().__init__()
        self.waits: list[str] = []
        _mark(there)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = [hasattr(tensor, "on_gpu") for tensor in _tensors((args, kwargs))]
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return GPU if there[0] else func(*args)
        name = func.__name__
        named = GPU in [value for value in (*args, *kwargs.values()) if isinstance(value, torch.device)]
        sent = named if name in _MADE else name == "to" and not there[0] and (named or any(there))
        masked = name == "__getitem__" and any(part.dtype == torch.bool for part in _tensors(args[1:]))
        read = any(there) and (masked or name in _READ)
        if read or (sent and not kwargs.get("non_blocking")):
            self.waits.append(name)
        found = func(*args, **kwargs)
        if any(there) or named:
            _mark(found)
        return found


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))


def _mark(values: Any) -> None:
    for tensor in _tensors(values):
        tensor.on_gpu = True  # type: ignore[attr-defined]


class WholeSteps(pl.Callback):
    """Counts the operators and waits of whole batches, from the start of one to the start of the next.

    Attributes:
        last: The latest callback of this class.
        operators: Number of operators of each batch.
        waits: Names of the waits of each batch.
    """

    last: WholeSteps

    def __init__(self) -> None:
        WholeSteps.last = self
        self.operators: list[int] = []
        self.waits: list[list[str]] = []
        self._counting = ExitStack()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        self._end()
        pl_module._device = GPU
        self._counter = Counter()
        self._pretence = Pretence(*pl_module.parameters(), *pl_module.buffers(), *_tensors(list(vars(batch).values())))
        self._counting.enter_context(self._pretence)
        self._counting.enter_context(self._counter)

    def _end(self) -> None:
        self._counting.close()
        if hasattr(self, "_counter"):
            self.operators.append(self._counter.operators)
            self.waits.append(self._pretence.waits)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()
