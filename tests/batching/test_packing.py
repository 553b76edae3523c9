"""Packed rows, parts of the head, fused heads, compiled blocks: against one sequence a row with all logits at once."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from conftest import TinyNetwork
from peft import LoraConfig, get_peft_model
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

import sga.module
from sga.batching.batch import Batch, collate
from sga.batching.packing import first_fit, packed, padded, row_cost
from sga.cli import UnlearningCLI, run_verb
from sga.likelihood.forward import ForwardOptions, answer_tokens, sequence_nll
from sga.likelihood.fused import FusedHead, fused_head
from sga.likelihood.tryouts import chunks_work, fused_fault, packed_options
from sga.losses.ascent import SmoothedGradientAscent
from sga.models.blocks import transformer_blocks


class Rederived(torch.autograd.Function):
    """A fused head in plain PyTorch: no logits are kept, and gradients are written down."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.weigh = weigh
        logits = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
        return logits.logsumexp(dim=1) - logits.gather(1, targets[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets = ctx.saved_tensors
        slopes = (hidden @ weight.T).to(upstream.dtype).softmax(dim=1)
        slopes[torch.arange(len(targets)), targets] -= 1
        slopes = (slopes * ctx.weigh(upstream)[:, None]).to(hidden.dtype)
        return slopes @ weight, slopes.T @ hidden, None, None


def rederived(weigh: Callable[[Tensor], Tensor] = lambda upstream: upstream) -> FusedHead:
    """A fused head whose gradients take what is made of the tokens' weights."""
    return FusedHead("fused 1.0", lambda hidden, weight, targets: Rederived.apply(hidden, weight, targets, weigh))


FUSED = rederived()
FIRST_WEIGHT = rederived(lambda upstream: upstream[0].expand(len(upstream)))
"""Liger's defect, https://github.com/linkedin/Liger-Kernel/issues/968: all tokens have the weight of the first."""
FIRST_PART = rederived(lambda upstream: upstream * (torch.arange(len(upstream)) < 1024))


class FusedHeadOnCPU(pl.Callback):
    """Runs with a fused head, which is wrong in one process or in none, and tells whether it was used."""

    def __init__(self, wrong_in: int | None = None) -> None:
        self.wrong_in = wrong_in

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        fused = FIRST_WEIGHT if trainer.global_rank == self.wrong_in else FUSED
        sga.likelihood.tryouts.fused_head = lambda head: fused

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        assert pl_module.forward_options.fused is (FUSED if self.wrong_in is None else None), pl_module.forward_options


PACKED = ForwardOptions(packing=True, room=100)
READINGS = [
    PACKED,
    ForwardOptions(packing=True, room=100, given_mask=True),
    ForwardOptions(max_logits=1000),
    ForwardOptions(packing=True, room=100, max_logits=1000),
    ForwardOptions(max_logits=1000, fused=FUSED),
    ForwardOptions(packing=True, room=100, fused=FUSED),
]


def loss_and_gradient(model: nn.Module, batch: Batch, reading: ForwardOptions) -> tuple[Tensor, Tensor]:
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


def test_every_token_is_packed_once_and_next_to_nothing_is_padding(tofu_like: Batch) -> None:
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
def test_loss_and_gradient_do_not_depend_on_the_reading(tiny_network: TinyNetwork, reading: ForwardOptions) -> None:
    """Float64 to 1e-10; float32: gradients to 1e-5 of their norm, loss to 1e-6."""
    batch = collate(tiny_network.groups(8, 4))
    exact = tiny_network.model()
    loss, gradient = loss_and_gradient(exact, batch, ForwardOptions())
    other_loss, other = loss_and_gradient(exact, batch, reading)
    assert abs(loss - other_loss) < 1e-10 and (gradient - other).abs().max() < 1e-10
    assert not torch.equal(gradient, other), "another way was taken"
    rounded = tiny_network.model(torch.float32)
    loss, gradient = loss_and_gradient(rounded, batch, ForwardOptions())
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
        one = answer_tokens(model, batch, keep_logits=True, hidden_layer=0)
        two = answer_tokens(model, batch, keep_logits=True, hidden_layer=0, options=PACKED)
    for name in ("token_nll", "logits", "hidden", "targets", "rows", "lengths", "sequence_lengths"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=0, atol=1e-10)


def test_no_more_logits_exist_at_a_time_than_allowed(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model()
    batch = replace(collate(tiny_network.groups(8, 4)), keys=None)  # repeated sequences are read as often as they stand
    seen: list[int] = []
    given = model.lm_head.forward

    def counted(hidden: Tensor) -> Tensor:
        seen.append(hidden.shape[:-1].numel())
        return given(hidden)

    model.lm_head.forward = counted
    limit = 5 * model.config.vocab_size
    sequence_nll(model, batch, ForwardOptions(max_logits=limit)).mean().backward()
    answers = int(batch.answer_mask.sum())
    assert max(seen) == 5 and sum(seen) == 2 * answers, "each once forward and once more backward"
    seen.clear()
    sequence_nll(model, batch, ForwardOptions(max_logits=answers * model.config.vocab_size))
    assert seen == [answers], "what fits is made at once"


# ---- fused heads ----------------------------------------------------------------------------------------------------

PRECISIONS = ("float64", "float32", "bfloat16", "bf16-mixed")


def in_precision(tiny_network: TinyNetwork, precision: str) -> tuple[PreTrainedModel, torch.autocast]:
    mixed = precision == "bf16-mixed"
    model = tiny_network.model(torch.float32 if mixed else getattr(torch, precision))
    return model, torch.autocast("cpu", torch.bfloat16, enabled=mixed)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_fused_head_is_found_to_be_right_or_found_out(tiny_network: TinyNetwork, precision: str) -> None:
    model, context = in_precision(tiny_network, precision)
    batch = collate(tiny_network.groups(4, 1))
    weight = model.lm_head.weight.detach().clone()

    def fault(fused: FusedHead, max_logits: int = 1 << 28) -> str | None:
        with context:
            return fused_fault(model, batch, fused, max_logits)

    def missing(*arguments: Tensor) -> Tensor:
        raise ImportError("it needs\nmore")

    assert fault(FUSED) is None and fault(FUSED, 1) is None
    assert "wrong gradients of hidden states" in str(fault(FIRST_WEIGHT))
    assert "wrong gradients of hidden states" in str(fault(FIRST_WEIGHT, 1))
    assert "wrong gradients" in str(fault(FIRST_PART)), "right for as many tokens as a kernel takes at a time"
    assert "wrong values" in str(fault(FusedHead("", lambda *given: FUSED.nll(*given) * 1.1)))
    assert "wrong values" in str(fault(FusedHead("", lambda *given: FUSED.nll(*given) * torch.nan)))
    assert fault(FusedHead("", missing)) == "failed (ImportError: it needs more)"
    assert all(parameter.grad is None for parameter in model.parameters()) and torch.equal(weight, model.lm_head.weight)
    assert chunks_work(model, batch), "the head is as it was"


def test_the_defect_shows_with_unequal_weights_only(tiny_network: TinyNetwork) -> None:
    """The negative control: what the try-out finds out spoils SGA's gradient, and neither a value nor the mean's."""
    model, batch = tiny_network.model(), replace(collate(tiny_network.groups(8, 4)), keys=None)
    loss, gradient = loss_and_gradient(model, batch, ForwardOptions())
    other_loss, other = loss_and_gradient(model, batch, ForwardOptions(fused=FIRST_WEIGHT))
    assert abs(loss - other_loss) < 1e-10 and (gradient - other).norm() > 0.5 * gradient.norm()
    means = []
    for reading in (ForwardOptions(), ForwardOptions(fused=FIRST_WEIGHT)):
        model.zero_grad()
        answer_tokens(model, batch, options=reading).token_nll.mean().backward()
        means.append(model.lm_head.weight.grad)
    torch.testing.assert_close(means[0], means[1], rtol=0, atol=1e-10)


def test_the_fused_head_multiplies_in_the_head_s_type(tiny_network: TinyNetwork) -> None:
    batch, seen = collate(tiny_network.groups(4, 1)), set()

    def seeing(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        seen.add((hidden.dtype, weight.dtype, torch.is_autocast_enabled("cpu")))
        return FUSED.nll(hidden, weight, targets)

    for precision in PRECISIONS:
        model, context = in_precision(tiny_network, precision)
        with context:
            nll = sequence_nll(model, batch, ForwardOptions(fused=FusedHead("", seeing)))
        nll.mean().backward()
        assert nll.dtype == (torch.float64 if precision == "float64" else torch.float32)
        assert model.lm_head.weight.grad.dtype == model.lm_head.weight.dtype
        dtype = torch.bfloat16 if precision == "bf16-mixed" else getattr(torch, precision)
        assert seen == {(dtype, dtype, False)}
        seen.clear()


def test_a_fused_head_is_for_plain_heads_on_a_gpu(tiny_network: TinyNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = get_peft_model(tiny_network.model(torch.float32), LoraConfig(target_modules=["lm_head"]))
    ours = SimpleNamespace(LigerFusedLinearScaledCrossEntropyFunction=SimpleNamespace(apply=FUSED.nll))
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace(ops=ours))
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", ours)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.2")
    assert fused_head(nn.Linear(4, 9, bias=False)) is None, "on a CPU"
    monkeypatch.setattr("sga.likelihood.fused._on_hopper", lambda device: True)
    found = fused_head(nn.Linear(4, 9, bias=False))
    assert found is not None and found.name == "liger-kernel 1.2"
    assert fused_head(nn.Linear(4, 9)) is None, "a bias"
    assert fused_head(nn.Linear(4, 9, bias=False).double()) is None, "it gives float32 at most"
    assert fused_head(adapted.get_output_embeddings()) is None and fused_head(None) is None
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", SimpleNamespace())
    assert fused_head(nn.Linear(4, 9, bias=False)) is None, "a version without it"
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", None)
    assert fused_head(nn.Linear(4, 9, bias=False)) is None, "not installed"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bf16-mixed"])
def test_liger_s_own(tiny_network: TinyNetwork, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """What Liger takes where there is no Hopper GPU, on the CPU; bfloat16 to 3e-2 of the gradient's norm."""
    pytest.importorskip("liger_kernel.ops", reason="liger-kernel is not installed (extra liger)")
    monkeypatch.setattr("sga.likelihood.fused._on_hopper", lambda device: True)
    model, context = in_precision(tiny_network, precision)
    fused = fused_head(model.lm_head)
    assert fused is not None and fused.name.startswith("liger-kernel 0.")
    batch, calls = collate(tiny_network.groups(8, 4)), []
    counted = replace(fused, nll=lambda *given: calls.append(given) or fused.nll(*given))
    with context:
        assert fused_fault(model, batch, fused, 1 << 28) is None
        loss, gradient = loss_and_gradient(model, batch, ForwardOptions())
        other_loss, other = loss_and_gradient(model, batch, ForwardOptions(fused=counted))
    tolerance = 1e-5 if precision == "float32" else 3e-2
    assert len(calls) == 1
    assert abs(loss - other_loss) < tolerance and (gradient - other).norm() < tolerance * gradient.norm()


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
@pytest.mark.runs
def test_what_a_family_is_said_to_be_capable_of_it_is(family: str, tofu_like: Batch) -> None:
    """The try-out's word against float64 gradients; families differ in masks, windows, positions and capped logits."""
    model = untrained(family)
    rows = [0, 1, 2, 3, 31, 32, 33, 34]
    batch = Batch(
        tofu_like.input_ids[rows, :64], tofu_like.attention_mask[rows, :64], tofu_like.answer_mask[rows, :64],
        4, 1.0, int(tofu_like.attention_mask[rows, :64].sum()), ("a",) * 4,
    )  # fmt: skip
    loss, gradient = loss_and_gradient(model, batch, ForwardOptions())
    packing = packed_options(model, batch)
    chunks = ForwardOptions(max_logits=970) if chunks_work(model, batch) else None
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
    assert packed_options(tiny_network.model(), batch) == ForwardOptions(packing=True)
    assert packed_options(Blind(tiny_network.model()), batch) is None


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


@pytest.mark.parametrize("loss", [("sga.NPO",), ("sga.SmoothedGradientAscent", "sga.MarginRate")])
def test_runs_with_and_without_packing_end_at_the_same_weights(fit: Fit, tmp_path: Path, loss: tuple[str, ...]) -> None:
    """One method that compares with the starting model, and one whose backward pass is split; float64 but for norms."""
    options = ["--trainer.precision=64-true", "--data.batch_size=4", f"--model.loss={loss[0]}"]
    options += [f"--model.loss.smoothing_rate={policy}" for policy in loss[1:]]
    plain = fit(tmp_path / "plain", "--model.packing=false", "--model.max_logits=null", *options)
    assert plain.model.forward_options == ForwardOptions()
    for name, more in (("packed", ()), ("parts", ("--model.max_logits=2000",))):
        run = fit(tmp_path / name, *more, *options)
        assert run.model.forward_options.packing and run.model.forward_options.max_logits is not None
        torch.testing.assert_close(weights(run), weights(plain), rtol=0, atol=1e-8)


def test_a_run_of_a_model_that_cannot_pack_says_so_and_continues(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fit(tmp_path / "plain", "--model.packing=false")
    monkeypatch.setattr("sga.likelihood.tryouts.packed_options", lambda model, batch: None)
    with pytest.warns(UserWarning, match="takes the sequences of a packed row for one text"):
        run = fit(tmp_path / "run")
    assert torch.equal(weights(run), weights(plain))


def test_a_fused_head_is_used_where_it_is_right(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float64 but for norms; what it is tried out in is what training multiplies in."""
    options = ["--trainer.precision=64-true", "--data.batch_size=4", "--model.loss=sga.NPO"]
    plain = fit(tmp_path / "plain", *options)
    assert plain.model.forward_options.fused is None
    monkeypatch.setattr("sga.likelihood.tryouts.fused_head", lambda head: FUSED)
    run = fit(tmp_path / "fused", *options)
    assert run.model.forward_options.fused is FUSED
    torch.testing.assert_close(weights(run), weights(plain), rtol=0, atol=1e-8)
    assert not torch.equal(weights(run), weights(plain)), "another way was taken"
    assert fit(tmp_path / "whole", "--model.max_logits=null", *options).model.forward_options.fused is None

    monkeypatch.setattr("sga.likelihood.tryouts.fused_head", lambda head: FIRST_WEIGHT)
    with pytest.warns(UserWarning, match=r"fused 1\.0 gives wrong gradients .*: going on without it") as found:
        run = fit(tmp_path / "wrong", *options)
    assert sum("going on without it" in str(one.message) for one in found) == 1
    assert run.model.forward_options == plain.model.forward_options and torch.equal(weights(run), weights(plain))

    seen = []
    monkeypatch.setattr("sga.likelihood.tryouts.fused_head", lambda head: FusedHead("", seeing))

    def seeing(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        seen.append(weight.dtype)
        return FUSED.nll(hidden, weight, targets)

    run = fit(tmp_path / "mixed", "--trainer.precision=bf16-mixed", "--trainer.max_epochs=1")
    assert run.model.forward_options.fused is not None and set(seen) == {torch.bfloat16}


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
@pytest.mark.parametrize("reading", [ForwardOptions(), PACKED], ids=str)
def test_compiled_blocks_give_the_same_gradients(tiny_network: TinyNetwork, reading: ForwardOptions) -> None:
    model, batch = tiny_network.model(), collate(tiny_network.groups(8, 4))
    loss, gradient = loss_and_gradient(model, batch, reading)
    for block in transformer_blocks(model):
        block.compile(dynamic=True)
    compiled_loss, compiled = loss_and_gradient(model, batch, reading)
    assert abs(loss - compiled_loss) < 1e-10 and (gradient - compiled).abs().max() < 1e-10
    assert not torch.equal(gradient, compiled), "another code ran"
