"""`sga unlearn`: from two files and a model to a model that can be handed over."""

from __future__ import annotations

from pathlib import Path

from sga.commands.parsing import Repeated, verb


@verb("unlearn", output="--folder")
def main(
    model: str,
    *,
    forget: str,
    retain: str | None = None,
    holdout: str | None = None,
    base: str | None = None,
    method: str | None = None,
    lora: int | None = None,
    output: Path = Path("runs/unlearn"),
    epochs: int | None = None,
    lr: float | None = None,
    group_size: int | None = None,
    set_: Repeated = (),
    anyway: bool = False,
) -> int:
    """Make MODEL forget the records of one file and keep those of another.

    Looks at the data and at what the model knows, trains by a recipe (configs/recipes/unlearn.yaml), chooses the
    weights by a rule that needs no retrained model (docs/handover.md), exports them, and measures what was exported,
    read from disk again. The same command resumes after an interruption.

    A FILE is JSON Lines, JSON or CSV with question and answer, text, prompt and completion, or messages; or the name
    of a data set on the Hub, organisation/name:split. Each step is an ordinary run in DIR (start, unlearned, final)
    with its fit.yaml, which sga fit --config repeats.

    Args:
        model: Name on the Hub, folder in its format, or run folder.
        forget (FILE): Records that the model is to forget.
        retain (FILE): Records to keep, of the same kind.
        holdout (FILE): Records of the kind to forget that the model has never seen; forgetting is measured by them.
        base (MODEL): Model that never saw what to forget: its membership AUC is the goal in place of 0.5.
        method: Name of a method, as sga methods lists them (default: the recipe's).
        lora (RANK): Rank of the adapter; 0 trains all weights (default: the recipe's).
        output (DIR): Folder of everything that is written.
        epochs: Largest number of passes over the forget data (default: the recipe's).
        lr (RATE): Learning rate (default: the recipe's).
        group_size (K): Size of a group, one forget sample and K - 1 normals (default: the recipe's).
        set_ (NAME=VALUE): Any setting of sga fit, which overrides the recipe's.
        anyway: Train although the model seems not to know the data.
    """
    from sga.experiments.configuration import settings_from
    from sga.experiments.unlearn import unlearn
    from sga.models.noise import hide_noise

    hide_noise()
    unlearn(
        model,
        None,
        forget,
        retain,
        holdout,
        method,
        lora,
        folder=output,
        epochs=epochs,
        lr=lr,
        group_size=group_size,
        settings=settings_from(set_),
        base=base,
        anyway=anyway,
    )
    return 0
