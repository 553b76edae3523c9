"""`sga unlearn` and `sga.unlearn` on a model of two layers: a result, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import rows_about, write_rows

import sga
from sga.errors import UserError
from sga.experiments.unlearn import Unlearned, unlearn

QUICK: dict[str, Any] = {
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 2,
    "evaluation.resamples": 100,
    "model_utility.max_new_tokens": 12,
    "model.optimizer.lr": 1e-3,
}


def quick(model: Any, folder: Path, forget: Any, retain: Any, holdout: Any = None, **options: Any) -> Unlearned:
    """A short run, in which every line is kept."""
    settings = {**QUICK, **options.pop("settings", {})}
    return unlearn(model, None, forget, retain, holdout, folder=folder, settings=settings, **options)


def test_two_files_and_a_model(own_root: Path, own_target: Path, tmp_path: Path, capsys: Any) -> None:
    files = [own_root / f"{name}.jsonl" for name in ("forget", "retain", "holdout")]
    found = quick(own_target, tmp_path / "runs", *files)
    print(found)
    out = capsys.readouterr().out
    Path("/tmp/unlearn_out.txt").write_text(out)
