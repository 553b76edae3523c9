"""Requests of metrics to a model, and its answers: numbers and texts keyed by the request.

Metrics ask how likely an answer or a text is (`Score`, `ScoreText`) and what the model says (`Generate`, `Continue`).
A request that several metrics make is computed once: `sga.evaluation.request_batches` sees to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sga.data.records import Record
from sga.errors import DivergenceError


@dataclass(frozen=True)
class Score:
    """Request for the log-probabilities of an answer's tokens. An empty question makes the answer plain text.

    Attributes:
        question: The question, put into the template.
        answer: The answer, scored together with its end-of-sequence token.
        detail: True to also get arg-max hits, and mean and variance of log p over the vocabulary (Min-K %++).
    """

    question: str
    answer: str
    detail: bool = False


@dataclass(frozen=True)
class ScoreText:
    """Request for the log-probabilities of all tokens of a text except the first, as in MUSE.

    There is no template and no end-of-sequence token. A text longer than the context is truncated to its first
    `context` tokens; `TokenScores.cut` says so.
    """

    text: str
    detail: bool = False


@dataclass(frozen=True)
class Generate:
    """Request for the greedy answer to a question.

    Attributes:
        question: The question, put into the template.
        max_new_tokens: Largest number of tokens of the answer.
        count_prompt: True if the prompt's tokens count towards `max_new_tokens`, as in TOFU's own code.
    """

    question: str
    max_new_tokens: int
    count_prompt: bool = False


@dataclass(frozen=True)
class Continue:
    """Request for the greedy continuation of plain text, without a template.

    A prompt that leaves no room for `max_new_tokens` in the context is truncated: examples are dropped from the front,
    then tokens from its own beginning; `Generation.cut` says so.

    Attributes:
        prompt: The text to continue.
        max_new_tokens: Largest number of tokens of the continuation.
        examples: Texts put before the prompt (few-shot examples).
    """

    prompt: str
    max_new_tokens: int
    examples: tuple[str, ...] = ()


Request = Score | ScoreText | Generate | Continue


def record_score(record: Record, detail: bool = False) -> Score | ScoreText:
    """Request for the log-probabilities of a record: of its answer or, for a record of plain text, of the text."""
    return ScoreText(record.answer, detail) if record.is_text else Score(record.question, record.answer, detail)


@dataclass(frozen=True)
class TokenScores:
    """The answer to a `Score` or `ScoreText`.

    Attributes:
        log_probs: Log-probability of each scored token, [T], nats, float64.
        hits: True for each scored token that is the arg-max, [T], bool; None without detail.
        means: Mean of log p over the vocabulary under the model's own distribution at each position, [T]; None without
            detail.
        variances: Variance of log p at each position, [T]; None without detail.
        ends: True if the last token is the end-of-sequence token.
        cut: True if a text was truncated to the context.
    """

    log_probs: NDArray[np.float64]
    hits: NDArray[np.bool_] | None = None
    means: NDArray[np.float64] | None = None
    variances: NDArray[np.float64] | None = None
    ends: bool = True
    cut: bool = False

    @property
    def avg_nll(self) -> float:
        """Mean negative log-likelihood per scored token, nats, with the end-of-sequence token where there is one."""
        return float(-self.log_probs.mean())

    @property
    def text(self) -> TokenScores:
        """These scores without the end-of-sequence token; unchanged where there is none, or no other token."""
        if not self.ends or len(self.log_probs) == 1:
            return self
        return TokenScores(
            self.log_probs[:-1],
            None if self.hits is None else self.hits[:-1],
            None if self.means is None else self.means[:-1],
            None if self.variances is None else self.variances[:-1],
            ends=False,
            cut=self.cut,
        )


@dataclass(frozen=True)
class Generation:
    """The answer to a `Generate` or `Continue`.

    Attributes:
        ids: Token ids of the generated text, without the token that ended it.
        text: Decoded text, without special tokens and outer white space.
        cut: True if the prompt was truncated to leave room in the context.
    """

    ids: tuple[int, ...]
    text: str = ""
    cut: bool = False


Answer = TokenScores | Generation


class Answers:
    """Answers of a model by request.

    Args:
        by_request: Answer of each request; a `Score` is looked up without its `detail`.
    """

    def __init__(self, by_request: Mapping[Request, Answer]) -> None:
        self._by_request = by_request

    def scores(self, request: Score | ScoreText) -> TokenScores:
        """Token scores of a request; with details if some metric requested them.

        Raises:
            DivergenceError: a log-probability is NaN or infinite.
        """
        found = self._by_request.get(replace(request, detail=False))
        assert isinstance(found, TokenScores), f"{request} was asked for"
        if not np.isfinite(found.log_probs).all():
            text = request.answer if isinstance(request, Score) else request.text
            raise DivergenceError(
                f"the model gives a NaN or infinite log-probability to {text[:60]!r}: it has diverged "
                "beyond what can be evaluated; start from an earlier checkpoint or lower the learning rate"
            )
        return found

    def generation(self, request: Generate | Continue) -> Generation:
        """Greedy text of a request."""
        found = self._by_request.get(request)
        assert isinstance(found, Generation), f"{request} was asked for"
        return found
