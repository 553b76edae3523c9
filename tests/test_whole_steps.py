"""Whole training steps of `sga fit`: how often they wait for the GPU, and how many operators they take."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from processes import MARGIN
from waiting import WholeSteps

from sga.cli import run_verb
from sga.rates import geometry

CHECK = Counter(tolist=1)
"""The one look at losses, gradients and what is logged, before the optimiser's update."""
MASK = Counter(__bool__=1)
"""Transformers' own look at the positions of a packed row, of each forward pass with a mask."""

LORA = ("--model.language_model=sga.LoRA", "--model.language_model.rank=4")


@pytest.mark.parametrize(
    ("options", "waits", "operators"),
    [
        ((), CHECK + MASK, 780),
        (MARGIN, CHECK + Counter(tolist=1) + MASK + MASK, 1620),  # and one at the inner products
        (LORA, CHECK + MASK, 1180),
        ((*LORA, *MARGIN), CHECK + Counter(tolist=1) + MASK + MASK, 2420),
        (("--model.loss=sga.NPO",), CHECK + MASK, 760),
        (("--model.loss.average=token",), CHECK + MASK, 780),
        (("--model.loss=sga.SimNPO",), CHECK + MASK, 900),
    ],
    ids=["fixed rate", "dynamic rate", "LoRA", "LoRA, dynamic rate", "NPO", "token", "parts by role"],
)
def test_a_training_step_waits_for_the_gpu_once(
    options: tuple[str, ...],
    waits: Counter[str],
    operators: int,
    unlearn_options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logging, progress, losses and the batch itself included; operators are held so that nobody adds some unseen."""
    monkeypatch.setattr(geometry, "FEW_KERNELS", {"cpu"})
    run_verb(
        [
            *("fit", *unlearn_options, *options, "--model.optimizer.fused=true", f"--run.folder={tmp_path}"),
            *("--trainer.limit_val_batches=0", "--trainer.callbacks+=waiting.WholeSteps", "--trainer.max_epochs=1"),
        ]
    )
    steps = WholeSteps.last
    assert [Counter(found) for found in steps.waits] == [waits, waits]
    assert steps.operators[-1] <= operators
