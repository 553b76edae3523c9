"""The notebooks: stored without outputs, explained cell by cell, and running from top to bottom on a real run."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from sga.cli import configured_cli, plain_config
from sga.report.figures import run_figures
from sga.runs.folder import RunFolder

NOTEBOOKS = ROOT / "notebooks"


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook as they are stored."""
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert isinstance(found, list) and found
    return found


def test_there_are_notebooks() -> None:
    assert list(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs_and_its_code_parses(path: Path) -> None:
    for cell in cells(path):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse("".join(cell["source"]))
    assert cells(path)[0]["cell_type"] == "markdown"


def test_the_template_is_the_run_s_whatever_its_class(unlearn_options: list[str], tmp_path: Path) -> None:
    cli = configured_cli([*unlearn_options, "--data.template=sga.ChatTemplate"])
    config = plain_config(cli._parser("fit"), cli.config["fit"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    sources = ["".join(cell["source"]) for cell in cells(NOTEBOOKS / "explore_run.ipynb")]
    [source] = [source for source in sources if "Encoder(" in source]
    found: dict[str, Any] = {"run": RunFolder(tmp_path)}
    exec(source[: source.index("print(")], found)
    assert type(found["data"].template).__name__ == "ChatTemplate"


@pytest.mark.slow  # starts a kernel that imports torch and transformers
def test_the_run_explorer_runs_on_a_finished_run(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("SGA_RUN", str(finished_run.resolve()))
    notebook = nbformat.read(NOTEBOOKS / "explore_run.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/svg+xml" in output.get("data", {})]
    printed = "".join(output.get("text", "") for output in outputs if output["output_type"] == "stream")
    drawn = [name for name in run_figures([finished_run]) if name != "truth-ratios"]
    assert len(drawn) >= 4 and len(pictures) == len(drawn) + 2
    assert ".ckpt: step " in printed
    assert "model_utility" in printed
