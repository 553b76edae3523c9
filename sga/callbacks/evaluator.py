"""Base class of metric callbacks, and the callback that runs them on all processes, computing each request once."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import transformers

from sga.data.records import Record
from sga.datamodule import EvaluationData, UnlearningData
from sga.errors import UserError, check_numbers
from sga.evaluation.accumulated import torch_metric
from sga.evaluation.bootstrap import Bootstrap
from sga.evaluation.cache import AnswerCache, model_key
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.inference import most_rows, most_tokens
from sga.evaluation.reference import RetainReference, are_first_rows, reference_for
from sga.evaluation.request_batches import RequestBatches
from sga.evaluation.requests import Answer, Answers, Generate, Generation, Request
from sga.models.sharding import is_sharded
from sga.runs.references import read_retain_reference
from sga.runs.setting_checks import check_trainer

ANSWERS_FOLDER = ".answers"
C = TypeVar("C", bound=pl.Callback)


class EvaluationCallback(pl.Callback):
    """Base of callbacks that add metrics. Requests of all callbacks are answered together, each once."""

    def requests(self, data: EvaluationData) -> Iterable[Request]:
        """Requests to the model that the metrics need; duplicates, also of other callbacks, cost nothing."""
        return ()

    def settings(self) -> dict[str, str]:
        """Settings that the metrics depend on besides the answers, by name; written with results."""
        return {}

    @abstractmethod
    def evaluate(self, data: EvaluationData, answers: Answers, evaluation: Evaluation) -> None:
        """Adds this callback's metrics, rows and absences to `evaluation`."""


class Evaluator(pl.Callback):
    """Runs the evaluations: collects answers from batches and processes, calls the metric callbacks, and logs.

    It also evaluates the last weights of a run that ends within an epoch. An evaluation is always complete: limits on
    its batches are refused.
    """

    def __init__(
        self, reference: list[str] | str | None = None, answers: str | None = "auto", resamples: int = 1000
    ) -> None:
        """Notes where the reference is; it is read before training starts.

        Args:
            reference: Evaluation of a model trained without the forget data, which forget quality and PrivLeak compare
                with: its run folder, a rows.jsonl, TOFU's eval_log_aggregated.json or open-unlearning's TOFU_EVAL.json.
                A list for models of several seeds: forget quality is then the mean log10 p, with its range. Without a
                reference both metrics are absent.
            answers: Folder of the cache of answers, keyed by the content of weights, tokens and settings; ``auto`` is
                ``.answers`` beside the run folder, null caches nothing. A training run caches only the answers of its
                starting model.
            resamples: Number of bootstrap resamples for the intervals; 0 leaves intervals out.
        """
        check_numbers(0, resamples=resamples)
        self.reference_path = reference
        """The argument `reference`; see `reference_paths` for a list."""
        if len(set(self.reference_paths)) < len(self.reference_paths):
            raise UserError(f"--evaluation.reference names a reference twice: {', '.join(self.reference_paths)}")
        self.answers_folder = answers
        self.resamples = resamples
        self.keeps_texts = True
        """False keeps generated answers out of the cache; set by the run's ``texts``."""
        self.evaluation: Evaluation | None = None
        """The last evaluation; None before the first one."""
        self._asked: dict[str, RequestBatches] = {}
        self._batches: RequestBatches | None = None
        self._answers: dict[int, Answer] = {}
        """Answers of the current evaluation by job index: the cached ones, and those that this process has computed."""
        self._references: list[RetainReference] = []
        self._store: AnswerCache | None = None
        self._evaluated_step = -1

    def state_dict(self) -> dict[str, Any]:
        return {"evaluated_step": self._evaluated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluated_step = state_dict["evaluated_step"]

    # ---- the trainer's flags ------------------------------------------------------------------------------------

    def _set_limits(self, trainer: pl.Trainer) -> None:
        """Makes the evaluation complete under the trainer's flags for quick tries; refuses limits on its batches."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.limit_val_batches = trainer.limit_test_batches = trainer.limit_predict_batches = 1.0
        elif trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            trainer.limit_val_batches = 1.0  # the flag is about training batches
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
        trainer.datamodule.evaluator = self  # type: ignore[attr-defined]
        if self.reference_paths and stage != "predict":
            self._references = [read_retain_reference(path) for path in self.reference_paths]
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            self._aligned(data.evaluation_data(every_row=stage == "test"))  # raises on differences, before training

    @property
    def reference_paths(self) -> list[str]:
        """Paths of the references; empty without one."""
        given = self.reference_path
        return given if isinstance(given, list) else [] if given is None else [given]

    def _aligned(self, data: EvaluationData) -> tuple[RetainReference, ...]:
        """Numbers of each reference for the forget rows, in their order; empty without a reference."""
        if not self._references or "forget" not in data.sets:
            return ()
        ids = [record.id for record in data.sets["forget"]]
        without = next((one.source for one in self._references if one.forget_ids is None), None)
        if without is not None and not are_first_rows(ids):
            raise UserError(
                f"{without} has no ids, so its rows belong to the first rows of the forget set; leave "
                "out --data.evaluation_rows and --data.source.forget_rows, or use a reference run of this program"
            )
        return tuple(reference_for(reference, ids, data.settings) for reference in self._references)

    # ---- questions ----------------------------------------------------------------------------------------------

    def request_batches(self, trainer: pl.Trainer, stage: str) -> RequestBatches:
        """Requests of the metric callbacks in a stage, as batches (for predict: a greedy answer to every question)."""
        if stage not in self._asked:
            module: Any = trainer.lightning_module
            data, device = module.data, trainer.strategy.root_device
            requests = _predictions(data) if stage == "predict" else _questions(trainer, data, stage == "test")
            sizes = (
                data.evaluation_tokens or most_tokens(module.model, device),
                data.generation_rows or most_rows(module.model, device, data.encoder.max_length),
            )
            # Sizes of the first process for all: batches are dealt, so all processes have to form the same ones.
            sizes = trainer.strategy.broadcast(sizes)
            self._asked[stage] = RequestBatches(requests, data.encoder, *sizes, trainer.global_rank, trainer.world_size)
        return self._asked[stage]

    def settings(self, trainer: pl.Trainer) -> dict[str, str]:
        """Settings of all metric callbacks that metrics depend on besides the answers, by name."""
        return {name: value for callback in _metric_callbacks(trainer) for name, value in callback.settings().items()}

    # ---- answers that are there already ------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, pl_module, "validate")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer, pl_module, "test")

    def _start(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        self._batches = self.request_batches(trainer, stage)
        self._store = None
        self._answers = self._known(trainer, module, self._batches)
        self._batches.known = set(self._answers)

    def _known(self, trainer: pl.Trainer, module: Any, batches: RequestBatches) -> dict[int, Answer]:
        # Weights in the middle of training never occur again, so caching their answers is of no use.
        if self.answers_folder is None or (trainer.state.fn == "fit" and trainer.global_step > 0):
            return {}
        sharded = is_sharded(module.model)
        device = trainer.strategy.root_device
        settings = {
            **module.data.evaluation_settings,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "float32_matmul": torch.get_float32_matmul_precision(),
            "attention": str(getattr(module.model.config, "_attn_implementation", None)),  # missing in to_dict()
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "stop_ids": str(module.stop_ids),
            **({"weights": "rounded"} if sharded and trainer.precision == "bf16-mixed" else {}),  # see `shard`
        }
        # Every process has to take part in hashing sharded weights.
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
        except OSError as error:  # a full disk for instance; the evaluation itself does not need the cache
            warnings.warn(f"the answers are not kept for later evaluations: {error}", stacklevel=2)

    # ---- metrics -----------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run that ends within an epoch (max_steps, early stopping) has not been evaluated at its last step.
        if self._evaluated_step != trainer.global_step and trainer.enable_validation:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs an evaluation within an epoch that was due at the checkpoint's step but is not in the checkpoint.

        The checkpoint may have been written before that evaluation, which Lightning counts as done. If it was written
        after it, the evaluation in the run folder is repeated with the same result.
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
        evaluation = Evaluation(data.name, bootstrap=bootstrap, metric=torch_metric)
        data = replace(data, references=self._aligned(data))
        for reference in data.references:
            for note in reference.notes:
                evaluation.note(note)
        answers, self._answers = self._batches.answers(self._answers), {}
        for callback in _metric_callbacks(trainer):
            callback.evaluate(data, answers, evaluation)
        evaluation.leave_out_non_finite()
        self.evaluation = evaluation
        # For ModelCheckpoint, EarlyStopping and the like. The run folder's own files are written by RunFiles, which
        # also sees the evaluation before the first step, when Lightning drops what is logged here.
        module.log_dict(evaluation.values(), logger=False, sync_dist=trainer.world_size > 1)


def callback_of(trainer: pl.Trainer, kind: type[C]) -> C | None:
    """The trainer's first callback of a kind; None without one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def _is_due(trainer: pl.Trainer) -> bool:
    """True if a resumed run was saved after a batch within an epoch at which an evaluation is due."""
    loop = trainer.fit_loop.epoch_loop
    done, every = loop.batch_progress.current.ready, trainer.val_check_batch
    if trainer.ckpt_path is None or not trainer.enable_validation or not isinstance(every, int):
        return False
    if not 0 < done < trainer.num_training_batches or not loop._should_check_val_epoch():
        return False
    return (loop.total_batch_idx + 1 if trainer.check_val_every_n_epoch is None else done) % every == 0


def evaluation_of(trainer: pl.Trainer) -> Evaluation | None:
    """The last evaluation of the trainer's `Evaluator`; None before the first one, or without an `Evaluator`."""
    evaluator = callback_of(trainer, Evaluator)
    return None if evaluator is None else evaluator.evaluation


def _metric_callbacks(trainer: pl.Trainer) -> list[EvaluationCallback]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, EvaluationCallback)]


def _questions(trainer: pl.Trainer, data: UnlearningData, every_row: bool) -> Iterator[Request]:
    evaluation_data = data.evaluation_data(every_row)
    for callback in _metric_callbacks(trainer):
        yield from callback.requests(evaluation_data)


def _predictions(data: UnlearningData) -> Iterator[Request]:
    sets = data.evaluation_data(every_row=True).sets
    missing = [name for name in data.predict_sets if name not in sets]
    if missing:
        raise UserError(f"predict_sets names {', '.join(missing)}, but the evaluation sets are {', '.join(sets)}")
    for name in data.predict_sets:
        yield from (prediction_request(record) for record in sets[name] if not record.is_text)


def prediction_request(record: Record) -> Generate:
    """Request of `sga predict` for a record: its greedy answer of at most 200 tokens, as in open-unlearning."""
    return Generate(record.question, 200)
