"""The two gradients behind a smoothing rate, reduced to three inner products, and the rates that follow from them.

g_f is the gradient of the forget samples' mean nll, ḡ_n that of the normal samples', in all trainable parameters. Their
products suffice for every rule, because a rate moves the update in the plane of the two:

    ∇L_SGA(r) = −g_f − r·u,     u = (K−1)/K · (ḡ_n − g_f)

A rule is a function of a `Geometry` and gives None where its equation has no answer; clamping is left to the policies
of `sga.rates.policies`. docs/smoothing-rate.md derives them in one sign convention.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK = {"cpu": 1 << 18}
"""Elements that are widened to float64 at a time, by kind of device; elsewhere `LARGE_CHUNK`, for fewer launches."""
LARGE_CHUNK = 1 << 24
FEW_KERNELS = {"cuda"}
"""Kinds of device on which products are summed in float32, by few kernels."""


@dataclass(frozen=True)
class Geometry:
    """Inner products of g_f and ḡ_n over some parameters; those of disjoint parameters add up.

    Unbiased estimates of the squares may be negative where there is nothing but noise; the norm is 0 then.

    Attributes:
        forget_squared: Squared norm ‖g_f‖² of the forget gradient.
        normal_squared: Squared norm n = ‖ḡ_n‖².
        inner: Inner product c = ⟨ḡ_n, g_f⟩, positive where forgetting would hurt the normal data.
        group_size: Group size K, at least 2.
    """

    forget_squared: float
    normal_squared: float
    inner: float
    group_size: int

    def __add__(self, other: Geometry) -> Geometry:
        assert self.group_size == other.group_size, "gradients of the same groups"
        return Geometry(
            self.forget_squared + other.forget_squared,
            self.normal_squared + other.normal_squared,
            self.inner + other.inner,
            self.group_size,
        )

    def __mul__(self, factor: float) -> Geometry:
        return Geometry(
            self.forget_squared * factor, self.normal_squared * factor, self.inner * factor, self.group_size
        )

    def __sub__(self, other: Geometry) -> Geometry:
        return self + other * -1

    @property
    def finite(self) -> bool:
        """True if neither gradient holds NaN or infinity."""
        return math.isfinite(self.forget_squared + self.normal_squared + self.inner)

    @property
    def forget_norm(self) -> float:
        """Norm ‖g_f‖."""
        return 0.0 if self.forget_squared < 0 else math.sqrt(self.forget_squared)

    @property
    def normal_norm(self) -> float:
        """Norm ‖ḡ_n‖."""
        return 0.0 if self.normal_squared < 0 else math.sqrt(self.normal_squared)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between g_f and ḡ_n, in [−1, 1]; 0 where one of them is zero."""
        norms = self.forget_norm * self.normal_norm
        return max(-1.0, min(1.0, self.inner / norms)) if norms > 0 else 0.0

    @property
    def forget_dot_u(self) -> float:
        """Inner product ⟨g_f, u⟩ = (K−1)/K·(c − ‖g_f‖²); its sign is the paper's advice on the sign of r."""
        return self._share * (self.inner - self.forget_squared)

    @property
    def u_squared(self) -> float:
        """Squared norm ‖u‖² = ((K−1)/K)²·(n − 2c + ‖g_f‖²); at least 0."""
        return self._share**2 * max(0.0, self.normal_squared - 2 * self.inner + self.forget_squared)

    @property
    def _share(self) -> float:
        return (self.group_size - 1) / self.group_size


# ---- rules ----------------------------------------------------------------------------------------------------------


def paper_rate(geometry: Geometry) -> float | None:
    """The published optimal rate r* = ⟨g_f, u⟩/‖u‖²; None where u = 0.

    −1 exactly where all K gradients have equal norms and equal pairwise cosines, so that closeness to −1 says nothing.
    Source: Pang et al., arXiv 2510.22376, Eq. 9.

    >>> paper_rate(Geometry(forget_squared=1.0, normal_squared=1 / 3, inner=0.0, group_size=4))
    -1.0
    """
    return geometry.forget_dot_u / geometry.u_squared if geometry.u_squared > 0 else None


def min_norm_rate(geometry: Geometry) -> float | None:
    """The rate that truly minimises ‖∇L_SGA(r)‖: −⟨g_f, u⟩/‖u‖². May exceed 1; None where u = 0."""
    rate = paper_rate(geometry)
    return None if rate is None else -rate


def margin_rate(geometry: Geometry, margin: float) -> float | None:
    """The rate at which the normal loss falls, to first order, as in plain descent on it with weight m = `margin`.

    ⟨ḡ_n, ∇L_SGA⟩ = m·n gives ρ = −(c + m·n)/(n − c) and r = ρ·K/(K−1). None where c ≥ n: no r ≤ 0 meets the condition
    then; nor where an estimate of n is not positive. Positive where forgetting already helps the normal data by more
    than asked for.

    >>> round(margin_rate(Geometry(1.0, 1.0, 0.0, group_size=4), margin=0.6), 12)
    -0.8
    """
    c, n = geometry.inner, geometry.normal_squared
    if c >= n or n <= 0:
        return None
    return -(c + margin * n) / (n - c) / geometry._share


def margin_weight(geometry: Geometry, margin: float) -> float | None:
    """The weight λ = m + c/n at which −ℓ_f + λ·ℓ̄_n makes the normal loss fall as `margin_rate` asks for.

    λ of 1 and more is allowed, so there is a solution whenever n > 0; None where n = 0.

    >>> margin_weight(Geometry(1.0, 2.0, 3.0, group_size=4), margin=0.5)
    2.0
    """
    if geometry.normal_squared <= 0:
        return None
    return margin + geometry.inner / geometry.normal_squared


def norm_ratio(geometry: Geometry) -> float | None:
    """The weight λ = ‖g_f‖/‖ḡ_n‖ of normalised gradient difference; None where ḡ_n = 0, or for an estimated square < 0.

    −g_f + λ·ḡ_n is ‖g_f‖·(ḡ_n/‖ḡ_n‖ − g_f/‖g_f‖). To first order neither loss moves the wrong way, whatever the angle:
    ⟨ḡ_n, −g_f + λ·ḡ_n⟩ = ‖g_f‖·‖ḡ_n‖·(1 − cos) ≥ 0. Source: Bu et al., arXiv 2410.22086 (NGDiff).

    >>> norm_ratio(Geometry(9.0, 4.0, 0.0, group_size=4))
    1.5
    """
    if geometry.forget_squared < 0 or geometry.normal_squared <= 0:
        return None
    return geometry.forget_norm / geometry.normal_norm


# ---- from gradients -------------------------------------------------------------------------------------------------


def geometry_by_layer(
    names: Sequence[str],
    forget: Sequence[Tensor | None],
    normal: Sequence[Tensor | None],
    group_size: int,
    scale: float = 1.0,
    metric: Iterable[Tensor | None] | None = None,
) -> dict[str, Geometry]:
    """Inner products per layer, accumulated in float64; `total` makes them one.

    Args:
        names: Parameter names, as ``named_parameters`` gives them.
        forget: Gradient g_f by parameter; None stands for zero.
        normal: Gradient ḡ_n by parameter; None stands for zero.
        group_size: Number K of samples in a group.
        scale: Factor that both gradients are multiplied with (a gradient scaler's); divided out.
        metric: Diagonal P of an inner product ⟨a, P·b⟩ by parameter, None for ones; None as a whole is the usual one.
    """
    import torch  # not at the top: what is computed from inner products needs none of it

    layers = [layer_of(name) for name in names]
    pairs = list(zip(forget, normal, strict=True))
    some = next((part for pair in pairs for part in pair if part is not None), None)
    if metric is not None:
        # A parameter without gradients gives zeros on the CPU.
        place = "cpu" if some is None or some.device.type == "mps" else some.device
        products = torch.stack([_products(f, n, p).to(place) for (f, n), p in zip(pairs, metric, strict=True)])
    elif some is not None and some.device.type in FEW_KERNELS:
        products = _products_in_float32(pairs, some.device)
    else:
        products = torch.stack([_products(f, n) for f, n in pairs]) if pairs else torch.zeros(0, 3)
    found: dict[str, Geometry] = {}
    # One transfer from the device, not one per parameter.
    for layer, (f, n, c) in zip(layers, products.tolist(), strict=True):
        part = Geometry(f / scale**2, n / scale**2, c / scale**2, group_size)
        found[layer] = found[layer] + part if layer in found else part
    return found


def gram_by_layer(names: Sequence[str], rows: Sequence[Tensor], columns: Sequence[Tensor]) -> dict[str, Tensor]:
    """Inner products of many gradients with many others per layer, accumulated in float64.

    Args:
        names: Parameter names, as ``named_parameters`` gives them.
        rows: Gradients by parameter, [R, numel] each.
        columns: Gradients by parameter, [S, numel] each; may be `rows` itself.

    Returns:
        Matrix [R, S] of each layer, on the CPU.
    """
    found: dict[str, Tensor] = {}
    for name, left, right in zip(names, rows, columns, strict=True):
        layer, product = layer_of(name), _gram(left, right)
        found[layer] = found[layer] + product if layer in found else product
    return {layer: product.cpu() for layer, product in found.items()}


def total(geometries: Iterable[Geometry]) -> Geometry:
    """Geometry over all parameters from those of its parts, of which there is at least one."""
    first, *others = geometries
    for other in others:
        first = first + other
    return first


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to: its name up to the first number, or else its module's.

    >>> layer_of("model.layers.3.self_attn.q_proj.weight"), layer_of("model.embed_tokens.weight"), layer_of("weight")
    ('model.layers.3', 'model.embed_tokens', 'weight')
    """
    parts = parameter.split(".")
    for position, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return ".".join(parts[:-1]) or parameter


def _gram(rows: Tensor, columns: Tensor) -> Tensor:
    """rows · columnsᵀ of one parameter, [R, S]."""
    import torch

    device = rows.device
    wide = torch.float32 if device.type == "mps" else torch.float64  # as in _products
    sums = torch.zeros(len(rows), len(columns), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    size = max(1, CHUNK.get(device.type, LARGE_CHUNK) // (len(rows) + len(columns)))
    for start in range(0, rows.shape[1], size):
        left = rows[:, start : start + size].to(wide)
        right = left if columns is rows else columns[:, start : start + size].to(wide)
        sums += (left @ right.T).to(sums)
    return sums


def _products_in_float32(pairs: Sequence[tuple[Tensor | None, Tensor | None]], device: torch.device) -> Tensor:
    """`_products` of all parameters, [P, 3], with few kernels: summed in float32, and between parameters in float64.

    A GPU adds up in trees, so that a parameter's sum is off by some 1e-6 of ‖g_f‖·‖ḡ_n‖.
    """
    import torch

    zero = torch.zeros((), device=device)
    rows: list[list[Tensor]] = [[zero] * 3 for _ in pairs]
    with torch.no_grad():
        for side in range(2):
            held = [(index, part) for index, pair in enumerate(pairs) if (part := pair[side]) is not None]
            norms = torch._foreach_norm([part for _, part in held], 2, torch.float32) if held else ()
            for (index, _), norm in zip(held, norms, strict=True):
                rows[index][side] = norm
        for index, (f, n) in enumerate(pairs):
            if f is not None and n is not None:
                rows[index][2] = f.flatten().float().dot(n.flatten().float())
    found = torch.stack([value for row in rows for value in row]).double().view(-1, 3)  # [P*3] -> [P, 3]
    return torch.cat([found[:, :2].square(), found[:, 2:]], dim=1)


def _products(forget: Tensor | None, normal: Tensor | None, metric: Tensor | None = None) -> Tensor:
    """‖g_f‖², ‖ḡ_n‖² and ⟨ḡ_n, g_f⟩ of one parameter, [3]; of ⟨a, P·b⟩ where the diagonal of P is given."""
    import torch

    some = forget if forget is not None else normal
    if some is None:
        return torch.zeros(3, dtype=torch.float64)
    # Apple's GPUs have no float64; there chunks are summed in float32 and the chunks' sums on the CPU.
    wide = torch.float32 if some.device.type == "mps" else torch.float64
    empty = torch.zeros((), dtype=wide, device=some.device)
    sums = torch.zeros(3, dtype=torch.float64, device="cpu" if some.device.type == "mps" else some.device)
    size = CHUNK.get(some.device.type, LARGE_CHUNK)
    for start in range(0, some.numel(), size):
        f, n = (
            gradient.detach().flatten()[start : start + size].to(wide) if gradient is not None else None
            for gradient in (forget, normal)
        )
        p = metric.flatten()[start : start + size].to(wide) if metric is not None else 1.0
        sums += torch.stack(
            [
                f.dot(p * f) if f is not None else empty,
                n.dot(p * n) if n is not None else empty,
                f.dot(p * n) if f is not None and n is not None else empty,
            ]
        ).to(sums)
    return sums
