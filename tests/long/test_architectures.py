"""Many architectures against plain transformers: one sequence at a time, no padding, no cache, a loss written out.

Each is trained for two steps (one sequence a row, packed rows if a try-out finds them right, a dynamic rate, an
adapter) and evaluated (scores, greedy answers). It has to come out the same within rounding, or to be refused in one
sentence.
`make architectures` runs all of them and prints the table of docs/architectures.md.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, ENCODERS, VOCABULARY, small_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from sga.batching.batch import Batch, collate
from sga.batching.encoding import Encoded
from sga.errors import UserError
from sga.evaluation.inference import Inference
from sga.evaluation.request_batches import GenerateBatch, GenerateJob, ScoreBatch, ScoreJob
from sga.evaluation.requests import Generation, TokenScores
from sga.likelihood.forward import ForwardOptions, sequence_nll
from sga.likelihood.tryouts import tried_options
from sga.losses.ascent import SmoothedGradientAscent
from sga.models.adapters import LoRA, save_merged
from sga.rates.geometry import Geometry, margin_rate
from sga.rates.split_backward import SplitGradients

QUICK = ["llama", "gpt2", "mistral, short window", "phi3, LongRoPE", "bert", "mamba", "mixtral", "qwen3_next", "gemma3"]
"""Run in the quick suite; the others are slow ones."""
GROUP_SIZE, RATE, MARGIN, STEP = 3, -2.0, 0.5, 1e-3


@dataclass
class Outcome:
    """What became of an architecture.

    Attributes:
        evaluation: How its answers are made, or that it is refused.
        trees: Whether sequences with one prompt share a row.
        training: Whether sequences are packed, or that results depend on the batch.
        adapter: Whether all blocks' layers have one, some, or that it is refused.
    """

    evaluation: str = ""
    trees: str = "no"
    training: str = ""
    adapter: str = ""


# ---- the plain way --------------------------------------------------------------------------------------------------


def plain_log_probs(model: PreTrainedModel, ids: tuple[int, ...], prompt_length: int) -> Tensor:
    """log p of a sequence's tokens after its prompt, [T], from all logits of that sequence alone."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, prompt_length - 1 : -1]
    return torch.log_softmax(logits.float(), dim=-1)[torch.arange(len(logits)), torch.tensor(ids[prompt_length:])]


def plain_nll(model: PreTrainedModel, groups: list[list[Encoded]]) -> Tensor:
    """Mean nll of each sequence's answer, [B, K]."""
    rows = [[-plain_log_probs(model, row.ids, row.prompt_length).mean() for row in group] for group in groups]
    return torch.stack([torch.stack(row) for row in rows])


@torch.no_grad()
def plain_answer(model: PreTrainedModel, ids: tuple[int, ...], limit: int) -> tuple[int, ...]:
    text = list(ids)
    for _ in range(limit):
        text.append(int(model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return tuple(text[len(ids) :])


def plain_gradients(model: PreTrainedModel, groups: list[list[Encoded]]) -> tuple[Tensor, Tensor]:
    """Those of the forget samples' mean nll and of the normal samples', flat."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    nll = plain_nll(model, groups)
    parts = []
    for loss in (nll[:, 0].mean(), nll[:, 1:].mean()):
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(gradients, parameters, strict=True)
        parts.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    return parts[0], parts[1]


# ---- the tests ------------------------------------------------------------------------------------------------------


def tokens(rng: random.Random, least: int, most: int) -> tuple[int, ...]:
    return tuple(rng.randrange(2, VOCABULARY - 3) for _ in range(rng.randint(least, most)))


def check_evaluation(model: PreTrainedModel, outcome: Outcome) -> None:
    """Three answers to each of two prompts, two of which begin alike; five greedy answers."""
    rng = random.Random(3)
    groups = []
    for _ in range(2):
        prompt, right = tokens(rng, 3, 20), tokens(rng, 5, 12)
        answers = (right, right[:2] + tokens(rng, 1, 6), tokens(rng, 4, 6))
        jobs = [ScoreJob((*prompt, *one, 1), len(prompt), detail=False, ends=True, cut=False) for one in answers]
        # Of one longer than LongRoPE's short context the last token, which predicts nothing, makes it a long one.
        groups.append([job for job in jobs if len(job.ids) != 17])
    numbers = iter(range(100))
    inference = Inference(model, [])
    batch = ScoreBatch([[(next(numbers), job) for job in group] for group in groups], 0)
    with torch.no_grad():
        for job, found in zip(batch.jobs, inference.answer(batch), strict=True):
            assert isinstance(found, TokenScores)
            expected = plain_log_probs(model, job.ids, job.prompt_length)
            np.testing.assert_allclose(found.log_probs, expected.numpy(), rtol=0, atol=1e-4)
    outcome.trees = "yes" if inference._trees and inference._padding else "no"
    prompts = [GenerateJob(tokens(rng, 1, 20), 12, cut=False) for _ in range(5)]
    inference = Inference(model, [])
    for job, answer in zip(prompts, inference.answer(GenerateBatch(list(enumerate(prompts)), 0)), strict=True):
        assert isinstance(answer, Generation)
        assert answer.ids == plain_answer(model, job.ids, job.limit)
    outcome.evaluation = inference._way.name.lower()


def training_groups() -> list[list[Encoded]]:
    rng = random.Random(5)
    rows = [(tokens(rng, 2, 8), tokens(rng, 2, 12)) for _ in range(2 * GROUP_SIZE)]
    encoded = [Encoded((*prompt, *answer, 1), len(prompt)) for prompt, answer in rows]
    return [encoded[:GROUP_SIZE], encoded[GROUP_SIZE:]]


def options_of(model: PreTrainedModel, groups: list[list[Encoded]], packing: bool) -> ForwardOptions:
    sample = collate([[row] for group in groups for row in group[:2]])
    return tried_options(model, sample, packing, 1 << 28, lambda value: value, nullcontext)


def flat(values: list[Tensor]) -> Tensor:
    return torch.cat([value.detach().flatten() for value in values])


def steps(model: PreTrainedModel, step: Callable[[], None]) -> Tensor:
    """Two steps of plain gradient descent; returns how far the trained weights went."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = flat(parameters).clone()
    for _ in range(2):
        model.zero_grad()
        step()
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= STEP * parameter.grad
    return flat(parameters) - before


def expected_way(model: PreTrainedModel, groups: list[list[Encoded]], dynamic: bool) -> Tensor:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        forget, normal = plain_gradients(model, groups)
        rate: float | None = RATE
        if dynamic:
            pairs = ((forget, forget), (normal, normal), (normal, forget))
            products = [float(one.double() @ other.double()) for one, other in pairs]
            rate = margin_rate(Geometry(*products, group_size=GROUP_SIZE), MARGIN)
            assert rate is not None
        share = rate * (GROUP_SIZE - 1) / GROUP_SIZE  # ∇L = −g_f − r·(K−1)/K·(ḡ_n − g_f)
        gradient = -forget - share * (normal - forget)
        for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    return steps(model, step)


def our_way(model: PreTrainedModel, batch: Batch, options: ForwardOptions, dynamic: bool) -> Tensor:
    loss = SmoothedGradientAscent(RATE)

    def fixed() -> None:
        loss(sequence_nll(model, batch, options)).backward()

    def split() -> None:
        parts = SplitGradients(model.named_parameters())
        with parts.forget_part():
            sequence_nll(model, batch.forget_only(), options).mean().backward()
        sequence_nll(model, batch.normals_only(), options).mean().backward()
        geometries = list(parts.geometry(GROUP_SIZE).values())
        rate = margin_rate(sum(geometries[1:], geometries[0]), MARGIN)
        assert rate is not None
        parts.combine(*loss.weights(GROUP_SIZE, rate))

    return steps(model, split if dynamic else fixed)


@contextmanager
def as_in_training(model: PreTrainedModel) -> Iterator[None]:
    """Train mode without what is drawn at random in it."""
    for module in model.modules():
        for part in {id(module): module, id(getattr(module, "config", None)): getattr(module, "config", None)}.values():
            for name, value in list(vars(part).items()) if part is not None else []:
                random_share = "drop" in name or "jitter" in name or name == "p"
                if random_share and isinstance(value, float):
                    setattr(part, name, 0.0)
    model.train()
    yield
    model.eval()


def check_training(made: Callable[[], PreTrainedModel], outcome: Outcome) -> None:
    groups = training_groups()
    try:
        options_of(made(), groups, packing=False)
    except UserError as error:
        outcome.training = outcome.adapter = "refused"
        assert "cannot be trained" in str(error)
        return
    for dynamic in (False, True):
        model = made()
        with as_in_training(model):
            expected = expected_way(model, groups, dynamic)
        for packing in (False, True):
            model = made()
            with as_in_training(model), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                options = options_of(model, groups, packing)
                if any("depends on the lengths of the others" in str(one.message) for one in caught):
                    outcome.training = "warned: depends on the batch"
                    return
                if packing and not options.packing:
                    continue
                moved = our_way(model, collate(groups), options, dynamic)
            off = float((moved - expected).norm() / expected.norm())
            assert off < 1e-3, (dynamic, packing, off)  # float32: 1e-6 of each gradient, more where their parts cancel
            outcome.training = "packed" if options.packing else "a sequence a row"


def check_adapter(made: Callable[[], PreTrainedModel], outcome: Outcome, folder: Path) -> None:
    groups = training_groups()
    adapter = LoRA("gpt2", rank=2, alpha=4, dropout=0.0)

    def adapted() -> PreTrainedModel:
        torch.manual_seed(0)
        return adapter.prepared(made())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = adapted()
        except UserError as error:
            outcome.adapter = "refused"
            assert "target_modules" in str(error)
            return
    outcome.adapter = "some" if any("get no adapter" in str(one.message) for one in caught) else "yes"
    with as_in_training(model):
        moved = our_way(model, collate(groups), ForwardOptions(), False)
    other = adapted()
    with as_in_training(other):
        expected = expected_way(other, groups, False)
    if outcome.training.startswith("warned"):
        return
    assert float((moved - expected).norm() / expected.norm()) < 1e-3
    save_merged(model, folder, model.state_dict())
    merged = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=model.config._attn_implementation).eval()
    ids = torch.tensor([groups[0][0].ids])
    with torch.no_grad():
        after, found = (one(input_ids=ids, use_cache=False).logits for one in (model, merged))
    torch.testing.assert_close(found, after, rtol=1e-4, atol=1e-4)


def outcome_of(name: str, folder: Path) -> Outcome:
    outcome = Outcome()
    if name in ENCODERS:
        for check in (
            lambda: check_evaluation(small_model(name), outcome),
            lambda: options_of(small_model(name), training_groups(), packing=True),
        ):
            with pytest.raises(UserError, match="is no causal language model"):
                check()
        return Outcome("refused", "", "refused", "")
    model = small_model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_evaluation(model, outcome)
        check_training(lambda: small_model(name), outcome)
        if outcome.training != "refused":
            check_adapter(lambda: small_model(name), outcome, folder)
    return outcome


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.runs
def test_a_few_architectures(name: str, tmp_path: Path) -> None:
    outcome_of(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in QUICK])
def test_all_other_architectures(name: str, tmp_path: Path) -> None:
    outcome_of(name, tmp_path)


def main() -> None:
    """Prints the table of docs/architectures.md."""
    import tempfile

    for name in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = astuple(outcome_of(name, Path(folder)))
            except Exception as error:
                row = (f"FAILS: {type(error).__name__} {' '.join(str(error).split()):.160}",)
        print(f"| {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
