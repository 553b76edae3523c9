"""Several retained models as reference: means with their range, never the p of averaged rows; one is as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import all_rows

import sga
from sga.cli import run_verb
from sga.commands.score import main
from sga.errors import UserError
from sga.evaluation.metrics import forget_quality, log_truth_ratio, membership_auc, privleak
from sga.files import read_json_object, write_json

SETTINGS = {"template": "plain", "benchmark": "tofu", "forget_set": "abc", "dtype": "float32", "min_k_share": "0.4"}
ROWS = 20


def write_run(folder: Path, seed: int, shift: float = 0.0, auc: float | None = None) -> Path:
    """A run folder of 20 forget and 20 holdout rows with losses and Min-K %."""
    rng = np.random.default_rng(seed)
    lines = []
    for name in ("forget", "holdout"):
        for index in range(ROWS):
            row: dict[str, Any] = {
                "step": 8,
                "set": name,
                "id": f"{name}10/{index}",
                "question": "Why?",
                "answer": "So.",
            }
            row |= {"avg_nll": rng.uniform(0.3, 3) + shift, "min_k": rng.uniform(0, 4)}
            if name == "forget":
                row |= {
                    "paraphrased_nll": rng.uniform(0.3, 3) + shift,
                    "perturbed_nll": rng.uniform(0.3, 3, 3).tolist(),
                }
            lines.append(row)
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    write_json(folder / "run.json", {"name": folder.name, "benchmark": "tofu", "evaluation": SETTINGS})
    if auc is not None:
        write_json(folder / "metrics.json", {"step": 8, "tofu/mia/min_k": auc})
    return folder


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in all_rows(run) if row["set"] == name]


def column(run: Path, name: str, field: str) -> np.ndarray[Any, Any]:
    return np.array([row[field] for row in rows(run, name)])


def ratios(run: Path) -> Any:
    forget = rows(run, "forget")
    return log_truth_ratio([row["paraphrased_nll"] for row in forget], [row["perturbed_nll"] for row in forget])


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A run and three references, of which the last one is far away."""
    given = ((0, 0.0, None), (1, 0.0, 0.5), (2, 0.2, 0.6), (3, 2.0, 0.25))
    return [write_run(tmp_path / f"run{seed}", seed, shift, auc) for seed, shift, auc in given]


def scored(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    assert main([*map(str, arguments), f"--output={tmp_path / 'score.json'}"]) == 0
    return read_json_object(tmp_path / "score.json")


def test_the_mean_of_logarithms_with_range_and_ceiling(runs: list[Path], tmp_path: Path) -> None:
    run, *references = runs
    metrics = scored(tmp_path, run, "--reference", *references)["metrics"]
    each = [forget_quality(ratios(run), ratios(reference)) for reference in references]
    logs = [quality.log10_p for quality in each]
    assert len({round(value, 3) for value in logs}) == 3
    name = "tofu/forget_quality_log10"
    assert metrics[name] == pytest.approx(sum(logs) / 3, rel=1e-14)
    assert (metrics[f"{name}_min"], metrics[f"{name}_max"]) == (min(logs), max(logs))
    assert metrics["tofu/forget_quality"] == pytest.approx(10 ** (sum(logs) / 3), rel=1e-12)
    assert metrics["tofu/ks_statistic"] == pytest.approx(sum(quality.ks_statistic for quality in each) / 3)
    assert metrics["tofu/forget_quality_references"] == 3
    ceiling = [
        forget_quality(ratios(references[i]), ratios(references[j])).log10_p for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert metrics[f"{name}_ceiling"] == pytest.approx(sum(ceiling) / 3, rel=1e-14)
    assert (metrics[f"{name}_ceiling_min"], metrics[f"{name}_ceiling_max"]) == (min(ceiling), max(ceiling))
    averaged = forget_quality(ratios(run), np.mean([ratios(reference) for reference in references], axis=0)).log10_p
    assert abs(metrics[name] - averaged) > 0.1, "never the p of averaged rows"


def test_membership_is_the_mean_over_references(runs: list[Path], tmp_path: Path) -> None:
    run, *references = runs
    metrics = scored(tmp_path, run, "--reference", *references)["metrics"]
    auc = membership_auc(column(run, "forget", "min_k"), column(run, "holdout", "min_k"))
    leaks = [privleak(auc, reference) for reference in (0.5, 0.6, 0.25)]
    assert metrics["tofu/privleak"] == pytest.approx(sum(leaks) / 3)
    assert (metrics["tofu/privleak_min"], metrics["tofu/privleak_max"]) == pytest.approx((min(leaks), max(leaks)))
    assert metrics["tofu/privleak_reference_auc"] == pytest.approx(0.45)
    assert metrics["tofu/privleak/ci_low"] < metrics["tofu/privleak"] < metrics["tofu/privleak/ci_high"]
    beyond = [
        membership_auc(*(column(run, name, "avg_nll") - column(one, name, "avg_nll") for name in ("forget", "holdout")))
        for one in references
    ]
    name = "tofu/mia/reference"
    assert metrics[name] == pytest.approx(sum(beyond) / 3, rel=1e-14)
    assert (metrics[f"{name}_min"], metrics[f"{name}_max"]) == pytest.approx((min(beyond), max(beyond)))
    assert metrics[f"{name}/ci_low"] < metrics[name] < metrics[f"{name}/ci_high"]


def test_without_an_auc_of_each_reference_there_is_no_privleak(runs: list[Path], tmp_path: Path) -> None:
    (runs[2] / "metrics.json").unlink()
    found = scored(tmp_path, runs[0], "--reference", *runs[1:])
    assert "tofu/privleak" not in found["metrics"] and "AUC of Min-K %" in found["absent"]["tofu/privleak"]


def test_one_reference_gives_the_numbers_of_one(runs: list[Path], tmp_path: Path) -> None:
    metrics = scored(tmp_path, runs[0], "--reference", runs[1])["metrics"]
    quality = forget_quality(ratios(runs[0]), ratios(runs[1]))
    assert metrics["tofu/forget_quality"] == quality.p_value
    assert metrics["tofu/forget_quality_log10"] == quality.log10_p
    assert not [name for name in metrics if name.endswith(("_min", "_max", "_references")) or "ceiling" in name]


def test_a_reference_that_is_named_twice_is_refused(runs: list[Path]) -> None:
    with pytest.raises(UserError, match="--reference names a log twice"):
        main([str(runs[0]), "--reference", str(runs[1]), str(runs[1])])
    with pytest.raises(UserError, match="names a reference twice"):
        sga.Evaluator(reference=["a", "b", "a"])


def test_a_run_is_compared_with_several(
    unlearn_options: list[str], own_reference: Path, own_target: Path, tmp_path: Path
) -> None:
    """A run's own numbers are those that `sga score` makes of its rows; a rule takes the mean forget nll."""
    options = [*unlearn_options, "--model_utility.generate=false", "--export.enabled=false"]
    options += [f"--evaluation.reference=[{own_reference},{own_target}]", "--trainer.max_epochs=1"]
    run_verb(["fit", *options, "--stop.rule=ForgetNLLReached", f"--run.folder={tmp_path / 'run'}"])
    metrics = read_json_object(tmp_path / "run/metrics.json")
    assert metrics["own/forget_quality_references"] == 2
    assert read_json_object(tmp_path / "run/run.json")["reference"] == [str(own_reference), str(own_target)]
    means = [column(one, "forget", "avg_nll").mean() for one in (own_reference, own_target)]
    assert f"the reference's {sum(means) / 2:.3f}" in metrics["because"]
    score = scored(tmp_path, tmp_path / "run", "--reference", own_reference, own_target, f"--step={metrics['step']}")
    names = [name for name in score["metrics"] if name in metrics and ("forget_quality" in name or "mia" in name)]
    assert len(names) > 8 and "own/mia/reference_min" in names
    for name in names:
        assert score["metrics"][name] == pytest.approx(metrics[name], rel=1e-9), name
