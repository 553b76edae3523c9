"""The rate or weight that a loss uses during a run: one object from the backward pass to the log."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from sga.errors import DivergenceError, UserError
from sga.rates.geometry import Geometry, total
from sga.rates.policies import DynamicRate, RatePolicy, RateState
from sga.rates.split_backward import Metric, SplitGradients

NORMAL_PART = "normal_part"
"""Name under which a step in two parts gives ℓ̄_n, the mean over all normals, to `TrainingRate.log`; never logged."""


class Weighing(Protocol):
    """A loss w_f·ℓ_f + w_n·ℓ̄_n whose weights follow from one number."""

    parameter: str

    def weights(self, group_size: int, value: float) -> tuple[float, float]:
        """Weights w_f of ℓ_f and w_n of ℓ̄_n that a number stands for."""


class TrainingRate:
    """Sets the number of a loss by a policy, step by step, and remembers what the policy has to.

    A step whose gradients are wanted apart (`splits`) calls `begin` and, with ℓ_f, `backward` for each micro-batch
    and runs the backward pass of ℓ̄_n as usual; other steps take `value`. After the last backward pass of a step come
    `decide` and `log`.

    Args:
        policy: Rule or schedule that sets the number.
        loss: Loss whose weights follow from the number.
    """

    def __init__(self, policy: RatePolicy, loss: Weighing) -> None:
        self.policy, self.loss = policy, loss
        self.state = RateState()
        """State of the policy, kept in checkpoints; its `value` is the number in force."""
        self.geometry: dict[str, Geometry] = {}
        """Inner products by layer, of the last step at which the policy looked at gradients."""
        self.values: list[float] = []
        """Number in force at each optimiser step so far."""
        self._split: SplitGradients | None = None
        self._weights: tuple[float, float] | None = None
        self._group_size, self._share = 0, 1.0
        self._metric: Metric | None = None

    def check(self, total_steps: int, optimizer: Optimizer, micro_batches: int, processes: int) -> None:
        """Refuses what the policy cannot work with, before anything runs.

        Args:
            total_steps: Number of optimiser steps of the whole run.
            optimizer: An optimiser like the run's.
            micro_batches: Number of micro-batches of a whole step in each process.
            processes: Number of processes.

        Raises:
            UserError: the policy cannot set the number of so many steps; it reads Adam's metric under another
                optimiser; or it corrects for noise with one micro-batch or several processes.
        """
        self.policy.check_steps(total_steps)
        if not isinstance(self.policy, DynamicRate):
            return
        name = type(self.policy).__name__
        if self.policy.metric == "adam" and not isinstance(optimizer, (Adam, AdamW)):
            raise UserError(
                f"{name} with metric adam reads the second moments of torch.optim.Adam or AdamW, got "
                f"{type(optimizer).__name__}: take one of the two, or metric euclidean"
            )
        if self.policy.noise_corrected and (micro_batches < 2 or processes > 1):
            raise UserError(
                f"{name} with noise_corrected compares the micro-batches of a step in one process, got {micro_batches} "
                f"in each of {processes}: set --data.micro_batch_size to at most half of data.batch_size, and "
                "--trainer.devices 1"
            )

    def splits(self, step: int) -> bool:
        """True if the gradients of this step's forget and normal samples are wanted apart."""
        return self.policy.needs_gradients(self.state, step)

    def value(self, step: int, total_steps: int) -> float | None:
        """Number in force at a step that is not split; `decide` makes it the state's."""
        return self.policy.decide(self.state, step, total_steps, None).value

    def begin(self, network: nn.Module, group_size: int, share: float, optimizer: Optimizer) -> None:
        """Notes the parameters of a model before its forward pass, after which FSDP shows whole ones, not its parts.

        Args:
            network: Model whose parameters are trained.
            group_size: Number K of samples in a group.
            share: Share of the micro-batch in the step's mean loss.
            optimizer: Optimiser of the run, whose state some metrics need.
        """
        if self._split is None:
            self._split = SplitGradients(network.named_parameters())
            self._metric = adam_metric(optimizer) if self._dynamic.metric == "adam" else None
        elif self._dynamic.noise_corrected:
            self._split.set_apart(group_size, self._share, self._metric)
        self._share = share

    @property
    def _dynamic(self) -> DynamicRate:
        assert isinstance(self.policy, DynamicRate), "others ask for no gradients"
        return self.policy

    def backward(self, forget: Tensor, scaler: Any) -> None:
        """Adds the gradient of ℓ_f to a copy beside the parameters' ``grad``, where it waits for `decide`.

        Args:
            forget: Mean forget loss ℓ_f times the micro-batch's share of the step; a scalar.
            scaler: Gradient scaler of fp16; None otherwise.
        """
        assert self._split is not None, "`begin` came before the forward pass"
        part = forget if scaler is None else scaler.scale(forget)
        # Neither DDP's hooks (it waits for gradients only after training_step) nor autocast take part in this pass.
        with self._split.forget_part(), torch.autocast(part.device.type, enabled=False):
            part.backward()

    def decide(
        self,
        step: int,
        total_steps: int,
        group_size: int,
        average: bool = False,
        broadcast: Callable[[dict[str, Geometry]], dict[str, Geometry]] = lambda geometry: geometry,
        scaler: Any = None,
    ) -> None:
        """Decides on the number of this step and, if its backward pass was split, adds the parts into ``grad``.

        Args:
            step: Number of optimiser steps taken so far.
            total_steps: Number of optimiser steps of the whole run.
            group_size: Number K of samples in a group.
            average: True if backward passes average gradients over processes, as under DDP.
            broadcast: Function that gives all processes the first one's numbers, so that none decides otherwise for a
                last bit.
            scaler: Gradient scaler of fp16; None otherwise.

        Raises:
            DivergenceError: a gradient is not finite and there is no scaler, which would skip the step.
        """
        split, self._split, self._weights = self._split, None, None
        geometry = None
        if split is not None:
            if average:
                split.average()
            scale = 1.0 if scaler is None else scaler.get_scale()
            if self._dynamic.noise_corrected:
                split.set_apart(group_size, self._share, self._metric)
                split.restore()
            found = split.geometry(group_size, scale, self._metric)
            self.geometry = broadcast(split.without_noise(found, scale) if self._dynamic.noise_corrected else found)
            geometry = total(self.geometry.values())
            if not geometry.finite:
                if scaler is None:
                    raise gradient_diverged(step)
                split.combine(1.0, 1.0)  # whatever the weights, the scaler finds it and skips the step
                if self.state.value is not None:
                    self.values[step:] = [self.state.value]
                return
        first = self.state.value is None
        self.state = self.policy.decide(self.state, step, total_steps, geometry)
        assert self.state.value is not None, "a policy decides"
        # One number for each step, also for those that a scaler skipped before there was one.
        self.values[step:] = [self.state.value] * (step + 1 - len(self.values) if first else 1)
        self._weights, self._group_size = self.loss.weights(group_size, self.state.value), group_size
        if split is not None:
            split.combine(*self._weights)

    def log(self, step: MutableMapping[str, float]) -> dict[str, float]:
        """Number in force under all its names; of a dynamic policy also the gradients' numbers, last read.

        Args:
            step: Logged means over the step's groups; of a step in two parts `NORMAL_PART` gives way to the loss.

        Returns:
            Values by name, the same in every process; none for a step that a gradient scaler skips.
        """
        part = step.pop(NORMAL_PART, None)
        if self._weights is None:
            return {}
        (forget, normal), state, size = self._weights, self.state, self._group_size
        if part is not None:
            step["train/loss"] = forget * step["train/forget_nll"] + normal * part
        assert state.value is not None, "`decide` has run"
        values = {"train/forget_weight": forget, "train/normal_weight": normal, "train/lambda": -normal / forget}
        if self.loss.parameter == "smoothing_rate":
            values |= {"train/rate": state.value, "train/rho": state.value * (size - 1) / size}
        if self.geometry:
            geometry = total(self.geometry.values())
            values |= {
                "train/cosine": geometry.cosine,
                "train/forget_gradient_norm": geometry.forget_norm,
                "train/normal_gradient_norm": geometry.normal_norm,
                "train/clamped_low": state.clamped_low,
                "train/clamped_high": state.clamped_high,
                "train/infeasible": state.infeasible,
            }
        return values


def adam_metric(optimizer: Optimizer) -> Metric | None:
    """P = 1/(√v̂ + ε) of Adam's next update by parameter, from the second moments so far; None before its first step.

    A weight whose gradients have all been 0, such as an embedding's of a token not seen before, has P = 0: with 1/ε a
    few of them would outweigh all others. A parameter without any gradient counts as if P were 1.

    Args:
        optimizer: Optimiser with second moments, Adam or AdamW.
    """
    if not optimizer.state:
        return None
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}

    def diagonal(parameter: nn.Parameter) -> Tensor | None:
        state, group = optimizer.state.get(parameter), groups[parameter]
        if not state:
            return None
        moment = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        found = (moment / (1 - group["betas"][1] ** float(state["step"]))).sqrt().add_(group["eps"]).reciprocal_()
        counted: Tensor = found * (moment > 0)
        return counted

    return diagonal


def gradient_diverged(step: int) -> DivergenceError:
    """Exception for a gradient that holds NaN or infinity."""
    return DivergenceError(
        f"a gradient is no longer a number at step {step}: training diverged; lower the learning rate, or stop earlier "
        "(--trainer.max_epochs)"
    )
