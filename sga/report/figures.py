"""Charts of finished runs: the same for the report, for a notebook and for files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sga.files import write_bytes
from sga.report.conclusions import FORGET_QUALITY_LEVEL, compared_gradient_difference, has_forget_quality
from sga.report.seed_groups import SeedGroup, by_seed_group, pick, read_runs
from sga.report.styles import Style, distinct_styles
from sga.report.summary import FLOOR, fixed, p_value, retain_mean
from sga.runs.folder import Run

if TYPE_CHECKING:
    import altair as alt

    from sga.report.charts import Curve, TrainingAxis

FigureFormat = Literal["svg", "png", "pdf"]

# Metric, title, kind of its axis, and what is drawn of it.
_TRAINING: tuple[tuple[str, str, TrainingAxis, Callable[[float], float]], ...] = (
    ("model_utility", "model utility", "unit", float),
    (
        "forget_quality_log10",
        "forget quality, log10 p (−12 and below as −12)",
        "linear",
        lambda value: max(value, FLOOR),
    ),
    ("forget/avg_nll", "forget nll", "either", float),
    ("perplexity/normal/log", "perplexity on normal text, log10", "linear", lambda value: value / math.log(10)),
)
# Drawn of data without a retain model, besides the above.
_OWN_TRAINING: tuple[tuple[str, str, TrainingAxis, Callable[[float], float]], ...] = tuple(
    (f"{name}/{metric}", f"{name} {words}", "unit", float)
    for metric, words in (("rouge_l_recall", "ROUGE-L recall"), ("probability", "probability"))
    for name in ("forget", "retain")
)


@dataclass(frozen=True)
class RunFigures:
    """The charts of a report.

    Attributes:
        styles: Look of each setting, by its label.
        frontier: Forget quality against utility; None where no run has both.
        ratios: Distribution of the truth ratios; None without any.
        training: Metrics over training, by file name.
        settings: Labels of the settings that are drawn, by attribute.
        outside: Share of each setting's truth ratios that lie outside the axis, in (0, 1].
    """

    styles: Mapping[str, Style]
    frontier: alt.LayerChart | None
    ratios: alt.LayerChart | None
    training: Mapping[str, alt.LayerChart]
    settings: Mapping[str, Sequence[str]]
    outside: Mapping[str, float]

    def look(self, chart: str) -> dict[str, Style]:
        """Styles of the settings that are drawn in ``frontier``, ``ratios`` or ``training``, for its legend."""
        return {label: self.styles[label] for label in self.settings[chart]}

    @property
    def charts(self) -> dict[str, alt.LayerChart]:
        """All charts by file name, in the order of the report."""
        named = {"frontier": self.frontier, "truth-ratios": self.ratios, **self.training}
        return {name: chart for name, chart in named.items() if chart is not None}


def run_figures(runs: Iterable[str | Path | Run]) -> dict[str, alt.LayerChart]:
    """Altair charts of finished runs by name, those of the report; a notebook shows them as they are.

    Args:
        runs: Run folders of one benchmark, or what `load_run` read of them.

    Raises:
        UserError: A run folder cannot be read, or the runs are of different benchmarks.
    """
    return report_figures(by_seed_group(read_runs(runs))).charts


def write_figures(charts: Mapping[str, alt.LayerChart], folder: Path, form: FigureFormat = "svg") -> list[Path]:
    """Writes each chart with its legend into a file of its own; PNG has 300 dots an inch.

    Args:
        charts: Charts by file name, such as those of `run_figures`.
        folder: Folder of the files, which is made.
        form: Format of the files.

    Returns:
        Paths of the files.
    """
    import vl_convert

    drawn: Mapping[str, Callable[[dict[str, Any]], bytes]] = {
        "svg": lambda content: vl_convert.vegalite_to_svg(content).encode("utf-8"),
        "png": lambda content: vl_convert.vegalite_to_png(content, ppi=300),
        "pdf": lambda content: vl_convert.vegalite_to_pdf(content),
    }
    paths = []
    for name, chart in charts.items():
        paths.append(folder / f"{name}.{form}")
        write_bytes(paths[-1], drawn[form](chart.to_dict()))
    return paths


def report_figures(settings: Sequence[SeedGroup]) -> RunFigures:
    """The charts of a report on these settings."""
    from sga.report.charts import distribution_chart, frontier_chart  # not at the top: imports Altair

    styles = distinct_styles({setting.label: setting.first.method for setting in settings})
    curves = _frontier(settings)
    level = retain_mean("utility", settings)
    frontier = frontier_chart(curves, styles, level, FORGET_QUALITY_LEVEL) if curves else None
    samples = _truth_ratios(settings)
    ratios, outside = distribution_chart(samples, styles) if samples else (None, {})
    shown = {
        "frontier": list(dict.fromkeys(curve.setting for curve in curves)),
        "ratios": list(samples),
        "training": [setting.label for setting in settings if setting.first.role != "target"],
    }
    return RunFigures(styles, frontier, ratios, _training(settings, styles), shown, outside)


def _frontier(settings: Sequence[SeedGroup]) -> list[Curve]:
    from sga.report.charts import Curve, CurvePoint

    curves = []
    for setting, run in _unlearned(settings):
        points = []
        for evaluation in run.evaluations:
            quality, utility = run.value("forget_quality_log10", evaluation), run.value("utility", evaluation)
            if quality is not None and utility is not None:
                hover = _moment(setting, run, evaluation) | {"p": p_value(quality), "utility": fixed(utility)}
                points.append(CurvePoint(quality, utility, hover, evaluation["step"] == run.chosen_step))
        if points:
            curves.append(Curve(setting.label, _name(setting, run), points))
    return curves


def _truth_ratios(settings: Sequence[SeedGroup]) -> dict[str, list[float]]:
    """Log truth ratios of target, retain model and the settings to look at: the first seed's chosen evaluation."""
    compared = [s for s in settings if s.first.role != "unlearn"]
    compared += [s for s in (pick(settings, "GA"), pick(settings, "SGA"), compared_gradient_difference(settings)) if s]
    best = pick(settings)
    compared += [best] if best is not None and best not in compared else []
    samples = {}
    for setting in compared:
        rows = setting.first.row_dicts(setting.first.chosen_step, "forget")
        values = [float(v) for row in rows if isinstance(v := row.get("log_truth_ratio"), (int, float))]
        if values:
            samples[setting.label] = values
    return samples


def _training(settings: Sequence[SeedGroup], styles: Mapping[str, Style]) -> dict[str, alt.LayerChart]:
    from sga.report.charts import Curve, CurvePoint, training_chart

    runs = _unlearned(settings)
    axis = "epoch" if all("epoch" in evaluation for _, run in runs for evaluation in run.evaluations) else "step"
    charts = {}
    for name, title, kind, shown in _TRAINING if has_forget_quality(settings) else (*_OWN_TRAINING, *_TRAINING):
        curves = []
        for setting, run in runs:
            points = [
                CurvePoint(
                    float(evaluation[axis]),
                    shown(value),
                    _moment(setting, run, evaluation) | {title: f"{shown(value):.4g}".replace("-", "−")},
                    evaluation["step"] == run.chosen_step,
                )
                for evaluation in run.evaluations
                if (value := run.value(name, evaluation)) is not None
            ]
            if points:
                curves.append(Curve(setting.label, _name(setting, run), points))
        if curves:
            level = retain_mean(name, settings)
            place = f"training-{name.replace('/', '-').replace('_', '-')}"
            retain = None if level is None else shown(level)
            charts[place] = training_chart(title, curves, styles, axis, retain, kind)
    return charts


def _unlearned(settings: Sequence[SeedGroup]) -> list[tuple[SeedGroup, Run]]:
    return [(setting, run) for setting in settings if setting.first.role == "unlearn" for run in setting.runs]


def _name(setting: SeedGroup, run: Run) -> str:
    return f"{setting.label}, seed {run.seed}" if len(setting.runs) > 1 else setting.label


def _moment(setting: SeedGroup, run: Run, evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts of the tooltip that every evaluation has."""
    epoch = evaluation.get("epoch")
    moment = {"run": setting.label, "seed": str(run.seed), "step": str(evaluation["step"])}
    return moment if epoch is None else moment | {"epoch": f"{epoch:.3g}"}
