"""Forget quality: would a model that never saw the forget data answer like this?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np

from sga.callbacks.evaluation import Evaluation, EvaluationCallback
from sga.callbacks.model_utility import add_likelihoods, likelihood_requests
from sga.datamodule import EvaluationData
from sga.errors import UserError
from sga.evaluation.metrics import forget_quality, log_truth_ratio, truth_ratio_forget
from sga.evaluation.reference import Reference, read_reference, reference_for
from sga.evaluation.requests import Answers, Request


class ForgetQuality(EvaluationCallback):
    """TOFU's forget quality against a reference made by a model trained without the forget data."""

    def __init__(
        self, reference: str | None = None, truth_ratio_mean: Literal["geometric", "arithmetic"] = "geometric"
    ) -> None:
        """Notes where the reference is; it is read before training starts.

        Args:
            reference: Run folder of the retain model, a rows.jsonl, TOFU's eval_log_aggregated.json or
                open-unlearning's TOFU_EVAL.json. Without it forget quality is absent.
            truth_ratio_mean: How the wrong answers' probabilities are averaged; geometric is what TOFU's aggregation
                does.
        """
        self.reference_path = reference
        self.truth_ratio_mean = truth_ratio_mean
        self._reference: Reference | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.reference_path is not None and stage != "predict":
            self._reference = read_reference(self.reference_path)
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            evaluation_data = data.evaluation_data(every_row=stage == "test")
            ids = [record.id for record in evaluation_data.sets.get("forget", ())]
            if self._reference.ids is None and [name.rsplit("/", 1)[-1] for name in ids] != [
                str(i) for i in range(len(ids))
            ]:
                raise UserError(
                    f"{self.reference_path} has no ids, so its rows belong to the first rows of the forget set; leave "
                    "out --data.evaluation_rows and --data.source.forget_rows, or use a reference run of this program"
                )
            reference_for(self._reference, ids, evaluation_data.settings)  # differences are said before training

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        return likelihood_requests(data.sets.get("forget", ()))

    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        name = f"{data.name}/forget_quality"
        if "forget" not in data.sets:
            evaluation.absent[name] = data.absent.get("forget", "there is no forget set")
            return
        records = data.sets["forget"]
        rows = add_likelihoods("forget", records, answers, evaluation)
        evaluation.metrics[f"{data.name}/forget/avg_nll"] = float(np.mean([row["avg_nll"] for row in rows]))
        lacking = [record.id for record in records if not record.perturbed_answers]
        if lacking:
            why = f"{len(lacking)} of {len(records)} forget records have no perturbed answers, {lacking[0]} first"
            evaluation.absent[name] = evaluation.absent[f"{data.name}/forget/truth_ratio"] = why
            return
        log_ratio = log_truth_ratio(
            [row["paraphrased_nll"] for row in rows], [row["perturbed_nll"] for row in rows], self.truth_ratio_mean
        )
        for row, value in zip(rows, log_ratio, strict=True):
            row["log_truth_ratio"] = float(value)
        evaluation.metrics[f"{data.name}/forget/truth_ratio"] = truth_ratio_forget(log_ratio)
        if self._reference is None:
            evaluation.absent[name] = (
                "no reference: give the run folder of a model trained without the forget data "
                "(--forget_quality.reference)"
            )
            return
        aligned = reference_for(self._reference, [record.id for record in records], data.settings)
        kept = slice(0, len(aligned))  # a foreign log of 300 rows cuts ours to its first 300
        quality = forget_quality(
            log_ratio[kept],
            aligned.log_truth_ratio(self.truth_ratio_mean),
            float(np.mean([row["avg_nll"] for row in rows[kept]])),
            None if aligned.answer_nll is None else float(aligned.answer_nll.mean()),
        )
        evaluation.notes += aligned.notes
        if quality.direction in ("under-unlearned", "over-unlearned"):
            evaluation.notes.append(
                f"forget quality is low because the model is {quality.direction}, by its forget nll"
            )
        evaluation.metrics |= {
            name: quality.p_value,
            f"{name}_log10": quality.log10_p,
            f"{data.name}/ks_statistic": quality.ks_statistic,
            f"{data.name}/ks_n": float(quality.n),
        }
