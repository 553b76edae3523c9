"""Sweeps: what is run, that each run is made once by whoever comes first, what survives a kill, and what comes out."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from scipy import stats

import sga.commands.sweep
import sga.experiments.sweeps.worker
from sga.commands.sweep import known_tasks, main, terminal_table
from sga.data.builtin import packaged_path
from sga.errors import UserError
from sga.experiments.configuration import applied, set_value
from sga.experiments.sweeps.claims import Claims, open_storage
from sga.experiments.sweeps.definition import Outcome, Task, label, read_sweep, short_names, slug
from sga.experiments.sweeps.fit import end_with_parent
from sga.experiments.sweeps.page import write_results
from sga.experiments.sweeps.results import (
    CUT_MEANING,
    best_rows,
    collect,
    disk_outcomes,
    others,
    pareto_front,
    seed_mean,
)
from sga.experiments.sweeps.worker import Worker, read_state, why_ended

AUTHORS_SGA = ["configs/benchmarks/authors.yaml", "configs/methods/sga.yaml"]
"""Of the package, found wherever a sweep file is."""
SWEEPS = sorted(packaged_path("configs/sweeps").glob("*.yaml"))
BASE = {
    "seed_everything": 7,
    "run": {"folder": "runs/somewhere"},
    "model": {
        "language_model": {"class_path": "sga.Pretrained", "init_args": {"name_or_path": "x"}},
        "loss": {"class_path": "sga.SmoothedGradientAscent", "init_args": {"smoothing_rate": -4.0}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.0}},
    },
    "data": {"batch_size": 8},
}
GA = {"class_path": "sga.GradientAscent"}
GD = {"class_path": "sga.GradientDifference", "init_args": {"normal_weight": 1.5}}


def sweep_file(folder: Path, **plan: Any) -> Path:
    """A sweep file with a base configuration beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE), encoding="utf-8")
    path = folder / "some.yaml"
    path.write_text(yaml.safe_dump({"config": "base.yaml", **plan}), encoding="utf-8")
    return path


# ---- what is run ----------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_times_seeds(tmp_path: Path) -> None:
    grid = {"model.loss": [GA, GD], "model.optimizer.lr": [1e-4, 2e-4, 4e-4]}
    sweep = read_sweep(sweep_file(tmp_path, grid=grid, seeds=[0, 1]))
    tasks = sweep.tasks({})
    assert len(tasks) == 2 * 3 * 2
    assert len({task.key for task in tasks}) == len({task.folder for task in tasks}) == 12
    assert {task.stage for task in tasks} == {"final"}
    first, last = tasks[0], tasks[-1]
    assert first.config["model"]["loss"] == GA, "a block replaces a block, arguments and all"
    assert first.config["model"]["optimizer"]["init_args"] == {"lr": 1e-4, "weight_decay": 0.0}
    assert first.config["seed_everything"] == 0 and last.config["seed_everything"] == 1
    assert last.label == "GradientDifference normal_weight=1.5, lr=0.0004, seed 1"
    # The report takes runs for seeds of one setting whose paths differ in the seed alone.
    assert first.folder.removesuffix("-seed0") == tasks[1].folder.removesuffix("-seed1")


def test_a_hash_depends_on_what_the_result_depends_on_and_on_nothing_else(tmp_path: Path) -> None:
    def keys(**plan: Any) -> set[str]:
        return {task.key for task in read_sweep(sweep_file(tmp_path, **plan)).tasks({})}

    grid = {"model.loss.smoothing_rate": [-4.0, -2.0]}
    before = keys(grid=grid)
    assert before < keys(grid={"model.loss.smoothing_rate": [-4.0, -2.0, 0.0]}), "a grid can grow"
    assert before < keys(grid=grid, seeds=[0, 1])
    assert before == keys(grid=grid, objectives=["model_utility"])
    assert not before & keys(grid=grid, settings={"data.batch_size": 4})
    assert not before & keys(grid=grid, common={"data.batch_size": 4})
    assert not before & keys(grid=grid, models={"target": "base.yaml"})
    one = keys(grid=grid, models={"target": "base.yaml"})
    assert not one & keys(grid=grid, models={"target": {"config": "base.yaml", "settings": {"data.batch_size": 4}}})
    taken = tmp_path / "model"
    taken.mkdir()
    (taken / "run.json").write_text("1", encoding="utf-8")
    one = keys(grid=grid, models={"target": {"folder": str(taken)}})
    (taken / "run.json").write_text("2", encoding="utf-8")
    assert not one & keys(grid=grid, models={"target": {"folder": str(taken)}}), "another model at the same place"
    path = sweep_file(tmp_path, grid=grid)
    base = (tmp_path / "base.yaml").read_text(encoding="utf-8")
    (tmp_path / "base.yaml").write_text(f"# a remark\n{base}", encoding="utf-8")
    assert {task.key for task in read_sweep(path).tasks({})} == before


def test_the_questions_hash_lets_a_search_go_on_but_not_change(tmp_path: Path) -> None:
    def key(trials: int = 3, high: float = 1e-3, **plan: Any) -> str:
        search = {"trials": trials, "space": {"model.optimizer.lr": {"log_uniform": [1e-5, high]}}}
        return read_sweep(sweep_file(tmp_path, search=search, **plan)).key

    assert key() == key(trials=30)
    assert len({key(), key(high=1e-2), key(objectives=["model_utility"]), key(seeds=[0, 1])}) == 4


def test_dotted_names_find_their_way_into_classes() -> None:
    config: dict[str, Any] = {"model": {"loss": "sga.SmoothedGradientAscent"}}
    set_value(config, "model.loss.smoothing_rate", -2.0)
    assert config["model"]["loss"] == {
        "class_path": "sga.SmoothedGradientAscent",
        "init_args": {"smoothing_rate": -2.0},
    }
    set_value(config, "model.loss.class_path", "sga.GradientAscent")
    assert config["model"]["loss"]["class_path"] == "sga.GradientAscent"
    set_value(config, "trainer.max_epochs", 3)
    assert config["trainer"] == {"max_epochs": 3}
    values = {"model.loss.normal_weight": 2.0, "model.loss": GD}  # the block first, whatever the order
    assert applied(config, values)["model"]["loss"]["init_args"] == {"normal_weight": 2.0}
    assert GD["init_args"] == {"normal_weight": 1.5}, "nothing that was given is changed"


def test_several_base_files_are_laid_over_each_other(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, grid={"data.batch_size": [1]})
    (tmp_path / "more.yaml").write_text(
        "model:\n  loss: {class_path: sga.GradientAscent}\n  optimizer: {init_args: {lr: 1e-4}}\n"
        "trainer: {callbacks+: [one]}\n",
        encoding="utf-8",
    )
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**plan, "config": ["base.yaml", "more.yaml", "more.yaml"]}), encoding="utf-8")
    config = read_sweep(path).base
    assert config["model"]["loss"] == GA, "another class takes no arguments over"
    assert config["model"]["optimizer"]["init_args"] == {"lr": 1e-4, "weight_decay": 0.0}, "1e-4 is a number"
    assert config["trainer"]["callbacks"] == ["one", "one"]
    assert config["export"] == {"enabled": False} and "folder" not in config["run"]


def test_names_are_short_and_different() -> None:
    assert short_names(["a.b.c", "a.d.c", "e"]) == {"a.b.c": "b.c", "a.d.c": "d.c", "e": "e"}
    assert label({"a": [1, 2.5], "b": {"x": 1}, "c": None}) == "a=[1, 2.5], b=x=1, c=None"
    assert slug({"a": "../../etc", "b": -0.8}) == "a-etc-b-0.8"
    assert len(slug({"a": "x" * 500})) <= 80


def test_what_is_chosen_is_run_with_the_other_seeds(tmp_path: Path) -> None:
    """Two losses by two learning rates on seed 0; each loss goes on with its own best one on seeds 1 and 2."""
    grid = {"model.optimizer.lr": [1e-4, 2e-4], "model.loss": [GA, GD]}
    choose = {"settings": ["model.optimizer.lr"], "seeds": [0]}
    path = sweep_file(tmp_path, grid=grid, seeds=[1, 2], choose=choose)
    sweep = read_sweep(path)
    first = sweep.tasks({})
    assert sweep.run_count == 4 + 2 * 2
    assert len(first) == 4 and {task.stage for task in first} == {"choose"} and {task.seed for task in first} == {0}
    scores = {("GA", 1e-4): 0.3, ("GA", 2e-4): 0.2, ("GD", 1e-4): 0.4, ("GD", 2e-4): 0.5}

    def outcomes(scores: dict[tuple[str, float], float | str]) -> dict[str, Outcome]:
        found = {}
        for task in first:
            score = scores.get(("GA" if task.values["model.loss"] == GA else "GD", task.values["model.optimizer.lr"]))
            if score is not None:
                found[task.key] = Outcome(reason=score) if isinstance(score, str) else Outcome((score,))
        return found

    def second(scores: dict[tuple[str, float], Any]) -> list[tuple[str, float, int | None]]:
        return [
            (task.values["model.loss"]["class_path"][4:], task.values["model.optimizer.lr"], task.seed)
            for task in sweep.tasks(outcomes(scores))
            if task.stage == "final"
        ]

    ga, gd = "GradientAscent", "GradientDifference"
    assert second(scores) == [(ga, 1e-4, 1), (ga, 1e-4, 2), (gd, 2e-4, 1), (gd, 2e-4, 2)]
    # A loss whose runs are all there goes on while another's are still under way.
    assert second({**scores, ("GD", 2e-4): None}) == [(ga, 1e-4, 1), (ga, 1e-4, 2)]
    assert second({**scores, ("GA", 1e-4): "diverged"})[0] == (ga, 2e-4, 1), "a failed one is not chosen"
    assert second({**scores, ("GA", 1e-4): "diverged", ("GA", 2e-4): "too"}) == [(gd, 2e-4, 1), (gd, 2e-4, 2)]
    minimised = read_sweep(
        sweep_file(tmp_path, grid=grid, seeds=[1], choose=choose, objectives=[{"frontier_area": "minimize"}])
    )
    lrs = [task.values["model.optimizer.lr"] for task in minimised.tasks(outcomes(scores)) if task.stage == "final"]
    assert lrs == [2e-4, 1e-4]
    # A seed of both stages is run once and reported.
    both = read_sweep(sweep_file(tmp_path, grid=grid, seeds=[0, 1], choose=choose))
    tasks = both.tasks(outcomes(scores))
    assert len({task.key for task in tasks}) == len(tasks) == both.run_count == 6
    assert sum(task.stage == "choose" for task in tasks) == 2


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, "either grid or search"),
        ({"grid": {"a": [1]}, "search": {}}, "either grid or search"),
        ({"grid": {}}, "at least one setting"),
        ({"grid": {"a": 1}}, "grid: a: expected a list"),
        ({"grid": {"a": [1]}, "sedes": [1]}, "no 'sedes'"),
        ({"grid": {"a": [1]}, "seeds": [1, 1]}, "different whole numbers"),
        ({"grid": {"a": [1]}, "config": "nowhere.yaml"}, "does not exist"),
        ({"grid": {"a": [1]}, "models": {"teacher": "base.yaml"}}, "no 'teacher'"),
        ({"grid": {"a": [1]}, "models": {"target": {"settings": {}}}}, "needs a config"),
        ({"grid": {"a": [1]}, "choose": {"settings": ["b"], "seeds": [0]}}, "among the grid's"),
        ({"grid": {"a": [1]}, "objectives": [{"x": "up"}]}, "maximize or minimize"),
        ({"grid": {"a": [1]}, "keep_weights": "yes"}, "true or false"),
        ({"search": {"trials": 0, "space": {"a": {"uniform": [0, 1]}}}}, "at least 1"),
        ({"search": {"trials": 1, "space": {"a": {"uniform": [1, 0]}}}}, "lowest and its highest"),
        ({"search": {"trials": 1, "space": {"a": {"log_uniform": [0, 1]}}}}, "positive"),
        ({"search": {"trials": 1, "space": {"a": {"int": [0, 1.5]}}}}, "lowest and its highest"),
        ({"search": {"trials": 1, "space": {"a": {"normal": [0, 1]}}}}, "must be one of uniform"),
        ({"search": {"trials": 1, "sampler": "cmaes", "space": {"a": {"int": [0, 1]}}}}, "tpe or random"),
    ],
)
def test_a_bad_file_is_said_before_anything_runs(plan: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = sweep_file(tmp_path, **plan)
    with pytest.raises(UserError, match=message) as error:
        read_sweep(path)
    assert str(tmp_path) in str(error.value)


def test_the_packaged_sweeps_are_what_they_say() -> None:
    assert len(SWEEPS) >= 2
    sweeps = {path.stem: read_sweep(path) for path in SWEEPS}
    rates = sweeps["rates"]
    losses = [values["model.loss"] for values in rates.combinations()]
    fixed = {loss["init_args"].get("smoothing_rate") for loss in losses} - {None}
    assert fixed == {-8, -4, -2, -0.8, -0.4, -0.2, 0, 0.2, 0.4, 0.8}
    assert {loss["init_args"].get("normal_weight") for loss in losses} - {None} >= {1, 1.5, 2, 4}
    assert rates.seeds == (1, 2, 3) and rates.choose is not None and rates.choose.seeds == (0,)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_value_of_the_packaged_sweeps_parses(path: Path, tmp_path: Path) -> None:
    from sga.commands.sweep import _check

    _check(read_sweep(path), tmp_path)


def test_a_setting_that_does_not_exist_is_refused_before_anything_runs(tmp_path: Path) -> None:
    plan = yaml.safe_load(packaged_path("configs/sweeps/quick.yaml").read_text(encoding="utf-8"))
    plan["grid"] = {"model.loss.smoothing_rat": [-4.0]}
    plan["config"] = AUTHORS_SGA
    plan["models"] = {}
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    with pytest.raises(UserError, match="smoothing_rat"):
        main([str(path), "--folder", str(tmp_path / "sweep")])
    assert not (tmp_path / "sweep" / "trials").exists()


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_the_interval_is_students() -> None:
    values = [0.46, 0.51, 0.55]
    found = seed_mean(values)
    assert found is not None and found.low is not None and found.high is not None
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert math.isclose(found.low, expected.low) and math.isclose(found.high, expected.high)
    assert found.values == (0.46, 0.51, 0.55)
    one = seed_mean([0.4])
    assert one is not None and one.low is None and one.mean == 0.4
    assert seed_mean([]) is None
    same = seed_mean([1.0, 1.0, 1.0])
    assert same is not None and same.low is None and same.mean == 1, "no width is no certainty"


@pytest.mark.parametrize(
    ("name", "values", "ends", "cut"),
    [
        ("model_utility", (0.02, 0.3, 0.9), "0.00†, 1.00†", ("low", "high")),
        ("mia/loss", (0.9, 0.95, 1.0), "0.83, 1.00†", ("high",)),
        ("forget_quality_log10", (-8.0, -3.0, -0.5), "-13.32, 0.00†", ("high",)),
        ("privleak", (-100.0, -80.0, -60.0), "-100.00†, -30.32", ("low",)),
        ("seconds", (1.0, 10.0, 100.0), "0.00†, 172.99", ("low",)),
        ("harness/boolq/acc", (0.5, 0.6, 0.7), "0.35, 0.85", ()),  # nothing is known of it
    ],
)
def test_an_interval_ends_where_the_metric_does(
    name: str, values: tuple[float, ...], ends: str, cut: tuple[str, ...]
) -> None:
    found = seed_mean(values, name)
    assert found is not None and found.interval(lambda end: f"{end:.2f}") == ends and found.cut == cut


def test_intervals_that_were_cut_are_marked_wherever_they_are_written(
    pretended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "area", lambda config: (0.02, 0.3, 0.9)[config["seed_everything"]])
    sweep = read_sweep(sweep_file(tmp_path, grid={"model.optimizer.lr": [1e-4]}, seeds=[0, 1, 2]))
    worker = Worker(sweep, tmp_path / "sweep")
    worker.run()
    rows = write_results(sweep, known_tasks(worker), worker.folder)
    files = {name: (worker.folder / name).read_text(encoding="utf-8") for name in ("results.md", "sweep.html")}
    assert "0.41 [0.00†, 1.00†]" in files["results.md"] and CUT_MEANING in files["results.md"]
    assert "0.000† to 1.000†" in files["sweep.html"] and CUT_MEANING in files["sweep.html"]
    shown = terminal_table(sweep, rows)
    assert "0.407 [0.000†, 1.000†]" in shown and shown.endswith(CUT_MEANING)
    with (worker.folder / "results.csv").open(encoding="utf-8") as file:
        [line] = csv.DictReader(file)
    assert (line["frontier_area/low"], line["frontier_area/high"]) == ("0.0", "1.0")
    assert line["frontier_area/cut"] == "low high"


def test_the_front_is_what_nobody_beats() -> None:
    both = ["maximize", "maximize"]
    assert pareto_front([(1, 1), (2, 2)], both) == [1]
    assert pareto_front([(1, 2), (2, 1), (1, 1), (2, 1)], both) == [0, 1, 3], "equals do not beat each other"
    assert pareto_front([(1, 2), (2, 2)], ["minimize", "maximize"]) == [0]
    assert pareto_front([(3,), (1,), (2,)], ["minimize"]) == [1]
    assert pareto_front([], both) == []


# ---- workers, with runs that are only pretended ---------------------------------------------------------------------


def area(config: dict[str, Any]) -> float:
    """What a pretended run scores: best at lr = 2e-4, and a little better with each seed."""
    lr = config["model"]["optimizer"]["init_args"]["lr"]
    return 0.5 - abs(math.log10(lr / 2e-4)) / 4 + 0.01 * float(config["seed_everything"])


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces `sga fit` by the files that it leaves; the folders' names in the order in which they were made."""
    made: list[str] = []

    def fit(folder: Path, claim: Any) -> tuple[int, int]:
        made.append(folder.name)
        config = yaml.safe_load((folder / "fit.yaml").read_text(encoding="utf-8"))
        assert config["run"]["folder"] == str(folder)
        if config["data"]["batch_size"] == 13:
            (folder / "fit.log").write_text("Traceback …\nRuntimeError: 13 is unlucky\n", encoding="utf-8")
            return 1, 0
        score = area(config)
        info = {"name": folder.name, "role": "unlearn", "seed": config["seed_everything"], "group_size": 4}
        info |= {"benchmark": "own", "parameters": {"smoothing_rate": -4.0}, "method": "SmoothedGradientAscent"}
        points = [
            {"step": step, "epoch": step / 2, "seconds": 2.0 * step, "own/model_utility": 0.9 - 0.1 * step,
             "own/forget_quality_log10": -6.0 + step * score, "own/ks_statistic": 0.5}
            for step in (0, 2, 4)
        ]  # fmt: skip
        (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points), encoding="utf-8")
        chosen = {"chosen": "the last evaluation", **points[-1], "frontier_area": score, "tokens": 1200, "absent": {}}
        (folder / "metrics.json").write_text(json.dumps(chosen), encoding="utf-8")
        (folder / "rows.jsonl").write_text("", encoding="utf-8")
        (folder / "checkpoints").mkdir()
        return 0, 2**30

    monkeypatch.setattr(sga.experiments.sweeps.worker, "_fit", fit)
    return made


def test_a_grid_is_worked_through_and_reported(pretended: list[str], tmp_path: Path) -> None:
    grid = {"model.optimizer.lr": [1e-4, 2e-4], "data.batch_size": [4, 8]}
    choose = {"settings": ["model.optimizer.lr"], "seeds": [0]}
    sweep = read_sweep(sweep_file(tmp_path, grid=grid, seeds=[1, 2, 3], choose=choose))
    worker = Worker(sweep, tmp_path / "sweep")
    worker.run()
    assert len(pretended) == 4 + 2 * 3
    rows = write_results(sweep, known_tasks(worker), worker.folder)
    final = [row for row in rows if row.stage == "final"]
    assert [row.values["model.optimizer.lr"] for row in final] == [2e-4, 2e-4]
    found = final[0].estimate("frontier_area")
    assert found is not None and found.values == pytest.approx((0.51, 0.52, 0.53))
    assert final[0].single("seconds") == {1: 8.0, 2: 8.0, 3: 8.0}
    assert final[0].single("peak_memory_bytes") == {1: 2.0**30, 2: 2.0**30, 3: 2.0**30}
    with (worker.folder / "results.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) == 6
    line = next(line for line in table if line["stage"] == "final")
    assert float(line["frontier_area"]) == pytest.approx(0.52)
    assert float(line["frontier_area/low"]) == pytest.approx(0.52 - 4.302653 * 0.01 / math.sqrt(3))
    assert line["frontier_area/values"].split() == [str(value) for value in found.values]
    assert float(line["tokens"]) == 1200 and line["seeds"] == "1 2 3" and line["lr"] == "0.0002"
    reported = (worker.folder / "results.md").read_text(encoding="utf-8").splitlines()
    assert len(reported) == 2 + 2 and len({line.count(" | ") for line in reported}) == 1
    assert reported[0].startswith("| configuration | seeds | frontier_area | ")
    assert "| 1, 2, 3 | 0.52 [0.50, 0.54] | " in reported[2] and reported[2].endswith(" | 8 | 1,200 |")
    stored = json.loads((worker.folder / "results.json").read_text(encoding="utf-8"))
    assert len(stored["rows"][-1]["runs"]["3"]["evaluations"]) == 3
    page = (worker.folder / "sweep.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 3 and "0.520" in page
    # 2e-4 is the greater of the two that were tried
    assert page.count("lr = 0.0002, of [0.0001, 0.0002]") == 2
    assert not list(worker.folder.glob("trials/*/checkpoints")), "weights of finished trials are not kept"


def test_what_is_finished_is_reused_with_and_without_the_storage(pretended: list[str], tmp_path: Path) -> None:
    path = sweep_file(tmp_path, grid={"model.optimizer.lr": [1e-4, 2e-4]}, seeds=[0, 1])
    Worker(read_sweep(path), tmp_path / "sweep").run()
    Worker(read_sweep(path), tmp_path / "sweep").run()
    (tmp_path / "sweep" / "journal.log").unlink()
    Worker(read_sweep(path), tmp_path / "sweep").run()
    assert len(pretended) == 4


def test_a_changed_file_never_mixes_results(
    pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sweep"

    def work(options: Any, arguments: list[str]) -> int:
        Worker(read_sweep(options.config), options.folder).run()
        return 0

    monkeypatch.setattr(sga.commands.sweep, "_work", work)  # in this process, which pretends
    monkeypatch.setattr(sga.commands.sweep, "_check", lambda *_: None)  # the pretended configuration is no real one
    main([str(sweep_file(tmp_path, grid={"model.optimizer.lr": [1e-4, 2e-4]})), "--folder", str(folder)])
    assert "has changed since" not in capsys.readouterr().out
    path = sweep_file(tmp_path, grid={"model.optimizer.lr": [2e-4, 4e-4]})
    main([str(path), "--folder", str(folder)])
    assert "has changed since" in capsys.readouterr().out
    assert len(pretended) == 3, "one was reused"
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [row["values"]["model.optimizer.lr"] for row in stored["rows"]] == [2e-4, 4e-4]
    assert len(stored["not_counted"]) == 1
    # The same folder name with other content, as only a hand could make it, is refused.
    sweep = read_sweep(path)
    state = folder / sweep.tasks({})[0].folder / "trial.json"
    state.write_text(state.read_text(encoding="utf-8").replace('"key": "', '"key": "x'), encoding="utf-8")
    (folder / "journal.log").unlink()
    with pytest.raises(UserError, match="holds another run"):
        Worker(sweep, folder).run()


def test_a_worker_that_dies_leaves_the_table_of_what_is_finished(
    pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit code counts where something is missing because of it, and not where others did its work."""
    path, folder = sweep_file(tmp_path, grid={"model.optimizer.lr": [1e-4, 2e-4]}), tmp_path / "sweep"
    monkeypatch.setattr(sga.commands.sweep, "_check", lambda *_: None)  # the pretended configuration is no real one
    monkeypatch.setattr(sga.commands.sweep, "_work", lambda *_: 9)
    assert main([str(path), "--folder", str(folder)]) == 9
    assert not (folder / "results.csv").exists()
    worker = Worker(read_sweep(path), folder)
    first, second = worker.sweep.tasks({})
    for task, code, said in ((first, 9, "1 runs are not finished"), (second, 0, "frontier_area")):
        worker.outcome(task)
        assert main([str(path), "--folder", str(folder)]) == code
        assert said in capsys.readouterr().out
        assert (folder / "results.csv").exists()


def test_the_time_left_goes_by_what_is_done_since_the_worker_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 were there before; 2 in 100 s leave 8 at 50 s each."""
    now = 1000.0
    monkeypatch.setattr(sga.experiments.sweeps.worker.time, "monotonic", lambda: now)
    pace = sga.experiments.sweeps.worker._Pace(total=20, done=10)
    now += 100
    assert pace.after(12) == "12 of 20, 7 min left"
    assert pace.after(20) == "20 of 20"


def test_a_failed_trial_is_recorded_and_the_others_finish(pretended: list[str], tmp_path: Path) -> None:
    path = sweep_file(tmp_path, grid={"data.batch_size": [4, 13, 8]}, seeds=[0, 1])
    sweep = read_sweep(path)
    worker = Worker(sweep, tmp_path / "sweep")
    worker.run()
    assert len(pretended) == 6
    rows = write_results(sweep, known_tasks(worker), worker.folder)
    assert [len(row.folders) for row in rows] == [2, 0, 2]
    assert rows[1].failed == dict.fromkeys((0, 1), "RuntimeError: 13 is unlucky (exit code 1)")
    assert "13 is unlucky" in (worker.folder / "sweep.html").read_text(encoding="utf-8")
    assert 1 not in best_rows(sweep, rows)
    Worker(sweep, tmp_path / "sweep").run()
    assert len(pretended) == 6, "a failure is not tried again by itself"
    assert sga.experiments.sweeps.worker.forgive(sweep, worker.folder) == 2
    worker.claims().forgive()
    Worker(sweep, tmp_path / "sweep").run()
    assert len(pretended) == 8
    assert [len(row.failed) for row in collect(known_tasks(worker), worker.folder)] == [0, 2, 0]


def test_an_objective_that_is_absent_says_why(pretended: list[str], tmp_path: Path) -> None:
    sweep = read_sweep(sweep_file(tmp_path, grid={"data.batch_size": [4]}, objectives=["privleak"]))
    Worker(sweep, tmp_path / "sweep").run()
    (outcome,) = disk_outcomes(sweep, tmp_path / "sweep").values()
    assert outcome.reason is not None and "not among the run's metrics" in outcome.reason


def marked(folder: Path, batch_sizes: list[int], seeds: list[int]) -> tuple[int, str]:
    """How many rows are marked as best, and the page; of pretended runs the learning rate and seed make the value."""
    sweep = read_sweep(sweep_file(folder, grid={"data.batch_size": batch_sizes}, seeds=seeds))
    worker = Worker(sweep, folder / "sweep")
    worker.run()
    rows = write_results(sweep, known_tasks(worker), worker.folder)
    page = (worker.folder / "sweep.html").read_text(encoding="utf-8")
    count = len(best_rows(sweep, rows))
    assert page.count('<strong class="best">batch_size') == count
    assert page.count('<strong class="best">Marked</strong>') == bool(count), "the mark is explained where there is one"
    return count, page


def test_neither_ties_nor_single_seeds_are_marked_as_best(
    pretended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written alike, to three decimals, is a tie; a row alone with its seeds is marked as before."""
    here = sys.modules[__name__]
    monkeypatch.setattr(here, "area", lambda config: 0.5 + 1e-5 * config["data"]["batch_size"])
    count, page = marked(tmp_path / "tied", [4, 8], [0, 1])
    assert count == 0 and page.count("Nothing is marked") == 1 and "written alike" in page
    monkeypatch.setattr(here, "area", lambda config: 0.05 * config["data"]["batch_size"])
    count, page = marked(tmp_path / "single", [4, 8], [0])
    assert count == 0 and page.count("one seed") == 1
    count, page = marked(tmp_path / "two", [4, 8], [0, 1])
    assert count == 1 and "one seed" not in page


def test_a_failed_model_ends_the_sweep(pretended: list[str], tmp_path: Path) -> None:
    models = {"target": {"config": "base.yaml", "settings": {"data.batch_size": 13}}}
    sweep = read_sweep(sweep_file(tmp_path, grid={"data.batch_size": [4]}, models=models))
    with pytest.raises(UserError, match="13 is unlucky"):
        Worker(sweep, tmp_path / "sweep").run()
    assert len(pretended) == 1


def test_trials_use_the_shared_models(pretended: list[str], tmp_path: Path) -> None:
    models = {"target": "base.yaml", "retain": {"folder": "some/where"}}
    sweep = read_sweep(sweep_file(tmp_path, grid={"data.batch_size": [4]}, models=models, seeds=[0, 1]))
    folder = tmp_path / "sweep"
    Worker(sweep, folder).run()
    assert len(pretended) == 1 + 2
    (target,) = folder.glob("models/*")
    for path in folder.glob("trials/*/fit.yaml"):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert config["model"]["language_model"]["init_args"]["name_or_path"] == str(target)
        assert config["evaluation"]["reference"] == "some/where"


@pytest.mark.parametrize("objectives", [["frontier_area"], ["frontier_area", {"seconds": "minimize"}]])
def test_a_search_makes_as_many_trials_as_wanted(objectives: list[Any], pretended: list[str], tmp_path: Path) -> None:
    space = {
        "model.optimizer.lr": {"log_uniform": [1e-5, 1e-2]},
        "data.batch_size": {"int": [2, 8], "step": 2},
        "model.loss": {"choice": [GA, GD]},
    }

    def run(folder: str, trials: int) -> list[dict[str, Any]]:
        search = {"trials": trials, "space": space, "seed": 5}
        sweep = read_sweep(sweep_file(tmp_path, search=search, objectives=objectives, seeds=[0, 1]))
        worker = Worker(sweep, tmp_path / folder)
        worker.run()
        rows = write_results(sweep, known_tasks(worker), worker.folder)
        study = worker.claims().study
        for trial, row in zip(study.get_trials(), rows, strict=True):
            assert trial.values is not None and row.estimate("frontier_area") is not None
            assert trial.values[0] == pytest.approx(row.estimate("frontier_area").mean), "the mean over seeds"
        best = {study.get_trials().index(trial) for trial in study.best_trials}
        assert set(best_rows(sweep, rows)) == best, "Optuna's own front"
        return [row.values for row in rows]

    first = run("one", 3)
    assert len(first) == 3 and len(pretended) == 6
    assert all(values["data.batch_size"] in (2, 4, 6, 8) for values in first)
    assert run("two", 3) == first, "one worker draws the same again"
    assert run("one", 5)[:3] == first and len(pretended) == 6 + 6 + 4, "a search can go on"


def test_two_workers_share_a_search(tmp_path: Path) -> None:
    search = {"trials": 4, "space": {"model.optimizer.lr": {"log_uniform": [1e-5, 1e-2]}}}
    sweep = read_sweep(sweep_file(tmp_path, search=search))
    assert sweep.search is not None
    storage = open_storage(None, tmp_path)
    one, two = (Claims(storage, "s", ["maximize"], stale_after=0.5) for _ in range(2))
    drawn = [claims.draw(sweep.search) for claims in (one, two, one, two)]
    assert None not in drawn
    assert one.draw(sweep.search) is None and two.draw(sweep.search) is None, "no fifth"
    values = [found[0]["model.optimizer.lr"] for found in drawn if found]
    assert len(set(values)) == 4, "each draws its own"
    claims = [found[1] for found in drawn if found]
    claims[0].finish([0.1])
    claims[1].release()
    claims[2].fail("bad luck")
    again = two.draw(sweep.search)
    assert again is not None and again[0]["model.optimizer.lr"] == values[1], "what was put back is done"
    again[1].finish([0.2])
    claims[3].finish([0.3])
    assert one.draw(sweep.search) is None
    outcomes = one.outcomes()
    assert sorted(outcome.values for outcome in outcomes.values()) == [(), (0.1,), (0.2,), (0.3,)]


# ---- claims ---------------------------------------------------------------------------------------------------------


def some_tasks(count: int) -> list[Task]:
    return [Task(f"trials/{i}", f"key{i}", {}, "final", {"a": i}, 0) for i in range(count)]


def take_all(folder: str, count: int, results: Any) -> None:
    claims = Claims(open_storage(None, Path(folder)), "study", ["maximize"])
    while True:
        outcomes = claims.outcomes()
        rest = [task for task in some_tasks(count) if task.key not in outcomes]
        if not rest:
            return
        found = claims.claim(rest)
        if found is None:
            time.sleep(0.02)
            continue
        results.put(found[0].key)
        time.sleep(0.01)
        found[1].finish([1.0])


def cut(journal: Path, size: int) -> bytes:
    """Cuts a journal within its last line, as a writer that is killed does; what is left of the line."""
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    journal.write_bytes(content[: len(content) - len(lines[-1]) + size])
    return lines[-1][:size]


@pytest.mark.parametrize("size", [1, 20, -1])
def test_a_journal_with_half_a_last_line_is_mended_when_it_is_opened(
    pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    path = sweep_file(tmp_path, grid={"model.optimizer.lr": [1e-4, 2e-4]})
    folder = tmp_path / "sweep"
    Worker(read_sweep(path), folder).run()
    journal = folder / "journal.log"
    before = journal.read_bytes()
    half = cut(journal, len(before.splitlines()[-1]) if size < 0 else size)  # all but the end of the line
    path = sweep_file(tmp_path, grid={"model.optimizer.lr": [1e-4, 2e-4, 4e-4]})
    for _ in range(2):  # the second time it is whole
        Worker(read_sweep(path), folder).run()
    assert len(pretended) == 3, "what is finished is reused"
    assert (folder / "journal.log.torn").read_bytes() == half + b"\n"
    assert capsys.readouterr().out.count("half written") == 1
    lines = journal.read_bytes().splitlines()
    assert lines[: len(before.splitlines()) - 1] == before.splitlines()[:-1] and all(json.loads(line) for line in lines)


def test_a_worker_that_is_killed_while_writing_does_not_end_the_others(tmp_path: Path) -> None:
    """The storages are open already when the line is cut; negative control: Optuna's own can no longer be read."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    own = optuna.storages.journal.JournalFileBackend(str(theirs))
    for path, storage in ((ours, open_storage(str(ours), tmp_path)), (theirs, optuna.storages.JournalStorage(own))):
        claims = Claims(storage, "study", ["maximize"])
        found = claims.claim(some_tasks(3))
        assert found is not None
        found[1].finish([1.0])
        with path.open("ab") as file:
            file.write(b'{"op_code":8,"worker_id":"someone')
        if path == ours:
            again = claims.claim(some_tasks(3))
            assert again is not None
            again[1].finish([2.0])
            other = Claims(open_storage(str(ours), tmp_path), "study", ["maximize"])
            assert len(other.outcomes()) == 2
        else:
            with pytest.raises((json.JSONDecodeError, AssertionError, KeyError)):
                for _ in range(3):
                    claims.study.enqueue_trial({})
                Claims(optuna.storages.JournalStorage(type(own)(str(theirs))), "study", ["maximize"])


def test_damage_elsewhere_in_a_journal_is_named(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    claims = Claims(open_storage(None, tmp_path), "study", ["maximize"])
    assert claims.claim(some_tasks(3)) is not None
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], lines[1][:9], *lines[2:]]))
    with pytest.raises(UserError, match=r"journal\.log:2: not JSON .*move it away: finished runs are reused"):
        open_storage(None, tmp_path)


def test_many_workers_take_each_task_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=take_all, args=(str(tmp_path), 24, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    taken = [results.get(timeout=60) for _ in range(24)]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert results.empty() and sorted(taken) == sorted(f"key{i}" for i in range(24))


def test_a_database_holds_the_trials_too(tmp_path: Path) -> None:
    """By the code that other databases use; SQLite itself is refused, because two workers may get the same trial."""
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    with pytest.raises(UserError, match="SQLite"):
        open_storage(url, tmp_path)
    one, two = (Claims(optuna.storages.get_storage(url), "study", ["maximize"]) for _ in range(2))
    found = [claims.claim(some_tasks(3)) for claims in (one, two, one)]
    assert None not in found and two.claim(some_tasks(3)) is None
    for claimed in found:
        assert claimed is not None
        claimed[1].finish([claimed[0].values["a"]])
    assert two.outcomes() == {f"key{i}": Outcome((float(i),)) for i in range(3)}


def test_a_dead_workers_trial_is_taken_over_at_once_on_the_same_machine(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    claims = Claims(storage, "study", ["maximize"], stale_after=1000)
    found = claims.claim(some_tasks(1))
    assert found is not None and claims.claim(some_tasks(1)) is None, "this process lives"
    found[1].trial.set_user_attr("worker", {**found[1].trial.user_attrs["worker"], "started": "long ago"})
    again = claims.claim(some_tasks(1))
    assert again is not None, "its number belongs to another process now"
    again[1].finish([0.5])
    found[1].finish([0.1])
    assert found[1].lost.is_set() or claims.outcomes()["key0"].values == (0.5,)
    assert claims.outcomes()["key0"].values == (0.5,)


def test_a_silent_worker_of_another_machine_is_given_up_by_the_watchers_clock(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    claims = Claims(storage, "study", ["maximize"], stale_after=1.2)
    found = claims.claim(some_tasks(1))
    assert found is not None
    elsewhere = {"host": "elsewhere", "pid": 1, "started": "1"}
    found[1].trial.set_user_attr("worker", elsewhere)
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        assert claims.claim(some_tasks(1)) is None, "it gives signs of life"
        time.sleep(0.1)
    found[1]._done.set()  # no more of them
    found[1]._beats.join()
    deadline = time.monotonic() + 10
    while (again := claims.claim(some_tasks(1))) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert again[1].number > found[1].number


def test_a_worker_that_was_given_up_notices(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    claims = Claims(storage, "study", ["maximize"], stale_after=1.2)
    found = claims.claim(some_tasks(1))
    assert found is not None
    claims.study.tell(found[1].number, state=optuna.trial.TrialState.FAIL)
    assert found[1].lost.wait(timeout=10)
    assert claims.claim(some_tasks(1)) is not None


def test_tasks_that_two_workers_queued_are_done_once(tmp_path: Path) -> None:
    storage = open_storage(None, tmp_path)
    claims = Claims(storage, "study", ["maximize"])
    for _ in range(3):
        claims.study.enqueue_trial({}, user_attrs={"key": "key0"})
    found = claims.claim(some_tasks(1))
    assert found is not None and found[1].number == 0
    assert claims.claim(some_tasks(1)) is None, "the second and third are dropped"
    found[1].finish([1.0])
    assert claims.claim(some_tasks(1)) is None


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"sga-unlearning\[sweep\]"):
        open_storage(None, tmp_path)


# ---- processes ------------------------------------------------------------------------------------------------------


def test_a_reason_is_read_from_exit_code_and_log(tmp_path: Path) -> None:
    log = tmp_path / "fit.log"
    log.write_text("Epoch 0\nsga: error: group_size must be at least 1, got 0\n", encoding="utf-8")
    assert why_ended(2, log) == "group_size must be at least 1, got 0 (exit code 2)"
    assert why_ended(-9, log) == "killed by SIGKILL (out of memory?)"
    log.write_text("", encoding="utf-8")
    assert why_ended(1, log) == "no output (exit code 1)"


def test_a_process_ends_with_its_parent() -> None:
    """The middle process starts a child as a worker does, says its number, and is killed."""
    module = end_with_parent.__module__
    child = f"from {module} import end_with_parent; end_with_parent(); import time; time.sleep(60)"
    middle = (
        "import subprocess, sys, time; "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE); "
        "print(p.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    number = int(process.stdout.readline())
    time.sleep(1.0)
    os.kill(number, 0)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while alive(number):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


def numbers(folder: Path) -> dict[str, Any]:
    """Everything in the results that is not a duration, by configuration and seed."""
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    return {
        f"{row['configuration']} {seed}": [
            {name: value for name, value in point.items() if name != "seconds"} for point in run["evaluations"]
        ]
        for row in rows
        for seed, run in row["runs"].items()
    }


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_stopped_and_ends_the_same(tmp_path: Path) -> None:
    """Two rates by two seeds, two workers: killed while models are made and among the trials, against left alone."""
    quick = str(packaged_path("configs/sweeps/quick.yaml"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "sga", "sweep", quick, "--workers", "2", "--set", "trainer.accelerator=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def finished() -> int:
        states = [read_state(path.parent).get("state") for path in killed.glob("*/*/trial.json")]
        return states.count("finished")

    for wanted in (1, 4):
        with (tmp_path / "log").open("a") as log:
            process = subprocess.Popen([*command, "--folder", str(killed)], env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 900  # two models are trained first
        while finished() < wanted:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1.0)  # workers and their runs end with it
        before = {path: path.stat().st_mtime_ns for path in killed.glob("*/*/metrics.json")}
    done = finished()
    kept = {path for path in before if read_state(path.parent).get("state") == "finished"}
    assert 4 <= done < 6
    subprocess.run([*command, "--folder", str(killed)], env=environment, check=True, capture_output=True, timeout=600)
    assert all(path.stat().st_mtime_ns == before[path] for path in kept), "what was finished is as it was"
    subprocess.run([*command, "--folder", str(whole)], env=environment, check=True, capture_output=True, timeout=600)
    found = numbers(killed)
    assert len(found) == 4 and found == numbers(whole)
    rows = json.loads((killed / "results.json").read_text(encoding="utf-8"))["rows"]
    assert all(row["cost"]["tokens"]["mean"] > 1000 for row in rows)
    assert rows[0]["cost"]["tokens"] == json.loads((whole / "results.json").read_text())["rows"][0]["cost"]["tokens"]
    assert all(row["cost"]["peak_memory_bytes"]["mean"] > 1e8 for row in rows)
    assert not others(known_tasks(Worker(read_sweep(Path(quick), {"trainer.accelerator": "cpu"}), killed)), killed)


@pytest.mark.slow
def test_a_real_search_with_a_trial_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials, of which one draws smoothing_rate = 2, which the loss refuses, and is recorded as failed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan = yaml.safe_load(packaged_path("configs/sweeps/quick.yaml").read_text(encoding="utf-8"))
    plan["config"] = AUTHORS_SGA
    short = {"trainer.max_epochs": 3, "trainer.check_val_every_n_epoch": 3}
    plan["models"] = {"target": {"config": [AUTHORS_SGA[0], "configs/methods/target.yaml"], "settings": short}}
    plan["settings"] |= {"evaluation.reference": None}
    del plan["grid"]
    plan["seeds"] = [0]
    plan["search"] = {
        "trials": 2,
        "sampler": "random",
        "seed": 2,
        "space": {
            "model.loss.smoothing_rate": {"choice": [-4.0, 2.0]},
            "model.optimizer.lr": {"log_uniform": [1e-4, 1e-3]},
        },
    }
    plan["objectives"] = ["perplexity/forget", "model_utility"]
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    assert main([str(path), "--folder", str(tmp_path / "sweep"), "--set", "trainer.accelerator=cpu"]) == 0
    rows = json.loads((tmp_path / "sweep" / "results.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2
    rates = [row["values"]["model.loss.smoothing_rate"] for row in rows]
    assert set(rates) == {-4.0, 2.0}, "the seed of the search draws both"
    for row, rate in zip(rows, rates, strict=True):
        assert bool(row["runs"]) == (rate == -4.0)
        assert rate == -4.0 or "must be at most 1" in row["failed"]["0"]
