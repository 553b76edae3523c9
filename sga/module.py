"""The LightningModule: a language model, a loss on groups, an optimiser; also answers evaluation requests."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded
from sga.datamodule import UnlearningData
from sga.errors import DivergenceError, UserError
from sga.evaluation.cache import weights_key
from sga.evaluation.inference import Inference, stop_tokens
from sga.evaluation.request_batches import GenerateBatch, ScoreBatch
from sga.evaluation.requests import Answer, Generation
from sga.likelihood.answer_tokens import AnswerTokens
from sga.likelihood.forward import ForwardOptions, answer_tokens, sequence_nll
from sga.likelihood.tryouts import tried_options
from sga.losses.ascent import FineTuning, WeighingLoss
from sga.losses.base import Loss, Needs
from sga.models.adapters import has_adapter, is_adapter_weight
from sga.models.blocks import check_layers
from sga.models.compiled import compile_blocks, uncompiled
from sga.models.pretrained import PURE_BFLOAT16, LanguageModel
from sga.models.sharding import check_strategy, gather, is_sharded, scatter, shard
from sga.optimization import LinearSchedule, Schedule, adamw, fuse
from sga.rates.dynamic import NORMAL_PART, TrainingRate, gradient_diverged
from sga.rates.policies import RateState
from sga.runs.starting_model import StartingModel, starting_model

COMPILED_FROM = 500
"""Number of forward passes of a run from which on compiling the blocks, which takes up to a minute, pays off."""


class UnlearningModule(pl.LightningModule):
    """LightningModule that trains any causal language model with a loss on groups, and answers evaluation requests."""

    def __init__(
        self,
        language_model: LanguageModel,
        loss: Loss | None = None,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = LinearSchedule(),  # noqa: B008  (frozen)
        gradient_checkpointing: bool = False,
        packing: bool = True,
        max_logits: int | None = 1 << 28,
        compile: bool | None = None,
    ) -> None:
        """Stores the parts; weights are loaded when training or evaluation starts.

        Args:
            language_model: Source of the model and its tokenizer.
            loss: Unlearning method; needed for training only.
            optimizer: Optimiser of the trained weights; default AdamW with lr 1e-5 and weight decay 0.01.
            schedule: Schedule of the learning rate over the steps.
            gradient_checkpointing: True to recompute activations in the backward pass: less memory, more time.
            packing: True to put several sequences into a row, so that there is hardly any padding. Changes memory and
                speed, never the result; a model that does not support packing is noticed before training.
            max_logits: Largest number of logits of answer tokens in memory in a training step (4 bytes each, and as
                much again for their gradients); beyond it they are computed in chunks, twice. null for no limit.
                Changes memory and speed only. On Hopper GPUs Liger's fused head is used instead, if it is installed and
                gives the right numbers.
            compile: True to compile the transformer blocks with torch.compile, on any device and for evaluation too.
                null compiles for training on a GPU, in runs of 500 forward passes and more, if a try-out of about a
                minute gives the same numbers.
        """
        super().__init__()
        self.language_model = language_model
        self.loss = loss
        self.optimizer = optimizer
        self.schedule = schedule
        self.gradient_checkpointing = gradient_checkpointing
        if max_logits is not None and max_logits < 1:
            raise UserError(f"max_logits must be at least 1, or null for no limit, got {max_logits}")
        self.packing, self.max_logits, self.compile_blocks = packing, max_logits, compile
        self.forward_options = ForwardOptions()
        """Way of feeding training batches to the model, as far as it supports it; set in `on_fit_start`."""
        self.model: PreTrainedModel | None = None
        self.rate: TrainingRate | None = None
        """Dynamic number of the loss, if a policy sets it; None otherwise."""
        if isinstance(loss, WeighingLoss) and loss.policy is not None:
            self.rate = TrainingRate(loss.policy, loss)
        self.tokens: Counter[str] = Counter()
        """Number of tokens that went through the model in training steps (``tokens``) and through the starting model
        (``reference_tokens``), in this process, since the counter was last read and cleared."""
        self._frozen: str | None = None
        """Hash of the frozen weights beside an adapter, which checkpoints leave out; None without an adapter."""
        self._starting: StartingModel | None = None
        self._inference: Inference | None = None
        self._plain_blocks = ExitStack()
        """Context of eager blocks during an evaluation, closed at its end."""
        self._step_means: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        """Losses of the step's micro-batches that have not been checked yet."""

    # ---- weights -----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        check_strategy(self.trainer, self.language_model)
        if stage == "fit":
            if self.loss is None:
                raise UserError("training needs a loss: set model.loss, or evaluate the model with sga validate")
            if self.data.train_on != ("forget",) and not isinstance(self.loss, FineTuning):
                raise UserError(
                    f"train_on {list(self.data.train_on)} is for plain fine-tuning; {type(self.loss).__name__} would "
                    "unlearn all of it: set --model.loss=sga.FineTuning, or --data.train_on=[forget]"
                )
            if not self.language_model.trainable:
                raise UserError(
                    f"{type(self.language_model).__name__} cannot be trained; evaluate it with sga validate"
                )
            weighs = isinstance(self.loss, WeighingLoss)  # other retain terms hold neighbours alone
            self.loss.check_group_size(self.data.group_size if weighs else self.data.neighbors + 1)
            steps = self.total_steps()
            try:  # what it lacks is said before weights are loaded
                optimizer = self.optimizer([torch.nn.Parameter(torch.zeros(1))])
            except (ValueError, TypeError) as error:
                raise UserError(f"model.optimizer: {error}") from None
            if self.rate is not None:
                accumulation = self.data.train_dataloader().accumulation
                self.rate.check(steps, optimizer, accumulation, self.trainer.world_size)

    def configure_model(self) -> None:
        if self.model is None:
            self.model = self.language_model.network(self.data.tokenizer)
            if has_adapter(self.model):
                self.strict_loading = False  # `on_load_checkpoint` is as strict about what there is to load
                state = self.model.state_dict()
                self._frozen = weights_key({name: w for name, w in state.items() if not is_adapter_weight(name)})
            if self.trainer.precision == "bf16-true":
                warnings.warn(PURE_BFLOAT16, stacklevel=2)
            if self.trainer.precision == "64-true":
                self.model.double()  # before a checkpoint is loaded: Lightning converts after it, which would round
            needs = self._needs
            check_layers(self.model, needs.hidden_layer, needs.trained_layers, needs.trained_weights)
            if self.gradient_checkpointing:
                self.model.gradient_checkpointing_enable()  # type: ignore[no-untyped-call]
            if self.compile_blocks:
                compile_blocks(self.model)
            shard(self.model, self.trainer.strategy, self.trainer.precision)

    @property
    def data(self) -> UnlearningData:
        """The data module of the trainer that this module is attached to."""
        data: object = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, UnlearningData):
            raise UserError(f"the trainer needs an UnlearningData as its datamodule, got {type(data).__name__}")
        return data

    def on_fit_start(self) -> None:
        self.forward_options = self._tried_out()
        self._starting, reference = starting_model(
            self._network,
            resumed=self.trainer.ckpt_path is not None,
            load=self._load_again,
            needs=self._needs,
            sequences=self.data.sequences(self._needs.reference_nll),
            score=self._score,
            folder=Path(self.trainer.default_root_dir),
            writes=self.trainer.is_global_zero,
        )
        scatter(self._network)
        self.data.set_reference(reference)
        self._network.train()  # from_pretrained returns a model in eval mode, and Lightning does not change it

    def _tried_out(self) -> ForwardOptions:
        """Requested options of feeding batches, without those that the model does not support."""
        some = {row for group in self.data.train_dataloader().groups[:32] for row in group}
        rows = sorted(some, key=lambda row: (len(row.ids), row.ids))
        sample = collate([[row] for row in (*rows[:3], rows[-1])], pad_id=self.data.tokenizer.pad_token_id or 0)
        return tried_options(
            self._network,
            self.transfer_batch_to_device(sample, self.device, 0),
            self.packing,
            self.max_logits,
            self.trainer.strategy.reduce_boolean_decision,
            self.trainer.precision_plugin.forward_context,
            compiled=self._worth_compiling,
        )

    @property
    def _worth_compiling(self) -> bool:
        """True if compilation should be tried by default: on a GPU, in a run that is long enough."""
        if self.compile_blocks is not None or self.device.type != "cuda" or is_sharded(self._network):
            return False
        passes = self.total_steps() * self.data.train_dataloader().accumulation
        return passes >= COMPILED_FROM and self._needs.hidden_layer is None

    def _load_again(self) -> PreTrainedModel:
        """Loads the starting model again, for a run whose own weights have changed."""
        network = self.language_model.network(self.data.tokenizer)
        if self.trainer.precision == "64-true":
            network.double()
        shard(network, self.trainer.strategy, self.trainer.precision, trained=False)
        network.to(self.device)  # type: ignore[arg-type]
        return network

    def _score(self, model: StartingModel, sequences: list[Encoded]) -> list[float]:
        """Negative log-likelihoods of sequences under the starting model, nats, summed over answer tokens."""
        found: list[float] = []
        rows = self.data.train_dataloader().micro_batch_size
        for start in range(0, len(sequences), rows):
            batch = collate(
                [[row] for row in sequences[start : start + rows]], pad_id=self.data.tokenizer.pad_token_id or 0
            )
            self.tokens["reference_tokens"] += batch.tokens
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            with self.trainer.precision_plugin.forward_context():
                found += model.answers(batch, options=self.forward_options).total_nll.flatten().tolist()
        return found

    # ---- training ----------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout has a random stream for each (seed, epoch, batch, process), so that a resumed run draws the same.
        stream = np.random.SeedSequence([self.data.seed, self.trainer.current_epoch, batch_idx, self.global_rank])
        torch.manual_seed(int(stream.generate_state(1, np.uint64)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.loss is not None, "setup() has checked"
        if self.rate is not None and self.rate.splits(self.global_step):
            return self._split_step(batch, self.rate)
        # Only sequences that the loss reads go through the forward pass.
        batch = batch.select(*self.loss.roles(self.global_step))
        answers = self._answer_tokens(batch)
        value = None if self.rate is None else self.rate.value(self.global_step, self.total_steps())
        loss = self.loss.of(answers) if value is None else self.loss.of(answers, value)
        self._check_divergence(loss)
        values = {f"train/{role}_nll": nll for role, nll in answers.mean_nll.items()}
        self._log_step({"train/loss": loss, **values}, batch)
        return loss * batch.scale

    def _answer_tokens(self, batch: Batch) -> AnswerTokens:
        """Numbers of the batch that the loss needs, and no others."""
        needs = self._needs
        self.tokens["tokens"] += batch.tokens
        answers = answer_tokens(self._network, batch, needs.logits, needs.hidden_layer, self.forward_options)
        if self._starting is None or not needs.reference:
            return answers
        beside = batch.select(*needs.reference)
        self.tokens["reference_tokens"] += beside.tokens
        return replace(
            answers, reference=self._starting.answers(beside, needs.logits, needs.hidden_layer, self.forward_options)
        )

    def _split_step(self, batch: Batch, rate: TrainingRate) -> Tensor:
        """Step with two backward passes: the rate's on ℓ_f, then Lightning's on the returned ℓ̄_n."""
        self.tokens["tokens"] += batch.tokens
        share = batch.scale / self.trainer.accumulate_grad_batches
        rate.begin(self._network, self.data.group_size, share, self.trainer.optimizers[0])
        forget = sequence_nll(self._network, batch.forget_only(), self.forward_options).mean()
        self._check_divergence(forget)
        rate.backward(forget * share, self._scaler)  # Lightning divides by the accumulated batches what it gets
        answers = answer_tokens(self._network, batch.normals_only(), options=self.forward_options)
        normal = answers.nll.mean()  # over normals of both kinds
        self._check_divergence(normal)
        values = {f"train/{role}_nll": nll for role, nll in answers.mean_nll.items()}
        self._log_step({"train/forget_nll": forget, NORMAL_PART: normal, **values}, batch)
        return normal * batch.scale

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Sets the rate after the step's last backward pass, before gradients are unscaled, checked and clipped."""

        def closure() -> Any:
            assert optimizer_closure is not None, "Lightning gives one"
            result = optimizer_closure()
            if self.rate is not None:
                self.rate.decide(
                    self.global_step,
                    self.total_steps(),
                    self.data.group_size,
                    self.trainer.world_size > 1 and not is_sharded(self._network),
                    self.trainer.strategy.broadcast,
                    self._scaler,
                )
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    @property
    def _needs(self) -> Needs:
        return self.loss.needs if self.loss is not None else Needs()

    @property
    def _scaler(self) -> Any:
        """The gradient scaler of fp16 under autocast; None otherwise."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _check_divergence(self, loss: Tensor) -> None:
        """Stores a loss to be checked together with the step's gradients, because each check synchronises the GPU."""
        self._losses.append(loss.detach())

    def _checked_means(self) -> dict[str, float]:
        """Logged means over the step's groups, of all micro-batches and processes.

        Stops the run before a NaN or infinite loss or gradient reaches the weights and the optimiser. All that the CPU
        has to know of a step is read at once, because each reading waits for the GPU.
        """
        losses, self._losses = self._losses, []
        means, self._step_means = self._step_means, {}
        wrong = torch.zeros((), dtype=losses[0].dtype, device=self.device)
        if self._scaler is None:  # a gradient scaler skips such a step itself
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
            # The largest magnitude takes one pass over the gradients, and no sum that could overflow.
            wrong = (~torch.isfinite(torch.nn.utils.get_total_norm(local, norm_type=math.inf))).to(wrong)
        shared = torch.stack([wrong, *means.values()])
        if self.trainer.world_size > 1:  # shards differ, and all processes have to stop
            shared = self.trainer.strategy.reduce(shared, reduce_op="mean")
        found = torch.cat([torch.stack(losses), shared]).tolist()  # the only synchronisation
        for loss in found[: len(losses)]:
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"the loss is {loss} at step {self.global_step}: training diverged; lower the learning rate, or "
                    "stop earlier (--trainer.max_epochs)"
                )
        if found[len(losses)]:
            raise gradient_diverged(self.global_step)
        return dict(zip(means, found[len(losses) + 1 :], strict=True))

    def _log_step(self, values: dict[str, Tensor], batch: Batch) -> None:
        """Adds a micro-batch's share to the means over the step's groups."""
        share = batch.scale / self.trainer.accumulate_grad_batches
        for name, value in values.items():
            self._step_means[name] = self._step_means.get(name, 0.0) + value.detach() * share

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Checks losses and gradients, and logs the step's means and the rate."""
        means = self._checked_means()
        rate = {} if self.rate is None else self.rate.log(means)
        for values, shown in ((means, True), (rate, False)):
            # As tensors on the CPU: Lightning would copy a float to the GPU, and wait several times to read it again.
            logged = torch.tensor([float(value) for value in values.values()], dtype=torch.float64).unbind()
            self.log_dict(dict(zip(values, logged, strict=True)), prog_bar=shown, batch_size=1)

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """State dict of all weights; for a model with an adapter of the adapter alone, as the others are frozen."""
        state: dict[str, Any] = super().state_dict(*arguments, **options)
        return state if self._frozen is None else {name: w for name, w in state.items() if is_adapter_weight(name)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._frozen is not None:
            checkpoint["frozen_weights"] = self._frozen
        if self.rate is not None:
            checkpoint["rate_state"] = asdict(self.rate.state)
            checkpoint["rate_values"] = list(self.rate.values)
        checkpoint["sharded"] = is_sharded(self._network)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights in the form of `state_dict`; for a model with an adapter the frozen weights stay."""
        if self._frozen is not None:
            state_dict = {**super().state_dict(), **state_dict}
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            said = f"the checkpoint is of another model than the configuration's ({' '.join(str(error).split()):.300})"
            raise UserError(f"{said}; give --model.language_model and --ckpt_path of one run") from None

    @classmethod
    def load_from_checkpoint(cls, *arguments: Any, **options: Any) -> NoReturn:
        """Refuses to load: a checkpoint lacks the network of its weights, which only the run folder names."""
        raise UserError("a checkpoint is not a whole model: use sga.load_run(FOLDER).load_model(CHECKPOINT) instead")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Optimiser states are keyed by parameter name under FSDP2, and otherwise by index among the trained weights.
        if self.trainer.state.fn == "fit" and checkpoint.get("sharded", False) != is_sharded(self._network):
            raise UserError(
                f"the checkpoint was made {'under' if checkpoint.get('sharded') else 'without'} --trainer.strategy "
                "fsdp2: go on in the same way, or start a new run from its model folder"
            )
        if checkpoint.get("frozen_weights") != self._frozen:
            raise UserError(
                "the checkpoint was made with another model beside its adapter, or one of the two has no adapter; give "
                "the --model.language_model of the run's config.yaml"
            )
        if self.rate is not None and "rate_state" in checkpoint:
            self.rate.state = RateState(**checkpoint["rate_state"])
            self.rate.values = list(checkpoint.get("rate_values", ()))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        if self._scaler is None:  # a fused optimiser would unscale gradients itself, after clipping
            fuse(optimizer)
        scheduler = self.schedule.scheduler(optimizer, self.total_steps(), self.data.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def total_steps(self) -> int:
        """Number of optimiser steps of the whole run."""
        # Not trainer.estimated_stepping_batches: it sets the loaders up before a checkpoint is loaded. Lightning would
        # then not restore their position, and a resumed run would start its epoch again.
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        planned = self.data.steps_per_epoch * epochs if epochs is not None and epochs >= 0 else steps
        if planned < 0:
            raise UserError("a schedule needs the length of the run: set --trainer.max_epochs or --trainer.max_steps")
        return min(planned, steps) if steps >= 0 else planned

    # ---- evaluation --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._inference = Inference(self._network, self.stop_ids)  # a new one, because it caches tokens of the weights
        gather(self._network)
        if not self.compile_blocks:
            self._plain_blocks.enter_context(uncompiled(self._network))

    def on_validation_epoch_end(self) -> None:
        self._plain_blocks.close()
        scatter(self._network)

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def validation_step(self, batch: ScoreBatch | GenerateBatch, batch_idx: int) -> dict[int, Answer]:  # type: ignore[override]
        """Answers by job index; `Evaluator` collects them."""
        assert self._inference is not None, "the epoch has started"
        return dict(zip(batch.indices, self._inference.answer(batch), strict=True))

    def test_step(self, batch: ScoreBatch | GenerateBatch, batch_idx: int) -> dict[int, Answer]:  # type: ignore[override]
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: GenerateBatch, batch_idx: int) -> list[tuple[int, tuple[int, ...]]]:
        assert self._inference is not None, "the epoch has started"
        answers = self._inference.answer(batch)
        # Token ids only: Lightning moves returned objects to the CPU, and fails on frozen dataclasses.
        return [
            (i, answer.ids) for i, answer in zip(batch.indices, answers, strict=True) if isinstance(answer, Generation)
        ]

    @property
    def stop_ids(self) -> list[int]:
        """Token ids that end a generated answer."""
        return stop_tokens(self.data.tokenizer, self._network)

    @property
    def _network(self) -> PreTrainedModel:
        assert self.model is not None, "configure_model() has run"
        return self.model
