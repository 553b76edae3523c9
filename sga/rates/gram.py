"""Gram matrices of the gradients of a sample of groups, and the geometries that follow from them.

The sample is split into C chunks of groups. Inner products of all pairs of chunk gradients are kept, 3·C² numbers for
each layer, and no gradient is. From them follow, exactly and without the model, the geometry of the mean gradients over
the sample, its value without noise, and both for every bootstrap resample of the chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded
from sga.errors import UserError
from sga.evaluation.metrics import Floats
from sga.likelihood.forward import sequence_nll
from sga.rates.geometry import Geometry, gram_by_layer


@dataclass(frozen=True)
class Gram:
    """Inner products of chunk gradients over some parameters; those of disjoint parameters add up.

    Attributes:
        forget: Inner products ⟨g_f of chunk i, g_f of chunk j⟩, [C, C].
        normal: Inner products ⟨ḡ_n of chunk i, ḡ_n of chunk j⟩, [C, C].
        inner: Inner products ⟨ḡ_n of chunk i, g_f of chunk j⟩, [C, C].
        sizes: Number of groups of each chunk, whose mean gradients these are, [C].
        group_size: Number K of samples in a group.
    """

    forget: Floats
    normal: Floats
    inner: Floats
    sizes: Floats
    group_size: int

    def __add__(self, other: Gram) -> Gram:
        assert np.array_equal(self.sizes, other.sizes), "gradients of the same chunks"
        return Gram(
            self.forget + other.forget,
            self.normal + other.normal,
            self.inner + other.inner,
            self.sizes,
            self.group_size,
        )

    @property
    def groups(self) -> int:
        """Number of groups of the sample."""
        return int(self.sizes.sum())

    def geometry(self, groups: float) -> Geometry:
        """Inner products that the mean gradients over so many groups are expected to have.

        For the sample's own number of groups these are the inner products of its mean gradients, to the last digits;
        for ``inf`` they are free of noise: unbiased estimates of the expected gradients' products.
        """
        return self.resampled(np.ones((1, len(self.sizes))), groups)[0]

    def resampled(self, counts: Floats, groups: float) -> list[Geometry]:
        """`geometry` of resamples of the chunks.

        With weights w_i = count·size, the noise-free product is the mean over pairs of *different* chunks,

            U = Σ_{i≠j} w_i·w_j·G_ij / Σ_{i≠j} w_i·w_j,

        because noise of one chunk meets that of another nowhere but on the diagonal. The diagonal gives the noise of a
        single group, T = Σ_i count·size²·(G_ii − U) / Σ_i w_i, and B groups have U + T/B. Two copies of a chunk within
        a resample are no pair: they share their noise, which would count twice.

        Args:
            counts: Number of times that each chunk occurs, [R, C]; at least two different chunks in each resample.
            groups: Number of groups B; infinite for noise-free products.

        Returns:
            Geometries of the R resamples.
        """
        weights = counts * self.sizes  # [R, C]
        whole = weights.sum(axis=1)
        pairs = whole**2 - (weights**2).sum(axis=1)
        found = []
        for matrix in (self.forget, self.normal, self.inner):
            diagonal = np.diagonal(matrix)
            off = matrix - np.diag(diagonal)  # not subtracted from the sum afterwards, where digits would be lost
            noise_free = ((weights @ off) * weights).sum(axis=1) / pairs
            spread = (weights * self.sizes) @ diagonal - (weights @ self.sizes) * noise_free
            found.append(noise_free + spread / whole / groups)
        return [Geometry(float(f), float(n), float(c), self.group_size) for f, n, c in zip(*found, strict=True)]


def cut_into_chunks(count: int, chunks: int) -> list[range]:
    """Numbers 0 to count − 1 as so many ranges, whose lengths differ by at most one.

    >>> cut_into_chunks(5, 2)
    [range(0, 2), range(2, 5)]
    """
    edges = [count * number // chunks for number in range(chunks + 1)]
    return [range(low, high) for low, high in pairwise(edges)]


class ChunkGradients:
    """Mean gradients of chunks of groups in all trainable parameters, computed when asked for, not kept.

    Args:
        network: Causal language model in eval mode, whose weights and ``grad`` are left alone.
        chunks: Encoded groups of K sequences, by chunk.
        micro_batch_size: Greatest number of groups of a forward pass; None takes a chunk in one.
        forward_context: Context manager around forward passes, for autocast.
        pad_id: Token id that fills up short rows.

    Raises:
        UserError: nothing of the model is trainable.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        chunks: Sequence[Sequence[Sequence[Encoded]]],
        micro_batch_size: int | None,
        forward_context: Callable[[], AbstractContextManager[object]],
        pad_id: int = 0,
    ) -> None:
        trainable = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        if not trainable:
            raise UserError("the model has no trainable parameter, so there are no gradients to look at")
        self.names = [name for name, _ in trainable]
        self.parameters = [parameter for _, parameter in trainable]
        self.network, self.chunks, self.micro_batch_size = network, chunks, micro_batch_size
        self.forward_context, self.pad_id = forward_context, pad_id
        self.nll = np.full((len(chunks), 2), math.nan)
        """Losses ℓ_f and ℓ̄_n of each chunk whose gradients have been computed, [C, 2]."""

    @property
    def chunk_bytes(self) -> int:
        """Bytes that the two gradients of a chunk take."""
        return 2 * sum(parameter.nbytes for parameter in self.parameters)

    def rows(self, chunks: range) -> list[Tensor]:
        """Gradients of h chunks by parameter, [2·h, numel] each: first all g_f, then all ḡ_n."""
        held = [parameter.new_zeros(2 * len(chunks), parameter.numel()) for parameter in self.parameters]
        for row, number in enumerate(chunks):
            self.nll[number] = 0.0
            chunk = self.chunks[number]
            size = self.micro_batch_size or len(chunk)
            for start in range(0, len(chunk), size):
                part = chunk[start : start + size]
                batch: Batch = move_data_to_device(collate(part, pad_id=self.pad_id), self.parameters[0].device)
                share = len(part) / len(chunk)
                for side, half in enumerate((batch.forget_only(), batch.normals_only())):
                    gradients, nll = self._gradients(half)
                    self.nll[number, side] += share * nll
                    for rows, gradient in zip(held, gradients, strict=True):
                        if gradient is not None:
                            rows[row + side * len(chunks)].add_(gradient.flatten(), alpha=share)
        return held

    def _gradients(self, batch: Batch) -> tuple[tuple[Tensor | None, ...], float]:
        with self.forward_context():
            nll = sequence_nll(self.network, batch).mean()
        if not torch.isfinite(nll):
            raise UserError(
                f"the model's loss on the sampled groups is {nll.item()}: its weights are damaged or it has diverged; "
                "take an earlier checkpoint, or another --trainer.precision"
            )
        return torch.autograd.grad(nll, self.parameters, allow_unused=True), nll.item()


def gram_of_layers(gradients: ChunkGradients, group_size: int, held: int | None = None) -> dict[str, Gram]:
    """Gram matrices per layer.

    Memory: the gradients of all chunks, or with `held` those of twice as many chunks as it says, whatever their
    number; chunk gradients are computed again then for each further block, C·(C/held + 1)/2 in all instead of C.

    Args:
        gradients: Gradients of the sample's chunks.
        group_size: Number K of samples in a group.
        held: Number of chunks of a block; None for all of them.

    Raises:
        UserError: a gradient holds something that is no number.
    """
    count = len(gradients.chunks)
    held = min(held or count, count)
    blocks = [range(start, min(start + held, count)) for start in range(0, count, held)]
    whole: dict[str, Floats] = {}  # by layer [2, C, 2, C], the 2 being forget and normal
    work = tqdm(total=len(blocks) * (len(blocks) + 1) // 2, desc="gradients", unit="block", leave=False, disable=None)
    for first, block in enumerate(blocks):
        left = gradients.rows(block)
        for other in blocks[first:]:
            right = left if other is block else gradients.rows(other)
            here, there = slice(block.start, block.stop), slice(other.start, other.stop)
            for layer, product in gram_by_layer(gradients.names, left, right).items():
                part = product.view(2, len(block), 2, len(other)).numpy()  # [2·h, 2·h'] -> [2, h, 2, h']
                matrix = whole.setdefault(layer, np.zeros((2, count, 2, count)))
                matrix[:, here, :, there] = part
                matrix[:, there, :, here] = part.transpose(2, 3, 0, 1)
            work.update()
    work.close()
    if not all(np.isfinite(matrix).all() for matrix in whole.values()):
        raise UserError("a gradient is not a number: the weights are damaged, or the precision is too low for them")
    sizes = np.array([len(chunk) for chunk in gradients.chunks], dtype=np.float64)
    return {
        layer: Gram(matrix[0, :, 0], matrix[1, :, 1], matrix[1, :, 0], sizes, group_size)
        for layer, matrix in whole.items()
    }
