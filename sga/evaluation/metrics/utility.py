"""Model utility: the harmonic mean of nine parts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sga.errors import UserError

MODEL_UTILITY_PARTS = tuple(
    f"{name}_{part}"
    for name in ("retain", "real_authors", "world_facts")
    for part in ("probability", "rouge", "truth_ratio")
)
"""The nine names that `model_utility` needs, ``retain_probability`` to ``world_facts_truth_ratio``."""


def model_utility(parts: Mapping[str, float]) -> float:
    """Model utility: the harmonic mean of nine scores on the retain sets.

    ``9 / sum(1 / part)``; 0 where any part is 0. TOFU's aggregation, arXiv 2401.06121 §2.2.1. In [0, 1], higher is
    better.

    Args:
        parts: Scores by name, at least those of `MODEL_UTILITY_PARTS`; others are not read.

    Raises:
        UserError: a part is missing (all missing ones are named), negative or not finite.
    """
    missing = [name for name in MODEL_UTILITY_PARTS if name not in parts]
    if missing:
        raise UserError(f"model utility needs nine parts; missing: {', '.join(missing)}")
    wrong = [name for name in MODEL_UTILITY_PARTS if not 0 <= parts[name] < math.inf]
    if wrong:
        raise UserError(
            "parts of model utility must be finite and not negative, got "
            + ", ".join(f"{name} = {parts[name]}" for name in wrong)
        )
    values = [float(parts[name]) for name in MODEL_UTILITY_PARTS]
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)
