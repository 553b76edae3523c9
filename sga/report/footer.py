"""The foot of a report: configurations and versions of its runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from sga.runs.folder import Run

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def footer(runs: Sequence[Run], holds_texts: bool) -> str:
    """HTML of the foot; says whether the page quotes what was to be forgotten."""
    packages = sorted({name for run in runs for name in run.info.get("versions") or {}})
    versions = []
    for name in packages:
        found = sorted({str((run.info.get("versions") or {}).get(name, "not recorded")) for run in runs})
        versions.append(f"{name} {' / '.join(found)}")
    configurations = []
    for run in runs:
        config = run.config_path
        words = (
            config.read_text(encoding="utf-8", errors="replace")
            if config.is_file()
            else f"(the run has no {config.name})"
        )
        parameters = ", ".join(f"{name} = {value}" for name, value in run.info["parameters"].items())
        facts = [
            f"{run.info['method'] or 'no loss'} {parameters}".strip(),
            f"seed {run.seed}",
            f"K = {run.group_size}",
            f"model {run.info.get('model', 'not recorded')}",
            f"retain reference {run.info.get('reference') or 'none'}",
            f"chosen: step {run.chosen_step} of {run.evaluations[-1]['step']}",
        ]
        facts += [f"by the rule: {rule}"] if (rule := run.chosen.get("chosen")) else []
        facts += [f"because: {because}"] if (because := run.chosen.get("because")) else []
        facts += [f"stopped {stopped}"] if (stopped := run.chosen.get("stopped")) else []
        evaluation = ", ".join(f"{k} = {v}" for k, v in (run.info.get("evaluation") or {}).items())
        facts += [f"evaluation: {evaluation}"] if evaluation else []
        configurations.append(
            f"<details><summary>{html_text(run.name)}</summary><p>{html_text('; '.join(facts))}</p>"
            f"<pre>{html_text(words)}</pre></details>"
        )
    ending = (
        "This report contains the text that was to be forgotten, in questions, answers and groups. Treat it like the "
        "forget set itself."
        if holds_texts
        else "This report quotes no question, answer or group."
    )
    return (
        '<footer><h2 id="runs">Configurations and versions</h2>'
        f'<p class="small">{html_text("; ".join(versions) or "No versions recorded")}. Configurations may name folders '
        f"of the machine that ran them.</p>{''.join(configurations)}"
        f'<p class="{"warning" if holds_texts else "small"}">{ending}</p>'
        '<p class="small">Smoothed Gradient Ascent: Pang et al., arXiv 2510.22376. Forget quality, truth ratio and '
        "model utility: TOFU, Maini et al., arXiv 2401.06121.</p></footer>"
    )


def html_text(value: str) -> str:
    """Text as HTML: markup escaped, characters that HTML forbids replaced."""
    return escape(printable(value), quote=True)


def printable(value: str) -> str:
    """Text in which characters that HTML forbids are replaced."""
    return _UNPRINTABLE.sub("\ufffd", value)
