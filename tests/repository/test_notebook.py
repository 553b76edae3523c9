"""The notebooks: stored without outputs, explained cell by cell, and running from top to bottom on a real run."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from sga.cli import configured_cli, plain_config
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
    sources = ["".join(cell["source"]) for cell in cells(NOTEBOOKS / "02_explore_run.ipynb")]
    [source] = [source for source in sources if "Encoder(" in source]
    found: dict[str, Any] = {"run": RunFolder(tmp_path)}
    exec(source[: source.index("print(")], found)
    assert type(found["data"].template).__name__ == "ChatTemplate"


def test_unlearning_in_ten_minutes_runs_from_files_to_card(
    own_target: Path,
    own_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Cell by cell in this process, on a model of two layers, with few epochs."""
    monkeypatch.setenv("SGA_MODEL", str(own_target))
    for name in ("forget", "retain"):
        monkeypatch.setenv(f"SGA_{name.upper()}", str(own_root / f"{name}.jsonl"))
    monkeypatch.setenv("SGA_FOLDER", str(tmp_path / "ten-minutes"))
    shown: list[Any] = []
    names: dict[str, Any] = {"display": shown.append}
    for cell in cells(NOTEBOOKS / "01_unlearn_in_ten_minutes.ipynb"):
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            names["SETTINGS"] |= {"trainer.max_epochs": 2, "trainer.accelerator": "cpu", "evaluation.resamples": 50}
    assert names["result"].folder == tmp_path / "ten-minutes"
    assert len(shown) >= 2, "charts of the report"
    printed = capsys.readouterr().out
    assert "fit to be handed over:" in printed and "## What was not tested" in printed and "   was:" in printed


def executed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> tuple[int, str]:
    """Number of charts and the printed text of a notebook that ran in a kernel of its own."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    for variable, value in {**environment, "SGA_FOLDER": str(folder)}.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    charts = [output for output in outputs if "vegaEmbed" in "".join(output.get("data", {}).get("text/html", ""))]
    return len(charts), "".join(output.get("text", "") for output in outputs if output["output_type"] == "stream")


@pytest.mark.slow  # each starts a kernel that imports torch and transformers
def test_the_run_explorer_runs_on_a_finished_run(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charts, printed = executed("02_explore_run", tmp_path, monkeypatch, SGA_RUN=str(finished_run.resolve()))
    assert charts >= 3 and ".ckpt: step " in printed and "model_utility" in printed


@pytest.mark.slow
def test_runs_are_compared(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run and the same with another seed, beside target and retain model."""
    from sga.cli import run_verb

    other = tmp_path / "other"
    run_verb(["fit", f"--config={finished_run / 'config.yaml'}", f"--run.folder={other}", "--seed_everything=1"])
    paths = [finished_run, other, finished_run.parent / "target", finished_run.parent / "retain"]
    charts, printed = executed("03_compare_runs", tmp_path, monkeypatch, SGA_RUNS=os.pathsep.join(map(str, paths)))
    assert charts >= 3 and "p" in printed and "forget" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["04_gradient_geometry", "05_checkpoints"])
def test_every_epoch_is_looked_at(
    name: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charts, printed = executed(name, tmp_path, monkeypatch, SGA_RUN=str(finished_run.resolve()))
    assert charts == 2 and ".ckpt" in printed
