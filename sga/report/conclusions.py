"""Five sentences that follow from the numbers, in either direction, and cautions about the comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from sga.evaluation.metrics import DIVERGED
from sga.evaluation.reference import UNSTATED
from sga.rates.smoothing import equivalent_normal_weight
from sga.report.seed_groups import SeedGroup, pick
from sga.report.summary import fixed, p_value, perplexity_text, retain_mean, span
from sga.runs.folder import Run, plain

FORGET_QUALITY_LEVEL = 0.05
"""Forget quality above which the KS test sees no difference from the retain model."""

_NLL_TOLERANCE = 0.05  # relative to the retain model's
_AUC_TOLERANCE = 0.02
_APART = " (the ranges over the seeds do not overlap)"


def conclusions(settings: Sequence[SeedGroup]) -> list[str]:
    """Sentences on GA, the best smoothing rate, GD beside it, the forget quality, and over- or under-unlearning."""
    return [
        _fate_of_gradient_ascent(settings),
        _best_rate(settings),
        _gradient_difference(settings),
        _forget_quality(settings),
        _over_or_under(settings),
    ]


def has_forget_quality(settings: Sequence[SeedGroup]) -> bool:
    """True if a run was held against a retain model, or if there is nothing but such models to tell of."""
    unlearned = [setting for setting in settings if setting.first.role == "unlearn"]
    return not unlearned or any(setting.values("forget_quality_log10") for setting in unlearned)


def before_and_after(settings: Sequence[SeedGroup]) -> list[str]:
    """Sentences on each setting's change of ROUGE-L and probability, for runs without a retain model."""
    sentences = []
    for setting in settings:
        if setting.first.role != "unlearn":
            continue
        moved = []
        for name, words in _MOVED:
            pairs = [
                (old, new)
                for run in setting.runs
                if run.evaluations[0]["step"] == 0
                and (old := run.value(name, run.evaluations[0])) is not None
                and (new := run.value(name)) is not None
            ]
            if pairs:
                old, new = (fmean([pair[place] for pair in pairs]) for place in (0, 1))
                moved.append(f"{words} from {fixed(old)} to {fixed(new)}")
        if moved:
            seeds = "" if len(setting.runs) > 1 else "; one seed cannot tell how much of that is chance"
            sentences.append(f"{setting.label} takes {', '.join(moved)}{seeds}.")
    return sentences


_MOVED = tuple(
    (f"{name}/{metric}", f"{name} {words}")
    for name in ("forget", "retain")
    for metric, words in (("rouge_l_recall", "ROUGE-L"), ("probability", "probability"))
)


def cautions(settings: Sequence[SeedGroup]) -> list[str]:
    """Cautions about a comparison of these runs: other data, other evaluations, too few seeds."""
    runs = [run for setting in settings if setting.first.role == "unlearn" for run in setting.runs]
    notes = []
    if len([s for s in settings if s.first.method == "SGA"]) > 1:
        notes.append("The best smoothing rate is picked on the same runs that it is reported on, which flatters it.")
    if any(len(s.runs) == 1 for s in settings if s.first.role == "unlearn"):
        notes.append("Where a setting has one seed, how far its numbers would move with another is unknown.")
    sizes = sorted({n for run in runs if (n := run.value("ks_n")) is not None})
    if len(sizes) > 1:
        notes.append(
            f"The forget sets differ in size (n = {', '.join(plain(n) for n in sizes)}), "
            "so p-values and frontier areas are not comparable."
        )
    if len({tuple(evaluation["step"] for evaluation in run.evaluations) for run in runs}) > 1:
        notes.append("The runs were evaluated at different steps, which moves frontier areas.")
    if len({run.key("utility") for run in runs if run.role == "unlearn" and run.frontier}) > 1:
        notes.append(
            "Only some runs have reserved rows: the frontier areas of the others are over rows that unlearning may "
            "have seen, which flatters them."
        )
    for key, what in (("model", "starting models"), ("reference", "retain references")):
        if len({str(run.info.get(key)) for run in runs if run.info.get(key) is not None}) > 1:
            notes.append(f"The runs have different {what}.")
    evaluated = [{**UNSTATED, **(run.info.get("evaluation") or {})} for run in runs]
    names = sorted({name for settings_of_run in evaluated for name in settings_of_run})
    differing = [name for name in names if len({str(one[name]) for one in evaluated if one.get(name) is not None}) > 1]
    if differing:
        notes.append(f"The runs were evaluated with different {', '.join(differing)}.")
    if len({run.group_size for run in runs if run.method == "SGA"}) > 1:
        notes.append("Group sizes differ, so the same r stands for different λ.")
    return notes


def compared_gradient_difference(settings: Sequence[SeedGroup]) -> SeedGroup | None:
    """GD at λ = 1 if there is such a run, else at the best other λ."""
    of_method = [setting for setting in settings if setting.first.method == "GD"]
    return pick([setting for setting in of_method if setting.first.normal_weight == 1]) or pick(of_method)


def _fate_of_gradient_ascent(settings: Sequence[SeedGroup]) -> str:
    setting = pick(settings, "GA")
    if setting is None:
        return "No gradient ascent (GA) run is here, so what happens without smoothing was not measured."
    runs, count = setting.runs, len(setting.runs)
    who = f"Gradient ascent ({setting.label}, {count} seeds)" if count > 1 else f"Gradient ascent ({setting.label})"
    ends = [value for run in runs if (value := run.value("model_utility", run.evaluations[-1])) is not None]
    starts = [
        value
        for run in runs
        if len(run.evaluations) > 1 and (value := run.value("model_utility", run.evaluations[0])) is not None
    ]
    if not ends:
        sentence = f"{who} has no model utility at its end ({runs[0].why_absent('model_utility')})"
    elif not starts:
        sentence = f"{who} ended at model utility {_spread(ends, fixed)}"
    else:
        end, start = fmean(ends), fmean(starts)
        way = "unchanged from" if fixed(end) == fixed(start) else "down from" if end < start else "up from"
        sentence = f"{who} ended at model utility {_spread(ends, fixed)}, {way} {fixed(start)} at its first evaluation"
    logs = [value for run in runs if (value := run.value("perplexity/normal/log", run.evaluations[-1])) is not None]
    if not logs:
        reason = runs[0].why_absent("perplexity/normal/log")
        return (
            f"{sentence}; whether it diverged cannot be told, because perplexity on normal text is absent ({reason})."
        )
    diverged = sum(log > DIVERGED for log in logs)
    last = f"perplexity on normal text at the end: {_spread(logs, perplexity_text)}; above 1e10 counts as diverged"
    if count == 1:
        return f"{sentence}, and it {'diverged' if diverged else 'did not diverge'} ({last})."
    return f"{sentence}, and {diverged} of {len(logs)} seeds diverged ({last})."


def _best_rate(settings: Sequence[SeedGroup]) -> str:
    best, ascent = pick(settings, "SGA"), pick(settings, "GA")
    if best is None:
        return "No SGA run is here, so nothing can be said about smoothing rates."
    area = best.mean("frontier_area")
    if area is None:
        return f"SGA's smoothing rates cannot be ranked: frontier areas are absent ({_reason(best, 'frontier_area')})."
    tried = sum(setting.first.method == "SGA" for setting in settings)
    which = f"the highest of {tried} smoothing settings" if tried > 1 else "the only smoothing setting tried"
    single = ", on one seed," if len(best.runs) == 1 else ","
    sentence = f"By frontier area (0 to 1, higher is better) {which}{single} {best.label}, has {_area(best)}"
    if ascent is None:
        return f"{sentence}; there is no GA run to set beside it."
    other = ascent.mean("frontier_area")
    if other is None:
        return f"{sentence}; GA's area is absent ({_reason(ascent, 'frontier_area')})."
    return f"{sentence}, {_compared(area, other)} {ascent.label}'s {_area(ascent)}{_certainty(best, ascent)}."


def _gradient_difference(settings: Sequence[SeedGroup]) -> str:
    smoothed, difference = pick(settings, "SGA"), compared_gradient_difference(settings)
    if difference is None:
        found = "No gradient difference (GD) run on the same normal samples is here, so what SGA adds to it is open"
    elif smoothed is None and difference.mean("frontier_area") is None:
        found = (
            f"{difference.label} has no frontier area ({_reason(difference, 'frontier_area')}), and no SGA run is here"
        )
    elif smoothed is None:
        found = f"{difference.label} has frontier area {_area(difference)}, with no SGA run to set beside it"
    else:
        ours, theirs = smoothed.mean("frontier_area"), difference.mean("frontier_area")
        if ours is None or theirs is None:
            missing = smoothed if ours is None else difference
            reason = _reason(missing, "frontier_area")
            found = f"{difference.label} and {smoothed.label} cannot be compared: no frontier area ({reason})"
        else:
            verdict = _compared(theirs, ours)
            meaning = {
                "above": ", so plain GD does better here",
                "below": ", so the smoothing rate pays here",
                "level with": ", so neither is better here",
            }[verdict]
            certainty = _certainty(smoothed, difference)
            found = (
                f"{difference.label} {_same_normals(smoothed, difference)} has frontier area {_area(difference)}, "
                f"{verdict} {smoothed.label}'s {_area(smoothed)}"
                f"{meaning if verdict == 'level with' or certainty == _APART else ''}{certainty}"
            )
    return f"{found}; {_equivalence(smoothed)}."


def _equivalence(smoothed: SeedGroup | None) -> str:
    """SGA in terms of GD: the equation, and the λ of the rate at hand."""
    general = "SGA at r ≤ 0 is GD with λ = |ρ|/(1+|ρ|) < 1, where ρ = r(K−1)/K"
    rate = None if smoothed is None else smoothed.first.smoothing_rate
    if smoothed is None or rate is None:
        return general
    size = smoothed.first.group_size
    if rate > 0:
        return f"{general}, but at r = {plain(rate)} the normal samples are ascended too"
    weight = equivalent_normal_weight(size, rate)
    return f"{general}: r = {plain(rate)} at K = {size} is λ = {plain(round(weight, 3) + 0.0)}"


def _same_normals(one: SeedGroup, other: SeedGroup) -> str:
    """Words on whether two settings were trained with the same groups."""
    seeds = {run.seed: run for run in other.runs}
    matched = [(run, seeds[run.seed]) for run in one.runs if run.seed in seeds] or [(one.first, other.first)]
    if any(not a.groups or not b.groups for a, b in matched):
        return "(whether on the same normal samples is not recorded)"
    same = all(_normal_ids(a) == _normal_ids(b) for a, b in matched)
    return "on the same normal samples" if same else "on other normal samples (so not strictly comparable)"


def _normal_ids(run: Run) -> dict[str, set[str]]:
    return {pair["forget_id"]: {normal["id"] for normal in pair["normals"]} for pair in run.groups}


def _forget_quality(settings: Sequence[SeedGroup]) -> str:
    best = pick(settings)
    if best is None:
        return "No unlearning run is here, so no forget quality was reached."
    found = [
        (quality, run.value("utility", evaluation), evaluation["step"], run.seed)
        for run in best.runs
        for evaluation in run.evaluations
        if (quality := run.value("forget_quality_log10", evaluation)) is not None
    ]
    if not found:
        return f"The forget quality of {best.label} is absent ({_reason(best, 'forget_quality_log10')})."
    count = len(best.runs)
    known = best.mean("frontier_area") is not None
    title = "The run with the highest frontier area" if known else "Without frontier areas to choose by, the first run"
    who = f"{title}, {best.label}, {f'with {count} seeds' if count > 1 else 'on one seed'},"
    retain = retain_mean("utility", settings)
    beside = "" if retain is None else f" (retain model: {fixed(retain)})"
    reserved = all(run.key("utility") == run.key("model_utility_unseen") for run in best.runs)
    kind = "utility on reserved rows" if reserved else "model utility"
    good = [point for point in found if point[0] > math.log10(FORGET_QUALITY_LEVEL)]
    if not good:
        quality, utility, step, _ = max(found, key=lambda point: point[0])
        at = "" if utility is None else f" with {kind} {fixed(utility)}{beside}"
        return (
            f"{who} never reached a forget quality above {FORGET_QUALITY_LEVEL}{' in any seed' if count > 1 else ''}: "
            f"its highest was {p_value(quality)}, at step {step}{at}."
        )
    by_seed = {seed: [point for point in good if point[3] == seed] for *_, seed in good}
    tops = [max(points, key=lambda point: -1.0 if point[1] is None else point[1]) for points in by_seed.values()]
    steps = sorted({step for _, _, step, _ in tops})
    when = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    before = ", before any unlearning" if steps == [0] else ""
    of_seeds = f" in {len(tops)} of {count} seeds" if count > 1 else ""
    utilities = [utility for _, utility, _, _ in tops if utility is not None]
    at = f"{kind} {_spread(utilities, fixed)}{beside}" if utilities else f"a {kind} that is absent"
    return f"{who} reached a forget quality above {FORGET_QUALITY_LEVEL}{of_seeds} ({when}{before}) at {at}."


def _over_or_under(settings: Sequence[SeedGroup]) -> str:
    best = pick(settings)
    if best is None:
        return "Under- or over-unlearning cannot be told without an unlearning run."
    said, signs = [], []
    nll, retain_nll = best.mean("forget/avg_nll"), retain_mean("forget/avg_nll", settings)
    if nll is not None and retain_nll is not None:
        said.append(f"a forget nll of {fixed(nll)} against the retain model's {fixed(retain_nll)}")
        signs.append(_sign(nll - retain_nll, _NLL_TOLERANCE * abs(retain_nll)))
    attack = "mia/loss" if best.values("mia/loss") else "mia/min_k"
    auc, retain_auc = best.mean(attack), retain_mean(attack, settings)
    if auc is not None:
        against = "0.50 for members not recognised" if retain_auc is None else f"the retain model's {fixed(retain_auc)}"
        said.append(f"an MIA AUC of {fixed(auc)} against {against}")
        signs.append(_sign((0.5 if retain_auc is None else retain_auc) - auc, _AUC_TOLERANCE))
    if not said:
        missing = "no retain model" if retain_nll is None and nll is not None else _reason(best, "forget/avg_nll")
        reason = f"forget nll: {missing}; MIA AUC: {_reason(best, 'mia/loss')}"
        return f"Whether {best.label} is under- or over-unlearned cannot be told ({reason})."
    if {-1, 1} <= set(signs):
        way = {1: "over", -1: "under"}
        verdict = f"which disagree: the nll says {way[signs[0]]}-unlearned, the attack {way[signs[1]]}-unlearned"
    elif 1 in signs:
        verdict = "a sign of over-unlearning"
    elif -1 in signs:
        verdict = "a sign of under-unlearning"
    else:
        verdict = "a sign of neither under- nor over-unlearning"
    return f"At its chosen evaluation {best.label} has {' and '.join(said)}: {verdict}."


def _sign(difference: float, tolerance: float) -> int:
    """1 above the tolerance, −1 below its negative, 0 between."""
    return 0 if abs(difference) <= tolerance else 1 if difference > 0 else -1


def _spread(values: Sequence[float], number: Callable[[float], str]) -> str:
    """The mean, and the range where several values differ."""
    between = span(values, number)
    return f"{number(fmean(values))} ({between})" if between else number(values[0])


def _area(setting: SeedGroup) -> str:
    return _spread(setting.values("frontier_area"), lambda value: fixed(value, 3))


def _compared(one: float, other: float) -> str:
    """Relation of two areas as they are written: ``above``, ``below`` or ``level with``."""
    return "level with" if fixed(one, 3) == fixed(other, 3) else "above" if one > other else "below"


def _certainty(one: SeedGroup, other: SeedGroup) -> str:
    """Words on how certain a difference in area is over seeds; empty if there is no difference."""
    a, b = one.values("frontier_area"), other.values("frontier_area")
    if _compared(fmean(a), fmean(b)) == "level with":
        return ""
    if len(a) < 2 or len(b) < 2:
        return " (but with one seed it cannot be told whether another would turn this round)"
    apart = max(a) < min(b) or max(b) < min(a)
    return _APART if apart else " (but the ranges over the seeds overlap, so they do not tell which is better)"


def _reason(setting: SeedGroup, name: str) -> str:
    return setting.first.why_absent(name)
