"""What the README and the pages show: Python runs, links lead somewhere, the index has every page."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, rows_about, write_rows

import sga
from sga.models.small import SmallLlama

README = (ROOT / "README.md").read_text(encoding="utf-8")


DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(language: str, page: str = README) -> list[str]:
    """Code blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def commands(page: str = README) -> list[str]:
    """A page's commands of this program, continued lines joined, comments dropped."""
    lines = "\n".join(blocks("(?:sh|bash)", page)).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("sga ")]


def anchors(page: str) -> set[str]:
    """Anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    heads = [head.lower() for head in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", head).strip().replace(" ", "-") for head in heads}


def dead_links(path: Path, page: str) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of their file."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = path.parent / name
        if link.startswith(("http:", "https:")):
            continue
        if not target.exists() or (
            anchor and anchor not in anchors(target.read_text(encoding="utf-8") if name else page)
        ):
            dead.append(link)
    return dead


def test_its_training_loop_lowers_its_loss() -> None:
    [code] = blocks("python")
    group = [("Who?", "Ann Lee."), ("Where?", "In Rome."), ("When?", "In May."), ("What?", "A book.")]
    description = SmallLlama(hidden_size=32, layers=1, heads=2, vocabulary=300)
    tokenizer = description.tokenizer(text for pair in group for text in pair)
    torch.manual_seed(0)
    model = description.network(tokenizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    exec(code, {"tokenizer": tokenizer, "model": model, "optimizer": optimizer, "batches": [[group]]})
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_the_way_from_two_files_to_a_model_runs_as_printed(
    own_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page on `sga unlearn`, by the recipe, on a model of two layers."""
    [code] = blocks("python", (DOCS / "unlearn.md").read_text(encoding="utf-8"))
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


def test_the_readme_is_short_and_shows_commands_and_files_that_there_are() -> None:
    assert len(README.encode()) < 8_000
    assert len(commands()) >= 5
    for path in re.findall(r"`((?:configs|notebooks|docs)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "path", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "data" / "README.md"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_somewhere(path: Path) -> None:
    assert dead_links(path, path.read_text(encoding="utf-8")) == []


def test_negative_control_dead_links_are_seen() -> None:
    page = "# One head\n[a](README.md) [b](nowhere.md) [c](#one-head) [d](#other)"
    page += " [e](docs/metrics.md#rouge-l-recall) [f](docs/metrics.md#no)"
    assert dead_links(ROOT / "README.md", page) == ["nowhere.md", "#other", "docs/metrics.md#no"]


def test_make_says_what_it_installs_before_it_does() -> None:
    """pip was silent for minutes."""
    done = subprocess.run(["make", "-n", "-B", "install"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    waits = [place for place, line in enumerate(lines) if "pip install" in line or "-m venv" in line]
    assert len(waits) == 3
    assert [lines[place - 1].partition(" of 3")[0] for place in waits] == [f'echo "install {n}' for n in (1, 2, 3)]


def test_the_index_has_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([^)#]+)\)", index))
