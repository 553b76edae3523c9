"""The shipped TOFU configuration on the real files, with small models that know real rows of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import shipped

from sga.cli import run_verb

TINY = [
    *shipped("tofu-small", "sga"),
    "--data.evaluation_rows=8",
    "--model_utility.max_new_tokens=8",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
]


@pytest.mark.slow
@pytest.mark.parametrize(("split", "rows"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_it_unlearns_every_forget_split(
    split: str, rows: int, tofu_root: Path, tiny_models: Path, tmp_path: Path
) -> None:
    data = [f"--data.source.forget_split={split}", f"--data.root={tofu_root}"]
    reference = tmp_path / "reference"
    run_verb(
        [
            "validate",
            *(TINY + data),
            f"--model.language_model.name_or_path={tiny_models / 'retain'}",
            f"--run.folder={reference}",
        ]
    )
    folder = tmp_path / "run"
    run_verb(
        [
            "fit",
            *(TINY + data),
            f"--model.language_model.name_or_path={tiny_models / 'full'}",
            f"--evaluation.reference={reference}",
            f"--run.folder={folder}",
            "--trainer.max_epochs=1",
        ]
    )
    groups = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(groups) == rows
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [point["step"] for point in points] == [0, rows // 8]
    assert points[-1]["tofu/ks_n"] == 8
    assert points[-1]["tofu/forget/avg_nll"] > points[0]["tofu/forget/avg_nll"]
    assert (folder / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_known_rows_are_forgotten_with_the_retain_model_as_reference(
    tofu_root: Path, tiny_models: Path, tmp_path: Path
) -> None:
    """On the rows that `full` knows and `retain` does not: forgetting starts from nll near 0 and ends near 12."""
    known = ["--data.source.forget_rows=[320,400]", "--data.source.retain_rows=[0,320]", f"--data.root={tofu_root}"]
    known.append("--data.evaluation_rows=40")  # 8 rows cannot tell how far apart two distributions are
    run_verb(
        [
            "validate",
            *(TINY + known),
            f"--model.language_model.name_or_path={tiny_models / 'retain'}",
            f"--run.folder={tmp_path / 'reference'}",
        ]
    )
    run_verb(
        [
            "fit",
            *(TINY + known),
            f"--model.language_model.name_or_path={tiny_models / 'full'}",
            f"--evaluation.reference={tmp_path / 'reference'}",
            f"--run.folder={tmp_path / 'run'}",
            "--trainer.max_epochs=8",
        ]
    )
    retain = json.loads((tmp_path / "reference" / "metrics.json").read_text(encoding="utf-8"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, *_, last = [json.loads(line) for line in lines]
    assert first["tofu/forget/avg_nll"] < 0.1 and first["tofu/mia/loss"] > 0.95 and first["tofu/model_utility"] > 0.8
    assert retain["tofu/forget/avg_nll"] > 5
    assert last["tofu/forget/avg_nll"] > 1 and last["tofu/forget_quality_log10"] > first["tofu/forget_quality_log10"]
