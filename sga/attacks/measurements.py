"""Numbers of each model under each attack, measured once and kept in files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from sga.attacks.answering import Row, answered_rows
from sga.attacks.entailment import EntailmentJudge
from sga.attacks.findings import FACTS
from sga.attacks.models import AttackData, AttackedModel, are_questions
from sga.attacks.progress import AttackProgress
from sga.attacks.prompts import Prompted, plain_prompt
from sga.attacks.quantization import quantize
from sga.attacks.settings import AttackSettings
from sga.data.records import Record
from sga.evaluation.facts import have_short_facts
from sga.evaluation.metrics import Floats
from sga.files import read_json_object, write_json


class Keep(Protocol):
    """Function that writes a part of a result, so that an interrupted measurement resumes after it."""

    def __call__(self, part: Mapping[str, Any], done: int, total: int | None) -> None:
        """Writes the part; `done` of `total` parts are there."""


@dataclass(frozen=True)
class Measurements:
    """Models, records and strength of the attacks, and the results that are measured with them.

    Each result is a file, named after all that it depends on. The next call, or one after an interruption, reads it.

    Attributes:
        unlearned: Model that is attacked.
        before: Model that unlearning began with.
        retained: Models that never saw the forget records.
        data: Records that attacks ask about.
        settings: Strength of the attacks.
        device: Device that models run on.
        folder: Path of the folder of results.
        cache: Path of the folder of cached answers, see `sga.evaluation.cache`; None caches none.
        progress: Display of the measurement under way.
        judge: Model of natural-language inference that judges samples; None where none is named.
    """

    unlearned: AttackedModel
    before: AttackedModel
    retained: Sequence[AttackedModel]
    data: AttackData
    settings: AttackSettings
    device: torch.device
    folder: Path
    cache: Path | None
    progress: AttackProgress
    judge: EntailmentJudge | None = None

    @property
    def models(self) -> tuple[AttackedModel, ...]:
        """Models that every attack is made on: the unlearned one, then the retained ones."""
        return (self.unlearned, *self.retained)

    @property
    def questions(self) -> bool:
        """True if every forget record has a question."""
        return are_questions(self.data.forget)

    @cached_property
    def measure(self) -> str:
        """Measure that findings are judged by: short facts are counted, because ROUGE sees the sentence around them."""
        if not self.questions:
            return "extraction_strength"
        return FACTS if have_short_facts(self.data.forget) else "rouge_l_recall"

    def asked(self, records: Sequence[Record], prompt: Callable[[Any, Record], Prompted]) -> list[Prompted]:
        """Records as a prompt asks about them."""
        return [prompt(self.data.encoder, record) for record in records]

    def plain(self, records: Sequence[Record] | None = None) -> list[Prompted]:
        """Records as they are; None takes all forget records."""
        return self.asked(self.data.forget if records is None else records, plain_prompt)

    def tokens(self, records: Sequence[Record]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Token ids of prompts and answers, which results on records depend on, and with them on the template."""
        return [(one.prompt, one.answer) for one in self.plain(records)]

    def column(self, rows: Sequence[Row], measure: str | None = None) -> Floats:
        """Values of a measure, [N]; None takes `measure`."""
        return np.array([row[measure or self.measure] for row in rows], dtype=np.float64)

    def rows(self, model: AttackedModel, name: str, asked: Sequence[Prompted], rounded: str | None = None) -> list[Row]:
        """Rows of a model under an attack, see `answered_rows`.

        Args:
            model: Model that is asked.
            name: Name of the attack.
            asked: Records as the attack asks about them.
            rounded: Precision that the weights are rounded to; None leaves them.

        Raises:
            DivergenceError: the model gives NaN.
        """

        def make(known: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
            network = model.load(self.device)
            if rounded is not None:
                quantize(network, rounded)  # type: ignore[arg-type]
            return {"rows": answered_rows(network, self.data.encoder, asked, self.data.max_new_tokens, self.cache)}

        settings = [(one.id, one.prompt, one.answer, one.truth) for one in asked]
        depends = (settings, self.data.max_new_tokens, rounded, "fact_recall")  # rows of earlier versions lack it
        return list(self.kept(model, name, depends, make)["rows"])

    def plain_rows(self, ids: Set[str]) -> dict[str, list[Row]]:
        """Rows of some forget records without any attack, of the models ``before`` unlearning and ``unlearned``."""
        both = (("before", self.before), ("unlearned", self.unlearned))
        return {
            role: [row for row in self.rows(model, "none", self.plain()) if row["id"] in ids] for role, model in both
        }

    def kept(
        self,
        model: AttackedModel,
        name: str,
        settings: Any,
        make: Callable[[Mapping[str, Any], Keep], dict[str, Any]],
    ) -> dict[str, Any]:
        """Result from its file, or made and written.

        Args:
            model: Model that the result is of.
            name: Name of the measurement, a part of the file's name.
            settings: Everything else that the result depends on; its `repr` names the file.
            make: Function that measures, given what an interrupted call has written, and how to write parts.
        """
        key = sha256(repr((settings, self.data.encoder.max_length)).encode()).hexdigest()[:16]
        path = self.folder / "results" / f"{re.sub('[ /]', '-', name)}-{model.key}-{key}.json"
        known = read_json_object(path) if path.is_file() else {}
        if known.get("done"):
            return known
        with self.progress.measurement(f"{model.role} {Path(model.name).name}: {name}") as tick:

            def keep(part: Mapping[str, Any], done: int, total: int | None) -> None:
                write_json(path, {**part, "done": False})
                tick(done, total)

            made = make(known, keep)
            write_json(path, {**made, "done": True})
        return made
