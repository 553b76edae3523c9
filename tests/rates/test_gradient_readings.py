"""What a rule may read of the gradients, each against a slow version: Adam's metric, products without noise."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import TinyNetwork
from torch import Tensor, nn

from sga.batching.batch import Batch, collate
from sga.errors import UserError
from sga.likelihood.forward import sequence_nll
from sga.losses.ascent import GradientDifference, SmoothedGradientAscent
from sga.rates.dynamic import TrainingRate, adam_metric
from sga.rates.geometry import Geometry, total
from sga.rates.policies import FixedRate, MarginWeight, NormRatio
from sga.rates.split_backward import SplitGradients

K = 4


def gradients(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """g_f and ḡ_n of a batch, by autograd alone, flat."""
    parameters = list(model.parameters())
    parts = []
    for nll in (sequence_nll(model, batch)[:, 0].mean(), sequence_nll(model, batch)[:, 1:].mean()):
        found = torch.autograd.grad(nll, parameters, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        parts.append(torch.cat([gradient.flatten() for gradient in filled]))
    return parts[0], parts[1]


def backward(
    rate: TrainingRate, model: nn.Module, batch: Batch, share: float, optimizer: torch.optim.Optimizer
) -> None:
    """A micro-batch as the module takes it."""
    rate.begin(model, K, share, optimizer)
    rate.backward(sequence_nll(model, batch.forget_only()).mean() * share, None)
    (sequence_nll(model, batch.normals_only()).mean() * share).backward()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_norm_ratio_makes_both_parts_of_one_length(tiny_network: TinyNetwork) -> None:
    """λ = ‖g_f‖/‖ḡ_n‖, so that the update is along ḡ_n/‖ḡ_n‖ − g_f/‖g_f‖ and helps both losses, to first order."""
    model, batch = tiny_network.model(), collate(tiny_network.groups(4, K))
    rate = TrainingRate(NormRatio(), GradientDifference(NormRatio()))
    f, n = gradients(model, batch)
    backward(rate, model, batch, 1.0, torch.optim.SGD(model.parameters(), 0.1))
    rate.decide(0, 1, K)
    assert rate.state.value == pytest.approx((f.norm() / n.norm()).item(), rel=1e-10)
    update = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(update / f.norm(), n / n.norm() - f / f.norm(), rtol=0, atol=1e-10)
    assert (update @ n).item() > 0 > (update @ f).item()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_s_metric_is_that_of_its_moments_by_hand(tiny_network: TinyNetwork, decay: float) -> None:
    """Four steps of AdamW beside moments kept here.

    v ← β·v + (1 − β)·G², P = 1/(√(v/(1 − βᵗ)) + ε), λ = m + c_P/n_P.
    """
    model, groups = tiny_network.model(), tiny_network.groups(8, K)
    policy = MarginWeight(margin=0.3, metric="adam", lowest=-100, highest=100)
    rate = TrainingRate(policy, GradientDifference(replace_bounds(policy)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-6, weight_decay=decay)
    moments = torch.zeros_like(flat(model))
    seen = []
    for step in range(4):
        batch = collate(groups[2 * step : 2 * step + 2])
        f, n = gradients(model, batch)
        p = 1 / ((moments / (1 - 0.95**step)).sqrt() + 1e-6) if step else torch.ones_like(moments)
        p = torch.where((moments == 0) & bool(step), 0, p)
        expected = 0.3 + (n @ (p * f) / (n @ (p * n))).item()
        backward(rate, model, batch, 1.0, optimizer)
        rate.decide(step, 4, K)
        assert rate.state.value == pytest.approx(expected, rel=1e-9)
        seen.append(expected - (0.3 + (n @ f / (n @ n)).item()))
        moments = 0.95 * moments + 0.05 * (-f + expected * n).square()
        optimizer.step()
        optimizer.zero_grad()
    assert seen[0] == 0 and min(abs(difference) for difference in seen[1:]) > 1e-3, "another number than the usual one"


def test_weights_without_moments_do_not_count_in_adam_s_metric() -> None:
    """An embedding's row of a token that is new in this step: 1/ε would be 10⁸ times what others count."""
    table = nn.Embedding(3, 2)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.1)
    table(torch.tensor([0])).sum().backward()
    optimizer.step()
    metric = adam_metric(optimizer)
    assert metric is not None and torch.equal(metric(table.weight).count_nonzero(dim=1), torch.tensor([2, 0, 0]))


def replace_bounds(policy: MarginWeight) -> MarginWeight:
    """The same rule within bounds that the loss takes."""
    return MarginWeight(margin=policy.margin)


def test_a_step_along_adam_s_metric_changes_the_normal_loss_by_the_margin(tiny_network: TinyNetwork) -> None:
    """θ ← θ − η·P·∇L changes ℓ̄_n by −η·m·⟨ḡ_n, P·ḡ_n⟩ + O(η²): half the step leaves a quarter of the rest."""
    model, batch = tiny_network.model(), collate(tiny_network.groups(4, K))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sequence_nll(model, collate(tiny_network.groups(2, K))).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    metric = adam_metric(optimizer)
    assert metric is not None
    diagonal = torch.cat([part.flatten() for p in model.parameters() if (part := metric(p)) is not None])
    rate = TrainingRate(MarginWeight(margin=0.5, metric="adam"), GradientDifference(MarginWeight()))
    backward(rate, model, batch, 1.0, optimizer)
    rate.decide(1, 2, K)
    update = diagonal * torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    start = sequence_nll(model, batch)[:, 1:].mean().item()
    fall = 0.5 * total(rate.geometry.values()).normal_squared

    def rest(eta: float) -> float:
        moved = copy.deepcopy(model)
        nn.utils.vector_to_parameters(flat(model) - eta * update, moved.parameters())
        with torch.no_grad():
            return sequence_nll(moved, batch)[:, 1:].mean().item() - start + eta * fall

    eta = 1e-2 / update.norm().item()
    assert rest(eta) / rest(eta / 2) == pytest.approx(4, rel=0.15)
    assert abs(rest(eta)) < 0.2 * eta * fall


def test_products_without_noise_are_those_of_different_micro_batches(tiny_network: TinyNetwork) -> None:
    """Σ_{i≠j} w_i·w_j·⟨g_i, g_j⟩ / Σ_{i≠j} w_i·w_j over micro-batches of 3, 2 and 1 groups, by a double loop."""
    model, groups = tiny_network.model(), tiny_network.groups(6, K)
    parts = [collate(groups[:3]), collate(groups[3:5]), collate(groups[5:])]
    shares = [3 / 6, 2 / 6, 1 / 6]
    pairs = [gradients(model, part) for part in parts]
    weight, f, n, c = 0.0, 0.0, 0.0, 0.0
    for i in range(3):
        for j in range(3):
            if i != j:
                w = shares[i] * shares[j]
                weight += w
                f += w * (pairs[i][0] @ pairs[j][0]).item()
                n += w * (pairs[i][1] @ pairs[j][1]).item()
                c += w * (pairs[i][1] @ pairs[j][0]).item()
    rate = TrainingRate(MarginWeight(noise_corrected=True), GradientDifference(MarginWeight()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for part, share in zip(parts, shares, strict=True):
        backward(rate, model, part, share, optimizer)
    rate.decide(0, 1, K)
    found = total(rate.geometry.values())
    assert (found.forget_squared, found.normal_squared, found.inner) == pytest.approx(
        (f / weight, n / weight, c / weight), rel=1e-9
    )
    assert rate.state.value == pytest.approx(min(max(c / n, 0), 8), rel=1e-9)
    whole = gradients(model, collate(groups))
    assert found.forget_squared < 0.9 * (whole[0] @ whole[0]).item(), "the noise is gone"
    update = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(update, -whole[0] + rate.state.value * whole[1], rtol=0, atol=1e-10)


def test_a_step_of_one_micro_batch_has_nothing_to_correct_by(tiny_network: TinyNetwork) -> None:
    model, batch = tiny_network.model(), collate(tiny_network.groups(2, K))
    rate = TrainingRate(MarginWeight(noise_corrected=True), GradientDifference(MarginWeight()))
    backward(rate, model, batch, 1.0, torch.optim.SGD(model.parameters(), 0.1))
    rate.decide(0, 1, K)
    f, n = gradients(model, batch)
    assert total(rate.geometry.values()).forget_squared == pytest.approx((f @ f).item(), rel=1e-9)
    assert rate.state.value == pytest.approx(max(0.0, (n @ f / (n @ n)).item()), rel=1e-9)


def test_a_scaler_s_factor_is_divided_out_of_what_is_taken_away() -> None:
    """Gradients (2, 0) and (0, 4) of two halves, times 1024: sum (1, 2)·1024, ‖·‖² = 5; own 1 + 4; nothing is left."""
    weight = nn.Parameter(torch.zeros(2))
    split = SplitGradients([("weight", weight)])
    for gradient in ([1.0, 0.0], [0.0, 2.0]):
        split.forget[0], weight.grad = 1024 * torch.tensor(gradient), 1024 * torch.tensor(gradient)
        split.set_apart(2, 0.5)
    split.restore()
    assert total(split.geometry(2, 1024.0).values()) == Geometry(5, 5, 5, 2)
    found = total(split.without_noise(split.geometry(2, 1024.0), 1024.0).values())
    assert (found.forget_squared, found.normal_squared, found.inner) == pytest.approx((0, 0, 0))


@pytest.mark.parametrize(
    ("policy", "optimizer", "micro_batches", "processes", "said"),
    [
        (MarginWeight(metric="adam"), torch.optim.SGD, 1, 1, "second moments of torch.optim.Adam or AdamW, got SGD"),
        (MarginWeight(noise_corrected=True), torch.optim.AdamW, 1, 1, "compares the micro-batches of a step"),
        (MarginWeight(noise_corrected=True), torch.optim.AdamW, 2, 2, "got 2 in each of 2"),
    ],
)
def test_what_a_rule_cannot_read_is_refused(
    policy: MarginWeight, optimizer: type, micro_batches: int, processes: int, said: str
) -> None:
    made = optimizer([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(UserError, match=said):
        TrainingRate(policy, GradientDifference(policy)).check(10, made, micro_batches, processes)
    TrainingRate(FixedRate(1.0), GradientDifference()).check(10, made, micro_batches, processes)


def test_a_step_that_overflows_has_a_number_too() -> None:
    """``rates.json`` has one number a step: before the first decision that decision's, later the one in force."""
    weight = nn.Parameter(torch.ones(1))
    policy = MarginWeight(margin=1.0)
    rate = TrainingRate(policy, GradientDifference(policy))
    scaler = SimpleNamespace(scale=lambda loss: loss, get_scale=lambda: 1.0)
    network = nn.ParameterDict({"weight": weight})
    for step, (forget, normal) in enumerate([(math.inf, 1.0), (1.0, 2.0), (1.0, math.inf), (2.0, 1.0)]):
        weight.grad = None
        rate.begin(network, 2, 1.0, torch.optim.SGD([weight]))
        rate.backward(forget * weight.sum(), scaler)
        (normal * weight.sum()).backward()
        rate.decide(step, 4, 2, scaler=scaler)
    assert rate.values == [1.5, 1.5, 1.5, 3.0]


@pytest.mark.parametrize("rate", [0.0, -0.8, -8.0])
@pytest.mark.parametrize("alternative_rate", [None, -2.0])
def test_unit_ascent_is_the_loss_divided_by_the_forget_weight(rate: float, alternative_rate: float | None) -> None:
    nll = torch.rand(3, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    usual = SmoothedGradientAscent(rate, alternative_rate)
    unit = SmoothedGradientAscent(rate, alternative_rate, unit_ascent=True)
    many = {"alternatives": 1} if alternative_rate is not None else {}
    (expected,) = torch.autograd.grad(usual(nll, **many), nll)
    (found,) = torch.autograd.grad(unit(nll, **many), nll)
    torch.testing.assert_close(found, expected / (-3 * expected[0, 0]), rtol=1e-12, atol=0)
    assert found[0, 0].item() == pytest.approx(-1 / 3)
    if alternative_rate is None:
        forget, normal = usual.weights(K, rate)
        assert unit.weights(K, rate) == pytest.approx((-1.0, -normal / forget))


def test_all_readings_work_in_a_run(unlearn_options: list[str], tmp_path: object) -> None:
    """Adam's metric and the correction together, over micro-batches of two groups; not the numbers of neither."""
    from processes import RECORD, rates

    from sga.cli import run_verb

    found = SimpleNamespace()
    for name, more in (("plain", []), ("both", ["metric=adam", "noise_corrected=true"])):
        options = [option for option in unlearn_options if not option.startswith("--model.loss")]
        options += ["--model_utility.generate=false", "--export.enabled=false", RECORD, "--data.micro_batch_size=2"]
        options += ["--model.loss=GradientDifference", "--model.loss.normal_weight=sga.MarginWeight"]
        options += [f"--model.loss.normal_weight.{one}" for one in more]
        run_verb(["fit", *options, f"--run.folder={tmp_path}/{name}"])
        setattr(found, name, rates(tmp_path / name))  # type: ignore[operator]
    assert len(found.both) == 4 and all(math.isfinite(value) for value in found.both) and found.both != found.plain
