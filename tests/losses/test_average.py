"""``average: token`` against plain loops over tokens: an optimiser step is one mean, however it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TinyNetwork
from torch import Tensor

from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded
from sga.batching.loader import GroupLoader
from sga.callbacks.run_files import _parameters
from sga.errors import UserError
from sga.likelihood.answer_tokens import AnswerTokens
from sga.likelihood.forward import answer_tokens
from sga.losses.ascent import FineTuning, GradientAscent, GradientDifference, SmoothedGradientAscent
from sga.losses.base import Loss
from sga.losses.combined import Alternating, KLMinimization, SmoothedGradientDifference
from sga.losses.distillation import UNDIAL
from sga.losses.preference import DPO, NPO, Mismatch, PreferenceOptimization, SimNPO
from sga.losses.weighted import WGA, SatImp
from sga.rates.policies import MarginRate

ROLES = ("forget", "normal", "normal", "alternative", "retain")


def token_nll(model: torch.nn.Module, row: Encoded) -> Tensor:
    """−log p of a sequence's answer tokens, one sequence alone, without anything of the program's."""
    log_p = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(dim=-1)
    return torch.stack([-log_p[place - 1, row.ids[place]] for place in range(row.prompt_length, len(row.ids))])


def over_tokens(nll: Sequence[Tensor]) -> Tensor:
    """One mean over all tokens, as a trainer takes it of its labels."""
    return torch.cat(list(nll)).mean()


def weighed(nll: Tensor, beta: float) -> Tensor:
    return nll.neg().exp().detach() ** beta * nll


def plain(name: str, f: list[Tensor], n: list[Tensor], a: list[Tensor], r: list[Tensor]) -> Tensor:
    """Losses of a whole step written out, from the tokens' nll of each sequence of a role."""
    of = over_tokens
    if name == "NPO":  # sums over a sequence in what is no mean, and the retain term as published
        return torch.stack([-2 / 0.1 * torch.nn.functional.logsigmoid(-0.1 * (7.0 - x.sum())) for x in f]).mean() + of(
            n
        )
    if name == "SimNPO":
        margins = [-2 / 4.5 * torch.nn.functional.logsigmoid(4.5 * x.mean()) for x in f]
        return 0.125 * torch.stack(margins).mean() + of(n)
    rho, with_alternative = -0.8 * 2 / 3, -0.8 * 3 / 4
    return {
        "GA": lambda: -of(f),
        "GD": lambda: -of(f) + 1.5 * (2 * of(n) + of(a)) / 3,  # each kind of normals has a mean of its own
        "SGA": lambda: -(1 - with_alternative) * of(f) - with_alternative * (2 * of(n) + of(a)) / 3,
        "alternating": lambda: of(n),
        "smoothed GD": lambda: -(1 - rho) * of(f) - rho * of(n) + of(r),
        "PO": lambda: of(a) + of(n),
        "WGA": lambda: -of([weighed(x, 1) for x in f]) + of(n),
        "SatImp": lambda: -of([weighed(x, 5) * (1 - x.neg().exp()).detach() for x in f]),
    }[name]()


LOSSES: dict[str, Loss] = {
    "GA": GradientAscent("token"),
    "GD": GradientDifference(1.5, average="token"),
    "SGA": SmoothedGradientAscent(-0.8, average="token"),
    "alternating": Alternating("token"),
    "smoothed GD": SmoothedGradientDifference(-0.8, average="token"),
    "PO": PreferenceOptimization(average="token"),
    "WGA": WGA(retain="nll", average="token"),
    "SatImp": SatImp(average="token"),
    "NPO": NPO(retain="nll", average="token"),
    "SimNPO": SimNPO(average="token"),
}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_a_step_s_gradient_is_that_of_a_plain_loop_over_tokens(
    tiny_network: TinyNetwork, name: str, world: int
) -> None:
    """Seven groups in steps of four and three, cut into micro-batches of two and one, over one and two processes."""
    groups, loss = tiny_network.groups(7, 5), LOSSES[name]
    loaders = [
        GroupLoader(groups, 4, 2 if world == 1 else 1, 0, rank, world, roles=[ROLES] * 7) for rank in range(world)
    ]
    steps = [list(zip(*[iter(loader)] * loader.accumulation, strict=False)) for loader in loaders]
    assert {len(step) for step in steps} == {2}
    for number in range(2):
        model, expected_model = tiny_network.model(), tiny_network.model()
        batches = [batch for of_rank in steps for batch in of_rank[number]]
        total = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            value = step_loss(loss, model, batch) * batch.scale / loaders[0].accumulation / world
            value.backward()
            total += value.detach()
        dealt = [row for batch in batches if batch.scale for row in rows_of(batch, groups)]
        by_role = {
            role: [
                token_nll(expected_model, row)
                for group in dealt
                for row, its in zip(group, ROLES, strict=True)
                if its == role
            ]
            for role in ("forget", "normal", "alternative", "retain")
        }
        assert len({len(nll) for nll in by_role["forget"]}) > 1, "answers of one length would show nothing"
        expected = plain(name, *by_role.values())
        expected.backward()
        assert total.item() == pytest.approx(expected.item(), abs=1e-10)
        for ours, theirs in zip(model.parameters(), expected_model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)


def step_loss(loss: Loss, model: torch.nn.Module, batch: Batch) -> Tensor:
    batch = batch.select(*loss.roles(1))
    if loss.needs.reference_nll:
        batch.reference_nll = torch.full((len(batch.input_ids) // batch.group_size, batch.group_size), 7.0).double()
    return loss.of(answer_tokens(model, batch))


def rows_of(batch: Batch, groups: list[list[Encoded]]) -> list[list[Encoded]]:
    firsts = [tuple(ids[:length].tolist()) for ids, length in zip(batch.input_ids, batch.lengths, strict=True)]
    return [next(group for group in groups if group[0].ids == ids) for ids in firsts[:: batch.group_size]]


def test_a_batch_alone_is_a_step_and_fine_tuning_is_hugging_face_s_loss(tiny_network: TinyNetwork) -> None:
    """1e-6: Hugging Face computes its loss in float32 even for a float64 model."""
    model, rows = tiny_network.model(), tiny_network.encoded[:4]
    batch = collate([[row] for row in rows])
    labels = batch.input_ids.masked_fill(~batch.answer_mask, -100)
    theirs = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss.item()
    assert FineTuning("token").of(answer_tokens(model, batch)).item() == pytest.approx(theirs, abs=1e-6)
    assert abs(FineTuning().of(answer_tokens(model, batch)).item() - theirs) > 1e-4


def test_what_is_averaged_beside_other_columns() -> None:
    """Two groups: forget answers of 1 and 3 tokens, normals of 2 and 2; by hand."""
    values = torch.tensor([8.0, 1.0, 1.0, 4.0, 4.0, 4.0, 3.0, 5.0], dtype=torch.float64)
    rows, lengths = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3]), torch.tensor([[1, 2], [3, 2]])
    answers = AnswerTokens(("forget", "normal"), values, torch.zeros_like(rows), rows, lengths, lengths)
    assert answers.token_mean(values)[:, 0].mean().item() == (8 + 4 + 4 + 4) / 4
    assert answers.token_mean(values)[:, 1].mean().item() == (1 + 1 + 3 + 5) / 4
    assert answers.of("forget").nll.mean().item() == (8 + 4) / 2


def test_every_loss_that_has_the_option_heeds_it_and_others_are_refused() -> None:
    for loss in (Mismatch(average="token"), DPO(average="token"), UNDIAL(average="token"), *LOSSES.values()):
        assert loss.mean_over == "token"
    for wrong in ("tokens", "answer", None):
        with pytest.raises(UserError, match="average must be sequence or token, got"):
            GradientDifference(average=wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="average token cannot be combined with MarginRate"):
        SmoothedGradientAscent(MarginRate(), average="token")
    assert SmoothedGradientAscent(MarginRate()).mean_over == "sequence"


def test_a_run_says_the_mean_over_tokens_and_no_word_of_the_usual_one() -> None:
    """Labels of runs that have the usual mean are what they were before there was another."""
    trainer: Any = SimpleNamespace(callbacks=[])
    assert _parameters(trainer, GradientAscent()) == {}
    assert _parameters(trainer, GradientAscent("token")) == {"average": "token"}
    assert _parameters(trainer, KLMinimization())["average"] == "sequence"
