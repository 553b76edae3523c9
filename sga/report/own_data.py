"""The report of own data: the result, then answers with their likelihoods, then metrics over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sga.files import write_text
from sga.report.footer import RunFoot, packages
from sga.report.pages import render
from sga.report.styles import RETAIN, Style
from sga.runs.folder import Run

if TYPE_CHECKING:
    import altair as alt

    from sga.report.charts import Curve

_METRICS = (("rouge_l_recall", "ROUGE-L recall of greedy answers"), ("probability", "probability of true answers"))
_STYLES = {"forget": Style("c0"), "retain": Style("c2", RETAIN.dash, RETAIN.marker)}
_SHADES = (0.5, 2.0, 5.0)
"""Loss of log-probability in nats from which on a token is drawn darker, step by step."""


@dataclass(frozen=True)
class AnswerPair:
    """A forget question with the answers before and after.

    Attributes:
        question: Question of a forget record.
        answer: True answer to this question.
        before: Greedy answer of the starting model.
        after: Greedy answer of the exported model.
        tokens: Each token of the true answer with its nll in nats before and after; empty where not known.
    """

    question: str
    answer: str
    before: str
    after: str
    tokens: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True)
class OwnDataReport:
    """The content of the page.

    Attributes:
        sentence: Sentence with the result.
        fit: True if the model is fit to be handed over.
        facts: Model, method, data and seed, in a few words each.
        table: Heading and rows: quantity, before, now, interval, goal, verdict.
        changes: Sentences on facts to keep that were lost, and on forget records that have become more likely.
        attacks: Sentences on what attacks bring back; empty if none were made.
        untested: Sentences on tests that were not made.
        warnings: Sentences on likely faults of the data.
        answers: Forget questions with their answers; empty where texts are kept out.
        commands: Commands to continue with.
        advice: Sentence on where to read what to change; None for a model that is fit to be handed over.
        training: Run of the training.
        runs: All runs, whose configurations are at the foot.
    """

    sentence: str
    fit: bool
    facts: Sequence[str]
    table: Sequence[tuple[str, ...]]
    changes: Sequence[str]
    attacks: Sequence[str]
    untested: Sequence[str]
    warnings: Sequence[str]
    answers: Sequence[AnswerPair]
    commands: Sequence[str]
    advice: str | None
    training: Run
    runs: Sequence[Run] = field(repr=False)

    def write(self, output: Path) -> None:
        """Writes the page."""
        write_text(output, self.page())

    def page(self) -> str:
        """HTML of the whole page; it quotes forget answers if there are any."""
        return render(
            "own_data.html.j2",
            "Unlearning of your own data",
            self._charts(),
            result=self,
            styles=_STYLES,
            shade=_shade,
            packages=packages(self.runs),
            runs=[RunFoot(run) for run in self.runs],
            holds_texts=bool(self.answers),
        )

    def _charts(self) -> dict[str, alt.LayerChart]:
        """Forget and retain over the steps of the training, a chart for each metric."""
        from sga.report.charts import training_chart  # not at the top: imports Altair

        found = {}
        for metric, title in _METRICS:
            curves = [curve for name in _STYLES if (curve := self._curve(name, metric)) is not None]
            if any(len(curve.points) > 1 for curve in curves):
                name = f"own-{metric.replace('_', '-')}"
                found[name] = training_chart(title, curves, _STYLES, "step", axis="unit")
        return found

    def _curve(self, name: str, metric: str) -> Curve | None:
        from sga.report.charts import Curve, CurvePoint

        run = self.training
        points = [
            CurvePoint(
                float(evaluation["step"]),
                value,
                {"data": name, "seed": str(run.seed), "step": str(evaluation["step"]), "value": f"{value:.2f}"},
                evaluation["step"] == run.chosen_step,
            )
            for evaluation in run.evaluations
            if (value := run.value(f"{name}/{metric}", evaluation)) is not None
        ]
        return Curve(name, name, points) if points else None


def token_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[tuple[str, float, float], ...]:
    """Tokens of a true answer with their nll before and after, from two rows; empty where a row has none."""
    tokens, old, new = after.get("answer_tokens"), before.get("token_nll"), after.get("token_nll")
    if not (isinstance(tokens, list) and isinstance(old, list) and isinstance(new, list)):
        return ()
    if not len(tokens) == len(old) == len(new):
        return ()
    return tuple((str(token), float(a), float(b)) for token, a, b in zip(tokens, old, new, strict=True))


def _shade(before: float, after: float) -> int:
    """Degree to which a token has become less likely, from 0 to 3.

    >>> _shade(0.1, 0.2), _shade(0.0, 3.0), _shade(0.0, 9.0), _shade(5.0, 0.0)
    (0, 2, 3, 0)
    """
    return sum(after - before >= limit for limit in _SHADES)
