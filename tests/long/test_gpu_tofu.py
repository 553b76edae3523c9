"""`benchmarks/gpu-tofu.sh` at a tiny size on a CPU: it is a session's one try on a GPU, so it has to run as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY_TOFU_TEMPLATE

from sga.files import read_yaml

pytestmark = pytest.mark.slow

TINY = {
    "data.source.forget_rows": [0, 8], "data.source.retain_rows": [0, 24], "data.reserved": 4,
    "data.evaluation_rows": 8, "model_utility.max_new_tokens": 4, "trainer.accelerator": "cpu",
    "trainer.max_epochs": 1, "trainer.check_val_every_n_epoch": 1, "data.batch_size": 8, "data.micro_batch_size": 8,
    "data.template": {"class_path": "sga.PlainTemplate", "init_args": {"text": TINY_TOFU_TEMPLATE.text}},
}  # fmt: skip
CELLS = list(read_yaml(ROOT / "benchmarks" / "gpu-tofu" / "plan.yaml")["cells"])


def script(output: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = [part for name, value in TINY.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    return subprocess.run(
        [ROOT / "benchmarks" / "gpu-tofu.sh", output, *options, *settings],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_it_learns_forgets_and_tells_and_goes_on_where_time_ran_out(
    tofu_root: Path, tiny_models: Path, tmp_path: Path
) -> None:
    data = {"SGA_DATA": str(tofu_root.parent)}
    lr = ("--lr", "0.002")
    begun = script(tmp_path, str(tiny_models / "retain"), *lr, SECONDS_AT_MOST="1", **data)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    assert "* Not finished: target, retained," in (tmp_path / "gpu-tofu.md").read_text(encoding="utf-8")

    done = script(tmp_path, str(tiny_models / "retain"), *lr, **data)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-tofu.json").read_text(encoding="utf-8"))
    assert list(found["runs"]) == ["target", "retained", *(f"0.002/{name}" for name in CELLS)]
    assert (found["failed"], found["left"], found["split"], found["model"]) == ({}, [], "forget10", "retain")
    assert found["date"] and found["device"].startswith("CPU") and "commit" in found
    page = (tmp_path / "gpu-tofu.md").read_text(encoding="utf-8")
    assert page.count("\n| ") == 1 + len(found["runs"]) and "Not finished" not in page
    ends = {name: run["evaluations"][-1] for name, run in found["runs"].items()}
    assert all(0 <= end["tofu/model_utility_unseen"] <= 1 for end in ends.values())
    assert ends["target"]["tofu/forget/avg_nll"] < ends["retained"]["tofu/forget/avg_nll"], "it has learned them"
    for name in CELLS:
        assert "tofu/forget_quality_log10" in ends[f"0.002/{name}"], "held against the retained model"
    assert ends["0.002/gd-same"]["tofu/forget/avg_nll"] > ends["target"]["tofu/forget/avg_nll"], "it forgets"
    mean, rule = (json.loads((tmp_path / "runs" / "0.002" / name / "rates.json").read_text()) for name in
                  ("mean", "margin"))  # fmt: skip
    assert mean["values"] == pytest.approx([sum(rule["values"]) / len(rule["values"])] * len(rule["values"]))

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("task.json")}
    again = script(tmp_path, *lr, SGA_PRETRAINED=str(tiny_models / "retain"), **data)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("task.json")} == written


def test_what_is_missing_is_said_before_anything_runs(tmp_path: Path, tofu_root: Path) -> None:
    data = str(tofu_root.parent)
    for options, environment, said in (
        ((), {"SGA_DATA": data, "SGA_PRETRAINED": ""}, "name a model's folder, or set SGA_PRETRAINED"),
        (("nowhere",), {"SGA_DATA": data}, "--model nowhere: there is no such folder or file"),
        (("nowhere",), {"SGA_DATA": str(tmp_path)}, "has no folder tofu"),
    ):
        done = script(tmp_path / "out", *options, **environment)
        assert done.returncode != 0 and said in done.stdout + done.stderr
        assert not list(tmp_path.rglob("task.json"))
