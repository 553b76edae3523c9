"""The judge of the look at transfer, by hand, its plans, its passages, and its page against its rows."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

FILE, DEVELOPMENT = (ROOT / "docs" / "results" / f"transfer{part}.json.gz" for part in ("", "-development"))
PLANS = ROOT / "benchmarks" / "rates-and-normals"


@pytest.fixture(scope="module")
def judge() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("transfer_judge")


def evaluated(memorized: float, nll: float, useful: float, fluent: float) -> tuple[dict[str, float], dict[str, Any]]:
    """An evaluation and its rows; holdout rows always have an nll of 5."""
    row = {"avg_nll": nll, "exact_memorization": memorized, "log_truth_ratio": 0.0, "fluency": fluent}
    parts = ("retain_unseen/probability", "retain_unseen/rouge_l_recall", "model_utility_unseen")
    return dict.fromkeys(parts, useful), {"forget": [row] * 4, "holdout": [5.0] * 4}


def made(*stages: tuple[dict[str, float], dict[str, Any]]) -> dict[str, Any]:
    evaluations = [{**metrics, "step": 30 * at, "epoch": at} for at, (metrics, _) in enumerate(stages)]
    return {"evaluations": evaluations, "rows": {str(30 * at): rows for at, (_, rows) in enumerate(stages)}}


def task(judge: ModuleType, shortfalls: list[float], worlds: int = 2) -> dict[str, Any]:
    """Runs that are short in usefulness alone, by the given amounts; the retained models remember 0.2 of the rows."""
    start, retained = evaluated(1.0, 0.05, 1.0, 1.0), evaluated(0.2, 5.0, 1.0, 1.0)
    runs = {}
    for world in range(1, worlds + 1):
        runs |= {f"{world}/judged-{number}": made(retained) for number in (1, 2)}
        for name, shortfall in zip(judge.METHODS, shortfalls, strict=True):
            runs[f"{world}/{name}"] = made(start, evaluated(0.2, 5.0, 0.9 - 0.1 * shortfall, 1.0))
    return {"runs": runs, "failed": {}}


def test_a_shortfall_is_counted_in_units_of_each_condition(judge: ModuleType) -> None:
    """0.5 − 0.2 = 3 units of 0.1, less 1; AUC 1 − 0.5 by 0.15 less 1; 0.9 − 0.6; 0.8 − 0.4 in units of 0.2."""
    retained = [made(evaluated(0.1, 5.0, 1.0, 1.0)), made(evaluated(0.3, 5.0, 1.0, 1.0))]
    run = made(evaluated(1.0, 0.05, 1.0, 1.0), evaluated(0.5, 2.0, 0.6, 0.4))
    found = judge.judged(run, run["evaluations"][0], retained, judge.COMMON)
    assert found.shortfall == pytest.approx(2 + (0.5 - 0.15) / 0.15 + 3 + 2)
    assert (found.memory_gap, found.auc_gap, found.meets) == (pytest.approx(0.3), 0.5, 0)
    meets = made(evaluated(1.0, 0.05, 1.0, 1.0), evaluated(0.28, 5.0, 0.91, 0.81))
    found = judge.judged(meets, meets["evaluations"][0], retained, judge.COMMON)
    assert (found.shortfall, found.meets) == (0.0, 4)
    earlier = judge.judged(meets, meets["evaluations"][0], retained, judge.EARLIER)
    assert earlier.meets == 4, "equal truth ratios: p = 1"


def test_rankings_are_compared_with_the_authors_and_between_worlds(judge: ModuleType) -> None:
    """Reversed ranks: τ = −1; two neighbours in the ranking swapped: 14 − 1 of 15 pairs, τ = 13/15."""
    up, down, swapped = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0], [2.0, 1.0, 3.0, 4.0, 5.0, 6.0]
    tasks = {name: task(judge, order) for name, order in zip(judge.TASKS, (up, up, swapped, down), strict=True)}
    table = judge.judge(tasks)
    assert [round(judge.with_authors(table, one), 3) for one in ("tofu", "news", "book")] == [1.0, 0.867, -1.0]
    assert judge.repeated(table, "book", "authors") == pytest.approx([-1.0] * 4)
    assert judge.repeated(table, "news", "news") == pytest.approx([1.0])
    ranked = judge.ranks_table(table).splitlines()
    assert ranked[2] == "| gradient difference, λ = 2 | 1.0 (1) | 1.0 (1) | 2.0 (2) | 6.0 (6) |"
    said = judge.answer(table)
    assert "is +1.00 on rows of TOFU, +0.87 on MUSE-News, −1.00 on the book" in said
    assert "(gradient difference, λ = 2) is the best on rows of TOFU." in said and said.endswith("n = 2 worlds a task.")
    assert judge.earlier(tasks).endswith("*ga* 6.0: τ = +1.00 with the ranking by this one.")
    assert "| untouched | " in judge.means_table(table) and "| retained 2 | 0.0 |" in judge.means_table(table)


def test_regret_is_to_the_best_of_three_learning_rates(judge: ModuleType) -> None:
    found = task(judge, [3.0, 0.0, 0.0, 0.0, 0.0, 0.0], worlds=1)
    start = evaluated(1.0, 0.05, 1.0, 1.0)
    found["runs"]["1/neighbours-half"] = made(start, evaluated(0.2, 5.0, 0.8, 1.0))
    assert judge.regrets(judge.judge({"book": found})) == {}
    found["runs"]["1/neighbours-double"] = made(start, evaluated(0.2, 5.0, 0.5, 1.0))
    assert (
        judge.regrets_table(judge.judge({"book": found})).splitlines()[2] == "| the book | 1 | 1.0 | 3.0 | 4.0 | 2.0 |"
    )


def test_worlds_that_fail_their_check_or_lack_a_run_are_left_out(judge: ModuleType) -> None:
    found = task(judge, [1.0] * 6, worlds=3)
    del found["runs"]["1/ga"]
    leaks = evaluated(0.9, 0.1, 1.0, 1.0)
    found["runs"]["2/judged-1"] = made(leaks)
    counted, refused = judge.worlds_of(found["runs"])
    assert list(counted) == [3] and refused == {1: "not finished", 2: "target 0.951, retained models up to 0.905"}
    told = judge.worlds_table({"news": found})
    assert (
        "| MUSE-News | 3 | 0.951 | 0.007 to 0.007 | yes |" in told
        and "| MUSE-News | 1 | | | no: not finished |" in told
    )


def test_what_is_kept_gives_the_same_tables(judge: ModuleType) -> None:
    found = task(judge, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    for run in found["runs"].values():
        run["evaluations"] = [
            {name if name in ("step", "epoch") else f"authors/{name}": value for name, value in one.items()}
            for one in run["evaluations"]
        ]
        run["evaluations"].insert(1, copy.deepcopy(run["evaluations"][0]) | {"step": 15})
        run["rows"]["000015"] = run["rows"].pop("0")
        run["rows"]["000000"] = run["rows"]["000015"]
    kept = judge.kept(found)
    assert {len(run["evaluations"]) for run in kept["runs"].values()} == {2}
    assert judge.means_table(judge.judge({"authors": kept})) == judge.means_table(
        judge.judge({"authors": task(judge, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])})
    )


def test_all_tasks_have_the_authors_settings_at_one_multiple_of_the_fine_tuning_rate(judge: ModuleType) -> None:
    plan_of = importlib.import_module("rates_and_normals").plan_of
    plans = {task: plan_of(PLANS / f"transfer-{task}.yaml") for task in judge.TASKS}
    authors = plans["authors"]
    same = ("data.group_size", "data.pool_size", "trainer.max_epochs")
    for plan in plans.values():
        rate = plan["training"]["model.optimizer.lr"]
        assert plan.get("rate_scale", 1.0) == pytest.approx(rate / authors["training"]["model.optimizer.lr"])
        assert plan["recipes"] == authors["recipes"] and [plan["unlearning"][name] for name in same] == [5, 8, 6]
        assert {name for stage in plan["stages"] for name in stage["recipes"]} == {*judge.METHODS, *judge.FACTORS}
    recipes, rate = authors["recipes"], "model.optimizer.lr"
    for name, factor in judge.FACTORS.items():
        assert recipes[name]["settings"][rate] == pytest.approx(factor * recipes["neighbours"]["settings"][rate])


def test_passages_are_openings_and_their_continuations_without_notices(judge: ModuleType) -> None:
    texts = importlib.import_module("transfer_texts")
    words = [f"w{number}" for number in range(95)]
    words[33] = "cookie"
    found = texts.passages(" ".join(words))
    assert [one["question"].split()[0] for one in found] == ["w0", "w60"]
    assert found[1]["answer"].split() == words[70:90] and len(texts.passages(" ".join(words), 1)) == 1
    book = texts.book()
    for world in texts.WORLDS["book"]:
        forget, holdout = ({row["answer"] for row in book[f"{world}/{part}"]} for part in ("forget", "holdout"))
        assert len(forget) == len(holdout) == texts.ROWS and not forget & holdout


def test_the_protocol_has_the_table_that_learning_rates_were_chosen_by(judge: ModuleType) -> None:
    found, plan = judge.read(DEVELOPMENT), importlib.import_module("rates_and_normals").plan_of
    page = (ROOT / "docs" / "experiments" / "transfer.md").read_text(encoding="utf-8")
    told = judge.development_table(found)
    assert told in page
    recipes = plan(PLANS / "transfer-authors.yaml")["recipes"]
    for line in told.splitlines()[4:]:  # the first two were chosen before, on two worlds
        name, *shortfalls = (cell.strip() for cell in line.strip("|").split("|"))
        best = (2e-4, 4e-4, 8e-4)[shortfalls.index(min(shortfalls, key=float))]
        assert recipes[name]["settings"]["model.optimizer.lr"] == pytest.approx(best), name
    del found["runs"]["201/judged-1"]
    assert judge.development_table(found) != told, "fewer retained models, other numbers"


@pytest.mark.skipif(not FILE.is_file(), reason="the experiment has not been run")
def test_the_page_is_recomputed(
    judge: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, kept = (ROOT / "docs" / "results" / "transfer.md").read_text(encoding="utf-8"), tmp_path / "kept.json.gz"
    monkeypatch.setattr("sys.argv", ["judge", str(FILE), "--keep", str(kept)])
    judge.main()
    printed, tasks = capsys.readouterr().out, judge.read(FILE)
    parts = judge.page_parts(tasks)
    assert [part for part in parts if part not in page or part not in printed] == [] and len(parts) == 8
    assert parts[0] in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert judge.read(kept) == tasks
    swapped = judge.page_parts({**tasks, "tofu": tasks["book"], "book": tasks["tofu"]})
    assert swapped[1] not in page and swapped[2] not in page, "other rows, other tables"
