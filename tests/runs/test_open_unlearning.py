"""Runs in the form of open-unlearning's evaluator: its own numbers come back, and its log can be read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import golden_numbers

from sga.commands.report import main
from sga.errors import UserError
from sga.files import read_json_object, write_json, write_json_lines
from sga.runs.logs import read_log
from sga.runs.open_unlearning import open_unlearning_log, open_unlearning_summary


def test_every_aggregate_of_open_unlearnings_own_evaluation_comes_back(tmp_path: Path) -> None:
    """Its rows read as a log and written again: equal to its aggregates, which it takes in float32."""
    golden = golden_numbers("open_unlearning_tiny_retain.json")
    log: dict[str, Any] = {}
    for name, column in golden["per_sample"].items():
        metric, field = name.split("/")
        rows = {str(index): {field: value} for index, value in enumerate(column)}
        log[metric] = {"agg_value": golden["components"].get(metric), "value_by_index": rows}
    path = tmp_path / "TOFU_EVAL.json"
    write_json(path, log)
    content = open_unlearning_log(read_log(path), {"forget_quality": None, "privleak": None})
    compared = [name for name in content if golden["components"].get(name) is not None]
    assert len(compared) >= 18
    for name in compared:
        assert content[name]["agg_value"] == pytest.approx(golden["components"][name], rel=2e-6), name
    assert content["model_utility"]["agg_value"] == pytest.approx(golden["summary"]["model_utility"], rel=2e-6)
    assert "forget_quality" not in content, "there is no retain model"
    assert set(open_unlearning_summary(content)) <= set(golden["summary"]) | {"forget_quality"}


def rows_of(name: str, count: int = 6) -> list[dict[str, Any]]:
    """Rows of a set with everything that a log of open-unlearning has."""
    draw = np.random.default_rng(len(name)).uniform(0.2, 0.9, size=(count, 8))
    rows = []
    for index, (nll, right, one, two, recall, measure, min_k, strength) in enumerate(draw.tolist()):
        row: dict[str, Any] = {"step": 4, "set": name, "id": f"{name}/{index}", "avg_nll": nll, "tokens": 5}
        if name != "holdout":
            row |= {"perturbed_nll": [one, two], "rouge_l_recall": recall, "rouge_l_fmeasure": measure}
            row["paraphrased_nll"] = right if name in ("forget", "retain") else None
        if name in ("forget", "holdout"):
            row["min_k"] = min_k
        if name == "forget":
            row |= {"exact_memorization": 0.5, "extraction_strength": 0.0 if index == 0 else strength}
            row |= {"question": "Who?", "answer": "The secret.", "generation": "The secret."}
        rows.append(row)
    return rows


def run_folder(folder: Path, benchmark: str = "tofu") -> Path:
    """A finished run with one evaluation."""
    info = {"name": "run", "role": "unlearn", "method": "NPO", "parameters": {}, "seed": 0, "group_size": 1}
    write_json(folder / "run.json", {**info, "benchmark": benchmark, "evaluation": {}})
    metrics = {"step": 4, "epoch": 1.0, "seconds": 1.0, f"{benchmark}/forget_quality": 0.25}
    write_json_lines(folder / "metrics.jsonl", [metrics])
    write_json(folder / "metrics.json", metrics)
    sets = ("forget", "retain", "real_authors", "world_facts", "holdout")
    write_json_lines(folder / "rows" / "000004.jsonl", [row for name in sets for row in rows_of(name)])
    return folder


def test_a_run_is_written_as_its_log_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, output = run_folder(tmp_path / "run"), tmp_path / "log"
    assert main([str(run), "--format", "open-unlearning", "--output", str(output)]) == 0
    assert capsys.readouterr().out.split() == [str(output / "TOFU_EVAL.json"), str(output / "TOFU_SUMMARY.json")]
    ours, theirs = read_log(run), read_log(output / "TOFU_EVAL.json")
    assert theirs.kind == "open-unlearning"
    assert theirs.sets == ours.sets
    for name in ours.sets:
        for mine, other in zip(ours.of_set(name), theirs.of_set(name), strict=True):
            fields = set(other) - {"extraction_strength"}
            assert "avg_nll" in fields
            for field in fields:
                assert other[field] == pytest.approx(mine[field], rel=1e-12), (name, field)
    strengths = [row["extraction_strength"] for row in theirs.of_set("forget")]
    assert strengths[0] == 1 / 4, "its loop ends one token before the last of four"
    summary = read_json_object(output / "TOFU_SUMMARY.json")
    assert summary["forget_quality"] == 0.25
    assert summary["forget_Q_A_Prob"] == pytest.approx(np.mean([np.exp(-row["avg_nll"]) for row in rows_of("forget")]))
    assert {"model_utility", "mia_min_k", "mia_loss", "forget_truth_ratio"} <= set(summary)
    assert "privleak" not in summary
    assert "secret" not in json.dumps(read_json_object(output / "TOFU_EVAL.json")), "numbers only"


def test_what_cannot_be_such_a_log_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run, output = run_folder(tmp_path / "run", "own"), tmp_path / "log"
    with pytest.raises(UserError, match="of the benchmark tofu, this run is of 'own'"):
        main([str(run), "--format", "open-unlearning", "--output", str(output)])
    with pytest.raises(UserError, match="log of one run: name one, and --output"):
        main([str(run), str(run), "--format", "open-unlearning", "--output", str(output)])
    assert not output.exists()
