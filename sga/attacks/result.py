"""Table of attacks for the terminal, their page, and their section of the model card."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sga.attacks.findings import FACTS, Estimate, Finding, shown_names
from sga.evaluation.table import fitted_table
from sga.files import write_text
from sga.report.pages import render
from sga.report.styles import Style, distinct_styles

if TYPE_CHECKING:
    import altair as alt

_WIDTH = 80
_HEADING = ("attack", "before", "un- learned", "after the attack", "retained models", "comes back", "verdict")
_SECTION = re.compile(r"\n*<!-- attacks -->.*<!-- end of attacks -->\n*", re.DOTALL)


def attack_rows(findings: Sequence[Finding], share_interval: bool = True) -> list[tuple[str, ...]]:
    """Heading and rows of the table: means or numbers of facts with their 95 % intervals, which a share may lack."""

    def cell(found: Estimate | None, measure: str) -> str:
        return "" if found is None else found.counts() if measure == FACTS else str(found)

    return [
        _HEADING,
        *(
            (
                one.attack,
                *(cell(found, one.measure) for found in (one.before, one.unlearned, one.after, one.retained)),
                _share(one, share_interval),
                one.word,
            )
            for one in findings
        ),
    ]


def _share(one: Finding, interval: bool) -> str:
    found = [f"{round(share, 2) + 0.0:.0%}" for share in (one.share, one.low, one.high) if share is not None]  # no -0%
    return "" if not found else f"{found[0]} ({found[1]} to {found[2]})" if interval else found[0]


def attack_lines(content: Mapping[str, Any], findings: Sequence[Finding]) -> list[str]:
    """Lines for the terminal: the verdict, then the table, at most 80 columns wide."""
    lines = [textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in content["verdict"]]
    if not findings:
        return lines
    measures = {
        one.measure: "facts that answers say" if one.measure == FACTS else f"{one.measure}, 0 to 1" for one in findings
    }
    note = f"{'; '.join(measures.values())}; {content['rows']} forget records, 95 % intervals"
    rows: list[Sequence[str]] = [*attack_rows(findings, share_interval=False)]
    if all(one.retained is None for one in findings):  # room for numbers beside their intervals
        at = _HEADING.index("retained models")
        rows = [[cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in (*row[:at], *row[at + 1 :])] for row in rows[1:]]
        rows = [[head for head in _whole_words([_HEADING])[0] if head != "retained models"], *rows]
    table = fitted_table(rows, _WIDTH, texts=(0, len(rows[0]) - 1))
    return [*lines, "", *table, textwrap.fill(note, _WIDTH)]


def write_card(model: Path, content: Mapping[str, Any], findings: Sequence[Finding]) -> Path:
    """Writes the section on attacks into a model's card, in the place of an earlier one; texts are not quoted."""
    path = model / "README.md"
    heading, *rows = attack_rows(findings)
    table = ["| " + " | ".join(heading).replace("un- learned", "unlearned") + " |", "|" + "---|" * len(heading)]
    table += ["| " + " | ".join(row) + " |" for row in rows]
    section = ["<!-- attacks -->", "## Attacks", "", *content["verdict"], "", *table, "", "<!-- end of attacks -->", ""]
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    kept = _SECTION.sub("\n", before).rstrip("\n")
    write_text(path, "\n".join([kept, "", *section]) if kept else "\n".join(section))
    return path


def attack_page(content: Mapping[str, Any], findings: Sequence[Finding]) -> str:
    """HTML of the whole page; it quotes nothing of the data.

    Args:
        content: Content of the file attacks.json.
        findings: Findings that it was made of.
    """
    others = [("attack", "measure", "before", "unlearned", "after", "retained")]
    for one in findings:
        for name, means in one.details.get("other_measures", {}).items():
            cells = (
                f"{means[role]:.3f}" if role in means else "" for role in ("before", "unlearned", "after", "retained")
            )
            others.append((one.attack, name, *cells))
    styles = _styles(findings, content)
    return render(
        "attacks.html.j2",
        f"Attacks on {Path(content['models']['unlearned']).name}",
        {f"attack-{i}": _curves(one, content, styles) for i, one in enumerate(findings) if "curves" in one.details},
        models={
            role: name if isinstance(name, str) else ", ".join(name) or "none"
            for role, name in content["models"].items()
        },
        verdict=content["verdict"],
        findings=findings,
        table=_whole_words(attack_rows(findings)),
        others=others,
        steps=curve_rows(findings, content),
        styles=styles,
        settings={
            name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            for name, value in content["settings"].items()
            if value is not None
        },
    )


def curve_rows(findings: Sequence[Finding], content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Heading and rows of all curves: after each number of steps, or of samples, each model's means."""
    names = _names(content)
    rows: list[tuple[str, ...]] = [("attack", "after", "model", "measure", "others", "relearned")]
    for one in findings:
        for who, points in one.details.get("curves", {}).items():
            name = names[who]
            for at, point in points.items():
                if "leak" in point:
                    cells = [("leak@k", "leak"), ("expected best recall", "best")]
                    rows += [
                        (one.attack, f"k = {at}", name, measure, _with_interval(point, key), "")
                        for measure, key in cells
                        if key in point
                    ]
                    continue
                rows += [
                    (one.attack, f"{at} steps", name, measure, f"{mean:.3f}", _relearned(point, measure))
                    for measure, mean in point["rest"].items()
                ]
    return rows


def _with_interval(point: Mapping[str, float], key: str) -> str:
    return f"{point[key]:.3f} {point[f'{key}_low']:.3f}–{point[f'{key}_high']:.3f}"


def _relearned(point: Mapping[str, Mapping[str, float]], measure: str) -> str:
    found = point["relearned"].get(measure)
    return "" if found is None else f"{found:.3f}"


def _styles(findings: Sequence[Finding], content: Mapping[str, Any]) -> dict[str, Style]:
    """Looks of the unlearned model and of the retained ones that have curves."""
    names = _names(content)
    shown = [names[who] for who in dict.fromkeys(who for one in findings for who in one.details.get("curves", {}))]
    # The first retained model looks as on every page, further ones like any other series.
    methods = {"unlearned": "SGA", next((name for name in shown if name != "unlearned"), ""): "retain"}
    return distinct_styles({name: methods.get(name, "") for name in shown})


def _curves(one: Finding, content: Mapping[str, Any], styles: Mapping[str, Style]) -> alt.LayerChart:
    """Curves of one attack: the unlearned model's beside the retained ones'."""
    from sga.report.charts import Curve, CurvePoint, training_chart  # not at the top: imports Altair

    sampled = one.attack.startswith("sampling")
    x_title = "samples (k)" if sampled else "steps"
    title = f"leak@k: {one.attack}" if sampled else f"{one.measure}: {one.attack}"
    names, curves = _names(content), []
    for who, points in one.details["curves"].items():
        name = names[who]
        along = [(x, _height(point, one.measure)) for x, point in points.items()]
        found = [CurvePoint(float(x), y, {"model": name, x_title: str(x), title: f"{y:.3f}"}) for x, y in along]
        curves.append(Curve(name, name, found))
    return training_chart(title, curves, styles, x_title, axis="unit")


def _names(content: Mapping[str, Any]) -> dict[str, str]:
    return shown_names(content["models"]["unlearned"], content["models"]["retained"])


def _height(point: Mapping[str, Any], measure: str) -> float:
    return float(point["leak"] if "leak" in point else point["rest"][measure])


def _whole_words(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Table without the breaks that its head has for the terminal's narrow columns."""
    head, *body = rows
    return [[cell.replace("un- ", "un") for cell in head], *body]
