"""Attacks on the exported model of a run, for `sga attack` and `sga unlearn`: table, page, JSON and card."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sga.attacks.entailment import EntailmentJudge
from sga.attacks.findings import Finding
from sga.attacks.measurements import Measurements
from sga.attacks.models import (
    WEIGHTS,
    attack_data,
    attacked_run,
    check_tokenizers,
    model_before,
    named_model,
    run_model,
)
from sga.attacks.progress import AttackProgress
from sga.attacks.recovery import benign_records
from sga.attacks.result import attack_lines, attack_page, write_card
from sga.attacks.settings import ATTACKS, QUICK, AttackSettings
from sga.attacks.suite import report_content, run_attacks
from sga.callbacks.evaluator import ANSWERS_FOLDER
from sga.errors import UserError
from sga.evaluation.table import duration
from sga.files import read_json_object, write_json, write_text
from sga.models.noise import hide_noise
from sga.runs.folder import RunFolder
from sga.runs.lock import write_lock


@dataclass(frozen=True)
class AttackResult:
    """Result of attacks on one model.

    Attributes:
        verdict: Sentences: what comes back, under which attack, what was not tried.
        findings: Findings, one for each attack, the one without any attack first.
        content: Content of the file attacks.json.
        page: Path of the page.
        card: Path of the model card; None where the model is not the run's own.
    """

    verdict: list[str]
    findings: list[Finding]
    content: dict[str, Any]
    page: Path
    card: Path | None

    def lines(self) -> list[str]:
        """Lines for the terminal."""
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
    """Attacks the exported model of a run. The same call resumes after an interruption and reuses what is there.

    Args:
        path: Path of the run folder, or of that of `sga unlearn`.
        references: Retained models: run folders, model folders or names on the Hub.
        attacks: Names of attacks, out of `ATTACKS`.
        settings: Strength of the attacks; None takes the defaults.
        target: Model before unlearning; None takes the one that the run began with.
        rows: Largest number of forget records.
        max_new_tokens: Largest number of tokens of an answer; None takes the run's.
        output: Path of the folder of results; None takes ``attacks`` in the run folder.
        say: Function that takes each line of progress.

    Raises:
        UserError: a model or the data cannot be had, or an attack is unknown. An error within an attack ends that
            attack alone: see ``failed`` in the content.
    """
    _check(references, attacks, rows, max_new_tokens)
    settings = settings or AttackSettings()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    judge = EntailmentJudge(settings.nli, device, say) if settings.nli and "sampling" in attacks else None
    run = attacked_run(path)
    folder = output or run.path / "attacks"
    unlearned = run_model(run, "unlearned", str(run.path))
    before = named_model(target, "before") if target is not None else model_before(run)
    retained = [named_model(name, "retained") for name in references]
    data = attack_data(run, rows, max_new_tokens)
    check_tokenizers(data.encoder, [before, *retained])
    for text in settings.benign if "relearn-benign" in attacks else ():
        benign_records(text, data)  # read now: a wrong file is said before anything is loaded
    hide_noise()
    cache = run.path.parent / ANSWERS_FOLDER if data.texts else None
    begun = time.monotonic()
    with write_lock(folder, "--output"), AttackProgress(say) as progress:
        m = Measurements(unlearned, before, retained, data, settings, device, folder, cache, progress, judge)
        found = run_attacks(m, [name for name in ATTACKS if name in attacks])
        content, findings = report_content(m, found), found.findings
        write_json(folder / "attacks.json", content)
        write_text(folder / "attacks.html", attack_page(content, findings))
    own = Path(unlearned.described.name_or_path) == run.model_path
    card = write_card(run.model_path, content, findings) if own else None
    say(f"  {duration(time.monotonic() - begun)} in all")
    return AttackResult(content["verdict"], findings, content, folder / "attacks.html", card)


def _check(references: Sequence[str], attacks: Sequence[str], rows: int, max_new_tokens: int | None) -> None:
    unknown = [name for name in attacks if name not in ATTACKS]
    if unknown:
        raise UserError(f"--attacks {', '.join(unknown)}: no such attack; choose from {', '.join(ATTACKS)}")
    if rows < 2:
        raise UserError(f"--rows must be at least 2, got {rows}")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, got {max_new_tokens}")
    if len(set(references)) < len(references):
        raise UserError(f"--reference names a model twice: {', '.join(references)}")


def quick_attack_lines(path: str | Path) -> list[str]:
    """Lines for the terminal on the attacks that take no longer than an evaluation each, see `attack_run`.

    What `sga attack` found of these weights with more attacks, retained models or other settings is told instead and
    stays as it is. The model is there already: an error, whatever it is, is one of the lines.
    """
    try:
        return _fuller_lines(attacked_run(path)) or attack_run(path, attacks=QUICK, say=lambda line: None).lines()
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return [f"No attacks were made ({why}). The model is there all the same; again: sga attack {path}"]


def _fuller_lines(run: RunFolder) -> list[str] | None:
    """Lines on what more than quick attacks found of a run's weights, which its card then has; None without such."""
    path = run.path / "attacks" / "attacks.json"
    weights = [one for one in run.model_path.glob("*") if one.suffix in WEIGHTS]
    if not path.is_file() or any(one.stat().st_mtime > path.stat().st_mtime for one in weights):
        return None
    content = read_json_object(path)
    asked = [name for name in ATTACKS if content["untried"].get(name) != "not asked for"]
    strength = json.loads(json.dumps(asdict(AttackSettings())))
    if {*asked} <= {*QUICK} and not content["models"]["retained"] and content["settings"] == strength:
        return None
    findings = [Finding.from_json(one) for one in content["findings"]]
    write_card(run.model_path, content, findings)
    return [f"as sga attack found them ({path}):", *attack_lines(content, findings)]
