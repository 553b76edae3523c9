"""A plain TOFU evaluator, written the way published evaluators work: the one that this package's own is timed against.

Every metric is a pass of its own over its rows, and `PASSES` names them all. The names are those of open-unlearning
(github.com/locuslab/open-unlearning, its TOFU metrics with the membership and memorisation ones) and so is the manner;
passes that open-unlearning spares, because it computes the metric from another one's numbers, are marked `spared`, so
that times can be given with and without them:

* A pass takes its rows in file order, 32 at a time; nothing is sorted by length.
* A scoring pass tokenises its rows, pads them on the right, runs the model once, takes the float32 log-softmax of the
  logits at every position (prompt and padding too) over the whole vocabulary, and picks what it needs.
* A generation pass pads the prompts on the left and calls ``model.generate``: greedy, at most 200 new tokens, its
  default key-value cache. A batch runs until its last row has ended.
* Nothing is shared: the same answer is tokenised and run again for each metric that asks for it.

Truth ratios, normalised probabilities, AUCs and model utility are then computed from the passes' numbers without the
model, and Forget Quality can be from `PlainResult.log_truth_ratio`.

Where published evaluators do more than they need to, this one does not follow, so that a comparison with it is fair:
Min-K %++ takes one forward pass a batch (open-unlearning takes two), no key-value cache is kept while scoring, a batch
comes to the CPU in one piece, and prompts are not decoded again to find the true answer.

Token ids come from `sga.batching.encoding` and the last step, numbers to metrics, from `sga.evaluation.metrics`, so
that both evaluators mean the same thing; everything between is plain code of this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from sga.batching.encoding import Encoded, Encoder
from sga.data.records import Record
from sga.data.tofu import TOFU
from sga.errors import UserError
from sga.evaluation.metrics import (
    exact_memorization,
    extraction_strength,
    log_truth_ratio,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    model_utility,
    normalized_probability,
    privleak,
    probability,
    truth_ratio_forget,
    truth_ratio_retain,
    zlib_score,
)

Quantity = Literal[
    "avg_nll",
    "total_nll",
    "zlib",
    "min_k",
    "min_k_plus_plus",
    "exact_memorization",
    "extraction_strength",
    "rouge_l_recall",
]
Answer = Literal["answer", "paraphrased_answer", "perturbed_answers"]
Row = TypeVar("Row")


@dataclass(frozen=True)
class Pass:
    """One run of the model over the rows of one set, for one metric.

    Attributes:
        name: open-unlearning's name of the metric; for the membership scores with the set behind it.
        quantity: What is measured, one number a sequence.
        records: The evaluation set.
        answer: Which answer follows the question. ``"perturbed_answers"``: each a sequence of its own, all of a row
            before those of the next. Generation looks at the question alone.
        spared: open-unlearning takes the numbers of an earlier pass, or does not have the metric.
    """

    name: str
    quantity: Quantity
    records: str
    answer: Answer = "answer"
    spared: bool = False

    @property
    def generates(self) -> bool:
        """True where the model is to write an answer, false where it scores one."""
        return self.quantity == "rouge_l_recall"


PASSES = (
    Pass("forget_Q_A_Prob", "avg_nll", "forget"),
    Pass("forget_Q_A_PARA_Prob", "avg_nll", "forget", "paraphrased_answer"),
    Pass("forget_Q_A_PERT_Prob", "avg_nll", "forget", "perturbed_answers"),
    Pass("retain_Q_A_Prob", "avg_nll", "retain"),
    Pass("retain_Q_A_PARA_Prob", "avg_nll", "retain", "paraphrased_answer"),
    Pass("retain_Q_A_PERT_Prob", "avg_nll", "retain", "perturbed_answers"),
    # Real authors and world facts have no paraphrase: the answer stands in for it. Their probability is normalised and
    # so needs the perturbed answers too, as their truth ratio does.
    Pass("ra_Q_A_Prob", "avg_nll", "real_authors"),
    Pass("ra_Q_A_PERT_Prob", "avg_nll", "real_authors", "perturbed_answers"),
    Pass("ra_Truth_Ratio/answer", "avg_nll", "real_authors", spared=True),
    Pass("ra_Truth_Ratio/perturbed", "avg_nll", "real_authors", "perturbed_answers", spared=True),
    Pass("wf_Q_A_Prob", "avg_nll", "world_facts"),
    Pass("wf_Q_A_PERT_Prob", "avg_nll", "world_facts", "perturbed_answers"),
    Pass("wf_Truth_Ratio/answer", "avg_nll", "world_facts", spared=True),
    Pass("wf_Truth_Ratio/perturbed", "avg_nll", "world_facts", "perturbed_answers", spared=True),
    Pass("exact_memorization", "exact_memorization", "forget"),
    Pass("extraction_strength", "extraction_strength", "forget"),
    Pass("mia_loss/forget", "avg_nll", "forget"),
    Pass("mia_loss/holdout", "avg_nll", "holdout"),
    Pass("mia_zlib/forget", "zlib", "forget"),
    Pass("mia_zlib/holdout", "zlib", "holdout"),
    Pass("mia_min_k/forget", "min_k", "forget"),
    Pass("mia_min_k/holdout", "min_k", "holdout"),
    Pass("mia_min_k_plus_plus/forget", "min_k_plus_plus", "forget"),
    Pass("mia_min_k_plus_plus/holdout", "min_k_plus_plus", "holdout"),
    Pass("privleak/forget", "min_k", "forget", spared=True),
    Pass("privleak/holdout", "min_k", "holdout", spared=True),
    Pass("perplexity/forget", "total_nll", "forget", spared=True),
    Pass("perplexity/retain", "total_nll", "retain", spared=True),
    Pass("forget_Q_A_ROUGE", "rouge_l_recall", "forget"),
    Pass("retain_Q_A_ROUGE", "rouge_l_recall", "retain"),
    Pass("ra_Q_A_ROUGE", "rouge_l_recall", "real_authors"),
    Pass("wf_Q_A_ROUGE", "rouge_l_recall", "world_facts"),
)
"""Every run over a set, in the order in which they are made: 28 that score (8 of them spared by open-unlearning), then
4 that generate."""

PREFIXES = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
"""How the names of a set's passes begin."""


@dataclass(frozen=True)
class PlainResult:
    """What one plain evaluation gives.

    Attributes:
        metrics: ``tofu/model_utility``, ``tofu/{set}/{probability,rouge_l_recall,truth_ratio}``,
            ``tofu/forget/{exact_memorization,extraction_strength}``, ``tofu/mia/{loss,zlib,min_k,min_k_plus_plus}``.
            Model utility and ROUGE are absent where nothing was generated.
        avg_nll: Of each row's answer in file order, nats per token, by set; the holdout set's from ``mia_loss``.
        log_truth_ratio: log R of each row in file order, by set; the forget set's is what Forget Quality compares.
        generations: Text of each row's greedy answer in file order, by set; empty where nothing was generated.
        seconds: Wall-clock time of each pass, from its rows to its numbers, by the pass's name.
    """

    metrics: dict[str, float]
    avg_nll: dict[str, list[float]]
    log_truth_ratio: dict[str, list[float]]
    generations: dict[str, list[str]]
    seconds: dict[str, float]

    @property
    def scoring_seconds(self) -> float:
        """Time of all passes that score."""
        return sum(self.seconds[item.name] for item in PASSES if not item.generates)

    @property
    def spared_seconds(self) -> float:
        """Time of the passes that open-unlearning spares, a part of `scoring_seconds`."""
        return sum(self.seconds[item.name] for item in PASSES if item.spared)

    @property
    def generation_seconds(self) -> float:
        """Time of all passes that generate; 0 where nothing was generated."""
        return sum(self.seconds.get(item.name, 0.0) for item in PASSES if item.generates)


def evaluation_sets(
    root: str | Path | None,
    forget_split: Literal["forget01", "forget05", "forget10"] = "forget10",
    rows: int | None = None,
) -> dict[str, tuple[Record, ...]]:
    """TOFU's evaluation sets in file order.

    Args:
        root: Folder with TOFU's files; None for ``$SGA_DATA/tofu`` or the Hub.
        forget_split: The forget split; the holdout split follows.
        rows: Only the first rows of each set; None for all.

    Raises:
        UserError: `rows` is below 1, or the files cannot be read.
    """
    if rows is not None and rows < 1:
        raise UserError(f"rows must be at least 1, got {rows}; leave it out for all rows")
    benchmark = TOFU(forget_split).load(None if root is None else str(root))
    return {name: records[:rows] for name, records in benchmark.evaluation.items()}


def plain_evaluation(
    model: PreTrainedModel,
    encoder: Encoder,
    evaluation: Mapping[str, tuple[Record, ...]],
    generate: bool = True,
    batch_size: int = 32,
    max_new_tokens: int = 200,
) -> PlainResult:
    """Makes every pass of `PASSES` and computes TOFU's metrics from their numbers.

    Args:
        model: A Hugging Face causal language model in eval mode, on any device.
        encoder: Tokenizer, template and length limit. The limit holds for scored sequences; a generated answer ends
            after `max_new_tokens` only, so the model's context must have room for them.
        evaluation: Records of the sets forget, retain, real_authors, world_facts and holdout.
        generate: Without generation ROUGE and model utility are absent.
        batch_size: Rows of a batch, for scoring and for generation.
        max_new_tokens: Most tokens of a generated answer.

    Raises:
        UserError: the model is in training mode, a number is below 1, a set is missing or empty, a record lacks the
            answer that a pass asks for, or the model gives a likelihood that is not finite.
    """
    if model.training:
        raise UserError("the model is in training mode, where dropout changes every number; call model.eval() first")
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    missing = sorted({item.records for item in PASSES if not evaluation.get(item.records)})
    if missing:
        raise UserError(f"the plain evaluator needs all of TOFU's sets; missing or empty: {', '.join(missing)}")
    passes = [item for item in PASSES if generate or not item.generates]
    # Before the first pass, so that a record without a paraphrase does not show up after an hour.
    for item in passes:
        _pairs(item, evaluation[item.records])

    numbers: dict[str, list[float]] = {}
    generations: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    for item in passes:
        records = evaluation[item.records]
        start = time.perf_counter()
        if item.generates:
            texts = _generation_pass(model, encoder, records, batch_size, max_new_tokens)
            scorer = RougeScorer(["rougeL"], use_stemmer=True)
            numbers[item.name] = [
                float(scorer.score(record.answer, text)["rougeL"].recall)
                for record, text in zip(records, texts, strict=True)
            ]
            generations[item.records] = texts
        else:
            numbers[item.name] = _scoring_pass(model, encoder, item, records, batch_size)
        # Every pass ends with numbers on the CPU, so an accelerator has nothing left to do here.
        seconds[item.name] = time.perf_counter() - start

    log_ratio = {
        name: log_truth_ratio(
            numbers.get(f"{short}_Q_A_PARA_Prob", numbers[f"{short}_Q_A_Prob"]),
            _by_row(numbers[f"{short}_Q_A_PERT_Prob"], evaluation[name]),
        )
        for name, short in PREFIXES.items()
    }
    return PlainResult(
        metrics=_metrics(numbers, log_ratio, evaluation),
        avg_nll={name: numbers[f"{short}_Q_A_Prob"] for name, short in PREFIXES.items()}
        | {"holdout": numbers["mia_loss/holdout"]},
        log_truth_ratio={name: [float(value) for value in values] for name, values in log_ratio.items()},
        generations=generations,
        seconds=seconds,
    )


# ---- scoring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scored:
    """One batch after the forward pass; position t predicts token t + 1.

    Attributes:
        log_probs: [N, T, V] float32, over the whole vocabulary.
        targets: [N, T], the tokens that stand there.
        encoded: N sequences.
        answers: N texts.
    """

    log_probs: Tensor
    targets: Tensor
    encoded: Sequence[Encoded]
    answers: Sequence[str]

    @property
    def token_log_probs(self) -> Tensor:
        """[N, T], log p of the token that stands there."""
        return self.log_probs.gather(-1, self.targets[..., None])[..., 0]

    def of_answers(self, values: Tensor, end_of_sequence: bool) -> list[npt.NDArray[np.float64]]:
        """Cuts [N, T] values into those of each row's answer tokens, with or without the end-of-sequence token."""
        rows = values.double().cpu().numpy()
        cut = []
        for row, sequence in zip(rows, self.encoded, strict=True):
            answer = row[sequence.prompt_length - 1 : len(sequence.ids) - 1]
            cut.append(answer if end_of_sequence or len(answer) == 1 else answer[:-1])
        return cut


def _avg_nll(scored: _Scored) -> list[float]:
    return [float(-values.mean()) for values in scored.of_answers(scored.token_log_probs, end_of_sequence=True)]


def _total_nll(scored: _Scored) -> list[float]:
    return [float(-values.sum()) for values in scored.of_answers(scored.token_log_probs, end_of_sequence=True)]


def _zlib(scored: _Scored) -> list[float]:
    return [zlib_score(nll, text) for nll, text in zip(_avg_nll(scored), scored.answers, strict=True)]


def _min_k(scored: _Scored) -> list[float]:
    return [min_k_score(values) for values in scored.of_answers(scored.token_log_probs, end_of_sequence=False)]


def _min_k_plus_plus(scored: _Scored) -> list[float]:
    probs = scored.log_probs.exp()
    mu = (probs * scored.log_probs).sum(-1)
    sigma2 = (probs * scored.log_probs.square()).sum(-1) - mu.square()
    columns = (scored.of_answers(values, end_of_sequence=False) for values in (scored.token_log_probs, mu, sigma2))
    return [min_k_plus_plus_score(*row) for row in zip(*columns, strict=True)]


def _exact_memorization(scored: _Scored) -> list[float]:
    hits = scored.log_probs.argmax(-1) == scored.targets
    return [exact_memorization(values) for values in scored.of_answers(hits, end_of_sequence=False)]


def _extraction_strength(scored: _Scored) -> list[float]:
    hits = scored.log_probs.argmax(-1) == scored.targets
    return [extraction_strength(values) for values in scored.of_answers(hits, end_of_sequence=False)]


_SCORES: dict[Quantity, Callable[[_Scored], list[float]]] = {
    "avg_nll": _avg_nll,
    "total_nll": _total_nll,
    "zlib": _zlib,
    "min_k": _min_k,
    "min_k_plus_plus": _min_k_plus_plus,
    "exact_memorization": _exact_memorization,
    "extraction_strength": _extraction_strength,
}


@torch.no_grad()
def _scoring_pass(
    model: PreTrainedModel, encoder: Encoder, item: Pass, records: Sequence[Record], batch_size: int
) -> list[float]:
    """One number a sequence, in file order."""
    score = _SCORES[item.quantity]
    numbers: list[float] = []
    for pairs in _batches(_pairs(item, records), batch_size):
        encoded = [encoder.encode(question, answer) for question, answer in pairs]
        input_ids, attention_mask = _padded([row.ids for row in encoded], _pad_id(encoder), "right")
        input_ids, attention_mask = input_ids.to(model.device), attention_mask.to(model.device)
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits  # [N, T + 1, V]
        log_probs = logits.float().log_softmax(-1)[:, :-1]  # the last position predicts nothing that is there
        numbers += score(_Scored(log_probs, input_ids[:, 1:], encoded, [answer for _, answer in pairs]))
    return numbers


def _pairs(item: Pass, records: Sequence[Record]) -> list[tuple[str, str]]:
    """(question, answer) of each sequence of a pass, in file order."""
    pairs = []
    for record in records:
        if item.answer == "answer":
            answers: tuple[str, ...] = (record.answer,)
        elif item.answer == "perturbed_answers":
            answers = record.perturbed_answers
        else:
            answers = () if record.paraphrased_answer is None else (record.paraphrased_answer,)
        if not answers:
            raise UserError(f"{record.id} has no {item.answer}, which the pass {item.name} needs")
        pairs += [(record.question, answer) for answer in answers]
    return pairs


# ---- generation -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _generation_pass(
    model: PreTrainedModel, encoder: Encoder, records: Sequence[Record], batch_size: int, max_new_tokens: int
) -> list[str]:
    """The greedy answer to each question, in file order."""
    stops = _stop_ids(model, encoder)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=_pad_id(encoder),
        use_cache=True,
    )
    generate: Any = model.generate  # a mixin's method, which nn.Module's attributes hide from type checkers
    texts: list[str] = []
    with _without_own_generation_config(model):
        for batch in _batches(records, batch_size):
            prompts = [encoder.encode_prompt(record.question) for record in batch]
            input_ids, attention_mask = _padded(prompts, _pad_id(encoder), "left")
            output: Tensor = generate(
                input_ids.to(model.device), attention_mask=attention_mask.to(model.device), generation_config=config
            )
            new = output[:, input_ids.shape[1] :]  # [N, T + new] -> [N, new]
            texts += [encoder.decode(_before_stop(row, stops)) for row in new.tolist()]
    return texts


@contextmanager
def _without_own_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Takes the model's own generation_config away for a while.

    ``generate`` fills whatever a given configuration leaves open from the model's, so that a repetition penalty or a
    length limit of the model would get in otherwise.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


def _stop_ids(model: PreTrainedModel, encoder: Encoder) -> list[int]:
    """End-of-sequence tokens of tokenizer and model (chat models end a turn with a token of its own)."""
    stops = {int(encoder.tokenizer.eos_token_id)}
    configured = None if model.generation_config is None else model.generation_config.eos_token_id
    stops.update([configured] if isinstance(configured, int) else configured or [])
    return sorted(stops)


def _before_stop(ids: Sequence[int], stops: Sequence[int]) -> Sequence[int]:
    end = next((index for index, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]


# ---- batches --------------------------------------------------------------------------------------------------------


def _batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _pad_id(encoder: Encoder) -> int:
    tokenizer = encoder.tokenizer
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _padded(rows: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [N, T]; the mask from lengths: pad and end-of-sequence may be the same id."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        input_ids[index, place] = torch.tensor(row)
        attention_mask[index, place] = 1
    return input_ids, attention_mask


# ---- from numbers to metrics ----------------------------------------------------------------------------------------


def _by_row(values: Sequence[float], records: Sequence[Record]) -> list[list[float]]:
    """Puts the numbers of a pass over perturbed answers back into one list a record."""
    rest = iter(values)
    return [[next(rest) for _ in record.perturbed_answers] for record in records]


def _metrics(
    numbers: Mapping[str, Sequence[float]],
    log_ratio: Mapping[str, npt.NDArray[np.float64]],
    evaluation: Mapping[str, tuple[Record, ...]],
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    utility: dict[str, float] = {}
    for name, short in PREFIXES.items():
        answer_nll = numbers[f"{short}_Q_A_Prob"]
        if name in ("forget", "retain"):
            score = probability(answer_nll)
        else:
            score = normalized_probability(answer_nll, _by_row(numbers[f"{short}_Q_A_PERT_Prob"], evaluation[name]))
        parts = {
            "probability": score,
            "truth_ratio": (truth_ratio_forget if name == "forget" else truth_ratio_retain)(log_ratio[name]),
        }
        if f"{short}_Q_A_ROUGE" in numbers:
            parts["rouge_l_recall"] = float(np.mean(numbers[f"{short}_Q_A_ROUGE"]))
        metrics |= {f"tofu/{name}/{part}": value for part, value in parts.items()}
        if name != "forget":
            utility |= {f"{name}_{part.removesuffix('_l_recall')}": value for part, value in parts.items()}
    if len(utility) == 9:
        metrics["tofu/model_utility"] = model_utility(utility)
    for part in ("exact_memorization", "extraction_strength"):
        metrics[f"tofu/forget/{part}"] = float(np.mean(numbers[part]))
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus"):
        metrics[f"tofu/mia/{attack}"] = membership_auc(
            numbers[f"mia_{attack}/forget"], numbers[f"mia_{attack}/holdout"]
        )
    auc = membership_auc(numbers["privleak/forget"], numbers["privleak/holdout"])
    metrics["tofu/privleak"] = privleak(auc, reference_auc=0.5)
    for name in ("forget", "retain"):
        total = np.array(numbers[f"perplexity/{name}"])
        tokens = total / np.array(numbers[f"{name}_Q_A_Prob"])
        metrics[f"perplexity/{name}"] = float(np.exp(total.sum() / tokens.sum()))
    return metrics
