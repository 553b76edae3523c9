"""Logs of evaluations, ours and other programs', read into rows of per-sample numbers.

`read_log` tells three kinds apart by their content:

* ``sga``: a run folder of ours, or its ``rows.jsonl``; settings from ``run.json`` and AUCs from ``metrics.json`` or
  ``metrics.jsonl`` beside it, whichever has the step that is read.
* ``tofu``: ``eval_log_aggregated.json`` of github.com/locuslab/tofu.
* ``open-unlearning``: ``TOFU_EVAL.json`` of github.com/locuslab/open-unlearning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sga.errors import UserError
from sga.evaluation.log import Log, Part
from sga.files import read_json_lines, read_json_object
from sga.runs.foreign_logs import read_open_unlearning_log, read_tofu_log
from sga.runs.log_values import MEMBERSHIP, SHARES, auc_value, checked_value

_FORMATS = (
    "a log is a run folder of this package, its rows.jsonl, TOFU's eval_log_aggregated.json "
    "or open-unlearning's TOFU_EVAL.json"
)
_CURE = f"copy it whole or evaluate again; {_FORMATS}"


def read_log(path: str | Path, step: int | None = None, part: Part = "all") -> Log:
    """Reads a log of any of the three kinds; a foreign one is known by its content, not by its name.

    Args:
        path: A run folder of ours, its ``rows.jsonl``, or a foreign log.
        step: Which evaluation step of a log of ours; the last one by default.
        part: ``"reference"`` looks only at what a retain reference needs, which are the forget set's losses or truth
            ratios, the losses of a holdout set, and AUCs; it refuses a foreign log without the first.

    Raises:
        UserError: there is nothing to read, the format is none of the three, or the content is not whole: truncated
            JSON, missing or duplicate rows, entries that are not finite numbers, lists of unequal length. Names the
            file, the place and what to do.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "rows.jsonl").is_file():
            raise UserError(f"{path}: no rows.jsonl in this folder; {_FORMATS}")
        return _read_sga(path / "rows.jsonl", step, part)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; {_FORMATS}")
    if path.suffix == ".jsonl":
        return _read_sga(path, step, part)
    content = read_json_object(path, _CURE)
    if step is not None:
        raise UserError(f"{path}: step {step} was asked for, but only run folders of this package have steps")
    if "eval_log_forget.json" in content:
        return read_tofu_log(path, content, part)
    known = {"forget_truth_ratio", "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"}
    if part == "all":
        known |= {"forget_Q_A_Prob", "forget_Q_A_ROUGE", "exact_memorization", "extraction_strength"}
    if known & set(content):
        return read_open_unlearning_log(path, content, part)
    keys = ", ".join(repr(key) for key in list(content)[:5]) or "nothing"
    raise UserError(
        f"{path}: neither 'eval_log_forget.json' (TOFU) nor 'forget_truth_ratio' or 'forget_Q_A_PARA_Prob' "
        f"(open-unlearning) in it, but {keys}; {_FORMATS}"
    )


@dataclass(frozen=True)
class OwnRows:
    """One evaluation of a run of ours, as its ``rows.jsonl`` has it.

    Attributes:
        step: Which.
        last_step: The run's last one.
        rows: By evaluation set and record id, in the file's order, each with where it stands, for messages.
    """

    step: int
    last_step: int
    rows: Mapping[tuple[str, str], tuple[str, dict[str, Any]]]


def read_own_rows(path: Path, step: int | None) -> OwnRows:
    """Reads the rows of one evaluation step, the last one by default; the numbers in them are not looked at.

    Raises:
        UserError: there is no row or none of the step, a row has no step, set and id, or one occurs twice in the step.
    """
    numbered = [(f"{path}:{number}", row) for number, row in read_json_lines(path)]
    for where, row in numbered:
        named = isinstance(row.get("set"), str) and isinstance(row.get("id"), str)
        if type(row.get("step")) is not int or not named:
            raise UserError(
                f"{where}: needs 'step' (an integer), 'set' and 'id' (strings); is this the rows.jsonl of a run?"
            )
    steps = sorted({row["step"] for _, row in numbered})
    if not steps:
        raise UserError(f"{path}: holds no row; the run ended before its first evaluation")
    if step is not None and step not in steps:
        raise UserError(f"{path}: no rows of step {step}; it has {', '.join(map(str, steps))}")
    chosen = steps[-1] if step is None else step
    rows: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for where, row in numbered:
        if row["step"] != chosen:
            continue
        if (row["set"], row["id"]) in rows:
            raise UserError(
                f"{where}: {row['id']!r} occurs twice in {row['set']!r} at step {chosen}; were two runs joined?"
            )
        rows[row["set"], row["id"]] = where, row
    return OwnRows(chosen, steps[-1], rows)


def _read_sga(path: Path, step: int | None, part: Part) -> Log:
    own = read_own_rows(path, step)
    rows = {
        key: _own_row(row, where, part)
        for key, (where, row) in own.rows.items()
        if part == "all" or key[0] in ("forget", "holdout")
    }
    settings, benchmark = read_run_settings(path.parent / "run.json")
    return Log(
        source=str(path),
        kind="sga",
        benchmark=benchmark,
        settings=settings,
        rows=rows,
        has_ids=True,
        step=own.step,
        membership_auc=_read_aucs(path.parent, own.step, own.last_step),
    )


def _own_row(row: Mapping[str, Any], where: str, part: Part) -> dict[str, Any]:
    def checked(name: str, value: Any) -> Any:
        return checked_value(name, value, f"{where}: {name!r}")

    values: dict[str, Any] = {}
    if row["set"] == "forget" or "avg_nll" in row:
        nll = values["avg_nll"] = checked("avg_nll", row.get("avg_nll"))
        paraphrased = row.get("paraphrased_nll")
        values["paraphrased_nll"] = nll if paraphrased is None else checked("paraphrased_nll", paraphrased)
    if row["set"] == "forget" or "perturbed_nll" in row:
        values["perturbed_nll"] = checked("perturbed_nll", row.get("perturbed_nll", []))
    if part == "all":
        for name in (*SHARES, *MEMBERSHIP, "reference_each", "tokens"):
            if row.get(name) is not None:
                values[name] = checked(name, row[name])
        if not values.get("perturbed_nll") and row.get("log_truth_ratio") is not None:
            values["log_truth_ratio"] = checked("log_truth_ratio", row["log_truth_ratio"])
    return values


def read_run_settings(path: Path) -> tuple[dict[str, str | None], str | None]:
    """Settings and benchmark of a ``run.json``.

    Raises:
        UserError: there is none, or it has no settings.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, so nobody knows how the rows beside it were made; copy the whole run folder"
        )
    run = read_json_object(path, _CURE)
    settings = run.get("evaluation")
    if not isinstance(settings, dict) or not all(isinstance(value, str | None) for value in settings.values()):
        raise UserError(f"{path}: 'evaluation' must be an object of strings; is this the run.json of an evaluated run?")
    benchmark = run.get("benchmark", settings.get("benchmark"))
    return settings, benchmark if isinstance(benchmark, str) and benchmark else None


def _read_aucs(folder: Path, step: int, last_step: int) -> dict[str, float] | None:
    """AUC by score, from names such as ``tofu/mia/min_k`` in the metrics of this very step; None without any."""
    evaluations = []
    if (folder / "metrics.json").is_file():  # the chosen step, which need not be the one that is read
        evaluations.append((str(folder / "metrics.json"), read_json_object(folder / "metrics.json", _CURE)))
    if (folder / "metrics.jsonl").is_file():
        evaluations += [
            (f"{folder / 'metrics.jsonl'}:{number}", row) for number, row in read_json_lines(folder / "metrics.jsonl")
        ]
    aucs: dict[str, float] = {}
    for where, metrics in evaluations:
        if metrics.get("step", last_step) != step:
            continue
        for name, value in metrics.items():
            _, separator, score = name.rpartition("mia/")
            if not separator or "/" in score:
                continue
            if score in aucs:
                raise UserError(f"{where}: more than one AUC named 'mia/{score}'; keep one benchmark a run folder")
            aucs[score] = auc_value(value, f"{where}: {name!r}")
        break
    return aucs or None
