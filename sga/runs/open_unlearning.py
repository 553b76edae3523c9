"""A TOFU evaluation of ours in the form that open-unlearning's evaluator writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sga.errors import UserError
from sga.evaluation.log import Log
from sga.evaluation.metrics import Floats, harmonic_mean, membership_auc
from sga.files import write_json
from sga.runs.folder import Run
from sga.runs.log_values import MEMBERSHIP
from sga.runs.logs import read_log

_PREFIXES = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
_OPTIONS = ("real_authors", "world_facts")
EPSILON = 1e-10
_UTILITY = tuple(
    f"{prefix}_{part}"
    for prefix in ("retain", "ra", "wf")
    for part in ("Q_A_Prob" if prefix == "retain" else "Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio")
)
_SUMMARY = (
    *("exact_memorization", "extraction_strength", "forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_quality"),
    *("forget_truth_ratio", "mia_loss", "mia_min_k", "mia_min_k_plus_plus", "mia_reference", "mia_zlib"),
    *("model_utility", "privleak"),
)


def write_open_unlearning(run: Run, folder: str | Path) -> list[Path]:
    """Writes the chosen evaluation of a TOFU run as open-unlearning's evaluator writes its own; numbers, no texts.

    Its leaderboard, its ``reference_logs`` and programs that read its logs take the files. Values per row are the
    run's; means are open-unlearning's, with its 1e-10 in denominators and its floor 1/T under extraction strength.

    Returns:
        Paths of ``TOFU_EVAL.json`` and ``TOFU_SUMMARY.json``.

    Raises:
        UserError: the run is of another benchmark, or its rows lack what the log needs.
    """
    if run.benchmark != "tofu":
        raise UserError(
            f"{run.path}: open-unlearning's TOFU_EVAL.json is of the benchmark tofu, this run is of {run.benchmark!r}"
        )
    stated = {name: run.value(name) for name in ("forget_quality", "privleak")}
    content = open_unlearning_log(read_log(run.path, run.chosen_step), stated)
    paths = [Path(folder) / "TOFU_EVAL.json", Path(folder) / "TOFU_SUMMARY.json"]
    for path, value in zip(paths, (content, open_unlearning_summary(content)), strict=True):
        write_json(path, value)
    return paths


def open_unlearning_log(log: Log, stated: Mapping[str, float | None]) -> dict[str, Any]:
    """Content of ``TOFU_EVAL.json``: by metric an ``agg_value``, and ``value_by_index`` where it has rows.

    Followed: github.com/locuslab/open-unlearning at d3d7cf9, ``src/evals/metrics``.

    Args:
        log: One evaluation on TOFU, as `read_log` gives it.
        stated: Values of the metrics that need a retain model, ``forget_quality`` and ``privleak``; None without one.
            They are then left out, where open-unlearning takes 0.5 for the AUC of a retain model.

    Raises:
        UserError: the log has no forget rows.
    """
    if "forget" not in log.sets:
        raise UserError(f"{log.source}: has no rows of the forget set; evaluate it too")
    content: dict[str, Any] = {}
    for name, prefix in _PREFIXES.items():
        content |= _likelihoods(log, name, prefix)
        recalls, measures = _column(log, name, "rouge_l_recall"), _column(log, name, "rouge_l_fmeasure")
        if recalls is not None:
            content[f"{prefix}_Q_A_ROUGE"] = _metric(
                recalls, {"rougeL_recall": recalls} | ({} if measures is None else {"rougeL_f1": measures})
            )
    content |= _memorization(log) | _membership(log)
    if all(part in content for part in _UTILITY):
        content["model_utility"] = {
            "agg_value": harmonic_mean(**{part: content[part]["agg_value"] for part in _UTILITY})
        }
    content |= {name: {"agg_value": value} for name, value in stated.items() if value is not None}
    return dict(sorted(content.items()))


def open_unlearning_summary(content: Mapping[str, Any]) -> dict[str, float]:
    """Content of ``TOFU_SUMMARY.json``: the aggregates that open-unlearning reports, by metric."""
    return {name: content[name]["agg_value"] for name in _SUMMARY if name in content}


def _likelihoods(log: Log, name: str, prefix: str) -> dict[str, Any]:
    """Probabilities of the answers, their paraphrases and wrong answers, and truth ratios."""
    found: dict[str, Any] = {}
    answer, right = _column(log, name, "avg_nll"), _column(log, name, "paraphrased_nll")
    wrong, ready = _column(log, name, "perturbed_nll"), _column(log, name, "log_truth_ratio")
    if name in _OPTIONS:
        right = answer  # the answer itself stands in for the paraphrase
    for ending, nll in (("Prob", answer), ("PARA_Prob", None if name in _OPTIONS else right), ("PERT_Prob", wrong)):
        if nll is not None and (nll.ndim == 1 or nll.shape[1]):
            found[f"{prefix}_Q_A_{ending}"] = _metric(np.exp(-nll), {"prob": np.exp(-nll), "avg_loss": nll})
    ratios = None if ready is None else np.exp(ready)
    if f"{prefix}_Q_A_PERT_Prob" in found and right is not None and wrong is not None:
        ratios = np.exp(-wrong.mean(axis=1)) / (np.exp(-right) + EPSILON)
        if name in _OPTIONS:
            shares = np.exp(-right) / (np.exp(-right) + np.exp(-wrong).sum(axis=1) + EPSILON)
            found[f"{prefix}_Q_A_Prob_normalised"] = _metric(shares, {"prob": shares})
    if ratios is not None and name == "forget":
        found["forget_truth_ratio"] = _metric(np.minimum(ratios, 1 / (ratios + EPSILON)), {"score": ratios})
    elif ratios is not None:
        found[f"{prefix}_Truth_Ratio"] = _metric(np.maximum(0, 1 - ratios), {"score": ratios})
    return found


def _memorization(log: Log) -> dict[str, Any]:
    found = {}
    hits, strengths = _column(log, "forget", "exact_memorization"), _column(log, "forget", "extraction_strength")
    if hits is not None:
        found["exact_memorization"] = _metric(hits, {"score": hits})
    if strengths is not None:
        tokens = _column(log, "forget", "tokens")
        if tokens is not None:  # with the end of sequence, which T does not count; their loop ends at T - 1
            floors = np.where(tokens > 1, 1 / np.maximum(tokens - 1, 1), 0)
            strengths = np.where(strengths == 0, floors, strengths)
        found["extraction_strength"] = _metric(strengths, {"score": strengths})
    return found


def _membership(log: Log) -> dict[str, Any]:
    found = {}
    for score in ("loss", *MEMBERSHIP):
        name = "avg_nll" if score == "loss" else score
        forget, holdout = (_column(log, side, name) for side in ("forget", "holdout"))
        if forget is not None and holdout is not None:
            auc = membership_auc(forget, holdout)
            sides = {
                side: _metric(values, {"score": values}) for side, values in (("forget", forget), ("holdout", holdout))
            }
            found[f"mia_{score}"] = {**sides, "auc": auc, "agg_value": auc}
    return found


def _column(log: Log, set_name: str, field: str) -> Floats | None:
    """[N], or [N, M] of a field with lists; None where a row lacks it."""
    values = [row.get(field) for row in log.of_set(set_name)]
    return None if not values or any(value is None for value in values) else np.array(values, dtype=float)


def _metric(values: Floats, fields: Mapping[str, Floats]) -> dict[str, Any]:
    """Mean of `values`, and the fields by row number."""
    columns = {name: column.tolist() for name, column in fields.items()}
    rows = {str(index): {name: column[index] for name, column in columns.items()} for index in range(len(values))}
    return {"agg_value": float(values.mean()), "value_by_index": rows}
