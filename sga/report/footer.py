"""The foot of a report: configurations and versions of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sga.runs.folder import Run


@dataclass(frozen=True)
class RunFoot:
    """One run at the foot of a page.

    Attributes:
        run: Finished run to be described.
    """

    run: Run

    @property
    def configuration(self) -> str:
        """The resolved configuration as text."""
        path = self.run.config_path
        if not path.is_file():
            return f"(the run has no {path.name})"
        return path.read_text(encoding="utf-8", errors="replace")

    @property
    def facts(self) -> list[str]:
        """Method, seed and models in a few words each, the chosen evaluation and the reason for it."""
        run = self.run
        parameters = ", ".join(f"{name} = {value}" for name, value in run.info["parameters"].items())
        facts = [
            f"{run.info['method'] or 'no loss'} {parameters}".strip(),
            f"seed {run.seed}",
            f"K = {run.group_size}",
            f"model {run.info.get('model', 'not recorded')}",
            f"retain reference {run.info.get('reference') or 'none'}",
            f"chosen: step {run.chosen_step} of {run.evaluations[-1]['step']}",
        ]
        for words, name in (("by the rule: ", "chosen"), ("because: ", "because"), ("stopped ", "stopped")):
            facts += [f"{words}{value}"] if (value := run.chosen.get(name)) else []
        evaluation = ", ".join(f"{k} = {v}" for k, v in (run.info.get("evaluation") or {}).items())
        return [*facts, f"evaluation: {evaluation}"] if evaluation else facts


def packages(runs: Sequence[Run]) -> list[str]:
    """Packages with their versions in all of the runs: ``torch 2.6.0 / 2.7.0``."""
    recorded = [run.info.get("versions") or {} for run in runs]
    return [
        f"{name} {' / '.join(sorted({str(versions.get(name, 'not recorded')) for versions in recorded}))}"
        for name in sorted({name for versions in recorded for name in versions})
    ]
