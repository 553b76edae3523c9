"""`sga compare`: two run folders written by hand, through main(); what it refuses; what it says it left out."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import environment

from sga.__main__ import main as sga_main
from sga.commands.compare import main
from sga.commands.score import main as score
from sga.data.records import Record
from sga.errors import UserError
from sga.evaluation.aggregation import add_forget_quality, add_membership, add_memorization, add_utility
from sga.evaluation.comparison import Compared, compare, direction
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.paired import PairedDifference
from sga.groups.group import record_hash
from sga.runs.logs import read_log

SETTINGS = {"schema_version": "1", "benchmark": "own", "template": "plain", "dtype": "float32"}
SIZES = {"forget": 30, "retain": 30, "real_authors": 20, "world_facts": 24, "holdout": 30}

Row = dict[str, Any]


def raw_log(path):
    return read_log(path, part="raw")


def rows_of(shift: Mapping[str, float] | None = None, seed: int = 0, step: int = 10) -> list[Row]:
    """Rows of all five sets: the same questions for every seed, a model's noise by seed, a shift of the nll by set."""
    questions, model = np.random.default_rng(0), np.random.default_rng([seed, 1])
    rows = []
    for set_name, size in SIZES.items():
        more = (shift or {}).get(set_name, 0.0)
        for index in range(size):
            nll = float(questions.uniform(0.5, 2.5)) + abs(float(model.normal(0, 0.02))) + more
            row: Row = {
                "step": step,
                "set": set_name,
                "id": f"{set_name}/{index}",
                "question": f"What is {set_name} {index}?",
                "answer": f"It is {index}.",
                "avg_nll": nll,
                "tokens": 5,
            }
            if set_name in ("forget", "holdout"):
                row |= {"loss": nll, "min_k": 2 * nll + float(model.normal(0, 0.02))}
            if set_name != "holdout":
                wrong = (questions.uniform(2, 5, size=3) + model.normal(0, 0.02, size=3)).tolist()
                recall = float(np.clip(1 - nll / 5, 0, 1))
                row |= {
                    "probability": math.exp(-nll),
                    "paraphrased_nll": nll if set_name in ("real_authors", "world_facts") else nll + 0.3,
                    "perturbed_nll": wrong,
                    "rouge_l_recall": recall,
                    "rouge_l_fmeasure": 0.9 * recall,
                    "generation": f"perhaps {index}",
                }
            if set_name == "forget":
                row |= {"exact_memorization": recall, "extraction_strength": recall / 2}
            rows.append(row)
    return rows


def write_run(folder: Path, rows: Sequence[Row], settings: Any = SETTINGS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if settings is not None:
        (folder / "run.json").write_text(json.dumps({"name": folder.name, "evaluation": settings}), encoding="utf-8")
    return folder


def compared(tmp_path: Path, a: Path, b: Path, *options: str) -> dict[str, Any]:
    """The JSON that main() writes."""
    output = tmp_path / "comparison.json"
    assert main([str(a), str(b), "--resamples", "1000", "--output", str(output), *options]) == 0
    return json.loads(output.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A, and B that forgot more, knows world facts better and is like A on the rest."""
    b = rows_of({"forget": 1.0, "world_facts": -0.4}, seed=1)
    return write_run(tmp_path / "a", rows_of()), write_run(tmp_path / "b", b)


# ---- what comes out -------------------------------------------------------------------------------------------------


def test_values_are_those_of_an_evaluation_of_the_same_rows(tmp_path, runs):
    found = compared(tmp_path, *runs)["metrics"]
    for side, folder in zip("ab", runs, strict=True):
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        evaluation = Evaluation("x", rows={(row["set"], row["id"]): row for row in rows}, bootstrap=None)
        add_utility(evaluation, {})
        add_forget_quality(evaluation, None, {})
        add_memorization(evaluation, {})
        add_membership(evaluation, None, {}, all_scores=False)
        expected = {name.removeprefix("x/"): value for name, value in evaluation.metrics.items()}
        assert len(expected) == 18
        assert set(expected) <= set(found)
        for name, value in expected.items():
            assert found[name][side] == pytest.approx(value, rel=1e-12), name


def test_every_metric_that_both_have_is_there_once_in_order_and_nothing_else(tmp_path, runs):
    metrics = compared(tmp_path, *runs)["metrics"]
    parts = ["avg_nll", "probability", "truth_ratio", "rouge_l_recall", "rouge_l_fmeasure"]
    assert list(metrics) == [
        "model_utility",
        *(f"forget/{part}" for part in [*parts, "exact_memorization", "extraction_strength"]),
        *(f"{name}/{part}" for name in ("retain", "real_authors", "world_facts") for part in parts),
        "holdout/avg_nll",
        "mia/loss",
        "mia/min_k",
    ]
    assert metrics["model_utility"]["rows"] == 74
    assert metrics["mia/loss"]["rows"] == 60
    assert metrics["world_facts/avg_nll"]["rows"] == 24


def test_what_is_better_is_found_and_what_is_noise_is_not(tmp_path, runs, capsys):
    metrics = compared(tmp_path, *runs)["metrics"]
    verdicts = {name: line["verdict"] for name, line in metrics.items()}
    for part in ("avg_nll", "probability", "rouge_l_recall", "exact_memorization", "extraction_strength"):
        assert verdicts[f"forget/{part}"] == "B forgot more"
    for part in ("avg_nll", "probability", "truth_ratio", "rouge_l_recall"):
        assert verdicts[f"world_facts/{part}"] == "B better"
        assert verdicts[f"retain/{part}"].startswith("cannot be told apart (p = ")
    assert verdicts["model_utility"] == "B better"
    assert verdicts["holdout/avg_nll"] == verdicts["mia/loss"] == "no direction"
    assert metrics["mia/loss"]["p_holm"] < 0.05  # still tested
    for line in metrics.values():
        assert line["difference"] == line["b"] - line["a"]
        assert line["ci_low"] <= line["difference"] <= line["ci_high"]
        assert line["p"] <= line["p_holm"] <= 1
    capsys.readouterr()
    lines = compare(*map(raw_log, runs), resamples=1000).table(200).splitlines()
    assert lines[0].startswith("A  ")
    assert lines[0].endswith("rows.jsonl, step 10")
    head, first = lines[3], lines[5]
    assert re.fullmatch(r" +metric +rows +A +B +B − A +95 % interval +p +Holm p  verdict", head)
    assert re.fullmatch(
        r"↑  model_utility +74 +0\.\d+ +0\.\d+ +\+0\.\d+ +\[\+.*, \+.*\] +[\d.]+ +[\d.]+  B better", first
    )
    start = head.index("verdict")
    shown = [line[start:] for line in lines[5:] if line[start:] and not line.startswith(("note: ", "      "))]
    told = [verdict.partition(" (")[0] for verdict in verdicts.values()]
    assert shown == [verdict.replace("cannot be told apart", "unclear") for verdict in told]
    assert any(line.startswith("note: on the forget set") for line in lines)
    assert f"adjusted for the {len(metrics)} tests" in " ".join(line.strip() for line in lines)
    assert all(len(line) <= 110 for line in lines if line.startswith(("note: ", "      ")))


def test_a_run_compared_with_itself_cannot_be_told_apart(tmp_path, runs):
    found = compared(tmp_path, runs[0], runs[0])
    assert len(found["metrics"]) > 20
    for name, line in found["metrics"].items():
        assert (line["p"], line["p_holm"], line["difference"], line["ci_low"], line["ci_high"]) == (1, 1, 0, 0, 0), name
        said = "no direction" if line["direction"] is None else "cannot be told apart (p = 1)"
        assert line["verdict"] == said
    assert "A and B are the same evaluation" in found["notes"]


def test_exchanging_a_and_b_flips_signs_and_sides(tmp_path, runs):
    there, back = compared(tmp_path, *runs)["metrics"], compared(tmp_path, *reversed(runs))["metrics"]
    assert list(there) == list(back)
    other = {"A": "B", "B": "A"}
    for name, line in there.items():
        assert back[name]["difference"] == pytest.approx(-line["difference"], abs=1e-12)
        assert back[name]["ci_low"] == pytest.approx(-line["ci_high"], abs=1e-12)
        assert back[name]["p"] == line["p"]
        verdict = line["verdict"]
        assert back[name]["verdict"] == (other[verdict[0]] + verdict[1:] if verdict[0] in other else verdict)


def test_the_seed_and_the_number_of_resamples_are_what_was_asked_for(tmp_path, runs):
    first, again = compared(tmp_path, *runs), compared(tmp_path, *runs)
    other = compared(tmp_path, *runs, "--seed", "1")
    assert first == again
    assert (other["seed"], other["resamples"]) == (1, 1000)
    assert other["metrics"]["retain/avg_nll"]["p"] != first["metrics"]["retain/avg_nll"]["p"]
    with pytest.raises(UserError, match="resamples must be at least 1, got 0"):
        main([*map(str, runs), "--resamples", "0"])


def test_the_verdict_goes_by_the_adjusted_p_and_by_direction():
    def line(name: str, difference: float, p_holm: float) -> Compared:
        return Compared(name, PairedDifference(9, 0.0, difference, 0, 0, 0.01, 0.001), direction(name), p_holm)

    assert line("model_utility", 1, 0.049).verdict == "B better"
    assert line("model_utility", 1, 0.05).verdict == "cannot be told apart (p = 0.05)"
    assert line("retain/avg_nll", 1, 0.01).verdict == "A better"
    assert line("retain/rouge_l_fmeasure", -1, 0.01).verdict == "A better"
    assert line("real_authors/extraction_strength", 1, 0.01).verdict == "B better"
    assert line("forget/avg_nll", 1, 0.01).verdict == "B forgot more"
    assert line("forget/truth_ratio", 1, 0.01).verdict == "B forgot more"
    assert line("forget/rouge_l_recall", 1, 0.01).verdict == "A forgot more"
    assert line("forget/something_new", 1, 0.01).verdict == "no direction"
    assert line("holdout/avg_nll", 1, 0.01).verdict == "no direction"
    assert line("forget/fact_recall", -1, 0.01).verdict == "B forgot more"
    assert line("retain/fact_recall", -1, 0.01).verdict == "A better"
    assert line("retain_unseen/fluency", 1, 0.01).verdict == "B better"
    assert line("forget/degenerate", 1, 0.01).verdict == "A better", "a retained model does not repeat itself either"
    assert line("mia/min_k", 1, 0.01).verdict == "no direction"


def test_every_number_of_our_rows_has_a_direction_or_is_named_here_as_without():
    """Fact recall had none, beside ROUGE that had one."""
    memorised = ("avg_nll", "probability", "truth_ratio", "rouge_l_recall", "rouge_l_fmeasure", "bleu",
                 "exact_memorization", "extraction_strength", "fact_recall")  # fmt: skip
    spoken = ("fluency", "empty", "repeated", "degenerate", "classifier_fluency")
    for name in (*memorised, *spoken):
        for set_name in ("forget", "forget_paraphrased", "retain", "retain_unseen", "real_authors", "world_facts"):
            assert direction(f"{set_name}/{name}") is not None, (set_name, name)
    for name in ("forget_passages/bleu", "forget_passages/rouge_l_recall"):
        assert direction(name) == "lower = more forgotten"
    for name in ("forget/generation_nll", "forget/gradient_norm", "mia/loss", "holdout/fact_recall"):
        assert direction(name) is None, f"{name}: both ends are signs of trouble, or nothing is asked of it"


def test_the_length_of_an_answer_is_no_metric(tmp_path):
    rows = [{**row, "generation_tokens": 7 + n} for n, row in enumerate(rows_of())]
    found = compared(tmp_path, write_run(tmp_path / "a", rows), write_run(tmp_path / "b", rows))
    assert not [name for name in found["metrics"] if "tokens" in name]


# ---- which rows and columns -----------------------------------------------------------------------------------------


def test_the_last_step_is_taken_unless_one_is_named(tmp_path):
    run = write_run(tmp_path / "run", rows_of(step=20, shift={"forget": 2.0}) + rows_of(step=0))
    other = write_run(tmp_path / "other", rows_of(step=4))
    found = compared(tmp_path, other, run)
    assert (found["a"]["step"], found["b"]["step"]) == (4, 20)
    assert found["metrics"]["forget/avg_nll"]["difference"] == pytest.approx(2)
    found = compared(tmp_path, other, run / "rows.jsonl", "--step-b", "0")
    assert found["metrics"]["forget/avg_nll"]["difference"] == 0
    found = compared(tmp_path, run, run, "--step-a", "0")
    assert found["metrics"]["forget/avg_nll"]["difference"] == pytest.approx(2)
    assert "A and B are the same evaluation" not in found["notes"]
    with pytest.raises(UserError, match="no rows of step 3; it has 0, 20"):
        main([str(run), str(other), "--step-a", "3"])


def test_rows_are_matched_by_id_whatever_their_order(tmp_path, runs):
    rows = rows_of({"forget": 1.0, "world_facts": -0.4}, seed=1)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    other = write_run(tmp_path / "shuffled", shuffled)
    assert compared(tmp_path, *runs)["metrics"] == compared(tmp_path, runs[0], other)["metrics"]


def test_rows_of_one_side_only_are_left_out_and_counted(tmp_path, runs):
    rows = [row for row in rows_of(seed=1) if row["id"] not in ("retain/3", "retain/4") and row["set"] != "holdout"]
    found = compared(tmp_path, runs[0], write_run(tmp_path / "fewer", rows))
    assert found["metrics"]["retain/avg_nll"]["rows"] == 28
    assert not any(name.startswith(("holdout", "mia")) for name in found["metrics"])
    assert "retain: 2 of 30 rows of A are not in B; compared are the 28 that both have" in found["notes"]
    assert "only A has the set holdout" in found["notes"]
    expected = np.mean(
        [row["avg_nll"] for row in rows_of() if row["set"] == "retain" and row["id"][-2:] not in ("/3", "/4")]
    )
    assert found["metrics"]["retain/avg_nll"]["a"] == pytest.approx(expected)


def test_columns_of_one_side_only_are_left_out_and_named(tmp_path, runs):
    rows = rows_of(seed=1)
    del rows[4]["rouge_l_fmeasure"]  # of the forget set: one row is enough
    for row in rows:
        if row["set"] == "retain":
            del row["rouge_l_recall"]
            row["bleu"] = 3.0
    found = compared(tmp_path, runs[0], write_run(tmp_path / "b", rows))
    assert "forget: only A has rouge_l_fmeasure on every compared row" in found["notes"]
    assert "retain: only A has rouge_l_recall on every compared row" in found["notes"]
    assert "retain: only B has bleu on every compared row" in found["notes"]
    lacking = "model utility is absent: both sides need its nine parts, and lack retain/rouge_l_recall"
    assert lacking in found["notes"]
    assert not {"model_utility", "retain/bleu", "retain/rouge_l_recall", "forget/rouge_l_fmeasure"} & set(
        found["metrics"]
    )


def test_other_numbers_are_compared_without_a_direction_and_other_fields_are_not(tmp_path):
    paths = []
    for name, more in (("a", 0.0), ("b", 1.0)):
        rows = [row | {"surprise": index % 7 + more, "cut": True, "note": "x"} for index, row in enumerate(rows_of())]
        paths.append(write_run(tmp_path / name, rows))
    metrics = compared(tmp_path, *paths)["metrics"]
    assert metrics["retain/surprise"]["difference"] == 1
    assert metrics["retain/surprise"]["direction"] is None
    assert not {"retain/cut", "retain/note", "retain/tokens", "retain/step"} & set(metrics)


def test_rows_of_earlier_versions_give_the_auc_of_the_loss_and_answers_stand_in_for_paraphrases(tmp_path, runs):
    rows = rows_of()
    for row in rows:
        row.pop("loss", None)
        if row["set"] in ("real_authors", "world_facts"):
            row["paraphrased_nll"] = None
    found = compared(tmp_path, write_run(tmp_path / "old", rows), runs[1])["metrics"]
    assert found == compared(tmp_path, *runs)["metrics"]


def test_scores_against_a_reference_model_are_compared_if_it_is_the_same_model(tmp_path):
    def run(name: str, seed: int, reference: float) -> Path:
        rows = [row | {"reference": row["avg_nll"] - len(row["id"]) - reference} for row in rows_of(seed=seed)]
        return write_run(tmp_path / name, rows)

    a, b, other = run("a", 0, 1.0), run("b", 1, 1.0), run("other", 1, 1.01)
    assert "mia/reference" in compared(tmp_path, a, b)["metrics"]
    found = compared(tmp_path, a, other)
    assert "mia/reference" not in found["metrics"]
    assert "mia/reference is left out: A and B were evaluated against different reference models" in found["notes"]


def test_numbers_that_no_number_of_rows_or_resamples_allows_are_said_to_be_so(tmp_path, runs):
    few = [row for row in rows_of() if row["id"].rsplit("/", 1)[1] in ("0", "1", "2")]
    other = [row for row in rows_of(seed=1) if row["id"].rsplit("/", 1)[1] in ("0", "1", "2")]
    found = compared(tmp_path, write_run(tmp_path / "few", few), write_run(tmp_path / "other", other))
    assert found["metrics"]["forget/avg_nll"]["p"] >= 0.25
    assert any(
        note.startswith("too few rows for Holm p < 0.05") and "forget/avg_nll" in note for note in found["notes"]
    )
    notes = compared(tmp_path, *runs, "--resamples", "100")["notes"]
    assert any(re.search(r"too few resamples .* with 26 tests: use --resamples 520 or more", note) for note in notes)
    assert not any("too few" in note for note in compared(tmp_path, *runs, "--resamples", "520")["notes"])


# ---- settings and texts ---------------------------------------------------------------------------------------------


def test_other_settings_are_refused_each_of_them_named(tmp_path, runs):
    other = write_run(tmp_path / "other", rows_of(), SETTINGS | {"template": "chat", "dtype": "bfloat16"})
    with pytest.raises(UserError) as error:
        main([str(runs[0]), str(other)])
    assert "template is 'plain' in A and 'chat' in B; dtype is 'float32' in A and 'bfloat16' in B" in str(error.value)
    assert str(runs[0]) in str(error.value)
    assert str(other) in str(error.value)


def test_rows_without_their_run_json_are_refused_as_by_score(tmp_path, runs):
    bare = write_run(tmp_path / "bare", rows_of(), None)
    refusals = []
    for arguments in (["compare", str(runs[0]), str(bare)], ["score", str(bare)]):
        with pytest.raises(UserError) as error:
            {"compare": main, "score": score}[arguments[0]](arguments[1:])
        refusals.append(str(error.value))
    assert refusals[0] == refusals[1]
    assert "run.json: no such file, so nobody knows how the rows beside it were made" in refusals[0]


def test_another_tokenizer_of_rouge_is_refused_whether_the_published_one_is_stated_or_not(tmp_path, runs):
    other = write_run(tmp_path / "other", rows_of(), SETTINGS | {"rouge_tokenizer": "unicode"})
    with pytest.raises(UserError, match="rouge_tokenizer is 'published' in A and 'unicode' in B"):
        main([str(runs[0]), str(other)])
    assert not any("rouge_tokenizer" in note for note in compared(tmp_path, other, other)["notes"])


def test_another_length_of_fluency_is_refused_whether_32_is_stated_or_not(tmp_path, runs):
    other = write_run(tmp_path / "other", rows_of(), SETTINGS | {"fluency_tokens": "64"})
    with pytest.raises(UserError, match="fluency_tokens is '32' in A and '64' in B"):
        main([str(runs[0]), str(other)])


def test_settings_of_one_side_only_are_a_note(tmp_path, runs):
    less = write_run(tmp_path / "less", rows_of(), {"template": "plain", "precision": None, "benchmark": "own"})
    notes = compared(tmp_path, runs[0], less)["notes"]
    assert "only one side states schema_version, dtype: not compared" in notes
    (less / "run.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json: expected a JSON object"):
        main([str(runs[0]), str(less)])
    (less / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json:1: not JSON"):
        main([str(runs[0]), str(less)])


def hashed(row: Row) -> Row:
    texts = ("question", "answer", "generation")
    sha256 = record_hash(Record("", row["question"], row["answer"]))
    return {**{name: value for name, value in row.items() if name not in texts}, "sha256": sha256}


def test_texts_and_hashes_of_them_are_the_same_and_other_texts_are_refused(tmp_path, runs):
    without = write_run(tmp_path / "hashed", [hashed(row) for row in rows_of()])
    assert not any("texts" in note for note in compared(tmp_path, runs[0], without)["notes"])
    changed = rows_of()
    changed[2]["answer"], changed[40]["question"] = "It is not.", "Which?"
    for name, rows in (("texts", changed), ("hashes", [hashed(row) for row in changed])):
        with pytest.raises(
            UserError, match=r"2 of 134 rows have other texts under the same id, 'forget/2' of forget first"
        ):
            main([str(runs[0]), str(write_run(tmp_path / name, rows))])


def test_rows_without_texts_are_matched_by_id_and_said_to_be(tmp_path, runs):
    rows = [{name: value for name, value in row.items() if name != "question"} for row in rows_of()]
    notes = compared(tmp_path, runs[0], write_run(tmp_path / "bare", rows))["notes"]
    assert "134 of 134 rows hold neither texts nor a hash of them: matched by id alone" in notes


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_runs_without_a_common_row_or_metric_are_refused(tmp_path, runs):
    other = write_run(tmp_path / "other", [row | {"id": f"x/{row['id']}"} for row in rows_of()])
    with pytest.raises(
        UserError, match=r"no row in common \(A has 'forget/0' of forget, B has 'x/forget/0' of forget\)"
    ):
        main([str(runs[0]), str(other)])
    bare = [{name: row[name] for name in ("step", "set", "id", "question", "answer")} for row in rows_of()]
    with pytest.raises(UserError, match="no metric in common"):
        main([str(runs[0]), str(write_run(tmp_path / "bare", bare))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "10"}, r"rows\.jsonl:3: needs 'step'"),
        ({"step": True}, r"rows\.jsonl:3: needs 'step'"),
        ({"set": None}, r"rows\.jsonl:3: needs 'step' .* 'set' and 'id'"),
        ({"id": 3}, r"rows\.jsonl:3: needs 'step' .* 'set' and 'id'"),
        ({"id": "forget/0"}, r"rows\.jsonl:3: 'forget/0' occurs twice in 'forget' at step 10; were two runs joined"),
        ({"avg_nll": math.nan}, r"rows\.jsonl:3: 'avg_nll' must be finite, got nan"),
        ({"perturbed_nll": [1.0, math.inf]}, r"rows\.jsonl:3: 'perturbed_nll' must be finite, got inf"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(tmp_path, runs, change, message):
    rows = rows_of()
    rows[2] |= change
    with pytest.raises(UserError, match=message):
        main([str(write_run(tmp_path / "bad", rows)), str(runs[1])])


def test_other_files_are_refused(tmp_path, runs):
    with pytest.raises(UserError, match=r"no rows in this folder"):
        raw_log(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        raw_log(tmp_path / "absent")
    with pytest.raises(UserError, match="no such file"):
        raw_log(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="open-unlearning"):
        raw_log(runs[0] / "run.json")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no row"):
        raw_log(tmp_path / "empty.jsonl")


# ---- logs of other programs -----------------------------------------------------------------------------------------


def tofu_log(rows: int, forget_shift: float = 0.0) -> dict[str, Any]:
    """As TOFU writes it: losses of the forget set and, of the same form, of the retain set."""
    rng = np.random.default_rng(rows if rows < 300 else 0)
    sets = {}
    for name, shift in (("eval_log_forget.json", forget_shift), ("eval_log.json", 0.0)):
        right, wrong = rng.uniform(0.5, 3, size=rows) + shift, rng.uniform(2, 5, size=(rows, 5))
        columns = {"avg_gt_loss": right, "avg_paraphrased_loss": right + 0.2, "average_perturb_loss": wrong}
        sets[name] = {
            column: {str(index): value for index, value in enumerate(values.tolist())}
            for column, values in columns.items()
        }
    return sets


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    def written(name: str, content: Any) -> Path:
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        return tmp_path / name

    return written


def test_two_logs_of_tofu_are_compared_row_by_row(tmp_path, write, capsys):
    found = compared(tmp_path, write("a.json", tofu_log(40)), write("b.json", tofu_log(40, forget_shift=0.7)))
    assert found["metrics"]["forget/avg_nll"]["difference"] == pytest.approx(0.7)
    assert found["metrics"]["forget/avg_nll"]["verdict"] == "B forgot more"
    assert found["metrics"]["retain/truth_ratio"]["verdict"] == "cannot be told apart (p = 1)"
    assert found["a"]["step"] is None
    assert "rows are matched by their position alone" in found["notes"]
    assert "unknown how A and B were evaluated: settings not compared" in found["notes"]
    assert capsys.readouterr().out.splitlines()[0].endswith("a.json")


def test_positions_are_not_matched_across_data_of_other_size_or_kind(tmp_path, write, runs):
    whole, first = write("a.json", tofu_log(400)), write("b.json", tofu_log(300))
    with pytest.raises(UserError, match=r"40 rows of forget and .* has 30; .* known by position"):
        main([str(write("c.json", tofu_log(40))), str(write("d.json", tofu_log(30)))])
    notes = compared(tmp_path, whole, first)["notes"]
    assert "forget: 100 of 400 rows of A are not in B; compared are the 300 that both have" in notes
    with pytest.raises(UserError, match=r"of kind sga and .* of kind tofu"):
        main([str(runs[0]), str(whole)])


# ---- the verb -------------------------------------------------------------------------------------------------------


def test_the_verb_prints_a_table_and_an_error_is_one_line(runs, tmp_path, capsys):
    assert sga_main(["compare", *map(str, runs), "--resamples", "50"]) == 0
    assert "utility" in capsys.readouterr().out
    assert sga_main(["compare", str(runs[0]), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sga: error: ")
    assert error.count("\n") == 1
    assert sga_main(["--help"]) == 0
    assert "  compare  " in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e4])
def test_the_table_fits_the_terminal_and_keeps_every_name(tmp_path, width, scale):
    """Also where every number is written with an exponent."""
    paths = []
    for number in (0, 1):
        rows = [
            row | {"surprise": scale * (2 + index % 5 + number * (index % 3))} for index, row in enumerate(rows_of())
        ]
        paths.append(write_run(tmp_path / str(number), rows))
    comparison = compare(*map(raw_log, paths), resamples=100)
    text = comparison.table(width)
    lines = text[text.index("\n\n") :].splitlines()  # paths of the two sides are not cut
    assert max(map(len, lines)) <= width
    starts = [line for line in lines if line[:1] in ("↑", "↓", " ") and line.strip()]
    assert all(name.rpartition("/")[0] in text for name in (line.name for line in comparison.metrics))
    assert len(starts) >= len(comparison.metrics)
    assert "exact_" in text and "memorization" in text and "cannot be" in text
    if width == 120:
        assert " p  " in text.partition("Holm")[0], "the plain p is there"


def test_elsewhere_than_in_a_terminal_it_is_80_wide(runs, capsys):
    assert main([*map(str, runs), "--resamples", "50"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out[out.index("\n\n") :].splitlines())) <= 80


def test_what_is_not_compared_is_said(tmp_path, runs):
    notes = compared(tmp_path, *runs)["notes"]
    assert any(note.startswith("not compared: forget quality, KS D and PrivLeak") for note in notes)


def test_one_row_has_a_difference_and_no_interval(tmp_path):
    sides = []
    for seed in (0, 1):
        rows = [row for row in rows_of({"forget": float(seed)}, seed=seed) if row["id"].endswith("/0")]
        sides.append(write_run(tmp_path / str(seed), rows))
    found = compared(tmp_path, *sides)
    line = found["metrics"]["forget/avg_nll"]
    assert line["difference"] == pytest.approx(1, abs=0.1) and line["ci_low"] is None and line["ci_high"] is None
    assert "–" in compare(*map(raw_log, sides), resamples=100).table(150)


def test_a_reader_that_goes_away_is_no_error(runs):
    """`| head`: what is printed after it has gone, also at the very end, is dropped; as by SIGPIPE, and silently."""
    for arguments in (["compare", *map(str, runs), "--resamples", "50"], ["score", str(runs[0])], ["--help"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "sga", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait(120)) == ("", 128 + signal.SIGPIPE), arguments


def test_a_finished_run_is_compared_with_its_own_beginning(finished_run, tmp_path):
    """Real rows, as RunFiles writes them: SGA raised the forget nll."""
    found = compared(tmp_path, finished_run, finished_run, "--step-a", "0")
    assert found["metrics"]["forget/avg_nll"]["difference"] > 0
    assert found["metrics"]["forget/avg_nll"]["verdict"] != "A forgot more"
    metrics = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))
    compared_too = [name for name in found["metrics"] if f"authors/{name}" in metrics]
    assert len(compared_too) >= 8
    for name in compared_too:
        assert found["metrics"][name]["b"] == pytest.approx(metrics[f"authors/{name}"], rel=1e-9), name
