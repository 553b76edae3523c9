"""FSDP2: two processes that hold a part of the weights each take the trajectory of one that holds all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import all_rows
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from processes import (
    EXACT,
    MARGIN,
    RECORD,
    SHARDED,
    UNEVEN,
    distance,
    lines,
    metrics,
    rates,
    sga,
    trainer,
    weights,
)

from sga.cli import run_verb
from sga.errors import UserError
from sga.models.combinations import WhosHarryPotter
from sga.models.pretrained import Pretrained
from sga.models.sharding import FullyShardedStrategy, check_strategy, is_sharded, whole_weights


def relative_distance(one: Path, two: Path, start: Path) -> float:
    """‖w₂ − w₁‖ / ‖w₁ − w₀‖ over all weights."""
    first, second, origin = (torch.cat([v.double().flatten() for v in weights(f).values()]) for f in (one, two, start))
    return ((second - first).norm() / (first - origin).norm()).item()


def test_strategies_that_are_not_known_to_be_right_are_refused() -> None:
    decoder = WhosHarryPotter("model", "reinforced")
    for strategy in (SingleDeviceStrategy(), DDPStrategy(), FullyShardedStrategy()):
        check_strategy(trainer(strategy), Pretrained("model"))
    with pytest.raises(UserError, match=r"ModelParallelStrategy is not supported: .* fsdp2"):
        check_strategy(trainer(ModelParallelStrategy()), Pretrained("model"))
    with pytest.raises(UserError, match=r"does not go with --trainer\.precision 16-mixed"):
        check_strategy(trainer(FullyShardedStrategy(), "16-mixed"), Pretrained("model"))
    with pytest.raises(UserError, match="not a decoder over two"):
        check_strategy(trainer(FullyShardedStrategy()), decoder)
    check_strategy(trainer(SingleDeviceStrategy(), "16-mixed"), decoder)


def test_a_whole_model_is_left_as_it_is(tiny_network: Any) -> None:
    model = tiny_network.model()
    assert not is_sharded(model)
    assert whole_weights(model).keys() == model.state_dict().keys()


# ---- the same trajectory --------------------------------------------------------------------------------------------


def test_two_parts_take_the_steps_of_the_whole(unlearn_options: list[str], own_target: Path, tmp_path: Path) -> None:
    """float64, a dynamic rate, clipped gradients, tied embeddings, evaluations with generated answers, the export.

    Clipping takes place: the margin rate alone gives gradients with norms above 0.01 at every step.
    """
    options = [*unlearn_options, *UNEVEN, *EXACT, *MARGIN, RECORD, "--trainer.gradient_clip_val=0.01"]
    options += ["--evaluation.answers=null", "--trainer.check_val_every_n_epoch=2", "--data.evaluation_rows=4"]
    one, two = tmp_path / "one", tmp_path / "two"
    run_verb(["fit", *options, f"--run.folder={one}"])
    sga("fit", *options, *SHARDED, f"--run.folder={two}")
    assert weights(two)["model.norm.weight"].dtype == torch.float64
    assert distance(one, two) < 1e-10 < 1e-4 < distance(one, own_target)
    expected = rates(one)
    assert len(expected) == 4 and max(expected) - min(expected) > 1e-2
    for rank in (0, 1):
        assert rates(two, rank) == pytest.approx(expected, rel=0, abs=1e-10)
    for found, wanted in zip(metrics(two), metrics(one), strict=True):
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    texts, wanted_texts = ([row.get("generation") for row in all_rows(folder)] for folder in (two, one))
    assert texts == wanted_texts
    config, wanted_config = ((folder / "model" / "config.json").read_bytes() for folder in (two, one))
    assert config == wanted_config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "loss_tolerance", "weight_tolerance"),
    [
        ("64-true", 1e-8, 1e-8),  # Llama's norms are float32
        ("32-true", 1e-4, 2e-2),  # AdamW's first steps divide by the gradient's size: the sign of noise becomes a step
        ("bf16-mixed", 0.1, 0.5),  # weights are rounded before norms as well, see `shard`
    ],
)
def test_precisions(
    unlearn_options: list[str],
    own_target: Path,
    tmp_path: Path,
    precision: str,
    loss_tolerance: float,
    weight_tolerance: float,
) -> None:
    """20 steps at a fixed rate; tolerances are relative, of losses and of the way that the weights have gone."""
    options = [*unlearn_options, *UNEVEN, f"--trainer.precision={precision}", "--model_utility.generate=false"]
    options += ["--trainer.max_epochs=10", "--trainer.check_val_every_n_epoch=5", "--evaluation.answers=null"]
    one, two = tmp_path / "one", tmp_path / "two"
    sga("fit", *options, f"--run.folder={one}")
    sga("fit", *options, *SHARDED, f"--run.folder={two}")
    kept = torch.load(two / "checkpoints" / "last.ckpt", weights_only=True)
    master = torch.float64 if precision == "64-true" else torch.float32
    assert {value.dtype for value in weights(two).values()} == {master}
    assert {state["exp_avg"].dtype for state in kept["optimizer_states"][0]["state"].values()} == {master}
    for found, wanted in zip(metrics(two), metrics(one), strict=True):
        for name in ("own/forget/avg_nll", "perplexity/retain/log"):
            assert found[name] == pytest.approx(wanted[name], rel=loss_tolerance)
    print(precision, relative_distance(one, two, own_target))
    assert relative_distance(one, two, own_target) < weight_tolerance


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        ("--model.loss=sga.KLMinimization",),
        ("--model.loss=sga.NPO",),
        ("--model.loss=sga.RMU", "--model.loss.layer=1"),
    ],
    ids=["a second model", "its losses", "hidden states and frozen blocks"],
)
def test_the_starting_model_beside_it(unlearn_options: list[str], tmp_path: Path, loss: tuple[str, ...]) -> None:
    """The reference is in parts too; a resumed run finds the same one."""
    options = [option for option in unlearn_options if not option.startswith("--model.loss")]
    options += [*UNEVEN, *EXACT, *loss, "--model_utility.generate=false", "--model.schedule=ConstantSchedule"]
    one, two = tmp_path / "one", tmp_path / "two"
    sga("fit", *options, f"--run.folder={one}")
    sga("fit", *options, *SHARDED, f"--run.folder={two}", "--trainer.max_epochs=1")
    sga("fit", *options, *SHARDED, f"--run.folder={two}", "--ckpt_path=last")
    assert distance(one, two) < 1e-8
    if (one / "reference.json").exists():
        ours, theirs = (json.loads((folder / "reference.json").read_text()) for folder in (two, one))
        assert ours["model"] == theirs["model"], "one hash of the weights, however they are held"
        assert ours["total_nll"] == pytest.approx(theirs["total_nll"], rel=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "wrong"), [("fsdp2", False), ("ddp", True)])
def test_a_fused_head_in_two_processes(unlearn_options: list[str], tmp_path: Path, strategy: str, wrong: bool) -> None:
    """It sees whole weights, the starting model's too; found wrong by one of them, it is used by neither."""
    options = [option for option in unlearn_options if not option.startswith("--model.loss")]
    options += [*UNEVEN, *EXACT, "--model.loss=sga.NPO", "--model_utility.generate=false"]
    both = ["--trainer.devices=2", f"--trainer.strategy={strategy}"]
    both += ["--trainer.callbacks+=test_packing.FusedHeadOnCPU"]
    both += ["--trainer.callbacks.wrong_in=1"] if wrong else []
    one, two = tmp_path / "one", tmp_path / "two"
    sga("fit", *options, f"--run.folder={one}")
    sga("fit", *options, *both, f"--run.folder={two}")
    assert distance(one, two) < 1e-8


# ---- after training, and without it ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluation_of_parts(unlearn_options: list[str], own_options: list[str], tmp_path: Path) -> None:
    """validate, test and predict as one process, which takes the same answers and the same checkpoints."""
    folder = tmp_path / "two"
    options = [*unlearn_options, *UNEVEN, "--trainer.precision=64-true", "--evaluation.answers=null"]
    sga("fit", *options, *SHARDED, f"--run.folder={folder}", "--model.schedule=ConstantSchedule")
    model = ["--model.language_model=sga.Pretrained", f"--model.language_model.name_or_path={folder}"]
    model += ["--trainer.precision=64-true", f"--evaluation.answers={tmp_path / 'answers'}"]
    printed = [
        sga("validate", *own_options, *model, *more, f"--run.folder={tmp_path / name}")
        for name, more in (("one", []), ("parts", SHARDED))
    ]
    assert "answers of this model" not in printed[0] and "answers of this model" in printed[1]
    assert metrics(tmp_path / "one") == metrics(tmp_path / "parts")
    model[-1] = "--evaluation.answers=null"
    for verb, name in (("validate", ""), ("test", "test"), ("predict", "predictions.jsonl")):
        for more, where in (([], "alone"), (SHARDED, "sharded")):
            sga(verb, *own_options, *model, *more, f"--run.folder={tmp_path / f'{verb}-{where}'}")
        ours, theirs = (
            (lines if verb == "predict" else all_rows)(tmp_path / f"{verb}-{where}" / name)
            for where in ("sharded", "alone")
        )
        for row, other in zip(ours, theirs, strict=True):
            assert row.keys() == other.keys()
            for key, value in other.items():
                number = isinstance(value, float) or key == "perturbed_nll"
                assert row[key] == (pytest.approx(value, rel=1e-9, abs=1e-12) if number else value)
    kept = folder / "checkpoints" / "last.ckpt"
    by_checkpoint = [f"--ckpt_path={kept}", *own_options, "--trainer.precision=64-true", "--evaluation.answers=null"]
    by_checkpoint += [option for option in unlearn_options if option.startswith("--model.language_model")]
    for more, where in (([], "alone"), (SHARDED, "sharded")):
        sga("validate", *by_checkpoint, *more, f"--run.folder={tmp_path / f'kept-{where}'}")
        [found], [wanted] = metrics(tmp_path / f"kept-{where}"), metrics(tmp_path / "one")
        # The folder is read as float32, the checkpoint as it is.
        assert found["own/forget/avg_nll"] == pytest.approx(wanted["own/forget/avg_nll"], rel=1e-6)
