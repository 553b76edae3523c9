"""`sga attack`: tests whether a few words, coarser weights, relearning or many samples bring forgotten answers back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sga.attacks.settings import ATTACKS, AttackSettings
from sga.commands.parsing import verb


@verb("attack")
def main(
    run: str,
    *,
    reference: Sequence[str] = (),
    attacks: Sequence[str] = ATTACKS,
    target: str | None = None,
    output: Path | None = None,
    rows: int = 100,
    max_new_tokens: int | None = None,
    settings: AttackSettings,
) -> int:
    """Forgotten, or only hidden? Attack the exported model of RUN and say what comes back.

    The model before unlearning and retained models are put under the same attacks, for comparison (docs/attacks.md).
    The same command resumes after an interruption.

    Args:
        run: Run folder of an unlearning run, or folder of sga unlearn.
        reference (RETAIN_RUN): Models that never saw the forget data: run folders or model folders.
        attacks (NAME): Names of the attacks to make.
        target (MODEL): Model before unlearning (default: the one that the run began with).
        output (DIR): Folder of the results (default: attacks/ in RUN).
        rows: Largest number of forget records.
        max_new_tokens: Largest number of tokens of an answer (default: the run's).
    """
    from sga.attacks.attack import attack_run

    result = attack_run(
        run,
        reference,
        attacks,
        settings,
        target,
        rows,
        max_new_tokens,
        output,
        lambda line: print(line, flush=True),
    )
    print("\n" + "\n".join(result.lines()))
    print(f"\n  page    {result.page}\n  numbers {result.page.with_suffix('.json')}")
    if result.card is not None:
        print(f"  card    {result.card}")
    return 1 if result.content["failed"] else 0
