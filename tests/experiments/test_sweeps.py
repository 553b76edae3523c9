"""Sweeps: what is run, that each run is made once by whoever comes first, what survives a kill, and what comes out."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

import sga.commands.sweep
from sga.commands.sweep import forget_failed, known_tasks, main, work
from sga.data.builtin import packaged_path
from sga.errors import UserError
from sga.experiments.configuration import applied, set_value
from sga.experiments.engine import Job, Processes
from sga.experiments.sweeps import definition
from sga.experiments.sweeps.definition import Result, Sweep, label, read_sweep, short_names, slug
from sga.experiments.sweeps.page import write_results
from sga.experiments.sweeps.results import (
    METRICS,
    Row,
    best_rows,
    collect,
    disk_results,
    in_order,
    others,
    pareto_front,
    ranking_value,
    reference_value,
    seed_mean,
    side_of_reference,
)
from sga.experiments.sweeps.search import Draws, open_journal
from sga.experiments.sweeps.tables import ceiling, markdown, summary, sweep_table, terminal_table
from sga.experiments.task import Outcome, Task, begin, end, held, read_state
from sga.runs.folder import load_run

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
OLD_NAME = "trials/lr0.0001-b43d96e3-seed3"
OLD_KEY = "451da90fd808d413ad48e84fc4ca640869f9044bd4cccd5ccbb03b6bf473b47b"


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
    assert len({task.key for task in tasks}) == len({task.name for task in tasks}) == 12
    assert {task.stage for task in tasks} == {"final"}
    first, last = tasks[0], tasks[-1]
    assert first.config["model"]["loss"] == GA, "a block replaces a block, arguments and all"
    assert first.config["model"]["optimizer"]["init_args"] == {"lr": 1e-4, "weight_decay": 0.0}
    assert first.config["seed_everything"] == 0 and last.config["seed_everything"] == 1
    assert last.title == "GradientDifference normal_weight=1.5, lr=0.0004, seed 1"
    # The report takes runs for seeds of one setting whose paths differ in the seed alone.
    assert first.name.removesuffix("-seed0") == tasks[1].name.removesuffix("-seed1")


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
    (taken / "config.json").write_text("1", encoding="utf-8")
    one = keys(grid=grid, models={"target": {"folder": str(taken)}})
    (taken / "config.json").write_text("2", encoding="utf-8")
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

    def outcomes(scores: dict[tuple[str, float], float | str]) -> dict[str, Result]:
        found = {}
        for task in first:
            score = scores.get(("GA" if task.values["model.loss"] == GA else "GD", task.values["model.optimizer.lr"]))
            if score is not None:
                found[task.key] = Result(reason=score) if isinstance(score, str) else Result((score,))
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
        ({"grid": {"a": [1]}, "config": "nowhere.yaml"}, "names nowhere.yaml: no such file"),
        ({"grid": {"a": [1]}, "models": {"teacher": "base.yaml"}}, "no 'teacher'"),
        ({"grid": {"a": [1]}, "models": {"target": {"settings": {}}}}, "needs a config"),
        ({"grid": {"a": [1]}, "choose": {"settings": ["b"], "seeds": [0]}}, "among the grid's"),
        ({"grid": {"a": [1]}, "objectives": [{"x": "up"}]}, "maximize or minimize or toward_reference"),
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
@pytest.mark.slow
def test_every_value_of_the_packaged_sweeps_parses(path: Path) -> None:
    from sga.commands.sweep import _check

    _check(read_sweep(path))


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


def test_seeds_have_a_mean_and_their_values_and_no_interval() -> None:
    found = seed_mean([0.46, 0.51, 0.56])
    assert found is not None and found.mean == pytest.approx(0.51) and found.values == (0.46, 0.51, 0.56)
    assert found.single(lambda value: f"{value:.1f}") == "0.5, 0.5, 0.6"
    for alone in (seed_mean([0.4]), seed_mean([1.0, 1.0, 1.0])):
        assert alone is not None and alone.single(str) == "", "the mean says it all"
    assert seed_mean([]) is None


def test_single_values_stand_beside_the_mean_wherever_it_is_written(
    pretended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student's t would say 0.41 [−0.70, 1.52] of an area."""
    monkeypatch.setitem(globals(), "area", lambda config: (0.02, 0.3, 0.9)[config["seed_everything"]])
    sweep = read_sweep(sweep_file(tmp_path, grid={"model.optimizer.lr": [1e-4]}, seeds=[0, 1, 2]))
    place = tmp_path / "sweep"
    do(sweep, place)
    rows = written(sweep, place)
    files = {name: (place / name).read_text(encoding="utf-8") for name in ("results.md", "sweep.html")}
    assert "0.41 (0.02, 0.30, 0.90)" in files["results.md"]
    assert "0.020, 0.300, 0.900" in files["sweep.html"]
    assert "0.407 (0.020, 0.300, 0.900)" in terminal_table(sweep, rows)
    with (place / "results.csv").open(encoding="utf-8") as file:
        [line] = csv.DictReader(file)
    assert line["frontier_area/values"] == "0.02 0.3 0.9" and "frontier_area/low" not in line


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


def pretend(place: Path) -> Outcome:
    """Writes what a run leaves in its folder."""
    config = yaml.safe_load((place / "fit.yaml").read_text(encoding="utf-8"))
    assert config["run"]["folder"] == str(place)
    if config["data"]["batch_size"] == 13:
        return Outcome("RuntimeError: 13 is unlucky (exit code 1)", 1)
    score = area(config)
    info = {"name": place.name, "role": "unlearn", "seed": config["seed_everything"], "group_size": 4}
    info |= {"benchmark": "own", "parameters": {"smoothing_rate": -4.0}, "method": "SmoothedGradientAscent"}
    points = [
        {"step": step, "epoch": step / 2, "seconds": 2.0 * step, "own/model_utility": 0.9 - 0.1 * step,
         "own/forget_quality_log10": -6.0 + step * score, "own/ks_statistic": 0.5}
        for step in (0, 2, 4)
    ]  # fmt: skip
    (place / "run.json").write_text(json.dumps(info), encoding="utf-8")
    (place / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (place / "metrics.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points), encoding="utf-8")
    chosen = {"chosen": "the last evaluation", **points[-1], "frontier_area": score, "tokens": 1200, "absent": {}}
    (place / "metrics.json").write_text(json.dumps(chosen), encoding="utf-8")
    (place / "rows.jsonl").write_text("", encoding="utf-8")
    (place / "checkpoints").mkdir()
    return Outcome()


class Pretended(Processes):
    """Does not run `sga fit`; the folders' names in the order in which their runs were made."""

    made: list[str]

    def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
        self.made.append(Path(task.name).name)
        begin(task, folder)
        found = pretend(folder / task.name)
        end(task, folder, found, 2**30)
        return Over(found)


class Over:
    def __init__(self, found: Outcome) -> None:
        self.found = found

    def poll(self) -> Outcome:
        return self.found

    def stop(self) -> None: ...


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces `sga fit` by the files that it leaves; the folders' names in the order in which they were made."""
    monkeypatch.setattr(Pretended, "made", [], raising=False)
    monkeypatch.setattr(sga.commands.sweep, "Processes", Pretended)
    monkeypatch.setattr(sga.commands.sweep, "_check", lambda *_: None)  # the pretended configuration is no real one
    return Pretended.made


def do(sweep: Sweep, folder: Path) -> None:
    """Runs a sweep as one worker."""
    work(sweep, folder, known_tasks(sweep, folder), Pretended())


def written(sweep: Sweep, folder: Path) -> list[Row]:
    """The results of a sweep."""
    return write_results(sweep, known_tasks(sweep, folder)(0), folder)


def test_a_grid_is_worked_through_and_reported(pretended: list[str], tmp_path: Path) -> None:
    grid = {"model.optimizer.lr": [1e-4, 2e-4], "data.batch_size": [4, 8]}
    choose = {"settings": ["model.optimizer.lr"], "seeds": [0]}
    sweep = read_sweep(sweep_file(tmp_path, grid=grid, seeds=[1, 2, 3], choose=choose))
    place = tmp_path / "sweep"
    do(sweep, place)
    assert len(pretended) == 4 + 2 * 3
    rows = written(sweep, place)
    final = [row for row in rows if row.stage == "final"]
    assert [row.values["model.optimizer.lr"] for row in final] == [2e-4, 2e-4]
    found = final[0].estimate("frontier_area")
    assert found is not None and found.values == pytest.approx((0.51, 0.52, 0.53))
    assert final[0].single("seconds") == {1: 8.0, 2: 8.0, 3: 8.0}
    assert final[0].single("peak_memory_bytes") == {1: 2.0**30, 2: 2.0**30, 3: 2.0**30}
    with (place / "results.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) == 6
    line = next(line for line in table if line["stage"] == "final")
    assert float(line["frontier_area"]) == pytest.approx(0.52)
    assert line["frontier_area/values"].split() == [str(value) for value in found.values]
    assert float(line["tokens"]) == 1200 and line["seeds"] == "1 2 3" and line["lr"] == "0.0002"
    reported = (place / "results.md").read_text(encoding="utf-8").splitlines()
    assert len(reported) == 2 + 2 and len({line.count(" | ") for line in reported}) == 1
    assert reported[0].startswith("| configuration | seeds | frontier_area | ")
    assert "| 1, 2, 3 | 0.52 (0.51, 0.52, 0.53) | " in reported[2] and reported[2].endswith(" | 8 | 1,200 |")
    stored = json.loads((place / "results.json").read_text(encoding="utf-8"))
    assert len(stored["rows"][-1]["runs"]["3"]["evaluations"]) == 3
    page = (place / "sweep.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 3 and "0.520" in page
    # 2e-4 is the greater of the two that were tried
    assert page.count("lr = 0.0002, of [0.0001, 0.0002]") == 2
    assert not list(place.glob("trials/*/checkpoints")), "weights of finished trials are not kept"


def test_what_is_finished_is_reused(pretended: list[str], tmp_path: Path) -> None:
    path = sweep_file(tmp_path, grid={"model.optimizer.lr": [1e-4, 2e-4]}, seeds=[0, 1])
    do(read_sweep(path), tmp_path / "sweep")
    do(read_sweep(path), tmp_path / "sweep")
    assert len(pretended) == 4
    states = sorted((tmp_path / "sweep").glob("trials/*/task.json"))
    assert len(states) == 4
    for state in states:  # as earlier versions named it
        state.rename(state.with_name("trial.json"))
    do(read_sweep(path), tmp_path / "sweep")
    assert len(pretended) == 4


def test_keys_are_those_of_earlier_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that sweep folders of before are reused; as they were before there was one engine."""
    monkeypatch.setattr(definition, "_check_elsewhere", lambda *_: None)  # the stored key is of a reference elsewhere
    models = {"target": "base.yaml", "retain": {"folder": "some/where"}}
    sweep = read_sweep(sweep_file(tmp_path, grid={"model.optimizer.lr": [1e-4]}, models=models, seeds=[3]))
    (task,) = sweep.tasks({})
    assert (task.name, task.key) == (OLD_NAME, OLD_KEY)


@pytest.mark.parametrize("role", ["target", "retain"])
def test_a_taken_run_is_known_by_its_model_and_as_a_reference_by_its_rows(role: str, tmp_path: Path) -> None:
    """What verbs write beside them later, `sga test` for one, makes no other sweep of it, nor while one runs."""
    taken = tmp_path / "taken"
    for name in ("run.json", "config.yaml", "model/config.json", "rows/000000.jsonl"):
        (taken / name).parent.mkdir(parents=True, exist_ok=True)
        (taken / name).write_text("{}\n", encoding="utf-8")
    path = sweep_file(tmp_path, grid={"data.batch_size": [4]}, models={role: {"folder": str(taken)}})
    sweep = read_sweep(path)
    key = sweep.key
    (taken / "test").mkdir()
    for name in ("test/run.json", "run.json", "metrics.jsonl"):
        (taken / name).write_text('{"more": 1}\n', encoding="utf-8")
    assert read_sweep(path).key == key
    for name in ("config.yaml", "model/config.json", "rows/000000.jsonl"):
        before = read_sweep(path).key
        (taken / name).write_text('{"other": 1}\n', encoding="utf-8")
        assert (read_sweep(path).key == before) == (role == "target" and name.startswith("rows"))
    assert sweep.key == key, "as it was when the file was read"


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"models": {"retain": {"folder": "runs/nowhere"}}}, "models: retain: folder: runs/nowhere: no such file or"),
        ({"models": {"retain": {"folder": "some/name"}}}, "models: retain: folder: some/name: no such file or"),
        ({"models": {"target": {"folder": "runs/nowhere"}}}, "models: target: folder: model 'runs/nowhere': no such"),
        ({"common": {"run": None}}, "some.yaml: run must be names with values, got None"),
        ({"settings": {"trainer": None}}, "some.yaml: trainer must be names with values, got None"),
        ({"common": {"export": 3}}, "some.yaml: export must be names with values, got 3"),
    ],
)
def test_what_no_run_could_use_is_refused_at_once(plan: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        read_sweep(sweep_file(tmp_path, grid={"data.batch_size": [4]}, **plan))
    models = {"target": {"folder": "some/name"}}
    assert read_sweep(sweep_file(tmp_path, grid={"data.batch_size": [4]}, models=models)), "a name on the Hub"


def test_a_changed_file_never_mixes_results(
    pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
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
    state = folder / sweep.tasks({})[0].name / "task.json"
    state.write_text(state.read_text(encoding="utf-8").replace('"key": "', '"key": "x'), encoding="utf-8")
    with pytest.raises(UserError, match="holds a run of another configuration"):
        do(sweep, folder)


def test_a_run_that_is_stopped_is_no_failure_and_the_next_command_makes_it(
    pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of what is finished is written; the exit code says that something is missing."""
    path, folder = sweep_file(tmp_path, grid={"model.optimizer.lr": [1e-4, 2e-4]}), tmp_path / "sweep"
    first = read_sweep(path).tasks({})[0]

    class Stopping(Pretended):
        def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
            if task != first:
                return super().start(task, folder, lock)
            begin(task, folder)
            return Over(Outcome("killed by SIGTERM", 143))

    monkeypatch.setattr(sga.commands.sweep, "Processes", Stopping)
    assert main([str(path), "--folder", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "FAILED: killed by SIGTERM" in said and "1 runs are not finished" in said and "frontier_area" in said
    assert (folder / "results.csv").exists()
    monkeypatch.setattr(sga.commands.sweep, "Processes", Pretended)
    assert main([str(path), "--folder", str(folder)]) == 0
    assert len(pretended) == 2 and read_state(folder / first.name)["attempts"] == 2


def test_several_workers_on_one_gpu_are_told_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say = sga.commands.sweep._say_if_shared
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    say(2, ["0", "1"])
    assert not capsys.readouterr().out
    say(4, ["0"])
    assert capsys.readouterr().out.endswith("--workers 1 --gpus 0\n")
    say(2, [])  # each would see both
    assert "2 workers share 2 GPUs" in capsys.readouterr().out
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    say(2, [])
    assert not capsys.readouterr().out


def test_a_failed_trial_is_recorded_and_the_others_finish(pretended: list[str], tmp_path: Path) -> None:
    path = sweep_file(tmp_path, grid={"data.batch_size": [4, 13, 8]}, seeds=[0, 1])
    sweep = read_sweep(path)
    place = tmp_path / "sweep"
    do(sweep, place)
    assert len(pretended) == 6
    rows = written(sweep, place)
    assert [len(row.folders) for row in rows] == [2, 0, 2]
    assert rows[1].failed == dict.fromkeys((0, 1), "RuntimeError: 13 is unlucky (exit code 1)")
    assert "13 is unlucky" in (place / "sweep.html").read_text(encoding="utf-8")
    assert 1 not in best_rows(sweep, rows)
    do(sweep, tmp_path / "sweep")
    assert len(pretended) == 6, "a failure is not tried again by itself"
    assert forget_failed(sweep.tasks({}), place) == 2
    do(sweep, tmp_path / "sweep")
    assert len(pretended) == 8
    assert [len(row.failed) for row in collect(sweep, sweep.tasks({}), place)] == [0, 2, 0]


def test_an_objective_that_is_absent_says_why(pretended: list[str], tmp_path: Path) -> None:
    sweep = read_sweep(sweep_file(tmp_path, grid={"data.batch_size": [4]}, objectives=["privleak"]))
    do(sweep, tmp_path / "sweep")
    (outcome,) = disk_results(sweep, tmp_path / "sweep").values()
    assert outcome.reason is not None and "not among the run's metrics" in outcome.reason


def test_what_is_made_again_is_what_failed_and_is_asked_for(
    pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a finished run without the objective, nor one of an older file, nor one that another command makes."""
    monkeypatch.setattr("sga.runs.lock.PATIENCE", 0.05)
    folder = tmp_path / "sweep"
    path = sweep_file(tmp_path, grid={"data.batch_size": [4, 13]}, seeds=[0, 1])
    main([str(path), "--folder", str(folder)])
    pretended.clear()
    path = sweep_file(tmp_path, grid={"data.batch_size": [4, 13]}, seeds=[0], objectives=["privleak"])
    assert main([str(path), "--folder", str(folder), "--retry-failed"]) == 0
    assert len(pretended) == 1 and "size13" in pretended[0]
    assert len(list(folder.glob("trials/*/task.json"))) == 4
    said = capsys.readouterr().out
    assert "1 finished runs are without an objective" in said and "mend objectives" in said
    (failed,) = (task for task in read_sweep(path).tasks({}) if task.values["data.batch_size"] == 13)
    with held(failed, folder):
        assert forget_failed([failed], folder) == 0
    assert forget_failed([failed], folder) == 1


def test_an_objective_that_is_no_metric_ends_the_sweep_after_its_first_run(
    pretended: list[str], tmp_path: Path
) -> None:
    grid = {"data.batch_size": [4, 8]}
    sweep = read_sweep(sweep_file(tmp_path, grid=grid, objectives=["frontier_ara"]))
    with pytest.raises(UserError, match=r"objectives: .* has no metric 'frontier_ara' \(did you mean frontier_area"):
        do(sweep, tmp_path / "sweep")
    assert len(pretended) == 1
    do(read_sweep(sweep_file(tmp_path, grid=grid)), tmp_path / "sweep")
    assert len(pretended) == 2, "the first one is reused"


@pytest.mark.parametrize("plan", [{"grid": {"a": [1]}}, {"search": {"trials": 1, "space": {"a": {"int": [0, 1]}}}}])
def test_results_of_a_folder_that_is_no_sweep_are_refused(plan: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mistyped holds no sweep"):
        main([str(sweep_file(tmp_path, **plan)), "--folder", str(tmp_path / "mistyped"), "--results"])
    assert not (tmp_path / "mistyped").exists()


def marked(folder: Path, batch_sizes: list[int], seeds: list[int]) -> tuple[int, str]:
    """How many rows are marked as best, and the page; of pretended runs the learning rate and seed make the value."""
    sweep = read_sweep(sweep_file(folder, grid={"data.batch_size": batch_sizes}, seeds=seeds))
    place = folder / "sweep"
    do(sweep, place)
    rows = written(sweep, place)
    page = (place / "sweep.html").read_text(encoding="utf-8")
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


def left(folder: Path, auc: float, privleak: float, probability: float, reference: Any = None) -> Path:
    """A finished run's folder with three metrics that are best at the reference's value."""
    folder.mkdir(parents=True)
    info = {"name": folder.name, "role": "unlearn", "seed": 0, "group_size": 4, "benchmark": "own", "method": "SGA"}
    metrics = {
        "chosen": "the last evaluation", "step": 4, "epoch": 2.0, "seconds": 1.0, "absent": {}, "own/mia/min_k": auc,
        "own/privleak": privleak, "own/forget/probability": probability, "own/forget/bleu": 100 * probability,
        "own/privleak_reference_auc": 0.5,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({**info, "parameters": {}, "evaluation": {}}), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / "metrics.jsonl").write_text(json.dumps({**metrics, "chosen": None}) + "\n", encoding="utf-8")
    (folder / "rows.jsonl").write_text("", encoding="utf-8")
    (folder / "task.json").write_text(json.dumps({"peak_memory_bytes": 1}), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump({"evaluation": {"reference": reference}}), encoding="utf-8")
    return folder


def test_toward_reference_both_sides_are_worse_and_the_far_side_is_named(tmp_path: Path) -> None:
    """Minimised, an AUC of 0.02 was best; the reference's is 0.5."""
    retained = [left(tmp_path / f"retain-{n}", 0.5, 0.0, p) for n, p in enumerate((0.1, 0.3))]
    names = [str(path) for path in retained]
    found = {
        name: left(tmp_path / name, auc, privleak, p, names)
        for name, auc, privleak, p in (
            ("over", 0.02, 96.0, 0.0), ("near", 0.45, 5.0, 0.25), ("under", 1.0, -100.0, 0.97)
        )
    }  # fmt: skip
    for metric, distances in (
        ("mia/min_k", (0.48, 0.05, 0.5)), ("privleak", (96.0, 5.0, 100.0)), ("forget/probability", (0.2, 0.05, 0.77)),
        ("forget/bleu", (20.0, 5.0, 77.0)),
    ):  # fmt: skip
        got = [ranking_value(folder, metric, "toward_reference") for folder in found.values()]
        assert got == pytest.approx(distances), metric
        sides = [side_of_reference(folder, metric) for folder in found.values()]
        assert sides == ["over-unlearned", "", "under-unlearned"], metric
    assert ranking_value(found["over"], "mia/min_k", "minimize") == 0.02
    alone = left(tmp_path / "alone", 0.5, 0.0, 0.5)
    assert "names none" in str(ranking_value(alone, "forget/probability", "toward_reference"))
    gone = left(tmp_path / "gone", 0.5, 0.0, 0.5, str(tmp_path / "nowhere"))
    assert "has no reference" in str(reference_value(load_run(gone), "forget/probability"))


def test_with_references_swapped_nothing_changes(tmp_path: Path) -> None:
    names = [str(left(tmp_path / f"retain-{n}", 0.5, 0.0, p)) for n, p in enumerate((0.1, 0.3))]
    one, other = (left(tmp_path / f"run-{n}", 0.4, 1.0, 0.6, given) for n, given in enumerate((names, names[::-1])))
    for metric in ("mia/min_k", "privleak", "forget/probability"):
        assert ranking_value(one, metric, "toward_reference") == ranking_value(other, metric, "toward_reference")


def retained(folder: Path, auc: float, utility: float, perturbed: list[float]) -> str:
    """A retained model's run: forget rows i with log R = 1 − perturbed_i, and metrics."""
    left(folder, auc, 0.0, 0.2)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8")) | {"own/model_utility": utility}
    for name in ("metrics.json", "metrics.jsonl"):
        (folder / name).write_text(json.dumps(metrics) + "\n", encoding="utf-8")
    rows = [
        {"set": "forget", "id": f"forget/{n}", "step": 4, "avg_nll": 1.0, "tokens": 3,
         "paraphrased_nll": 1.0, "perturbed_nll": [x]}
        for n, x in enumerate(perturbed)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


def test_the_last_row_is_of_the_retained_models_against_each_other(pretended: list[str], tmp_path: Path) -> None:
    """Two alike (D = 0, p = 1) and one apart from both (4 against 4 rows: p = 2/C(8, 4), D = 1)."""
    apart = math.log10(2 / 70)
    paths = [
        retained(tmp_path / f"retain-{n}", auc, utility, [start + step / 10 for step in range(4)])
        for n, (auc, utility, start) in enumerate([(0.5, 0.9, 1.0), (0.6, 0.8, 1.0), (0.4, 1.0, 5.0)])
    ]
    objectives = ["frontier_area", {"mia/min_k": "toward_reference"}, {"privleak": "toward_reference"}]
    sweep = read_sweep(sweep_file(tmp_path / "plan", grid={"data.batch_size": [1]}, objectives=objectives))

    def rows_with(given: Any) -> list[Row]:
        place = left(tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}", 0.02, 96.0, 0.0, given)
        return [Row({"data.batch_size": 1}, "final", {0: place}, {}, [])]

    rows = rows_with(paths)
    names = [*METRICS, "ks_statistic", "mia/min_k", "privleak"]
    found = {name: one.values for name, one in ceiling(names, rows).items()}
    logs = (apart / 2, apart / 2, apart)
    assert found["forget_quality_log10"] == pytest.approx(logs, abs=1e-12)
    assert found["ks_statistic"] == (0.5, 0.5, 1.0)
    ranges = [found[f"forget_quality_log10_{end}"] for end in ("min", "max")]
    assert ranges == [pytest.approx((apart,) * 3), pytest.approx((0.0, 0.0, apart))]
    assert (found["model_utility"], found["mia/min_k"]) == ((0.9, 0.8, 1.0), (0.5, 0.6, 0.4))
    assert found["privleak"][0] == pytest.approx(50 * (0.1 / 0.4 - 0.1 / 0.6)), "AUC 0.5 against 0.6 and 0.4"
    areas = [(12 + log) / 12 * utility for log, utility in zip(logs, (0.9, 0.8, 1.0), strict=True)]
    assert found["frontier_area"] == pytest.approx(areas)
    swapped = {name: one.values for name, one in ceiling(names, rows_with(paths[::-1])).items()}
    assert swapped == {name: values[::-1] for name, values in found.items()}, "with references swapped nothing changes"

    said = "3 retained models, each against the others"
    table = markdown(sweep, rows).splitlines()
    assert table[-1].startswith(f"| {said} |  | ") and "| 0.50 (0.50, 0.60, 0.40) |" in table[-1]
    shown = terminal_table(sweep, rows).rpartition("batch_size=1")[2]  # the label may take several lines
    assert "3 retained models" in " ".join(shown.split()) and f"{sum(areas) / 3:.3f} ({areas[0]:.3f}, " in shown
    last = list(csv.DictReader(sweep_table(sweep, rows).splitlines()))[-1]
    assert last["stage"] == "ceiling" and float(last["mia/min_k"]) == pytest.approx(0.5) and last["seconds"] == ""
    assert summary(sweep, rows, [])["ceiling"]["mia/min_k"]["values"] == (0.5, 0.6, 0.4)

    alone = rows_with(paths[0])
    assert set(ceiling(names, alone)) == {"model_utility", "mia/min_k"}, "one has none to be held against"
    assert markdown(sweep, alone).splitlines()[-1].startswith("| retained model |")
    assert ceiling(names, rows_with(None)) == {} and "retained" not in markdown(sweep, rows_with(None))


def test_the_ceiling_has_the_runs_own_mean_over_wrong_answers(tmp_path: Path) -> None:
    """Wrong answers at nll 1 and 3 beside two at 2: alike in the geometric mean (p = 1), apart in the other (D = 1)."""
    paths = [retained(tmp_path / f"retain-{n}", 0.5, 0.9, [0.0] * 4) for n in range(2)]
    for path, wrong in zip(paths, ([1.0, 3.0], [2.0, 2.0]), strict=True):
        file = Path(path) / "rows.jsonl"
        rows = [json.loads(line) | {"perturbed_nll": wrong} for line in file.read_text(encoding="utf-8").splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for mean, expected in (("geometric", 0.0), ("arithmetic", math.log10(2 / 70))):
        run = left(tmp_path / mean, 0.5, 0.0, 0.2, paths)
        info = json.loads((run / "run.json").read_text(encoding="utf-8")) | {"evaluation": {"truth_ratio_mean": mean}}
        (run / "run.json").write_text(json.dumps(info), encoding="utf-8")
        found = ceiling(["forget_quality_log10"], [Row({}, "final", {0: run}, {}, [])])["forget_quality_log10"]
        assert found.values == pytest.approx((expected, expected)), mean


def test_several_retained_models_are_made_and_all_are_the_reference(pretended: list[str], tmp_path: Path) -> None:
    one, several = (
        read_sweep(sweep_file(tmp_path, grid={"data.batch_size": [4]}, models={"retain": retain}))
        for retain in ("base.yaml", {"config": "base.yaml", "seeds": [5, 6]})
    )
    assert one.tasks({})[0].key != several.tasks({})[0].key
    folder = tmp_path / "sweep"
    do(several, folder)
    assert len(pretended) == 2 + 1
    (trial,) = folder.glob("trials/*/fit.yaml")
    named = yaml.safe_load(trial.read_text(encoding="utf-8"))["evaluation"]["reference"]
    seeds = [yaml.safe_load(Path(name, "fit.yaml").read_text(encoding="utf-8"))["seed_everything"] for name in named]
    assert seeds == [5, 6]
    with pytest.raises(UserError, match="there is one target; several seeds are for the retained models"):
        read_sweep(sweep_file(tmp_path, grid={"a": [1]}, models={"target": {"config": "base.yaml", "seeds": [1, 2]}}))


def test_rows_are_ordered_by_their_distance(pretended: list[str], tmp_path: Path) -> None:
    objectives = [{"mia/min_k": "toward_reference"}]
    sweep = read_sweep(sweep_file(tmp_path / "plan", grid={"data.batch_size": [1, 2, 3]}, objectives=objectives))
    rows = [
        Row({"data.batch_size": n}, "final", {0: left(tmp_path / f"run-{n}", auc, 0.0, 0.5)}, {}, [])
        for n, auc in ((1, 0.02), (2, 0.97), (3, 0.55))
    ]
    assert [row.values["data.batch_size"] for row in in_order(sweep, rows)] == [3, 2, 1]
    table = markdown(sweep, rows)
    assert "0.02, over-unlearned" in table and "0.97, under-unlearned" in table and "| 0.55 |" in table


def test_a_failed_model_ends_the_sweep(pretended: list[str], tmp_path: Path) -> None:
    models = {"target": {"config": "base.yaml", "settings": {"data.batch_size": 13}}}
    sweep = read_sweep(sweep_file(tmp_path, grid={"data.batch_size": [4]}, models=models))
    with pytest.raises(UserError, match="13 is unlucky"):
        do(sweep, tmp_path / "sweep")
    assert len(pretended) == 1


def test_trials_use_the_shared_models(pretended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "where").mkdir(parents=True)
    models = {"target": "base.yaml", "retain": {"folder": "some/where"}}
    sweep = read_sweep(sweep_file(tmp_path, grid={"data.batch_size": [4]}, models=models, seeds=[0, 1]))
    folder = tmp_path / "sweep"
    do(sweep, folder)
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
        place = tmp_path / folder
        do(sweep, place)
        rows = written(sweep, place)
        study = Draws(sweep, place).study
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


def test_two_commands_share_a_search(pretended: list[str], tmp_path: Path) -> None:
    """Both see every trial; one draws more only where it has room, and none beyond the number asked for."""
    search = {"trials": 4, "space": {"model.optimizer.lr": {"log_uniform": [1e-5, 1e-2]}}}
    sweep = read_sweep(sweep_file(tmp_path, search=search))
    folder = tmp_path / "sweep"
    one, two = (Draws(sweep, folder) for _ in range(2))
    assert len(one.tasks(0)) == 0
    assert [len(draws.tasks(1)) for draws in (one, two, one, two, one, two)] == [1, 2, 3, 4, 4, 4]
    tasks = one.tasks()
    assert len({task.key for task in tasks}) == 4, "each draws its own"
    assert [task.key for task in two.tasks()] == [task.key for task in tasks]
    Pretended().start(tasks[2], folder, ExitStack())
    two.tasks()
    states = [trial.state.name for trial in one.study.get_trials()]
    assert states == ["RUNNING", "RUNNING", "COMPLETE", "RUNNING"], "whoever sees it finished tells the study"
    do(sweep, folder)  # trials of commands that were killed are made
    assert len(pretended) == 4
    assert all(trial.state.name == "COMPLETE" for trial in one.study.get_trials())


def test_a_draw_that_was_interrupted_does_not_count(pretended: list[str], tmp_path: Path) -> None:
    search = {"trials": 2, "space": {"model.optimizer.lr": {"log_uniform": [1e-5, 1e-2]}}}
    sweep = read_sweep(sweep_file(tmp_path, search=search))
    Draws(sweep, tmp_path / "sweep").study.ask()
    do(sweep, tmp_path / "sweep")
    assert len(pretended) == 2


def test_a_failed_trial_of_a_search_is_made_again(pretended: list[str], tmp_path: Path) -> None:
    search = {"trials": 3, "space": {"data.batch_size": {"choice": [13]}}}
    sweep = read_sweep(sweep_file(tmp_path, search=search))
    do(sweep, tmp_path / "sweep")
    (row,) = written(sweep, tmp_path / "sweep")
    assert len(pretended) == 1 and "13 is unlucky" in row.failed[0]
    assert forget_failed(known_tasks(sweep, tmp_path / "sweep")(0), tmp_path / "sweep") == 1
    do(sweep, tmp_path / "sweep")
    assert len(pretended) == 2


# ---- the journal ----------------------------------------------------------------------------------------------------


def cut(journal: Path, size: int) -> bytes:
    """Cuts a journal within its last line, as a writer that is killed does; what is left of the line."""
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    journal.write_bytes(content[: len(content) - len(lines[-1]) + size])
    return lines[-1][:size]


SEARCH = {"model.optimizer.lr": {"log_uniform": [1e-5, 1e-2]}}


@pytest.mark.parametrize("size", [1, 20, -1])
def test_a_journal_with_half_a_last_line_is_mended_when_it_is_opened(
    pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    path = sweep_file(tmp_path, search={"trials": 2, "space": SEARCH})
    folder = tmp_path / "sweep"
    do(read_sweep(path), folder)
    journal = folder / "journal.log"
    before = journal.read_bytes()
    half = cut(journal, len(before.splitlines()[-1]) if size < 0 else size)  # all but the end of the line
    path = sweep_file(tmp_path, search={"trials": 3, "space": SEARCH})
    for _ in range(2):  # the second time it is whole
        do(read_sweep(path), folder)
    assert len(pretended) == 3, "what is finished is reused"
    assert (folder / "journal.log.torn").read_bytes() == half + b"\n"
    assert capsys.readouterr().out.count("half written") == 1
    lines = journal.read_bytes().splitlines()
    assert lines[: len(before.splitlines()) - 1] == before.splitlines()[:-1] and all(json.loads(line) for line in lines)


def test_a_command_that_is_killed_while_writing_does_not_end_the_others(tmp_path: Path) -> None:
    """The storages are open already when the line is cut; negative control: Optuna's own can no longer be read."""
    theirs = tmp_path / "theirs" / "journal.log"
    theirs.parent.mkdir()
    own = optuna.storages.journal.JournalFileBackend
    half = b'{"op_code":8,"worker_id":"someone'
    study = optuna.create_study(storage=open_journal(tmp_path / "ours"), study_name="s")
    study.tell(study.ask(), 1.0)
    with (tmp_path / "ours" / "journal.log").open("ab") as file:
        file.write(half)
    study.tell(study.ask(), 2.0)
    again = optuna.load_study(storage=open_journal(tmp_path / "ours"), study_name="s")
    assert [trial.value for trial in again.get_trials()] == [1.0, 2.0]
    study = optuna.create_study(storage=optuna.storages.JournalStorage(own(str(theirs))), study_name="s")
    study.tell(study.ask(), 1.0)
    with theirs.open("ab") as file:
        file.write(half)
    with pytest.raises((json.JSONDecodeError, AssertionError, KeyError)):
        for _ in range(3):
            study.ask()
        optuna.load_study(storage=optuna.storages.JournalStorage(own(str(theirs))), study_name="s")


def test_damage_elsewhere_in_a_journal_is_named(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    study = optuna.create_study(storage=open_journal(tmp_path), study_name="s")
    study.tell(study.ask(), 1.0)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], lines[1][:9], *lines[2:]]))
    with pytest.raises(UserError, match=r"journal\.log:2: not JSON .*move it away: finished runs are reused"):
        open_journal(tmp_path)


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"sga-unlearning\[sweep\]"):
        read_sweep(sweep_file(tmp_path, search={"trials": 1, "space": SEARCH}))
    grid = read_sweep(sweep_file(tmp_path, grid={"model.optimizer.lr": [1e-4]}))
    assert len(known_tasks(grid, tmp_path)(0)) == 1, "a grid does without"


# ---- processes ------------------------------------------------------------------------------------------------------


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
        states = [read_state(path.parent).get("state") for path in killed.glob("*/*/task.json")]
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
        time.sleep(1.0)  # its runs end with it
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
    assert not others(read_sweep(Path(quick), {"trainer.accelerator": "cpu"}).tasks({}), killed)


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
