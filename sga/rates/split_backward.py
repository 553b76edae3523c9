"""A backward pass in two parts: the gradient of the forget samples beside that of the normal samples.

The two passes together do the arithmetic of one pass over all samples; what is added is one copy of the trainable
gradients. Adding them up with the weights of a loss gives the gradient of that loss, to rounding::

    split = SplitGradients(model.named_parameters())
    with split.forget_part():
        forget_nll.mean().backward()
    normal_nll.mean().backward()
    geometry = total(split.geometry(group_size).values())
    split.combine(*loss.weights(group_size, rate))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sga.rates.geometry import Geometry, geometry_by_layer

BUCKET = 1 << 22
"""Elements that are exchanged between processes in one message, unless a single parameter has more."""


class SplitGradients:
    """Holds g_f beside the parameters' own ``grad``, which is to hold ḡ_n, until they are combined.

    Args:
        named_parameters: Those of the model; the ones that need no gradient are left out.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        trainable = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        self.names = [name for name, _ in trainable]
        self.parameters = [parameter for _, parameter in trainable]
        self.forget: list[Tensor | None] = [None] * len(trainable)

    @contextmanager
    def forget_part(self) -> Iterator[None]:
        """Within it, backward passes add to g_f and leave ``grad`` alone."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for index, parameter in enumerate(self.parameters):
            parameter.grad, self.forget[index] = self.forget[index], parameter.grad

    def average(self) -> None:
        """Averages g_f over the processes of the default group, as DistributedDataParallel does with ``grad``."""
        world_size = torch.distributed.get_world_size()
        gradients = []
        for index, parameter in enumerate(self.parameters):
            gradient = self.forget[index]
            if gradient is None:  # every process sends as much as the others
                gradient = self.forget[index] = torch.zeros_like(parameter)
            gradients.append(gradient)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            sizes = [gradient.numel() for gradient in bucket]
            torch.distributed.all_reduce(flat)
            flat /= world_size
            for gradient, part in zip(bucket, torch.split(flat, sizes), strict=True):
                gradient.copy_(part.view_as(gradient))

    def geometry(self, group_size: int, scale: float = 1.0) -> dict[str, Geometry]:
        """Inner products by layer; both gradients stand as they are multiplied with `scale`, which is divided out.

        Of gradients in parts (FSDP2) each process takes its own part, and the products are added up.
        """
        found = geometry_by_layer(
            self.names,
            [_part(gradient) for gradient in self.forget],
            [_part(parameter.grad) for parameter in self.parameters],
            group_size,
            scale,
        )
        in_parts = any(isinstance(parameter, DTensor) for parameter in self.parameters)
        return _added_up(found, self.parameters[0].device) if in_parts else found

    @torch.no_grad()
    def combine(self, forget_weight: float, normal_weight: float) -> None:
        """Makes ``grad`` = forget_weight·g_f + normal_weight·ḡ_n, in place, and lets go of g_f."""
        forget, self.forget = self.forget, [None] * len(self.forget)
        held = [(p.grad, f) for p, f in zip(self.parameters, forget, strict=True) if p.grad is not None]
        if held:
            torch._foreach_mul_([gradient for gradient, _ in held], normal_weight)
        if both := [(gradient, f) for gradient, f in held if f is not None]:
            torch._foreach_add_([gradient for gradient, _ in both], [f for _, f in both], alpha=forget_weight)
        for parameter, one in zip(self.parameters, forget, strict=True):
            if parameter.grad is None and one is not None:
                parameter.grad = one.mul_(forget_weight)


def _part(gradient: Tensor | None) -> Tensor | None:
    """What this process has of a gradient."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _added_up(geometries: dict[str, Geometry], device: torch.device) -> dict[str, Geometry]:
    """The sum over the processes of the default group, by layer; all have the same layers."""
    products = [[part.forget_squared, part.normal_squared, part.inner] for part in geometries.values()]
    sums = torch.tensor(products, dtype=torch.float64, device=device)  # [layers, 3]
    torch.distributed.all_reduce(sums)
    return {
        layer: replace(geometries[layer], forget_squared=forget, normal_squared=normal, inner=inner)
        for layer, (forget, normal, inner) in zip(geometries, sums.tolist(), strict=True)
    }


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, together at most `BUCKET` elements."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.numel() > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket
