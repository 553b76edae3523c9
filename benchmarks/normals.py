"""Time and memory of retrieval, and how often a retrieved normal is a question of the same kind.

    python benchmarks/normals.py search                       # 2,000 against 1,000,000 vectors of 384 dimensions
    python benchmarks/normals.py tofu --root DATA/tofu        # forget10 against retain90 by TF-IDF
    python benchmarks/normals.py tofu --root DATA/tofu --embedder sentence --model FOLDER
    python benchmarks/normals.py tofu --root DATA/tofu --embedder states --model FOLDER --show 20

Peak memory is the process's (VmHWM, Linux), pages of the memory-mapped pool included.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from sga.data.tofu import TOFU
from sga.groups.embedders import TFIDF, ModelStates, SentenceEmbeddings
from sga.groups.group import Group
from sga.groups.pairing import NearestNormals, Pairing, RandomNormals, make_groups
from sga.groups.search import nearest, unit

KINDS = {
    "name": r"full name|^what is the author's name|^who is (this|the) .*\b(author|writer)\b",
    "birth": r"\bborn\b|birth",
    "parents": r"parent|father|mother|upbringing|famil(y|ial)",
    "awards": r"award|prize|honou?r|accolade|recogni[sz]ed with|recognition",
    "genre": r"genre|kind of (books|literature)|type of (books|literature)",
    "books": r"(titles?|names?|examples?|some|any|one|which|what|list|mention).*\b(books?|novels?|works?|titles?)\b",
    "influence": r"influenc|inspir|impact",
    "style": r"style|technique|approach|process|themes?|characters?|narrative",
    "gender": r"\bgender\b|lgbtq|identif(y|ies) as",
}
"""By words of the question; the first that fits. What fits none has no kind."""


def kind(question: str) -> str | None:
    """The kind of a question."""
    return next((name for name, words in KINDS.items() if re.search(words, question, re.IGNORECASE)), None)


def same_kind(groups: list[Group]) -> dict[str, float]:
    """Share of normals of the forget question's kind, over forget questions that have one: all, and by kind."""
    hits: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for group in groups:
        asked = kind(group.forget.question)
        if asked is not None:
            for name in ("all", asked):
                totals[name] += len(group.normals)
                hits[name] += sum(kind(normal.question) == asked for normal in group.normals)
    return {name: round(hits[name] / totals[name], 3) for name in totals}


def peak_memory() -> float:
    """Peak resident memory of this process in GiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20  # type: ignore[index]


def search(options: argparse.Namespace) -> dict[str, float | int]:
    """Searches random vectors, the pool in a memory-mapped file."""
    rng = np.random.default_rng(0)
    queries = unit(rng.standard_normal((options.queries, options.dimensions), dtype=np.float32))
    with tempfile.TemporaryDirectory() as folder:
        shape = (options.pool, options.dimensions)
        pool = np.lib.format.open_memmap(Path(folder, "pool.npy"), mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, options.pool, 65536):
            rows = min(65536, options.pool - start)
            pool[start : start + rows] = unit(rng.standard_normal((rows, options.dimensions), dtype=np.float32))
        pool.flush()
        pool = np.load(Path(folder, "pool.npy"), mmap_mode="r")
        started = time.perf_counter()
        scores, places = nearest(queries, pool, options.count, use_faiss=options.faiss)
        seconds = time.perf_counter() - started
        some = rng.choice(options.queries, size=3, replace=False)
        for row in some:  # by another computation: each row alone, float64
            exact = np.concatenate(
                [pool[i : i + 65536].astype(np.float64) @ queries[row] for i in range(0, options.pool, 65536)]
            )
            best = np.sort(exact)[::-1][: options.count]
            assert np.abs(best - scores[row]).max() < 2e-6 and np.abs(exact[places[row]] - best).max() < 2e-6
    return {"queries": options.queries, "pool": options.pool, "dimensions": options.dimensions,
            "seconds": round(seconds, 1), "peak_gib": round(peak_memory(), 2)}  # fmt: skip


def tofu(options: argparse.Namespace) -> dict[str, object]:
    """Pairs TOFU and says how long it took and of what kind the normals are."""
    benchmark = TOFU(options.forget_split).load(options.root)
    forget, pool = benchmark.training["forget"], benchmark.training["retain"]
    pairings: dict[str, Pairing] = {
        "tfidf": NearestNormals(TFIDF()),
        "states": NearestNormals(ModelStates(options.model, options.layer, options.template)),
        "sentence": NearestNormals(SentenceEmbeddings(options.model or "")),
        "random": RandomNormals(),
    }
    started = time.perf_counter()
    groups = make_groups(forget, pool, 4, pairings[options.embedder], 0)
    seconds = time.perf_counter() - started
    for number in range(options.show):  # not at a fixed place within an author's twenty questions
        group = groups[(number * len(groups) // options.show + 7 * number) % len(groups)]
        print(f"\n* {group.forget.question} | {group.forget.answer[:110]}")
        for normal, score in zip(group.normals, group.scores, strict=True):
            print(f"    {score:.2f} {normal.question} | {normal.answer[:90]}")
    kinds = Counter(kind(record.question) for record in forget)
    return {
        "embedder": options.embedder,
        "forget": len(forget),
        "pool": len(pool),
        "seconds": round(seconds, 1),
        "peak_gib": round(peak_memory(), 2),
        "distinct_normals": len({normal.id for group in groups for normal in group.normals}),
        "with_a_kind": sum(count for name, count in kinds.items() if name is not None),
        "same_kind": same_kind(groups),
    }


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("search")
    for name, value in (("queries", 2000), ("pool", 1_000_000), ("dimensions", 384), ("count", 16)):
        one.add_argument(f"--{name}", type=int, default=value)
    one.add_argument("--faiss", action="store_true", help="search with FAISS")
    two = verbs.add_parser("tofu")
    two.add_argument("--root", help="TOFU's folder")
    two.add_argument("--forget-split", default="forget10")
    two.add_argument("--embedder", choices=("tfidf", "states", "sentence", "random"), default="tfidf")
    two.add_argument("--model", help="folder of the model, for states and sentence")
    two.add_argument("--layer", type=int, default=-1, help="of states")
    two.add_argument("--template", default="Question: {question}\nAnswer:\n{answer}", help="of states")
    two.add_argument("--show", type=int, default=0, metavar="N", help="print so many groups")
    options = parser.parse_args()
    print(json.dumps(search(options) if options.verb == "search" else tofu(options), indent=2))


if __name__ == "__main__":
    main()
