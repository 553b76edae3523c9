"""The LightningModule: a language model, a loss on nll [B, K], an optimiser."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import PreTrainedModel

from sga.batches import Batch
from sga.datamodule import UnlearningData
from sga.errors import DivergenceError, UserError
from sga.evaluation.inference import Inference
from sga.evaluation.plan import GenerateBatch, ScoreBatch
from sga.evaluation.requests import Answer, Generation
from sga.language_models import PURE_BFLOAT16, LanguageModel
from sga.likelihood import sequence_nll
from sga.losses import FineTuning, Loss
from sga.optimization import LinearSchedule, Schedule


def adamw(parameters: Any) -> torch.optim.AdamW:
    """TOFU's optimiser: AdamW, lr 1e-5, weight decay 0.01."""
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01)


class UnlearningModule(pl.LightningModule):
    """Trains any causal language model with a loss on the nll of groups, and answers evaluation requests."""

    def __init__(
        self,
        language_model: LanguageModel,
        loss: Loss | None = None,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = LinearSchedule(),  # noqa: B008  (frozen)
        gradient_checkpointing: bool = False,
    ) -> None:
        """Notes the parts; weights are loaded when training or evaluation starts.

        Args:
            language_model: Which model.
            loss: Which method; needed for training only.
            optimizer: Optimiser; default AdamW with lr 1e-5 and weight decay 0.01.
            schedule: Learning rate over the steps.
            gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        """
        super().__init__()
        self.language_model = language_model
        self.loss = loss
        self.optimizer = optimizer
        self.schedule = schedule
        self.gradient_checkpointing = gradient_checkpointing
        self.model: PreTrainedModel | None = None
        self.answers: dict[int, Answer] = {}
        """Of the evaluation that is under way, by the plan's jobs; this process's only, until they are gathered."""
        self._inference: Inference | None = None
        self._step_logs: dict[str, Tensor | float] = {}

    # ---- weights -----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if stage == "fit":
            if self.loss is None:
                raise UserError("training needs a loss: set model.loss, as in --model.loss=sga.SmoothedGradientAscent")
            if self.data.train_on != ("forget",) and not isinstance(self.loss, FineTuning):
                raise UserError(
                    f"train_on {list(self.data.train_on)} is for plain fine-tuning; {type(self.loss).__name__} would "
                    "unlearn all of it: set --model.loss=sga.FineTuning, or --data.train_on=[forget]"
                )
            self.loss.check_group_size(self.data.group_size)

    def configure_model(self) -> None:
        if self.model is None:
            self.model = self.language_model.network(self.data.tokenizer)
            if self.trainer.precision == "bf16-true":
                warnings.warn(PURE_BFLOAT16, stacklevel=2)
            if self.trainer.precision == "64-true":
                self.model.double()  # before a checkpoint is read: Lightning converts after it, which would round
            if self.gradient_checkpointing:
                self.model.gradient_checkpointing_enable()  # type: ignore[no-untyped-call]

    @property
    def data(self) -> UnlearningData:
        """The data module of the trainer that this module is attached to."""
        data: object = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, UnlearningData):
            raise UserError(f"the trainer needs an UnlearningData as its datamodule, got {type(data).__name__}")
        return data

    def on_fit_start(self) -> None:
        self._network.train()  # from_pretrained leaves a model in eval mode; Lightning keeps the mode it finds

    # ---- training ----------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout draws from a stream of its own for each (seed, batch, process): a resumed run draws the same.
        stream = np.random.SeedSequence([self.data.seed, self.trainer.current_epoch, batch_idx, self.global_rank])
        torch.manual_seed(int(stream.generate_state(1, np.uint64)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.loss is not None, "setup() has checked"
        # A loss that does not read normal samples gets [B, 1] and saves their part of the forward pass.
        nll = sequence_nll(self._network, batch if self.loss.uses_normals else batch.forget_only())  # [B, K]
        loss: Tensor = self.loss(nll)
        if not torch.isfinite(loss):
            raise DivergenceError(
                f"the loss is {loss.item()} at step {self.global_step}: training diverged. The weights of the last "
                "checkpoint are kept; lower the learning rate, or stop earlier (--trainer.max_epochs)"
            )
        self._log_step(loss.detach(), nll.detach(), batch)
        return loss * batch.scale

    def _log_step(self, loss: Tensor, nll: Tensor, batch: Batch) -> None:
        values = {"train/loss": loss, "train/forget_nll": nll[:, 0].mean()}
        if nll.shape[1] > 1:
            values["train/normal_nll"] = nll[:, 1:].mean()
        share = batch.scale / self.trainer.accumulate_grad_batches
        for name, value in values.items():
            self._step_logs[name] = self._step_logs.get(name, 0.0) + value * share

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs means over the step's groups, whatever the micro-batches and processes."""
        self.log_dict(self._step_logs, prog_bar=True, batch_size=1, sync_dist=self.trainer.world_size > 1)
        self._step_logs = {}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.optimizer(self.parameters())
        scheduler = self.schedule.scheduler(optimizer, self._total_steps(), self.data.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _total_steps(self) -> int:
        # Not trainer.estimated_stepping_batches: it sets the loaders up before a checkpoint is read, after which
        # Lightning does not give them their saved position back, and a resumed run starts its epoch again.
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        planned = self.data.steps_per_epoch * epochs if epochs is not None and epochs >= 0 else steps
        if planned < 0:
            raise UserError("a schedule needs the length of the run: set --trainer.max_epochs or --trainer.max_steps")
        return min(planned, steps) if steps >= 0 else planned

    # ---- evaluation --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._start_answering("validate")

    def on_test_epoch_start(self) -> None:
        self._start_answering("test")

    def on_predict_epoch_start(self) -> None:
        self._start_answering("predict")

    def _start_answering(self, stage: str) -> None:
        self.answers = dict(self.data.plan(stage).known)
        self._inference = Inference(self._network, self.stop_ids)  # a new one: it remembers what these weights say

    def validation_step(self, batch: ScoreBatch | GenerateBatch, batch_idx: int) -> None:
        assert self._inference is not None, "the epoch has started"
        self.answers.update(zip(batch.indices, self._inference.answer(batch), strict=True))

    def test_step(self, batch: ScoreBatch | GenerateBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: GenerateBatch, batch_idx: int) -> list[tuple[int, tuple[int, ...]]]:
        assert self._inference is not None, "the epoch has started"
        answers = self._inference.answer(batch)
        # Token ids: Lightning moves what is returned here, and fails on frozen dataclasses.
        return [
            (i, answer.ids) for i, answer in zip(batch.indices, answers, strict=True) if isinstance(answer, Generation)
        ]

    @property
    def stop_ids(self) -> list[int]:
        """End-of-sequence tokens of tokenizer and model (chat models end a turn with a token of its own)."""
        stops = {int(self.data.tokenizer.eos_token_id)}
        generation_config = self._network.generation_config
        configured = generation_config.eos_token_id if generation_config is not None else None
        stops.update([configured] if isinstance(configured, int) else configured or [])
        return sorted(stops)

    @property
    def _network(self) -> PreTrainedModel:
        assert self.model is not None, "configure_model() has run"
        return self.model
