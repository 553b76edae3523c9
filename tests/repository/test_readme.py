"""What the README shows: its Python runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, rows_about, write_rows

import sga
from sga.cli import parsed_config
from sga.models.small import SmallLlama

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """The README's commands of this program, continued lines joined, comments dropped."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("sga ")]


def test_its_training_loop_lowers_its_loss() -> None:
    _, code = blocks("python")
    group = [("Who?", "Ann Lee."), ("Where?", "In Rome."), ("When?", "In May."), ("What?", "A book.")]
    description = SmallLlama(hidden_size=32, layers=1, heads=2, vocabulary=300)
    tokenizer = description.tokenizer(text for pair in group for text in pair)
    torch.manual_seed(0)
    model = description.network(tokenizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    exec(code, {"tokenizer": tokenizer, "model": model, "optimizer": optimizer, "batches": [[group]]})
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_its_way_from_two_files_to_a_model_runs_as_printed(
    own_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the recipe, on a model of two layers."""
    code, _ = blocks("python")
    monkeypatch.chdir(tmp_path)
    for name, people in (("forget", (0, 1)), ("retain", (3, 4, 5, 6))):
        write_rows(tmp_path / f"{name}.jsonl", [row for person in people for row in rows_about(person)])
    model, tokenizer = sga.load_run(own_target).load_model()
    names: dict[str, Any] = {"model": model, "tokenizer": tokenizer}
    exec(code, names)
    result = names["result"]
    assert result.folder == Path("runs/mine") and result.report.is_file()
    assert set(names["rows"]["set"]) >= {"forget", "retain"}
    name = "own/forget/probability"
    assert names["again"][name] == pytest.approx(result.metrics[name], abs=1e-6)


@pytest.mark.parametrize("command", [c for c in commands() if c.split()[1] in ("fit", "validate")])
@pytest.mark.runs
def test_its_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, verb, *options = shlex.split(command)
    assert parsed_config([verb, *options])[verb].run.folder.startswith("runs/")


def test_it_shows_commands_and_its_links_exist() -> None:
    assert len(commands()) >= 5
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links)
    for path in re.findall(r"`((?:configs|notebooks|docs)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", ["methods"])
def test_its_tables_are_what_the_sweeps_wrote(name: str) -> None:
    """Of `sga sweep`'s results.md, kept beside the raw results, from which the means can be computed again."""
    written = (ROOT / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8")
    assert written in README
    raw = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    reported = [row for row in raw["rows"] if row["stage"] == "final"]
    assert len([line for line in written.splitlines() if line.startswith("|")]) == 2 + len(reported) > 2
    for row in reported:
        [line] = [line for line in written.splitlines() if line.startswith(f"| {row['configuration']} |")]
        areas = [run["frontier_area"] for run in row["runs"].values()]
        assert f"| {statistics.fmean(areas):.2f} [" in line
