"""The attack page from findings alone: each model's curve is its own, whatever the models are called."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from sga.attacks.findings import Estimate, Finding
from sga.attacks.result import attack_page, curve_rows

HOSTILE = "runs/</script><img src=x onerror=alert(1)>"


def page_of(*retained: str) -> tuple[str, dict[str, Any], list[Finding]]:
    """A page with a relearning and a sampling curve of the unlearned and each retained model."""
    who = ("runs/mine", *retained)
    content = {
        "models": {"unlearned": "runs/mine", "before": "runs/target", "retained": list(retained)},
        "verdict": ["Clean."],
        "settings": {"prefix": "<b>Sure</b>", "shares": (0.05, 0.2), "rate": None, "seed": 0},
    }
    relearned = {str(step): {"rest": {"rouge_l_recall": 0.1 * step}, "relearned": {}} for step in (0, 1, 2)}
    sampled = {str(k): {"leak": 0.1 * k, "leak_low": 0.0, "leak_high": 0.5} for k in (1, 2)}
    numbers = (Estimate(0.9, 0.8, 1.0), Estimate(0.1, 0.0, 0.2), Estimate(0.2, 0.1, 0.3), None)
    findings = [
        Finding(name, "says", measure, *numbers, "not judged", details={"curves": dict.fromkeys(who, points)})
        for name, measure, points in (
            ("relearn 2", "rouge_l_recall", relearned),
            ("relearn-benign 2 my notes", "rouge_l_recall", relearned),
            ("sampling NLI", "leak@2", sampled),
        )
    ]
    return attack_page(content, findings), content, findings


def charts(page: str) -> list[dict[str, Any]]:
    """Specifications of a page's charts."""
    return [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', page)]


@pytest.mark.parametrize("retained", [("a/retain", "b/retain"), ("a/model", "unlearned"), (HOSTILE, "c/other")])
def test_models_are_told_apart(retained: tuple[str, str]) -> None:
    page, content, findings = page_of(*retained)
    names = [html.unescape(found) for found in re.findall(r'data-setting="(.*?)"', page)]
    looks = re.findall(r'<svg class="swatch".*?</svg>', page)
    assert len(set(names)) == len(set(looks)) == 3 and names[0] == "unlearned"
    for chart in charts(page):
        values = [row for rows in chart["datasets"].values() for row in rows] if "datasets" in chart else []
        values = values or [row for layer in chart["layer"] for row in layer["data"]["values"]]
        assert {row["run"] for row in values} == set(names)
    assert len({row[2] for row in curve_rows(findings, content)[1:]}) == 3
    assert "<img" not in page.replace(page[page.rfind("<script>") :], "") and "&lt;b&gt;Sure" in page
    assert "shares 0.05, 0.2; seed 0" in page, "in words, without what was not set"


def test_axes_and_titles() -> None:
    told = [(chart["title"]["text"], chart["description"]) for chart in charts(page_of("a/retain")[0])]
    assert [title for title, _ in told] == [
        "rouge_l_recall: relearn 2",
        "rouge_l_recall: relearn-benign 2 my notes",
        "leak@k: sampling NLI",
    ]
    axes = [chart["layer"][-1]["encoding"]["x"]["title"] for chart in charts(page_of("a/retain")[0])]
    assert axes == ["steps", "steps", "samples (k)"]
    assert "over training" not in told[2][1] and "over samples (k)" in told[2][1]
