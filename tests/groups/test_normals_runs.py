"""Normal data in whole runs: pools, text of one's own, hidden texts, what is measured, the report and the sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sga.cli import UnlearningCLI, parsed_config, run_verb
from sga.data.builtin import packaged_path
from sga.errors import UserError
from sga.experiments.sweeps.definition import label, read_sweep
from sga.experiments.sweeps.results import NORMAL_DATA, metrics
from sga.rates.policies import ObservedRate
from sga.report.page import write_report

SHORT = (
    "--model_utility.generate=false",
    "--export.enabled=false",
    "--model.schedule=ConstantSchedule",
    "--trainer.limit_val_batches=0",
)
Fit = Callable[..., UnlearningCLI]


@pytest.fixture
def fit(unlearn_options: list[str]) -> Fit:
    def run(folder: Path, *options: str) -> UnlearningCLI:
        return run_verb(["fit", *unlearn_options, f"--run.folder={folder}", *SHORT, *options])

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def weights(run: UnlearningCLI) -> torch.Tensor:
    return torch.cat([value.flatten() for value in run.model.state_dict().values()])


def test_a_pool_is_drawn_from_and_a_resumed_run_draws_the_same(fit: Fit, tmp_path: Path) -> None:
    pool = "--data.pool_size=8"
    straight = weights(fit(tmp_path / "straight", pool, "--trainer.max_epochs=3"))
    fit(tmp_path / "stopped", pool, "--trainer.max_epochs=2")
    resumed = weights(fit(tmp_path / "stopped", pool, "--trainer.max_epochs=3", "--ckpt_path=last"))
    assert torch.equal(straight, resumed)
    assert all(len(line["normals"]) == 8 for line in lines(tmp_path / "straight" / "pairs.jsonl"))
    fixed = weights(fit(tmp_path / "fixed", "--trainer.max_epochs=3"))
    assert not torch.equal(straight, fixed), "negative control"


def test_looking_at_gradients_changes_nothing_and_is_written_down(fit: Fit, tmp_path: Path) -> None:
    watched = [
        "--model.loss.smoothing_rate=sga.ObservedRate",
        "--model.loss.smoothing_rate.rate=-4",
    ]
    both = ["--trainer.limit_val_batches=1.0", "--trainer.precision=64-true"]
    looked, plain = fit(tmp_path / "looked", *watched, *both), fit(tmp_path / "plain", *both)
    # Llama's norms compute in float32 even so, and Adam makes much of rounding where a gradient is next to nothing.
    torch.testing.assert_close(weights(looked), weights(plain), rtol=0, atol=5e-5)
    found = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("looked", "plain")]
    assert set(NORMAL_DATA) <= set(found[0]) and set(NORMAL_DATA) & set(found[1]) == {"normals/similarity"}
    assert -1 <= found[0]["normals/gradient_cosine"] <= 1 and found[0]["normals/similarity"] > 0.2
    with pytest.raises(UserError, match="rate must be from lowest"):
        ObservedRate(rate=-20.0)


def test_normals_of_one_s_own_are_trained_on_and_shown_in_the_report(fit: Fit, tmp_path: Path) -> None:
    pairing = ("--data.pairing=sga.CorruptedNormals", "--data.pairing.rate=0.5")
    run = fit(tmp_path / "made", *pairing, "--run.texts=false", "--trainer.max_epochs=1")
    kept = (tmp_path / "made" / "pairs.jsonl").read_text()
    assert all(normal.answer not in kept for group in run.datamodule.groups for normal in group.normals)
    again = fit(tmp_path / "made", *pairing, "--run.texts=false", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert again.datamodule.groups == run.datamodule.groups, "made again, because the file has no texts"
    full = fit(tmp_path / "a", *pairing, "--trainer.limit_val_batches=1.0", "--trainer.max_epochs=1")
    assert lines(tmp_path / "a" / "pairs.jsonl")[0]["normals"][0]["source"] == "corrupted"
    taken = fit(tmp_path / "b", f"--data.pairs={tmp_path / 'a' / 'pairs.jsonl'}", "--trainer.max_epochs=1")
    assert taken.datamodule.groups == full.datamodule.groups
    page = write_report([tmp_path / "a"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "corrupted, 0.5 of the words" in page


def test_the_sweep_of_normal_data_parses_and_shows_geometry() -> None:
    sweep = read_sweep(packaged_path("configs/sweeps/normals.yaml"))
    assert set(NORMAL_DATA) <= set(metrics(sweep))
    assert not set(NORMAL_DATA) & set(metrics(read_sweep(packaged_path("configs/sweeps/quick.yaml"))))
    labels = {label({"data.pairing": values["data.pairing"]}) for values in sweep.combinations()}
    assert not any("\n" in words for words in labels), "a label is one line"
    assert len(labels) == 7 and len(sweep.combinations()) == 21


@pytest.mark.parametrize("number", range(7))
@pytest.mark.runs
def test_each_pairing_of_the_sweep_parses(number: int, tmp_path: Path) -> None:
    import yaml

    sweep = read_sweep(packaged_path("configs/sweeps/normals.yaml"))
    config = dict(sweep.task({"data.pairing": sweep.grid["data.pairing"][number]}, 1).config)
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert parsed_config(["fit", "--config", str(path)]).fit.data.pairing.class_path
