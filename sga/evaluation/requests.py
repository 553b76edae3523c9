"""What metrics ask of a model, and the plan that answers every question once.

Metrics ask for `Score` (how likely is this answer?) and `Generate` (what does the model say?). A plan removes
duplicates, orders by length, cuts batches by a token budget, and deals them to processes; answers are numbers and texts
keyed by the request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sga.batches import Batch, collate
from sga.encoding import Encoded, Encoder
from sga.errors import DivergenceError


@dataclass(frozen=True)
class Score:
    """Asks for the log-probabilities of an answer's tokens. An empty question makes the answer plain text."""

    question: str
    answer: str


@dataclass(frozen=True)
class Generate:
    """Asks for the greedy answer to a question, of at most `max_new_tokens` tokens."""

    question: str
    max_new_tokens: int


Request = Score | Generate


@dataclass(frozen=True)
class TokenScores:
    """The answer to a `Score`.

    Attributes:
        log_probs: [T] log p of each answer token in nats, float64; the last one is the end-of-sequence token.
    """

    log_probs: NDArray[np.float64]

    @property
    def avg_nll(self) -> float:
        """Mean negative log-likelihood per answer token, the end-of-sequence token counted."""
        return float(-self.log_probs.mean())

    @property
    def text_log_probs(self) -> NDArray[np.float64]:
        """[T−1] without the end-of-sequence token; all of them where there is no other token."""
        return self.log_probs[:-1] if len(self.log_probs) > 1 else self.log_probs


Answer = TokenScores | str


@dataclass
class ScoreBatch:
    """Sequences to score; `indices` say which of the plan's requests the rows are."""

    indices: list[int]
    batch: Batch


@dataclass
class GenerateBatch:
    """Prompts to continue, padded on the left; `indices` say which of the plan's requests the rows are.

    Attributes:
        input_ids: [N, T].
        attention_mask: [N, T].
        max_new_tokens: The most tokens to generate.
        room: The most tokens of a whole sequence.
    """

    indices: list[int]
    input_ids: Tensor
    attention_mask: Tensor
    max_new_tokens: int
    room: int


class EvaluationPlan:
    """All requests of one evaluation as batches.

    Args:
        requests: What the metrics ask for; duplicates are answered once.
        encoder: Tokenizer, template and length limit.
        tokens_per_batch: Most tokens of a scoring batch, padding included.
        generation_rows: Most rows of a generation batch.
        rank: This process.
        world_size: Number of processes; each gets the same number of batches, the last ones repeated where the count is
            uneven (an answer given twice is the same answer).
    """

    def __init__(
        self,
        requests: Iterable[Request],
        encoder: Encoder,
        tokens_per_batch: int = 16384,
        generation_rows: int = 128,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.requests: tuple[Request, ...] = tuple(dict.fromkeys(requests))
        self._pad_id = encoder.tokenizer.pad_token_id if encoder.tokenizer.pad_token_id is not None else 0
        self._room = encoder.max_length
        self._encoded: dict[int, Encoded] = {}
        self._prompts: dict[int, tuple[int, ...]] = {}
        for index, request in enumerate(self.requests):
            if isinstance(request, Score):
                self._encoded[index] = encoder.encode(request.question, request.answer)
            else:
                self._prompts[index] = encoder.encode_prompt(request.question)
        batches = [*self._score_batches(tokens_per_batch), *self._generate_batches(generation_rows)]
        # Dealt in turn, so that every process gets its share of long and short ones.
        while batches and len(batches) % world_size:
            batches.append(batches[-1])
        self._batches = batches[rank::world_size]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[ScoreBatch | GenerateBatch]:
        for indices in self._batches:
            if indices[0] in self._encoded:
                batch = collate([[self._encoded[index]] for index in indices], pad_id=self._pad_id)
                yield ScoreBatch(list(indices), batch)
            else:
                yield self._collate_prompts(indices)

    def _score_batches(self, tokens_per_batch: int) -> list[list[int]]:
        if not self._encoded:
            return []
        order = sorted(self._encoded, key=lambda index: (-len(self._encoded[index].ids), index))
        batches: list[list[int]] = [[]]
        for index in order:  # longest first: the first batch is the one that needs most memory
            width = len(self._encoded[(batches[-1] or [index])[0]].ids)
            if batches[-1] and width * (len(batches[-1]) + 1) > tokens_per_batch:
                batches.append([])
            batches[-1].append(index)
        return batches

    def _generate_batches(self, rows: int) -> list[list[int]]:
        def limit(index: int) -> int:
            request = self.requests[index]
            assert isinstance(request, Generate)
            return request.max_new_tokens

        order = sorted(self._prompts, key=lambda index: (limit(index), -len(self._prompts[index]), index))
        batches: list[list[int]] = []
        for index in order:
            if not batches or len(batches[-1]) == rows or limit(batches[-1][0]) != limit(index):
                batches.append([])
            batches[-1].append(index)
        return batches

    def _collate_prompts(self, indices: Sequence[int]) -> GenerateBatch:
        prompts = [self._prompts[index] for index in indices]
        width = max(len(prompt) for prompt in prompts)
        input_ids = torch.full((len(prompts), width), self._pad_id, dtype=torch.long)
        attention = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            attention[row, width - len(prompt) :] = 1
        request = self.requests[indices[0]]
        assert isinstance(request, Generate)
        return GenerateBatch(list(indices), input_ids, attention, request.max_new_tokens, self._room)


class Answers:
    """Answers by request, as far as they are there."""

    def __init__(self, plan: EvaluationPlan | None = None) -> None:
        self._plan = plan
        self._by_index: dict[int, Answer] = {}
        self._by_request: dict[Request, Answer] | None = None

    def add(self, indices: Sequence[int], answers: Sequence[Answer]) -> None:
        """Takes the answers of one batch."""
        self._by_index.update(zip(indices, answers, strict=True))
        self._by_request = None

    def gather(self) -> None:
        """Exchanges answers between processes, so that each has all of them. Does nothing in a single process."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[dict[int, Answer] | None] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, self._by_index)
            for part in parts:
                assert part is not None
                self._by_index.update(part)

    def __getitem__(self, request: Request) -> Answer:
        if self._by_request is None:
            assert self._plan is not None
            self._by_request = {self._plan.requests[index]: answer for index, answer in self._by_index.items()}
        return self._by_request[request]

    def scores(self, question: str, answer: str) -> TokenScores:
        """The token scores of an answer that was asked for."""
        found = self[Score(question, answer)]
        assert isinstance(found, TokenScores)
        if not np.isfinite(found.log_probs).all():
            raise DivergenceError(
                f"the model gives a NaN or infinite log-probability to the answer {answer[:60]!r}: it has diverged "
                "beyond what can be evaluated; start from an earlier checkpoint or lower the learning rate"
            )
        return found

    def generation(self, question: str, max_new_tokens: int) -> str:
        """The greedy answer to a question that was asked for."""
        found = self[Generate(question, max_new_tokens)]
        assert isinstance(found, str)
        return found
