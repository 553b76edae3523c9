"""Logs of TOFU's and open-unlearning's evaluators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sga.errors import UserError
from sga.evaluation.log import Log, Part
from sga.runs.log_values import MEMBERSHIP, auc_value, checked_value, finite_number

_TOFU_SETS = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
}

_OPEN_UNLEARNING_SETS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}

OPEN_UNLEARNING_NAMES = {
    "model_utility": "model_utility",
    "forget_quality": "forget_quality",
    "privleak": "privleak",
    "exact_memorization": "forget/exact_memorization",
    "extraction_strength": "forget/extraction_strength",
    "forget_truth_ratio": "forget/truth_ratio",
    "retain_Truth_Ratio": "retain/truth_ratio",
    "ra_Truth_Ratio": "real_authors/truth_ratio",
    "wf_Truth_Ratio": "world_facts/truth_ratio",
    "forget_Q_A_Prob": "forget/probability",
    "retain_Q_A_Prob": "retain/probability",
    "ra_Q_A_Prob_normalised": "real_authors/probability",
    "wf_Q_A_Prob_normalised": "world_facts/probability",
    "forget_Q_A_ROUGE": "forget/rouge_l_recall",
    "retain_Q_A_ROUGE": "retain/rouge_l_recall",
    "ra_Q_A_ROUGE": "real_authors/rouge_l_recall",
    "wf_Q_A_ROUGE": "world_facts/rouge_l_recall",
}


_ONE = {
    "avg_nll": "answer",
    "paraphrased_nll": "paraphrased answer",
    "perturbed_nll": "perturbed answers",
    "log_truth_ratio": "truth ratio",
}

_MANY = {
    "avg_nll": "answers",
    "paraphrased_nll": "paraphrased answers",
    "perturbed_nll": "lists of perturbed ones",
    "log_truth_ratio": "rows of truth ratios",
}
"""Names of a foreign log's entries and columns in messages; others are called by their field name."""


def read_tofu_log(path: Path, content: Mapping[str, Any], part: Part) -> Log:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for file, set_name in _TOFU_SETS.items():
        if file not in content or (part == "reference" and set_name != "forget"):
            continue
        log = content[file]

        def column(name: str, log: Any = log, file: str = file) -> list[Any]:
            if not isinstance(log, dict) or name not in log:
                raise UserError(f"{path}: {file!r} has no {name!r}; use TOFU's eval_log_aggregated.json")
            return _by_index(log[name], f"{path}: {file}/{name}")

        columns = {
            "avg_nll": column("avg_gt_loss"),
            "paraphrased_nll": column("avg_paraphrased_loss"),
            "perturbed_nll": column("average_perturb_loss"),
        }
        if part != "reference":
            # num_token_gt counts the labels that avg_gt_loss is the mean over, the end-of-sequence token included.
            optional = {"rougeL_recall": "rouge_l_recall", "num_token_gt": "tokens"}
            columns |= {ours: column(theirs) for theirs, ours in optional.items() if theirs in log}
        rows |= _foreign_rows(path, set_name, columns)
    return Log(source=str(path), kind="tofu", benchmark="tofu", settings={}, rows=rows, has_ids=False)


def read_open_unlearning_log(path: Path, content: Mapping[str, Any], part: Part) -> Log:
    aucs = {
        name.removeprefix("mia_"): auc_value(metric.get("agg_value"), f"{path}: {name}/agg_value")
        for name, metric in content.items()
        if name.startswith("mia_") and isinstance(metric, dict)
    }
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    notes: list[str] = []
    for prefix, set_name in _OPEN_UNLEARNING_SETS.items():
        if part == "reference" and set_name != "forget":
            continue
        columns = _losses(path, content, prefix, set_name, part, notes)
        if part != "reference":
            if f"{prefix}_Q_A_ROUGE" in content:
                columns["rouge_l_recall"] = _column(path, content, f"{prefix}_Q_A_ROUGE", "rougeL_recall")
            if set_name == "forget":
                for name in ("exact_memorization", "extraction_strength"):
                    if name in content:
                        columns[name] = _column(path, content, name, "score")
                columns = _membership_columns(path, content, "forget") | columns
        rows |= _foreign_rows(path, set_name, columns)
    if part != "reference":
        rows |= _foreign_rows(path, "holdout", _membership_columns(path, content, "holdout"))
        if "extraction_strength" in content:
            notes.append(
                "extraction strength is open-unlearning's, which gives 1/T instead of 0 to an answer of T tokens whose "
                "last one is not the arg-max: too high, and not to be told apart in its log"
            )
    return Log(
        source=str(path),
        kind="open-unlearning",
        benchmark="tofu",
        settings={},
        rows=rows,
        has_ids=False,
        membership_auc=aucs or None,
        stated=_stated(path, content) if part != "reference" else {},
        notes=tuple(notes),
    )


def _losses(
    path: Path, content: Mapping[str, Any], prefix: str, set_name: str, part: Part, notes: list[str]
) -> dict[str, list[Any]]:
    """Columns of one set's likelihoods; appends to `notes` if the log has only ready-made truth ratios."""
    columns: dict[str, list[Any]] = {}
    right, wrong = f"{prefix}_Q_A_PARA_Prob", f"{prefix}_Q_A_PERT_Prob"
    ready_made = f"{prefix}_truth_ratio" if set_name == "forget" else f"{prefix}_Truth_Ratio"
    if set_name not in ("forget", "retain"):
        right = f"{prefix}_Q_A_Prob"  # the answer itself replaces the paraphrase
    if f"{prefix}_Q_A_Prob" in content:
        columns["avg_nll"] = _column(path, content, f"{prefix}_Q_A_Prob", "avg_loss")
    missing = [name for name in (right, wrong) if name not in content]
    if not missing:
        columns["paraphrased_nll"] = _column(path, content, right, "avg_loss")
        columns["perturbed_nll"] = _column(path, content, wrong, "avg_loss")
    elif ready_made in content:
        columns["log_truth_ratio"] = _log_ratios(path, content, ready_made, (right, wrong))
        of_set = "" if set_name == "forget" else f" of {set_name}"
        notes.append(
            f"truth ratios{of_set} taken ready-made, because the log lacks {' and '.join(missing)}: with "
            "open-unlearning's 1e-10 in the denominator they are too low where the answer's avg_nll is large "
            "(by 0.2 % at 17, by half at 23)"
        )
    elif part == "reference":
        raise UserError(
            f"{path}: {' and '.join(missing)} is missing, and {ready_made} too; evaluate again with one of them"
        )
    return columns


def _log_ratios(path: Path, content: Mapping[str, Any], metric: str, losses: Sequence[str]) -> list[float]:
    logs = []
    for index, score in enumerate(_column(path, content, metric, "score")):
        where = f"{path}: {metric}/value_by_index/{index}/score"
        number = finite_number(score, where)
        if number <= 0:
            raise UserError(f"{where} must be above 0, got {number}; use a log with {' and '.join(losses)}")
        logs.append(math.log(number))
    return logs


def _membership_columns(path: Path, content: Mapping[str, Any], side: str) -> dict[str, list[Any]]:
    """Membership scores of the forget or the holdout rows; low = member, as in our own rows."""
    columns = {}
    for score in ("loss", *MEMBERSHIP):
        metric = content.get(f"mia_{score}")
        if isinstance(metric, dict) and {"forget", "holdout"} <= set(metric):  # else there is an aggregate only
            name = "avg_nll" if score == "loss" else score
            columns[name] = _cells(path, f"mia_{score}/{side}", metric[side], "score")
    return columns


def _stated(path: Path, content: Mapping[str, Any]) -> dict[str, float]:
    return {
        ours: finite_number(content[theirs]["agg_value"], f"{path}: {theirs}/agg_value")
        for theirs, ours in OPEN_UNLEARNING_NAMES.items()
        # null where it could not be computed, such as forget_quality without a retain log
        if isinstance(content.get(theirs), dict) and content[theirs].get("agg_value") is not None
    }


def _column(path: Path, content: Mapping[str, Any], metric: str, value: str) -> list[Any]:
    return _cells(path, metric, content[metric], value)


def _cells(path: Path, metric: str, entry: Any, value: str) -> list[Any]:
    where = f"{path}: {metric}"
    if not isinstance(entry, dict) or "value_by_index" not in entry:
        raise UserError(f"{where} has no 'value_by_index'; use TOFU_EVAL.json, not TOFU_SUMMARY.json")
    cells = _by_index(entry["value_by_index"], f"{where}/value_by_index")
    for index, cell in enumerate(cells):
        if not isinstance(cell, dict) or value not in cell:
            raise UserError(f"{where}/value_by_index/{index} has no {value!r}, got {cell!r:.60}; evaluate again")
    return [cell[value] for cell in cells]


def _foreign_rows(
    path: Path, set_name: str, columns: Mapping[str, Sequence[Any]]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows from aligned columns, with every entry checked."""
    if not columns:
        return {}
    base = next((name for name in ("perturbed_nll", "log_truth_ratio") if name in columns), next(iter(columns)))
    for name, column in columns.items():
        if len(column) != len(columns[base]):
            raise UserError(
                f"{path}: {len(column)} {_many(name)} and {len(columns[base])} {_many(base)} in the {set_name} set; "
                "the log is not whole, evaluate again"
            )
    rows: dict[tuple[str, str], dict[str, Any]] = {(set_name, str(index)): {} for index in range(len(columns[base]))}
    for name, column in columns.items():
        for index, value in enumerate(column):
            if value is None and name == "exact_memorization":
                continue  # open-unlearning writes this for an answer without a token
            where = f"{path}: {_ONE.get(name, name)} of {set_name} row {index}"
            rows[set_name, str(index)][name] = checked_value(name, value, where)
    first = rows[set_name, "0"].get("perturbed_nll")
    for index, row in enumerate(rows.values()):
        if first is not None and (not row["perturbed_nll"] or len(row["perturbed_nll"]) != len(first)):
            raise UserError(
                f"{path}: {len(row['perturbed_nll'])} perturbed answers in {set_name} row {index} and {len(first)} in "
                "row 0; TOFU has as many in each row, evaluate again"
            )
    return rows


def _many(name: str) -> str:
    return _MANY.get(name, f"values of {name}")


def _by_index(values: Any, where: str) -> list[Any]:
    """The entries of ``{"0": x, "1": y, …}`` in the order of their numbers; a plain list unchanged."""
    if isinstance(values, dict):
        if not all(key.isdecimal() for key in values):
            bad = next(key for key in values if not key.isdecimal())
            raise UserError(f"{where}: keys must be row numbers, got {bad!r}")
        by_number = {int(key): value for key, value in values.items()}
        absent = next((row for row in range(len(values)) if row not in by_number), None)
        if absent is not None:
            raise UserError(
                f"{where}: row {absent} is missing among {len(values)}; the log is not whole, evaluate again"
            )
        values = [by_number[row] for row in range(len(values))]
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: expected one entry a row, got {values!r:.60}")
    return values
