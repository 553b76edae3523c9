"""Packed rows, parts of the head and compiled blocks against one sequence a row with all logits at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyNetwork
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from sga.batches import Batch, collate
from sga.cli import UnlearningCLI, run_verb
from sga.likelihood import Reading, blocks, chunks_work, packed_reading, read_answers, sequence_nll
from sga.losses import SmoothedGradientAscent
from sga.packing import first_fit, packed, padded, row_cost

PACKED = Reading(packing=True, room=100)
READINGS = [
    PACKED,
    Reading(packing=True, room=100, given_mask=True),
    Reading(max_logits=1000),
    Reading(packing=True, room=100, max_logits=1000),
]


def loss_and_gradient(model: nn.Module, batch: Batch, reading: Reading) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    loss = SmoothedGradientAscent(-4.0)(sequence_nll(model, batch, reading))
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# ---- layouts --------------------------------------------------------------------------------------------------------


def test_a_packed_layout_by_hand() -> None:
    """Sequences of 5, 3 and 2 tokens in one row, or in rows of 5, each filled up to a multiple of 8."""
    ids = torch.tensor([[1, 11, 12, 13, 14], [1, 21, 22, 0, 0], [1, 31, 0, 0, 0]])
    lengths = torch.tensor([5, 3, 2])
    attention = (torch.arange(5) < lengths[:, None]).long()
    answers = (attention == 1) & (torch.arange(5) >= torch.tensor([3, 2, 1])[:, None])
    layout = packed(Batch(ids, attention, answers, 1, 1.0, 10, ("forget",)), room=10)
    assert layout.arguments["input_ids"][0, :10].tolist() == [1, 11, 12, 13, 14, 1, 21, 22, 1, 31]
    assert layout.arguments["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 0, 1, 2, 3, 4, 5]]
    assert layout.predicting.tolist() == [2, 3, 6, 8] and layout.answers.tolist() == [3, 4, 7, 9]
    rows = packed(Batch(ids, attention, answers, 1, 1.0, 10, ("forget",)))
    assert rows.arguments["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 0, 1, 0, 1, 2]]
    assert rows.arguments["input_ids"][1, :5].tolist() == [1, 21, 22, 1, 31]
    assert rows.predicting.tolist() == [2, 3, 9, 11]


def test_every_token_stands_once_and_next_to_nothing_is_padding(tofu_like: Batch) -> None:
    layout = packed(tofu_like)
    rows, width = layout.arguments["input_ids"].shape
    starts = int((layout.arguments["position_ids"] == 0).sum())
    assert starts >= tofu_like.input_ids.shape[0]
    assert tofu_like.tokens > 0.9 * rows * width
    assert tofu_like.tokens < 0.7 * tofu_like.input_ids.numel(), "one a row, much is padding"
    for found, batch in ((layout, tofu_like), (padded(tofu_like), tofu_like)):
        tokens = found.arguments["input_ids"].flatten()
        torch.testing.assert_close(tokens[found.answers], batch.input_ids[batch.answer_mask], rtol=0, atol=0)
        before = batch.input_ids[batch.answer_mask.roll(-1, dims=1)]
        torch.testing.assert_close(tokens[found.predicting], before, rtol=0, atol=0)


@pytest.fixture
def tofu_like() -> Batch:
    """32 groups of 4 sequences with lengths as TOFU's: 30 to 120 tokens, a few longer."""
    draws = torch.Generator().manual_seed(0)
    lengths = torch.randint(30, 120, (128,), generator=draws)
    lengths[::31] += 80
    width = int(lengths.max())
    attention = torch.arange(width) < lengths[:, None]
    ids = torch.randint(3, 90, (128, width), generator=draws) * attention
    return Batch(ids, attention.long(), attention & (torch.arange(width) >= 15), 4, 1.0, int(lengths.sum()), ("a",) * 4)


def test_rows_are_as_long_as_pays(tofu_like: Batch) -> None:
    """Eight sequences fill rows of the longest one's length badly; a small model has more to lose by longer rows."""
    rows = [0, 1, 2, 3, 4, 5, 6, 31]
    few = Batch(
        tofu_like.input_ids[rows], tofu_like.attention_mask[rows], tofu_like.answer_mask[rows],
        4, 1.0, int(tofu_like.attention_mask[rows].sum()), ("a",) * 4,
    )  # fmt: skip
    shapes = {size: packed(few, size).arguments["input_ids"].shape for size in (None, 16, 768)}
    numbers = {size: rows * width for size, (rows, width) in shapes.items()}
    assert numbers[768] < numbers[None] and shapes[768][1] > shapes[16][1] >= shapes[None][1]
    costs = {size: row_cost(*shapes[size], 768) for size in shapes}
    assert costs[768] == min(costs.values()) < costs[None]


def test_bins_hold_what_they_have_room_for_and_are_few(tofu_like: Batch) -> None:
    lengths = tofu_like.attention_mask.sum(dim=1).tolist()
    bins = first_fit(lengths, max(lengths))
    assert sorted(index for one in bins for index in one) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in one) <= max(lengths) for one in bins)
    assert len(bins) <= 11 / 9 * -(-sum(lengths) // max(lengths)) + 1


# ---- the same results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_loss_and_gradient_do_not_depend_on_the_reading(tiny_network: TinyNetwork, reading: Reading) -> None:
    """Float64 to 1e-10; float32: gradients to 1e-5 of their norm, loss to 1e-6."""
    batch = collate(tiny_network.groups(8, 4))
    exact = tiny_network.model()
    loss, gradient = loss_and_gradient(exact, batch, Reading())
    other_loss, other = loss_and_gradient(exact, batch, reading)
    assert abs(loss - other_loss) < 1e-10 and (gradient - other).abs().max() < 1e-10
    assert not torch.equal(gradient, other), "another way was taken"
    rounded = tiny_network.model(torch.float32)
    loss, gradient = loss_and_gradient(rounded, batch, Reading())
    other_loss, other = loss_and_gradient(rounded, batch, reading)
    assert abs(loss - other_loss) < 1e-6 * max(1.0, abs(float(loss)))
    assert (gradient - other).norm() < 1e-5 * gradient.norm()


def test_a_sequence_that_sees_its_neighbour_is_noticed(tiny_network: TinyNetwork) -> None:
    """The negative control: the same rows with positions that go on give other numbers."""
    model = tiny_network.model()
    batch = collate(tiny_network.groups(8, 4))
    layout = packed(batch, room=100)
    shape = layout.arguments["position_ids"].shape
    running = {**layout.arguments, "position_ids": torch.arange(shape[1]).expand(shape)}
    with torch.no_grad():
        right = model(**layout.arguments, use_cache=False).logits.flatten(0, 1)[layout.predicting]
        wrong = model(**running, use_cache=False).logits.flatten(0, 1)[layout.predicting]
        alone = padded(batch)
        plain = model(**alone.arguments).logits.flatten(0, 1)[alone.predicting]
    torch.testing.assert_close(right, plain, rtol=0, atol=1e-10)
    assert (wrong - plain).abs().max() > 0.1


def test_logits_and_hidden_states_stand_in_the_batch_s_order(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    batch = collate(tiny_network.groups(6, 3))
    with torch.no_grad():
        one = read_answers(model, batch, keep_logits=True, hidden_layer=0)
        two = read_answers(model, batch, keep_logits=True, hidden_layer=0, reading=PACKED)
    for name in ("token_nll", "logits", "hidden", "targets", "rows", "lengths", "sequence_lengths"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=0, atol=1e-10)


def test_no_more_logits_exist_at_a_time_than_allowed(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    batch = collate(tiny_network.groups(8, 4))
    seen: list[int] = []
    given = model.lm_head.forward

    def counted(hidden: Tensor) -> Tensor:
        seen.append(hidden.shape[:-1].numel())
        return given(hidden)

    model.lm_head.forward = counted
    limit = 5 * model.config.vocab_size
    sequence_nll(model, batch, Reading(max_logits=limit)).mean().backward()
    answers = int(batch.answer_mask.sum())
    assert max(seen) == 5 and sum(seen) == 2 * answers, "each once forward and once more backward"
    seen.clear()
    sequence_nll(model, batch, Reading(max_logits=answers * model.config.vocab_size))
    assert seen == [answers], "what fits is made at once"


# ---- which models can -----------------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA: dict[str, Any] = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2}
GPT2: dict[str, Any] = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT: dict[str, Any] = {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
GEMMA: dict[str, Any] = {**LLAMA, "head_dim": 8, "sliding_window": 80, "final_logit_softcapping": 1.0}

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "llama-eager": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, attn_implementation="eager")),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=7)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**LLAMA)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**OPT, dropout=0.0)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)),
}


def untrained(family: str) -> PreTrainedModel:
    """Weights large enough that what a token sees makes a difference."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model.double()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_is_said_to_be_capable_of_it_is(family: str, tofu_like: Batch) -> None:
    """The try-out's word against float64 gradients; families differ in masks, windows, positions and capped logits."""
    model = untrained(family)
    rows = [0, 1, 2, 3, 31, 32, 33, 34]
    batch = Batch(
        tofu_like.input_ids[rows, :64], tofu_like.attention_mask[rows, :64], tofu_like.answer_mask[rows, :64],
        4, 1.0, int(tofu_like.attention_mask[rows, :64].sum()), ("a",) * 4,
    )  # fmt: skip
    loss, gradient = loss_and_gradient(model, batch, Reading())
    packing = packed_reading(model, batch)
    chunks = Reading(max_logits=970) if chunks_work(model, batch) else None
    for reading in filter(None, (packing, packing and replace(packing, room=200), chunks)):
        other_loss, other = loss_and_gradient(model, batch, reading)
        assert abs(loss - other_loss) < 1e-5 and (gradient - other).norm() < 1e-5 * gradient.norm()  # float32 norms
    assert (packing is None) == (family == "bloom"), "it has no positions"
    assert packing is None or packing.given_mask == (family == "opt"), "it makes its mask without the positions"
    assert (chunks is None) == (family == "gemma2"), "its logits are capped after the head"
    assert model.training


class Blind(nn.Module):
    """A model that takes positions and masks of what sees what, and looks at neither."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None, **other: Any) -> Any:
        return self.model(input_ids=input_ids, **other)


def test_a_model_that_takes_a_packed_row_for_one_text_is_found_out(tiny_network: TinyNetwork) -> None:
    batch = collate(tiny_network.groups(4, 1))
    assert packed_reading(tiny_network.model(), batch) == Reading(packing=True)
    assert packed_reading(Blind(tiny_network.model()), batch) is None


# ---- in a run -------------------------------------------------------------------------------------------------------

Fit = Callable[..., UnlearningCLI]


@pytest.fixture
def fit(unlearn_options: list[str]) -> Fit:
    """Runs a short SGA run into a folder, without greedy answers and model folder; more options override."""
    short = ["--model_utility.generate=false", "--export.enabled=false"]

    def run(folder: Path, *options: str) -> UnlearningCLI:
        return run_verb(["fit", *unlearn_options, *short, f"--run.folder={folder}", *options])

    return run


def weights(run: UnlearningCLI) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


@pytest.mark.parametrize("loss", [("sga.losses.NPO",), ("sga.SmoothedGradientAscent", "sga.rates.MarginRate")])
def test_runs_with_and_without_packing_end_at_the_same_weights(fit: Fit, tmp_path: Path, loss: tuple[str, ...]) -> None:
    """One method that compares with the starting model, and one whose backward pass is split; float64 but for norms."""
    options = ["--trainer.precision=64-true", "--data.batch_size=4", f"--model.loss={loss[0]}"]
    options += [f"--model.loss.smoothing_rate={policy}" for policy in loss[1:]]
    plain = fit(tmp_path / "plain", "--model.packing=false", "--model.max_logits=null", *options)
    assert plain.model.reading == Reading()
    for name, more in (("packed", ()), ("parts", ("--model.max_logits=2000",))):
        run = fit(tmp_path / name, *more, *options)
        assert run.model.reading.packing and run.model.reading.max_logits is not None
        torch.testing.assert_close(weights(run), weights(plain), rtol=0, atol=1e-8)


def test_a_run_of_a_model_that_cannot_says_so_and_goes_on(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fit(tmp_path / "plain", "--model.packing=false")
    monkeypatch.setattr("sga.module.packed_reading", lambda model, batch: None)
    with pytest.warns(UserWarning, match="takes the sequences of a packed row for one text"):
        run = fit(tmp_path / "run")
    assert torch.equal(weights(run), weights(plain))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_compiled_blocks_give_the_same_run(fit: Fit, tmp_path: Path) -> None:
    options = ("--trainer.precision=64-true", "--data.batch_size=4")
    plain = fit(tmp_path / "plain", *options)
    compiled = fit(tmp_path / "compiled", "--model.compile=true", *options)
    assert not torch.equal(weights(compiled), weights(plain)), "another code ran"
    # Llama's norms compute in float32, in another order when compiled, and Adam makes much of it.
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.parametrize("reading", [Reading(), PACKED], ids=str)
def test_compiled_blocks_give_the_same_gradients(tiny_network: TinyNetwork, reading: Reading) -> None:
    model, batch = tiny_network.model(), collate(tiny_network.groups(8, 4))
    loss, gradient = loss_and_gradient(model, batch, reading)
    for block in blocks(model):
        block.compile(dynamic=True)
    compiled_loss, compiled = loss_and_gradient(model, batch, reading)
    assert abs(loss - compiled_loss) < 1e-10 and (gradient - compiled).abs().max() < 1e-10
    assert not torch.equal(gradient, compiled), "another code ran"
