"""The report: one HTML file without scripts and without anything from elsewhere, in the light and the dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sga.files import write_text
from sga.report.charts import (
    FLOOR,
    Curve,
    ReferenceLine,
    Style,
    distribution_chart,
    frontier_chart,
    panel,
    ring_swatch,
    style_of,
    swatch,
)
from sga.report.conclusions import (
    FORGET_QUALITY_LEVEL,
    before_and_after,
    cautions,
    compared_gradient_difference,
    conclusions,
)
from sga.report.footer import footer
from sga.report.footer import html_text as _text
from sga.report.seed_groups import SeedGroup, by_seed_group, pick, read_runs
from sga.report.style import document
from sga.report.summary import (
    ABSENT,
    NEAR,
    Column,
    best_groups,
    columns,
    epochs,
    fixed,
    on_one_seed,
    p_value,
    retain_mean,
    seeds,
    span,
)
from sga.runs.folder import Run, plain

# Metric, title, whether it lies in [0, 1], and what is drawn of it.
_PANELS: tuple[tuple[str, str, bool, Callable[[float], float]], ...] = (
    ("model_utility", "model utility", True, float),
    ("forget_quality_log10", "forget quality, log₁₀ p (−12 and below as −12)", False, lambda value: max(value, FLOOR)),
    ("forget/avg_nll", "forget nll", False, float),
    ("perplexity/normal/log", "perplexity on normal text, log₁₀", False, lambda value: value / math.log(10)),
)
_OWN_PANELS: tuple[tuple[str, str, bool, Callable[[float], float]], ...] = tuple(
    (f"{name}/{metric}", f"{name} {words}", True, float)
    for metric, words in (("rouge_l_recall", "ROUGE-L recall"), ("probability", "probability"))
    for name in ("forget", "retain")
)
"""What there is of data without a retain model, besides the above."""
_LONGEST_TEXT = 320  # characters of an answer that are shown; a collapsed model fills 200 tokens with anything


def write_report(runs: Iterable[str | Path | Run], output: str | Path, title: str = "Unlearning report") -> Path:
    """Writes the comparison of finished runs as one self-contained HTML file.

    Args:
        runs: Run folders of one benchmark: unlearning runs, and the target and retain runs where there are any.
        output: The file to write; folders are made.
        title: Heading of the page.

    Returns:
        Path of the file.

    Raises:
        UserError: a run folder cannot be read, or the runs are of different benchmarks.
    """
    output = Path(output)
    write_text(output, report_page(read_runs(runs), title))
    return output


def report_page(runs: Sequence[Run], title: str) -> str:
    """The whole page as text."""
    settings = by_seed_group(runs)
    styles = _styles(settings)
    answers, shows_answers = _answers(settings)
    groups, shows_groups = _groups(settings)
    holds_texts = shows_answers or shows_groups
    body = [
        _head(settings, title, holds_texts),
        _table(settings, styles),
        _frontier(settings, styles),
        _distributions(settings, styles),
        _over_time(settings, styles),
        answers,
        groups,
        footer(runs, holds_texts),
    ]
    return document(title, [part for part in body if part])


def _styles(settings: Sequence[SeedGroup]) -> dict[str, Style]:
    counts: dict[str, int] = {}
    styles = {}
    for setting in settings:
        # Methods other than the five known ones share one sequence of styles, so that they differ from each other.
        kind = setting.first.method if setting.first.method in ("target", "retain", "GA", "GD", "SGA") else "other"
        styles[setting.label] = style_of(kind, counts.get(kind, 0))
        counts[kind] = counts.get(kind, 0) + 1
    return styles


def _head(settings: Sequence[SeedGroup], title: str, holds_texts: bool) -> str:
    runs = [run for setting in settings for run in setting.runs]
    unlearned = sum(run.role == "unlearn" for run in runs)
    models = sorted({str(run.info["model"]) for run in runs if run.role == "unlearn" and run.info.get("model")})
    sizes = sorted({int(size) for run in runs if (size := run.value("ks_n")) is not None})
    facts = [f"benchmark “{runs[0].benchmark}”", f"{unlearned} unlearning run{'' if unlearned == 1 else 's'}"]
    if models:
        facts.append(f"starting model {', '.join(models)}")
    if sizes:
        facts.append(f"forget quality over n = {', '.join(map(str, sizes))} forget samples")
    warning = (
        '<p class="warning" role="note"><strong>Careful:</strong> this file quotes the text that was to be forgotten '
        "(answers and groups below). Share it no further than that text.</p>"
        if holds_texts
        else ""
    )
    told = conclusions(settings) if _has_forget_quality(settings) else before_and_after(settings)
    sentences = "".join(f"<li>{_together(sentence)}</li>" for sentence in told)
    notes = cautions(settings)
    careful = f'<p class="small"><strong>Read with care.</strong> {_text(" ".join(notes))}</p>' if notes else ""
    header = f'<header><h1>{_text(title)}</h1><p class="small">{_text("; ".join(facts))}.</p>{warning}</header>\n'
    if not told:
        return f"{header}{careful}"
    return (
        f'{header}<section aria-labelledby="conclusions"><h2 id="conclusions">Conclusions</h2>'
        f'<ol class="conclusions">{sentences}</ol>{careful}</section>'
    )


def _has_forget_quality(settings: Sequence[SeedGroup]) -> bool:
    """Whether any run was held against a retain model, or there is nothing but such a model to tell of."""
    unlearned = [setting for setting in settings if setting.first.role == "unlearn"]
    return not unlearned or any(setting.values("forget_quality_log10") for setting in unlearned)


def _table(settings: Sequence[SeedGroup], styles: Mapping[str, Style]) -> str:
    everything = columns(settings)
    # A column without a value has its reason below the table, once.
    chosen = [column for column in everything if any(setting.values(column.name) for setting in settings)]
    best = {column.name: best_groups(column, settings) for column in chosen}
    reasons: dict[str, int] = {}
    lines = [] if any(s.first.role == "target" for s in settings) else _before(settings, chosen)
    for setting in settings:
        run, several = setting.first, len(setting.runs) > 1
        rate = "→ −∞" if run.method == "GD" and run.normal_weight == 1 else _plain(run.smoothing_rate)
        weight = None if run.normal_weight is None else round(run.normal_weight, 3)
        cells = [
            f'<th scope="row">{swatch(styles[setting.label])} {_text(setting.label)}</th>',
            *(f"<td>{_text(value)}</td>" for value in (rate, _plain(weight), seeds(setting), epochs(setting))),
        ]
        for column in chosen:
            values = setting.values(column.name)
            mean = setting.mean(column.name)
            if mean is None:
                if column.name == "frontier_area" and run.role != "unlearn":
                    cells.append("<td></td>")
                    continue
                reason = run.why_absent(column.name)
                number = reasons.setdefault(reason, len(reasons) + 1)
                cells.append(f'<td><abbr title="{_text(reason)}">{ABSENT}<sup>{number}</sup></abbr></td>')
                continue
            shown = _text(column.number(mean))
            shown = f'<strong class="best">{shown}</strong>' if setting.label in best[column.name] else shown
            between = span(values, column.number) if several else ""
            missing = f" ({len(values)} of {len(setting.runs)})" if len(values) < len(setting.runs) else ""
            shown += (
                f'<br><span class="range">{_text(between + missing).replace(" to ", " to<br>")}</span>'
                if between or missing
                else ""
            )
            cells.append(f"<td>{shown}</td>")
        lines.append(f'<tr class="{run.role}">{"".join(cells)}</tr>')
    heads = [("Run", "method"), ("r", "smoothing rate"), ("λ", "weight of the normal samples, forget sample = 1")]
    heads += [("Seed", "seeds of the runs"), ("Epoch", "epoch of the chosen evaluation")]
    heads += [(column.head, column.meaning) for column in chosen]
    top = "".join(f'<th scope="col" title="{_text(meaning)}">{_text(head)}</th>' for head, meaning in heads)
    rules = sorted(
        {str(rule) for s in settings for r in s.runs if r.role == "unlearn" and (rule := r.chosen.get("chosen"))}
    )
    ended = [run for s in settings for run in s.runs if run.role == "unlearn" and run.chosen.get("stopped")]
    rule = f"Chosen evaluation: {'; '.join(rules)}. " if rules else ""
    rule += f"A rule ended {len(ended)} of these runs early (why: at the foot). " if ended else ""
    seeds_note = on_one_seed(settings)
    several_seeds = any(len(setting.runs) > 1 for setting in settings)
    mean_note = (
        "Several seeds: the mean (of perplexities the geometric one), the range below it. " if several_seeds else ""
    )
    notes = "".join(f"<li>{_text(reason)}</li>" for reason in reasons)
    absent = f'<div class="small"><p>{ABSENT} is absent, because:</p><ol>{notes}</ol></div>' if notes else ""
    first = next((s.first for s in settings if s.first.role == "unlearn"), settings[0].first)
    left_out: dict[str, list[str]] = {}
    for column in everything if first.role == "unlearn" else ():
        if column not in chosen:
            left_out.setdefault(first.why_absent(column.name), []).append(column.head)
    absent += "".join(
        f'<p class="small">Not here: {_text(", ".join(heads))} ({_text(reason)}).</p>'
        for reason, heads in left_out.items()
    )
    return (
        '<section aria-labelledby="numbers"><h2 id="numbers">The numbers</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="numbers"><table class="numbers">'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="small">{_text(rule + mean_note)}<strong class="best">Marked</strong>: best of the unlearning runs, '
        "if no other has the same; for forget ROUGE-L and MIA AUC that is closest to the retain model, if within "
        f"{NEAR} of it{seeds_note and f'; {seeds_note}'}; forget perplexity is not judged. "
        f"Frontier area counts all evaluations of a run, the other columns the chosen one.</p>{absent}</section>"
    )


def _before(settings: Sequence[SeedGroup], chosen: Sequence[Column]) -> list[str]:
    """A row of the starting model for each one that a run was evaluated from, as far as it was evaluated."""
    runs = [s.first for s in settings if s.first.role == "unlearn" and s.first.chosen_step > 0]
    starts = {str(run.info.get("model")): run for run in runs if run.evaluations[0]["step"] == 0}
    lines = []
    for run in starts.values():
        values = [run.value(column.name, run.evaluations[0]) for column in chosen]
        cells = [ABSENT if v is None else column.number(v) for column, v in zip(chosen, values, strict=True)]
        if any(value is not None for value in values):
            lines.append(
                '<tr class="before"><th scope="row">before</th><td></td><td></td><td></td><td>0</td>'
                + "".join(f"<td>{_text(cell)}</td>" for cell in cells)
                + "</tr>"
            )
    return lines


def _frontier(settings: Sequence[SeedGroup], styles: Mapping[str, Style]) -> str:
    curves, shown = [], []
    for setting in settings:
        for run in setting.runs if setting.first.role == "unlearn" else ():
            at = [e for e in run.evaluations if _both(run, e)]
            if not at:
                continue
            curves.append(
                Curve(
                    _name(setting, run),
                    styles[setting.label],
                    run.frontier,
                    [
                        f"{_name(setting, run)}, {_moment(e)}: p = {p_value(x)}, utility {fixed(y)}"
                        for e, (x, y) in zip(at, run.frontier, strict=True)
                    ],
                    next((i for i, e in enumerate(at) if e["step"] == run.chosen_step), None),
                )
            )
            if setting not in shown:
                shown.append(setting)
    heading = '<section aria-labelledby="frontier"><h2 id="frontier">Forget quality against utility</h2>'
    if not curves:
        return ""
    utility = retain_mean("utility", settings)
    line = None if utility is None else ReferenceLine(f"retain model {fixed(utility)}", utility, style_of("retain", 0))
    chart = frontier_chart(curves, line, FORGET_QUALITY_LEVEL, "frontier-chart")
    return (
        f"{heading}<figure>{_legend(shown, styles, rings=True)}{chart}<figcaption>Each run from the starting model "
        "along its evaluations to its last (large marker; a ring is the chosen one); up and to the right is better. "
        "Utility is over the retain rows that unlearning has not seen, where a run has reserved some. "
        f"In the shaded region the KS test sees no difference from the retain model (p &gt; "
        f"{FORGET_QUALITY_LEVEL}); values below 10<sup>−12</sup> are drawn at the left edge.</figcaption></figure>"
        "</section>"
    )


def _distributions(settings: Sequence[SeedGroup], styles: Mapping[str, Style]) -> str:
    compared = [s for s in settings if s.first.role != "unlearn"]
    compared += [s for s in (pick(settings, "GA"), pick(settings, "SGA"), compared_gradient_difference(settings)) if s]
    best = pick(settings)
    compared += [best] if best is not None and best not in compared else []
    samples, shown = [], []
    for setting in compared:
        run = setting.first
        rows = run.row_dicts(run.chosen_step, "forget")
        values = [float(v) for row in rows if isinstance(v := row.get("log_truth_ratio"), (int, float))]
        if values:
            samples.append((setting.label, styles[setting.label], values))
            shown.append(setting)
    heading = '<section aria-labelledby="ratios"><h2 id="ratios">Truth ratios on the forget set</h2>'
    if not samples:
        return ""
    chart, outside = distribution_chart(samples, "ratio-chart")
    shares = ", ".join(f"{_text(label)} {max(share, 0.01):.0%}" for label, share in outside.items())
    clipped = f" Beyond the axis, which target and retain model set: {shares} of the samples." if outside else ""
    return (
        f"{heading}<figure>{_legend(shown, styles)}{chart}<figcaption>Share of forget samples whose log truth ratio, "
        "log R = avg_nll(right) − mean avg_nll(wrong), is at most so much; markers at the quartiles. Forget quality is "
        "the KS test between a curve and the retain model's: D is their largest vertical distance. Chosen evaluation "
        f"of each run, first seed.{clipped}</figcaption></figure></section>"
    )


def _over_time(settings: Sequence[SeedGroup], styles: Mapping[str, Style]) -> str:
    unlearned = [setting for setting in settings if setting.first.role == "unlearn"]
    runs = [(setting, run) for setting in unlearned for run in setting.runs]
    by_epoch = all("epoch" in evaluation for _, run in runs for evaluation in run.evaluations)
    axis = "epoch" if by_epoch else "step"
    panels = []
    wanted = _PANELS if _has_forget_quality(settings) else (*_OWN_PANELS, *_PANELS)
    for index, (name, title, unit, shown) in enumerate(wanted):
        curves = []
        for setting, run in runs:
            kept = [(e, shown(v)) for e in run.evaluations if (v := run.value(name, e)) is not None]
            if kept:
                label = _name(setting, run)
                notes = [f"{label}, {_moment(e)}: {v:.4g}" for e, v in kept]
                points = [(float(e[axis]), v) for e, v in kept]
                at = next((i for i, (e, _) in enumerate(kept) if e["step"] == run.chosen_step), None)
                curves.append(Curve(label, styles[setting.label], points, notes, at))
        level = retain_mean(name, settings)
        levels = [] if level is None else [ReferenceLine("", shown(level), style_of("retain", 0))]
        if curves:
            panels.append(f"<div>{panel(title, curves, levels, axis, f'panel-{index}', unit)}</div>")
    heading = '<section aria-labelledby="time"><h2 id="time">Over training</h2>'
    if not panels:
        return ""
    legend = [s for s in settings if s.first.role != "target"]
    return (
        f'{heading}<figure>{_legend(legend, styles)}<div class="panels">{"".join(panels)}</div>'
        "<figcaption>The dashed level is the retain model's, "
        "where it has the metric: a forget nll above it is over-unlearning, "
        "below it under-unlearning. A thin ring is the chosen evaluation.</figcaption></figure></section>"
    )


def _answers(settings: Sequence[SeedGroup]) -> tuple[str, bool]:
    """Questions with each run's answers, and whether any text is shown."""
    heading = '<section aria-labelledby="answers"><h2 id="answers">Answers before and after</h2>'
    columns = [(f"{s.label}", s.first, s.first.chosen_step) for s in settings]
    unlearned = next((s.first for s in settings if s.first.role == "unlearn"), None)
    if unlearned is not None and not any(s.first.role == "target" for s in settings):
        columns.insert(0, ("start", unlearned, int(unlearned.evaluations[0]["step"])))
    silent = [label for label, run, _ in columns if not run.has_texts]
    parts = []
    for evaluation_set, count in (("forget", 4), ("retain", 4)):
        answers = [
            (
                label,
                step,
                {row["id"]: row for row in run.row_dicts(step, evaluation_set) if row.get("generation") is not None},
            )
            for label, run, step in columns
            if run.has_texts
        ]
        answers = [column for column in answers if column[2]]
        asked = {key: row for _, _, rows in reversed(answers) for key, row in rows.items() if row.get("answer")}
        common = [key for key in asked if all(key in rows for _, _, rows in answers)] or list(asked)
        if not common:
            continue
        cards = "".join(_card(asked[key], key, answers) for key in _spread_out(common, count))
        parts.append(f'<h3>{evaluation_set.capitalize()} set</h3><div class="cards">{cards}</div>')
    without = f"{', '.join(silent)}: texts were kept out of the run folder (texts: false)." if silent else ""
    if not parts:
        return f'{heading}<p class="note">{_text(without)}</p></section>' if without else "", False
    note = (
        "Greedy answers at the chosen evaluation of each setting's first seed, with ROUGE-L recall. The questions are "
        f"evenly spaced over the set, not picked by hand. {without}"
    )
    return f'{heading}<p class="small">{_text(note)}</p>{"".join(parts)}</section>', True


def _card(asked: Mapping[str, Any], key: str, answers: Sequence[tuple[str, int, Mapping[str, Any]]]) -> str:
    lines = [
        f'<tr class="true"><th scope="row">true answer</th><td dir="auto">{_long(asked["answer"])}</td><td></td></tr>'
    ]
    for label, step, rows in answers:
        row = rows.get(key, {})
        score = row.get("rouge_l_recall")
        said = _long(row["generation"]) if row.get("generation") else '<em class="small">(nothing)</em>'
        lines.append(
            f'<tr><th scope="row">{_together(label)} <span class="range">step {step}</span></th>'
            f'<td dir="auto">{said}</td>'
            f"<td>{fixed(float(score)) if isinstance(score, (int, float)) else ABSENT}</td></tr>"
        )
    question = _long(asked.get("question") or "(a passage of plain text)")
    return (
        '<article><table class="answers">'
        f'<caption dir="auto">{question} <span class="range">{_text(key)}</span></caption>'
        '<thead class="hidden"><tr><th scope="col">run</th><th scope="col">answer</th><th scope="col">ROUGE-L</th></tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></article>"
    )


def _groups(settings: Sequence[SeedGroup]) -> tuple[str, bool]:
    """Forget samples beside their normal samples, and whether any text is shown."""
    heading = '<section aria-labelledby="groups"><h2 id="groups">Groups</h2>'
    best = pick(settings, "SGA") or pick(settings, "GD")
    candidates = [best] if best is not None else []
    run = next((s.first for s in [*candidates, *settings] if any(pair["normals"] for pair in s.first.groups)), None)
    if run is None:
        return "", False
    shows_texts = False
    cards = []
    for pair in _spread_out(run.groups, 3):
        members = []
        for kind, member in [("forget", {**(pair.get("forget") or {}), "id": pair["forget_id"]})] + [
            ("normal", normal) for normal in pair["normals"]
        ]:
            score = member.get("score")
            scored = f", score {fixed(float(score), 3)}" if isinstance(score, (int, float)) else ""
            words = ""
            if run.has_texts and member.get("answer"):
                shows_texts = True
                words = f"<p><strong>{_long(member.get('question') or '')}</strong></p><p>{_long(member['answer'])}</p>"
            source = member.get("source", "retain")
            origin = "" if source == "retain" else ", ".join(["", str(source), *filter(None, [member.get("by")])])
            failed = "".join(f"; fails: {reason}" for reason in member.get("checks") or ())
            members.append(
                f'<div class="{kind}" dir="auto"><p class="range">{kind}: {_text(str(member["id"]))}{scored}'
                f"{_text(origin + failed)}</p>"
                f"{words}</div>"
            )
        cards.append(f'<article class="group">{members[0]}<div class="normals">{"".join(members[1:])}</div></article>')
    kept_out = "" if run.has_texts else " Texts were kept out of the run folder (texts: false), so only ids are shown."
    note = (
        f"{len(run.groups)} groups of K = {run.group_size} in run {run.name}; three of them, evenly spaced. The score "
        f"is the one by which the normal samples were chosen.{kept_out}"
    )
    return f'{heading}<p class="small">{_text(note)}</p>{"".join(cards)}</section>', shows_texts


def _legend(settings: Iterable[SeedGroup], styles: Mapping[str, Style], rings: bool = False) -> str:
    items = "".join(f"<li>{swatch(styles[s.label])} {_text(s.label)}</li>" for s in settings)
    if rings:
        items += f"<li>{ring_swatch('start')} start</li><li>{ring_swatch('ring')} chosen evaluation</li>"
    return f'<ul class="legend">{items}</ul>'


def _name(setting: SeedGroup, run: Run) -> str:
    return f"{setting.label}, seed {run.seed}" if len(setting.runs) > 1 else setting.label


def _moment(evaluation: Mapping[str, Any]) -> str:
    epoch = evaluation.get("epoch")
    return f"step {evaluation['step']}" + ("" if epoch is None else f" (epoch {epoch:.3g})")


def _both(run: Run, evaluation: Mapping[str, Any]) -> bool:
    return None not in (run.value("forget_quality_log10", evaluation), run.value("utility", evaluation))


def _plain(value: float | None) -> str:
    return "" if value is None else plain(value)


def _spread_out(items: Sequence[Any], count: int) -> Iterator[Any]:
    """So many of the items, evenly spaced, the first among them."""
    for i in range(min(count, len(items))):
        yield items[i * len(items) // min(count, len(items))]


def _together(value: str) -> str:
    """Text as HTML in which ``r = −0.8`` and its like stay on one line."""
    return _text(value).replace(" = ", "\u00a0=\u00a0")


def _long(value: Any) -> str:
    """A question or answer as HTML, cut where it is very long."""
    words = str(value)
    if len(words) <= _LONGEST_TEXT:
        return _text(words)
    return f'{_text(words[:_LONGEST_TEXT])}… <span class="range">({len(words)} characters in all)</span>'
