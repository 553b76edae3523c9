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

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sga.rates.geometry import Geometry, geometry_by_layer

Metric = Callable[[nn.Parameter], Tensor | None]

BUCKET = 1 << 22
"""Elements that are exchanged between processes in one message, unless a single parameter has more."""


class SplitGradients:
    """Holds g_f beside the parameters' own ``grad``, which is to hold ḡ_n, until they are combined.

    Args:
        named_parameters: Names and parameters of the model; those that need no gradient are left out.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        trainable = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        self.names = [name for name, _ in trainable]
        self.parameters = [parameter for _, parameter in trainable]
        self.forget: list[Tensor | None] = [None] * len(trainable)
        self._sums: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(trainable)
        self._own: dict[str, Geometry] = {}
        self._squares = 0.0

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

    def set_apart(self, group_size: int, share: float, metric: Metric | None = None) -> None:
        """Ends a micro-batch: notes the products of its own gradients, and adds these to the step's earlier ones.

        Between the first call and `restore` ``grad`` and g_f are those of one micro-batch.

        Args:
            group_size: Number K of samples in a group.
            share: Share of the micro-batch in the step's mean loss, with which its gradients are multiplied.
            metric: Metric as `geometry` takes it.
        """
        own = self.geometry(group_size, metric=metric)
        self._own = {layer: self._own[layer] + part for layer, part in own.items()} if self._own else own
        self._squares += share**2
        for index, parameter in enumerate(self.parameters):
            forget, normal = self._sums[index]
            self._sums[index] = _added(forget, self.forget[index]), _added(normal, parameter.grad)
            self.forget[index] = parameter.grad = None

    def restore(self) -> None:
        """Puts the sums of all micro-batches that were set apart into ``grad`` and g_f."""
        for index, parameter in enumerate(self.parameters):
            self.forget[index], parameter.grad = self._sums[index]
        self._sums = [(None, None)] * len(self.parameters)

    def without_noise(self, found: dict[str, Geometry], scale: float = 1.0) -> dict[str, Geometry]:
        """Products of different micro-batches alone, which share no noise, from the products of the sums.

        With micro-batches of shares w_i and gradients w_i·g_i, Σ_{i≠j} w_i·w_j·⟨g_i, g_j⟩ / Σ_{i≠j} w_i·w_j estimates
        the product of the expected gradients without bias. A step of one micro-batch stays as it is.

        Args:
            found: Products that `geometry` gives after `restore`.
            scale: Scale as `geometry` takes it.
        """
        pairs = 1 - self._squares
        if pairs < 1e-9:
            return found
        return {layer: (part - self._own[layer] * scale**-2) * (1 / pairs) for layer, part in found.items()}

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

    def geometry(self, group_size: int, scale: float = 1.0, metric: Metric | None = None) -> dict[str, Geometry]:
        """Inner products by layer.

        Of gradients in parts (FSDP2) each process takes its own part, and the products are added up.

        Args:
            group_size: Number K of samples in a group.
            scale: Factor that both gradients are multiplied with; divided out.
            metric: Function from a parameter to the diagonal of P in ⟨a, P·b⟩; None for the usual inner product.
        """
        found = geometry_by_layer(
            self.names,
            [_part(gradient) for gradient in self.forget],
            [_part(parameter.grad) for parameter in self.parameters],
            group_size,
            scale,
            None if metric is None else (_part(metric(parameter)) for parameter in self.parameters),
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


def _added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Sum of two gradients, in place; None stands for zero."""
    return more if total is None else total if more is None else total.add_(more)


def _part(gradient: Tensor | None) -> Tensor | None:
    """Part of a gradient that this process holds."""
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
