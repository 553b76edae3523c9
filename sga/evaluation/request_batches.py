"""Requests as batches: each is computed once, in batches that waste little.

Requests become jobs, which are token ids: two requests with the same tokens are one job. Scoring jobs that share a
prompt (TOFU has seven answers to one question) become one row that holds their common beginning once; rows are sorted
by length, split into batches by a token budget, and dealt to processes.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sga.batching.encoding import Encoded, Encoder
from sga.evaluation.requests import Answer, Answers, Generate, Generation, Request, Score, ScoreText

WORTH_SHARING = 0.9
"""Largest share of their tokens that is left when sequences share a row; above it they stay apart, for the attention
mask of a shared row has a cost of its own."""


@dataclass(frozen=True)
class ScoreJob:
    """One sequence to score.

    Attributes:
        ids: Token ids of the sequence, prompt included.
        prompt_length: Number of tokens at the beginning that are not scored; at least 1.
        detail: True if hits, means and variances are needed too.
        ends: True if the last token is the end-of-sequence token.
        cut: True if a text was truncated to the context.
    """

    ids: tuple[int, ...]
    prompt_length: int
    detail: bool
    ends: bool
    cut: bool

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens that are not scored."""
        return self.ids[: self.prompt_length]

    @property
    def key(self) -> str:
        """SHA-256 of the tokens and numbers that the answer depends on; with the model's key, that of the cache."""
        return _digest("score", self.prompt_length, self.ids)


@dataclass(frozen=True)
class GenerateJob:
    """One prompt to continue by at most `limit` tokens."""

    ids: tuple[int, ...]
    limit: int
    cut: bool

    @property
    def key(self) -> str:
        """SHA-256 of the tokens and numbers that the answer depends on; with the model's key, that of the cache."""
        return _digest("generate", self.limit, self.ids)


Job = ScoreJob | GenerateJob


def _digest(kind: str, number: int, ids: Sequence[int]) -> str:
    digest = hashlib.sha256(f"{kind} {number} ".encode())
    digest.update(np.array(ids, dtype="<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class TokenTree:
    """A prefix tree (trie) of sequences as one row of tokens: a common beginning is stored, and computed, once.

    Seven answers to one question share the question, and wrong answers made from a right one share much of that.

    Attributes:
        ids: Token ids of the nodes, [n]; the last token of a sequence predicts nothing and is left out.
        positions: Position of each node's token in its sequence, [n].
        paths: For each sequence, the indices of its nodes in order.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    paths: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> TokenTree:
        """Builds the tree of sequences of at least two tokens each; `paths` has their order."""
        tokens = [np.array(sequence[:-1], dtype=np.int64) for sequence in sequences]
        paths: list[NDArray[np.int64]] = []
        size = 0
        for number, mine in enumerate(tokens):
            shared, along = 0, mine[:0]
            for other, path in zip(tokens[:number], paths, strict=True):
                most = min(len(mine), len(other))
                differs = np.flatnonzero(mine[:most] != other[:most])
                common = int(differs[0]) if len(differs) else most
                if common > shared:
                    shared, along = common, path[:common]
            added = len(mine) - shared
            paths.append(np.concatenate([along, np.arange(size, size + added)]))
            size += added
        ids, positions = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
        for mine, path in zip(tokens, paths, strict=True):
            ids[path], positions[path] = mine, np.arange(len(mine))
        return cls(ids, positions, tuple(paths))

    def __len__(self) -> int:
        """Number of nodes, which is the number of tokens of the row."""
        return len(self.ids)

    def sees(self) -> NDArray[np.bool_]:
        """Attention mask of the row, [n, n]: True where the first token may look at the second one."""
        seen = np.zeros((len(self), len(self)), dtype=np.bool_)
        for path in self.paths:
            seen[np.ix_(path, path)] |= np.tri(len(path), dtype=np.bool_)
        return seen


class ScoreBatch:
    """A batch of sequences to score: N rows, each a token tree or, where nothing is shared, a plain sequence.

    Args:
        groups: For each row, its jobs with their indices in `RequestBatches.jobs`.
        pad_id: Token id to pad with; any will do, because the mask hides it.
        trees: Token tree of each row, to save building it again; None builds the trees.

    Attributes:
        indices: Index of each answer's job in `RequestBatches.jobs`.
        jobs: Jobs of the batch, row by row.
        input_ids: Token ids, [N, T], padded on the right.
        position_ids: Position of each token in its sequence, [N, T].
        attention_mask: Mask of real tokens, [N, T], 1 on them and 0 on padding.
        sees: Mask of the tokens that each token sees, [N, T, T]; None where every row is a plain sequence.
        predicting: Ascending indices into the flattened [N·T] of the tokens that predict a scored one, [M].
        prediction: Index into `predicting` for each scored token, [S]; sequences that share a row share predictions.
        targets: Token ids that are scored, [S].
        detail: True for each prediction whose mean and variance are needed, [M].
    """

    def __init__(
        self,
        groups: Sequence[Sequence[tuple[int, ScoreJob]]],
        pad_id: int,
        trees: Sequence[TokenTree] | None = None,
    ) -> None:
        self._groups, self._pad_id = [list(group) for group in groups], pad_id
        trees = trees or [TokenTree.of([job.ids for _, job in group]) for group in groups]
        self.indices = [index for group in groups for index, _ in group]
        self.jobs = [job for group in groups for _, job in group]
        self.input_ids, self.attention_mask = _padded([tree.ids for tree in trees], pad_id)
        self.position_ids, _ = _padded([tree.positions for tree in trees], 0)
        rows, width = self.input_ids.shape
        self.sees: Tensor | None = None
        if any(len(group) > 1 for group in groups):
            self.sees = torch.eye(width, dtype=torch.bool).repeat(rows, 1, 1)  # padding sees itself: no empty softmax
            for row, tree in enumerate(trees):
                self.sees[row, : len(tree), : len(tree)] = torch.from_numpy(tree.sees())
        # Flat numbers of the nodes that predict each scored token, job by job
        nodes = [
            row * width + path[job.prompt_length - 1 :]
            for row, (group, tree) in enumerate(zip(groups, trees, strict=True))
            for (_, job), path in zip(group, tree.paths, strict=True)
        ]
        flat = torch.from_numpy(np.concatenate(nodes)) if nodes else torch.empty(0, dtype=torch.long)
        self.predicting, self.prediction = torch.unique(flat, return_inverse=True)
        scored = [job.ids[job.prompt_length :] for job in self.jobs]
        self.targets = torch.tensor([token for tokens in scored for token in tokens], dtype=torch.long)
        wanted = [job.detail for job, tokens in zip(self.jobs, scored, strict=True) for _ in tokens]
        self.detail = torch.zeros(len(self.predicting), dtype=torch.bool)
        self.detail[self.prediction[torch.tensor(wanted, dtype=torch.bool)]] = True

    def to(self, device: torch.device | str, **options: Any) -> ScoreBatch:
        """The batch with its tensors on a device."""
        return _moved(self, device, options)

    @property
    def tokens(self) -> int:
        """Number of tokens of the forward pass, padding included."""
        return self.input_ids.numel()

    def halves(self) -> tuple[ScoreBatch, ScoreBatch]:
        """Splits the batch in two on the same device, for a retry after running out of memory; needs two jobs."""
        groups = self._groups if len(self._groups) > 1 else [[entry] for entry in self._groups[0]]
        middle = len(groups) // 2
        parts = groups[:middle], groups[middle:]
        if len(self._groups) == 1:  # a tree of several sequences becomes two
            parts = (
                [[entry for group in parts[0] for entry in group]],
                [[entry for group in parts[1] for entry in group]],
            )
        first, second = (ScoreBatch(part, self._pad_id).to(self.input_ids.device) for part in parts)
        return first, second

    def apart(self) -> ScoreBatch:
        """The same jobs as plain sequences, on the same device, for a model that takes no mask of a tree."""
        groups = [[entry] for group in self._groups for entry in group]
        return ScoreBatch(groups, self._pad_id).to(self.input_ids.device)

    def singles(self) -> list[ScoreBatch]:
        """Splits the batch into its rows, on the same device, for a model that cannot take padding."""
        return [ScoreBatch([group], self._pad_id).to(self.input_ids.device) for group in self._groups]

    @property
    def longest(self) -> int:
        """Length in tokens of the longest sequence in a shared row; 0 where every row is a plain sequence."""
        return max((len(job.ids) for group in self._groups if len(group) > 1 for _, job in group), default=0)

    def longest_tree(self) -> ScoreBatch:
        """The shared row with the longest sequence, as a batch on the same device."""
        groups = [group for group in self._groups if len(group) > 1]
        most = max(groups, key=lambda group: max(len(job.ids) for _, job in group))
        return ScoreBatch([most], self._pad_id).to(self.input_ids.device)


class GenerateBatch:
    """A batch of prompts to continue, padded on the left.

    Args:
        entries: N jobs with their indices in `RequestBatches.jobs`.
        pad_id: Token id to pad with; any will do, because the mask hides it.

    Attributes:
        indices: Index of each row's job in `RequestBatches.jobs`.
        jobs: Jobs of the batch, one per row.
        pad_id: Token id that rows are padded with.
        input_ids: Token ids of the prompts, [N, T].
        attention_mask: Mask of real tokens, [N, T], 1 on them and 0 on padding.
        limits: Largest number of tokens to generate in each row, [N].
    """

    def __init__(self, entries: Sequence[tuple[int, GenerateJob]], pad_id: int) -> None:
        self.indices = [index for index, _ in entries]
        self.jobs = [job for _, job in entries]
        self.pad_id = pad_id
        self.input_ids, self.attention_mask = _padded([job.ids for job in self.jobs], pad_id, left=True)
        self.limits = torch.tensor([job.limit for job in self.jobs], dtype=torch.long)

    def to(self, device: torch.device | str, **options: Any) -> GenerateBatch:
        """The batch with its tensors on a device."""
        return _moved(self, device, options)

    @property
    def tokens(self) -> int:
        """Size of the key-value cache in tokens if every row uses all its room."""
        return len(self.jobs) * (self.input_ids.shape[1] + max(job.limit for job in self.jobs))

    def halves(self) -> tuple[GenerateBatch, GenerateBatch]:
        """Splits the batch in two on the same device, for a retry after running out of memory; needs two jobs."""
        entries, middle = list(zip(self.indices, self.jobs, strict=True)), len(self.jobs) // 2
        first, second = (
            GenerateBatch(part, self.pad_id).to(self.input_ids.device) for part in (entries[:middle], entries[middle:])
        )
        return first, second


class RequestBatches:
    """All requests of one evaluation as batches; iterating yields those of this process.

    Args:
        requests: Requests of all metrics; equal ones are computed once.
        encoder: Tokenizer, template and length limit.
        tokens_per_batch: Largest number of tokens of a scoring batch, padding included.
        generation_rows: Largest number of rows of a generation batch.
        rank: Index of this process, from 0.
        world_size: Number of processes; each gets the same number of batches, some of them empty where the count is
            uneven.
        share_prompts: True to put answers to one question into one row, so that their common beginning is computed
            once.

    Attributes:
        jobs: Distinct jobs of all processes; indices of batches and answers refer to this list.
        known: Indices of jobs whose answers are cached; batches leave them out. May be set before each iteration.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        encoder: Encoder,
        tokens_per_batch: int = 4096,
        generation_rows: int = 256,
        rank: int = 0,
        world_size: int = 1,
        share_prompts: bool = True,
    ) -> None:
        self._encoder = encoder
        self._pad_id = encoder.tokenizer.pad_token_id if encoder.tokenizer.pad_token_id is not None else 0
        self._tokens_per_batch, self._generation_rows = tokens_per_batch, generation_rows
        self._rank, self._world_size = rank, world_size
        self.jobs: list[Job] = []
        self.known: Collection[int] = ()
        self._job_of: dict[Request, tuple[int, Job]] = {}
        by_key: dict[str, int] = {}
        requests = list(dict.fromkeys(requests))
        pairs = [(request.question, request.answer) for request in requests if isinstance(request, Score)]
        questions = [request.question for request in requests if isinstance(request, Generate)]
        of_pairs, of_questions = encoder.encode_all(pairs, questions)
        encoded = dict(zip(pairs, of_pairs, strict=True))
        prompts = dict(zip(questions, of_questions, strict=True))
        for request in requests:
            job = self._job(request, encoded, prompts)
            index = by_key.setdefault(job.key, len(self.jobs))
            if index == len(self.jobs):
                self.jobs.append(job)
            elif isinstance(job, ScoreJob) and job.detail:
                self.jobs[index] = job
            self._job_of[request] = index, job
        self._trees: dict[tuple[int, ...], TokenTree] = {}
        self._groups = self._grouped(share_prompts)
        self._length = len(self._dealt(set(range(len(self.jobs)))))

    def _job(
        self,
        request: Request,
        encoded: Mapping[tuple[str, str], Encoded],
        prompts: Mapping[str, tuple[int, ...]],
    ) -> Job:
        if isinstance(request, Score):
            pair = encoded[request.question, request.answer]
            return ScoreJob(pair.ids, pair.prompt_length, request.detail, ends=True, cut=False)
        if isinstance(request, ScoreText):
            ids, cut = self._encoder.encode_text(request.text)
            return ScoreJob(ids, 1, request.detail, ends=False, cut=cut)
        if isinstance(request, Generate):
            ids = prompts[request.question]
            limit = min(request.max_new_tokens, self._encoder.max_length - len(ids))
            if request.count_prompt:
                limit = max(0, min(limit, request.max_new_tokens - len(ids)))
            return GenerateJob(ids, limit, cut=False)
        ids, cut = self._encoder.encode_continued(request.prompt, request.max_new_tokens, request.examples)
        return GenerateJob(ids, request.max_new_tokens, cut)

    # ---- batches -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[ScoreBatch | GenerateBatch]:
        batches = self._dealt({index for index in range(len(self.jobs)) if index not in self.known})
        # `len` is fixed: where answers are cached, empty batches make up the number.
        for groups in [*batches, *([[]] * (self._length - len(batches)))]:
            if groups and isinstance(self.jobs[groups[0][0]], GenerateJob):
                yield self._generate_batch([index for (index,) in groups])
            else:
                yield self._score_batch(groups)

    def _dealt(self, wanted: Set[int]) -> list[list[tuple[int, ...]]]:
        """Batches of this process, each a list of rows, each row a tuple of job indices."""
        batches = [*self._score_batches(wanted), *self._generate_batches(wanted)]
        # Dealt round-robin, so that every process gets its share of long and short ones.
        mine = batches[self._rank :: self._world_size]
        most = -(-len(batches) // self._world_size)
        return mine + [[]] * (most - len(mine))

    def _grouped(self, share: bool) -> list[tuple[int, ...]]:
        """Scoring jobs by row: several in one row where that saves tokens; longest row first.

        Decided from all jobs, cached or not, so that a part of them never makes more batches than all.
        """
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for index, job in enumerate(self.jobs):
            if isinstance(job, ScoreJob):
                # Texts, of which the first token is no more than the beginning-of-sequence token, stay apart.
                shared = share and job.prompt_length > 1
                by_prompt.setdefault(job.prompt if shared else job.ids, []).append(index)
        groups: list[tuple[int, ...]] = []
        for indices in (part for together in by_prompt.values() for part in self._parts(together)):
            tree = self._tree(indices) if len(indices) > 1 else None
            if tree is not None and len(tree) <= WORTH_SHARING * sum(len(path) for path in tree.paths):
                groups.append(tuple(indices))
            else:
                groups += [(index,) for index in indices]
        return sorted(groups, key=lambda group: (-len(self._tree(group)), group[0]))

    def _parts(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Splits scoring jobs that share a prompt, so that a row of each part keeps within the token budget."""
        part: list[int] = []
        size = 0
        for index in indices:
            job = self.jobs[index]
            assert isinstance(job, ScoreJob)
            added = len(job.ids) - job.prompt_length
            if part and size + added > self._tokens_per_batch:
                yield part
                part = []
            size = size + added if part else len(job.ids)
            part.append(index)
        yield part

    def _tree(self, indices: Sequence[int]) -> TokenTree:
        key = tuple(indices)
        if key not in self._trees:
            self._trees[key] = TokenTree.of([self.jobs[index].ids for index in indices])
        return self._trees[key]

    def _score_batches(self, wanted: Set[int]) -> list[list[tuple[int, ...]]]:
        """Batches of tree rows, then of plain rows, within the token budget; the first one needs the most memory."""
        batches: list[list[tuple[int, ...]]] = []
        for trees in (True, False):
            started = False
            width = 0  # tokens per row of the batch that is being filled
            for group in self._groups:
                kept = tuple(index for index in group if index in wanted)
                if (len(group) > 1) != trees or not kept:
                    continue
                if not started or width * (len(batches[-1]) + 1) > self._tokens_per_batch:
                    batches.append([])
                    width = len(self._tree(group))
                    started = True
                batches[-1].append(kept)
        return batches

    def _generate_batches(self, wanted: Set[int]) -> list[list[tuple[int, ...]]]:
        prompts = [index for index in wanted if isinstance(self.jobs[index], GenerateJob)]
        order = sorted(prompts, key=lambda index: (-len(self.jobs[index].ids), index))
        rows = self._generation_rows
        return [[(index,) for index in order[start : start + rows]] for start in range(0, len(order), rows)]

    def _score_batch(self, groups: Sequence[tuple[int, ...]]) -> ScoreBatch:
        rows = [[(index, job) for index in group if isinstance(job := self.jobs[index], ScoreJob)] for group in groups]
        return ScoreBatch(rows, self._pad_id, [self._tree(group) for group in groups])

    def _generate_batch(self, indices: Sequence[int]) -> GenerateBatch:
        jobs = [(index, job) for index in indices if isinstance(job := self.jobs[index], GenerateJob)]
        return GenerateBatch(jobs, self._pad_id)

    # ---- answers -----------------------------------------------------------------------------------------------

    def answers(self, by_job: Mapping[int, Answer]) -> Answers:
        """Answers by request, from answers by job index; every job must have one."""
        by_request: dict[Request, Answer] = {}
        for request, (index, job) in self._job_of.items():
            answer = by_job[index]  # another request may have the same tokens after truncation, so `cut` is per request
            if isinstance(answer, Generation):
                by_request[request] = replace(answer, text=self._encoder.decode(answer.ids), cut=job.cut)
            elif isinstance(job, ScoreJob) and isinstance(request, Score | ScoreText):
                by_request[replace(request, detail=False)] = replace(answer, ends=job.ends, cut=job.cut)
        return Answers(by_request)


_Batch = TypeVar("_Batch", ScoreBatch, GenerateBatch)


def _moved(batch: _Batch, device: torch.device | str, options: dict[str, Any]) -> _Batch:
    moved = copy.copy(batch)
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            setattr(moved, name, value.to(device, **options))
    return moved


def _padded(
    rows: Sequence[Sequence[int] | NDArray[np.int64]], pad_id: int, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Token ids [N, T] and attention mask [N, T], made from lengths, not ids: the pad token may be a real one."""
    width = max(map(len, rows), default=0)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        input_ids[index, where] = torch.as_tensor(row, dtype=torch.long)
        attention[index, where] = 1
    return input_ids, attention
