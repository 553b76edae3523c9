"""Logs of evaluations, ours and other programs', read into rows of per-sample numbers.

`read_log` tells three kinds apart by their content:

* ``sga``: a run folder of ours, or a file of rows in one; AUCs are those of the step that is read.
* ``tofu``: ``eval_log_aggregated.json`` of github.com/locuslab/tofu.
* ``open-unlearning``: ``TOFU_EVAL.json`` of github.com/locuslab/open-unlearning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sga.errors import UserError
from sga.evaluation.log import Log, Part
from sga.files import read_json_object
from sga.runs.folder import RunFolder
from sga.runs.foreign_logs import read_open_unlearning_log, read_tofu_log
from sga.runs.log_values import MEMBERSHIP, SHARES, auc_value, checked_value
from sga.runs.rows import Rows, read_rows

_FORMATS = (
    "a log is a run folder of this package, a file of its rows, TOFU's eval_log_aggregated.json "
    "or open-unlearning's TOFU_EVAL.json"
)
_CURE = f"copy it whole or evaluate again; {_FORMATS}"


def read_log(path: str | Path, step: int | None = None, part: Part = "all") -> Log:
    """Reads a log of any of the three kinds; a foreign one is known by its content, not by its name.

    Args:
        path: A run folder of ours, a file of its rows, or a foreign log.
        step: Which evaluation step of a log of ours; the last one by default.
        part: ``"reference"`` looks only at what a retain reference needs, which are the forget set's losses or truth
            ratios, the losses of a holdout set, and AUCs; it refuses a foreign log without the first. ``"raw"`` gives
            rows of ours as they were written, texts included, and foreign ones like ``"all"``.

    Raises:
        UserError: there is nothing to read, the format is none of the three, or the content is not whole: truncated
            JSON, missing or duplicate rows, entries that are not finite numbers, lists of unequal length. Names the
            file, the place and what to do.
    """
    path = Path(path)
    own = read_own_rows(path, step)
    if own is not None:
        return _own_log(own, part)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; {_FORMATS}")
    content = read_json_object(path, _CURE)
    if step is not None:
        raise UserError(f"{path}: step {step} was asked for, but only run folders of this package have steps")
    if "eval_log_forget.json" in content:
        return read_tofu_log(path, content, part)
    known = {"forget_truth_ratio", "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"}
    if part != "reference":
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
    """Rows of one evaluation of a run of ours.

    Attributes:
        run: The run folder.
        source: The file that holds them.
        step: Step of the evaluation.
        last_step: Last step of the run.
        rows: The rows, each with its place in the file.
        settings: What their numbers depend on.
        benchmark: Name of the benchmark, if the run says it.
    """

    run: RunFolder
    source: Path
    step: int
    last_step: int
    rows: Rows
    settings: dict[str, str | None]
    benchmark: str | None


def read_own_rows(path: Path, step: int | None) -> OwnRows | None:
    """Reads the rows of one evaluation step, the last one by default; the numbers in them are not looked at.

    Args:
        path: A run folder, or a file of rows in one.
        step: The step.

    Returns:
        The rows; None where `path` is no such folder or file.

    Raises:
        UserError: there is no row or none of the step, a row has no step, set and id, or occurs twice in the step, or
            the folder does not say how they were made.
    """
    if path.is_dir():
        run = RunFolder(path)
        steps = run.row_steps
        if not steps and not run.rows_file(0).exists():
            raise UserError(f"{path}: no {run.rows_path.name} in this folder; {_FORMATS}")
        source = run.rows_file(steps[-1] if step is None and steps else step or 0)
    elif path.suffix == ".jsonl" and path.is_file():
        run = RunFolder.of_rows(path)
        by_step, source = read_rows(path), path
        steps = sorted(by_step)
    else:
        return None
    if not steps:
        raise UserError(f"{source}: holds no row; the run ended before its first evaluation")
    if step is not None and step not in steps:
        raise UserError(f"{source}: no rows of step {step}; it has {', '.join(map(str, steps))}")
    chosen = steps[-1] if step is None else step
    rows = run.numbered_rows(chosen) if path.is_dir() else by_step[chosen]
    if not rows:
        raise UserError(f"{source}: holds no row; evaluate again")
    settings, benchmark = _run_settings(run)
    return OwnRows(run, source, chosen, steps[-1], rows, settings, benchmark)


def _own_log(own: OwnRows, part: Part) -> Log:
    rows = {
        key: _raw_row(row, where) if part == "raw" else _own_row(row, where, part)
        for key, (where, row) in own.rows.items()
        if part != "reference" or key[0] in ("forget", "holdout")
    }
    return Log(
        source=str(own.source),
        kind="sga",
        benchmark=own.benchmark,
        settings=own.settings,
        rows=rows,
        has_ids=True,
        step=own.step,
        membership_auc=_read_aucs(own),
    )


def _raw_row(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    for name, value in row.items():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, float) and not math.isfinite(entry):
                raise UserError(f"{where}: {name!r} must be finite, got {entry}; evaluate again")
    stands_in = "avg_nll" in row and row.get("paraphrased_nll") is None  # where there is no paraphrase
    return {**row, "paraphrased_nll": row["avg_nll"]} if stands_in else row


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
    if part != "reference":
        for name in (*SHARES, *MEMBERSHIP, "tokens"):
            if row.get(name) is not None:
                values[name] = checked(name, row[name])
        if not values.get("perturbed_nll") and row.get("log_truth_ratio") is not None:
            values["log_truth_ratio"] = checked("log_truth_ratio", row["log_truth_ratio"])
    return values


def _run_settings(run: RunFolder) -> tuple[dict[str, str | None], str | None]:
    """Settings of a run's evaluations, and its benchmark."""
    path = run.info_path
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, so nobody knows how the rows beside it were made; copy the whole run folder"
        )
    settings = run.info.get("evaluation")
    if not isinstance(settings, dict) or not all(isinstance(value, str | None) for value in settings.values()):
        raise UserError(
            f"{path}: 'evaluation' must be an object of strings; is this the {path.name} of an evaluated run?"
        )
    benchmark = run.info.get("benchmark", settings.get("benchmark"))
    return settings, benchmark if isinstance(benchmark, str) and benchmark else None


def _read_aucs(own: OwnRows) -> dict[str, float] | None:
    """AUC by score, from names such as ``tofu/mia/min_k`` in the metrics of this very step; None without any."""
    run = own.run
    evaluations = []
    if run.chosen_path.is_file():  # the chosen step, which need not be the one that is read
        evaluations.append((str(run.chosen_path), run.chosen))
    evaluations += [(f"{run.evaluations_path}, step {line['step']}", line) for line in run.evaluations]
    aucs: dict[str, float] = {}
    for where, metrics in evaluations:
        if metrics.get("step", own.last_step) != own.step:
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
