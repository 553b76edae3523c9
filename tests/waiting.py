"""Counts what a GPU would be given to do, and how often a CPU would wait for its result."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


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
