"""`sga sequence`: requests one after the other, each from the last result; what is reused, resumed and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

import sga.commands.sequence
import sga.report.summary
from sga.cli import parsed_config
from sga.commands.sequence import main
from sga.data.builtin import packaged_path
from sga.errors import UserError
from sga.experiments.engine import Job, Processes, _Ended
from sga.experiments.sequence import read_sequence
from sga.experiments.task import Outcome, Task, begin, end
from sga.files import write_text

FILES = sorted(packaged_path("configs/sequences").glob("*.yaml"))


def test_there_are_sequences() -> None:
    assert {path.stem for path in FILES} >= {"authors", "book", "muse"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.runs
def test_every_request_of_a_shipped_sequence_parses(path: Path, tmp_path: Path) -> None:
    requests = read_sequence(path)
    assert len(requests) >= 2
    for number, request in enumerate(requests, start=1):
        (tmp_path / "fit.yaml").write_text(yaml.safe_dump(request.full_config(tmp_path)), encoding="utf-8")
        config = parsed_config(["fit", "--config", str(tmp_path / "fit.yaml")]).fit
        assert config.run.folder == str(tmp_path / f"request-{number}")
        assert config.data.forget_folds == [number] and config.data.folds == len(requests)
        start = config.model.language_model.init_args.name_or_path
        assert (start == str(tmp_path / f"request-{number - 1}")) == (number > 1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sequence of two requests on a configuration that says little."""
    (tmp_path / "base.yaml").write_text(
        "model:\n  language_model:\n    class_path: sga.Pretrained\n"
        "    init_args: {name_or_path: target, dtype: bfloat16, tokenizer_name_or_path: elsewhere}\n"
        "data: {batch_size: 4}\n",
        encoding="utf-8",
    )
    path = tmp_path / "sequence.yaml"
    path.write_text("config: base.yaml\nfolds: 2\nsettings: {trainer.max_epochs: 3}\n", encoding="utf-8")
    return path


def test_the_configurations_of_two_requests(file: Path, tmp_path: Path) -> None:
    requests = read_sequence(file, {"data.batch_size": 2})
    first, second = (request.full_config(tmp_path / "runs") for request in requests)
    assert first["model"]["language_model"]["init_args"]["name_or_path"] == "target"
    assert second["model"]["language_model"] == {
        "class_path": "sga.Pretrained",
        # The tokenizer is beside the model that a request leaves, the type of the weights is kept.
        "init_args": {"dtype": "bfloat16", "name_or_path": str(tmp_path / "runs" / "request-1")},
    }
    assert first["data"] == {"batch_size": 2, "folds": 2, "forget_folds": [1]}
    assert second["data"] == {"batch_size": 2, "folds": 2, "forget_folds": [2]}
    assert first["trainer"] == second["trainer"] == {"max_epochs": 3}


def test_keys_hold_what_a_result_depends_on_and_not_where_it_is(file: Path, tmp_path: Path) -> None:
    base = (tmp_path / "base.yaml").read_text(encoding="utf-8")

    def keys(folder: str) -> list[str]:
        (tmp_path / "base.yaml").write_text(f"{base}run: {{folder: {folder}}}\n", encoding="utf-8")
        return [one.key for one in read_sequence(file)]

    assert keys("here") == keys("there")
    here = read_sequence(file)
    other = read_sequence(file, {"data.batch_size": 2})
    assert not {one.key for one in here} & {one.key for one in other}
    # A change of the first request is one of the second too, which starts from it; the other way round it is not.
    for number, same in ((1, []), (2, [1])):
        requests = [{"data.folds": 2, "data.forget_folds": [k]} for k in (1, 2)]
        requests[number - 1]["trainer.max_epochs"] = 4
        file.write_text(yaml.safe_dump({"config": "base.yaml", "requests": requests}), encoding="utf-8")
        changed = read_sequence(file, {"trainer.min_epochs": 1})
        requests[number - 1]["trainer.max_epochs"] = 5
        file.write_text(yaml.safe_dump({"config": "base.yaml", "requests": requests}), encoding="utf-8")
        again = read_sequence(file, {"trainer.min_epochs": 1})
        equal = [k for k, (one, two) in enumerate(zip(changed, again, strict=True), start=1) if one.key == two.key]
        assert equal == same


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("folds: 2\n", "needs config and either folds or requests"),
        ("config: base.yaml\n", "needs config and either folds or requests"),
        ("config: base.yaml\nfolds: 2\nrequests: []\n", "needs config and either folds or requests"),
        ("config: base.yaml\nfolds: 2\nfold: 1\n", "needs config and either folds or requests"),
        ("config: base.yaml\nfolds: 1\n", "folds must be a whole number from 2 on, got 1"),
        ("config: base.yaml\nrequests: [{}]\n", "requests must be a list of settings, at least one each"),
        ("config: 7\nfolds: 2\n", "config must be a file or a list of files"),
        ("config: none.yaml\nfolds: 2\n", r"none\.yaml: no such file"),
        ("config: base.yaml\nfolds: 2\nsettings: {export.enabled: false}\n", "keeps no model that the next request"),
        ("a: [\n", "not YAML"),
    ],
)
def test_malformed_files_are_refused(file: Path, tmp_path: Path, content: str, message: str) -> None:
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_sequence(file)


# ---- what is reused -------------------------------------------------------------------------------------------------


class Fits(Processes):
    """Stands in for `sga fit`: notes the runs, leaves what the summary reads, and fails where it is told to."""

    def __init__(self, shows: bool) -> None:
        super().__init__(shows=shows)

    ran: ClassVar[list[str]]
    code: ClassVar[int]

    def start(self, task: Task, folder: Path, lock: ExitStack) -> Job:
        self.ran.append(task.name)
        begin(task, folder)
        write_run(folder / task.name)
        found = Outcome("it failed" if self.code else None, self.code)
        end(task, folder, found, 0)
        return _Ended(found)


def write_run(place: Path) -> None:
    """The files of a run with one evaluation."""
    info = {"name": place.name, "role": "unlearn", "seed": 0, "group_size": 4, "benchmark": "own"}
    evaluation = {"step": 2, "own/forget/avg_nll": 1.0}
    write_text(place / "run.json", json.dumps({**info, "parameters": {}, "method": "GradientAscent"}))
    write_text(place / "metrics.jsonl", json.dumps(evaluation) + "\n")
    write_text(place / "metrics.json", json.dumps(evaluation))
    write_text(place / "rows.jsonl", "")


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> type[Fits]:
    monkeypatch.setattr(Fits, "ran", [], raising=False)
    monkeypatch.setattr(Fits, "code", 0, raising=False)
    monkeypatch.setattr(sga.commands.sequence, "Processes", Fits)
    monkeypatch.setattr(sga.report.summary, "runs_table", lambda runs: f"table of {len(runs)} runs")
    return Fits


def test_finished_requests_are_reused_and_the_others_go_on(
    file: Path, tmp_path: Path, fits: type[Fits], capsys: Any
) -> None:
    arguments = ["--config", str(file), "--folder", str(tmp_path / "runs")]
    fits.code = 1
    assert main(arguments) == 1 and fits.ran == ["request-1"]
    fits.code = 0
    assert main(arguments) == 0 and fits.ran == ["request-1", "request-1", "request-2"]
    assert "[1/2] request-1: going on where it stopped" in capsys.readouterr().out
    assert main(arguments) == 0 and len(fits.ran) == 3
    assert "[2/2] request-2: reused" in capsys.readouterr().out
    found = json.loads((tmp_path / "runs" / "results.json").read_text(encoding="utf-8"))
    assert [(one["request"], one["step"]) for one in found] == [(1, 2), (2, 2)]


def test_another_sequence_in_the_same_folder_is_refused_and_nothing_is_lost(
    file: Path, tmp_path: Path, fits: type[Fits]
) -> None:
    arguments = ["--config", str(file), "--folder", str(tmp_path / "runs")]
    main(arguments)
    with pytest.raises(UserError, match=r"request-1 holds a run of another configuration: choose another"):
        main([*arguments, "--set", "data.batch_size=2"])
    (tmp_path / "runs" / "request-2" / "task.json").unlink()
    with pytest.raises(UserError, match=r"request-2 was not made by this command: choose another"):
        main(arguments)
    assert fits.ran == ["request-1", "request-2"] and (tmp_path / "runs" / "request-2" / "metrics.jsonl").is_file()


# ---- end to end -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_requests_killed_between_and_gone_on_with(own_root: Path, own_target: Path, tmp_path: Path) -> None:
    """Killed while the first or second request runs; the end is that of an undisturbed sequence, to the last bit."""
    import torch
    from safetensors.torch import load_file

    base = {
        "trainer": {"accelerator": "cpu", "max_epochs": 6, "enable_progress_bar": False},
        "model": {
            "language_model": {
                "class_path": "sga.Pretrained",
                "init_args": {"name_or_path": str(own_target)},
            },
            "loss": {"class_path": "sga.SmoothedGradientAscent", "init_args": {"smoothing_rate": -4.0}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        },
        "data": {
            "source": {
                "class_path": "sga.OwnData",
                "init_args": {"forget": "forget.jsonl", "retain": "retain.jsonl", "holdout": "holdout.jsonl"},
            },
            "root": str(own_root),
            "batch_size": 2,
        },
        "model_utility": {"max_new_tokens": 12},
        "checkpoint": {"every_n_steps": 1},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    file = tmp_path / "sequence.yaml"
    file.write_text("config: base.yaml\nfolds: 2\n", encoding="utf-8")
    command = [sys.executable, "-m", "sga", "sequence", "--config", str(file), "--folder"]
    process = subprocess.Popen([*command, str(tmp_path / "killed")])
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "request-1" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True)
    models = [load_file(tmp_path / name / "request-2" / "model" / "model.safetensors") for name in ("killed", "whole")]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    target = load_file(own_target / "model" / "model.safetensors")
    assert any(not torch.equal(target[key], models[0][key]) for key in target)
    first, second = (
        [json.loads(line) for line in (tmp_path / "whole" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("request-1", "request-2")
    )
    name = "own/forget/avg_nll"
    assert second[0][name] == pytest.approx(first[-1][name], abs=1e-5), "the second starts where the first ended"
    ids = [
        [json.loads(line)["forget_id"] for line in (tmp_path / "whole" / run / "pairs.jsonl").read_text().splitlines()]
        for run in ("request-1", "request-2")
    ]
    assert ids == [["forget/0", "forget/1", "forget/2"], ["forget/3", "forget/4", "forget/5"]]
