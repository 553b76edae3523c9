"""Fluency: are the greedy answers to the forget questions and the reserved rows still language?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn

from sga.batching.batch import collate
from sga.batching.encoding import Encoded
from sga.callbacks.evaluator import EvaluationCallback, callback_of
from sga.callbacks.model_utility import ModelUtility
from sga.data.records import Record
from sga.datamodule import EvaluationData
from sga.errors import UserError
from sga.evaluation.aggregation import CLASSIFIER_FLUENCY, FLUENCY_PARTS, FLUENCY_SETS, add_fluency
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import fluency, repeats_ngram
from sga.evaluation.requests import Answers, Generation, Request
from sga.models.adapters import has_adapter
from sga.models.classifier import FluencyClassifier
from sga.models.pretrained import Pretrained
from sga.models.sharding import is_sharded
from sga.runs.starting_model import StartingModel

_ROWS = 8
"""Number of answers that the starting model scores in one forward pass."""


class Fluency(EvaluationCallback):
    """N-gram entropy of greedy answers, shares of empty and repeating ones, and their nll under the starting model.

    Computed on the forget set and the reserved rows, from the answers that model utility generates.
    """

    def __init__(
        self,
        tokens: int = 32,
        starting_model: str | None = None,
        classifier: str | None = None,
        classifier_label: str | None = None,
    ) -> None:
        """Checks the settings.

        Args:
            tokens: Number of tokens at the beginning of each answer that the n-gram entropy is computed on, at least 4.
            starting_model: Source of a second copy of the starting model, which scores the answers: ``own`` for the
                model that the run starts from, or a folder or name on the Hub, for `sga validate` of a finished model.
                It takes the memory of one more copy of the weights. With null only LoRA runs have the nll under the
                starting model: they switch their adapter off, which takes no memory (``own`` does the same there).
            classifier: Folder or Hub name of a sequence classifier that tells fluent text from gibberish. Its
                probability of `classifier_label` becomes ``classifier_fluency``, which the composite score's utility
                then takes in place of the n-gram entropy.
            classifier_label: Label of fluent text, as the classifier's configuration has it, such as ``clean``.
        """
        if tokens < 4:
            raise UserError(f"tokens must be at least 4, the shortest that has two 3-grams, got {tokens}")
        if (classifier is None) != (classifier_label is None):
            raise UserError(
                "fluency.classifier and fluency.classifier_label belong together: the folder of a sequence classifier, "
                "and the label of fluent text in its id2label"
            )
        self.tokens = tokens
        self.classifier, self.classifier_label = classifier, classifier_label
        self._classifier: FluencyClassifier | None = None
        self.starting_model = starting_model
        self._utility: ModelUtility | None = None
        self._module: Any = None
        self._trains = False
        self._starting: nn.Module | None = None

    def settings(self) -> dict[str, str]:
        stated = {} if self.tokens == 32 else {"fluency_tokens": str(self.tokens)}  # older logs leave out the 32
        if self.classifier is not None:
            stated["fluency_classifier"] = f"{Path(self.classifier).name}: {self.classifier_label}"
        return stated

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.classifier is not None and self.classifier_label is not None and self._classifier is None:
            self._classifier = FluencyClassifier(self.classifier, self.classifier_label)
        self._utility = callback_of(trainer, ModelUtility)
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
            return  # benchmarks of plain text have no questions to answer
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
            self._add_probabilities(name, [record for record, _ in asked], found, evaluation)
            self._add_nll(data, name, [record for record, _ in asked], found, evaluation)
        add_fluency(evaluation)

    def _why_nothing(self, data: EvaluationData, name: str) -> str:
        records = data.sets.get(name, ())
        if not records:
            return data.absent.get(name, f"there is no {name} set")
        if any(record.is_text for record in records):
            return "plain text has no question to answer"
        return "generation is switched off" if self._utility is not None else "no ModelUtility generates answers"

    def _add_probabilities(
        self, name: str, records: Sequence[Record], found: Sequence[Generation], evaluation: Evaluation
    ) -> None:
        if self._classifier is None:
            return
        module = self._module
        shares = self._classifier.probabilities([one.text for one in found], module.device)
        # All processes take the first one's, as with the nll below.
        for record, share in zip(records, module.trainer.strategy.broadcast(shares), strict=True):
            evaluation.row(name, record)[CLASSIFIER_FLUENCY] = share

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
        # Only rows with an answer count, so they have resamples of their own.
        of = f"{name}/answered"
        draws = None if evaluation.bootstrap is None else evaluation.bootstrap.ratios(of, nll, lengths)
        evaluation.add(metric, float(nll.sum() / lengths.sum()), draws, {of: len(nll)})

    def _starting_network(self) -> tuple[nn.Module | None, str]:
        """The starting model and an empty text, or None and the reason why there is none."""
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
        self._starting = None  # frees its memory

    def _total_nll(self, network: nn.Module, sequences: Sequence[Encoded]) -> list[float]:
        """Negative log-likelihood of each answer under the starting model, in nats, summed over its tokens.

        Every process computes, because sharded weights need all of them, and all use the first one's values: a stopping
        rule decides by them, and if rounding made one process choose otherwise, the others would wait for it forever.
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
    """True if an answer is empty, and true if it repeats itself."""
    # An answer of special tokens or white space alone is empty, whatever its number of tokens.
    return not generation.text.strip(), repeats_ngram(generation.ids)


def is_degenerate(generation: Generation) -> bool:
    """True if an answer is empty or repeats itself."""
    return any(_faults(generation))


def _parts(generation: Generation, length: int) -> dict[str, float]:
    empty, repeated = _faults(generation)
    return {
        "fluency": 0.0 if empty else fluency(generation.ids, length),
        "empty": float(empty),
        "repeated": float(repeated),
        "degenerate": float(empty or repeated),
    }
