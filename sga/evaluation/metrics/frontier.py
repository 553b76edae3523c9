"""The frontier area (normalised hypervolume indicator): quality of the trade-offs that a run passes through."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sga.errors import UserError


def frontier_area(points: Iterable[tuple[float, float]], floor: float = -12.0) -> float:
    """The forgetting-utility trade-off of one run in one number: the area below its best points.

    Area of the union of the rectangles ``[floor, max(log10_fq, floor)] x [0, model_utility]``, divided by ``-floor``.
    The hypervolume indicator with reference point (`floor`, 0), normalised; its use here is this package's own. In
    [0, 1], higher is better. One run, one area: never a union over runs; compare at the same forget set, evaluation
    steps and number of forget passes.

    >>> frontier_area([(-6.0, 1.0), (0.0, 0.5)])  # (6·1 + 6·0.5) / 12
    0.75

    Args:
        points: Pairs (log10 of Forget Quality, Model Utility), one for each evaluation of the run, the starting model's
            included.
        floor: Logarithm (base 10) of the Forget Quality below which differences do not count, negative.

    Raises:
        UserError: no point, a value that is NaN, a log10 above 0, a utility outside [0, 1], or `floor` not negative.
    """
    if not -math.inf < floor < 0:
        raise UserError(f"floor must be negative, got {floor}")
    pairs = list(points)
    for x, _ in pairs:
        if not x <= 0:
            raise UserError(f"log10 of Forget Quality must be at most 0, got {x}")
    return _staircase_area([(max(x, floor) / -floor + 1, y) for x, y in pairs])


def frontier_area_ks(points: Iterable[tuple[float, float]]) -> float:
    """The frontier area over 1 - D in place of log10 of Forget Quality; needs no floor.

    Area of the union of the rectangles ``[0, 1 - ks_statistic] x [0, model_utility]``. This package's own definition.
    In [0, 1], higher is better; also comparable between forget sets of different size.

    Args:
        points: Pairs (1 - D, Model Utility), one for each evaluation of the run, the starting model's included.

    Raises:
        UserError: no point, or a value that is NaN or outside [0, 1].
    """
    pairs = list(points)
    for x, _ in pairs:
        if not 0 <= x <= 1:
            raise UserError(f"1 - D must be in [0, 1], got {x}")
    return _staircase_area(pairs)


def _staircase_area(points: Sequence[tuple[float, float]]) -> float:
    """Area of the union of [0, x] x [0, y] for x in [0, 1]."""
    if not points:
        raise UserError("a frontier area needs at least one evaluated point")
    for _, y in points:
        if not 0 <= y <= 1:
            raise UserError(f"Model Utility must be in [0, 1], got {y}")
    ordered = sorted(points, reverse=True)
    area = height = 0.0
    for (x, y), (next_x, _) in zip(ordered, [*ordered[1:], (0.0, 0.0)], strict=True):
        height = max(height, y)
        area += (x - next_x) * height
    return area
