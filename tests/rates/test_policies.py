"""Rules by closed forms and finite differences, policies by hand, the split backward pass against the single one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import TinyNetwork
from torch import Tensor, nn

from sga.batching.batch import Batch, collate
from sga.errors import UserError
from sga.likelihood.forward import sequence_nll
from sga.losses.ascent import GradientAscent, GradientDifference, SmoothedGradientAscent, WeighingLoss
from sga.rates import geometry
from sga.rates.geometry import (
    Geometry,
    geometry_by_layer,
    layer_of,
    margin_rate,
    margin_weight,
    min_norm_rate,
    norm_ratio,
    paper_rate,
    total,
)
from sga.rates.policies import (
    CosineRate,
    DynamicRate,
    FixedRate,
    LinearRate,
    MarginRate,
    MarginWeight,
    MinNormRate,
    NormRatio,
    PaperRate,
    PiecewiseRate,
    RatePolicy,
    RateState,
    ScheduledRate,
)
from sga.rates.split_backward import SplitGradients

EXACT = {"rel": 1e-12, "abs": 1e-12}


def of(f: Tensor, n: Tensor, group_size: int = 4) -> Geometry:
    """The geometry of two gradients."""
    return total(geometry_by_layer(["weight"], [f], [n], group_size).values())


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- geometry -------------------------------------------------------------------------------------------------------


def test_geometry_by_hand() -> None:
    """g_f = (3, 4), ḡ_n = (1, 0): 25, 1, 3; cosine 3/5; K = 4: u = 3/4·(−2, −4), ‖u‖² = 9/16·20, ⟨g_f, u⟩ = −16.5."""
    found = of(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
    assert found == Geometry(25, 1, 3, 4)
    assert (found.forget_norm, found.normal_norm) == (5, 1)
    assert found.cosine == pytest.approx(0.6)
    assert found.forget_dot_u == pytest.approx(-16.5)
    assert found.u_squared == pytest.approx(11.25)


@pytest.mark.parametrize("group_size", [2, 4, 9])
def test_u_and_its_products_are_those_of_the_vectors(group_size: int) -> None:
    f, n = draws(0, 50), draws(1, 50)
    u = (group_size - 1) / group_size * (n - f)
    found = of(f, n, group_size)
    assert found.forget_dot_u == pytest.approx((f @ u).item(), **EXACT)
    assert found.u_squared == pytest.approx((u @ u).item(), **EXACT)


def test_layers_add_up_to_the_whole_and_missing_gradients_count_as_zero() -> None:
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.a.weight",
        "model.layers.0.b.bias",
        "model.layers.10.a.weight",
    ]
    f = [draws(k, 3, 2) for k in range(4)]
    n = [draws(k + 9, 3, 2) for k in range(4)]
    found = geometry_by_layer(names, f, n, 4)
    assert list(found) == ["model.embed_tokens", "model.layers.0", "model.layers.10"]
    assert found["model.layers.0"].inner == pytest.approx(((f[1] * n[1]).sum() + (f[2] * n[2]).sum()).item(), **EXACT)
    flat = of(torch.cat([x.flatten() for x in f]), torch.cat([x.flatten() for x in n]))
    assert total(found.values()).inner == pytest.approx(flat.inner, **EXACT)
    one = geometry_by_layer(["a", "b", "c"], [None, f[0], None], [n[0], None, None], 4)
    assert (one["a"].forget_squared, one["a"].inner, one["b"].normal_squared) == (0, 0, 0)
    assert one["b"].forget_squared == pytest.approx(f[0].square().sum().item(), **EXACT)
    assert one["c"] == Geometry(0, 0, 0, 4)
    assert layer_of("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight").endswith("layers.3")


def test_sums_are_in_float64_where_float32_would_lose_them() -> None:
    """2^24 + 1 is no float32: a million ones after a 4096 are lost when each is added to a float32 sum of 2^24."""
    gradient = torch.ones(1_000_001)
    gradient[0] = 4096.0
    found = of(gradient, gradient)
    assert (found.forget_squared, found.normal_squared, found.inner) == (2**24 + 10**6,) * 3
    scaled = total(geometry_by_layer(["w"], [gradient * 1024], [gradient * 1024], 4, scale=1024.0).values())
    assert scaled == found


# ---- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [2, 3, 4, 8])
@pytest.mark.parametrize("cosine", [-0.1, 0.0, 0.3, 0.9])
def test_equal_norms_and_cosines_give_a_paper_rate_of_minus_one(group_size: int, cosine: float) -> None:
    """Gradients with a Gram matrix of ones on, and equal cosines off its diagonal."""
    gram = torch.full((group_size, group_size), cosine, dtype=torch.float64).fill_diagonal_(1.0)
    gradients = torch.linalg.cholesky(gram)  # [K, K], a gradient a row
    found = of(gradients[0], gradients[1:].mean(dim=0), group_size)
    assert paper_rate(found) == pytest.approx(-1, abs=1e-10)
    other = of(2 * gradients[0], gradients[1:].mean(dim=0), group_size)
    assert abs(paper_rate(other) + 1) > 1e-2, "unequal norms tell"


@pytest.mark.parametrize("seed", range(4))
def test_min_norm_is_the_argmin_on_a_grid_and_the_paper_s_rate_is_its_negative(seed: int) -> None:
    f, n = draws(seed, 20), draws(seed + 50, 20) + draws(seed, 20) * (seed / 2)
    found = of(f, n)
    rate = min_norm_rate(found)
    assert rate is not None and paper_rate(found) == -rate
    u = 3 / 4 * (n - f)
    grid = torch.linspace(rate - 1, rate + 1, 2001, dtype=torch.float64)
    norms = (-f - grid[:, None] * u).norm(dim=1)
    assert grid[norms.argmin()].item() == pytest.approx(rate, abs=1e-3)
    assert (-f - rate * u).norm() < (-f + rate * u).norm(), "the paper's sign does not minimise it"


@pytest.mark.parametrize("margin", [0.0, 0.6, 2.0])
def test_margin_rules_meet_their_condition(margin: float) -> None:
    """⟨ḡ_n, ∇L⟩ = m·n with the weights that the losses make of r and λ."""
    f, n = draws(3, 30), draws(4, 30) + 0.3 * draws(3, 30)
    found = of(f, n)
    assert 0 < found.inner < found.normal_squared
    for loss, value in (
        (SmoothedGradientAscent(-1.0), margin_rate(found, margin)),
        (GradientDifference(), margin_weight(found, margin)),
    ):
        assert value is not None
        forget_weight, normal_weight = loss.weights(4, value)
        assert (n @ (forget_weight * f + normal_weight * n)).item() == pytest.approx(margin * found.normal_squared)


def test_without_interference_the_margin_is_a_fixed_rate() -> None:
    """c = 0 gives ρ = −m: r = −0.8 at K = 4 is m = 0.6."""
    assert margin_rate(Geometry(7.0, 3.0, 0.0, 4), 0.6) == pytest.approx(-0.8, **EXACT)
    assert margin_weight(Geometry(7.0, 3.0, 0.0, 4), 0.6) == pytest.approx(0.6, **EXACT)


def test_interference_makes_smoothing_stronger_and_help_makes_it_milder() -> None:
    found = [margin_rate(Geometry(1.0, 1.0, c, 4), 0.6) for c in (-0.9, -0.3, 0.0, 0.3, 0.9)]
    assert all(value is not None for value in found)
    assert found == sorted(found, reverse=True)
    assert found[0] > 0, "not clamped here"


def test_what_has_no_answer_is_none() -> None:
    """c ≥ n for the margin rate, u = 0 for the paper's, no normal gradient for the margin weight."""
    for c in (1.0, 1.5):
        assert margin_rate(Geometry(4.0, 1.0, c, 4), 0.5) is None
        assert margin_weight(Geometry(4.0, 1.0, c, 4), 0.5) == 0.5 + c
    same = draws(5, 10)
    assert paper_rate(of(same, same)) is None and min_norm_rate(of(same, same)) is None
    none = of(same, torch.zeros_like(same))
    assert margin_rate(none, 0.5) is None and margin_weight(none, 0.5) is None and none.cosine == 0
    assert paper_rate(none) == pytest.approx(-4 / 3)
    noise = Geometry(1.0, -1.0, -2.0, 4)  # estimates without noise may have squares below 0
    assert margin_rate(noise, 0.5) is None and margin_weight(noise, 0.5) is None and norm_ratio(noise) is None
    assert norm_ratio(Geometry(-1.0, 4.0, 0.5, 4)) is None, "0 would be ascent alone"
    still = of(torch.zeros_like(same), same)
    assert paper_rate(still) == 0 and margin_rate(still, 0.6) == pytest.approx(-0.8)


# ---- a quadratic problem with closed forms --------------------------------------------------------------------------


K = 4
CLOSED: dict[str, tuple[DynamicRate, Callable[[float, float], float]]] = {
    "paper": (PaperRate(), lambda x, y: -4 * x / 3),
    "min_norm": (MinNormRate(lowest=-100), lambda x, y: 4 * x / 3),
    **{
        f"margin {m}": (
            MarginRate(lowest=-100, margin=m),
            lambda x, y, m=m: -4 / 3 * (x * x - x + y * y + m * ((x - 1) ** 2 + y * y)) / (1 - x),
        )
        for m in (0.0, 0.6, 2.0)
    },
    "norm_ratio": (NormRatio(highest=100), lambda x, y: math.sqrt((x * x + y * y) / ((x - 1) ** 2 + y * y))),
    **{
        f"margin_lambda {m}": (
            MarginWeight(margin=m, highest=100),
            lambda x, y, m=m: m + (x * x - x + y * y) / ((x - 1) ** 2 + y * y),
        )
        for m in (0.5, 2.0)
    },
}


@pytest.mark.filterwarnings("ignore:smoothing_rate = 1 is positive")  # MinNormRate's
@pytest.mark.parametrize("name", CLOSED)
def test_every_rule_along_a_trajectory_on_a_quadratic(name: str) -> None:
    """ℓ_f = ½‖θ‖² and ℓ̄_n = ½‖θ − (1, 0)‖²: g_f = (x, y), ḡ_n = (x − 1, y), u = ¾·(−1, 0), n − c = 1 − x.

    Each normal loss has its own centre about (1, 0), so that only their mean is this simple. 20 steps of descent.
    """
    policy, closed = CLOSED[name]
    weighs = policy.parameter == "normal_weight"
    loss: WeighingLoss = GradientDifference(policy) if weighs else SmoothedGradientAscent(policy)
    theta = nn.Parameter(torch.tensor([0.3, 0.6], dtype=torch.float64))
    centres = torch.tensor([[0.0, 0.0], [0.5, 1.0], [1.5, 1.0], [1.0, -2.0]], dtype=torch.float64)
    state = RateState()
    visited = []
    for step in range(20):
        nll = (0.5 * (theta - centres).square().sum(dim=1))[None]  # [1, K]
        split = SplitGradients([("theta", theta)])
        with split.forget_part():
            nll[:, 0].mean().backward(retain_graph=True)
        nll[:, 1:].mean().backward()
        state = policy.decide(state, step, 20, total(split.geometry(K).values()))
        assert state.value is not None
        x, y = theta.tolist()
        assert state.value == pytest.approx(closed(x, y), abs=1e-8)
        visited.append(state.value)
        split.combine(*loss.weights(K, state.value))
        with torch.no_grad():
            theta -= 1e-3 * theta.grad
            theta.grad = None
    if name == "min_norm":  # its update has nothing left along u, which is the direction of x here
        assert max(visited) - min(visited) < 1e-12
    else:
        assert max(visited) - min(visited) > 1e-4, "the rate moves"
    assert (state.decisions, state.clamped_low, state.clamped_high, state.infeasible) == (20, 0, 0, 0)


# ---- finite differences on a language model -------------------------------------------------------------------------


def split_of(model: nn.Module, batch: Batch) -> SplitGradients:
    """Both parts of a batch's gradient, in two forward and two backward passes."""
    split = SplitGradients(model.named_parameters())
    with split.forget_part():
        (sequence_nll(model, batch.forget_only()).mean() * batch.scale).backward()
    (sequence_nll(model, batch.normals_only()).mean() * batch.scale).backward()
    return split


def interfering(network: TinyNetwork) -> Batch:
    """Groups for which 0 < c < n: half of each forget sample's normals ask the same question."""
    rows = network.encoded
    return collate([[rows[0], rows[2], rows[4], rows[9]], [rows[1], rows[3], rows[5], rows[8]]])


@pytest.mark.parametrize("margin", [0.0, 0.6])
@pytest.mark.parametrize("kind", [SmoothedGradientAscent, GradientDifference])
def test_a_step_changes_the_normal_loss_by_the_margin_to_first_order(
    tiny_network: TinyNetwork, margin: float, kind: type[WeighingLoss]
) -> None:
    """Δℓ̄_n = −η·m·n + O(η²): half the step leaves a quarter of the rest."""
    batch = interfering(tiny_network)
    model = tiny_network.model()
    split = split_of(model, batch)
    found = total(split.geometry(4).values())
    assert 0 < found.inner < found.normal_squared
    value = margin_rate(found, margin) if kind is SmoothedGradientAscent else margin_weight(found, margin)
    assert value is not None and value > -8
    split.combine(*kind(0.0).weights(4, value))
    start = sequence_nll(model, batch.normals_only()).mean().item()

    def rest(eta: float) -> float:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, original in zip(moved.parameters(), model.parameters(), strict=True):
                parameter -= eta * original.grad
            return sequence_nll(moved, batch.normals_only()).mean().item() - start + eta * margin * found.normal_squared

    eta = 1e-3 / math.sqrt(found.normal_squared)
    assert rest(eta) / rest(eta / 2) == pytest.approx(4, rel=0.1)
    assert abs(rest(eta)) < 0.1 * eta * found.normal_squared, "small beside what plain descent changes"


# ---- the split backward pass ----------------------------------------------------------------------------------------


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(
    ("loss", "value"),
    [(SmoothedGradientAscent(-0.8), -4.0), (SmoothedGradientAscent(-0.8), 0.0), (GradientDifference(), 1.7)],
)
@pytest.mark.parametrize("parts", [1, 3])
def test_the_split_backward_pass_gives_the_gradient_of_the_single_one(
    tiny_network: TinyNetwork, loss: WeighingLoss, value: float, parts: int
) -> None:
    """Also over several micro-batches, and clipped; in float64 to 1e-12."""
    model = tiny_network.model()
    groups = tiny_network.groups(6, 4)
    size = len(groups) // parts
    batches = [collate(groups[start : start + size], scale=size / 6) for start in range(0, 6, size)]
    for batch in batches:
        (loss(sequence_nll(model, batch), value) * batch.scale).backward()
    expected = gradients(model)
    model.zero_grad()
    split = SplitGradients(model.named_parameters())
    for batch in batches:
        with split.forget_part():
            (sequence_nll(model, batch.forget_only()).mean() * batch.scale).backward()
        (sequence_nll(model, batch.normals_only()).mean() * batch.scale).backward()
    split.combine(*loss.weights(4, value))
    assert max(e.abs().max() for e in expected) > 1e-2
    torch.testing.assert_close(gradients(model), expected, rtol=0, atol=1e-12)
    assert split.forget == [None] * len(split.parameters), "the copy is gone"
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    clipped = [gradient * (0.1 / (norm + 1e-6)) for gradient in expected]
    torch.testing.assert_close(gradients(model), clipped, rtol=0, atol=1e-12)


def test_the_rate_of_accumulated_gradients_is_that_of_the_mean_gradient_not_the_mean_of_rates(
    tiny_network: TinyNetwork,
) -> None:
    model, groups = tiny_network.model(), tiny_network.groups(4, 4)
    whole = paper_rate(total(split_of(model, collate(groups)).geometry(4).values()))
    single = []
    for group in groups:
        model.zero_grad()
        single.append(paper_rate(total(split_of(model, collate([group])).geometry(4).values())))
    assert whole is not None and all(value is not None for value in single)
    assert abs(whole - sum(value or 0.0 for value in single) / 4) > 1e-3


def test_parameters_that_take_no_part_are_left_alone() -> None:
    """One that is frozen, one in the forget part only, one in the normal part only, one in neither."""
    names = ("frozen", "forget", "normal", "neither")
    parts = {name: nn.Parameter(torch.ones(1)) for name in names}
    parts["frozen"].requires_grad_(False)
    split = SplitGradients(parts.items())
    with split.forget_part():
        (parts["frozen"] * parts["forget"] * 2).sum().backward()
    (parts["normal"] * 3).sum().backward()
    assert parts["forget"].grad is None and split.names == ["forget", "normal", "neither"]
    split.combine(-1.6, 0.6)
    assert parts["forget"].grad.item() == pytest.approx(-3.2) and parts["normal"].grad.item() == pytest.approx(1.8)
    assert parts["neither"].grad is None and parts["frozen"].grad is None


def test_columns_of_a_batch_are_the_rows_without_their_padding(tiny_network: TinyNetwork) -> None:
    groups = tiny_network.groups(3, 4)
    batch = collate(groups)
    forget, normals = batch.forget_only(), batch.normals_only()
    assert torch.equal(forget.input_ids, collate([group[:1] for group in groups]).input_ids)
    assert torch.equal(normals.input_ids, collate([group[1:] for group in groups]).input_ids)
    assert torch.equal(normals.answer_mask, collate([group[1:] for group in groups]).answer_mask)
    assert (forget.group_size, normals.group_size) == (1, 3)
    assert forget.tokens + normals.tokens == batch.tokens


# ---- policies -------------------------------------------------------------------------------------------------------


def values(policy: RatePolicy, steps: int) -> list[float]:
    """What a schedule gives over a run."""
    found, state = [], RateState()
    for step in range(steps):
        state = policy.decide(state, step, steps, None)
        assert state.value is not None
        found.append(state.value)
    return found


def test_schedules_by_hand() -> None:
    assert values(FixedRate(-2), 3) == [-2, -2, -2]
    assert values(LinearRate(-4, -2), 5) == [-4, -3.5, -3, -2.5, -2]
    assert values(CosineRate(-4, -2), 3) == pytest.approx([-4, -3, -2])
    assert values(CosineRate(-4, 0), 4) == pytest.approx([-4, -3, -1, 0])
    assert values(PiecewiseRate((-4, -2, -0.8), (0.25, 0.5)), 5) == [-4, -2, -0.8, -0.8, -0.8]
    assert values(LinearRate(-4, -2), 1) == [-4]
    assert LinearRate(-4, 0.5).bounds == (-4, 0.5) and PiecewiseRate((-1, -3), (0.9999,)).bounds == (-3, -1)


def sequence(policy: DynamicRate, geometries: Sequence[Geometry]) -> list[RateState]:
    found, state = [], RateState()
    for step, seen in enumerate(geometries):
        wanted = policy.needs_gradients(state, step)
        state = policy.decide(state, step, len(geometries), seen if wanted else None)
        found.append(state)
    return found


def test_clamps_and_missing_answers_are_counted() -> None:
    """K = 2, n = 1, m = 0: ρ = −c/(1 − c), r = 2ρ. c = 0.5: −2; 0.9: −18, clamped; −1: 1, clamped; 1: no answer."""
    seen = [Geometry(1.0, 1.0, c, 2) for c in (1.0, 0.5, 1.0, 0.9, -1.0, 2.0)]
    for infeasible, expected in (
        ("hold", [-8, -2, -2, -8, 0, 0]),
        ("zero", [0, -2, 0, -8, 0, 0]),
        ("lowest", [-8, -2, -8, -8, 0, -8]),
    ):
        states = sequence(MarginRate(infeasible=infeasible), seen)
        assert [state.value for state in states] == pytest.approx(expected)
        last = states[-1]
        assert (last.decisions, last.clamped_low, last.clamped_high, last.infeasible) == (6, 1, 1, 3)
    assert sequence(MarginRate(lowest=-1.5), seen)[1].value == -1.5
    assert [state.value for state in sequence(MarginWeight(), seen)] == pytest.approx([1, 0.5, 1, 0.9, 0, 2])


def test_between_decisions_the_number_stays_and_gradients_are_not_asked_for() -> None:
    seen = [Geometry(1.0, 1.0, c, 2) for c in (0.5, 0.2, 0.3, 0.0, -0.5)]
    states = sequence(MarginRate(every=3, margin=0.5), seen)
    assert [state.decisions for state in states] == [1, 1, 1, 2, 2]
    assert [state.value for state in states] == pytest.approx([-4, -4, -4, -1, -1])
    assert MarginRate(every=3).needs_gradients(RateState(), 1), "the first one is never skipped"


def test_averaging_is_of_the_products() -> None:
    """Half of the past: c = 0.5, then (0.5 + 0)/2 = 0.25, then 0.125 + 0.2 = 0.325; n = 1, K = 2, m = 0."""
    seen = [Geometry(1.0, 1.0, c, 2) for c in (0.5, 0.0, 0.4)]
    states = sequence(MarginRate(averaging=0.5), seen)
    expected = [-2 * c / (1 - c) for c in (0.5, 0.25, 0.325)]
    assert [state.value for state in states] == pytest.approx(expected)
    assert states[-1].averages == pytest.approx((1, 1, 0.325))


def test_a_policy_of_one_s_own_takes_a_few_lines() -> None:
    @dataclass(frozen=True)
    class Angle(DynamicRate):
        """r = −strength·(1 + cosine)."""

        strength: float = 2.0

        def propose(self, geometry: Geometry) -> float | None:
            return -self.strength * (1 + geometry.cosine)

    class Steps(ScheduledRate):
        def at(self, progress: float) -> float:
            return -4.0 if progress < 0.5 else -1.0

    assert sequence(Angle(), [Geometry(1.0, 4.0, 1.0, 4)])[0].value == -3
    assert SmoothedGradientAscent(Angle()).weights(4, -3) == (-3.25, 2.25)
    assert values(Steps(), 3) == [-4, -1, -1]
    assert GradientAscent().policy is None and SmoothedGradientAscent(Steps()).policy is not None
    with pytest.raises(UserError, match="normal_weight must be"):
        GradientDifference(Steps())


def test_a_policy_says_what_it_is() -> None:
    assert str(MarginRate(margin=0.6)) == "MarginRate(margin=0.6)"
    assert str(MarginRate(every=4)) == "MarginRate(every=4, margin=0.0)"
    assert str(LinearRate(-4, -2)) == "LinearRate(start=-4, end=-2)"
    assert str(PaperRate()) == "PaperRate()"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MarginRate(every=0), "every must be at least 1, got 0"),
        (lambda: MarginRate(averaging=1.0), "averaging must be at least 0 and below 1"),
        (lambda: MarginRate(lowest=1.0), "lowest must be at most highest"),
        (lambda: MarginRate(lowest=-math.inf), "lowest must be a finite number"),
        (lambda: MarginRate(margin=-0.1), "margin must be a finite number of at least 0"),
        (lambda: MarginWeight(margin=math.nan), "margin must be"),
        (lambda: MarginRate(infeasible="guess"), "infeasible must be hold, zero or lowest"),
        (lambda: MarginRate(metric="fisher"), "metric must be euclidean or adam, got 'fisher'"),
        (lambda: SmoothedGradientAscent(NormRatio()), "use it with GradientDifference"),
        (lambda: LinearRate(math.nan, 0), "start must be a finite number"),
        (lambda: PiecewiseRate((1.0, 2.0)), "values must be one more than boundaries"),
        (lambda: PiecewiseRate((1.0, 2.0, 3.0), (0.5, 0.2)), "boundaries must rise"),
        (lambda: SmoothedGradientAscent(LinearRate(-1, 2)), "smoothing_rate must be at most 1, got 2"),
        (lambda: SmoothedGradientAscent(MarginRate(highest=2)), "smoothing_rate must be at most 1, got 2"),
        (lambda: SmoothedGradientAscent(MarginWeight()), "use it with GradientDifference"),
        (lambda: GradientDifference(MarginRate()), "use it with SmoothedGradientAscent"),
        (lambda: GradientDifference(LinearRate(1, -1)), "normal_weight must be"),
        (lambda: SmoothedGradientAscent(MarginRate()).check_group_size(1), "group_size must be at least 2"),
        (lambda: SmoothedGradientAscent(MarginRate())(torch.ones(1, 4)), "set by MarginRate"),
        (lambda: SmoothedGradientAscent().weights(4, 1.5), "smoothing_rate must be at most 1"),
        (lambda: GradientDifference().weights(4, -0.5), "normal_weight must be"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        make()


def test_a_rule_that_may_ascend_normal_data_warns() -> None:
    with pytest.warns(UserWarning, match="normal samples are ascended too"):
        SmoothedGradientAscent(MinNormRate())
    assert replace(MinNormRate(), highest=0.0).bounds == (-8, 0)


def test_inner_products_by_few_kernels_are_those_of_float64() -> None:
    """What a GPU takes; parameters without one gradient or without both, and bfloat16 ones."""
    generator = torch.Generator().manual_seed(0)
    forget = [torch.randn(size, generator=generator) for size in ((40, 30), (700,), (3,), (2, 2), (5,))]
    normal: list[torch.Tensor | None] = [0.3 * part + torch.randn(part.shape, generator=generator) for part in forget]
    forget[4], normal[4] = forget[4].bfloat16(), torch.ones(5, dtype=torch.bfloat16)
    pairs: list[tuple[torch.Tensor | None, torch.Tensor | None]] = list(zip(forget, normal, strict=True))
    pairs[2], pairs[3] = (pairs[2][0], None), (None, None)
    found = geometry._products_in_float32(pairs, torch.device("cpu"))
    expected = torch.stack([geometry._products(f, n) for f, n in pairs])
    assert found.dtype == torch.float64
    scale = (expected[:, :1] * expected[:, 1:2]).sqrt()
    torch.testing.assert_close(found[:, :2], expected[:, :2], rtol=1e-5, atol=0)
    assert ((found - expected)[:, 2:].abs() <= 1e-5 * scale).all()
