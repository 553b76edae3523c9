"""A forget sample with its normal samples and the further samples that a method reads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from sga.data.records import Record


@dataclass(frozen=True)
class Origin:
    """Origin of a normal sample or an alternative.

    Attributes:
        source: Kind of source: ``retain`` for a record of the retain pool, which a file may give by name only; any
            other word (``generated``, ``edited``, ``corrupted``, …) for text that is in the file; for an alternative
            ``neighbor_answer``, ``substituted_answer``, ``refusal``, ``file``, ``generated``, ….
        by: Name of the embedder that found it, or of the model that wrote it; None if unknown.
        prompt: Hash of the prompt template that it was written with; None without one.
        checks: Reasons of failed checks, if it was kept in spite of them.
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
    """A forget sample with its normal samples, and with the further samples that a method reads.

    Attributes:
        forget: Sample to forget (in plain fine-tuning: the sample to learn).
        normals: Normal samples, K−1 of them or a larger pool from which each epoch draws K−1; most similar first.
        scores: Similarity of each normal to the forget sample: cosine in [−1, 1] for embedders, 0 for random normals,
            None if not computed.
        origins: Origin of each normal; empty if all are plain records of the retain pool.
        alternatives: Forget question with other answers: one for a method whose loss reads it as a stream of its own,
            or several that are trained on as a second kind of normals.
        alternative_origins: Origin of each alternative of the second kind; empty otherwise.
        retain: Random records of the retain pool that are not among the normals, for methods that read them.
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
        """Origin of a normal, by index."""
        return self.origins[index] if self.origins else Origin()


def record_hash(record: Record) -> str:
    """First 16 hex digits of the SHA-256 of a record's question and answer."""
    return hashlib.sha256(json.dumps([record.question, record.answer]).encode()).hexdigest()[:16]
