"""TOFU: 200 fictitious authors, 20 questions each (Maini et al., arXiv 2401.06121; dataset locuslab/TOFU, MIT)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sga.data.records import Benchmark, Record, Source, record_from_row
from sga.errors import UserError
from sga.files import read_json_lines

HUB_NAME = "locuslab/TOFU"
_PAIRS = {
    "forget01": ("retain99", "holdout01"),
    "forget05": ("retain95", "holdout05"),
    "forget10": ("retain90", "holdout10"),
}


@dataclass(frozen=True)
class TOFU(Source):
    """TOFU with one of its three forget splits, read from a local folder or from the Hub.

    The folder is the data module's `root`, or ``$SGA_DATA/tofu``; without both ``locuslab/TOFU`` on the Hub is used.

    Args:
        forget_split: Name of the forget split, with 1 %, 5 % or 10 % of the authors; it determines the retain and
            holdout splits.
        forget_rows: Range [start, end) of rows of the forget split to use; null for all. Set it for a model that knows
            only a part of TOFU.
        retain_rows: Range [start, end) of rows to use of the retain split, and of the retain evaluation set, which is
            in the same order; null for all.
    """

    forget_split: Literal["forget01", "forget05", "forget10"] = "forget10"
    forget_rows: tuple[int, int] | None = None
    retain_rows: tuple[int, int] | None = None

    def load(self, root: str | None) -> Benchmark:
        """Reads all splits of the benchmark.

        Raises:
            UserError: a file is missing, a line is malformed, a range of rows is empty, or the Hub cannot be reached.
        """
        folder = _folder(root)
        retain, holdout = _PAIRS[self.forget_split]

        def rows(split: str, prefix: str, between: tuple[int, int] | None = None) -> tuple[Record, ...]:
            records = _read(folder, split, prefix)
            if between is None:
                return records
            kept = records[slice(*between)]
            if not kept:
                raise UserError(f"rows {between[0]} to {between[1]} of {split} are none: it has {len(records)} rows")
            return kept

        evaluation = {
            "forget": rows(f"{self.forget_split}_perturbed", self.forget_split, self.forget_rows),
            "retain": rows("retain_perturbed", "retain_perturbed", self.retain_rows),
            "real_authors": rows("real_authors_perturbed", "real_authors"),
            "world_facts": rows("world_facts_perturbed", "world_facts"),
            "holdout": rows(holdout, holdout),
        }
        training = {
            "forget": rows(self.forget_split, self.forget_split, self.forget_rows),
            "retain": rows(retain, retain, self.retain_rows),
            "real_authors": evaluation["real_authors"],
            "world_facts": evaluation["world_facts"],
        }
        return Benchmark("tofu", training, evaluation)


def _folder(root: str | None) -> Path | None:
    """Path of the folder with the splits; None for the Hub."""
    if root is None:
        shared = os.environ.get("SGA_DATA")
        return Path(shared) / "tofu" if shared and (Path(shared) / "tofu").is_dir() else None
    for folder in (Path(root), Path(root) / "tofu"):
        if (folder / "forget10.json").is_file() or (folder / "forget10.jsonl").is_file():
            return folder
    raise UserError(f"--data.root {root}: no TOFU files there (expected forget10.json and the other splits)")


def _read(folder: Path | None, split: str, prefix: str) -> tuple[Record, ...]:
    if folder is None:
        import datasets

        try:
            numbered = list(enumerate(map(dict, datasets.load_dataset(HUB_NAME, split, split="train")), start=1))
        except Exception as error:  # datasets and the Hub client raise a dozen types for "not reachable"
            raise UserError(
                f"TOFU's split {split} could not be taken from the Hub ({HUB_NAME}): {error}. Without a network, give "
                "a folder with its files: --data.root FOLDER, or SGA_DATA"
            ) from error
        where = f"{HUB_NAME}/{split}"
    else:
        path = next((p for p in (folder / f"{split}.json", folder / f"{split}.jsonl") if p.is_file()), None)
        if path is None:
            raise UserError(f"{folder}: the TOFU split {split} is missing (no {split}.json)")
        # Not datasets' JSON reader: it turns a column of dates into datetimes, and does not name a malformed line.
        numbered = read_json_lines(path)
        where = str(path)
    return tuple(
        record_from_row(row, f"{prefix}/{index}", f"{where}:{number}") for index, (number, row) in enumerate(numbered)
    )
