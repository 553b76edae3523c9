"""Your own data: JSON Lines of records to forget and records to retain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sga.data.records import Benchmark, Record, Source, read_records
from sga.errors import UserError


@dataclass(frozen=True)
class OwnData(Source):
    """Your own forget and retain records as JSON Lines, one object per line.

    Each line has ``question`` and ``answer``, or ``text``; forget and retain lines may have ``paraphrased_answer``
    (string) and ``perturbed_answer`` (list of wrong answers) for the truth ratio, and forget lines a
    ``paraphrased_question`` (string), which runs with alternatives evaluate too. Paths are relative to the data
    module's `root` if that is given. Metrics whose data is missing are absent, with the reason.

    Args:
        forget: Path of the records to forget.
        retain: Path of the records to retain; normal samples are drawn from them.
        holdout: Path of records like the forget records that no model was trained on, for membership inference.
        real_authors: Path of general-knowledge questions near the subject, with ``perturbed_answer``, for model
            utility.
        world_facts: Path of general-knowledge questions far from the subject, with ``perturbed_answer``, for model
            utility.
    """

    forget: str
    retain: str
    holdout: str | None = None
    real_authors: str | None = None
    world_facts: str | None = None

    def load(self, root: str | None) -> Benchmark:
        """Reads all given files.

        Raises:
            UserError: a file is missing or empty, or a line is malformed; names file, line and fault.
        """
        base = Path(root) if root is not None else Path()
        given = {name: value for name, value in vars(self).items() if value is not None}
        records: dict[str, tuple[Record, ...]] = {
            name: read_records(base / value, name) for name, value in given.items()
        }
        for name, rows in records.items():
            seen: dict[tuple[str, str], str] = {}
            for record in rows:
                if record.content in seen:
                    raise UserError(
                        f"{base / given[name]}: record {record.id} repeats {seen[record.content]} "
                        f"({(record.question or record.answer)[:60]!r}); delete one of them"
                    )
                seen[record.content] = record.id
        absent = {
            name: f"no {name} file was given (--data.source.{name})"
            for name in ("holdout", "real_authors", "world_facts")
            if name not in records
        }
        training = {name: rows for name, rows in records.items() if name != "holdout"}
        return Benchmark("own", training, records, absent)
