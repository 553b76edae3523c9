"""The report on synthetic run folders: it says what the numbers say, in either direction, and stays one closed file."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import random
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sga.__main__ import main
from sga.errors import UserError
from sga.evaluation.metrics import frontier_area
from sga.files import write_text
from sga.report.conclusions import cautions, conclusions
from sga.report.figures import run_figures, write_figures
from sga.report.page import report_page, write_report
from sga.report.seed_groups import by_seed_group, pick, read_runs
from sga.report.styles import distinct_styles
from sga.report.summary import COLUMNS, best_groups, fixed, p_value, perplexity_text, runs_table
from sga.report.tables import write_tables
from sga.runs.folder import Run, load_run

# (step, log10 forget quality, model utility, forget nll, natural log of the perplexity on normal text)
Point = tuple[int, float, float, float, float]

GA_POINTS: Sequence[Point] = (
    (0, -20.0, 0.93, 0.05, 1.1),
    (10, -8.5, 0.80, 0.6, 1.4),
    (20, -2.0, 0.41, 2.6, 5.0),
    (30, -6.0, 0.08, 19.0, 21.0),
    (40, -12.4, 0.0, 61.0, 42.2),
)
MILD_POINTS: Sequence[Point] = (
    (0, -20.0, 0.93, 0.05, 1.1),
    (10, -9.5, 0.84, 0.5, 1.3),
    (20, -3.4, 0.55, 1.9, 3.0),
    (30, -2.4, 0.31, 6.0, 7.0),
    (40, -5.0, 0.12, 14.0, 12.0),
)
STRONG_POINTS: Sequence[Point] = (
    (0, -20.0, 0.93, 0.05, 1.1),
    (10, -11.0, 0.86, 0.4, 1.2),
    (20, -5.0, 0.66, 1.2, 1.5),
    (30, -2.6, 0.48, 2.0, 1.9),
    (40, -1.2, 0.35, 2.9, 2.4),
)
GD_POINTS: Sequence[Point] = (
    (0, -20.0, 0.93, 0.05, 1.1),
    (10, -12.5, 0.88, 0.3, 1.2),
    (20, -6.5, 0.70, 1.0, 1.4),
    (30, -3.1, 0.52, 1.7, 1.7),
    (40, -1.9, 0.39, 2.3, 2.0),
)
METHODS = {"SGA": "SmoothedGradientAscent", "GA": "GradientAscent", "GD": "GradientDifference"}
QUESTIONS = ("Where was Basil Kuwait-born?", "Which prize did she win?", "What does her father do?", "Her first novel?")


def write_run(
    folder: Path,
    method: str,
    points: Sequence[Point],
    parameters: dict[str, float] | None = None,
    seed: int = 0,
    role: str = "unlearn",
    texts: bool = True,
    without: Sequence[str] = (),
    answer: str = "She was born in Lisbon & grew up there.",
    chosen: int = -1,
    normals: str = "retain",
    **info: Any,
) -> Path:
    """Writes a run folder in the program's format.

    Args:
        folder: The folder to make.
        method: ``SGA``, ``GA``, ``GD``, or a class name.
        points: Its evaluations.
        parameters: Those of the method.
        seed: Its seed; also of the made-up rows.
        role: Its role.
        texts: Whether rows and groups hold texts.
        without: Metric names (without prefix) that are absent; perplexities with theirs.
        answer: Answer of each forget record.
        chosen: Index of the chosen evaluation.
        normals: Prefix of the ids of the normal samples.
        **info: Further entries of run.json, or replacements.
    """
    folder.mkdir(parents=True)
    draw = random.Random(f"{folder.name}{seed}")
    (folder / "run.json").write_text(
        json.dumps(
            {
                "name": folder.name,
                "role": role,
                "method": METHODS.get(method, method),
                "parameters": parameters or {},
                "seed": seed,
                "group_size": 4,
                "benchmark": "authors",
                "model": "runs/demo/target/model",
                "reference": "runs/demo/retain" if role == "unlearn" else None,
                "texts": texts,
                "versions": {"sga": "0.1.0", "torch": "2.6.0"},
                "evaluation": {"max_new_tokens": 200},
                **info,
            }
        )
    )
    (folder / "config.yaml").write_text(f"seed_everything: {seed}\nmodel:\n  learning_rate: 1.0e-05 # <b>\n")
    evaluations, rows = [], []
    for step, quality, utility, nll, log_perplexity in points:
        metrics = {
            "step": step,
            "epoch": step / 10,
            "authors/forget_quality": 10**quality,
            "authors/forget_quality_log10": quality,
            "authors/ks_statistic": min(1.0, 0.1 + abs(quality) / 25),
            "authors/ks_n": 40,
            "authors/model_utility": utility,
            "authors/forget/rouge_l_recall": max(0.05, 0.98 - nll / 4),
            "authors/retain/rouge_l_recall": utility,
            "authors/forget/avg_nll": nll,
            "authors/mia/loss": max(0.02, 0.99 - nll / 5),
            "perplexity/forget": math.exp(min(nll, 700)),
            "perplexity/forget/log": nll,
            "perplexity/retain/log": log_perplexity,
            "perplexity/normal": math.exp(min(log_perplexity, 700)),
            "perplexity/normal/log": log_perplexity,
            "seconds": 3.2,
        }
        gone = {prefix + name for name in without for prefix in ("authors/", "")}
        evaluations.append({key: value for key, value in metrics.items() if key not in gone})
        centre = -1.6 + min(nll, 30.0) * (0.55 if nll < 4 else 0.8)
        for index, question in enumerate(QUESTIONS * 10):
            for name in ("forget", "retain"):
                rows.append(
                    {
                        "step": step,
                        "set": name,
                        "id": f"{name}/{index}",
                        "avg_nll": nll,
                        "probability": math.exp(-nll),
                        "paraphrased_nll": nll + 0.3,
                        "perturbed_nll": [nll + 1.0, nll + 1.4],
                        "log_truth_ratio": draw.gauss(centre, 0.5 + nll / 20),
                        "rouge_l_recall": utility if name == "retain" else max(0.05, 0.98 - nll / 4),
                    }
                )
                if texts:
                    said = answer if nll < 1 else "She was born in Porto." if nll < 10 else "the the the " * 70
                    rows[-1] |= {
                        "question": f"{question} ({index})",
                        "answer": answer if name == "forget" else "A carpenter.",
                        "generation": said if name == "forget" or nll > 10 else "A carpenter.",
                    }
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations))
    summary = {**evaluations[chosen], "chosen": "the last evaluation"}
    summary["absent"] = {key: f"{key} was not asked for" for key in gone if not key.startswith("authors/perplexity")}
    if role == "unlearn" and "frontier_area" not in without and not {"forget_quality_log10", "model_utility"} & gone:
        summary["frontier_area"] = frontier_area([(q, u) for _, q, u, *_ in points])
    (folder / "metrics.json").write_text(json.dumps(summary))
    for step in {row["step"] for row in rows}:
        here = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row["step"] == step]
        write_text(folder / "rows" / f"{step:06}.jsonl", "".join(here))
    if role == "unlearn":
        with (folder / "pairs.jsonl").open("w") as file:
            for index in range(8):
                words = {"question": QUESTIONS[index % 4], "answer": answer} if texts else {}
                beside = [
                    {"id": f"{normals}/{3 * index + k}", "score": 0.9 - 0.1 * k}
                    | ({"question": "What is his trade?", "answer": "A carpenter."} if texts else {})
                    for k in range(3)
                ]
                file.write(json.dumps({"forget_id": f"forget/{index}", "forget": words, "normals": beside}) + "\n")
    return folder


TARGET_POINTS: Sequence[Point] = ((120, -20.0, 0.93, 0.05, 1.1),)
RETAIN_POINTS: Sequence[Point] = ((120, -0.0, 0.92, 2.2, 1.15),)


def write_all(folder: Path) -> list[Path]:
    """A full comparison: target, retain, GA, SGA at four rates, GD at two weights."""
    rates = {-0.8: MILD_POINTS, -2.0: MILD_POINTS, -4.0: STRONG_POINTS, -8.0: STRONG_POINTS}
    runs = [
        write_run(folder / "target", "FineTuning", TARGET_POINTS, role="target"),
        write_run(folder / "retain", "FineTuning", RETAIN_POINTS, role="retain", without=["forget_quality_log10"]),
        write_run(folder / "ga-seed0", "GA", GA_POINTS),
        write_run(folder / "gd-1-seed0", "GD", GD_POINTS, {"normal_weight": 1.0}),
        write_run(folder / "gd-2-seed0", "GD", shifted(GD_POINTS, -0.7, 0.03), {"normal_weight": 2.0}),
    ]
    for i, (rate, points) in enumerate(rates.items()):
        moved = shifted(points, 0.15 * (i % 2), 0.02 * (i % 2))
        runs.append(write_run(folder / f"sga-r{rate:g}-seed0", "SGA", moved, {"smoothing_rate": rate}))
    return runs


def shifted(points: Sequence[Point], quality: float, utility: float) -> list[Point]:
    """The same trajectory, moved after its first point."""
    later = [(s, min(q + quality, 0.0), min(max(u + utility, 0.0), 1.0), n, p) for s, q, u, n, p in points[1:]]
    return [points[0], *later]


class Checker(HTMLParser):
    """Fails on tags that are not balanced and gathers addresses, ids and texts."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def without_script(page: str) -> str:
    """The page without the one script that its policy lets run."""
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert "<!--" not in script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert re.findall(r'<meta http-equiv="Content-Security-Policy" content="(.*)">', page) == [policy]
    return page.replace(f"<script>{script}</script>", "")


def checked(runs: Sequence[Path]) -> Checker:
    """The page of some runs, after the checks that hold for every page."""
    page = without_script(report_page(read_runs(runs), "A <title>"))
    found = Checker(page)
    assert len(found.ids) == len(set(found.ids))
    assert page.count("<script") == page.count('<script type="application/json">'), "data runs nothing"
    assert not found.tags & {"img", "link", "iframe", "object", "base", "form"}
    assert not found.attributes & {"src", "href", "srcset", "xlink:href", "onload", "onclick"}
    assert re.search(r"url\(|@import", page) is None
    assert "NaN" not in page and "nan" not in re.findall(r"[\w.]+", page)
    assert ">None<" not in page
    for reference in re.findall(r'aria-labelledby="([^"]*)"', page):
        assert set(reference.split()) <= set(found.ids)
    return found


def said(runs: Sequence[Path]) -> list[str]:
    """The five sentences on some runs."""
    return conclusions(by_seed_group(read_runs(runs)))


# --- whole pages, in every shape that runs come in


def test_a_full_comparison_shows_every_run_and_every_section(tmp_path: Path) -> None:
    page = checked(write_all(tmp_path))
    for label in ("GA", "SGA r = −0.8", "SGA r = −8", "GD λ = 1", "GD λ = 2", "target", "retain"):
        assert label in page.words
    for section in ("conclusions", "numbers", "frontier", "ratios", "time", "answers", "groups"):
        assert section in page.ids
    assert "seed_everything: 0" in page.words and "torch 2.6.0" in page.words
    assert "contains the text that was to be forgotten" in page.words


@pytest.mark.parametrize("kept", [["GA"], ["SGA"], ["GD"], ["GA", "SGA"], ["SGA", "GD"], ["GA", "GD"]])
def test_any_subset_of_methods_makes_a_page(tmp_path: Path, kept: list[str]) -> None:
    runs = [run for run in write_all(tmp_path) if load_run(run).method in kept]
    checked(runs)
    assert len(said(runs)) == 5


@pytest.mark.parametrize("role", ["target", "retain"])
def test_a_page_without_unlearning_says_so(tmp_path: Path, role: str) -> None:
    run = write_run(tmp_path / "only", "FineTuning", TARGET_POINTS, role=role)
    page = checked([run])
    assert "No unlearning run" in page.words
    assert not {"frontier", "time", "groups"} & set(page.ids), "sections of which there is nothing are left out"
    assert "No SGA run is here" in said([run])[1]


def test_without_texts_nothing_of_the_forget_set_is_in_the_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sga", "SGA", STRONG_POINTS, {"smoothing_rate": -8}, texts=False)
    words = checked([run]).words
    assert "Lisbon" not in words and "Basil" not in words
    assert "texts: false" in words and "forget/0" in words
    assert "quotes no question, answer or group" in words
    assert "Careful" not in words


def test_each_metric_may_be_absent_and_the_reason_is_given(tmp_path: Path) -> None:
    names = [column.name for column in COLUMNS if column.name != "frontier_area"]
    names += ["forget_quality", "forget/avg_nll", "perplexity/forget", "perplexity/normal"]
    bare = write_run(tmp_path / "bare", "SGA", STRONG_POINTS, {"smoothing_rate": -8}, without=names)
    words = checked([bare]).words
    assert "Not here: KS D (authors/ks_statistic was not asked for)" in words
    assert "cannot be ranked" in said([bare])[1] and "cannot be told" in said([bare])[4]
    assert "cannot be" not in words, "a page without a retain model does not say five times what cannot be said"
    assert "authors/ks_statistic was not asked for" in runs_table([bare])
    singles = [write_run(tmp_path / name.replace("/", "-"), "GA", GA_POINTS, without=[name]) for name in names]
    assert all(len(said([single])) == 5 for single in singles)
    for start in range(0, len(singles), 4):
        checked([*singles[start : start + 4], bare])


def test_one_evaluation_is_enough(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "ga", "GA", GA_POINTS[-1:]),
        write_run(tmp_path / "sga", "SGA", STRONG_POINTS[-1:], {"smoothing_rate": -8}),
    ]
    checked(runs)
    assert said(runs)[0].startswith("Gradient ascent (GA) ended at model utility 0.00, and it diverged")


def test_a_model_that_was_only_evaluated_goes_by_its_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "checked", "GA", GA_POINTS[-1:])
    (run / "run.json").write_text((run / "run.json").read_text().replace('"GradientAscent"', "null"))
    assert "checked" in checked([run]).words and load_run(run).label == "checked"


def test_a_method_of_ones_own_is_called_by_its_class_name(tmp_path: Path) -> None:
    own = write_run(tmp_path / "npo", "NegativePreference", GD_POINTS, {"beta": 0.1})
    assert "NegativePreference beta = 0.1" in checked([own]).words


def test_texts_are_escaped_and_characters_that_html_forbids_are_replaced(tmp_path: Path) -> None:
    answer = '<script>alert("x")</script> </td> & \x00 https://example.org'
    run = write_run(tmp_path / "sga", "SGA", STRONG_POINTS, {"smoothing_rate": -8}, answer=answer)
    for path in (run / "rows").iterdir():  # half of a surrogate pair, which json.loads lets through
        path.write_text(path.read_text().replace("\\u0000", "\\ud800"))
    path = write_report([run], tmp_path / "deep" / "report.html", title="<i>T</i>")
    page = without_script(path.read_text(encoding="utf-8"))
    assert "<script>" not in page and "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &lt;/td&gt; &amp;" in page
    assert "\x00" not in page and "\ufffd" in page
    assert "&lt;i&gt;T&lt;/i&gt;" in page and "# &lt;b&gt;" in page
    assert Checker(page).words.count("https://example.org") > 0  # as text, not as an address
    assert "default-src 'none'" in page


def test_names_and_settings_stay_inert_in_charts_and_tables(tmp_path: Path) -> None:
    """Labels are data of charts, words of legends and cells of tables."""
    hostile = '</script></noscript><img src=x onerror="alert(1)">{{ 7 * 7 }}|&_$'
    own = write_run(tmp_path / "own", f"Mine{hostile}", GD_POINTS, {"a": 1.0}, name=hostile)
    found = checked([own, write_run(tmp_path / "ga", "GA", GA_POINTS)])
    assert not found.tags & {"img"} and "onerror" not in found.attributes and "{{ 7 * 7 }}" in found.words
    for path in write_tables([own], tmp_path / "tables"):
        assert "alert(1)" in path.read_text(encoding="utf-8")
    [row] = [line for line in (tmp_path / "tables" / "results.md").read_text().splitlines() if "alert" in line]
    assert row.startswith('| Mine</script></noscript><img src=x onerror="alert(1)">{{ 7 * 7 }}\\|&_$ a = 1 | ')
    assert "\\{\\{ 7 * 7 \\}\\}|\\&\\_\\$ a" in (tmp_path / "tables" / "results.tex").read_text()


def test_the_charts_of_a_page_are_those_of_notebooks_and_files(tmp_path: Path) -> None:
    runs = write_all(tmp_path)
    charts = run_figures(runs)
    page = report_page(read_runs(runs), "A title")
    data = [json.loads(part) for part in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    assert len(data) == len(charts) == 6
    for chart, embedded in zip(charts.values(), data, strict=True):
        content = chart.to_dict()
        assert embedded["description"] == content["description"]
        assert embedded["datasets"] == content["datasets"], "the same numbers"
        assert "var(--c0)" in json.dumps(embedded) and "var(--" not in json.dumps(content), "a page follows its scheme"
        assert embedded["width"] == "container" and embedded["config"]["legend"] == {"disable": True}
    points = [row for rows in data[0]["datasets"].values() for row in rows if row.get("hover0") == "SGA r = −8"]
    assert [row["x"] for row in points] == [-12.0, -10.85, -4.85, -2.45, -1.05]
    assert {"hover1": "0", "hover2": "20", "hover3": "2", "hover4": "1e−5", "hover5": "0.68"}.items() <= points[
        2
    ].items()
    assert [row["chosen"] for row in points] == [False] * 4 + [True]


@pytest.mark.parametrize(("form", "start"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_figures_are_files_with_a_legend(tmp_path: Path, form: Any, start: bytes) -> None:
    chart = run_figures(write_all(tmp_path))["frontier"]
    [path] = write_figures({"frontier": chart}, tmp_path / "figures", form)
    assert path == tmp_path / "figures" / f"frontier.{form}" and path.read_bytes().startswith(start)
    if form == "svg":
        words = path.read_text(encoding="utf-8")
        assert "var(" not in words and all(f">{label}</text>" in words for label in ("GA", "SGA r = −0.8", "GD λ = 2"))


def test_tables_are_written_for_people_and_for_programs(tmp_path: Path) -> None:
    runs = write_all(tmp_path)
    runs += [write_run(tmp_path / "ga-seed1", "GA", shifted(GA_POINTS, 0.5, 0.1), seed=1)]
    places = {path.name: path.read_text(encoding="utf-8") for path in write_tables(runs, tmp_path / "tables")}
    rows = list(csv.DictReader(places["results.csv"].splitlines()))
    assert [row["run"] for row in rows if row["setting"] == "GA"] == ["ga-seed0", "ga-seed1"]
    strong = next(row for row in rows if row["run"] == "sga-r-8-seed0")
    assert (strong["smoothing_rate"], strong["forget_quality_log10"], strong["seed"]) == ("-8.0", "-1.05", "0")
    assert float(strong["frontier_area"]) == load_run(tmp_path / "sga-r-8-seed0").frontier_area
    heads, rule, *lines = [line[2:-2].split(" | ") for line in places["results.md"].splitlines()]
    assert heads[:3] == ["Run", "r", "λ"] and set(rule) == {"---"} and {len(line) for line in lines} == {len(heads)}
    assert next(line for line in lines if line[0] == "GA")[3:6] == ["0, 1", "4", "−12.15 (−12.40 to −11.90)"]
    assert any(cell.startswith("**") for line in lines for cell in line)
    assert (
        places["results.tex"].startswith("\\begin{tabular}{lrrrr")
        and "SGA r = $-$8 & $-$8 & 0.857" in places["results.tex"]
    )


def test_the_verb_writes_page_figures_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "ga", "GA", GA_POINTS)
    places = [f"--output={tmp_path}/page.html", f"--figures={tmp_path}/figures", f"--tables={tmp_path}/tables"]
    assert main(["report", str(run), *places, "--figure-format=pdf"]) == 0
    written = [path.relative_to(tmp_path) for path in map(Path, capsys.readouterr().out.split("\n\n")[-1].split())]
    assert [path.name for path in written][:3] == ["page.html", "frontier.pdf", "truth-ratios.pdf"]
    assert len(written) == 1 + 6 + 3 and all((tmp_path / path).is_file() for path in written)
    refused = main(["report", str(run), *places, "--format=open-unlearning"])
    assert refused == 2 and "leave out --format open-unlearning" in capsys.readouterr().err


def test_long_answers_are_cut(tmp_path: Path) -> None:
    words = checked([write_run(tmp_path / "ga", "GA", GA_POINTS)]).words
    assert "(840 characters in all)" in words and "the the " * 64 not in words


# --- the five sentences, in both directions


def test_the_fate_of_gradient_ascent_is_told_as_it_was(tmp_path: Path) -> None:
    collapsed = write_run(tmp_path / "a", "GA", GA_POINTS)
    assert said([collapsed])[0] == (
        "Gradient ascent (GA) ended at model utility 0.00, down from 0.93 at its first evaluation, and it diverged "
        "(perplexity on normal text at the end: 2.1e18; above 1e10 counts as diverged)."
    )
    survived = write_run(tmp_path / "b", "GA", MILD_POINTS[:2])
    assert "0.84, down from 0.93 at its first evaluation, and it did not diverge" in said([survived])[0]
    gained = write_run(tmp_path / "c", "GA", [MILD_POINTS[0], (10, -9.0, 0.95, 0.5, 1.0)])
    assert "0.95, up from 0.93" in said([gained])[0]
    silent = write_run(tmp_path / "d", "GA", GA_POINTS, without=["perplexity/normal", "perplexity/normal/log"])
    assert "whether it diverged cannot be told" in said([silent])[0]
    assert "perplexity/normal/log was not asked for" in said([silent])[0]


def test_the_best_rate_is_the_one_with_the_largest_area_and_stands_beside_ga(tmp_path: Path) -> None:
    ascent = write_run(tmp_path / "ga", "GA", GA_POINTS)
    mild = write_run(tmp_path / "mild", "SGA", MILD_POINTS, {"smoothing_rate": -0.8})
    strong = write_run(tmp_path / "strong", "SGA", STRONG_POINTS, {"smoothing_rate": -8})
    area = {run: fixed(load_run(run).frontier_area or 0, 3) for run in (ascent, mild, strong)}
    assert area[strong] > area[mild] > area[ascent]
    assert (
        f"the highest of 2 smoothing settings, on one seed, SGA r = −8, has {area[strong]}, above GA's {area[ascent]} "
        "(but with one seed it cannot be told whether another would turn this round)."
        in said([ascent, mild, strong])[1]
    )
    lucky = write_run(tmp_path / "lucky", "GA", shifted(STRONG_POINTS, 0.5, 0.2))
    assert "the only smoothing setting tried" in said([lucky, strong])[1]
    assert f"{area[strong]}, below GA's" in said([lucky, strong])[1]
    equal = write_run(tmp_path / "equal", "GA", STRONG_POINTS)
    assert "level with GA's" in said([equal, strong])[1]
    assert "there is no GA run" in said([strong])[1]


def test_gradient_difference_stands_beside_sga_whichever_is_ahead(tmp_path: Path) -> None:
    smoothed = write_run(tmp_path / "sga", "SGA", STRONG_POINTS, {"smoothing_rate": -8})
    ahead = write_run(tmp_path / "ahead", "GD", shifted(STRONG_POINTS, 0.5, 0.1), {"normal_weight": 1.0})
    behind = write_run(tmp_path / "behind", "GD", MILD_POINTS, {"retain_weight": 1.0})
    sentence = said([smoothed, ahead])[2]
    assert sentence.startswith("GD λ = 1 on the same normal samples has frontier area")
    unknown = "(but with one seed it cannot be told whether another would turn this round)"
    assert "above SGA r = −8's" in sentence and unknown in sentence and "better here" not in sentence
    # ρ = −8·3/4 = −6, λ = 6/7
    assert "λ = |ρ|/(1+|ρ|) < 1, where ρ = r(K−1)/K: r = −8 at K = 4 is λ = 0.857." in sentence
    assert "below SGA r = −8's" in said([smoothed, behind])[2]
    assert unknown in said([smoothed, behind])[2] and "pays" not in said([smoothed, behind])[2]
    equal = write_run(tmp_path / "equal", "GD", STRONG_POINTS, {"normal_weight": 1.0}, normals="other")
    assert "on other normal samples (so not strictly comparable)" in said([smoothed, equal])[2]
    assert "neither is better here" in said([smoothed, equal])[2]
    assert said([smoothed])[2].startswith("No gradient difference (GD) run on the same normal samples is here")
    assert "with no SGA run to set beside it" in said([ahead])[2]
    (equal / "pairs.jsonl").unlink()
    assert "is not recorded" in said([smoothed, equal])[2]


def test_only_seeds_that_do_not_overlap_tell_which_of_two_methods_is_better(tmp_path: Path) -> None:
    def runs(name: str, method: str, more: Sequence[float], parameters: dict[str, float]) -> list[Path]:
        return [
            write_run(tmp_path / f"{name}-seed{seed}", method, shifted(STRONG_POINTS, 0.0, up), parameters, seed=seed)
            for seed, up in enumerate(more)
        ]

    smoothed = runs("sga", "SGA", (0.0, 0.02), {"smoothing_rate": -8})
    for name, more, verdict in (
        ("ahead", (0.1, 0.12), "so plain GD does better here (the ranges over the seeds do not overlap)"),
        ("behind", (-0.1, -0.12), "so the smoothing rate pays here (the ranges over the seeds do not overlap)"),
        ("beside", (0.01, 0.05), "(but the ranges over the seeds overlap, so they do not tell which is better)"),
    ):
        sentence = said([*smoothed, *runs(name, "GD", more, {"normal_weight": 1.0})])[2]
        assert verdict in sentence
        assert (" here" in sentence) == (name != "beside")


def test_a_positive_rate_is_not_called_gradient_difference(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sga", "SGA", GA_POINTS, {"smoothing_rate": 0.4})
    assert "at r = 0.4 the normal samples are ascended too" in said([run])[2]
    assert load_run(run).normal_weight == pytest.approx(-0.3 / 0.7)  # ρ = 0.3


def test_lambda_one_is_the_gradient_difference_that_sga_is_held_against(tmp_path: Path) -> None:
    smoothed = write_run(tmp_path / "sga", "SGA", STRONG_POINTS, {"smoothing_rate": -8})
    one = write_run(tmp_path / "one", "GD", MILD_POINTS, {"normal_weight": 1.0})
    two = write_run(tmp_path / "two", "GD", shifted(STRONG_POINTS, 0.9, 0.2), {"normal_weight": 2.0})
    assert said([smoothed, one, two])[2].startswith("GD λ = 1 ")
    assert said([smoothed, two])[2].startswith("GD λ = 2 ")


def test_the_forget_quality_reached_and_the_price_are_told(tmp_path: Path) -> None:
    retain = write_run(tmp_path / "retain", "FineTuning", RETAIN_POINTS, role="retain")
    reached = write_run(tmp_path / "a", "SGA", STRONG_POINTS, {"smoothing_rate": -8})
    assert said([reached, retain])[3] == (
        "The run with the highest frontier area, SGA r = −8, on one seed, reached a forget quality above 0.05 "
        "(step 40) at model utility 0.35 (retain model: 0.92)."
    )
    missed = write_run(tmp_path / "b", "SGA", MILD_POINTS, {"smoothing_rate": -8})
    assert said([missed])[3] == (
        "The run with the highest frontier area, SGA r = −8, on one seed, never reached a forget quality above 0.05: "
        "its highest was 0.004, at step 30 with model utility 0.31."
    )
    before = write_run(tmp_path / "c", "SGA", [(0, -0.5, 0.9, 2.0, 1.0), *STRONG_POINTS[1:4]], {"smoothing_rate": -8})
    assert "(step 0, before any unlearning)" in said([before])[3]
    blind = write_run(tmp_path / "d", "SGA", STRONG_POINTS, without=["forget_quality_log10", "forget_quality"])
    assert "The forget quality of SGA is absent" in said([blind])[3]


@pytest.mark.parametrize(
    ("nll", "verdict"),
    [
        (6.0, "a sign of over-unlearning"),
        (0.5, "a sign of under-unlearning"),
        (2.2, "a sign of neither under- nor over-unlearning"),
    ],
)
def test_over_and_under_unlearning_are_told_from_the_retain_model(tmp_path: Path, nll: float, verdict: str) -> None:
    retain = write_run(tmp_path / "retain", "FineTuning", RETAIN_POINTS, role="retain")
    run = write_run(tmp_path / "sga", "SGA", [(10, -3.0, 0.5, nll, 1.5)], {"smoothing_rate": -2})
    sentence = said([run, retain])[4]
    assert sentence.endswith(f": {verdict}.")
    assert f"a forget nll of {nll:.2f} against the retain model's 2.20" in sentence


def test_signs_that_disagree_and_references_that_are_missing_are_said(tmp_path: Path) -> None:
    retain = write_run(tmp_path / "retain", "FineTuning", RETAIN_POINTS, role="retain", without=["mia/loss"])
    run = write_run(tmp_path / "sga", "SGA", [(10, -3.0, 0.5, 2.3, 1.5)], {"smoothing_rate": -2})
    row = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(row | {"authors/mia/loss": 0.7, "authors/forget/avg_nll": 4.0}))
    assert "which disagree: the nll says over-unlearned, the attack under-unlearned" in said([run, retain])[4]
    assert "MIA AUC of 0.70 against 0.50 for members not recognised: a sign of under" in said([run])[4]
    deaf = write_run(tmp_path / "deaf", "SGA", STRONG_POINTS, {"smoothing_rate": -2}, without=["mia/loss"])
    assert (
        "cannot be told (forget nll: no retain model; MIA AUC: authors/mia/loss was not asked for)" in said([deaf])[4]
    )


# --- several seeds, several settings


def test_seeds_of_one_setting_are_put_together_and_nothing_else_is(tmp_path: Path) -> None:
    rate = {"smoothing_rate": -8.0}
    runs = [
        write_run(tmp_path / "sga-seed0", "SGA", STRONG_POINTS, rate, seed=0),
        write_run(tmp_path / "sga-seed1", "SGA", shifted(STRONG_POINTS, 0.4, 0.04), rate, seed=1),
        write_run(tmp_path / "sga-lr5-seed0", "SGA", STRONG_POINTS, rate, seed=0),
        write_run(tmp_path / "ga-seed0", "GA", GA_POINTS, seed=0),
        write_run(tmp_path / "ga-seed1", "GA", MILD_POINTS[:3], seed=1),
    ]
    settings = by_seed_group(read_runs(runs))
    assert [(s.label, [r.seed for r in s.runs]) for s in settings] == [
        ("GA", [0, 1]),
        ("SGA r = −8 (sga)", [0, 1]),
        ("SGA r = −8 (sga-lr5)", [0]),
    ]
    sentences = conclusions(settings)
    assert "(GA, 2 seeds) ended at model utility 0.28 (0.00–0.55)" in sentences[0]
    assert "1 of 2 seeds diverged" in sentences[0]
    assert "in 2 of 2 seeds (step 40) at model utility 0.37 (0.35–0.39)" in sentences[3]
    assert "the ranges over the seeds do not overlap" in sentences[1]
    checked(runs)
    assert "0,1" in runs_table(runs)


def test_a_run_named_twice_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "ga", "GA", GA_POINTS)
    assert len(read_runs([run, tmp_path / "." / "ga", str(run)])) == 1


def test_what_makes_runs_incomparable_is_said(tmp_path: Path) -> None:
    runs = write_all(tmp_path)
    notes = " ".join(cautions(by_seed_group(read_runs(runs))))
    assert "picked on the same runs" in notes and "one seed" in notes
    assert "differ" not in notes
    other = write_run(tmp_path / "short", "SGA", STRONG_POINTS[:3], {"smoothing_rate": -1}, model="else", group_size=2)
    path = other / "metrics.json"
    path.write_text(path.read_text().replace('"authors/ks_n": 40', '"authors/ks_n": 400'))
    notes = " ".join(cautions(by_seed_group(read_runs([*runs, other]))))
    for words in ("n = 40, 400", "different steps", "different starting models", "Group sizes differ"):
        assert words in notes
    unicode = write_run(tmp_path / "u", "SGA", STRONG_POINTS, evaluation={"rouge_tokenizer": "unicode"})
    notes = " ".join(cautions(by_seed_group(read_runs([*runs, unicode]))))
    assert "evaluated with different rouge_tokenizer." in notes


# --- numbers


def test_the_area_is_that_of_the_trajectory_and_the_best_run_has_the_largest(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "a", "SGA", STRONG_POINTS, {"smoothing_rate": -8}))
    assert run.frontier == [(q, u) for _, q, u, *_ in STRONG_POINTS]
    assert run.frontier_area == pytest.approx(frontier_area(run.frontier))
    assert run.frontier_area == pytest.approx(run.chosen["frontier_area"])
    assert load_run(write_run(tmp_path / "t", "FineTuning", TARGET_POINTS, role="target")).frontier_area is None


def test_the_table_for_the_terminal_is_aligned_fits_and_has_the_chosen_values(tmp_path: Path) -> None:
    text = runs_table(write_all(tmp_path))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    ascent, more = (line for line in lines if line.startswith("GA "))
    assert ascent.split()[:7] == ["GA", "0", "0", "4", "−12.40", "0.60", "0.00"]
    assert "2.1e18" in more
    heads = [word for line in lines if line.startswith("run ") for word in line.replace("RL ", "RL-").split()]
    assert heads.count("run") == 2 and {"area", "AUC", "RL-f"} <= set(heads), "each part has the runs' names"
    glossary = " ".join(text.split())
    assert all(f"{column.short}: " in glossary for column in COLUMNS if column.name != "model_utility_unseen")
    strong = next(line for line in lines if line.startswith("SGA r = −8"))
    assert strong.split()[4:6] == ["0.857", "0"]
    ends = {len(line) for line in lines[2:11] if not line.endswith("*")}
    assert len(ends) == 1
    assert "authors/forget_quality_log10 was not asked for" not in text  # the plain value gives the logarithm


def test_the_composite_score_has_its_parts_beside_it_and_says_why_it_is_absent(tmp_path: Path) -> None:
    """Only where a run has one of its numbers."""
    folders = write_all(tmp_path)
    assert "Composite" not in checked(folders).words and "priv" not in runs_table(folders)
    parts = {"overall": 0.61, "memorization": 0.72, "privacy": 0.53, "relative_utility": 0.64}
    for folder, scores in ((folders[3], parts), (folders[4], {"memorization": 0.87})):
        row = json.loads((folder / "metrics.json").read_text())
        row |= {f"authors/composite/{name}": value for name, value in scores.items()}
        row["absent"]["authors/composite/overall"] = "needs privacy, which is absent"
        (folder / "metrics.json").write_text(json.dumps(row))
    text = runs_table(folders)
    lines = text.splitlines()
    heads = next(line for line in lines if "comp" in line.split())
    assert heads.split()[-5:] == ["comp", "mem", "priv", "util", "rel"]
    [row] = [line for line in lines[lines.index(heads) :] if line.startswith("GD λ = 1")]
    assert row.split()[-4:] == ["0.61", "0.72", "0.53", "0.64"]
    page = checked(folders).words
    assert "Composite" in page and "Privacy" in page and "needs privacy, which is absent" in page


def test_a_long_name_is_cut_to_keep_the_table_within_its_width(tmp_path: Path) -> None:
    parameters = {f"a_parameter_{i}": 1.5 for i in range(6)}
    text = runs_table([write_run(tmp_path / "own", "MyVeryOwnMethod", GD_POINTS, parameters)])
    assert max(map(len, text.splitlines())) <= 80 and "…" in text


def test_the_best_value_of_a_column_is_marked_by_its_own_rule(tmp_path: Path) -> None:
    settings = by_seed_group(read_runs(write_all(tmp_path)))
    by_name = {column.name: best_groups(column, settings) for column in COLUMNS}
    assert by_name["perplexity/forget/log"] == set()
    assert by_name["ks_statistic"] == {"SGA r = −8"}
    assert by_name["forget/rouge_l_recall"] == set()  # 0.41 of both GD, retain model 0.43
    best = pick(settings)
    assert best is not None and by_name["frontier_area"] == {best.label}


def test_what_is_far_from_the_goal_or_shared_is_not_marked(tmp_path: Path) -> None:
    """AUC 0.03 and 0.02 where the retain model has 0.52; 0.50 and 0.54 beside it; four equal utilities."""

    def marked(name: str, aucs: Sequence[float], utilities: Sequence[float], column: str) -> set[str]:
        folders = [write_run(tmp_path / name / "retain", "FineTuning", RETAIN_POINTS, role="retain")]
        for i, utility in enumerate(utilities):
            points = [(10, -3.0, utility, 1.0, 1.5)]
            folders.append(write_run(tmp_path / name / f"sga-{i}", "SGA", points, {"smoothing_rate": -1.0 - i}))
        for folder, auc in zip(folders, (0.52, *aucs), strict=True):
            row = json.loads((folder / "metrics.json").read_text())
            (folder / "metrics.json").write_text(json.dumps(row | {"authors/mia/loss": auc}))
        settings = by_seed_group(read_runs(folders))
        return best_groups(next(one for one in COLUMNS if one.name == column), settings)

    assert marked("far", (0.03, 0.02), (0.5, 0.6), "mia/loss") == set()
    assert marked("near", (0.03, 0.47), (0.5, 0.6), "mia/loss") == {"SGA r = −2"}
    assert marked("both sides", (0.50, 0.54), (0.5, 0.6), "mia/loss") == set()
    assert marked("equal", (0.1, 0.1, 0.1, 0.1), (0.5, 0.5, 0.5, 0.5), "model_utility") == set()
    assert marked("one", (0.1, 0.1), (0.5, 0.6), "model_utility") == {"SGA r = −2"}


def test_marks_on_one_seed_say_so(tmp_path: Path) -> None:
    single = write_all(tmp_path)
    said_so = "a setting of one seed is marked by that seed, and another may change which is best"
    assert said_so in checked(single).words
    assert said_so in " ".join(runs_table(single).split())
    several = [
        write_run(tmp_path / "more" / f"{name}-seed{seed}", "SGA", points, {"smoothing_rate": rate}, seed=seed)
        for name, points, rate in (("mild", MILD_POINTS, -0.8), ("strong", STRONG_POINTS, -8.0))
        for seed in (0, 1)
    ]
    assert said_so not in checked(several).words and "one seed" not in runs_table(several)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (p_value(math.log10(0.5)), "0.50"),
        (p_value(math.log10(0.0123)), "0.012"),
        (p_value(-20.02), "1e−20"),  # 0.95e-20 rounds up to the next decade
        (p_value(-239.1), "8e−240"),
        (perplexity_text(0.0), "1.00"),
        (perplexity_text(math.log(9999.0)), "9999"),
        (perplexity_text(math.log(1e18)), "1.0e18"),
        (perplexity_text(5000.0), "3.0e2171"),  # 5000/ln 10 = 2171.47
        (fixed(-0.004), "0.00"),
        (fixed(-2.5), "−2.50"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected


def test_infinite_and_missing_values_are_read_from_their_logarithm(tmp_path: Path) -> None:
    path = write_run(tmp_path / "ga", "GA", [(5, -12.0, 0.0, 900.0, 1200.0)], without=["perplexity/normal"])
    run = load_run(path)
    assert run.value("perplexity/normal") is None
    assert run.value("perplexity/normal/log") == 1200.0
    other = load_run(write_run(tmp_path / "b", "GA", GA_POINTS[:2], without=["forget_quality_log10"]))
    assert other.value("forget_quality_log10") == pytest.approx(-8.5)


def test_no_two_settings_look_alike() -> None:
    """In one comparison of 21 methods, and in one of many settings of few of them."""
    many = {name: name for name in ("target", "retain", "GA", "SGA", "GD", *(f"method {i}" for i in range(18)))}
    swept = [name for name, count in {"GA": 1, "SGA": 12, "GD": 6, "NPO": 6}.items() for _ in range(count)]
    for methods in (many, {f"{method} {i}": method for i, method in enumerate(swept)}):
        styles = list(distinct_styles(methods).values())
        assert len({(style.colour, style.marker) for style in styles}) == len(methods)
    few = distinct_styles({name: name for name in ("GA", "SGA", "GD")})
    assert [few[name] for name in few] == [distinct_styles(many)[name] for name in few], "the same on every page"


# --- what a run folder must be


def test_errors_name_the_file_and_the_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        load_run(tmp_path / "nowhere")
    run = write_run(tmp_path / "runs" / "ga", "GA", GA_POINTS)
    with pytest.raises(UserError, match=r"holds no run.json; name the run folders in it: .*ga"):
        load_run(tmp_path / "runs")
    with pytest.raises(UserError, match="no run folder given"):
        write_report([], tmp_path / "r.html")
    metrics = (run / "metrics.jsonl").read_text()
    for line, message in (
        ("{", r"metrics.jsonl:6: not JSON"),
        ('{"epoch": 1}', r"metrics.jsonl:6: missing 'step'"),
        ('{"step": 50, "authors/model_utility": "high"}', r"metrics.jsonl:6: 'authors/model_utility' must be a number"),
    ):
        (run / "metrics.jsonl").write_text(metrics + line + "\n")
        with pytest.raises(UserError, match=message):
            load_run(run)
    (run / "metrics.jsonl").write_text(metrics)
    with (run / "rows" / "000000.jsonl").open("a") as file:
        file.write('{"step": 0, "set": "forget"}\n')
    lazy = load_run(run)  # rows wait until they are asked for
    with pytest.raises(UserError, match=r"rows/000000.jsonl:81: needs 'step' .* 'set' and 'id'"):
        _ = lazy.rows(0)
    (run / "pairs.jsonl").write_text('{"forget_id": "forget/0", "normals": [3]}\n')
    with pytest.raises(UserError, match=r"pairs.jsonl:1: each of 'normals'"):
        _ = load_run(run).groups


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "metrics.jsonl", "rows/000020.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "ga", "GA", GA_POINTS)
    (run / name).unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        load_run(run)


def test_a_run_that_has_not_finished_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "ga", "GA", GA_POINTS)
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"has not finished .*evaluated up to step 40"):
        load_run(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "teacher"}, "'role' must be one of"),
        ({"seed": "zero"}, "'seed' must be of type int"),
        ({"group_size": 0}, "'group_size' must be at least 1"),
    ],
)
def test_a_wrong_run_json_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run = write_run(tmp_path / "ga", "GA", GA_POINTS, **({} if "role" in change else change))
    if "role" in change:
        text = (run / "run.json").read_text()
        (run / "run.json").write_text(text.replace('"unlearn"', '"teacher"'))
    with pytest.raises(UserError, match=message):
        load_run(run)


def test_runs_of_different_benchmarks_are_not_compared(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", "GA", GA_POINTS)
    other = write_run(tmp_path / "b", "GA", GA_POINTS, benchmark="tofu")
    with pytest.raises(UserError, match="different benchmarks"):
        runs_table([one, other])


def test_a_resumed_run_counts_a_step_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "ga", "GA", [*GA_POINTS, (20, -1.0, 0.5, 2.0, 4.0)], chosen=0)
    read: Run = load_run(run)
    assert [evaluation["step"] for evaluation in read.evaluations] == [0, 10, 20, 30, 40]
    assert read.value("model_utility", read.evaluations[2]) == 0.5


def test_rankings_go_by_the_rows_that_unlearning_has_not_seen(tmp_path: Path) -> None:
    """Run b is ahead by model utility and behind on reserved rows; beside a run without such rows that is said."""
    ahead = write_run(tmp_path / "b", "SGA", MILD_POINTS, {"smoothing_rate": -2.0})
    plain = write_run(tmp_path / "a", "SGA", STRONG_POINTS, {"smoothing_rate": -4.0})
    reads = {path: load_run(path) for path in (ahead, plain)}
    assert reads[ahead].key("utility") == "authors/model_utility"
    before = reads[ahead].frontier_area
    lines = [json.loads(line) for line in (ahead / "metrics.jsonl").read_text().splitlines()]
    lines = [line | {"authors/model_utility_unseen": line["authors/model_utility"] / 10} for line in lines]
    (ahead / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = load_run(ahead)
    assert read.frontier == [(x, pytest.approx(y / 10)) for x, y in reads[ahead].frontier]
    assert before is not None and read.frontier_area == pytest.approx(before / 10)
    best = pick(by_seed_group([read, reads[plain]]))
    assert best is not None and best.first.path == plain
    page = write_report([ahead, plain], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Only some runs have reserved rows" in page
    assert re.search(r" (with|at) utility on reserved rows 0\.0\d", said([ahead])[3]), "and not by the other's name"
    assert re.search(r" (with|at) model utility 0\.\d", said([plain])[3])
    assert "Only some runs have reserved rows" not in write_report([plain], tmp_path / "one.html").read_text()
