"""`sga attack` and what `sga unlearn` calls: attacks on the exported model of a run; table, page, JSON and card."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sga.attacks.findings import Finding
from sga.attacks.models import attack_data, attacked_run, check_tokenizers, model_before, named_model, run_model
from sga.attacks.result import attack_lines, attack_page, write_card
from sga.attacks.suite import ATTACKS, QUICK, AttackSettings, Suite, report_content
from sga.callbacks.evaluator import ANSWERS_FOLDER
from sga.errors import UserError
from sga.evaluation.table import duration
from sga.files import write_json, write_text
from sga.models.noise import hide_noise
from sga.runs.lock import write_lock


@dataclass(frozen=True)
class AttackResult:
    """What attacks found.

    Attributes:
        verdict: Sentences: what comes back, under which attack, what was not tried.
        findings: One for each attack, the one without any first.
        content: All of it, as attacks.json has it.
        page: Path of the page.
        card: Path of the model card; None where the model is not the run's own.
    """

    verdict: list[str]
    findings: list[Finding]
    content: dict[str, Any]
    page: Path
    card: Path | None

    def lines(self) -> list[str]:
        """What the terminal shows."""
        return attack_lines(self.content, self.findings)


def attack_run(
    path: str | Path,
    references: Sequence[str] = (),
    attacks: Sequence[str] = ATTACKS,
    settings: AttackSettings | None = None,
    target: str | None = None,
    rows: int = 100,
    max_new_tokens: int | None = None,
    output: Path | None = None,
    say: Callable[[str], None] = print,
) -> AttackResult:
    """Attacks the exported model of a run. The same call goes on where it was interrupted and reuses what is there.

    Args:
        path: The run folder, or that of `sga unlearn`.
        references: Retained models: run folders, model folders or names on the Hub.
        attacks: Names out of `ATTACKS`.
        settings: What the attacks are like.
        target: The model before unlearning; None takes the one that the run began with.
        rows: Most forget records.
        max_new_tokens: Most tokens of an answer; None takes the run's.
        output: Folder of results; None takes ``attacks`` in the run folder.
        say: What is told each line of progress.

    Raises:
        UserError: a model or the data cannot be had, or an attack is unknown.
    """
    unknown = [name for name in attacks if name not in ATTACKS]
    if unknown:
        raise UserError(f"--attacks {', '.join(unknown)}: no such attack; choose from {', '.join(ATTACKS)}")
    if rows < 2:
        raise UserError(f"--rows must be at least 2, got {rows}")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, got {max_new_tokens}")
    if len(set(references)) < len(references):
        raise UserError(f"--reference names a model twice: {', '.join(references)}")
    run = attacked_run(path)
    folder = output or run.path / "attacks"
    unlearned = run_model(run, "unlearned", str(run.path))
    before = named_model(target, "before") if target is not None else model_before(run)
    retained = [named_model(name, "retained") for name in references]
    data = attack_data(run, rows, max_new_tokens)
    check_tokenizers(data.encoder, [before, *retained])
    hide_noise()
    cache = run.path.parent / ANSWERS_FOLDER if data.texts else None
    begun = time.monotonic()
    with write_lock(folder, "--output"):
        suite = Suite(unlearned, before, retained, data, settings or AttackSettings(), folder, cache, say)
        findings, diverged = suite.run([name for name in ATTACKS if name in attacks])
        content = report_content(suite, findings, diverged)
        write_json(folder / "attacks.json", content)
        write_text(folder / "attacks.html", attack_page(content, findings))
    own = Path(unlearned.described.name_or_path) == run.model_path
    card = write_card(run.model_path, content, findings) if own else None
    say(f"  {duration(time.monotonic() - begun)} in all")
    return AttackResult(content["verdict"], findings, content, folder / "attacks.html", card)


def quick_attacks(path: str | Path, say: Callable[[str], None]) -> AttackResult:
    """The attacks that take no longer than an evaluation each and need no retained model, see `attack_run`."""
    return attack_run(path, attacks=QUICK, say=say)
