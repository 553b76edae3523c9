"""Attention by length, compiled blocks, few waits for the GPU: equal numbers with the plain path, and tried out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel
from waiting import Counter

from sga import SmoothedGradientAscent
from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded
from sga.batching.packing import packed
from sga.likelihood.fast_paths import BY_LENGTH, take_compiled, take_lengths
from sga.likelihood.forward import ForwardOptions, answer_tokens, sequence_nll
from sga.likelihood.tryouts import tried_options
from sga.models import attention

SIZES: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def llama(**further: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **further))


def mistral() -> PreTrainedModel:
    """With a window of 5 tokens, shorter than most sequences."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5))


def batch_of(lengths: tuple[int, ...] = (9, 4, 13, 2, 7, 7, 3, 20), group_size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    rows = [
        Encoded(tuple(torch.randint(3, 90, (length,), generator=generator).tolist()), max(1, length // 3))
        for length in lengths
    ]
    return collate([rows[start : start + group_size] for start in range(0, len(rows), group_size)])


def outcome(model: nn.Module, options: ForwardOptions) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    nll = sequence_nll(model, batch_of(), options)
    SmoothedGradientAscent(-4.0)(nll).backward()
    return nll.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("make", [llama, mistral])
def test_attention_by_length_gives_the_gradients_of_one_sequence_a_row(make: Callable[[], PreTrainedModel]) -> None:
    """In float64; the mask that is given is NaN, so that nothing but lengths can have been looked at."""
    model = make().double()
    plain = outcome(model, ForwardOptions())
    model.set_attn_implementation(attention.NAME)
    for found, expected in zip(outcome(model, BY_LENGTH), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for found, expected in zip(outcome(model, ForwardOptions()), plain, strict=True):  # without lengths it is sdpa
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_layer_that_lengths_do_not_reach_says_nan() -> None:
    assert sequence_nll(llama(), batch_of(), BY_LENGTH).isnan().all()


def test_lengths_of_a_packed_row_by_hand() -> None:
    """Sequences of 5, 3 and 2 tokens, longest first, and 6 that fill the row up to 16."""
    rows = [Encoded(tuple(range(length)), 1) for length in (3, 5, 2)]
    arguments = packed(collate([[row] for row in rows]), by_length=True).arguments
    assert arguments["cu_seq_lens_q"].tolist() == [0, 5, 8, 10, 16]
    assert arguments["max_length_q"] == 64
    assert arguments["position_ids"].tolist() == [[*range(5), *range(3), *range(2), *range(6)]]


MASK_OPERATORS = 1000


def try_out(model: PreTrainedModel) -> ForwardOptions:
    return tried_options(model, batch_of(group_size=1), True, None, lambda agreed: agreed, nullcontext)


def test_attention_by_length_is_taken_where_there_is_a_kernel_that_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not try_out(llama()).by_length, "a CPU has no kernel"
    monkeypatch.setattr(attention, "available", lambda device, dtype: True)
    model = llama()
    assert try_out(model) == BY_LENGTH
    assert model.config._attn_implementation == attention.NAME


def test_a_kernel_that_mixes_sequences_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "available", lambda device, dtype: True)

    def one_text(query: Tensor, key: Tensor, value: Tensor, begins: Tensor, *more: Any, **options: Any) -> Tensor:
        return attention.one_by_one(query, key, value, begins[[0, -1]], None, None)

    monkeypatch.setattr(attention, "by_length", one_text)
    model = llama()
    with pytest.warns(UserWarning, match="attention by length gives wrong values"):
        assert not try_out(model).by_length
    assert model.config._attn_implementation == "sdpa"


def test_a_kernel_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "available", lambda device, dtype: True)
    monkeypatch.setattr(attention, "by_length", lambda *more, **options: torch.zeros(1) @ torch.zeros(2))
    assert "failed (RuntimeError" in str(take_lengths(llama(), batch_of(), nullcontext))


@pytest.mark.parametrize("takes", [{"scale", "window_size"}, {"is_causal"}, {"scale", "window_size", "enable_gqa"}])
def test_the_kernel_is_called_as_its_version_wants_and_compiles(takes: set[str]) -> None:
    """In the place of the kernel a loop with a kernel's arguments; compiled without a break in the graph."""
    called: dict[str, Any] = {}

    def loop(q: Tensor, k: Tensor, v: Tensor, begins: Tensor, _: Tensor, *more: int, **options: Any) -> Tensor:
        called.update(options)
        assert options.get("enable_gqa") or q.shape[1] == k.shape[1]
        return q * 2 + k.sum() + v.sum()

    kernel = attention._Kernel()
    kernel.function, kernel.takes = loop, frozenset(takes)
    inputs = [torch.randn(9, heads, 8, dtype=torch.float64) for heads in (4, 2, 2)]
    begins = torch.tensor([0, 4, 9], dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_KERNEL", kernel)
        plain = attention._by_kernel(*inputs, begins, 64, 0.5, None)
        assert set(called) == takes
        compiled = torch.compile(attention._by_kernel, backend="eager", fullgraph=True, dynamic=True)
        torch.testing.assert_close(compiled(*inputs, begins, 64, 0.5, None), plain)


# ---- compiled blocks ------------------------------------------------------------------------------------------------


def blocks_compile_to(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Makes compilation change what a block gives."""

    def compile(self: nn.Module, **options: Any) -> None:
        self._compiled_call_impl = lambda *inputs, **more: change(self._call_impl(*inputs, **more))

    monkeypatch.setattr(nn.Module, "compile", compile)


def test_blocks_stay_compiled_where_they_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks_compile_to(monkeypatch, lambda output: output)
    model = llama()
    state = torch.get_rng_state()
    assert take_compiled(model, batch_of(), ForwardOptions(packing=True, room=50), nullcontext) is None
    assert all(block._compiled_call_impl is not None for block in model.model.layers)
    assert torch.equal(torch.get_rng_state(), state)


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # type: ignore[override]
        return 1.1 * upstream


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda output: 1.1 * output, "gives wrong values"),
        (WrongBackward.apply, "gives wrong gradients"),
        (lambda output: output[:, :0].view(-1, 7), "failed"),
    ],
)
def test_blocks_that_compile_to_something_else_are_left_as_they_are(
    change: Callable[[Any], Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks_compile_to(monkeypatch, change)
    model = llama()
    with pytest.warns(UserWarning, match=rf"torch.compile {said}.*--model.compile=false"):
        tried_options(model, batch_of(), True, None, lambda agreed: agreed, nullcontext, compiled=True)
    assert all(block._compiled_call_impl is None for block in model.model.layers)


# ---- waits for the GPU ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "select"),
    [
        (ForwardOptions(), False),
        (ForwardOptions(packing=True, room=100, given_mask=True), False),
        (BY_LENGTH, False),
        (BY_LENGTH, True),
    ],
)
def test_a_forward_and_backward_pass_never_waits(
    options: ForwardOptions, select: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for transformers' own looks at a padding mask."""
    model, batch = llama(), batch_of()
    model.set_attn_implementation(attention.NAME if options.by_length else "sdpa")
    # A GPU's tensor would be copied to the CPU; the lengths of sequences, which the kernel takes as they are, may be.
    monkeypatch.setattr(attention, "one_by_one", lambda q, k, v, *more: q * k.mean() * v.mean())
    monkeypatch.setattr(Tensor, "tolist", lambda self: pytest.fail("a look at a tensor"))
    with Counter() as counted:
        answers = answer_tokens(model, batch.normals_only() if select else batch, options=options)
        loss = answers.nll.mean() if select else SmoothedGradientAscent(-4.0).of(answers)
        logged = answers.mean_nll
        loss.backward()
    assert set(logged) == ({"normal"} if select else {"forget", "normal"})
    assert len(counted.waits) <= (2 if options == ForwardOptions() else 0), counted.waits


def test_operators_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held so that nobody adds to them unseen: two blocks, forward and backward, with a mask and by length."""
    monkeypatch.setattr(attention, "one_by_one", lambda q, k, v, *more: q * k.mean() * v.mean())
    found = {}
    for name, options in (("mask", ForwardOptions(packing=True, room=100)), ("length", BY_LENGTH)):
        model = llama()
        model.set_attn_implementation(attention.NAME if options.by_length else "sdpa")
        with Counter() as counted:
            sequence_nll(model, batch_of((9, 4, 13, 2)), options).sum().backward()
        found[name] = counted.operators
    assert found["length"] < found["mask"] <= MASK_OPERATORS, found


def test_the_mean_nll_of_a_role_is_that_of_its_columns() -> None:
    answers = answer_tokens(llama(), batch_of())
    for role, mean in answers.mean_nll.items():
        torch.testing.assert_close(mean, answers.of(role).nll.mean())
