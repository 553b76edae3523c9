"""What metrics ask of a model, and the answers: numbers and texts keyed by the request.

Metrics ask how likely an answer or a text is (`Score`, `ScoreText`) and what the model says (`Generate`, `Continue`).
What several metrics ask for is computed once: `sga.evaluation.request_batches` sees to it.
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
    """Asks for the log-probabilities of an answer's tokens. An empty question makes the answer plain text.

    Attributes:
        question: The question, put into the template.
        answer: The answer, scored with its end-of-sequence token.
        detail: Also ask for the arg-max hits and for the vocabulary's mean and variance.
    """

    question: str
    answer: str
    detail: bool = False


@dataclass(frozen=True)
class ScoreText:
    """Asks for the log-probabilities of a text's tokens but the first, as MUSE does: no template, no end-of-sequence.

    A text longer than the context is cut to its first `context` tokens; `TokenScores.cut` says so.
    """

    text: str
    detail: bool = False


@dataclass(frozen=True)
class Generate:
    """Asks for the greedy answer to a question.

    Attributes:
        question: The question, put into the template.
        max_new_tokens: The most tokens of the answer.
        count_prompt: The prompt's tokens count towards `max_new_tokens` (TOFU's own code).
    """

    question: str
    max_new_tokens: int
    count_prompt: bool = False


@dataclass(frozen=True)
class Continue:
    """Asks for the greedy continuation of plain text, without a template.

    A prompt that leaves no room for `max_new_tokens` in the context first loses examples from the front, then its own
    beginning; `Generation.cut` says so.

    Attributes:
        prompt: The text to continue.
        max_new_tokens: The most tokens of the continuation.
        examples: Texts that stand before the prompt.
    """

    prompt: str
    max_new_tokens: int
    examples: tuple[str, ...] = ()


Request = Score | ScoreText | Generate | Continue


def record_score(record: Record, detail: bool = False) -> Score | ScoreText:
    """Asks for the log-probabilities of a record: of its answer, or of its text."""
    return ScoreText(record.answer, detail) if record.is_text else Score(record.question, record.answer, detail)


@dataclass(frozen=True)
class TokenScores:
    """The answer to a `Score` or `ScoreText`.

    Attributes:
        log_probs: [T] log p of each scored token in nats, float64.
        hits: [T] bool, whether the token is the arg-max; None where no detail was asked for.
        means: [T] mean of log p over the vocabulary under the model's own distribution there; None as above.
        variances: [T] its variance; None as above.
        ends: Whether the last token is the end-of-sequence token.
        cut: Whether a text was cut to the context.
    """

    log_probs: NDArray[np.float64]
    hits: NDArray[np.bool_] | None = None
    means: NDArray[np.float64] | None = None
    variances: NDArray[np.float64] | None = None
    ends: bool = True
    cut: bool = False

    @property
    def avg_nll(self) -> float:
        """Mean negative log-likelihood per scored token, the end-of-sequence token counted where there is one."""
        return float(-self.log_probs.mean())

    @property
    def text(self) -> TokenScores:
        """The same without the end-of-sequence token; unchanged where there is none, or no other token."""
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
        ids: The generated tokens, without the one that ended the answer.
        text: The text of them, special tokens and outer white space removed.
        cut: Whether the prompt was cut to leave room in the context.
    """

    ids: tuple[int, ...]
    text: str = ""
    cut: bool = False


Answer = TokenScores | Generation


class Answers:
    """Answers by request.

    Args:
        by_request: What there is; scores are under their request without detail.
    """

    def __init__(self, by_request: Mapping[Request, Answer]) -> None:
        self._by_request = by_request

    def scores(self, request: Score | ScoreText) -> TokenScores:
        """The token scores that were asked for; with details, if some metric asked for them.

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
        """The greedy text that was asked for."""
        found = self._by_request.get(request)
        assert isinstance(found, Generation), f"{request} was asked for"
        return found
