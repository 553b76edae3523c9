"""The gradient-norm attack against a plain backward pass, and in a run that asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TinyNetwork

from sga.batching.batch import collate
from sga.cli import run_verb
from sga.evaluation.gradient_norms import gradient_norm
from sga.evaluation.metrics import membership_auc


def test_it_is_the_mean_of_the_tensors_norms_and_leaves_gradients_alone(tiny_network: TinyNetwork) -> None:
    """Also under `inference_mode`, in which evaluations run, and with weights that are not trained."""
    row = tiny_network.encoded[3]
    plain = tiny_network.model()
    log_p = plain(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(dim=-1)
    places = range(row.prompt_length, len(row.ids))
    torch.stack([-log_p[place - 1, row.ids[place]] for place in places]).mean().backward()
    norms = {name: p.grad.norm().item() for name, p in plain.named_parameters() if p.grad is not None}
    model = tiny_network.model()
    with torch.inference_mode():
        found = gradient_norm(model, collate([[row]]))
    assert found == pytest.approx(sum(norms.values()) / len(norms), abs=1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found != pytest.approx(sum(norm**2 for norm in norms.values()) ** 0.5, rel=0.1), "the norm of all is another"
    head = [name for name in norms if "layers.0" not in name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)
    assert gradient_norm(model, collate([[row]])) == pytest.approx(sum(norms[n] for n in head) / len(head), abs=1e-12)


def test_a_run_has_it_only_where_it_is_asked_for(unlearn_options: list[str], tmp_path: Path) -> None:
    options = ["--model_utility.generate=false", "--export.enabled=false", "--trainer.max_epochs=1"]
    options += ["--evaluation.resamples=50"]
    for name, flag in (("without", "false"), ("with", "true")):
        run = [*unlearn_options, f"--run.folder={tmp_path / name}", *options]
        run_verb(["fit", *run, f"--membership_inference.gradient_norm={flag}"])
    without, found = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("without", "with"))
    [key] = {key for key in found if key.endswith("mia/gradient_norm")}
    assert not any("gradient_norm" in text for text in (*without, *without["absent"]))
    assert all(found[other] == without[other] for other in without if "mia/" in other), "the other attacks stay"
    files = sorted((tmp_path / "with" / "rows").glob("*.jsonl"))
    rows = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()]
    sides = [[row["gradient_norm"] for row in rows if row["set"] == side] for side in ("forget", "holdout")]
    assert min(map(min, sides)) > 0 and found[key] == pytest.approx(membership_auc(*sides))
