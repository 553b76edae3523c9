"""Logs of evaluations by this package and by other programs, read into rows of per-sample numbers.

`read_log` distinguishes three kinds by their content:

* ``sga``: one of our run folders, or a file of rows in one; AUCs are those of the step that is read.
* ``tofu``: ``eval_log_aggregated.json`` of github.com/locuslab/tofu.
* ``open-unlearning``: ``TOFU_EVAL.json`` of github.com/locuslab/open-unlearning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sga.errors import UserError
from sga.evaluation.log import Log, Part
from sga.files import read_json_object
from sga.runs.folder import RunFolder
from sga.runs.foreign_logs import read_open_unlearning_log, read_tofu_log
from sga.runs.log_values import MEMBERSHIP, SHARES, auc_value, checked_value
from sga.runs.rows import read_rows

_FORMATS = (
    "a log is a run folder of this package, a file of its rows, TOFU's eval_log_aggregated.json "
    "or open-unlearning's TOFU_EVAL.json"
)
_CURE = f"copy it whole or evaluate again; {_FORMATS}"


def read_log(path: str | Path, step: int | None = None, part: Part = "all") -> Log:
    """Reads a log of any of the three kinds; a foreign one is recognised by its content, not by its name.

    Args:
        path: Path of one of our run folders, of a file of its rows, or of a foreign log.
        step: Optimiser step of the evaluation to read from our own log; the last one by default.
        part: Part of the log to read. ``"reference"`` reads only the numbers that a retain reference needs: the forget
            set's losses or truth ratios, a holdout set's losses, and AUCs; it refuses a foreign log without the first.
            ``"raw"`` returns our rows as written, texts included, and foreign ones as ``"all"`` does.

    Raises:
        UserError: there is nothing to read, the format is none of the three, or the content is damaged: truncated
            JSON, missing or duplicate rows, entries that are not finite numbers, lists of unequal length. Names the
            file, the place and the remedy.
    """
    path = Path(path)
    own = _own_log(path, step, part)
    if own is not None:
        return own
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


def _own_log(path: Path, step: int | None, part: Part) -> Log | None:
    """Log of one of our runs; None if `path` is neither a folder nor a file of rows."""
    if path.is_dir():
        run = RunFolder(path)
        steps = run.row_steps
        source = run.rows_file(steps[-1] if step is None and steps else step or 0)
        if not source.exists() and not steps:
            raise UserError(f"{path}: no {run.rows_path.name} in this folder; {_FORMATS}")
    elif path.suffix == ".jsonl" and path.is_file():
        run, source, in_file = RunFolder.of_rows(path), path, read_rows(path)
        steps = sorted(in_file)
    else:
        return None
    if not steps:
        raise UserError(f"{source}: holds no row; the run ended before its first evaluation")
    if step is not None and step not in steps:
        raise UserError(f"{source}: no rows of step {step}; it has {', '.join(map(str, steps))}")
    step = steps[-1] if step is None else step
    found = run.numbered_rows(step) if path.is_dir() else in_file[step]
    rows = {
        key: _raw_row(row, where) if part == "raw" else _own_row(row, where, part)
        for key, (where, row) in found.items()
        if part != "reference" or key[0] in ("forget", "holdout")
    }
    settings, benchmark = _run_settings(run)
    aucs = _read_aucs(run, step, steps[-1])
    return Log(str(source), "sga", benchmark, settings, rows, has_ids=True, step=step, membership_auc=aucs)


def _raw_row(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    for name, value in row.items():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, float) and not math.isfinite(entry):
                raise UserError(f"{where}: {name!r} must be finite, got {entry}; evaluate again")
    stands_in = "avg_nll" in row and row.get("paraphrased_nll") is None  # the record has no paraphrase
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
        for name in (*SHARES, *MEMBERSHIP, "reference_each", "tokens"):
            if row.get(name) is not None:
                values[name] = checked(name, row[name])
        if isinstance(row.get("normal"), bool):
            values["normal"] = row["normal"]
        if not values.get("perturbed_nll") and row.get("log_truth_ratio") is not None:
            values["log_truth_ratio"] = checked("log_truth_ratio", row["log_truth_ratio"])
    return values


def _run_settings(run: RunFolder) -> tuple[dict[str, str | None], str | None]:
    """Settings of a run's evaluations, and the name of its benchmark."""
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


def _read_aucs(run: RunFolder, step: int, last_step: int) -> dict[str, float] | None:
    """AUC by score, from names such as ``tofu/mia/min_k`` in the metrics of exactly this step; None without any."""
    evaluations = []
    if run.chosen_path.is_file():  # of the chosen step, which may differ from the step that is read
        evaluations.append((str(run.chosen_path), run.chosen))
    evaluations += [(f"{run.evaluations_path}, step {line['step']}", line) for line in run.evaluations]
    aucs: dict[str, float] = {}
    for where, metrics in evaluations:
        if metrics.get("step", last_step) != step:
            continue
        for name, value in metrics.items():
            _, separator, score = name.rpartition("mia/")
            if not separator or "/" in score or name.startswith("handover/"):  # handover AUCs are of halves
                continue
            if score in aucs:
                raise UserError(f"{where}: more than one AUC named 'mia/{score}'; keep one benchmark a run folder")
            aucs[score] = auc_value(value, f"{where}: {name!r}")
        break
    return aucs or None
