"""Arrays that metrics take."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sga.errors import UserError

Floats = npt.NDArray[np.float64]


def vector(name: str, values: npt.ArrayLike) -> Floats:
    """`values` as float64 [N], N > 0, all finite."""
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be a list of numbers, got {values!r:.80}") from None
    if vector.ndim != 1:
        raise UserError(f"{name} must be one-dimensional, got shape {list(vector.shape)}")
    if not len(vector):
        raise UserError(f"{name} is empty; it needs at least one value")
    bad = np.flatnonzero(~np.isfinite(vector))
    if len(bad):
        raise UserError(
            f"{name} must be finite, got {vector[bad[0]]} at index {bad[0]} ({len(bad)} of {len(vector)} values); "
            "a model that has diverged gives such values"
        )
    return vector
