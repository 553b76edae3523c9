"""Texts of the experiment on transfer: passages of MUSE-News and of the sample book, as openings and continuations.

    python benchmarks/transfer_texts.py --to runs/transfer/texts

Writes folders ``news/base``, ``news/WORLD`` and ``book/WORLD`` of JSON Lines for `OwnData`: passages of 30 words, of
which the first 10 are the question. The protocol is docs/experiments/transfer.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

from sga.files import read_json

OPENING, WORDS = 10, 30
"""Words of a passage's opening, and of the whole passage."""
ROWS = 40
"""Passages to forget of a world, and held out."""
WORLDS = {"news": (41, 42, 43, 241), "book": (51, 52, 53, 251)}
"""Seeds of the worlds of each task; the last is for development."""
NOTICES = ("content provided by", "your permission", "cookie", "accept and continue")
"""What news articles have in common: notices about embedded content, which a model knows from any of them."""
BOOK = Path(__file__).resolve().parents[1] / "data" / "book"


def passages(text: str, most: int | None = None) -> list[dict[str, str]]:
    """The first `most` passages of a text, or all, without notices; an end that fills none is left out."""
    words = text.split()
    whole = [words[start : start + WORDS] for start in range(0, len(words) - WORDS + 1, WORDS)]
    told = [one for one in whole if not any(notice in " ".join(one) for notice in NOTICES)][:most]
    return [{"question": " ".join(one[:OPENING]), "answer": " ".join(one[OPENING:])} for one in told]


def articles(texts: Sequence[str], first: int, count: int, most: int) -> list[dict[str, str]]:
    """The first `most` passages of each of `count` articles."""
    return [one for text in texts[first : first + count] for one in passages(text, most)]


def news(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Files of MUSE-News' worlds, 4 articles to forget, 16 to keep and 4 held out, and of what the base reads."""
    forget, retain, holdout = (read_json(folder / f"privleak/{name}.json") for name in ("forget", "retain2", "holdout"))
    per_article = ROWS // 4
    found = {
        "base/forget": articles(retain, 64, 18, 2 * per_article),
        "base/retain": articles(retain, 82, 18, 2 * per_article),
    }
    for place, world in enumerate(WORLDS["news"]):
        found[f"{world}/forget"] = articles(forget, 4 * place, 4, per_article)
        found[f"{world}/retain"] = articles(retain, 16 * place, 16, per_article)
        found[f"{world}/holdout"] = articles(holdout, 4 * place, 4, per_article)
    return found


def book() -> dict[str, list[dict[str, str]]]:
    """Files of the book's worlds: passages drawn from all of the book, and all of the other prose to keep."""
    told, other = (
        passages((BOOK / name).read_text(encoding="utf-8")) for name in ("the-tide-clock.txt", "on-small-trades.txt")
    )
    found = {}
    for world in WORLDS["book"]:
        drawn = random.Random(world).sample(told, 2 * ROWS)
        found |= {f"{world}/forget": drawn[:ROWS], f"{world}/holdout": drawn[ROWS:], f"{world}/retain": other}
    return found


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    for task, found in (("news", news(Path(os.environ["SGA_DATA"]) / "muse_news")), ("book", book())):
        for name, rows in found.items():
            path = options.to / task / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
