"""Sequence nll against the slowest obvious way, against Hugging Face's own loss, and under what must not matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TinyNetwork
from torch import Tensor, nn

from sga.batching.batch import collate
from sga.batching.encoding import Encoded
from sga.likelihood import forward
from sga.likelihood.forward import answer_tokens, logits_at, sequence_nll, takes
from sga.likelihood.repeated import distinct

EXACT = 1e-12


@torch.no_grad()
def slow_nll(model: nn.Module, row: Encoded) -> float:
    """Mean of −log p of each answer token, each from a forward pass of its own that sees only what is before it."""
    losses = []
    for position in range(row.prompt_length, len(row.ids)):
        logits = model(input_ids=torch.tensor([row.ids[:position]])).logits[0, -1].double()
        losses.append(-torch.log_softmax(logits, dim=-1)[row.ids[position]].item())
    return sum(losses) / len(losses)


@torch.no_grad()
def nll_of(model: nn.Module, groups: list[list[Encoded]], **settings: Any) -> Tensor:
    return sequence_nll(model, collate(groups, **settings))


def test_nll_is_that_of_the_slow_loop(tiny_network: TinyNetwork) -> None:
    """The mask one token too early or too late, which published code bases contain, gives other numbers."""
    model = tiny_network.model()
    groups = tiny_network.groups(3, 3)
    expected = torch.tensor([[slow_nll(model, row) for row in group] for group in groups], dtype=torch.float64)
    torch.testing.assert_close(nll_of(model, groups), expected, rtol=0, atol=EXACT)
    for shift in (-1, 1):
        shifted = [[replace(row, prompt_length=row.prompt_length + shift) for row in group] for group in groups]
        assert (nll_of(model, shifted) - expected).abs().min() > 1e-3


def test_nll_is_hugging_face_s_loss_row_by_row(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model(torch.float32)
    groups = tiny_network.groups(16, 1)
    found = nll_of(model, groups)
    for [row], nll in zip(groups, found[:, 0], strict=True):
        ids = torch.tensor([row.ids])
        labels = ids.clone()
        labels[:, : row.prompt_length] = -100
        assert nll.item() == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), abs=1e-5)  # float32


def test_the_shape_is_groups_by_members_in_order(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    groups = tiny_network.groups(4, 3)
    found = nll_of(model, groups)
    assert found.shape == (4, 3)
    flat = nll_of(model, [[row] for group in groups for row in group])
    torch.testing.assert_close(found, flat.view(4, 3), rtol=0, atol=EXACT)
    assert (found - found.roll(1, dims=1)).abs().max() > 1e-3, "rows differ, so the order is seen"


def test_padding_its_id_and_the_company_of_other_rows_change_nothing(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    short, long = sorted(tiny_network.encoded, key=lambda row: len(row.ids))[:: len(tiny_network.encoded) - 1]
    assert len(short.ids) < len(long.ids)
    alone = nll_of(model, [[short]])[0, 0]
    for pad_id in (0, 2, 7):  # 2 is the end-of-sequence token
        beside = nll_of(model, [[long], [short]], pad_id=pad_id)[1, 0]
        assert beside.item() == pytest.approx(alone.item(), abs=EXACT)
    padding_counted = replace(collate([[long], [short]]))
    padding_counted.answer_mask[1, short.prompt_length :] = True
    with torch.no_grad():
        assert abs(sequence_nll(model, padding_counted)[1, 0] - alone) > 1e-2


def test_a_sequence_twice_in_a_batch_is_read_once_and_counts_twice(
    tiny_network: TinyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient are those of reading each; one token of the answer more is another sequence."""
    model = tiny_network.model()
    one, two, three = sorted(tiny_network.encoded, key=lambda row: len(row.ids))[:3]
    longer = replace(one, prompt_length=one.prompt_length - 1)
    batch = collate([[one, two, three, two], [longer, three, two, one]], pad_id=2)
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda module, inputs, named: read.append(len(named["input_ids"])), with_kwargs=True
    )
    weights = torch.arange(1.0, 9.0, dtype=torch.float64).view(2, 4)

    def found(which: Any) -> tuple[Any, list[Tensor]]:
        monkeypatch.setattr(forward, "distinct", which)
        model.zero_grad()
        tokens = answer_tokens(model, batch, keep_logits=True, hidden_layer=0)
        (tokens.nll * weights).sum().backward()
        return tokens, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    (once, gradients), (each, expected) = found(distinct), found(lambda model, batch: None)
    assert read == [4, 8]
    for name in ("token_nll", "targets", "rows", "lengths", "sequence_lengths", "logits", "hidden"):
        torch.testing.assert_close(getattr(once, name), getattr(each, name), rtol=0, atol=EXACT)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-10)  # sums in another order


def test_with_dropout_every_reading_is_another(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    row = tiny_network.encoded[0]
    batch = collate([[row, row]])
    assert distinct(model.train(), batch) is not None
    assert distinct(model, collate([[row, tiny_network.encoded[1]]])) is None
    model.config.attention_dropout = 0.1
    assert distinct(model, batch) is None and distinct(model.eval(), batch) is not None


def test_a_prompt_of_another_length_beside_it_changes_nothing(tiny_network: TinyNetwork) -> None:
    """A text record is scored from its second token on, the row beside it from its answer on."""
    model = tiny_network.model()
    row = tiny_network.encoded[0]
    text = replace(tiny_network.encoded[3], prompt_length=1)
    together = nll_of(model, [[row, text]])[0]
    assert together[0].item() == pytest.approx(slow_nll(model, row), abs=EXACT)
    assert together[1].item() == pytest.approx(slow_nll(model, text), abs=EXACT)


class Wrapped(nn.Module):
    """A model that is not one of Hugging Face's classes, and gives logits of all positions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_anything_that_is_called_like_a_model_gives_the_same(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    groups = tiny_network.groups(3, 2)
    torch.testing.assert_close(nll_of(Wrapped(model), groups), nll_of(model, groups), rtol=0, atol=EXACT)


def test_only_positions_that_predict_an_answer_token_go_through_the_head(tiny_network: TinyNetwork) -> None:
    """Logits of every position would be the largest thing in memory; afterwards the model is as it was."""
    model = tiny_network.model()
    batch = collate(tiny_network.groups(4, 1))
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    logits = answer_tokens(model, batch, keep_logits=True).logits
    assert logits is not None
    answers = int(batch.answer_mask.sum())
    assert seen == [answers] and answers < batch.input_ids.numel() / 2
    assert logits.shape == (answers, model.config.vocab_size)
    assert model(input_ids=batch.input_ids).logits.shape[:2] == batch.input_ids.shape


def test_logits_at_chosen_positions_are_those_of_all_positions(tiny_network: TinyNetwork) -> None:
    """Any positions, none and all of them, the first and padding included; rows one after the other."""
    model = tiny_network.model()
    batch = collate(tiny_network.groups(4, 1))
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        whole = model(**given).logits
        for share in (0.0, 0.3, 1.0):
            chosen = torch.rand(batch.input_ids.shape, generator=torch.Generator().manual_seed(1)) < share
            for network in (model, Wrapped(model)):
                torch.testing.assert_close(
                    logits_at(network, chosen.flatten().nonzero()[:, 0], **given), whole[chosen], rtol=0, atol=EXACT
                )


def test_arguments_that_a_forward_pass_takes(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    assert takes(model, "position_ids") and takes(model, "attention_mask") and not takes(model, "colour")
    assert takes(Wrapped(model), "attention_mask") and not takes(Wrapped(model), "position_ids")


def test_a_failing_forward_pass_leaves_the_model_as_it_was(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    batch = collate(tiny_network.groups(2, 1))

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    handle = model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        answer_tokens(model, batch)
    handle.remove()
    assert model(input_ids=batch.input_ids).logits.shape[:2] == batch.input_ids.shape


def test_bfloat16_logits_are_cast_to_float32_before_the_log_softmax(tiny_network: TinyNetwork) -> None:
    """The same in bfloat16 throughout is off by far more than the tolerance here."""
    model = tiny_network.model(torch.bfloat16)
    groups = tiny_network.groups(4, 1)
    batch = collate(groups)
    with torch.no_grad():
        found = sequence_nll(model, batch)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    assert found.dtype == torch.float32 and logits.dtype == torch.bfloat16

    def by_hand(log_probs: Tensor) -> Tensor:
        picked = log_probs.gather(2, batch.input_ids[:, 1:, None])[..., 0]
        mask = batch.answer_mask[:, 1:]
        return -(picked * mask).sum(dim=1) / mask.sum(dim=1)

    expected = by_hand(torch.log_softmax(logits.float(), dim=-1))
    torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=1e-5)  # order of float32 sums
    assert (by_hand(torch.log_softmax(logits, dim=-1)).float() - expected).abs().max() > 1e-4
    assert sequence_nll(tiny_network.model(torch.float64), batch).dtype == torch.float64


def test_the_gradient_reaches_the_model_and_the_end_of_sequence_token_counts(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    row = tiny_network.encoded[0]
    sequence_nll(model, collate([[row]])).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    without = Encoded(row.ids[:-1], row.prompt_length)
    total = nll_of(model, [[row]]).item() * row.answer_length
    eos = -torch.log_softmax(model(input_ids=torch.tensor([row.ids[:-1]])).logits[0, -1], dim=-1)[row.ids[-1]]
    assert total == pytest.approx(nll_of(model, [[without]]).item() * without.answer_length + eos.item(), abs=EXACT)
