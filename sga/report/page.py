"""The report: finished runs side by side on one page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sga.files import write_text
from sga.report.conclusions import (
    FORGET_QUALITY_LEVEL,
    before_and_after,
    cautions,
    conclusions,
    has_forget_quality,
)
from sga.report.figures import report_figures
from sga.report.footer import RunFoot, packages
from sga.report.pages import render
from sga.report.seed_groups import SeedGroup, by_seed_group, pick, read_runs
from sga.report.summary import ABSENT, NEAR, fixed, on_one_seed
from sga.report.tables import results_table
from sga.runs.folder import Run


def write_report(runs: Iterable[str | Path | Run], output: str | Path, title: str = "Unlearning report") -> Path:
    """Writes the comparison of finished runs as one self-contained HTML file.

    Args:
        runs: Run folders of one benchmark: unlearning runs, and the target and retain runs where there are any.
        output: Path of the file to write; its folder is made.
        title: Heading of the page.

    Returns:
        Path of the file.

    Raises:
        UserError: A run folder cannot be read, or the runs are of different benchmarks.
    """
    output = Path(output)
    write_text(output, report_page(read_runs(runs), title))
    return output


def report_page(runs: Sequence[Run], title: str) -> str:
    """HTML of the whole report."""
    settings = by_seed_group(runs)
    figures = report_figures(settings)
    answers, groups = _answers(settings), _groups(settings)
    return render(
        "report.html.j2",
        title,
        figures.charts,
        facts=_facts(settings),
        told=conclusions(settings) if has_forget_quality(settings) else before_and_after(settings),
        cautions=cautions(settings),
        table=results_table(settings),
        rules=sorted(
            {str(rule) for run in runs if run.role == "unlearn" and (rule := run.chosen.get("chosen")) is not None}
        ),
        ended=sum(run.role == "unlearn" and bool(run.chosen.get("stopped")) for run in runs),
        several_seeds=any(len(setting.runs) > 1 for setting in settings),
        seeds_note=on_one_seed(settings),
        near=NEAR,
        level=FORGET_QUALITY_LEVEL,
        figures=figures,
        answers=answers,
        groups=groups,
        packages=packages(runs),
        runs=[RunFoot(run) for run in runs],
        holds_texts=bool(answers["parts"]) or (groups is not None and groups["quotes"]),
    )


def _facts(settings: Sequence[SeedGroup]) -> list[str]:
    runs = [run for setting in settings for run in setting.runs]
    unlearned = sum(run.role == "unlearn" for run in runs)
    models = sorted({str(run.info["model"]) for run in runs if run.role == "unlearn" and run.info.get("model")})
    sizes = sorted({int(size) for run in runs if (size := run.value("ks_n")) is not None})
    facts = [f"benchmark “{runs[0].benchmark}”", f"{unlearned} unlearning run{'' if unlearned == 1 else 's'}"]
    if models:
        facts.append(f"starting model {', '.join(models)}")
    if sizes:
        facts.append(f"forget quality over n = {', '.join(map(str, sizes))} forget samples")
    return facts


def _answers(settings: Sequence[SeedGroup]) -> dict[str, Any]:
    """Questions of each set with each run's answers, and labels of the settings without texts."""
    columns = [(s.label, s.first, s.first.chosen_step) for s in settings]
    unlearned = next((s.first for s in settings if s.first.role == "unlearn"), None)
    if unlearned is not None and not any(s.first.role == "target" for s in settings):
        columns.insert(0, ("start", unlearned, int(unlearned.evaluations[0]["step"])))
    parts = {}
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
        if common:
            parts[evaluation_set] = [_card(asked[key], key, answers) for key in _spread_out(common, count)]
    return {"parts": parts, "silent": [label for label, run, _ in columns if not run.has_texts]}


def _card(asked: Mapping[str, Any], key: str, answers: Sequence[tuple[str, int, Mapping[str, Any]]]) -> dict[str, Any]:
    """A question with its true answer and each setting's answer."""
    lines = []
    for label, step, rows in answers:
        row = rows.get(key, {})
        score = row.get("rouge_l_recall")
        recall = fixed(float(score)) if isinstance(score, (int, float)) else ABSENT
        lines.append((label, step, str(row.get("generation") or ""), recall))
    question = str(asked.get("question") or "(a passage of plain text)")
    return {"id": key, "question": question, "answer": str(asked["answer"]), "lines": lines}


def _groups(settings: Sequence[SeedGroup]) -> dict[str, Any] | None:
    """Forget samples beside their normal samples; None where no run has groups."""
    best = pick(settings, "SGA") or pick(settings, "GD")
    candidates = [best] if best is not None else []
    run = next((s.first for s in [*candidates, *settings] if any(pair["normals"] for pair in s.first.groups)), None)
    if run is None:
        return None
    shown = []
    for pair in _spread_out(run.groups, 3):
        forget = {**(pair.get("forget") or {}), "id": pair["forget_id"]}
        shown.append([_member(run, "forget", forget), *(_member(run, "normal", normal) for normal in pair["normals"])])
    return {"run": run, "shown": shown, "quotes": any(member["answer"] for group in shown for member in group)}


def _member(run: Run, kind: str, member: Mapping[str, Any]) -> dict[str, str]:
    """A sample of a group: its description, and its texts where the run has them."""
    score, source = member.get("score"), member.get("source", "retain")
    facts = f"{kind}: {member['id']}"
    facts += f", score {fixed(float(score), 3)}" if isinstance(score, (int, float)) else ""
    facts += "" if source == "retain" else "".join(f", {part}" for part in (source, member.get("by")) if part)
    facts += "".join(f"; fails: {reason}" for reason in member.get("checks") or ())
    texts = {name: str(member.get(name) or "") if run.has_texts else "" for name in ("question", "answer")}
    return {"kind": kind, "facts": facts, **texts}


def _spread_out(items: Sequence[Any], count: int) -> Iterator[Any]:
    """The first and further items, evenly spaced, `count` of them where there are as many."""
    for i in range(min(count, len(items))):
        yield items[i * len(items) // min(count, len(items))]
