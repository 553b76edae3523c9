"""The baselines by hand, by limit and by derivative; every shipped method in short runs; what is refused, and why."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, SMALL_LLAMA, TinyNetwork, shipped
from torch import Tensor
from transformers import AutoModelForCausalLM

import sga
from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded
from sga.cli import UnlearningCLI, configured_cli, run_verb
from sga.data.builtin import packaged_path
from sga.data.records import Record
from sga.data.refusals import read_refusals
from sga.errors import UserError
from sga.evaluation.decoding import generate
from sga.evaluation.request_batches import GenerateBatch, GenerateJob
from sga.groups.group import Group
from sga.groups.pairing import extended
from sga.likelihood.answer_tokens import AnswerTokens
from sga.likelihood.forward import answer_tokens, sequence_nll
from sga.losses.ascent import GradientAscent, GradientDifference, SmoothedGradientAscent
from sga.losses.base import Loss
from sga.losses.combined import LLMU, Alternating, KLMinimization, SmoothedGradientDifference
from sga.losses.distillation import CEU, UNDIAL
from sga.losses.divergence import FLAT
from sga.losses.preference import DPO, NPO, Mismatch, PreferenceOptimization, SimNPO
from sga.losses.representation import RMU
from sga.losses.weighted import WGA, SatImp
from sga.models.combinations import TaskVector, WhosHarryPotter
from sga.models.pretrained import Pretrained
from sga.models.small import SmallLlama
from sga.runs.starting_model import StartingModel

LN2 = math.log(2)


# ---- numbers by hand ------------------------------------------------------------------------------------------------


def said(
    columns: Sequence[tuple[str, Sequence[float]]],
    reference_nll: Sequence[float] | None = None,
    logits: Any = None,
    targets: Sequence[int] | None = None,
    hidden: Any = None,
    reference: AnswerTokens | None = None,
    prompt: int = 3,
) -> AnswerTokens:
    """One group whose sequences have these roles and token nll; every prompt has three tokens."""
    values = [nll for _, tokens in columns for nll in tokens]
    lengths = torch.tensor([[len(tokens) for _, tokens in columns]])
    return AnswerTokens(
        roles=tuple(role for role, _ in columns),
        token_nll=torch.tensor(values, dtype=torch.float64),
        targets=torch.tensor(targets if targets is not None else [0] * len(values)),
        rows=torch.tensor([row for row, (_, tokens) in enumerate(columns) for _ in tokens]),
        lengths=lengths,
        sequence_lengths=lengths + prompt,
        logits=None if logits is None else torch.as_tensor(logits, dtype=torch.float64),
        hidden=None if hidden is None else torch.as_tensor(hidden, dtype=torch.float64),
        reference_nll=None if reference_nll is None else torch.tensor([reference_nll], dtype=torch.float64),
        reference=reference,
    )


def logs(*rows: Sequence[float]) -> list[list[float]]:
    """Logits whose softmax is these probabilities."""
    return [[math.log(p) for p in row] for row in rows]


def close(value: Tensor, expected: float) -> None:
    assert value.item() == pytest.approx(expected, abs=2e-6)


def test_alternating_by_hand() -> None:
    """Forget nll (2 + 4)/2 = 3, ascended at even steps; normals 1 and 2, mean 1.5, descended on at odd ones."""
    loss = Alternating()
    answers = said([("forget", [2, 4]), ("normal", [1]), ("normal", [2])])
    assert [loss.roles(step) for step in range(3)] == [("forget",), ("normal",), ("forget",)]
    close(loss.of(answers.of(*loss.roles(0))), -3)
    close(loss.of(answers.of(*loss.roles(1))), 1.5)


def with_divergence(loss: Loss) -> Tensor:
    """The loss of a forget answer of nll (1, 3) and a normal answer of two tokens, of which the second one is predicted
    as before and the first one with (1/2, 1/2) in place of (3/4, 1/4).
    """
    columns = [("forget", [1.0, 3.0]), ("normal", [LN2, LN2])]
    before = said(columns[1:], logits=logs([0.75, 0.25], [0.5, 0.5]))
    logits = logs([0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5])
    return loss.of(said(columns, logits=logits, reference=before, reference_nll=[4.0, math.nan]))


def test_kl_by_hand_and_both_ways_round() -> None:
    """KL(p_ref ‖ p) = 3/4·ln(3/2) + 1/4·ln(1/2) = 0.130812, the other way 1/2·ln(2/3) + 1/2·ln 2 = 0.143841; the mean
    over two tokens is half of it. NPO at the starting model is (2/β)·ln 2.
    """
    close(with_divergence(KLMinimization()), -2 + 0.130812 / 2)
    close(with_divergence(KLMinimization(retain_weight=2.0)), -2 + 0.130812)
    close(with_divergence(NPO(beta=0.5, retain="kl")), 4 * LN2 + 0.130812 / 2)
    close(with_divergence(NPO(beta=0.5, retain="reverse_kl")), 4 * LN2 + 0.143841 / 2)


def test_preference_optimisation_reads_the_refusal_and_the_normals_alone() -> None:
    """Refusal (1 + 3)/2 = 2, normals 4 and 6, mean 5."""
    for loss in (PreferenceOptimization(), Mismatch()):
        assert loss.roles(0) == ("alternative", "normal")
        close(loss.of(said([("normal", [4]), ("normal", [6]), ("alternative", [1, 3])])), 7)
    assert PreferenceOptimization().needs.alternative == "refusal"
    assert Mismatch().needs.alternative == "retain_answer"


def test_dpo_by_hand() -> None:
    """Refusal: nll 2 where it was 3; forget: 6 where it was 4. β·(1 + 2) = 1.5, −(1/0.5)·log σ(1.5) = 2·0.201413."""
    answers = said([("forget", [2, 4]), ("alternative", [2])], reference_nll=[4.0, 3.0])
    close(DPO(beta=0.5).of(answers), 0.402827)
    close(DPO(beta=0.5, forget_weight=2.0).of(answers), 0.805653)
    assert DPO().needs.reference_nll == ("forget", "alternative") and not DPO().needs.logits


def test_dpo_prefers_each_alternative_of_the_data() -> None:
    """As above, and a second alternative of nll 3 where it was 1: β·(−2 + 2) = 0, 2·ln 2; their mean."""
    answers = said([("forget", [2, 4]), ("alternative", [2]), ("alternative", [3])], reference_nll=[4.0, 3.0, 1.0])
    loss = DPO(beta=0.5, alternative="data")
    close(loss.of(answers), (0.402827 + 2 * LN2) / 2)
    loss.check_alternatives(2)
    with pytest.raises(UserError, match=r"DPO with alternative data takes the answers of --data\.alternatives"):
        loss.check_alternatives(0)
    with pytest.raises(UserError, match="DPO has no use for alternatives"):
        DPO().check_alternatives(2)


def test_npo_by_hand() -> None:
    """nll 12 in all where it was 2: β·10 = 1, −20·log σ(1) = 20·0.313262. The sum counts, not the mean of 6."""
    answers = said([("forget", [5, 7]), ("normal", [3])], reference_nll=[2.0, math.nan])
    close(NPO().of(answers), 6.265234)
    close(NPO(retain="nll").of(answers), 9.265234)


@pytest.mark.parametrize("beta", [1e-9, 0.1, 1.0])
def test_the_gradient_of_npo_is_weighed_ascent_and_ascent_in_the_limit(beta: float) -> None:
    """Each token's weight is −2·p^β/(p^β + p_ref^β), which goes to −1 as β goes to 0."""
    answers = said([("forget", [1.0, 2.0])], reference_nll=[2.5])
    nll = answers.token_nll.requires_grad_()
    NPO(beta).of(answers).backward()
    now, before = math.exp(-3 * beta), math.exp(-2.5 * beta)
    weight = -2 * now / (now + before)
    assert nll.grad is not None
    assert nll.grad.tolist() == pytest.approx([weight, weight], abs=1e-12)
    assert (abs(weight + 1) < 1e-8) == (beta < 1e-6)


def test_simnpo_by_hand() -> None:
    """β = 2, mean nll 1.5, δ = 1: −log σ(3 − 1) = 0.126928; scaled, −log σ(2·0.5) = 0.313262."""
    answers = said([("forget", [1.0, 2.0]), ("normal", [4.0])])
    close(SimNPO(2.0, 1.0, retain=None, forget_weight=1.0).of(answers), 0.126928)
    close(SimNPO(2.0, 1.0, scaled_margin=True, retain=None, forget_weight=1.0).of(answers), 0.313262)
    close(SimNPO(2.0, 1.0, forget_weight=0.125, retain_weight=0.5).of(answers), 0.126928 / 8 + 2)


def test_llmu_by_hand() -> None:
    """−0.5·2 + 1·3 + 1·0.065406; forget nll 2, other answer 3, divergence as above."""
    columns = [("forget", [2.0]), ("normal", [LN2, LN2]), ("alternative", [3.0])]
    before = said(columns[1:2], logits=logs([0.75, 0.25], [0.5, 0.5]))
    even = logs(*[[0.5, 0.5]] * 4)
    close(LLMU().of(said(columns, logits=even, reference=before)), -1 + 3 + 0.130812 / 2)
    assert LLMU().roles(0) == ("forget", "alternative", "normal")


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("total_variation", -0.108600),  # −tanh(1/2)/2 + tanh(1/4)/2 = −0.231059 + 0.122459
        ("kl", -0.027633),  # −1/2 + e^(−3/4)
        ("jensen_shannon", -0.086278),  # −(ln 2 − ln(1 + e^(−1/2))) − ln(2 − 2/(1 + e^(−1/4))) = −0.219070 + 0.132792
        ("pearson", -0.234375),  # −1/2 + (1/64 + 1/4)
    ],
)
def test_flat_by_hand(divergence: Any, expected: float) -> None:
    """Token probabilities of the good answer 1/4 and 3/4, mean 1/2; of the bad one 1/4."""
    answers = said([("forget", [math.log(4)]), ("alternative", [math.log(4), math.log(4 / 3)])])
    assert FLAT(divergence).of(answers).item() == pytest.approx(expected, abs=3e-6)


def test_flat_takes_each_alternative_of_the_data_for_good() -> None:
    """KL: P of 1/2 and 1/4 for good answers, mean of −P 3/8; 1/4 for the bad one, e^(−3/4)."""
    answers = said([("forget", [math.log(4)]), ("alternative", [LN2]), ("alternative", [math.log(4)])])
    close(FLAT("kl", alternative="data").of(answers), -3 / 8 + math.exp(-3 / 4))


def test_flat_over_the_whole_sequence_counts_prompt_positions_as_zero() -> None:
    """Prompts of 3 tokens: 1/4/4 = 1/16 and 1/5. KL: −1/5 + e^(1/16 − 1)."""
    answers = said([("forget", [math.log(4)]), ("alternative", [math.log(4), math.log(4 / 3)])])
    close(FLAT("kl", average="sequence").of(answers), -0.2 + math.exp(1 / 16 - 1))


@pytest.mark.parametrize(
    ("loss", "expected", "weights"),
    [
        # p = 1/2 and 1/4: −(1/2·ln 2 + 1/4·ln 4)/2
        (WGA(1.0), -0.346574, [-0.25, -0.125]),
        # −(1/4·ln 2 + 3/16·ln 4)/2
        (SatImp(1.0, 1.0), -0.216608, [-0.125, -0.09375]),
        # −(1/32·1/2·ln 2 + 1/1024·3/4·ln 4)/2
        (SatImp(), -0.005923, [-1 / 128, -3 / 8192]),
        (WGA(0.0), -1.5 * LN2, [-0.5, -0.5]),
    ],
)
def test_weighted_ascent_by_hand_and_its_weights_have_no_gradient(
    loss: Loss, expected: float, weights: list[float]
) -> None:
    answers = said([("forget", [LN2, 2 * LN2])])
    nll = answers.token_nll.requires_grad_()
    value = loss.of(answers)
    value.backward()
    close(value.detach(), expected)
    assert nll.grad is not None
    assert nll.grad.tolist() == pytest.approx(weights, abs=1e-12)


def test_undial_by_hand() -> None:
    """softmax(0 − ln 3, 0) = (1/4, 3/4) is the target; the student has (3/4, 1/4): −1/4·ln(3/4) − 3/4·ln(1/4)."""
    before = said([("forget", [LN2])], logits=[[0.0, 0.0]], targets=[0])
    answers = said([("forget", [0.5])], logits=logs([0.75, 0.25]), targets=[0], reference=before)
    close(UNDIAL(penalty=math.log(3)).of(answers), 1.111641)
    close(UNDIAL(penalty=0.0).of(answers), -0.5 * math.log(3 / 16))
    assert UNDIAL(retain="kl").needs.reference == ("forget", "normal")


def test_ce_u_by_hand_and_its_gradient() -> None:
    """p = (1, 2, 3)/6 without its last token is q = (1/3, 2/3, 0): 1/3·ln 6 + 2/3·ln 3; the gradient is p − q."""
    answers = said([("forget", [LN2])], logits=logs([1 / 6, 1 / 3, 1 / 2]), targets=[2])
    assert answers.logits is not None
    logits = answers.logits.requires_grad_()
    value = CEU().of(answers)
    value.backward()
    close(value.detach(), 1.329661)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-1 / 6, -1 / 3, 1 / 2], abs=1e-12)


def test_ce_u_can_leave_out_the_first_answer_tokens() -> None:
    """Two tokens cost 1/3·ln 6 + 2/3·ln 3 = 1.329661 as above and, from (1/2, 1/4, 1/4) without its last one, q =
    (2/3, 1/3, 0), 2/3·ln 2 + 1/3·ln 4 = 0.924196; an answer with no other token costs nothing.
    """
    logits = logs([1 / 6, 1 / 3, 1 / 2], [1 / 2, 1 / 4, 1 / 4])
    answers = said([("forget", [1.0, 1.0])], logits=logits, targets=[2, 2])
    close(CEU().of(answers), (1.329661 + 0.924196) / 2)
    close(CEU(skipped_tokens=1).of(answers), 0.924196)
    close(CEU(skipped_tokens=2).of(answers), 0)


def test_rmu_by_hand() -> None:
    """Forget states 0 and 2u with c = 2: (4 + 0)/2 = 2. Normal state (1, 2) where it was 0: 5, weighed with 3."""
    u = RMU().direction(2)
    assert u.norm().item() == pytest.approx(1) and (u > 0).all() and not torch.equal(u, RMU(seed=1).direction(2))
    before = said([("normal", [1.0])], hidden=[[0.0, 0.0]])
    hidden = torch.stack([torch.zeros(2), 2 * u, torch.tensor([1.0, 2.0])])
    answers = said([("forget", [1.0, 1.0]), ("normal", [1.0])], hidden=hidden, reference=before)
    close(RMU(retain_weight=3.0).of(answers), 2 + 15)
    close(RMU(retain_weight=3.0, norm="mean").of(answers), 1 + 7.5)
    assert RMU().needs.trained_layers == (5, 6, 7) and RMU(1).needs.trained_layers == (0, 1)
    assert RMU(-1).needs.trained_layers == (-3, -2, -1)


def test_smoothed_gradient_difference_by_hand() -> None:
    """K = 2, r = −1: −1.5·2 + 0.5·4 = −1; retain samples 3 and 5, mean 4, weighed with 0.5."""
    loss = SmoothedGradientDifference(-1.0, 0.5, 2)
    answers = said([("forget", [2.0]), ("normal", [4.0]), ("retain", [3.0]), ("retain", [5.0])])
    close(loss.of(answers), 1)
    assert loss.needs.retain == 2 and loss.roles(0) == ("forget", "normal", "retain")
    assert SmoothedGradientDifference(0.0).roles(0) == ("forget", "retain")


def test_the_columns_of_some_roles_keep_their_numbers() -> None:
    answers = said([("forget", [1, 2]), ("normal", [3]), ("alternative", [4, 6])], reference_nll=[1.0, 2.0, 3.0])
    two = answers.of("alternative", "forget")
    assert two.roles == ("forget", "alternative") and two.nll.tolist() == [[1.5, 5]]
    assert two.total_nll.tolist() == [[3, 10]] and two.log_ratio.tolist() == [[-2, -7]]
    assert answers.of("normal").lengths.tolist() == [[1]]
    assert answers.places.tolist() == [0, 1, 0, 0, 1] and two.places.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NPO(beta=0.0), "beta must be a finite number above 0"),
        (lambda: DPO(beta=math.nan), "beta must be"),
        (lambda: NPO(retain="ce"), "retain must be nll, kl"),
        (lambda: WGA(beta=-1.0), "beta must be a finite number of at least 0"),
        (lambda: FLAT("hellinger"), "divergence must be one of total_variation"),
        (lambda: FLAT(average="all"), "average must be"),
        (lambda: RMU(3, trained_layers=[4]), r"trained_layers must be blocks up to layer 3"),
        (lambda: RMU(norm="max"), "norm must be"),
        (lambda: KLMinimization(average="all"), "average must be sequence or answer"),
        (lambda: CEU(skipped_tokens=-1), "skipped_tokens must be"),
        (lambda: SmoothedGradientDifference(retain_samples=0), "retain_samples must be at least 1"),
        (lambda: SmoothedGradientDifference(1.5), "smoothing_rate must be at most 1"),
        (lambda: LLMU(mismatch_weight=-1.0), "mismatch_weight must be"),
        (lambda: NPO(retain="nll").check_group_size(1), "NPO needs normal samples: group_size must be at least 2"),
        (lambda: RMU().check_group_size(1), "RMU needs normal samples"),
        (lambda: Alternating().check_group_size(1), "Alternating needs normal samples"),
        (lambda: LLMU().check_group_size(1), "LLMU needs normal samples"),
        (lambda: TaskVector("x", "y", math.inf), "scale must be"),
        (lambda: WhosHarryPotter("x", "y", -1.0), "strength must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        make()
    NPO().check_group_size(1)
    FLAT().check_group_size(1)


# ---- on a model -----------------------------------------------------------------------------------------------------

METHODS: Mapping[str, Loss] = {
    "SGA": SmoothedGradientAscent(-4.0),
    "GD": GradientDifference(),
    "alternating": Alternating(),
    "KL": KLMinimization(),
    "IDK": PreferenceOptimization(),
    "DPO": DPO(retain="nll"),
    "NPO": NPO(),
    "NPO+KL": NPO(retain="reverse_kl"),
    "SimNPO": SimNPO(),
    "LLMU": LLMU(),
    "FLAT": FLAT("jensen_shannon"),
    "WGA": WGA(retain="nll"),
    "SatImp": SatImp(),
    "UNDIAL": UNDIAL(),
    "RMU": RMU(1),
    "CE-U": CEU(),
    "smoothed GD": SmoothedGradientDifference(),
}
ROLES = ("forget", "normal", "normal", "alternative", "retain")


def test_what_is_read_does_not_depend_on_other_columns_or_padding(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    batch = collate(tiny_network.groups(3, 5), roles=ROLES)
    whole = answer_tokens(model, batch, keep_logits=True, hidden_layer=0)
    torch.testing.assert_close(whole.nll, sequence_nll(model, batch), rtol=0, atol=0)
    for roles in (("forget",), ("normal",), ("alternative", "normal")):
        alone = answer_tokens(model, batch.select(*roles), keep_logits=True, hidden_layer=0)
        part = whole.of(*roles)
        assert part.roles == alone.roles
        for name in ("token_nll", "targets", "rows", "lengths", "sequence_lengths", "logits", "hidden"):
            torch.testing.assert_close(getattr(part, name), getattr(alone, name), rtol=0, atol=1e-10)
    layers = [answer_tokens(model, batch, hidden_layer=layer).hidden for layer in (1, -1, 0)]
    assert layers[0] is not None and layers[1] is not None and layers[2] is not None
    assert torch.equal(layers[0], layers[1]) and not torch.equal(layers[0], layers[2])


def gradient(
    loss: Loss, tiny_network: TinyNetwork, groups: list[list[Encoded]], parts: Sequence[slice], step: int = 0
) -> Tensor:
    """Gradient of the mean over groups, taken in parts; the model has moved on from the one it started as."""
    start, model = StartingModel(tiny_network.model()), tiny_network.model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
    rows = sorted({row for group in groups for row in group}, key=lambda row: row.ids)
    scored = start.answers(collate([[row] for row in rows])).total_nll[:, 0].tolist()
    for part in parts:
        some = groups[part]
        batch: Batch = collate(some, roles=ROLES, reference=dict(zip(rows, scored, strict=True)))
        batch = replace(batch, reference_nll=batch.reference_nll.double())  # type: ignore[union-attr]
        batch = batch.select(*loss.roles(step))
        needs = loss.needs
        answers = answer_tokens(model, batch, needs.logits, needs.hidden_layer)
        if needs.reference:
            beside = start.answers(batch.select(*needs.reference), needs.logits, needs.hidden_layer)
            answers = replace(answers, reference=beside)
        (loss.of(answers) * len(some) / len(groups)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_change_no_gradient(tiny_network: TinyNetwork, name: str) -> None:
    groups = tiny_network.groups(4, 5)
    whole = gradient(METHODS[name], tiny_network, groups, [slice(0, 4)])
    assert whole.norm() > 1e-3, "the comparison would be empty"
    apart = gradient(METHODS[name], tiny_network, groups, [slice(0, 1), slice(1, 4)])
    torch.testing.assert_close(apart, whole, rtol=0, atol=1e-10)


def test_an_adapter_that_can_be_switched_off_gives_the_starting_model(tiny_network: TinyNetwork) -> None:
    """As PEFT's models have it: `disable_adapter` is a context in which the model is the one before training."""
    model = tiny_network.model()
    batch = collate(tiny_network.groups(2, 2))
    expected = sequence_nll(model, batch)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    off = []

    @contextmanager
    def disable_adapter() -> Any:
        off.append(True)
        with torch.no_grad():
            model.lm_head.weight.div_(2)
        yield
        with torch.no_grad():
            model.lm_head.weight.mul_(2)

    model.disable_adapter = disable_adapter
    model.train()
    torch.testing.assert_close(StartingModel(model).answers(batch).nll, expected, rtol=0, atol=1e-12)
    assert off and model.training
    assert not torch.allclose(sequence_nll(model, batch), expected)


# ---- other answers and retain samples -------------------------------------------------------------------------------


def records(prefix: str, count: int) -> list[Record]:
    return [Record(f"{prefix}/{i}", f"{prefix} question {i}?", f"{prefix} answer {i}") for i in range(count)]


def test_other_answers_follow_from_the_seed_and_the_record_alone() -> None:
    forget, pool = records("forget", 6), records("retain", 9)
    groups = [Group(record, (pool[i], pool[i + 1]), (0.0, 0.0)) for i, record in enumerate(forget)]
    refusals = read_refusals()
    found = extended(groups, "refusal", 3, pool, refusals, seed=1)
    assert found == extended(found, "refusal", 3, pool, refusals, seed=1)
    assert found[4] == extended(groups[4:5], "refusal", 3, pool, refusals, seed=1)[0]
    assert found != extended(groups, "refusal", 3, pool, refusals, seed=2)
    assert len({group.alternatives[0].answer for group in found}) > 3
    for group in found:
        (other,) = group.alternatives
        assert other.question == group.forget.question and other.answer in refusals
        assert len({record.id for record in group.retain}) == 3 and not set(group.retain) & set(group.normals)
    for group in extended(groups, "retain_answer", 0, pool, refusals, seed=1):
        assert group.alternatives[0].answer in {record.answer for record in pool} and not group.retain
    for group in extended(groups, "normal_answer", 0, pool, refusals, seed=1):
        assert group.alternatives[0].answer == group.normals[0].answer


def test_other_answers_that_cannot_be_are_refused() -> None:
    forget, pool = Group(records("forget", 1)[0]), records("retain", 2)
    text = Group(Record("forget/0", "", "A passage."))
    with pytest.raises(UserError, match="is plain text: it has no question that a refusal"):
        extended([text], "refusal", 0, pool, ["No."], 0)
    with pytest.raises(UserError, match="group_size must be at least 2"):
        extended([forget], "normal_answer", 0, pool, ["No."], 0)
    with pytest.raises(UserError, match="asks for 3 random retain samples"):
        extended([forget], None, 3, pool, ["No."], 0)
    with pytest.raises(UserError, match="no answer other than that of forget record"):
        extended([forget], "retain_answer", 0, [replace(pool[0], answer="Forget  answer 0")], ["No."], 0)


def test_refusals(tmp_path: Path) -> None:
    refusals = read_refusals()
    assert len(refusals) >= 100 and len(set(refusals)) == len(refusals)
    path = tmp_path / "own.txt"
    path.write_text("No.\n\n  Never.  \n", encoding="utf-8")
    assert read_refusals(str(path)) == ("No.", "Never.")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_refusals(str(path))
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no refusal"):
        read_refusals(str(path))
    with pytest.raises(UserError, match="no such file"):
        read_refusals(str(tmp_path / "none.txt"))


# ---- runs -----------------------------------------------------------------------------------------------------------

EVALUATED_ONLY = ("evaluate", "task-vector", "whp")
TRAINED = sorted(
    path.stem
    for path in packaged_path("configs/methods").glob("*.yaml")
    if path.stem not in ("target", "retain", *EVALUATED_ONLY)
)
TINY_AUTHORS = [
    *SMALL_LLAMA,
    "--model.language_model.context=256",
    "--data.source.forget_authors=1",
    "--data.source.retain_authors=2",
    "--data.source.holdout_authors=1",
    "--data.source.questions_per_author=4",
    "--data.batch_size=2",
    "--evaluation.reference=null",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.logger=false",
    "--export.enabled=false",
]
UNEVALUATED = ["--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=0", "--trainer.max_steps=2"]


def fit(folder: Path, stem: str, *options: str) -> UnlearningCLI:
    """Two steps of a shipped method on very few built-in authors, with a random model."""
    return run_verb(["fit", *shipped("authors", stem), *TINY_AUTHORS, f"--run.folder={folder}", *UNEVALUATED, *options])


def test_every_method_has_a_configuration() -> None:
    """One at least for each; retrain is the method retain."""
    configured_losses = set()
    for stem in TRAINED:
        config = yaml.safe_load(packaged_path(f"configs/methods/{stem}.yaml").read_text(encoding="utf-8"))
        configured_losses.add(config["model"]["loss"]["class_path"].removeprefix("sga."))
    kinds = {
        name for name in sga.__all__ if isinstance(getattr(sga, name), type) and issubclass(getattr(sga, name), Loss)
    }
    assert kinds - configured_losses == {"Loss", "TokenLoss", "RetainingLoss", "WeighingLoss"}


@pytest.mark.parametrize("stem", [*TRAINED, "target", "retain"])
@pytest.mark.runs
def test_every_method_takes_two_steps(stem: str, tmp_path: Path) -> None:
    run = fit(tmp_path, stem)
    assert run.trainer.global_step == 2
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())
    info = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert info["method"] == type(run.model.loss).__name__
    needs = run.model.loss.needs
    assert (tmp_path / "reference.json").is_file() == bool(needs.reference or needs.reference_nll)


def test_a_layer_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names layer 5, but the model has 2, 0 to 1"):
        fit(tmp_path, "rmu", "--model.loss.layer=7", "--model.loss.trained_layers=null")


def test_rmu_trains_the_layers_that_it_names_and_no_others(tmp_path: Path) -> None:
    run = fit(tmp_path, "rmu", "--model.loss.layer=0", "--model.loss.trained_layers=[0]")
    trained = {name for name, parameter in run.model.model.named_parameters() if parameter.requires_grad}
    assert trained and all(".layers.0." in name for name in trained)
    assert {name for name, p in run.model.model.named_parameters() if p.grad is not None} <= trained


def test_rmu_trains_only_the_weights_that_it_names(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "rmu", "--model.loss.trained_weights=mlp.down_proj.weight")
    trained = [name for name, parameter in run.model.model.named_parameters() if parameter.requires_grad]
    assert trained == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)]
    with pytest.raises(UserError, match=r"no weight of layer 0 has a name that ends in 'fc2\.weight'; there are self"):
        fit(tmp_path / "other", "rmu", "--model.loss.trained_weights=fc2.weight")


def test_the_divergence_of_kl_minimisation_is_read_at_the_question_too(tmp_path: Path) -> None:
    """At every token of a normal sample but the first; forget samples at answer tokens, as without it."""
    read = {}
    for average in ("sequence", "answer"):
        run = fit(tmp_path / average, "kl", f"--model.loss.average={average}")
        read[average] = run.datamodule.train_dataloader().groups
        assert run.datamodule.train_dataloader().roles[0] == ("forget", "normal", "normal", "normal")
    for whole, answer in zip(read["sequence"], read["answer"], strict=True):
        assert whole[0] == answer[0] and whole[0].prompt_length > 1
        assert [row.ids for row in whole] == [row.ids for row in answer]
        assert [row.prompt_length for row in whole[1:]] == [1, 1, 1]
        assert all(row.prompt_length > 1 for row in answer[1:])


def test_normal_samples_are_needed_where_a_retain_term_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NPO needs normal samples"):
        fit(tmp_path, "npo-nll", "--data.group_size=1")
    fit(tmp_path, "npo", "--data.group_size=1")


def test_what_a_method_spends_is_what_it_reads(tmp_path: Path) -> None:
    """Four groups in two steps: an epoch. NPO+KL reads forget and normals, its reference forget once and normals."""
    run = fit(tmp_path, "npo-kl", "--trainer.limit_val_batches=1.0", "--model_utility.generate=false")
    groups = run.datamodule.encode(run.datamodule.groups)
    forget = sum(len(group[0].ids) for group in groups)
    normals = sum(len(row.ids) for group in groups for row in group[1:])
    costs = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert costs["tokens"] == forget + normals
    assert costs["reference_tokens"] == forget + normals


@pytest.fixture
def method_options(unlearn_options: list[str]) -> list[str]:
    """A short run of NPO with the divergence on the tiny target."""
    kept = [option for option in unlearn_options if not option.startswith("--model.loss")]
    short = ["--model_utility.generate=false", "--export.enabled=false", "--checkpoint.keep_epochs=true"]
    return [*kept, *short, "--model.loss=sga.NPO", "--model.loss.retain=kl"]


def test_a_resumed_run_keeps_the_model_that_it_started_from(method_options: list[str], tmp_path: Path) -> None:
    """Bit for bit; also where the kept numbers are lost, and not where the starting model is another one."""
    whole = run_verb(["fit", *method_options, f"--run.folder={tmp_path / 'whole'}"])
    expected = {name: value.clone() for name, value in whole.model.state_dict().items()}

    def resumed(name: str) -> UnlearningCLI:
        folder = tmp_path / name
        checkpoint = next((folder / "checkpoints").glob("epoch-001*.ckpt"))
        return run_verb(["fit", *method_options, f"--run.folder={folder}", f"--ckpt_path={checkpoint}"])

    for name in ("kept", "lost", "other", "damaged"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
    (tmp_path / "lost" / "reference.json").unlink()
    for name in ("kept", "lost"):
        state = resumed(name).model.state_dict()
        assert all(torch.equal(state[key], expected[key]) for key in expected), name
    stored = json.loads((tmp_path / "other" / "reference.json").read_text())
    (tmp_path / "other" / "reference.json").write_text(json.dumps({**stored, "model": "0" * 64}))
    with pytest.raises(UserError, match="made with another starting model"):
        resumed("other")
    (tmp_path / "damaged" / "reference.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        resumed("damaged")


# ---- two models put together ----------------------------------------------------------------------------------------


def models(own_target: Path, own_reference: Path) -> tuple[Any, Any, Any]:
    base = Pretrained(str(own_target))
    tokenizer = base.tokenizer(())
    return base.network(tokenizer), Pretrained(str(own_reference)).network(tokenizer), tokenizer


def test_a_task_vector_is_arithmetic_on_weights(own_target: Path, own_reference: Path) -> None:
    base, tuned, tokenizer = models(own_target, own_reference)
    found = TaskVector(str(own_target), str(own_reference), 3.0).network(tokenizer)
    for (name, value), old, new in zip(found.named_parameters(), base.parameters(), tuned.parameters(), strict=True):
        torch.testing.assert_close(value, old - 3 * (new - old), rtol=0, atol=1e-6, msg=name)


def test_whos_harry_potter_by_its_logits_and_its_cache(own_target: Path, own_reference: Path) -> None:
    """v_b − a·ReLU(v_r − v_b); greedy decoding with the cache of both says what it says without one."""
    base, reinforced, tokenizer = models(own_target, own_reference)
    both = WhosHarryPotter(str(own_target), str(own_reference), 0.7).network(tokenizer).eval()
    same = WhosHarryPotter(str(own_target), str(own_target)).network(tokenizer).eval()
    prompts = [
        tuple(tokenizer(text)["input_ids"]) for text in ("Question: Where was Ada", "Question: What does Ben do")
    ]
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            v_b, v_r = base(ids).logits, reinforced(ids).logits
            torch.testing.assert_close(both(ids).logits, v_b - 0.7 * (v_r - v_b).clamp(min=0), rtol=0, atol=1e-5)
            torch.testing.assert_close(same(ids).logits, v_b, rtol=0, atol=1e-5)
    batch = GenerateBatch([(i, GenerateJob(prompt, 8, False)) for i, prompt in enumerate(prompts)], 0)
    for model in (both, same):
        for prompt, answer in zip(prompts, generate(model, batch, [-1]), strict=True):
            ids = list(prompt)
            for _ in range(8):
                with torch.no_grad():
                    ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            assert answer.ids == tuple(ids[len(prompt) :])


def test_both_are_evaluated_and_the_task_vector_is_exported(
    own_options: list[str], own_target: Path, own_reference: Path, tmp_path: Path
) -> None:
    common = ["validate", *own_options, "--model_utility.generate=false"]
    for kind, option, more in (
        ("TaskVector", "tuned", ["--export.evaluated=true"]),
        ("WhosHarryPotter", "reinforced", []),
    ):
        folder = tmp_path / kind
        run_verb(
            [
                *common,
                f"--run.folder={folder}",
                f"--model.language_model=sga.{kind}",
                f"--model.language_model.name_or_path={own_target}",
                f"--model.language_model.{option}={own_reference}",
                *more,
            ]
        )
        assert "own/forget/avg_nll" in json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "TaskVector" / "model")
    expected = TaskVector(str(own_target), str(own_reference)).network(Pretrained(str(own_target)).tokenizer(()))
    assert all(torch.equal(a, b) for a, b in zip(exported.parameters(), expected.parameters(), strict=True))
    assert not (tmp_path / "WhosHarryPotter" / "model").exists()


def test_a_decoder_over_two_models_is_not_trained(
    unlearn_options: list[str], own_target: Path, own_reference: Path, tmp_path: Path
) -> None:
    options = [option for option in unlearn_options if not option.startswith("--model.language_model")]
    whp = [
        "--model.language_model=sga.WhosHarryPotter",
        f"--model.language_model.name_or_path={own_target}",
        f"--model.language_model.reinforced={own_reference}",
    ]
    with pytest.raises(UserError, match="WhosHarryPotter cannot be trained"):
        run_verb(["fit", *options, *whp, f"--run.folder={tmp_path / 'run'}"])
    assert not (tmp_path / "run" / "run.json").exists()


# ---- on other benchmarks --------------------------------------------------------------------------------------------


ON_QUESTIONS = ("dpo", "flat-js", "flat-kl", "flat-pearson", "flat-tv", "idk", "llmu", "mismatch")
"""Methods that answer a question otherwise, which plain text does not have."""


PLAIN_TEXT = {
    "book": ["--data.source.prompt_tokens=16", "--data.source.continuation_tokens=16"],
    "muse": ["--data.source.texts=4", "--data.source.block_tokens=60"],
}
"""Benchmarks of plain texts, with what makes them small."""


def fit_on_text(benchmark: str, stem: str, folder: Path, *options: str) -> UnlearningCLI:
    """Two steps of a shipped method on a benchmark of plain texts, with a random model."""
    return run_verb(
        [
            "fit",
            *shipped(benchmark, stem),
            *SMALL_LLAMA,
            *PLAIN_TEXT[benchmark],
            "--data.max_length=64",
            "--data.batch_size=4",
            *([] if stem == "reinforced" else ["--data.group_size=3"]),
            "--evaluation.reference=null",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--trainer.logger=false",
            "--export.enabled=false",
            f"--run.folder={folder}",
            *UNEVALUATED,
            *options,
        ]
    )


@pytest.mark.parametrize("stem", ["sga", "dpo", "llmu"])
def test_a_method_takes_two_steps_on_text_or_says_why_not(
    stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused is refused before a model is made."""
    if stem == "sga":
        assert fit_on_text("book", stem, tmp_path).trainer.global_step == 2
        return
    monkeypatch.setattr(SmallLlama, "network", lambda *_: pytest.fail("a model was made"))
    with pytest.raises(UserError, match="is plain text: it has no question"):
        fit_on_text("book", stem, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", PLAIN_TEXT)
@pytest.mark.parametrize("stem", TRAINED)
def test_every_method_takes_two_steps_on_text_or_says_why_not(
    stem: str, benchmark: str, tofu_root: Path, tmp_path: Path
) -> None:
    root = [f"--data.root={tofu_root.parent / 'muse_news'}"] if benchmark == "muse" else []
    if stem in ON_QUESTIONS:
        with pytest.raises(UserError, match="is plain text: it has no question"):
            fit_on_text(benchmark, stem, tmp_path, *root)
        return
    run = fit_on_text(benchmark, stem, tmp_path, *root)
    assert run.trainer.global_step == 2
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("stem", TRAINED)
def test_every_method_takes_two_steps_on_tofu(stem: str, tofu_root: Path, tiny_models: Path, tmp_path: Path) -> None:
    run = run_verb(
        [
            "fit",
            *shipped("tofu-small", stem),
            *("--data.source.forget_split=forget01", f"--data.root={tofu_root}"),
            f"--model.language_model.name_or_path={tiny_models / 'full'}",
            f"--run.folder={tmp_path / 'run'}",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--export.enabled=false",
            *UNEVALUATED,
        ]
    )
    assert run.trainer.global_step == 2


@pytest.mark.slow
@pytest.mark.parametrize("stem", [*TRAINED, "target", "retain"])
def test_every_method_takes_two_steps_on_own_data(
    stem: str, own_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    run = run_verb(
        [
            "fit",
            *shipped("own", stem),
            *own_options,
            f"--model.language_model.name_or_path={own_target}",
            "--data.batch_size=4",
            f"--run.folder={tmp_path / 'run'}",
            "--export.enabled=false",
            *(["--model.loss.layer=1", "--model.loss.trained_layers=[0,1]"] if stem == "rmu" else []),  # of two
            *UNEVALUATED,
        ]
    )
    assert run.trainer.global_step == 2


# ---- the page -------------------------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "methods.md"


def test_the_page_lists_every_method_and_its_configurations() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for stem in (*TRAINED, *EVALUATED_ONLY, "retain"):
        if stem not in ("sga-cosine", "sga-margin", "sga-paper-rate", "gd-margin", "reinforced", "evaluate"):
            assert f"`{stem}`" in text, stem


def test_the_method_of_the_page_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's example goes into a file, as it is, and its class path onto the command line."""
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n# my_methods\.py\n(.*?)```", text, flags=re.DOTALL)
    assert len(code.splitlines()) < 30
    (tmp_path / "my_methods.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    command = re.search(r"--model\.loss=(my_methods\.\w+)", text)
    assert command is not None
    try:
        run = run_verb(
            [
                "fit",
                *TINY_AUTHORS,
                f"--run.folder={tmp_path / 'run'}",
                *UNEVALUATED,
                "--data.source=sga.Authors",
                f"--model.loss={command[1]}",
                "--model.loss.ceiling=2.5",
            ]
        )
        import my_methods  # type: ignore[import-not-found]

        (own,) = [getattr(my_methods, command[1].split(".")[1])]
        close(own(ceiling=4.0).of(said([("forget", [1.0, 3.0]), ("normal", [3.0]), ("normal", [5.0])])), -2 + 4)
        close(own(ceiling=1.0).of(said([("forget", [1.0, 3.0]), ("normal", [3.0])])), -1 + 3)
    finally:
        sys.modules.pop("my_methods", None)
    assert run.trainer.global_step == 2


def test_negative_control_a_class_path_that_is_no_loss_is_refused() -> None:
    with pytest.raises(SystemExit):
        configured_cli([*TINY_AUTHORS, "--data.source=sga.Authors", "--model.loss=sga.smoothing_vector"])


def test_gradient_ascent_reads_no_reference() -> None:
    assert GradientAscent().needs == SmoothedGradientAscent(-0.8).needs == GradientDifference().needs
    assert not GradientAscent().needs.reference
