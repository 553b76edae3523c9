"""`sga score`: metrics of a log of per-sample numbers, of this package or another program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from sga.commands.parsing import verb
from sga.data.records import FORGET_PARAPHRASED
from sga.data.reserved import RETAIN_UNSEEN
from sga.errors import UserError, check_numbers
from sga.evaluation.aggregation import (
    MEMBERSHIP_SCORES,
    MEMORIZATION_SCORES,
    UTILITY_SETS,
    add_book,
    add_fluency,
    add_forget_quality,
    add_membership,
    add_memorization,
    add_muse,
    add_perplexity,
    add_retain_normals,
    add_utility,
)
from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.composite import add_composite, check_same, full_values
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.log import Kind, Log
from sga.evaluation.metrics import (
    TruthRatioMean,
    forget_quality,
    privleak,
)
from sga.evaluation.reference import (
    METRIC_SETTINGS,
    UNSTATED,
    RetainReference,
    are_first_rows,
    fill_reference_scores,
    min_k_aucs,
    reference_for,
    reference_for_positions,
)
from sga.evaluation.table import evaluation_table, hanging
from sga.files import write_json
from sga.runs.foreign_logs import OPEN_UNLEARNING_NAMES
from sga.runs.logs import read_log
from sga.runs.open_unlearning import EPSILON, open_unlearning_log
from sga.runs.references import read_retain_reference

_KINDS: dict[Kind, str] = {"sga": "run of this package", "tofu": "TOFU", "open-unlearning": "open-unlearning"}

_TOLERANCE = 1e-6
"""Relative difference above which a stated and a computed number are two; their float32 exp stays below it."""


@verb("score")
def main(
    log: Path,
    *,
    reference: Sequence[Path] = (),
    step: int | None = None,
    reference_step: int | None = None,
    truth_ratio_mean: Literal["geometric", "arithmetic"] = "geometric",
    reference_auc: float | None = None,
    full: Path | None = None,
    output: Path | None = None,
    no_intervals: bool = False,
) -> int:
    """Compute every metric that a log's rows allow, with 95 % bootstrap intervals.

    A log is a run folder of this package or its rows.jsonl, TOFU's eval_log_aggregated.json, or open-unlearning's
    TOFU_EVAL.json. No model is loaded. Forget quality and PrivLeak need the retain model's log, of any of the three
    kinds.

    Args:
        log (LOG): Path of the log to score.
        reference (LOG): Log of a model that never saw the forget set; after LOG also several, for the mean log10 p
            against them.
        step: Evaluation step of a run of this package (default: the last).
        reference_step: Evaluation step of the reference (default: the last).
        truth_ratio_mean: Mean over the perturbed answers of the forget set (default geometric, as TOFU's aggregation).
        reference_auc: AUC of Min-K % of a retrained model, for PrivLeak, in place of the reference's; 0.5 gives
            open-unlearning's default.
        full (LOG): Log of the model before unlearning, on the same rows, for the composite score's utility.
        output (FILE.json): Path of a JSON file to which all of it is written as well.
        no_intervals: Leave the bootstrap intervals out.
    """
    if reference_step is not None and not reference:
        raise UserError(f"--reference-step {reference_step} needs --reference")
    check_numbers(0, below=1, **{"--reference-auc": reference_auc})
    if output is not None and output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file in it")
    scored = read_log(log, step)
    if len(set(reference)) < len(reference):
        raise UserError(f"--reference names a log twice: {', '.join(map(str, reference))}")
    references = [read_retain_reference(path, reference_step) for path in reference]
    bootstrap = None if no_intervals else Bootstrap()
    before = None if full is None else read_log(full)
    evaluation = score_log(scored, references, truth_ratio_mean, reference_auc, bootstrap, before)
    theirs = None
    if reference:
        own = [_own_values(path, reference_step, scored, truth_ratio_mean, evaluation) for path in reference]
        theirs = _mean_values([values for values in own if values is not None])
    print(_heading(scored, references))
    print()
    print(evaluation_table(evaluation, theirs))
    if output is not None:
        content = {
            "log": _origin(scored),
            "reference": _origin(references[0]) if len(references) == 1 else [*map(_origin, references)] or None,
            "truth_ratio_mean": truth_ratio_mean,
            "metrics": evaluation.metrics,
            "reference_metrics": theirs,
            "absent": evaluation.absent,
            "notes": evaluation.notes,
        }
        try:
            write_json(output, content)
        except OSError as error:
            raise UserError(f"--output {output} cannot be written: {error.strerror}; name another file") from None
        print(f"\n{output}")
    return 0


def score_log(
    log: Log,
    references: Sequence[RetainReference] = (),
    mean: TruthRatioMean = "geometric",
    reference_auc: float | None = None,
    bootstrap: Bootstrap | None = None,
    full: Log | None = None,
) -> Evaluation:
    """Metrics that a log allows; the others are absent, with a reason.

    Args:
        log: Log that `sga.runs.logs.read_log` returned.
        references: References that `sga.runs.references.read_retain_reference` returned, not yet aligned.
        mean: Mean over the perturbed answers of the forget set.
        reference_auc: AUC of Min-K % of a retrained model, in place of the reference's.
        bootstrap: Bootstrap of the intervals; None leaves them out.
        full: Log of the model before unlearning, for the utility of the composite score.

    Raises:
        UserError: the log has no forget rows or no benchmark, the reference was made with other settings or of other
            rows, or `mean` cannot be had because truth ratios are ready-made.
    """
    if log.benchmark is None:
        raise UserError(f"{log.source}: its run.json has no 'benchmark', which metrics are named after; is it whole?")
    if "forget" not in log.sets:
        have = ", ".join(log.sets)
        raise UserError(f"{log.source}: has no rows of the forget set, only of {have}; evaluate the forget set too")
    evaluation = Evaluation(log.benchmark, bootstrap=bootstrap)
    evaluation.rows = {key: dict(row) for key, row in log.rows.items()}
    if mean != "geometric" and any("log_truth_ratio" in row for row in log.of_set("forget")):
        raise UserError(
            f"{log.source}: holds ready-made truth ratios of the geometric mean only, so the {mean} mean cannot be had "
            "from it; leave out --truth-ratio-mean or use a log with the losses of the single answers"
        )
    evaluation.notes += log.notes
    if mean != "geometric":
        evaluation.note(f"the forget set's truth ratios take the {mean} mean, not TOFU's geometric one")
    if log.settings.get("rouge_tokenizer"):
        evaluation.note(f"ROUGE counts words by rouge_tokenizer {log.settings['rouge_tokenizer']}, not as published")
    for note in dict.fromkeys(note for one in references or (None,) for note in _settings_notes(log, one)):
        evaluation.note(note)
    aligned = [_aligned(log, reference) for reference in references]
    for reference, one in zip(references, aligned, strict=True):
        for note in one.notes:
            evaluation.note(f"reference: {note}" if note in reference.notes else note)
    refilled = bool(aligned) and log.has_ids and _fill_reference_scores(evaluation, aligned)
    if not refilled and evaluation.column("holdout", "reference") is not None:
        evaluation.note(f"{log.benchmark}/mia/reference: against the reference model that the log was made with")
    reasons = _reasons(evaluation, aligned)
    if evaluation.name == "muse":
        add_muse(evaluation, reasons)
    elif evaluation.name == "book":
        add_book(evaluation, reasons)
    else:
        add_utility(evaluation, reasons)
        add_forget_quality(evaluation, aligned, reasons, mean)
    _add_membership(evaluation, log, aligned, reference_auc, reasons)
    add_memorization(evaluation, reasons)
    add_retain_normals(evaluation)
    add_fluency(evaluation)
    if evaluation.name not in ("muse", "book"):
        _add_composite(evaluation, log, aligned, full)
    _add_perplexity(evaluation, reasons)
    _compare_with_stated(evaluation, log, aligned, mean)
    return evaluation


def _add_composite(evaluation: Evaluation, log: Log, aligned: Sequence[RetainReference], full: Log | None) -> None:
    """Adds the composite score, of which utility needs the full model's log."""
    values: dict[str, float] = {}
    if full is not None:
        check_same(log, full, ("forget", *UTILITY_SETS))
        values = full_values(score_log(replace(full, benchmark=log.benchmark)).metrics, evaluation.name)
    aucs = [one.membership_auc or {} for one in aligned]
    why = "the full model's log is not given (--full LOG)"
    add_composite(evaluation, aucs, values, log.settings.get("min_k_share"), why)


def _own_values(
    path: Path, step: int | None, log: Log, mean: TruthRatioMean, evaluation: Evaluation
) -> dict[str, float] | None:
    """Metrics of the reference on the log's rows, as far as it has them; None, with a note, if it has too little.

    Metrics that compare it with a reference of its own are left out.
    """
    try:
        theirs = read_log(path, step)
        rows = {key: row for key, row in theirs.rows.items() if key in log.rows} or theirs.rows
        found = score_log(replace(theirs, rows=rows, benchmark=log.benchmark), (), mean).metrics
    except UserError as error:
        evaluation.note(f"the reference's own values are not shown: {error}")
        return None
    if len(rows) != len(log.rows):
        evaluation.note(f"the reference's own values are of {len(rows)} rows, the log's of {len(log.rows)}")
    here, there = {**UNSTATED, **log.settings}, {**UNSTATED, **theirs.settings}
    for name in (*METRIC_SETTINGS, "min_k_share"):
        if here.get(name) and there.get(name) and here[name] != there[name]:
            evaluation.note(f"the reference's own values were made with {name} {there[name]}, not {here[name]}")
    return {name: value for name, value in found.items() if not name.endswith("/mia/reference")}


def _mean_values(found: Sequence[dict[str, float]]) -> dict[str, float] | None:
    """Means of the references' own values, as far as all have them; None without one."""
    if not found:
        return None
    names = [name for name in found[0] if all(name in values for values in found)]
    return {name: math.fsum(values[name] for values in found) / len(found) for name in names}


def _aligned(log: Log, reference: RetainReference) -> RetainReference:
    ids = log.ids("forget")
    if not log.has_ids:
        return reference_for_positions(reference, len(ids), log.settings)
    if reference.forget_ids is None and not are_first_rows(ids):
        raise UserError(
            f"{reference.source} has no ids, so its rows belong to the first rows of the forget set, but the log's are "
            f"others ({ids[0]} first); score an evaluation of every row (sga test), or use a run of this package as "
            "reference"
        )
    return reference_for(reference, ids, log.settings)


def _settings_notes(log: Log, reference: RetainReference | None) -> list[str]:
    """Notes on settings that the log or the reference does not state."""
    here = {name for name, value in log.settings.items() if value is not None}
    there = [name for name, value in reference.settings.items() if value is not None] if reference is not None else []
    unknown = [name for name in there if name not in here]
    notes = []
    if not here:
        names = ", ".join(unknown) or "template, dtype, precision, …"
        notes.append(f"the log does not state how it was made: {names} are unknown")
    elif unknown:
        notes.append(f"the log does not state {', '.join(unknown)}: not checked")
    if reference is not None and not here and not there:
        notes.append("the reference does not state how it was made either: whether the two fit is not checked")
    return notes


def _fill_reference_scores(evaluation: Evaluation, aligned: Sequence[RetainReference]) -> bool:
    """Fills the membership score ``reference``, avg_nll beyond the reference model's; False where that is unknown."""
    losses = {name: [one.losses(name) for one in aligned] for name in ("forget", "holdout")}
    if not all(found for sides in losses.values() for found in sides):
        return False
    for (set_name, record_id), row in evaluation.rows.items():
        for name in ("reference", "reference_each"):
            row.pop(name, None)  # of the reference that the run was evaluated with, which may be another
        if "avg_nll" in row:
            fill_reference_scores(row, record_id, losses.get(set_name, ()))
    return True


def _reasons(evaluation: Evaluation, aligned: Sequence[RetainReference]) -> dict[str, str]:
    """Reasons for absent metrics, in the form that `sga.evaluation.aggregation` takes."""
    needs: dict[str, dict[str, tuple[str, ...]]] = {}
    for name in ("forget", *UTILITY_SETS, *filter(evaluation.of_set, (RETAIN_UNSEEN, FORGET_PARAPHRASED))):
        options = ("perturbed_nll",) if name in ("real_authors", "world_facts") else ()
        needs[name] = {
            "probability": ("avg_nll", *options),
            "rouge_l_recall": ("rouge_l_recall",),
            "truth_ratio": ("paraphrased_nll", "perturbed_nll"),
            "perplexity": ("avg_nll", "tokens"),
        }
    needs["forget"] |= {name: (name,) for name in MEMORIZATION_SCORES}
    needs["holdout"] = {name: (_column(name),) for name in MEMBERSHIP_SCORES}
    needs["forget"] |= needs["holdout"]
    reasons: dict[str, str] = {}
    for set_name, parts in needs.items():
        rows = evaluation.of_set(set_name)
        if not rows:
            reasons[set_name] = f"the log has no {set_name} rows"
            continue
        for part, fields in parts.items():
            for name in fields:
                lacking = sum(row.get(name) in (None, []) for row in rows)
                if lacking:
                    reasons.setdefault(f"{set_name}/{part}", f"{lacking} of {len(rows)} {set_name} rows have no {name}")
    reasons["forget/reference"] = "no reference (--reference LOG)"
    if "holdout" not in reasons and (not aligned or any(one.holdout_nll is None for one in aligned)):
        reasons["holdout/reference"] = "no reference with losses of forget and holdout rows (--reference RUN)"
    if not aligned:
        reasons["forget/privleak"] = "no reference (--reference LOG or --reference-auc X)"
    else:
        reasons["forget/privleak"] = "the reference has no AUC of Min-K % for these rows (--reference-auc X)"
    return reasons


def _column(membership_score: str) -> str:
    """The field of a row that holds a membership score."""
    return "avg_nll" if membership_score == "loss" else membership_score


def _add_membership(
    evaluation: Evaluation,
    log: Log,
    aligned: Sequence[RetainReference],
    reference_auc: float | None,
    reasons: dict[str, str],
) -> None:
    """Adds AUCs, from rows or as a foreign log states them, and PrivLeak."""
    taken = []
    for name, auc in {} if log.kind == "sga" else (log.membership_auc or {}).items():
        if any(evaluation.column(side, _column(name)) is None for side in ("forget", "holdout")):
            evaluation.add(f"{evaluation.name}/mia/{name}", auc)
            taken.append(f"{evaluation.name}/mia/{name}")
    if taken:
        evaluation.note(f"{', '.join(taken)}: as stated in the log, which has no rows of it, so without an interval")
    theirs, _ = min_k_aucs(aligned)
    if reference_auc is not None and theirs and theirs != [reference_auc]:
        stated = " and ".join(map(str, theirs))
        evaluation.note(
            f"PrivLeak takes {reference_auc} as the reference's AUC (--reference-auc), which states {stated}"
        )
    add_membership(evaluation, theirs if reference_auc is None else [reference_auc], reasons)
    for name in taken:
        evaluation.absent.pop(name, None)


def _add_perplexity(evaluation: Evaluation, reasons: dict[str, str]) -> None:
    """Adds the token-weighted perplexity of the forget and retain answers, and its logarithm."""
    for set_name in ("forget", "retain", *([RETAIN_UNSEEN] if evaluation.of_set(RETAIN_UNSEEN) else [])):
        name = f"perplexity/{set_name}"
        nll, tokens = evaluation.column(set_name, "avg_nll"), evaluation.column(set_name, "tokens")
        if nll is None or tokens is None:
            evaluation.absent[name] = reasons.get(f"{set_name}/perplexity") or reasons[set_name]
            continue
        add_perplexity(evaluation, set_name, nll * tokens, tokens)


# What the log states itself


def _compare_with_stated(
    evaluation: Evaluation, log: Log, aligned: Sequence[RetainReference], mean: TruthRatioMean
) -> None:
    """Notes each aggregate of a foreign log that differs from the one computed from its rows, and the reason if known.

    The reason of an absent metric names the number in the log.
    """
    stated = dict(log.stated)
    if log.kind != "sga":
        stated |= {f"mia/{name}": auc for name, auc in (log.membership_auc or {}).items()}
    theirs = _as_open_unlearning(log, evaluation, aligned[0] if len(aligned) == 1 else None) if stated else {}
    for name, value in stated.items():
        ours = evaluation.metrics.get(f"{evaluation.name}/{name}")
        if f"{evaluation.name}/{name}" in evaluation.absent:
            evaluation.absent[f"{evaluation.name}/{name}"] += f" (the log states {value:.6g})"
        if ours is None or _same(ours, value):
            continue
        if name in theirs and _same(theirs[name], value):
            why = (
                "its own takes 0.5 for the reference's AUC"
                if name == "privleak"
                else "its own truth ratio has 1e-10 in the denominator, ours is taken in log space"
            )
        elif name in ("forget/truth_ratio", "forget_quality") and mean != "geometric":
            why = "its own takes the geometric mean"
        elif name in ("forget_quality", "privleak"):
            why = "its own may have been taken against another reference, which it does not name"
        else:
            why = "no reason is known; are all its parts of one evaluation?"
        evaluation.note(
            f"{evaluation.name}/{name}: the log states {value:.10g}, its rows give {ours:.10g} "
            f"(relative difference {abs(ours - value) / max(abs(ours), abs(value)):.1e}): {why}"
        )


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= _TOLERANCE * max(abs(one), abs(other))


def _as_open_unlearning(log: Log, evaluation: Evaluation, aligned: RetainReference | None) -> dict[str, float]:
    """Values that open-unlearning computes differently from the same losses, by metric name without prefix.

    Its R is P_wrong / (P_right + 1e-10), and its PrivLeak takes a reference AUC of 0.5 where it has none.
    """
    metrics, prefix = evaluation.metrics, evaluation.name
    content = open_unlearning_log(log, {}) if "forget" in log.sets else {}
    differing = ("model_utility", *(f"{set_name}/truth_ratio" for set_name in ("forget", *UTILITY_SETS)))
    found = {
        ours: content[theirs]["agg_value"]
        for theirs, ours in OPEN_UNLEARNING_NAMES.items()
        if theirs in content and ours in differing
    }
    if aligned is not None and "forget/truth_ratio" in found and f"{prefix}/forget_quality" in metrics:
        with np.errstate(divide="ignore"):  # a ratio that a float cannot hold is as low as any
            ratio = np.log([cell["score"] for cell in content["forget_truth_ratio"]["value_by_index"].values()])
        theirs = aligned.log_truth_ratio()
        if aligned.right_nll is not None:
            theirs = theirs - np.logaddexp(0.0, aligned.right_nll + math.log(EPSILON))
        found["forget_quality"] = forget_quality(ratio[: len(theirs)], theirs).p_value
    if f"{prefix}/mia/min_k" in metrics:
        found["privleak"] = privleak(metrics[f"{prefix}/mia/min_k"], 0.5)
    return found


# What is printed


def _origin(source: Log) -> dict[str, object]:
    rows = {"forget": len(source)} if isinstance(source, RetainReference) else source.sets
    return {
        "source": source.source,
        "kind": source.kind,
        "step": source.step,
        "settings": dict(source.settings),
        "rows": rows,
    }


def _heading(log: Log, references: Sequence[RetainReference]) -> str:
    rows = ", ".join(f"{name} {count}" for name, count in log.sets.items())
    lines = [hanging("log        ", f"{log.source} ({_made_by(log)}; rows: {rows})")]
    for reference in references:
        made = f"{reference.source} ({_made_by(reference)}; {len(reference)} forget rows)"
        lines.append(hanging("reference  ", made))
    return "\n".join(lines)


def _made_by(source: Log) -> str:
    return _KINDS[source.kind] + ("" if source.step is None else f", step {source.step}")
