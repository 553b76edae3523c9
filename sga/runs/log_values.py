"""Checks of the values in logs."""

from __future__ import annotations

import sys
from typing import Any

from sga.errors import UserError
from sga.evaluation.aggregation import CLASSIFIER_FLUENCY, FLUENCY_PARTS
from sga.files import is_number

SHARES = (
    *("rouge_l_recall", "rouge_l_fmeasure", "exact_memorization", "extraction_strength", CLASSIFIER_FLUENCY),
    *FLUENCY_PARTS,
)

_LISTS = {"perturbed_nll": "avg_nll", "reference_each": "reference"}
"""Fields that hold a list, each with the field whose range its entries have."""

MEMBERSHIP = ("min_k", "min_k_plus_plus", "zlib", "reference")


def checked_value(name: str, value: Any, where: str) -> Any:
    """Returns the value of a row's field if it is valid; raises a UserError that names `where` otherwise."""
    if name in _LISTS:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list of numbers, got {value!r:.60}; evaluate again")
        return [checked_value(_LISTS[name], entry, f"{where}, entry {index}") for index, entry in enumerate(value)]
    if name == "tokens":
        if type(value) is not int or value < 1:
            raise UserError(f"{where} must be a number of tokens, at least 1, got {value!r:.60}; evaluate again")
        return value
    number = finite_number(value, where)
    if name in ("avg_nll", "paraphrased_nll") and number < -1e-3:  # below 0 by rounding is fine
        raise UserError(f"{where} must be a loss in nats, at least 0, got {number}; is it a log-probability?")
    if name in SHARES and not 0 <= number <= 1:
        raise UserError(f"{where} must be in [0, 1], got {number}; evaluate again")
    return number


def finite_number(value: Any, where: str) -> float:
    # comparing, unlike math.isfinite, also takes integers beyond the range of floats
    if not is_number(value) or not abs(value) <= sys.float_info.max:
        raise UserError(f"{where} must be a finite number, got {value!r:.60}; evaluate again")
    return float(value)


def auc_value(value: Any, where: str) -> float:
    number = finite_number(value, where)
    if not 0 <= number <= 1:
        raise UserError(f"{where} must be an AUC in [0, 1], got {number}")
    return number
