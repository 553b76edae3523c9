"""Every number on the page about metrics is recomputed: from its own snippets, or from the logs that it cites."""

from __future__ import annotations

import doctest
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from sga.evaluation import metrics
from sga.evaluation.metrics import MODEL_UTILITY_PARTS

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def run(page: str) -> tuple[doctest.TestResults, str]:
    """Runs the page's Python blocks one after the other with shared names; gives the counts and what differed."""
    names: dict[str, Any] = {}
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for block in re.finditer(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE):
        line = page.count("\n", 0, block.start(1))
        test = doctest.DocTestParser().get_doctest(block[1], names, "metrics.md", "docs/metrics.md", line)
        runner.run(test, out=said.append, clear_globs=False)
        names.update(test.globs)  # the parser copies them
    return runner.summarize(verbose=False), "".join(said)


def test_every_snippet_gives_the_number_beside_it() -> None:
    result, said = run(PAGE)
    assert result.failed == 0, said
    assert result.attempted >= 80
    assert PAGE.count("```python") == PAGE.count("```") // 2 >= 20, "a block of another kind would not be run"


@pytest.mark.parametrize(
    ("right", "wrong"), [("0.375\n", "0.376\n"), ("\n55.56\n", "\n55.57\n"), ("(-4.18, 40)", "(-4.18, 42)")]
)
def test_negative_control_a_wrong_number_is_seen(right: str, wrong: str) -> None:
    assert right in PAGE
    result, said = run(PAGE.replace(right, wrong))
    assert result.failed >= 1
    assert wrong.strip() in said


def public_functions() -> list[str]:
    return [
        name
        for name, function in inspect.getmembers(metrics, inspect.isfunction)
        if function.__module__.startswith(metrics.__name__) and not name.startswith("_")
    ]


def test_every_public_function_is_on_the_page() -> None:
    assert len(public_functions()) >= 20
    assert [name for name in public_functions() if not re.search(rf"\b{name}\b", PAGE)] == []
    assert not re.search(r"\bforget_qualities\b", PAGE)  # negative control: a name that does not exist


def test_its_links_within_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert len(links) >= 15
    assert set(links) <= anchors


def test_every_metric_name_has_one_of_our_prefixes() -> None:
    names = re.findall(r"`([a-z_]+)/[^`]*`", PAGE)
    assert (
        {"tofu", "muse", "book", "perplexity", "authors"}
        <= set(names)
        <= {"tofu", "muse", "book", "perplexity", "authors", "src", "tests"}
    )


# The table of two published models


def published() -> list[list[str]]:
    """Its rows as the logs give them."""
    path = Path(os.environ.get("SGA_DATA", "missing"), "golden", "tofu_llama2_7b.json")
    if not path.is_file():
        pytest.skip("SGA_DATA has no golden/tofu_llama2_7b.json")
    logs = json.loads(path.read_text(encoding="utf-8"))
    columns = []
    ratios = []
    for log in (logs["model_log"], logs["reference_log"]):
        ratio = {
            name: metrics.log_truth_ratio(log[name]["avg_paraphrased_loss"], log[name]["average_perturb_loss"])
            for name in ("forget", "retain", "real_authors", "world_facts")
        }
        parts = {}
        for name in ("retain", "real_authors", "world_facts"):
            right, wrong = log[name]["avg_gt_loss"], log[name]["average_perturb_loss"]
            kept = name == "retain"
            parts[f"{name}_probability"] = (
                metrics.probability(right) if kept else metrics.normalized_probability(right, wrong)
            )
            parts[f"{name}_rouge"] = float(np.mean(log[name]["rougeL_recall"]))
            parts[f"{name}_truth_ratio"] = metrics.truth_ratio_retain(ratio[name])
        assert set(parts) == set(MODEL_UTILITY_PARTS)
        forget = log["forget"]
        ratios.append(ratio["forget"])
        columns.append(
            [
                metrics.probability(forget["avg_gt_loss"]),
                float(np.mean(forget["rougeL_recall"])),
                metrics.truth_ratio_forget(ratio["forget"]),
                float(np.mean(forget["avg_gt_loss"])),
                metrics.model_utility(parts),
            ]
        )
    quality = metrics.forget_quality(*ratios)
    rows = [[f"{value:.3f}" for value in pair] for pair in zip(*columns, strict=True)]
    return [*rows, [f"{quality.ks_statistic:.3f}", "0"], [f"{quality.log10_p:.1f}".replace("-", "−"), "0"]]


def test_the_table_of_published_models_is_what_their_logs_give() -> None:
    section = PAGE.split("## What two published models get")[1].split("\n## ")[0]
    table = [
        line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ") and "finetuned" not in line
    ]
    assert [[cell.strip() for cell in row[1:]] for row in table] == published()
