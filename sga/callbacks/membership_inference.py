"""Membership inference: can the forget data still be told from data that the model never saw?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl

from sga.batching.batch import collate
from sga.callbacks.evaluator import EvaluationCallback
from sga.callbacks.model_utility import note_cut_texts, note_empty_answers, reasons
from sga.datamodule import EvaluationData
from sga.errors import check_numbers
from sga.evaluation.aggregation import add_membership
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.gradient_norms import gradient_norm
from sga.evaluation.metrics import min_k_plus_plus_score, min_k_score, zlib_score
from sga.evaluation.reference import fill_reference_scores, min_k_aucs
from sga.evaluation.requests import Answers, Request, record_score
from sga.models.sharding import is_sharded


class MembershipInference(EvaluationCallback):
    """AUC of five scores between forget (members) and holdout (never trained on), and PrivLeak.

    The scores: loss, Min-K %, Min-K %++, loss per compressed byte (zlib), loss minus the reference model's and, with
    `gradient_norm`, the norm of the loss's gradient as a sixth.
    """

    def __init__(
        self, min_k_share: float = 0.4, reference_auc: float | None = None, gradient_norm: bool = False
    ) -> None:
        """Checks the settings.

        Args:
            min_k_share: Share of tokens, the least likely ones, that Min-K % averages; MUSE uses 0.4.
            reference_auc: AUC of Min-K % of a retrained model, 1.0 = members recognised perfectly; null takes it from
                --evaluation.reference. 0.5 is open-unlearning's default, which is not a retrained model's value.
            gradient_norm: True to also attack by gradient norm, which costs a backward pass for each forget and holdout
                row, and the memory of a gradient.
        """
        check_numbers(above=0, at_most=1, min_k_share=min_k_share)
        check_numbers(0, below=1, reference_auc=reference_auc)
        self.min_k_share = min_k_share
        self.reference_auc = reference_auc
        self.gradient_norm = gradient_norm
        self._module: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._module = pl_module

    def settings(self) -> dict[str, str]:
        return {"min_k_share": str(self.min_k_share)}

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        if "holdout" in data.sets:
            for name in ("forget", "holdout"):
                yield from (record_score(record, detail=True) for record in data.sets.get(name, ()))

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        why = reasons(data)
        if "holdout" in data.sets:
            for name in ("forget", "holdout"):
                self._fill(name, data, answers, evaluation)
                if self.gradient_norm:
                    self._fill_gradient_norms(name, data, evaluation)
                note_cut_texts(name, data, answers, evaluation)
            note_empty_answers("holdout", map(record_score, data.sets["holdout"]), answers, evaluation)
        aucs = [] if self.reference_auc is None else [self.reference_auc]
        if not aucs and data.references:
            aucs, lacking = min_k_aucs(data.references)
            why["forget/privleak"] = f"{' and '.join(lacking)} has no AUC of Min-K % for these rows"
        elif not aucs:
            why["forget/privleak"] = "no reference: give a retrained model's run (--evaluation.reference)"
        why.setdefault("holdout/reference", "no reference with losses of forget and holdout (--evaluation.reference)")
        add_membership(evaluation, aucs, why)

    def _fill(self, name: str, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        losses = [reference.losses(name) for reference in data.references]
        for record in data.sets.get(name, ()):
            row = evaluation.row(name, record)
            scores = answers.scores(record_score(record))
            text = scores.text
            assert text.means is not None and text.variances is not None, "details were asked for"
            row["avg_nll"] = scores.avg_nll
            row["min_k"] = min_k_score(text.log_probs, self.min_k_share)
            row["min_k_plus_plus"] = min_k_plus_plus_score(text.log_probs, text.means, text.variances, self.min_k_share)
            row["zlib"] = zlib_score(scores.avg_nll, record.answer)
            fill_reference_scores(row, record.id, losses)

    def _fill_gradient_norms(self, name: str, data: EvaluationData, evaluation: Evaluation) -> None:
        module = self._module
        if is_sharded(module.model):
            why = "weights in parts (FSDP) have no gradient of single rows"
            evaluation.absent[f"{evaluation.name}/mia/gradient_norm"] = why
            return
        records, found = data.sets.get(name, ()), []
        for sequence in data.encoder.encode_all([(record.question, record.answer) for record in records])[0]:
            batch = module.transfer_batch_to_device(collate([[sequence]]), module.device, 0)
            with module.trainer.precision_plugin.forward_context():
                found.append(gradient_norm(module.model, batch))
        # All processes take the first one's values: rounding must not make their AUCs differ.
        for record, value in zip(records, module.trainer.strategy.broadcast(found), strict=True):
            evaluation.row(name, record)["gradient_norm"] = value
