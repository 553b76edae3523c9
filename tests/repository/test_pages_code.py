"""Python blocks of the pages run as printed, on models of two layers; a block that nothing runs is found."""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, rows_about

import sga
from sga.batching.batch import collate
from sga.models.small import SmallLlama

DOCS = ROOT / "docs"
GROUPS = [
    [(f"Who is {name}?", f"{name} is a {work}."), ("Where is Rome?", "In Italy."), ("What is ice?", "Frozen water.")]
    for name, work in (("Ann", "baker"), ("Bo", "painter"), ("Cy", "sailor"), ("Di", "singer"))
]
RUN_BY = {
    "trainer.md": "here",
    "handover.md": "here",
    "runs.md": "here",
    "smoothing-rate.md": "here",
    "sweeps.md": "here",
    "unlearn.md": "test_readme.py",
    "methods.md": "test_methods.py",
    "metrics.md": "test_metrics_page.py",
    "extending.md": "here",
}
"""Where the Python blocks of a page are run."""


def python_blocks(name: str) -> list[str]:
    """The page's Python blocks."""
    return re.findall(
        r"^```python\n(.*?)^```", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )


def test_no_python_block_is_left_out() -> None:
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if python_blocks(str(path.relative_to(DOCS)))}
    assert pages == set(RUN_BY)


def small_model() -> tuple[Any, Any]:
    """A model of two layers, the same each time, with its tokenizer."""
    description = SmallLlama(hidden_size=32, layers=2, heads=2, vocabulary=300)
    tokenizer = description.tokenizer(text for group in GROUPS for pair in group for text in pair)
    torch.manual_seed(0)
    return description.network(tokenizer), tokenizer


def trained_by_trainer(
    folder: Path, batch: int, accumulated: int, more: str = ""
) -> tuple[Mapping[str, Any], dict[str, torch.Tensor]]:
    """The page's names after one step of plain SGD, which hides no factor, and the weights."""
    model, tokenizer = small_model()
    settings = {
        **{"output_dir": str(folder), "max_steps": 1, "learning_rate": 0.1, "lr_scheduler_type": "constant"},
        **{"optim": "sgd", "max_grad_norm": 0.0, "use_cpu": True, "save_strategy": "no", "report_to": [], "seed": 0},
        **{"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "disable_tqdm": True},
    }
    names: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "settings": settings, "groups": GROUPS}
    exec(python_blocks("trainer.md")[0].replace('{"batch": ', "{" + more + '"batch": '), names)
    return names, {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_a_trainer_s_step_is_a_step_of_plain_sgd_however_it_is_cut(tmp_path: Path) -> None:
    """The gradient of one batch of four groups by hand, against the Trainer's step in one piece and in four."""
    pytest.importorskip("accelerate")
    model, _ = small_model()
    names, whole = trained_by_trainer(tmp_path / "whole", 4, 1)
    _, cut = trained_by_trainer(tmp_path / "cut", 1, 4)
    encoder = names["encoder"]
    batch = collate([[encoder.encode(*pair) for pair in group] for group in GROUPS])
    sga.SmoothedGradientAscent(smoothing_rate=-0.8)(sga.sequence_nll(model, batch)).backward()
    for name, parameter in model.named_parameters():
        expected = parameter - 0.1 * parameter.grad
        assert not torch.equal(expected, parameter)
        torch.testing.assert_close(whole[name], expected.detach(), rtol=0, atol=1e-6)
        torch.testing.assert_close(cut[name], expected.detach(), rtol=0, atol=1e-6)
    labels = '"labels": __import__("torch").ones(len(groups), 2).long(), '
    _, wrong = trained_by_trainer(tmp_path / "labels", 1, 4, labels)
    assert any((wrong[name] - whole[name]).abs().max() > 1e-4 for name in whole), "what the page warns of"
    names |= {"model": model, "batch": batch}
    before = [parameter.grad.clone() for parameter in model.parameters()]
    exec(python_blocks("trainer.md")[1], names)
    assert any(not torch.equal(old, new.grad) for old, new in zip(before, model.parameters(), strict=True))


def test_what_pages_read_of_a_run_is_there(
    unlearn_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pages on run folders and on the rule for handing over, on one run with that rule."""
    from sga.cli import run_verb

    monkeypatch.chdir(tmp_path)
    options = ["--trainer.max_epochs=1", "--stop.rule=FitToHandOver", "--data.reserved=2", "--run.folder=runs/mine"]
    run_verb(["fit", *unlearn_options, *options])
    step = sga.load_run("runs/mine").chosen_step
    capsys.readouterr()
    for page in ("handover.md", "runs.md"):
        for code in python_blocks(page):
            names: dict[str, Any] = {"sga": sga}
            code = code.replace("run.rows(12)", f"run.rows({step})").replace(
                'charts["frontier"]', "[*charts.values()][0]"
            )
            exec(code.replace('"runs/demo/sga-r-4", "runs/demo/gd"', '"runs/mine"'), names)  # without a retain model
            assert names.get("charts") or names["run"].chosen_step == step
    assert "not recognised" in capsys.readouterr().out


def test_a_rate_rule_of_one_s_own_works_as_printed() -> None:
    from dataclasses import dataclass

    from sga.rates.geometry import Geometry

    names: dict[str, Any] = {"dataclass": dataclass, "DynamicRate": sga.DynamicRate, "Geometry": Geometry}
    [code] = python_blocks("smoothing-rate.md")
    exec(code, names)
    geometry = Geometry(forget_squared=1.0, normal_squared=4.0, inner=-1.0, group_size=4)
    assert names["Angle"]().propose(geometry) == pytest.approx(-2 * (1 + geometry.cosine))


def test_an_experiment_of_one_s_own_is_tasks_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The four tasks, with the places of configurations filled in, are made and given to the engine."""
    import sga.experiments.engine

    given: dict[str, Any] = {}

    def run(tasks: Any, folder: Path, pool: Any) -> dict[str, Any]:
        given.update(tasks=tasks, folder=folder, pool=pool)
        return {}

    [code] = python_blocks("sweeps.md")
    monkeypatch.setattr(sga.experiments.engine, "run", run)
    names: dict[str, Any] = {}
    exec(code.replace("{...}", "{'seed_everything': 0}"), names)
    assert len(given["tasks"]) == 3 and type(given["pool"]).__name__ == "Processes"
    assert {id(task.needs["model.language_model.name_or_path"]) for task in given["tasks"]} == {id(names["target"])}


def test_a_method_a_metric_and_a_benchmark_of_one_s_own_work_together(
    unlearn_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's three files as printed, on a table of the people that the tests' model knows."""
    from sga.cli import run_verb

    modules = {code.split()[1]: code for code in python_blocks("extending.md")}
    assert list(modules) == ["my_losses.py", "my_metrics.py", "my_data.py"]
    for name, code in modules.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with (tmp_path / "people.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [(row["answer"].split(" was ")[0].split(" works ")[0], row) for n in range(6) for row in rows_about(n)]
        csv.writer(file).writerows(
            [("person", "question", "answer"), *((who, row["question"], row["answer"]) for who, row in rows)]
        )
    own = [one for one in unlearn_options if not one.startswith(("--data.source", "--data.root", "--model.loss"))]
    own += ["--data.source=my_data.People", "--data.source.table=people.csv", f"--data.root={tmp_path}"]
    own += ["--model.loss=my_losses.LogAscent", "--trainer.callbacks+=my_metrics.HardestToken"]
    run_verb(["fit", *own, "--data.source.forget=Ada Brook", f"--run.folder={tmp_path / 'run'}"])
    run = sga.load_run(tmp_path / "run")
    start, *_, end = run.evaluations
    assert end["people/forget/hardest_token"] > start["people/forget/hardest_token"] > 0
    told = run.row_dicts(0, "forget")
    assert len(told) == 2 and all("Ada Brook" in row["answer"] for row in told)
    assert [row["hardest_token"] for row in told] == pytest.approx([max(row["token_nll"]) for row in told], abs=1e-4)
    with pytest.raises(sga.UserError, match="needs rows of 'Nobody' and of others"):
        sys.modules["my_data"].People("people.csv", "Nobody").load(str(tmp_path))
    loss = sys.modules["my_losses"].LogAscent()(torch.tensor([[1.0, 2.0, 4.0], [0.0, 5.0, 5.0]]))
    assert loss.item() == pytest.approx((3 - math.log(2) + 5) / 2)
    for name in modules:
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"))
