"""`sga unlearn`: from two files and a model to a model that can be handed over."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

_DESCRIPTION = """\
Make MODEL forget the records of one file and keep those of another. Looks at the data and at what the model knows,
trains by a recipe (configs/recipes/unlearn.yaml), chooses the weights by a rule that needs no retrained model
(docs/handover.md), exports them, and measures what was exported, read from disk again. The same command goes on
after an interruption.
"""
_EPILOG = """\
A FILE is JSON Lines, JSON or CSV with question and answer, text, prompt and completion, or messages; or the name of
a data set on the Hub, organisation/name:split. Each step is an ordinary run in DIR (start, unlearned, final) with its
fit.yaml, which sga fit --config repeats.
"""


def main(arguments: Sequence[str]) -> int:
    """Runs ``sga unlearn MODEL --forget FILE --retain FILE``."""
    parser = argparse.ArgumentParser(
        "sga unlearn",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a name on the Hub, a folder in its format, or a run folder")
    parser.add_argument("--forget", required=True, metavar="FILE", help="what to forget")
    parser.add_argument("--retain", metavar="FILE", help="what to keep, of the same kind")
    parser.add_argument(
        "--holdout", metavar="FILE", help="of the kind to forget, never seen: forgetting is measured by it"
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="that never saw what to forget: its membership is the goal in place of 0.5"
    )
    parser.add_argument("--method", help="sga methods lists them (default: the recipe's)")
    parser.add_argument(
        "--lora", type=int, metavar="RANK", help="rank of the adapter; 0 trains all weights (default: recipe)"
    )
    parser.add_argument("--output", "--folder", type=Path, default=Path("runs/unlearn"), metavar="DIR", dest="folder",
                        help="where everything goes (default runs/unlearn)")  # fmt: skip
    parser.add_argument("--epochs", type=int, metavar="N", help="most passes over the forget data (default: recipe)")
    parser.add_argument("--lr", type=float, metavar="RATE", help="learning rate (default: recipe)")
    parser.add_argument("--group-size", type=int, metavar="K", help="forget sample and K - 1 normals (default: recipe)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting of sga fit; wins")
    parser.add_argument("--anyway", action="store_true", help="train although the model seems not to know the data")
    options = parser.parse_args(list(arguments))

    from sga.experiments.configuration import settings_from
    from sga.experiments.unlearn import unlearn

    unlearn(
        options.model,
        None,
        options.forget,
        options.retain,
        options.holdout,
        options.method,
        options.lora,
        folder=options.folder,
        epochs=options.epochs,
        lr=options.lr,
        group_size=options.group_size,
        settings=settings_from(options.set),
        base=options.base,
        anyway=options.anyway,
    )
    return 0
