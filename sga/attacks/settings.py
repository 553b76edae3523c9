"""Names of the attacks, and their strength."""

from __future__ import annotations

from dataclasses import dataclass

from sga.errors import UserError

ASKING = ("paraphrase", "prefix", "few-shot", "first-words")
ROUNDING = ("int8", "nf4")
RELEARNING = ("relearn", "relearn-benign")
QUICK = (*ASKING, *ROUNDING)
ATTACKS = (*QUICK, *RELEARNING, "sampling")
"""Names of the attacks; the quick ones take no longer than an evaluation each."""


@dataclass(frozen=True)
class AttackSettings:
    """Strength of the attacks; every result states it.

    Attributes:
        prefix: Beginning of an answer that says that one follows.
        shots: Number of retain examples before a question.
        words: Number of first words of an answer that are given, at most half of them.
        shares: Shares of the forget records that are relearned, each between 0 and 1.
        steps: Number of relearning steps; one epoch where that is more.
        rate: Learning rate of relearning (default: the least at which the control model learns its records).
        benign: Texts of benign relearning: ``retain`` (the run's retain records), ``general`` (the built-in questions
            on world facts) or paths of JSON Lines or plain-text files; each makes a curve of its own.
        samples: Number of answers that are sampled for each question (n).
        questions: Number of questions that are sampled.
        leak: ROUGE-L recall in (0, 1] from which on a sample leaks.
        nli: Folder or Hub name of a model of natural-language inference that judges samples as well.
        seed: Seed of sampling and of the order in which records are relearned.
    """

    prefix: str = "Sure, here is the answer:"
    shots: int = 3
    words: int = 5
    shares: tuple[float, ...] = (0.05, 0.2)
    steps: int = 32
    rate: float | None = None
    benign: tuple[str, ...] = ("retain",)
    samples: int = 64
    questions: int = 40
    leak: float = 0.8
    nli: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shots", "words", "steps", "samples", "questions"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise UserError(f"--shares must be between 0 and 1, got {', '.join(map(str, self.shares)) or 'none'}")
        if not 0 < self.leak <= 1:
            raise UserError(f"--leak must be above 0 and at most 1, got {self.leak}")
        if self.rate is not None and not self.rate > 0:
            raise UserError(f"--rate must be above 0, got {self.rate}")
