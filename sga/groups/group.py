"""A forget sample with its normal samples and what else a method reads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from sga.data.records import Record


@dataclass(frozen=True)
class Origin:
    """Where a normal sample or an alternative comes from.

    Attributes:
        source: ``retain`` for a record of the retain pool, which a file need only name; any other word (``generated``,
            ``edited``, ``corrupted``, …) for text that stands in the file; of an alternative ``neighbor_answer``,
            ``substituted_answer``, ``refusal``, ``file``, ``generated``, ….
        by: The embedder that found it, or the model that wrote it.
        prompt: Hash of the prompt template that it was written by.
        checks: Reasons for which it would have been refused, had it not been kept by choice.
    """

    source: str = "retain"
    by: str | None = None
    prompt: str | None = None
    checks: tuple[str, ...] = ()


AlternativeKind = Literal["refusal", "retain_answer", "normal_answer", "data"]
"""Another answer to a forget question: a refusal, the answer of a random record of the retain pool, that of the group's
most similar normal sample, or those that ``data.alternatives`` gives."""


@dataclass(frozen=True)
class Group:
    """A forget sample with its normal samples, and with what else a method reads.

    Attributes:
        forget: The sample to forget (for plain fine-tuning: the sample to learn).
        normals: K−1 samples to keep, or a larger pool from which each epoch draws K−1; most similar first.
        scores: Their similarity to the forget sample, one each; cosine in [−1, 1] for embedders, 0 for random ones,
            None where nobody has computed one.
        origins: Where they come from, one each; empty where all are plain records of the retain pool.
        alternatives: The forget question with another answer: one for methods that ask for it, or several that are
            trained on as normals of a second kind.
        alternative_origins: Where the latter come from, one each; empty for the former.
        retain: Random records of the retain pool that are none of the normals, for methods that ask for them.
    """

    forget: Record
    normals: tuple[Record, ...] = ()
    scores: tuple[float | None, ...] = ()
    origins: tuple[Origin, ...] = ()
    alternatives: tuple[Record, ...] = ()
    alternative_origins: tuple[Origin, ...] = ()
    retain: tuple[Record, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.normals) == len(self.scores) and len(self.origins) in (0, len(self.normals)), "one each"
        assert len(self.alternative_origins) in (0, len(self.alternatives)), "one each"

    def origin(self, index: int) -> Origin:
        """Where a normal comes from."""
        return self.origins[index] if self.origins else Origin()


def record_hash(record: Record) -> str:
    """First 16 hex digits of the SHA-256 of a record's question and answer."""
    return hashlib.sha256(json.dumps([record.question, record.answer]).encode()).hexdigest()[:16]
