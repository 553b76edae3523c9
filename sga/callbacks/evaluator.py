"""What every metric callback shares, and the callback that runs them: on all processes, each question once."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers

from sga.datamodule import EvaluationData
from sga.errors import UserError
from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.cache import AnswerCache, model_key
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.reference import RetainReference, are_first_rows, reference_for
from sga.evaluation.request_batches import RequestBatches
from sga.evaluation.requests import Answer, Answers, Generation, Request
from sga.models.sharding import is_sharded
from sga.runs.references import read_retain_reference
from sga.runs.setting_checks import check_trainer

ANSWERS_FOLDER = ".answers"


class EvaluationCallback(pl.Callback):
    """A group of metrics. All callbacks' requests are answered together, each one once, on all processes."""

    @abstractmethod
    def requests(self, data: EvaluationData) -> Iterable[Request]:
        """What this callback needs to know; duplicates (its own and others') cost nothing."""

    def settings(self) -> dict[str, str]:
        """What this callback's metrics depend on besides the answers, by name; kept with results."""
        return {}

    @abstractmethod
    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        """Adds this callback's metrics, rows and absences to `evaluation`."""


class Evaluator(pl.Callback):
    """Owns the evaluations: collects answers over batches and processes, has the metric callbacks compute, and logs.

    It also sees to it that the last weights are evaluated. An evaluation is made whole or not at all.
    """

    def __init__(self, reference: str | None = None, answers: str | None = "auto", resamples: int = 1000) -> None:
        """Notes where the reference is; it is read before training starts.

        Args:
            reference: What forget quality and PrivLeak compare with, made by a model trained without the forget data:
                its run folder, a rows.jsonl, TOFU's eval_log_aggregated.json or open-unlearning's TOFU_EVAL.json.
                Without it they are absent.
            answers: Folder of answers that are kept, by the content of weights, tokens and settings, so that nothing is
                computed twice; ``auto`` is ``.answers`` beside the run folder, null keeps none. While training only the
                starting model's answers are kept.
            resamples: Bootstrap resamples of the intervals; 0 leaves intervals out.
        """
        if resamples < 0:
            raise UserError(f"resamples must be at least 0, got {resamples}")
        self.reference_path = reference
        self.answers_folder = answers
        self.resamples = resamples
        self.keeps_texts = True
        """False leaves generated answers out of what is kept; set by the run's ``texts``."""
        self.evaluation: Evaluation | None = None
        """The last one; None before the first."""
        self._batches: RequestBatches | None = None
        self._answers: dict[int, Answer] = {}
        """Of the evaluation that is under way, by job: what is known, and what this process has computed."""
        self._reference: RetainReference | None = None
        self._store: AnswerCache | None = None
        self._evaluated_step = -1

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated_step": self._evaluated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluated_step = state_dict["evaluated_step"]

    # ---- the trainer's flags ------------------------------------------------------------------------------------

    def _set_limits(self, trainer: pl.Trainer) -> None:
        """Whole evaluations only, whatever a trainer's flags for quick looks make of it."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.limit_val_batches = trainer.limit_test_batches = trainer.limit_predict_batches = 1.0
        elif trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            trainer.limit_val_batches = 1.0  # it is about batches to train on
        names = ("limit_val_batches", "limit_test_batches", "limit_predict_batches")
        check_trainer({name: getattr(trainer, name) for name in names})
        if 0 < trainer.num_sanity_val_steps < math.inf and trainer.limit_val_batches > 0:
            if trainer.is_global_zero:
                print(
                    f"trainer.num_sanity_val_steps {trainer.num_sanity_val_steps}: the evaluation before the first "
                    "step is made whole, as with -1; 0 leaves it out"
                )
            trainer.num_sanity_val_steps = math.inf

    # ---- the reference -----------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._set_limits(trainer)
        if self.reference_path is not None and stage != "predict":
            self._reference = read_retain_reference(self.reference_path)
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._aligned(data.evaluation_data(every_row=stage == "test"))  # differences are said before training

    def _aligned(self, data: EvaluationData) -> RetainReference | None:
        """The reference's numbers for the forget set, in its order; None without a reference."""
        if self._reference is None or "forget" not in data.sets:
            return None
        ids = [record.id for record in data.sets["forget"]]
        if self._reference.ids is None and not are_first_rows(ids):
            raise UserError(
                f"{self.reference_path} has no ids, so its rows belong to the first rows of the forget set; leave "
                "out --data.evaluation_rows and --data.source.forget_rows, or use a reference run of this program"
            )
        return reference_for(self._reference, ids, data.settings)

    # ---- answers that are there already ------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, pl_module, "validate")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, pl_module, "test")

    def _start(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        self._batches = module.data.request_batches(stage)
        self._store = None
        self._answers = self._known(trainer, module, self._batches)
        self._batches.known = set(self._answers)

    def _known(self, trainer: pl.Trainer, module: Any, batches: RequestBatches) -> dict[int, Answer]:
        # Weights in the middle of training never come again.
        if self.answers_folder is None or (trainer.state.fn == "fit" and trainer.global_step > 0):
            return {}
        sharded = is_sharded(module.model)
        device = trainer.strategy.root_device
        settings = {
            **module.data.evaluation_settings,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "float32_matmul": torch.get_float32_matmul_precision(),
            "attention": str(getattr(module.model.config, "_attn_implementation", None)),  # no part of to_dict()
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "stop_ids": str(module.stop_ids),
            **({"weights": "rounded"} if sharded and trainer.precision == "bf16-mixed" else {}),  # see `shard`
        }
        # Of weights in parts every process has to give its own.
        key = model_key(module.model, settings) if sharded or trainer.is_global_zero else ""
        known: dict[int, Answer] = {}
        if trainer.is_global_zero:
            run_folder = Path(trainer.default_root_dir)
            folder = run_folder.parent / ANSWERS_FOLDER if self.answers_folder == "auto" else Path(self.answers_folder)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"--evaluation.answers {folder}: no folder can be made there ({error.strerror}); "
                    "choose another, or null to keep no answers"
                ) from None
            self._store = AnswerCache(folder, key)
            known = self._store.find(batches.jobs)
            if known:
                print(f"{len(known)} of {len(batches.jobs)} answers of this model are in {folder} already")
        return trainer.strategy.broadcast(known)

    def _keep(self, batches: RequestBatches) -> None:
        if self._store is None:
            return
        new = {index: answer for index, answer in self._answers.items() if index not in batches.known}
        if not self.keeps_texts:
            new = {index: answer for index, answer in new.items() if not isinstance(answer, Generation)}
        try:
            self._store.add(batches.jobs, new)
        except OSError as error:  # a full disk, say: the evaluation itself has all that it needs
            warnings.warn(f"the answers are not kept for later evaluations: {error}", stacklevel=2)

    # ---- metrics -----------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run that ends within an epoch (max_steps, an early stop) has not been evaluated where it ended.
        if self._evaluated_step != trainer.global_step and trainer.enable_validation:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes an evaluation within an epoch that was due at the checkpoint's step and is not in it.

        The checkpoint may be of before that evaluation, which Lightning takes for made; one that was made after it, and
        is in the run folder already, gives the same again.
        """
        if self._evaluated_step == trainer.global_step or not _is_due(trainer):
            return
        trainer.validating = True
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        loop.run()
        trainer.training = True

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *batch: Any
    ) -> None:
        self._answers |= outputs

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *batch: Any) -> None:
        self._answers |= outputs

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluate(trainer, pl_module, "validate")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluate(trainer, pl_module, "test")

    def _evaluate(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        data: EvaluationData = module.data.evaluation_data(every_row=stage == "test")
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._answers)
            self._answers = {index: answer for part in parts for index, answer in part.items()}
        assert self._batches is not None, "the evaluation has started"
        self._keep(self._batches)
        self._evaluated_step = trainer.global_step
        bootstrap = Bootstrap(self.resamples, module.data.seed) if self.resamples else None
        evaluation = Evaluation(data.name, bootstrap=bootstrap)
        data = replace(data, reference=self._aligned(data))
        if data.reference is not None:
            evaluation.notes += data.reference.notes
        answers, self._answers = self._batches.answers(self._answers), {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EvaluationCallback):
                callback.evaluate(data, answers, evaluation)
        evaluation.leave_out_non_finite()
        self.evaluation = evaluation
        # For ModelCheckpoint, EarlyStopping and the like. The run folder's own files are written by RunFiles, which
        # also sees the evaluation before the first step, when Lightning drops what is logged here.
        module.log_dict(evaluation.values(), logger=False, sync_dist=trainer.world_size > 1)


def _is_due(trainer: pl.Trainer) -> bool:
    """Whether an evaluation belongs to the batch within an epoch after which a run that goes on was saved."""
    loop = trainer.fit_loop.epoch_loop
    done, every = loop.batch_progress.current.ready, trainer.val_check_batch
    if trainer.ckpt_path is None or not trainer.enable_validation or not isinstance(every, int):
        return False
    if not 0 < done < trainer.num_training_batches or not loop._should_check_val_epoch():
        return False
    return (loop.total_batch_idx + 1 if trainer.check_val_every_n_epoch is None else done) % every == 0


def evaluation_of(trainer: pl.Trainer) -> Evaluation | None:
    """The last evaluation by the trainer's `Evaluator`; None before the first, or without one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback.evaluation for callback in callbacks if isinstance(callback, Evaluator)), None)
