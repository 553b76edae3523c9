"""Logs of evaluations, ours and other programs', read into rows of per-sample numbers.

`read_log` tells three kinds apart by their content:

* ``sga``: a run folder of ours, or its ``rows.jsonl``; settings from ``run.json`` and AUCs from ``metrics.json`` or
  ``metrics.jsonl`` beside it, whichever has the step that is read.
* ``tofu``: ``eval_log_aggregated.json`` of github.com/locuslab/tofu.
* ``open-unlearning``: ``TOFU_EVAL.json`` of github.com/locuslab/open-unlearning.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sga.data.records import read_jsonl
from sga.errors import UserError
from sga.files import json_value

Kind = Literal["sga", "tofu", "open-unlearning"]
Part = Literal["all", "reference"]

_FORMATS = (
    "a log is a run folder of this package, its rows.jsonl, TOFU's eval_log_aggregated.json "
    "or open-unlearning's TOFU_EVAL.json"
)
_SHARES = ("rouge_l_recall", "rouge_l_fmeasure", "exact_memorization", "extraction_strength")
_MEMBERSHIP = ("min_k", "min_k_plus_plus", "zlib", "reference")

_TOFU_SETS = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
}
_OPEN_UNLEARNING_SETS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
_OPEN_UNLEARNING_STATED = {
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
"""What messages call an entry and a column of a foreign log; others go by their field name."""


@dataclass(frozen=True, eq=False)
class Log:
    """One evaluation of one model, row by row.

    Attributes:
        source: The file that was read.
        kind: Who wrote it.
        benchmark: The benchmark's name, prefix of its metrics; None where a run folder does not say.
        settings: How the log was made (template, split, dtype, …); what it does not state is missing or None.
        rows: Per-sample numbers by (evaluation set, record id), in the log's order, with the fields of
            `sga.evaluation.scores` as far as the log has them, and ``tokens``, the number of scored tokens of the
            answer. A ready-made truth ratio is there only where the losses are not.
        has_ids: False for a foreign log, whose ids are the positions ``"0"``, ``"1"``, …
        step: The evaluation step that was read; None for a foreign log.
        membership_auc: AUC by score (``"min_k"``, ``"loss"``, …) as the log states it, 1.0 = members recognised
            perfectly; None where it states none.
        stated: Other aggregates that a foreign log states, by our metric names without prefix.
        notes: What a reader of the numbers should know about this log.
    """

    source: str
    kind: Kind
    benchmark: str | None
    settings: Mapping[str, str | None]
    rows: Mapping[tuple[str, str], Mapping[str, Any]]
    has_ids: bool
    step: int | None = None
    membership_auc: Mapping[str, float] | None = None
    stated: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def sets(self) -> dict[str, int]:
        """Number of rows by evaluation set."""
        counts: dict[str, int] = {}
        for name, _ in self.rows:
            counts[name] = counts.get(name, 0) + 1
        return counts

    def ids(self, set_name: str) -> tuple[str, ...]:
        """Ids of the rows of an evaluation set, in order."""
        return tuple(record_id for name, record_id in self.rows if name == set_name)

    def of_set(self, set_name: str) -> list[Mapping[str, Any]]:
        """The rows of an evaluation set, in order."""
        return [row for (name, _), row in self.rows.items() if name == set_name]


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
    content = _read_json_object(path)
    if step is not None:
        raise UserError(f"{path}: step {step} was asked for, but only run folders of this package have steps")
    if "eval_log_forget.json" in content:
        return _read_tofu(path, content, part)
    known = {"forget_truth_ratio", "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"}
    if part == "all":
        known |= {"forget_Q_A_Prob", "forget_Q_A_ROUGE", "exact_memorization", "extraction_strength"}
    if known & set(content):
        return _read_open_unlearning(path, content, part)
    keys = ", ".join(repr(key) for key in list(content)[:5]) or "nothing"
    raise UserError(
        f"{path}: neither 'eval_log_forget.json' (TOFU) nor 'forget_truth_ratio' or 'forget_Q_A_PARA_Prob' "
        f"(open-unlearning) in it, but {keys}; {_FORMATS}"
    )


# Logs of this package


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
    numbered = [(f"{path}:{number}", row) for number, row in read_jsonl(path)]
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
    settings, benchmark = _read_run(path.parent / "run.json")
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
        return _checked(name, value, f"{where}: {name!r}")

    values: dict[str, Any] = {}
    if row["set"] == "forget" or "avg_nll" in row:
        nll = values["avg_nll"] = checked("avg_nll", row.get("avg_nll"))
        paraphrased = row.get("paraphrased_nll")
        values["paraphrased_nll"] = nll if paraphrased is None else checked("paraphrased_nll", paraphrased)
    if row["set"] == "forget" or "perturbed_nll" in row:
        values["perturbed_nll"] = checked("perturbed_nll", row.get("perturbed_nll", []))
    if part == "all":
        for name in (*_SHARES, *_MEMBERSHIP, "tokens"):
            if row.get(name) is not None:
                values[name] = checked(name, row[name])
        if not values.get("perturbed_nll") and row.get("log_truth_ratio") is not None:
            values["log_truth_ratio"] = checked("log_truth_ratio", row["log_truth_ratio"])
    return values


def _read_run(path: Path) -> tuple[dict[str, str | None], str | None]:
    """Settings and benchmark."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, so nobody knows how the rows beside it were made; copy the whole run folder"
        )
    run = _read_json_object(path)
    settings = run.get("evaluation")
    if not isinstance(settings, dict) or not all(isinstance(value, str | None) for value in settings.values()):
        raise UserError(f"{path}: 'evaluation' must be an object of strings; is this the run.json of an evaluated run?")
    benchmark = run.get("benchmark", settings.get("benchmark"))
    return settings, benchmark if isinstance(benchmark, str) and benchmark else None


def _read_aucs(folder: Path, step: int, last_step: int) -> dict[str, float] | None:
    """AUC by score, from names such as ``tofu/mia/min_k`` in the metrics of this very step; None without any."""
    evaluations = []
    if (folder / "metrics.json").is_file():  # the chosen step, which need not be the one that is read
        evaluations.append((str(folder / "metrics.json"), _read_json_object(folder / "metrics.json")))
    if (folder / "metrics.jsonl").is_file():
        evaluations += [
            (f"{folder / 'metrics.jsonl'}:{number}", row) for number, row in read_jsonl(folder / "metrics.jsonl")
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
            aucs[score] = _auc(value, f"{where}: {name!r}")
        break
    return aucs or None


# Foreign logs


def _read_tofu(path: Path, content: Mapping[str, Any], part: Part) -> Log:
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
        if part == "all":
            # num_token_gt counts the labels that avg_gt_loss is the mean over, the end-of-sequence token included.
            optional = {"rougeL_recall": "rouge_l_recall", "num_token_gt": "tokens"}
            columns |= {ours: column(theirs) for theirs, ours in optional.items() if theirs in log}
        rows |= _foreign_rows(path, set_name, columns)
    return Log(source=str(path), kind="tofu", benchmark="tofu", settings={}, rows=rows, has_ids=False)


def _read_open_unlearning(path: Path, content: Mapping[str, Any], part: Part) -> Log:
    aucs = {
        name.removeprefix("mia_"): _auc(metric.get("agg_value"), f"{path}: {name}/agg_value")
        for name, metric in content.items()
        if name.startswith("mia_") and isinstance(metric, dict)
    }
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    notes: list[str] = []
    for prefix, set_name in _OPEN_UNLEARNING_SETS.items():
        if part == "reference" and set_name != "forget":
            continue
        columns = _losses(path, content, prefix, set_name, part, notes)
        if part == "all":
            if f"{prefix}_Q_A_ROUGE" in content:
                columns["rouge_l_recall"] = _column(path, content, f"{prefix}_Q_A_ROUGE", "rougeL_recall")
            if set_name == "forget":
                for name in ("exact_memorization", "extraction_strength"):
                    if name in content:
                        columns[name] = _column(path, content, name, "score")
                columns = _membership_columns(path, content, "forget") | columns
        rows |= _foreign_rows(path, set_name, columns)
    if part == "all":
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
        stated=_stated(path, content) if part == "all" else {},
        notes=tuple(notes),
    )


def _losses(
    path: Path, content: Mapping[str, Any], prefix: str, set_name: str, part: Part, notes: list[str]
) -> dict[str, list[Any]]:
    """The columns of one set's likelihoods; appends to `notes` where its truth ratios are ready-made."""
    columns: dict[str, list[Any]] = {}
    right, wrong = f"{prefix}_Q_A_PARA_Prob", f"{prefix}_Q_A_PERT_Prob"
    ready_made = f"{prefix}_truth_ratio" if set_name == "forget" else f"{prefix}_Truth_Ratio"
    if set_name not in ("forget", "retain"):
        right = f"{prefix}_Q_A_Prob"  # the answer itself stands in for the paraphrase
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
        number = _number(score, where)
        if number <= 0:
            raise UserError(f"{where} must be above 0, got {number}; use a log with {' and '.join(losses)}")
        logs.append(math.log(number))
    return logs


def _membership_columns(path: Path, content: Mapping[str, Any], side: str) -> dict[str, list[Any]]:
    """Scores of the forget or the holdout rows; low = member, as ours."""
    columns = {}
    for score in ("loss", *_MEMBERSHIP):
        metric = content.get(f"mia_{score}")
        if isinstance(metric, dict) and {"forget", "holdout"} <= set(metric):  # else there is an aggregate only
            name = "avg_nll" if score == "loss" else score
            columns[name] = _cells(path, f"mia_{score}/{side}", metric[side], "score")
    return columns


def _stated(path: Path, content: Mapping[str, Any]) -> dict[str, float]:
    return {
        ours: _number(content[theirs]["agg_value"], f"{path}: {theirs}/agg_value")
        for theirs, ours in _OPEN_UNLEARNING_STATED.items()
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
    """Aligned columns as rows, every entry checked."""
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
                continue  # open-unlearning's way to say that an answer has no token
            where = f"{path}: {_ONE.get(name, name)} of {set_name} row {index}"
            rows[set_name, str(index)][name] = _checked(name, value, where)
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
    """The entries of ``{"0": x, "1": y, …}`` in the order of their numbers; a plain list as it is."""
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


# Entries


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        content = json_value(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8. {_FORMATS}") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno}); "
            "is the file whole? Copy it again or evaluate again"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}; {_FORMATS}")
    return content


def _checked(name: str, value: Any, where: str) -> Any:
    """The value of a row's field, or a refusal."""
    if name == "perturbed_nll":
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list of numbers, got {value!r:.60}; evaluate again")
        return [_nll(entry, f"{where}, entry {index}") for index, entry in enumerate(value)]
    if name in ("avg_nll", "paraphrased_nll"):
        return _nll(value, where)
    if name in _SHARES:
        return _share(value, where)
    if name == "tokens":
        if type(value) is not int or value < 1:
            raise UserError(f"{where} must be a number of tokens, at least 1, got {value!r:.60}; evaluate again")
        return value
    return _number(value, where)


def _number(value: Any, where: str) -> float:
    # comparing, unlike math.isfinite, also takes integers beyond the range of floats
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise UserError(f"{where} must be a finite number, got {value!r:.60}; evaluate again")
    return float(value)


def _nll(value: Any, where: str) -> float:
    number = _number(value, where)
    if number < -1e-3:  # below 0 by rounding is fine, a log-probability is not
        raise UserError(f"{where} must be a loss in nats, at least 0, got {number}; is it a log-probability?")
    return number


def _share(value: Any, where: str) -> float:
    number = _number(value, where)
    if not 0 <= number <= 1:
        raise UserError(f"{where} must be in [0, 1], got {number}; evaluate again")
    return number


def _auc(value: Any, where: str) -> float:
    number = _number(value, where)
    if not 0 <= number <= 1:
        raise UserError(f"{where} must be an AUC in [0, 1], got {number}")
    return number
