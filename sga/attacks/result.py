"""What attacks leave: a table for the terminal, a page, and a section of the model card."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sga.attacks.findings import Estimate, Finding
from sga.evaluation.table import fitted_table
from sga.files import write_text
from sga.report.charts import Curve, panel, style_of, swatch
from sga.report.style import document, numbers_table

_WIDTH = 80
_HEADING = ("attack", "before", "un- learned", "after the attack", "retained models", "comes back", "")
_SECTION = re.compile(r"\n*<!-- attacks -->.*<!-- end of attacks -->\n*", re.DOTALL)


def attack_rows(findings: Sequence[Finding], intervals: bool = True) -> list[tuple[str, ...]]:
    """Heading and rows: a mean each with its 95 % interval; without `intervals` the first two have none."""

    def cell(found: Estimate | None) -> str:
        return "" if found is None else str(found)

    return [
        _HEADING,
        *(
            (
                one.attack,
                *(str(found) if intervals else f"{found.value:.2f}" for found in (one.before, one.unlearned)),
                cell(one.after),
                cell(one.retained),
                "" if one.share is None else f"{one.share:.0%}",
                one.word,
            )
            for one in findings
        ),
    ]


def attack_lines(content: Mapping[str, Any], findings: Sequence[Finding]) -> list[str]:
    """What the terminal shows: the verdict, then the table, at most 80 columns wide."""
    lines = [textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in content["verdict"]]
    if not findings:
        return lines
    measures = ", ".join(dict.fromkeys(one.measure for one in findings))
    note = f"{measures} of {content['rows']} forget records, 0 to 1, with 95 % intervals"
    table = fitted_table(attack_rows(findings, intervals=False), _WIDTH, texts=(0, 6), spare=2)
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
    """The whole page as text; it quotes nothing of the data.

    Args:
        content: What attacks.json holds.
        findings: The same findings as objects.
    """
    title = f"Attacks on {Path(content['models']['unlearned']).name}"
    sentences = "".join(f"<li>{escape(line)}</li>" for line in content["verdict"])
    says = "".join(
        f"<dt>{escape(one.attack)}</dt><dd>{escape(one.says)}{f' ({escape(one.why)})' if one.why else ''}</dd>"
        for one in findings
    )
    models = "; ".join(f"{role}: {name}" for role, name in content["models"].items())
    settings = ", ".join(f"{name} {value}" for name, value in content["settings"].items())
    body = [
        f'<header><h1>{escape(title)}</h1><p class="small">{escape(models)}</p></header>',
        f'<ul class="conclusions">{sentences}</ul>',
        f"<section><h2>Attacks</h2>{numbers_table(_whole_words(attack_rows(findings)))}"
        '<p class="small">Means over forget records, 0 to 1, '
        "with 95 % bootstrap intervals. What comes back is the share of what unlearning took, 0 % where the attacked "
        "model says no more than retained models under the same attack (without one, than itself without it).</p>"
        f"<dl>{says}</dl></section>",
    ]
    charts = [_curves(one, index, content) for index, one in enumerate(findings) if "curves" in one.details]
    if charts:
        body.append(f'<section><h2>Curves</h2><div class="panels">{"".join(charts)}</div></section>')
    others = [("attack", "measure", "before", "unlearned", "after", "retained")]
    for one in findings:
        for name, means in one.details.get("other_measures", {}).items():
            cells = (
                f"{means[role]:.3f}" if role in means else "" for role in ("before", "unlearned", "after", "retained")
            )
            others.append((one.attack, name, *cells))
    if len(others) > 1:
        body.append(f"<section><h2>Other measures</h2>{numbers_table(others)}</section>")
    body.append(
        f'<footer><p class="small">{escape(settings)}. This page quotes no question and no answer.</p></footer>'
    )
    return document(title, body)


def _curves(one: Finding, index: int, content: Mapping[str, Any]) -> str:
    """Curves of one attack: the unlearned model's beside the retained ones'."""
    unlearned, curves = content["models"]["unlearned"], []
    for place, (who, points) in enumerate(one.details["curves"].items()):
        style = style_of("SGA", 0) if who == unlearned else style_of("retain", place)
        along = [(float(x), _height(point, one.measure)) for x, point in points.items()]
        curves.append(Curve("unlearned" if who == unlearned else Path(who).name, style, along))
    legend = "".join(f"<li>{swatch(curve.style)} {escape(curve.label)}</li>" for curve in curves)
    x_label = "samples (k)" if one.attack == "sampling" else "steps"
    title = "leak@k" if one.attack == "sampling" else f"{one.measure}: {one.attack}"
    chart = panel(title, curves, [], x_label, f"attack-{index}", unit=True)
    return f'<figure><ul class="legend">{legend}</ul>{chart}</figure>'


def _height(point: Mapping[str, Any], measure: str) -> float:
    return float(point["leak"] if "leak" in point else point["rest"][measure])


def _whole_words(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The table without the breaks that its head has for the terminal's narrow columns."""
    head, *body = rows
    return [[cell.replace("un- ", "un") for cell in head], *body]
