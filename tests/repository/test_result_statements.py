"""Numbers in the prose on rates and normals are what the stored runs give, and no number stands beside them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def statements() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("result_statements")


SECTIONS = [
    "## Normal samples",
    "## Rates and rules",
    "## Alternatives, moving rates, group size",
    "# What sets the rate",
    "# How good normal samples must be",
    "# Group size at equal tokens",
    "# Does a setting chosen on authors transfer",
]


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_number_of_a_section_is_in_a_sentence_that_the_stored_runs_give(
    statements: ModuleType, heading: str
) -> None:
    [(page, whole, made)] = [one for one in statements.SECTIONS if one[1].startswith(heading)]
    text, sentences = statements.prose(page, whole), made()
    assert sentences and statements.left_over(text, sentences) == ([], [])
    # Negative controls: a digit in a sentence, and a number that no sentence has
    changed = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), sentences[0], count=1)
    assert changed != sentences[0]
    lacking, left = statements.left_over(text.replace(sentences[0], changed), sentences)
    assert lacking == [sentences[0]] and left
    assert statements.left_over(f"{text} It gains 0.17.", sentences)[1]


def test_all_sections_are_tested_and_every_recorded_number_is_somewhere(statements: ModuleType) -> None:
    assert len(statements.SECTIONS) == len(SECTIONS)
    texts = " ".join(statements.prose(page, heading) for page, heading, _ in statements.SECTIONS)
    assert [one for one in statements.RECORDED if one not in texts] == []


def test_the_first_table_says_what_came_out(statements: ModuleType) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert [row for row in statements.overview() if row not in page] == []


def test_a_claim_that_other_runs_do_not_show_is_not_made(
    statements: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: random normals that end at another quality, and alternatives that no longer stay language."""
    read, content = statements.stored, statements.stored("normals")
    for row in content["rows"]:
        if row["stage"] == "final" and "RandomNormals" in row["configuration"]:
            for point in row["runs"]["2"]["evaluations"]:
                point["authors/forget_quality_log10"] = -12.0
    monkeypatch.setattr(statements, "stored", lambda name: content if name == "normals" else read(name))
    with pytest.raises(ValueError, match="random normals ahead on every seed"):
        statements.normals()
    judging: Any = statements.judging
    collected = judging.read(ROOT / "docs" / "results" / "rates-and-normals.json.gz")
    for name, run in collected["runs"].items():
        if name.endswith("/alternatives"):
            for rows in run["rows"].values():
                rows["forget"] = [{**row, "fluency": 0.0} for row in rows["forget"]]
    monkeypatch.setattr(judging, "read", lambda path: collected)
    with pytest.raises(ValueError, match="stored runs do not show"):
        statements.rates_and_normals()
