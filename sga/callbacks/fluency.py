"""Fluency: whether the greedy answers of the forget set and of the reserved rows are still language."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn

from sga.batching.batch import collate
from sga.batching.encoding import Encoded
from sga.callbacks.evaluator import EvaluationCallback
from sga.callbacks.model_utility import ModelUtility
from sga.data.records import Record
from sga.datamodule import EvaluationData
from sga.errors import UserError
from sga.evaluation.aggregation import FLUENCY_PARTS, FLUENCY_SETS, add_fluency
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import fluency, repeats_ngram
from sga.evaluation.requests import Answers, Generation, Request
from sga.models.adapters import has_adapter
from sga.models.pretrained import Pretrained
from sga.models.sharding import is_sharded
from sga.runs.starting_model import StartingModel

_ROWS = 8
"""Answers that the starting model scores in one pass."""


class Fluency(EvaluationCallback):
    """N-gram entropy of greedy answers, shares of empty and of repeating ones, and their nll under the starting model.

    Of the forget set and of the reserved rows. The answers are those that model utility generates.
    """

    def __init__(self, tokens: int = 32, starting_model: str | None = None) -> None:
        """Checks the settings.

        Args:
            tokens: Number of tokens of each answer that its n-gram entropy is taken of, at least 4.
            starting_model: Where to load the starting model from, a second time, to score the answers with it: ``own``
                for what the run starts from, or a folder or name on the Hub, for `sga validate` of a finished model.
                Takes the memory of one more copy of the weights. null: only runs with LoRA have the nll under the
                starting model; their adapter is switched off, as for ``own``, which takes no memory.
        """
        if tokens < 4:
            raise UserError(f"tokens must be at least 4, the shortest that has two 3-grams, got {tokens}")
        self.tokens = tokens
        self.starting_model = starting_model
        self._utility: ModelUtility | None = None
        self._module: Any = None
        self._trains = False
        self._starting: nn.Module | None = None

    def settings(self) -> dict[str, str]:
        return {} if self.tokens == 32 else {"fluency_tokens": str(self.tokens)}  # as logs that do not say had

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self._utility = next((callback for callback in callbacks if isinstance(callback, ModelUtility)), None)
        self._module, self._trains, self._starting = pl_module, stage == "fit", None

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        for name in FLUENCY_SETS:
            yield from (request for _, request in self._asked(data.sets.get(name, ())))

    def _asked(self, records: Sequence[Record]) -> list[tuple[Record, Any]]:
        if self._utility is None or not self._utility.generates(records):
            return []
        return [(record, self._utility.generation(record)) for record in records]

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        if all(record.is_text for record in data.sets.get("forget", ())):
            return  # benchmarks of plain text have no questions, and so no answers
        for name in FLUENCY_SETS:
            prefix = f"{evaluation.name}/{name}"
            asked = self._asked(data.sets.get(name, ()))
            if not asked:
                why = self._why_nothing(data, name)
                evaluation.absent |= {f"{prefix}/{part}": why for part in (*FLUENCY_PARTS, "generation_nll")}
                continue
            found = [answers.generation(request) for _, request in asked]
            columns = {part: [_parts(one, self.tokens)[part] for one in found] for part in FLUENCY_PARTS}
            for (record, _), one, *values in zip(asked, found, *columns.values(), strict=True):
                row = evaluation.row(name, record)
                row |= dict(zip(FLUENCY_PARTS, values, strict=True))
                row["generation_tokens"] = len(one.ids)
            self._add_nll(data, name, [record for record, _ in asked], found, evaluation)
        add_fluency(evaluation)

    def _why_nothing(self, data: EvaluationData, name: str) -> str:
        records = data.sets.get(name, ())
        if not records:
            return data.absent.get(name, f"there is no {name} set")
        if any(record.is_text for record in records):
            return "plain text has no question to answer"
        return "generation is switched off" if self._utility is not None else "no ModelUtility generates answers"

    def _add_nll(
        self,
        data: EvaluationData,
        name: str,
        records: Sequence[Record],
        generations: Sequence[Generation],
        evaluation: Evaluation,
    ) -> None:
        metric = f"{evaluation.name}/{name}/generation_nll"
        starting, why = self._starting_network()
        spoken = [(record, one) for record, one in zip(records, generations, strict=True) if one.ids]
        if starting is None or not spoken:
            evaluation.absent[metric] = why if starting is None else "every answer is empty"
            return
        sequences = [data.encoder.encode_prompt(record.question) for record, _ in spoken]
        encoded = [Encoded((*ids, *one.ids), len(ids)) for ids, (_, one) in zip(sequences, spoken, strict=True)]
        totals = self._total_nll(starting, encoded)
        lengths = np.array([row.answer_length for row in encoded], dtype=np.float64)
        for (record, _), total, length in zip(spoken, totals, lengths, strict=True):
            evaluation.row(name, record)["generation_nll"] = total / length
        nll = np.array(totals)
        # The rows are those with an answer: not the resamples of the set.
        of = f"{name}/answered"
        draws = None if evaluation.bootstrap is None else evaluation.bootstrap.ratios(of, nll, lengths)
        evaluation.add(metric, float(nll.sum() / lengths.sum()), draws, {of: len(nll)})

    def _starting_network(self) -> tuple[nn.Module | None, str]:
        """The starting model, or why there is none."""
        module = self._module
        if self.starting_model in (None, "own") and not self._trains:
            return None, "only a run that trains knows its starting model; name it (--fluency.starting_model)"
        if self.starting_model in (None, "own") and has_adapter(module.model):
            return module.model, ""
        if self.starting_model is None:
            return None, "the starting model is not in memory: with full weights it takes --fluency.starting_model own"
        if is_sharded(module.model):
            return None, "weights in parts (FSDP) leave no room for the starting model"
        if self._starting is None:
            own = self.starting_model == "own"
            network = (module.language_model if own else Pretrained(self.starting_model)).network(module.data.tokenizer)
            if module.trainer.precision == "64-true":
                network.double()
            self._starting = network.to(module.device).requires_grad_(False)
        return self._starting, ""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._starting = None  # its memory goes back

    def _total_nll(self, network: nn.Module, sequences: Sequence[Encoded]) -> list[float]:
        """Negative log-likelihood of each answer under the starting model, in nats, summed over its tokens.

        Computed in every process, because weights in parts need all of them; all take the first one's. A rule decides
        by it, and where one process chose otherwise for a last bit, the others would wait for it to save.
        """
        module, model = self._module, StartingModel(network)
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].ids))
        found = [0.0] * len(sequences)
        for start in range(0, len(order), _ROWS):
            part = order[start : start + _ROWS]
            batch = collate([[sequences[index]] for index in part], pad_id=module.data.tokenizer.pad_token_id or 0)
            batch = module.transfer_batch_to_device(batch, module.device, 0)
            with torch.no_grad(), module.trainer.precision_plugin.forward_context():
                totals = model.answers(batch, options=module.forward_options).total_nll.flatten().tolist()
            for index, total in zip(part, totals, strict=True):
                found[index] = total
        return module.trainer.strategy.broadcast(found)  # type: ignore[no-any-return]


def _faults(generation: Generation) -> tuple[bool, bool]:
    """Whether an answer is empty, and whether it repeats itself."""
    # An answer of special tokens or white space alone is none, whatever its number of tokens.
    return not generation.text.strip(), repeats_ngram(generation.ids)


def is_degenerate(generation: Generation) -> bool:
    """Whether an answer is empty or repeats itself."""
    return any(_faults(generation))


def _parts(generation: Generation, length: int) -> dict[str, float]:
    empty, repeated = _faults(generation)
    return {
        "fluency": 0.0 if empty else fluency(generation.ids, length),
        "empty": float(empty),
        "repeated": float(repeated),
        "degenerate": float(empty or repeated),
    }
