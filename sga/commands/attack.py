"""`sga attack`: what a few words, coarser weights, a few steps of training or many samples bring back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Forgotten, or only hidden? Attacks the exported model of RUN and says what comes back, beside the model before
unlearning and retained models under the same attacks (docs/attacks.md). The same command resumes after an interruption.
"""

_SETTINGS: tuple[tuple[str, type, str], ...] = (
    ("steps", int, "steps of relearning, or one epoch where that is more"),
    ("rate", float, "learning rate of relearning (default: the least at which a retained model learns its rows)"),
    ("samples", int, "answers that are sampled to a question"),
    ("questions", int, "questions that are sampled"),
    ("leak", float, "ROUGE-L recall from which on a sample leaks"),
    ("nli", str, "model of natural-language inference, folder or Hub name, that judges samples as well"),
    ("words", int, "first words of an answer that are given"),
    ("shots", int, "retain examples before a question"),
    ("prefix", str, "beginning of an answer"),
    ("seed", int, "of sampling and of the order of rows"),
)


def main(arguments: Sequence[str]) -> int:
    """Runs ``sga attack RUN``."""
    from sga.attacks.attack import attack_run
    from sga.attacks.settings import ATTACKS, AttackSettings

    d = AttackSettings()
    parser = argparse.ArgumentParser(
        "sga attack", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run folder of an unlearning run, or folder of sga unlearn")
    parser.add_argument(
        "--reference", nargs="+", default=[], metavar="RETAIN_RUN",
        help="models that never saw the forget data: run folders or model folders",
    )  # fmt: skip
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), metavar="NAME", help=f"of {', '.join(ATTACKS)}")
    parser.add_argument("--target", metavar="MODEL", help="model before unlearning (default: what the run began with)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where results go (default attacks/ in RUN)")
    parser.add_argument("--rows", type=int, default=100, metavar="N", help="most forget records (default 100)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of an answer (default: the run's)")
    for name, kind, words in _SETTINGS:
        default = getattr(d, name)
        shown = words if default is None else f"{words} (default {default})"
        metavar = {int: "N", float: "X", str: "MODEL" if name == "nli" else "TEXT"}[kind]
        parser.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=shown)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=list(d.shares), metavar="X",
        help="shares of the forget records that are relearned (default 0.05 0.2)",
    )  # fmt: skip
    parser.add_argument(
        "--benign", nargs="+", default=list(d.benign), metavar="TEXT",
        help="texts of benign relearning: retain, general (built-in questions), or JSON Lines or text files "
        "(default retain)",
    )  # fmt: skip
    given = parser.parse_args(list(arguments))
    lists: dict[str, Any] = {name: tuple(getattr(given, name)) for name in ("shares", "benign")}
    settings = AttackSettings(**lists, **{name: getattr(given, name) for name, *_ in _SETTINGS})
    result = attack_run(
        given.run,
        given.reference,
        given.attacks,
        settings,
        given.target,
        given.rows,
        given.max_new_tokens,
        given.output,
        lambda line: print(line, flush=True),
    )
    print("\n" + "\n".join(result.lines()))
    print(f"\n  page    {result.page}\n  numbers {result.page.with_suffix('.json')}")
    if result.card is not None:
        print(f"  card    {result.card}")
    return 1 if result.content["failed"] else 0
