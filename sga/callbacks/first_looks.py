"""Checks that a run prints before it trains: the template with the first prompt, and whether the model answers it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Timer

from sga.batching.templates import PlainTemplate
from sga.callbacks.evaluator import Evaluator, callback_of, evaluation_of
from sga.datamodule import UnlearningData

_SHOWN = 300
"""Number of characters of the first prompt to print."""
_NEARLY_ALL = 0.9
"""Share of empty or repeating answers from which on the model counts as not answering at all."""


class FirstLooks(pl.Callback):
    """Prints the template with the first prompt, and warns if the first evaluation shows that it does not fit."""

    def __init__(self) -> None:
        self._looked = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._say_template(trainer, pl_module)
        if callback_of(trainer, Timer) is not None and trainer.is_global_zero:
            print(
                "trainer.max_time: the learning-rate schedule counts steps and epochs and does not know the time, so "
                "that the run may end in the middle of its schedule"
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._say_template(trainer, pl_module)

    def _say_template(self, trainer: pl.Trainer, module: Any) -> None:
        data: UnlearningData = module.data
        record = next((group.forget for group in data.groups if not group.forget.is_text), None)
        if not trainer.is_global_zero or record is None:  # plain texts have no template
            return
        print(f"template: {data.template}")
        evaluator = callback_of(trainer, Evaluator)
        if evaluator is None or evaluator.keeps_texts:
            prompt = data.template.prompt(data.tokenizer, record.question).prefix
            print(f"first prompt: {prompt[:_SHOWN]!r}{' …' if len(prompt) > _SHOWN else ''}", flush=True)
        if _is_beside_chat(data):
            warnings.warn(
                f"the data is put into {data.template}, but the tokenizer {data.tokenizer.name_or_path!r} has a chat "
                "template of its own: a model that was trained on that answers badly, or not at all, in another form. "
                "Leave out --data.template to take the tokenizer's",
                stacklevel=2,
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._looked:
            return
        self._looked = True
        data: UnlearningData = pl_module.data  # type: ignore[assignment]
        before = trainer.state.fn == "fit"
        if not trainer.is_global_zero or (before and (trainer.global_step > 0 or data.train_on != ("forget",))):
            return
        evaluation = evaluation_of(trainer)
        assert evaluation is not None, "it has just been made"
        said = silent_answers(evaluation.rows.values())
        if said is None:
            return
        first = next(key for key, row in evaluation.rows.items() if row.get("degenerate"))
        warnings.warn(
            f"{said}{' before unlearning' if before else ''} (first {first[0]} {first[1]}): no metric of answers can "
            f"tell what such a model knows. Likely {_cause(data, pl_module, ' empty' in said)}",
            stacklevel=2,
        )


def silent_answers(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Sentence that nearly all greedy answers are empty or repeat themselves; None if they are not.

    Args:
        rows: Rows of an evaluation; those with the fields of `Fluency` are counted.
    """
    seen = [row for row in rows if "degenerate" in row]
    if not seen or sum(bool(row["degenerate"]) for row in seen) < _NEARLY_ALL * len(seen):
        return None
    empty = sum(bool(row["empty"]) for row in seen)
    repeated = sum(bool(row["repeated"]) for row in seen)
    kinds = ((empty, "are empty"), (repeated, "repeat themselves"))
    return " and ".join(f"{count} of {len(seen)} greedy answers {kind}" for count, kind in kinds if count)


def _is_beside_chat(data: UnlearningData) -> bool:
    """True if a plain template is used although the tokenizer has a chat template."""
    return isinstance(data.template, PlainTemplate) and bool(data.tokenizer.chat_template)


def _cause(data: UnlearningData, module: Any, empty: bool) -> str:
    """Most likely cause of silent answers, as advice."""
    if _is_beside_chat(data):
        return "the template: the tokenizer has a chat template of its own; leave out --data.template to take it"
    stops = ", ".join(repr(data.tokenizer.decode([token])) for token in module.stop_ids)
    template = f"the template, {data.template}, which is not the one that the model was trained on (--data.template)"
    return f"{template}, or a token that ends its answers too early: {stops} do" if empty else template
