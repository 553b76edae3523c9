"""The report of own data: the result first, then answers with their likelihoods, then what happened over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sga.files import write_text
from sga.report.charts import Curve, Style, panel, swatch
from sga.report.footer import footer, printable
from sga.report.style import document
from sga.runs.folder import Run

_PANELS = (("rouge_l_recall", "ROUGE-L recall of greedy answers"), ("probability", "probability of true answers"))
_STYLES = {"forget": Style("c0", "", "circle"), "retain": Style("c2", "9 4", "square")}
_SHADES = (0.5, 2.0, 5.0)
"""Nats by which a token has become less likely from which on it is drawn darker."""


@dataclass(frozen=True)
class AnswerPair:
    """A forget question with what was answered before and after.

    Attributes:
        question: The question.
        answer: Its true answer.
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
    """What the page says.

    Attributes:
        sentence: The result in a sentence.
        fit: True if the model is fit to be handed over.
        facts: What was done, in a few words each.
        table: Heading and rows: quantity, before, now, interval, goal, verdict.
        untested: Sentences on what was not tested.
        warnings: Sentences on what is likely to be a fault of the data.
        answers: Forget questions with their answers; empty where texts are kept out.
        commands: Commands that go on from here.
        training: The training.
        runs: All runs, for their configurations.
    """

    sentence: str
    fit: bool
    facts: Sequence[str]
    table: Sequence[tuple[str, ...]]
    untested: Sequence[str]
    warnings: Sequence[str]
    answers: Sequence[AnswerPair]
    commands: Sequence[str]
    training: Run
    runs: Sequence[Run] = field(repr=False)

    def write(self, output: Path) -> None:
        """Writes the page."""
        write_text(output, self.page())

    def page(self) -> str:
        """The whole page as text; it quotes forget answers if there are any."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            finalize=lambda value: printable(value) if type(value) is str else value,
        )
        title = "Unlearning of your own data"
        body = environment.get_template("own_data.html.j2").render(
            title=title,
            result=self,
            panels=[Markup(one) for one in self._panels()],
            legend=[(name, Markup(swatch(style))) for name, style in _STYLES.items()],
            shade=_shade,
            footer=Markup(footer(self.runs, bool(self.answers))),
        )
        return document(title, [body])

    def _panels(self) -> list[str]:
        """Forget and retain over the steps of the training, a chart for each metric."""
        found = []
        for metric, title in _PANELS:
            curves = [curve for name in _STYLES if (curve := self._curve(name, metric)) is not None]
            if any(len(curve.points) > 1 for curve in curves):
                found.append(panel(title, curves, (), "step", f"own-{metric}", True))
        return found

    def _curve(self, name: str, metric: str) -> Curve | None:
        run = self.training
        kept = [(int(e["step"]), v) for e in run.evaluations if (v := run.value(f"{name}/{metric}", e)) is not None]
        if not kept:
            return None
        notes = [f"{name}, step {step}: {value:.2f}" for step, value in kept]
        at = next((place for place, (step, _) in enumerate(kept) if step == run.chosen_step), None)
        return Curve(name, _STYLES[name], [(float(step), value) for step, value in kept], notes, at)


def token_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[tuple[str, float, float], ...]:
    """Tokens of a true answer with their nll before and after, from two rows; empty where a row has none."""
    tokens, old, new = after.get("answer_tokens"), before.get("token_nll"), after.get("token_nll")
    if not (isinstance(tokens, list) and isinstance(old, list) and isinstance(new, list)):
        return ()
    if not len(tokens) == len(old) == len(new):
        return ()
    return tuple((str(token), float(a), float(b)) for token, a, b in zip(tokens, old, new, strict=True))


def _shade(before: float, after: float) -> int:
    """How much less likely a token has become, from 0 to 3.

    >>> _shade(0.1, 0.2), _shade(0.0, 3.0), _shade(0.0, 9.0), _shade(5.0, 0.0)
    (0, 2, 3, 0)
    """
    return sum(after - before >= limit for limit in _SHADES)
