"""The losses by hand, by limit, by derivative and by trajectory; every slip of the sources is ruled out by a number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from conftest import TinyNetwork
from torch import Tensor, nn

from sga.batching.batch import Batch, collate
from sga.errors import UserError
from sga.likelihood.forward import sequence_nll
from sga.losses.ascent import FineTuning, GradientAscent, GradientDifference, SmoothedGradientAscent
from sga.losses.base import Loss
from sga.rates.smoothing import equivalent_normal_weight, smoothing_vector

RATES = (-8.0, -4.0, -2.0, -0.8, -0.1, 0.0)
TOLERANCE = 1e-10


def sga(rate: float) -> SmoothedGradientAscent:
    """The loss without the warning that positive rates give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SmoothedGradientAscent(rate)


def weights_of(loss: Loss, group_size: int) -> Tensor:
    """What a loss weighs each of one group's nll with: its gradient."""
    nll = torch.linspace(1.0, 2.0, group_size, dtype=torch.float64).requires_grad_()
    loss(nll[None]).backward()
    assert nll.grad is not None
    return nll.grad


# ---- the label vector -----------------------------------------------------------------------------------------------


def test_the_weights_of_the_example_are_those_worked_out_by_hand() -> None:
    """K = 4, r = −0.8: r(K−1)/K = −0.6, so y = (1.6, −0.2, −0.2, −0.2), and SGA weighs with −y."""
    expected = torch.tensor([-1.6, 0.2, 0.2, 0.2], dtype=torch.float64)
    torch.testing.assert_close(-smoothing_vector(4, -0.8), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(weights_of(sga(-0.8), 4), expected, rtol=0, atol=1e-15)


def test_a_batch_of_two_groups_by_hand() -> None:
    """K = 2, r = −1: weights (−1.5, 0.5). Groups (2, 4) and (3, 1): −3 + 2 = −1 and −4.5 + 0.5 = −4; mean −2.5."""
    assert sga(-1)(torch.tensor([[2.0, 4.0], [3.0, 1.0]])).item() == -2.5


@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("rate", [*RATES, -1000.0, 0.3, 1.0])
def test_the_labels_sum_to_one(group_size: int, rate: float) -> None:
    assert smoothing_vector(group_size, rate).sum().item() == pytest.approx(1, abs=1e-12)


def test_slip_ruled_out_the_forget_weight_is_not_zero_at_rate_zero() -> None:
    """A printed form, −(1 − (K−1)/K)·r, would be 0 at r = 0."""
    assert weights_of(sga(0.0), 4).tolist() == [-1, 0, 0, 0]


def test_slip_ruled_out_the_rate_is_spread_over_all_classes() -> None:
    """K = 3, r = 0.1: y = (1 − 0.2/3, 0.1/3, 0.1/3). Spread over K−1 classes it would be (0.9, 0.05, 0.05)."""
    assert smoothing_vector(3, 0.1).tolist() == pytest.approx([0.9333333333, 0.0333333333, 0.0333333333], abs=1e-9)


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate < 0])
def test_slip_ruled_out_a_negative_rate_descends_on_normal_samples(rate: float) -> None:
    weights = weights_of(sga(rate), 4)
    assert weights[0] < -1
    assert (weights[1:] > 0).all()


def test_rate_one_ascends_all_samples_equally() -> None:
    torch.testing.assert_close(weights_of(sga(1.0), 5), torch.full((5,), -0.2, dtype=torch.float64))


@pytest.mark.parametrize("rate", [1.0000001, 1.5, math.inf, -math.inf, math.nan])
def test_a_rate_above_one_or_not_finite_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match="smoothing_rate must be"):
        SmoothedGradientAscent(rate)
    with pytest.raises(UserError, match="smoothing_rate must be"):
        smoothing_vector(4, rate)


def test_groups_of_none_are_refused() -> None:
    with pytest.raises(UserError, match="group_size must be at least 1"):
        smoothing_vector(0, -0.8)


def test_a_positive_rate_is_allowed_and_warned_about_and_others_are_not() -> None:
    with pytest.warns(UserWarning, match="normal samples are ascended too"):
        SmoothedGradientAscent(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SmoothedGradientAscent(0.0)
        SmoothedGradientAscent(-0.8)


# ---- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group_size", [1, 2, 4, 9])
def test_rate_zero_is_gradient_ascent_to_the_last_bit(group_size: int, dtype: torch.dtype) -> None:
    nll = torch.rand(37, group_size, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 20
    assert torch.equal(sga(0.0)(nll), GradientAscent()(nll))
    if group_size > 1:
        assert not torch.equal(sga(-1e-6)(nll.double()), GradientAscent()(nll.double()))


@pytest.mark.parametrize("rate", [*RATES, 0.7])
def test_a_group_of_one_is_gradient_ascent_to_the_last_bit_whatever_the_rate(rate: float) -> None:
    nll = torch.rand(37, 1, generator=torch.Generator().manual_seed(1)) * 20
    assert torch.equal(sga(rate)(nll), GradientAscent()(nll))


def test_gradient_difference_by_hand() -> None:
    """Groups (2; 4, 6) and (1; 3, 5) with λ = 0.5: −2 + 2.5 = 0.5 and −1 + 2 = 1; mean 0.75. λ = 1: 3 and 3."""
    nll = torch.tensor([[2.0, 4.0, 6.0], [1.0, 3.0, 5.0]])
    assert GradientDifference(0.5)(nll).item() == 0.75
    assert GradientDifference()(nll).item() == 3


def test_gradient_difference_is_the_limit_of_ever_more_negative_rates() -> None:
    nll = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rate = -1e9
    scaled = sga(rate)(nll) / (1 + abs(rate) * 3 / 4)
    assert scaled.item() == pytest.approx(GradientDifference(1.0)(nll).item(), abs=1e-8)


def test_gradient_difference_needs_normal_samples_and_a_weight() -> None:
    GradientDifference().check_group_size(2)
    with pytest.raises(UserError, match="group_size must be at least 2, got 1"):
        GradientDifference().check_group_size(1)
    for weight in (-0.1, math.nan, math.inf):
        with pytest.raises(UserError, match="normal_weight must be"):
            GradientDifference(weight)


@pytest.mark.parametrize(("rate", "weight"), [(-0.8, 0.375), (-2, 0.6), (-4, 0.75), (-8, 6 / 7), (0, 0)])
def test_equivalent_normal_weights_of_the_paper_s_rates(rate: float, weight: float) -> None:
    """K = 4: |ρ| = 0.6, 1.5, 3, 6, and λ = |ρ|/(1 + |ρ|)."""
    assert equivalent_normal_weight(4, rate) == pytest.approx(weight, abs=1e-12)


@pytest.mark.parametrize(
    "loss", [sga(-0.8), sga(0.4), GradientDifference(2.0), FineTuning()], ids=lambda loss: type(loss).__name__
)
def test_the_order_of_groups_and_of_normals_changes_nothing_but_the_forget_sample_is_another_matter(loss: Loss) -> None:
    nll = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    value = loss(nll).item()
    assert loss(nll[:, [0, 3, 1, 2]]).item() == pytest.approx(value, abs=1e-14)
    assert loss(nll.flip(0)).item() == pytest.approx(value, abs=1e-14)
    if not isinstance(loss, FineTuning):
        assert loss(nll[:, [1, 0, 2, 3]]).item() != pytest.approx(value, abs=1e-3)


def test_losses_that_ignore_normal_samples_say_so() -> None:
    """The module leaves the normal samples out for these, so a wrong flag would change the method."""
    assert not GradientAscent().uses_normals and not sga(0).uses_normals
    assert sga(-0.8).uses_normals and GradientDifference().uses_normals and FineTuning().uses_normals
    nll = torch.tensor([[1.0, 2.0, 3.0]])
    for loss in (GradientAscent(), sga(0)):
        assert loss(nll) == loss(nll[:, :1])


# ---- derivatives and trajectories on a model ------------------------------------------------------------------------


def gradient(model: nn.Module, batch: Batch, value: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient of a function of nll [B, K] in all parameters, flattened."""
    model.zero_grad()
    value(sequence_nll(model, batch)).backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("group_size", [2, 4])
def test_the_gradient_is_minus_g_f_minus_r_times_u(tiny_network: TinyNetwork, group_size: int) -> None:
    """u = (K−1)/K·(ḡ_n − g_f). The paper's update d(r) = −g_f + r·u has the other sign and is ruled out."""
    model = tiny_network.model()
    batch = collate(tiny_network.groups(3, group_size))
    g_f = gradient(model, batch, lambda nll: nll[:, 0].mean())
    g_n = gradient(model, batch, lambda nll: nll[:, 1:].mean())
    u = (group_size - 1) / group_size * (g_n - g_f)
    assert g_f.norm() > 1e-2 and u.norm() > 1e-2, "the comparison would be empty"
    for rate in (-4.0, -0.8, 0.0, 0.5, 1.0):
        found = gradient(model, batch, sga(rate))
        torch.testing.assert_close(found, -g_f - rate * u, rtol=0, atol=TOLERANCE)
        if rate:
            assert (found - (-g_f + rate * u)).abs().max() > 1e-3


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate < 0])
def test_the_gradient_is_parallel_to_that_of_gradient_difference(tiny_network: TinyNetwork, rate: float) -> None:
    """L_SGA(r) = (1 + |ρ|)·(−ℓ_f + λ·ℓ̄_n) with λ = |ρ|/(1 + |ρ|); with another λ it is not parallel."""
    model = tiny_network.model()
    batch = collate(tiny_network.groups(3, 4))
    rho = abs(rate) * 3 / 4
    weight = equivalent_normal_weight(4, rate)
    found = gradient(model, batch, sga(rate))
    torch.testing.assert_close(
        found, (1 + rho) * gradient(model, batch, GradientDifference(weight)), rtol=0, atol=TOLERANCE
    )
    other = gradient(model, batch, GradientDifference(weight + 0.2))
    assert torch.cosine_similarity(found, other, dim=0) < 1 - 1e-5


def test_an_adam_trajectory_is_that_of_the_equivalent_gradient_difference(tiny_network: TinyNetwork) -> None:
    """With ε → 0 Adam ignores the scale of the gradient, so only λ matters; plain descent does see the scale."""
    batch = collate(tiny_network.groups(3, 4))

    def trajectory(loss: Loss, optimizer_class: Callable[..., torch.optim.Optimizer], **settings: float) -> Tensor:
        model = tiny_network.model()
        optimizer = optimizer_class(model.parameters(), **settings)
        for _ in range(20):
            optimizer.zero_grad()
            loss(sequence_nll(model, batch)).backward()
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    start = torch.cat([parameter.detach().flatten() for parameter in tiny_network.model().parameters()])
    twin = GradientDifference(equivalent_normal_weight(4, -0.8))
    adam = {"lr": 1e-3, "eps": 1e-300}
    ours = trajectory(sga(-0.8), torch.optim.Adam, **adam)
    assert (ours - start).abs().max() > 1e-2
    # 1e-7 and not less: 20 steps magnify rounding where a gradient is close to 0 and Adam steps by its sign.
    torch.testing.assert_close(ours, trajectory(twin, torch.optim.Adam, **adam), rtol=0, atol=1e-7)
    assert (ours - trajectory(GradientDifference(1.0), torch.optim.Adam, **adam)).abs().max() > 1e-3
    descent = {"lr": 1e-2}
    difference = trajectory(sga(-0.8), torch.optim.SGD, **descent) - trajectory(twin, torch.optim.SGD, **descent)
    assert difference.abs().max() > 1e-4


def test_an_ascent_step_raises_the_forget_nll_and_lr_zero_does_not(tiny_network: TinyNetwork) -> None:
    batch = collate(tiny_network.groups(3, 4))

    def after_a_step(loss: Loss, lr: float) -> Tensor:
        model = tiny_network.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        loss(sequence_nll(model, batch)).backward()
        optimizer.step()
        return sequence_nll(model, batch).detach()

    before = sequence_nll(tiny_network.model(), batch).detach()
    for loss in (sga(-0.8), GradientAscent(), GradientDifference()):
        assert after_a_step(loss, 1e-2)[:, 0].mean() > before[:, 0].mean() + 1e-3
        assert torch.equal(after_a_step(loss, 0.0), before)
    assert after_a_step(FineTuning(), 1e-2).mean() < before.mean()
    smoothed, plain = after_a_step(sga(-4.0), 1e-3), after_a_step(GradientAscent(), 4e-3)  # equal forget weights
    assert smoothed[:, 1:].mean() < plain[:, 1:].mean(), "smoothing protects the normal samples"


def test_fine_tuning_on_one_row_is_hugging_face_s_own_loss(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    for row in tiny_network.encoded[:4]:
        ids = torch.tensor([row.ids])
        labels = ids.clone()
        labels[:, : row.prompt_length] = -100
        theirs = model(input_ids=ids, labels=labels).loss
        # 1e-6: Hugging Face computes its loss in float32 even for a float64 model.
        assert FineTuning()(sequence_nll(model, collate([[row]]))).item() == pytest.approx(theirs.item(), abs=1e-6)
