"""The retain reference: what a model that never saw the forget set gives on it, read from a log and checked.

`read_reference` reads a log, `reference_for` cuts it to the rows that an evaluation has and refuses one that was made
otherwise. Both happen before any model is loaded. Three kinds of log are known:

* ``sga``: a run folder of ours, or its ``rows.jsonl``; settings from ``run.json`` and AUCs from ``metrics.json`` or
  ``metrics.jsonl`` beside it, whichever has the step that is read.
* ``tofu``: ``eval_log_aggregated.json`` of github.com/locuslab/tofu.
* ``open-unlearning``: ``TOFU_EVAL.json`` of github.com/locuslab/open-unlearning.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sga.data.records import read_jsonl
from sga.errors import UserError
from sga.evaluation.metrics import Floats, TruthRatioMean, log_truth_ratio

Kind = Literal["sga", "tofu", "open-unlearning"]

TOFU_ROWS = 300
"""TOFU's own tables cut forget and retain to their first 300 rows."""

_FORMATS = (
    "a reference is a run folder of this package, its rows.jsonl, TOFU's eval_log_aggregated.json "
    "or open-unlearning's TOFU_EVAL.json"
)


@dataclass(frozen=True, eq=False)
class Reference:
    """What the retain model gives on the forget set, one entry a row.

    Attributes:
        source: The file that was read.
        kind: Who wrote it.
        settings: How the log was made (template, split, dtype, …); what it does not state is missing or None.
        answer_nll: [N], avg_nll of the answers, nats per token; None where the log does not have them.
        right_nll: [N], avg_nll of the paraphrased answers, of the answer itself where there is none. None where the
            log has ready-made truth ratios only.
        wrong_nll: N tuples, avg_nll of the perturbed answers; empty tuples where the benchmark has none. None as above.
        truth_ratio: [N], ready-made R, used only where the losses are missing.
        ids: N ids of the records; None for a foreign log, whose rows are known by their position.
        membership_auc: AUC by score (``"min_k"``, ``"loss"``, …), 1.0 = members recognised perfectly; None where the
            log has none.
        notes: What a reader of the results should know about this reference.
    """

    source: str
    kind: Kind
    settings: Mapping[str, str | None]
    answer_nll: Floats | None
    right_nll: Floats | None
    wrong_nll: tuple[tuple[float, ...], ...] | None
    truth_ratio: Floats | None = None
    ids: tuple[str, ...] | None = None
    membership_auc: Mapping[str, float] | None = None
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        """Number of rows."""
        for rows in (self.right_nll, self.truth_ratio):
            if rows is not None:
                return len(rows)
        raise AssertionError("a reference has losses or truth ratios")

    def log_truth_ratio(self, mean: TruthRatioMean = "geometric") -> Floats:
        """log R of each row, [N], as `sga.evaluation.metrics.log_truth_ratio`; any real number.

        Raises:
            UserError: the log has no perturbed answers; or only ready-made truth ratios, and `mean` is not geometric.
        """
        if self.right_nll is None or self.wrong_nll is None:
            assert self.truth_ratio is not None
            if mean != "geometric":
                raise UserError(
                    f"{self.source}: holds ready-made truth ratios of the geometric mean only, so the {mean} mean "
                    "cannot be had from it; use mean 'geometric' or a log with the losses of the single answers"
                )
            return np.log(self.truth_ratio)
        if not any(self.wrong_nll):
            raise UserError(
                f"{self.source}: its forget rows have no perturbed answers, so they give no truth ratio; "
                "use a reference that was evaluated on records with 'perturbed_answer'"
            )
        return log_truth_ratio(self.right_nll, self.wrong_nll, mean)


def read_reference(path: str | Path, step: int | None = None) -> Reference:
    """Reads a retain reference of any of the three kinds; a foreign log is known by its content, not by its name.

    Args:
        path: A run folder of ours, its ``rows.jsonl``, or a foreign log.
        step: Which evaluation step of a log of ours; the last one by default.

    Raises:
        UserError: there is nothing to read, the format is none of the three, or the content is not whole: truncated
            JSON, missing or duplicate rows, entries that are not finite numbers, lists of unequal length. Names the
            file, the place and what to do.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "rows.jsonl").is_file():
            raise UserError(f"{path}: no rows.jsonl in this folder; {_FORMATS}")
        return _read_sga(path / "rows.jsonl", step)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; {_FORMATS}")
    if path.suffix == ".jsonl":
        return _read_sga(path, step)
    content = _read_json_object(path)
    if step is not None:
        raise UserError(f"{path}: step {step} was asked for, but only run folders of this package have steps")
    if "eval_log_forget.json" in content:
        return _read_tofu(path, content)
    if "forget_truth_ratio" in content or {"forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"} & set(content):
        return _read_open_unlearning(path, content)
    keys = ", ".join(repr(key) for key in list(content)[:5]) or "nothing"
    raise UserError(
        f"{path}: neither 'eval_log_forget.json' (TOFU) nor 'forget_truth_ratio' or 'forget_Q_A_PARA_Prob' "
        f"(open-unlearning) in it, but {keys}; {_FORMATS}"
    )


def reference_for(reference: Reference, ids: Sequence[str], settings: Mapping[str, str | None]) -> Reference:
    """The reference's rows for the forget records of an evaluation, in their order, or a refusal.

    A log of ours is matched by id. A foreign log has positions only: its rows must be as many as ours, or the first 300
    of ours, as in TOFU's tables; then the result has 300 rows, says so in its notes, and belongs to the first
    ``len(result)`` rows of ours: compare ``own[: len(result)]``.

    Args:
        reference: What `read_reference` gave.
        ids: Ids of our forget records in the order of the benchmark's file, which foreign rows are matched to.
        settings: How the evaluation is made. A setting that only this side states is unknown there, which goes
            into the notes.

    Returns:
        At most ``len(ids)`` rows.

    Raises:
        UserError: a setting that both state differs (every difference is named), ids are missing from the reference, or
            the number of rows of a foreign log fits neither all nor the first 300 of ours.
    """
    differences = [
        f"{name} is {reference.settings[name]!r} there and {value!r} here"
        for name, value in settings.items()
        if value is not None and reference.settings.get(name) not in (None, value)
    ]
    if differences:
        raise UserError(
            f"{reference.source}: made with other settings: {'; '.join(differences)}; "
            "evaluate the retain model with these settings, or this model with those"
        )
    notes = list(reference.notes)
    unknown = [name for name, value in settings.items() if value is not None and reference.settings.get(name) is None]
    if unknown:
        notes.append(f"the reference does not state {', '.join(unknown)}: not checked")
    if not ids:
        raise UserError("no forget record to compare with the reference")
    if len(ids) != len(reference) and reference.membership_auc is not None:
        notes.append(f"the reference's AUCs are of {len(reference)} forget records, not of {len(ids)}: not used")
        reference = replace(reference, membership_auc=None)
    if reference.ids is None:
        rows = _first_rows(reference, len(ids))
        if rows < len(ids):
            notes.append(
                f"the reference has {rows} rows: compared with the first {rows} of {len(ids)} forget records only"
            )
        return _take(reference, list(range(rows)), notes)
    position = {record_id: index for index, record_id in enumerate(reference.ids)}
    missing = [record_id for record_id in ids if record_id not in position]
    if missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"{reference.source}: {len(missing)} of {len(ids)} forget records are not in the reference ({some}); "
            "evaluate the retain model on the same forget records"
        )
    return _take(reference, [position[record_id] for record_id in ids], notes)


def _first_rows(reference: Reference, n: int) -> int:
    if len(reference) == n or (len(reference) == TOFU_ROWS < n):
        return len(reference)
    raise UserError(
        f"{reference.source}: {len(reference)} rows against our {n} forget records; a log without ids must have as "
        f"many rows, or TOFU's first {TOFU_ROWS}. Use the log of the same forget split, and evaluate all of its records"
    )


def _take(reference: Reference, rows: list[int], notes: Sequence[str]) -> Reference:
    def taken(values: Floats | None) -> Floats | None:
        return None if values is None else values[rows]

    return replace(
        reference,
        answer_nll=taken(reference.answer_nll),
        right_nll=taken(reference.right_nll),
        wrong_nll=None if reference.wrong_nll is None else tuple(reference.wrong_nll[row] for row in rows),
        truth_ratio=taken(reference.truth_ratio),
        ids=None if reference.ids is None else tuple(reference.ids[row] for row in rows),
        notes=tuple(notes),
    )


# Logs of this package


def _read_sga(path: Path, step: int | None) -> Reference:
    numbered = read_jsonl(path)
    for number, row in numbered:
        if type(row.get("step")) is not int or not isinstance(row.get("set"), str):
            raise UserError(
                f"{path}:{number}: needs 'step' (an integer) and 'set' (a string); is this the rows.jsonl of a run?"
            )
    steps = sorted({row["step"] for _, row in numbered})
    if not steps:
        raise UserError(f"{path}: holds no row; the run ended before its first evaluation")
    if step is not None and step not in steps:
        raise UserError(f"{path}: no rows of step {step}; it has {', '.join(map(str, steps))}")
    chosen = steps[-1] if step is None else step
    ids: list[str] = []
    answer, right, wrong = [], [], []
    for number, row in numbered:
        if row["step"] != chosen or row["set"] != "forget":
            continue
        where = f"{path}:{number}"
        record_id = row.get("id")
        if not isinstance(record_id, str):
            raise UserError(f"{where}: 'id' must be a string, got {record_id!r}")
        ids.append(record_id)
        nll = _nll(row.get("avg_nll"), f"{where}: 'avg_nll'")
        paraphrased = row.get("paraphrased_nll")
        answer.append(nll)
        right.append(nll if paraphrased is None else _nll(paraphrased, f"{where}: 'paraphrased_nll'"))
        wrong.append(_nlls(row.get("perturbed_nll", []), f"{where}: 'perturbed_nll'"))
    if not ids:
        raise UserError(f"{path}: no row of the set 'forget' at step {chosen}; evaluate the retain model on it")
    if len(set(ids)) < len(ids):
        twice = next(record_id for index, record_id in enumerate(ids) if record_id in ids[:index])
        raise UserError(f"{path}: {twice!r} occurs twice in 'forget' at step {chosen}; were two runs joined?")
    if any(wrong) and not all(wrong):
        without = ids[wrong.index(())]
        raise UserError(f"{path}: {without!r} has an empty 'perturbed_nll' and other forget rows do not")
    return Reference(
        source=str(path),
        kind="sga",
        settings=_read_settings(path.parent / "run.json"),
        answer_nll=np.array(answer),
        right_nll=np.array(right),
        wrong_nll=tuple(wrong),
        ids=tuple(ids),
        membership_auc=_read_aucs(path.parent, chosen, steps[-1]),
    )


def _read_settings(path: Path) -> dict[str, str | None]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, so nobody knows how the rows beside it were made; copy the whole run folder"
        )
    settings = _read_json_object(path).get("evaluation")
    if not isinstance(settings, dict) or not all(isinstance(value, str | None) for value in settings.values()):
        raise UserError(f"{path}: 'evaluation' must be an object of strings; is this the run.json of an evaluated run?")
    return settings


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


def _read_tofu(path: Path, content: Mapping[str, Any]) -> Reference:
    forget = content["eval_log_forget.json"]
    columns: dict[str, list[Any]] = {}
    for name in ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss"):
        if not isinstance(forget, dict) or name not in forget:
            raise UserError(f"{path}: 'eval_log_forget.json' has no {name!r}; use TOFU's eval_log_aggregated.json")
        columns[name] = _by_index(forget[name], f"{path}: eval_log_forget.json/{name}")
    return _foreign(
        path,
        "tofu",
        columns["avg_gt_loss"],
        columns["avg_paraphrased_loss"],
        columns["average_perturb_loss"],
    )


def _read_open_unlearning(path: Path, content: Mapping[str, Any]) -> Reference:
    aucs = {
        name.removeprefix("mia_"): _auc(metric.get("agg_value"), f"{path}: {name}/agg_value")
        for name, metric in content.items()
        if name.startswith("mia_") and isinstance(metric, dict)
    }

    def column(metric: str, value: str) -> list[Any]:
        where = f"{path}: {metric}"
        entry = content[metric]
        if not isinstance(entry, dict) or "value_by_index" not in entry:
            raise UserError(f"{where} has no 'value_by_index'; use TOFU_EVAL.json, not TOFU_SUMMARY.json")
        cells = _by_index(entry["value_by_index"], f"{where}/value_by_index")
        for index, cell in enumerate(cells):
            if not isinstance(cell, dict) or value not in cell:
                raise UserError(f"{where}/value_by_index/{index} has no {value!r}, got {cell!r:.60}; evaluate again")
        return [cell[value] for cell in cells]

    answer = column("forget_Q_A_Prob", "avg_loss") if "forget_Q_A_Prob" in content else None
    losses = ("forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob")
    if all(name in content for name in losses):
        return _foreign(
            path, "open-unlearning", answer, column(losses[0], "avg_loss"), column(losses[1], "avg_loss"), aucs
        )
    missing = " and ".join(name for name in losses if name not in content)
    if "forget_truth_ratio" not in content:
        raise UserError(f"{path}: {missing} is missing, and forget_truth_ratio too; evaluate again with one of them")
    scores = [
        _number(score, f"{path}: forget_truth_ratio/value_by_index/{index}/score")
        for index, score in enumerate(column("forget_truth_ratio", "score"))
    ]
    if min(scores) <= 0:
        index = scores.index(min(scores))
        raise UserError(
            f"{path}: forget_truth_ratio/value_by_index/{index}/score must be above 0, got {scores[index]}; "
            f"use a log with {' and '.join(losses)}"
        )
    return Reference(
        source=str(path),
        kind="open-unlearning",
        settings={},
        answer_nll=None if answer is None else _answer_nll(path, answer, len(scores)),
        right_nll=None,
        wrong_nll=None,
        truth_ratio=np.array(scores),
        membership_auc=aucs or None,
        notes=(
            f"truth ratios taken ready-made, because the log lacks {missing}: with open-unlearning's 1e-10 in the "
            "denominator they are too low where the answer's avg_nll is large (by 0.2 % at 17, by half at 23)",
        ),
    )


def _foreign(
    path: Path,
    kind: Kind,
    answer: Sequence[Any] | None,
    right: Sequence[Any],
    wrong: Sequence[Any],
    aucs: Mapping[str, float] | None = None,
) -> Reference:
    if len(right) != len(wrong):
        raise UserError(
            f"{path}: {len(right)} paraphrased answers and {len(wrong)} lists of perturbed ones in the forget set; "
            "the log is not whole, evaluate again"
        )
    wrong_nll = tuple(
        _nlls(losses, f"{path}: perturbed answers of forget row {row}") for row, losses in enumerate(wrong)
    )
    for row, losses in enumerate(wrong_nll):
        if not losses or len(losses) != len(wrong_nll[0]):
            raise UserError(
                f"{path}: {len(losses)} perturbed answers in forget row {row} and {len(wrong_nll[0])} in row 0; "
                "TOFU has as many in each row, evaluate again"
            )
    return Reference(
        source=str(path),
        kind=kind,
        settings={},
        answer_nll=None if answer is None else _answer_nll(path, answer, len(right)),
        right_nll=np.array([_nll(x, f"{path}: paraphrased answer of forget row {row}") for row, x in enumerate(right)]),
        wrong_nll=wrong_nll,
        membership_auc=aucs or None,
    )


def _answer_nll(path: Path, answer: Sequence[Any], rows: int) -> Floats:
    if len(answer) != rows:
        raise UserError(
            f"{path}: {len(answer)} answers and {rows} rows of truth ratios in the forget set; evaluate again"
        )
    return np.array([_nll(x, f"{path}: answer of forget row {row}") for row, x in enumerate(answer)])


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno}); "
            "is the file whole? Copy it again or evaluate again"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}; {_FORMATS}")
    return content


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


def _nlls(values: Any, where: str) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise UserError(f"{where} must be a list of numbers, got {values!r:.60}; evaluate again")
    return tuple(_nll(value, f"{where}, entry {index}") for index, value in enumerate(values))


def _auc(value: Any, where: str) -> float:
    number = _number(value, where)
    if not 0 <= number <= 1:
        raise UserError(f"{where} must be an AUC in [0, 1], got {number}")
    return number
