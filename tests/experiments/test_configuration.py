"""Settings as users write them: one value has one key, however it is written and wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sga.errors import UserError
from sga.experiments.configuration import digest, settings_from
from sga.experiments.demo import read_demo
from sga.experiments.sequence import read_sequence
from sga.experiments.sweeps.definition import read_sweep
from sga.files import read_yaml, yaml_text, yaml_value

NAME = "model.optimizer.lr"
BASE = "model: {optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0}}}\n"
SAME = ("0.0001", "1e-4", "1.0e-4", "+1E-4", ".1e-3", "1.e-4", "0.1e-03")


def sweep_keys(folder: Path, text: str, options: tuple[str, ...] = ()) -> list[str]:
    (folder / "base.yaml").write_text(BASE, encoding="utf-8")
    path = folder / "sweep.yaml"
    path.write_text(f"config: base.yaml\n{text}", encoding="utf-8")
    sweep = read_sweep(path, settings_from(options))
    tasks = [*sweep.model_tasks, *sweep.tasks({})]
    assert all(isinstance(task.config["model"]["optimizer"]["init_args"]["lr"], float) for task in tasks)
    return [sweep.key, *(task.key for task in tasks)]


def sequence_keys(folder: Path, text: str, options: tuple[str, ...] = ()) -> list[str]:
    (folder / "base.yaml").write_text(BASE, encoding="utf-8")
    path = folder / "sequence.yaml"
    path.write_text(f"config: base.yaml\n{text}", encoding="utf-8")
    requests = read_sequence(path, settings_from(options))
    assert all(isinstance(one.config["model"]["optimizer"]["init_args"]["lr"], float) for one in requests)
    return [one.key for one in requests]


def demo_keys(folder: Path, text: str) -> list[str]:
    (folder / "base.yaml").write_text(BASE, encoding="utf-8")
    path = folder / "demo.yaml"
    head = "target: base.yaml\nretain: base.yaml\nseeds: [0]\nruns: {a: {config: base.yaml, settings: "
    path.write_text(f"{head}{text}}}}}\n", encoding="utf-8")
    tasks = read_demo(path)
    assert isinstance(tasks[-1].config["model"]["optimizer"]["init_args"]["lr"], float)
    return [task.key for task in tasks]


GRID = "grid: {data.batch_size: [1]}\n"


@pytest.mark.parametrize(
    "keys",
    [
        lambda folder, value: sweep_keys(folder, GRID, (f"{NAME}={value}",)),
        lambda folder, value: sweep_keys(folder, f"grid: {{{NAME}: [{value}]}}\n"),
        lambda folder, value: sweep_keys(folder, f"{GRID}common: {{{NAME}: {value}}}\nmodels: {{target: base.yaml}}\n"),
        lambda folder, value: sweep_keys(folder, f"{GRID}settings: {{{NAME}: {value}}}\n"),
        lambda folder, value: sweep_keys(
            folder, f"search: {{trials: 1, space: {{{NAME}: {{choice: [{value}]}}}}}}\nsettings: {{{NAME}: {value}}}\n"
        ),
        lambda folder, value: sequence_keys(folder, "folds: 2\n", (f"{NAME}={value}",)),
        lambda folder, value: sequence_keys(folder, f"folds: 2\nsettings: {{{NAME}: {value}}}\n"),
        lambda folder, value: sequence_keys(folder, f"requests: [{{{NAME}: {value}}}]\n"),
        lambda folder, value: demo_keys(folder, f"{{{NAME}: {value}}}"),
    ],
    ids=["--set", "grid", "common", "settings", "search", "sequence --set", "sequence settings", "requests", "demo"],
)
def test_a_number_has_one_key_however_it_is_written(keys: Any, tmp_path: Path) -> None:
    found = {tuple(keys(tmp_path, value)) for value in SAME}
    assert len(found) == 1
    assert tuple(keys(tmp_path, "2e-4")) not in found, "negative control: another value"


def test_set_reads_numbers_as_the_configuration_does() -> None:
    assert settings_from(["a=1e-4", "b=[1e5, {c: -2E+3}]", "d=1", "e=true", "f=", "g=2024-01-01", "h='1e-4'"]) == {
        "a": 0.0001,
        "b": [1e5, {"c": -2000.0}],
        "d": 1,
        "e": True,
        "f": None,
        "g": "2024-01-01",  # as for the parser of sga fit; JSON has no form for dates
        "h": "1e-4",
    }
    assert yaml.safe_load("1e-4") == "1e-4", "negative control: YAML 1.1"
    # To Lightning, limit_val_batches 1 is one batch and 1.0 all of them: no two spellings of one value.
    assert digest(settings_from(["a=1"])) != digest(settings_from(["a=1.0"]))


def test_what_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    value = {"a": 1e-05, "b": "1e-4", "c": "2024-01-01", "d": [1e300, "x: y", None, True, "true", "1.5"], "e": 10**30}
    assert yaml_value(yaml_text(value), "x") == value
    (tmp_path / "a.yaml").write_text(yaml_text(value), encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == value


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("a=[1", r"--set a:1: not YAML \(expected ',' or '\]'"),
        ("a={b: 1, b: 2}", "--set a:1: not YAML .*'b' stands there twice"),
        (f"a={'9' * 5000}", r"--set a:1: not YAML \(Exceeds the limit"),
        (f"a={'[' * 100_000}", "--set a: blocks are nested too deeply"),
        ("a=\0", "--set a: not YAML"),
        ("=1", "--set =1: must be NAME=VALUE"),
    ],
)
def test_a_value_that_cannot_be_read_is_one_message(pair: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_from([pair])


def test_a_number_of_too_many_digits_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"a: 1\nb: [2, {{c:\n  {'9' * 5000}}}]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.yaml:3: not YAML \(Exceeds the limit"):
        read_yaml(path)
