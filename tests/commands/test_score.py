"""Scoring logs: the published numbers from the published files, the three formats, alignment, and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import golden_numbers

from sga.commands.score import main, score_log
from sga.errors import UserError
from sga.evaluation.aggregation import add_truth_ratios
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.metrics import log_truth_ratio, membership_auc, perplexity, privleak, truth_ratio_forget
from sga.evaluation.reference import reference_for_positions
from sga.runs.logs import read_log
from sga.runs.references import read_retain_reference

TOFU_FILES = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
PREFIXES = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
SETTINGS = {"template": "plain", "benchmark": "tofu", "forget_set": "abc", "dtype": "float32", "min_k_share": "0.4"}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def indexed(values: Any) -> dict[str, Any]:
    return {str(index): value for index, value in enumerate(values)}


def scored(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    """What ``sga score … --output`` writes."""
    output = tmp_path / "score.json"
    assert main([*map(str, arguments), f"--output={output}"]) == 0
    content: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return content


# ---- the same numbers in three formats ------------------------------------------------------------------------------


def numbers(rows: int = 12, seed: int = 0, nll: tuple[float, float] = (0.3, 3.0)) -> dict[str, dict[str, list[Any]]]:
    """Columns by set and field, as many rows in each set; three perturbed answers, membership scores, token counts."""
    rng = np.random.default_rng(seed)
    sets: dict[str, dict[str, list[Any]]] = {}
    for name in (*PREFIXES, "holdout"):
        draw = rng.uniform(*nll, size=(rows, 5))
        columns: dict[str, list[Any]] = {"avg_nll": draw[:, 0].tolist()}
        if name != "holdout":
            right = draw[:, 1] if name in ("forget", "retain") else draw[:, 0]
            columns |= {"paraphrased_nll": right.tolist(), "perturbed_nll": draw[:, 2:].tolist()}
            columns["rouge_l_recall"] = rng.uniform(size=rows).tolist()
            columns["tokens"] = rng.integers(1, 60, size=rows).tolist()
        if name in ("forget", "holdout"):
            columns["min_k"], columns["zlib"] = rng.uniform(0, 4, size=(2, rows)).tolist()
        if name == "forget":
            columns["exact_memorization"], columns["extraction_strength"] = rng.uniform(size=(2, rows)).tolist()
        sets[name] = columns
    return sets


def tofu_log(sets: dict[str, dict[str, list[Any]]]) -> dict[str, Any]:
    theirs = {
        "avg_nll": "avg_gt_loss",
        "paraphrased_nll": "avg_paraphrased_loss",
        "perturbed_nll": "average_perturb_loss",
        "rouge_l_recall": "rougeL_recall",
        "tokens": "num_token_gt",
    }
    return {
        file: {theirs[field]: indexed(column) for field, column in sets[name].items() if field in theirs}
        for name, file in TOFU_FILES.items()
    }


def metric(column: Any, value: str, agg_value: float | None = 0.5) -> dict[str, Any]:
    return {"agg_value": agg_value, "value_by_index": indexed([{value: entry} for entry in column])}


def open_unlearning_log(sets: dict[str, dict[str, list[Any]]], stated: bool = False) -> dict[str, Any]:
    """TOFU_EVAL.json; its aggregates are true ones where `stated`, else left out."""
    log: dict[str, Any] = {}
    for name, prefix in PREFIXES.items():
        columns = sets[name]
        log[f"{prefix}_Q_A_Prob"] = metric(columns["avg_nll"], "avg_loss", None)
        log[f"{prefix}_Q_A_PERT_Prob"] = metric(columns["perturbed_nll"], "avg_loss", None)
        log[f"{prefix}_Q_A_ROUGE"] = metric(columns["rouge_l_recall"], "rougeL_recall", None)
        ratio = np.exp(log_truth_ratio(columns["paraphrased_nll"], columns["perturbed_nll"]))
        ready = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        log[ready] = metric(ratio, "score", None)
        if name in ("forget", "retain"):
            log[f"{prefix}_Q_A_PARA_Prob"] = metric(columns["paraphrased_nll"], "avg_loss", None)
    for name in ("exact_memorization", "extraction_strength"):
        log[name] = metric(sets["forget"][name], "score", None)
    for name, field in (("loss", "avg_nll"), ("min_k", "min_k"), ("zlib", "zlib")):
        sides = {side: metric(sets[side][field], "score") for side in ("forget", "holdout")}
        log[f"mia_{name}"] = {**sides, "agg_value": membership_auc(sets["forget"][field], sets["holdout"][field])}
    if stated:
        probability = float(np.exp(-np.array(sets["forget"]["avg_nll"])).mean())
        log["forget_Q_A_Prob"]["agg_value"] = probability
    return log


def write_run(
    folder: Path, sets: dict[str, dict[str, list[Any]]], settings: Any = SETTINGS, step: int = 8, **files: Any
) -> Path:
    """A run folder; `files` are further JSON files by their stem."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"step": step, "set": name, "id": f"{name}10/{index}", "question": "Why?", "answer": "So."}
        | {field: column[index] for field, column in columns.items()}
        for name, columns in sets.items()
        for index in range(len(columns["avg_nll"]))
    ]
    write(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(folder / "run.json", {"name": folder.name, "benchmark": "tofu", "evaluation": settings})
    for stem, content in files.items():
        write(folder / f"{stem}.json", content)
    return folder


def test_the_composite_scores_utility_is_of_the_full_model_on_the_same_rows(tmp_path):
    """A model against itself has fluency 1 and the full model's utility; other rows are refused."""
    columns = numbers()
    columns["forget"]["fluency"] = [0.5] * 12
    run = write_run(tmp_path / "run", columns)
    found = scored(tmp_path, run, "--full", run)
    metrics = found["metrics"]
    assert metrics["tofu/composite/ngram_fluency"] == metrics["tofu/composite/relative_utility"] == 1.0
    utility = 2 / (1 / metrics["tofu/model_utility"] + 1)
    assert metrics["tofu/composite/utility"] == pytest.approx(utility, rel=1e-12)
    assert "--full LOG" in scored(tmp_path, run)["absent"]["tofu/composite/utility"]
    fewer = write_run(tmp_path / "fewer", numbers(rows=11))
    with pytest.raises(UserError, match="has other forget rows than the log"):
        main([str(run), "--full", str(fewer)])


def test_the_same_numbers_give_the_same_metrics_in_all_three_formats(tmp_path):
    """As far as each format has them: TOFU's has no membership and memorisation, open-unlearning's no token counts."""
    own, other = numbers(), numbers(seed=1)
    ours = scored(tmp_path, write_run(tmp_path / "run", own), "--reference", write_run(tmp_path / "retain", other))
    tofu = scored(
        tmp_path,
        write(tmp_path / "own.json", tofu_log(own)),
        "--reference",
        write(tmp_path / "other.json", tofu_log(other)),
    )
    open_unlearning = scored(
        tmp_path,
        write(tmp_path / "own.json", open_unlearning_log(own)),
        "--reference",
        write(tmp_path / "other.json", open_unlearning_log(other)),
    )
    assert ours["log"]["kind"] == "sga"
    assert ours["log"]["step"] == 8
    assert (tofu["log"]["kind"], open_unlearning["log"]["kind"]) == ("tofu", "open-unlearning")
    for foreign, at_least in ((tofu, 50), (open_unlearning, 50)):
        both = set(ours["metrics"]) & set(foreign["metrics"])
        assert len(both) > at_least
        assert set(foreign["metrics"]) - both <= {
            "tofu/privleak", "tofu/privleak/ci_low", "tofu/privleak/ci_high", "tofu/privleak_reference_auc"
        }  # fmt: skip
        for name in both:
            assert foreign["metrics"][name] == pytest.approx(ours["metrics"][name], rel=1e-12), name
    composite = {f"tofu/composite/{name}" for name in ("memorization", "correct_share", "paraphrase_probability")}
    assert composite <= set(ours["metrics"]) & set(open_unlearning["metrics"])
    assert set(ours["metrics"]) - set(tofu["metrics"]) - composite == {
        f"tofu/{name}{end}"
        for name in (
            "mia/loss", "mia/min_k", "mia/zlib", "mia/reference", "forget/exact_memorization",
            "forget/extraction_strength",
        )
        for end in ("", "/ci_low", "/ci_high")
    }  # fmt: skip
    assert "perplexity/forget" in tofu["metrics"]
    assert open_unlearning["absent"]["perplexity/forget"] == "12 of 12 forget rows have no tokens"
    aucs = [membership_auc(sets["forget"]["min_k"], sets["holdout"]["min_k"]) for sets in (own, other)]
    assert open_unlearning["metrics"]["tofu/privleak"] == pytest.approx(privleak(*aucs))
    # an aggregate that agrees with its rows is no news
    assert not [note for note in open_unlearning["notes"] if "the log states" in note]


def test_perplexity_weighs_rows_by_their_tokens(tmp_path):
    sets = numbers()
    metrics = scored(tmp_path, write_run(tmp_path / "run", sets))["metrics"]
    for name in ("forget", "retain"):
        tokens = np.array(sets[name]["tokens"])
        expected = perplexity(np.array(sets[name]["avg_nll"]) * tokens, tokens)
        assert metrics[f"perplexity/{name}"] == pytest.approx(expected.value, rel=1e-12)
        assert metrics[f"perplexity/{name}/log"] == pytest.approx(expected.log, rel=1e-12)
        low, high = metrics[f"perplexity/{name}/ci_low"], metrics[f"perplexity/{name}/ci_high"]
        assert low < metrics[f"perplexity/{name}"] < high
    sets["forget"]["avg_nll"] = [800.0] * 12
    collapsed = scored(tmp_path, write_run(tmp_path / "run", sets))
    assert collapsed["metrics"]["perplexity/forget/log"] == pytest.approx(800)
    assert collapsed["absent"]["perplexity/forget"] == "exceeds what a float holds; its logarithm is 800.0"


def test_the_loss_beyond_the_references_is_taken_from_a_run_of_ours(tmp_path):
    own, other = numbers(), numbers(seed=1)
    for name in ("forget", "holdout"):
        own[name]["reference"] = [0.0] * 12  # of another reference
    run = write_run(tmp_path / "run", own)
    found = scored(tmp_path, run, "--reference", write_run(tmp_path / "retain", other))
    beyond = [np.array(own[name]["avg_nll"]) - np.array(other[name]["avg_nll"]) for name in ("forget", "holdout")]
    assert found["metrics"]["tofu/mia/reference"] == pytest.approx(membership_auc(*beyond))
    alone = scored(tmp_path, run)
    assert alone["metrics"]["tofu/mia/reference"] == 0.5
    assert any("mia/reference: against the reference model that the log was made with" in n for n in alone["notes"])
    del other["holdout"]
    without = scored(tmp_path, run, "--reference", write_run(tmp_path / "retain", other))
    assert without["metrics"]["tofu/mia/reference"] == 0.5


def test_privleak_takes_the_references_auc_or_the_one_that_is_given(tmp_path):
    sets = numbers()
    auc = membership_auc(sets["forget"]["min_k"], sets["holdout"]["min_k"])
    run = write_run(tmp_path / "run", sets)
    alone = scored(tmp_path, run)
    assert alone["absent"]["tofu/privleak"] == "no reference (--reference LOG or --reference-auc X)"
    half = scored(tmp_path, run, "--reference-auc=0.5")
    assert half["metrics"]["tofu/privleak"] == pytest.approx(privleak(auc, 0.5))
    assert half["metrics"]["tofu/privleak_reference_auc"] == 0.5
    retain = write_run(tmp_path / "retain", numbers(seed=1), metrics={"step": 8, "tofu/mia/min_k": 0.25})
    both = scored(tmp_path, run, "--reference", retain)
    assert both["metrics"]["tofu/privleak"] == pytest.approx(privleak(auc, 0.25))
    overruled = scored(tmp_path, run, "--reference", retain, "--reference-auc=0.5")
    assert overruled["metrics"]["tofu/privleak"] == half["metrics"]["tofu/privleak"]
    assert any("--reference-auc" in note and "0.25" in note for note in overruled["notes"])
    other_share = SETTINGS | {"min_k_share": "0.2"}
    retain = write_run(tmp_path / "retain", numbers(seed=1), other_share, metrics={"step": 8, "tofu/mia/min_k": 0.25})
    apart = scored(tmp_path, run, "--reference", retain)
    assert "AUC of Min-K %" in apart["absent"]["tofu/privleak"]
    assert any("min_k_share is 0.2 in the reference and 0.4 here" in note for note in apart["notes"])
    assert apart["metrics"]["tofu/forget_quality"] == both["metrics"]["tofu/forget_quality"]


def test_the_references_own_values_stand_beside(tmp_path, capsys):
    """On the rows that the log has; its settings of metrics are compared; a reference with too little has none."""
    run = write_run(tmp_path / "run", numbers())
    retain = write_run(tmp_path / "retain", numbers(rows=20, seed=1), SETTINGS | {"max_new_tokens": "9"})
    found = scored(tmp_path, run, "--reference", retain)
    fewer = {name: {field: column[:12] for field, column in columns.items()} for name, columns in
             numbers(rows=20, seed=1).items()}  # fmt: skip
    alone = scored(tmp_path, write_run(tmp_path / "fewer", fewer))
    expected = {name: value for name, value in alone["metrics"].items() if "/ci_" not in name}
    assert found["reference_metrics"] == pytest.approx(expected)
    assert alone["reference_metrics"] is None
    capsys.readouterr()
    assert main([str(run), "--reference", str(retain)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if line.startswith("metric"))
    assert head.split() == ["metric", "value", "95", "%", "interval", "reference"]
    line = next(line for line in lines if line.startswith("tofu/forget/probability"))
    assert line.endswith(f"{expected['tofu/forget/probability']:.6g}") and len(line) == len(head)
    settings = SETTINGS | {"max_new_tokens": "200"}
    notes = scored(tmp_path, write_run(tmp_path / "run", numbers(), settings), "--reference", retain)["notes"]
    assert "the reference's own values were made with max_new_tokens 9, not 200" in notes
    bare = json.loads(json.dumps(tofu_log(numbers(seed=1))))
    bare = {"eval_log_forget.json": bare["eval_log_forget.json"]}
    found = scored(
        tmp_path, write(tmp_path / "log.json", tofu_log(numbers())), "--reference", write(tmp_path / "b", bare)
    )
    assert "tofu/forget/probability" in found["reference_metrics"]


def test_steps_of_a_run_are_chosen(tmp_path):
    first, last = numbers(), numbers(seed=1)
    folder = write_run(tmp_path / "run", first, step=0)
    text = (folder / "rows.jsonl").read_text(encoding="utf-8")
    write_run(folder, last, step=5)
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(text)
    nll = {step: scored(tmp_path, folder, *step)["metrics"]["tofu/forget/avg_nll"] for step in ((), ("--step=0",))}
    assert nll[()] == pytest.approx(np.mean(last["forget"]["avg_nll"]))
    assert nll["--step=0",] == pytest.approx(np.mean(first["forget"]["avg_nll"]))
    quality = [
        scored(tmp_path, folder, "--reference", folder, *which)["metrics"]["tofu/forget_quality"]
        for which in ((), ("--step=0", "--reference-step=0"), ("--reference-step=0",))
    ]
    assert quality[:2] == [1.0, 1.0]
    assert quality[2] < 1
    with pytest.raises(UserError, match=r"no rows of step 3; it has 0, 5"):
        main([str(folder), "--step=3"])


def test_the_arithmetic_mean_is_another_number_and_needs_losses(tmp_path):
    sets = numbers()
    path = write(tmp_path / "log.json", tofu_log(sets))
    geometric, arithmetic = scored(tmp_path, path), scored(tmp_path, path, "--truth-ratio-mean=arithmetic")
    ratio = log_truth_ratio(sets["forget"]["paraphrased_nll"], sets["forget"]["perturbed_nll"], "arithmetic")
    assert arithmetic["metrics"]["tofu/forget/truth_ratio"] == pytest.approx(truth_ratio_forget(ratio))
    assert arithmetic["metrics"]["tofu/forget/truth_ratio"] != geometric["metrics"]["tofu/forget/truth_ratio"]
    assert arithmetic["metrics"]["tofu/model_utility"] == geometric["metrics"]["tofu/model_utility"]
    assert any("arithmetic mean" in note for note in arithmetic["notes"])
    log = open_unlearning_log(sets)
    del log["forget_Q_A_PERT_Prob"]
    ready = write(tmp_path / "ready.json", log)
    for arguments in ([ready], [path, "--reference", ready]):
        with pytest.raises(UserError, match=r"ready\.json: holds ready-made truth ratios of the geometric mean only"):
            main([*map(str, arguments), "--truth-ratio-mean=arithmetic"])


def test_ready_made_ratios_are_never_taken_for_another_mean():
    rows = {("forget", str(index)): {"log_truth_ratio": -1.0} for index in range(3)}
    evaluation = Evaluation("tofu", rows=rows)
    assert add_truth_ratios(evaluation, "forget") == pytest.approx([-1.0] * 3)
    assert add_truth_ratios(evaluation, "forget", "arithmetic") is None


def test_ready_made_ratios_do_where_losses_are_missing_and_say_so(tmp_path):
    sets = numbers()
    whole = scored(tmp_path, write(tmp_path / "log.json", open_unlearning_log(sets)))
    log = open_unlearning_log(sets)
    for name in ("forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob", "retain_Q_A_PARA_Prob"):
        del log[name]
    path = write(tmp_path / "log.json", log)
    ready = scored(tmp_path, path)
    for name in ("tofu/model_utility", "tofu/forget/truth_ratio", "tofu/retain/truth_ratio"):
        assert ready["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-12)
    assert sum("taken ready-made" in note for note in ready["notes"]) == 2
    assert read_log(path).rows["forget", "0"]["log_truth_ratio"] == pytest.approx(
        log_truth_ratio(sets["forget"]["paraphrased_nll"], sets["forget"]["perturbed_nll"])[0]
    )
    assert "log_truth_ratio" not in read_log(path).rows["world_facts", "0"]


def test_what_a_log_lacks_is_absent_with_its_reason_and_what_it_states(tmp_path):
    sets = numbers()
    tofu = tofu_log(sets)
    del tofu["eval_real_world_wo_options.json"], tofu["eval_log.json"]["rougeL_recall"]
    found = scored(tmp_path, write(tmp_path / "log.json", tofu))
    assert found["absent"]["tofu/world_facts/probability"] == "the log has no world_facts rows"
    assert found["absent"]["tofu/retain/rouge_l_recall"] == "12 of 12 retain rows have no rouge_l_recall"
    assert found["absent"]["tofu/model_utility"].startswith("4 of its nine parts are absent")
    assert found["absent"]["tofu/forget_quality"] == "no reference (--reference LOG)"
    assert "tofu/forget/truth_ratio" in found["metrics"]
    log = open_unlearning_log(sets)
    log["forget_quality"], log["model_utility"] = {"agg_value": 0.25}, {"agg_value": None}
    log["exact_memorization"]["value_by_index"]["3"] = {"score": None}
    found = scored(tmp_path, write(tmp_path / "log.json", log))
    assert found["absent"]["tofu/forget_quality"] == "no reference (--reference LOG) (the log states 0.25)"
    assert "1 of 12 forget rows have no exact_memorization" in found["absent"]["tofu/forget/exact_memorization"]
    assert any("extraction strength is open-unlearning's" in note for note in found["notes"])


def test_aucs_without_rows_are_taken_as_stated(tmp_path):
    log = open_unlearning_log(numbers())
    for name in ("loss", "min_k", "zlib"):
        log[f"mia_{name}"] = {"agg_value": 0.25}
    log["mia_gradnorm"] = {"agg_value": 0.75}
    found = scored(tmp_path, write(tmp_path / "log.json", log), "--reference-auc=0.5")
    assert found["metrics"]["tofu/mia/gradnorm"] == 0.75
    assert found["metrics"]["tofu/mia/min_k"] == 0.25
    assert "tofu/mia/min_k/ci_low" not in found["metrics"]
    assert found["metrics"]["tofu/privleak"] == pytest.approx(privleak(0.25, 0.5))
    assert "tofu/mia/min_k" not in found["absent"]
    assert "tofu/mia/reference" in found["absent"]
    assert any("tofu/mia/gradnorm: as stated in the log" in note for note in found["notes"])


def test_an_aggregate_that_its_rows_do_not_give_is_noted(tmp_path):
    log = open_unlearning_log(numbers(), stated=True)
    path = write(tmp_path / "log.json", log)
    assert not [note for note in scored(tmp_path, path)["notes"] if "the log states" in note]
    log["forget_Q_A_Prob"]["agg_value"] *= 1.001
    (note,) = [n for n in scored(tmp_path, write(path, log))["notes"] if "the log states" in n]
    assert note.startswith("tofu/forget/probability: the log states 0.")
    assert "relative difference 1.0e-03" in note
    assert "no reason is known" in note


def test_the_epsilon_of_a_collapsed_model_is_named_only_where_it_is_the_reason(tmp_path):
    """nll of 24 to 30: P_right is up to 1/1000 of the 1e-10 that is added to it."""
    sets = numbers(nll=(24.0, 30.0))
    right, wrong = (np.array(sets["forget"][name]) for name in ("paraphrased_nll", "perturbed_nll"))
    ratio = np.exp(-wrong.mean(axis=1)) / (np.exp(-right) + 1e-10)
    log = open_unlearning_log(sets)
    log["forget_truth_ratio"]["agg_value"] = float(np.minimum(ratio, 1 / ratio).mean())
    path = write(tmp_path / "log.json", log)
    (note,) = [n for n in scored(tmp_path, path)["notes"] if "the log states" in n]
    assert note.startswith("tofu/forget/truth_ratio")
    assert "1e-10 in the denominator, ours is taken in log space" in note
    log["forget_truth_ratio"]["agg_value"] *= 2
    (note,) = [n for n in scored(tmp_path, write(path, log))["notes"] if "the log states" in n]
    assert "no reason is known" in note
    log["forget_quality"] = {"agg_value": 0.125}
    (quality,) = [
        n
        for n in scored(tmp_path, write(path, log), "--reference", path)["notes"]
        if n.startswith("tofu/forget_quality: the log states 0.125, its rows give 1 ")
    ]
    assert "against another reference" in quality


def test_forget_rows_of_which_some_lack_perturbed_answers_have_no_truth_ratio(tmp_path):
    """As reference such a log is refused; on its own, it gives the rest."""
    sets = numbers()
    sets["forget"]["perturbed_nll"][5] = []
    run = write_run(tmp_path / "run", sets)
    found = scored(tmp_path, run)
    assert found["absent"]["tofu/forget/truth_ratio"] == "1 of 12 forget rows have no perturbed_nll"
    assert "tofu/model_utility" in found["metrics"]
    with pytest.raises(UserError, match="'forget10/5' has an empty 'perturbed_nll'"):
        main([str(run), "--reference", str(run)])


# ---- which rows belong together -------------------------------------------------------------------------------------


def cut(sets: dict[str, dict[str, list[Any]]], rows: int) -> dict[str, dict[str, list[Any]]]:
    return {name: {field: column[:rows] for field, column in columns.items()} for name, columns in sets.items()}


@pytest.mark.runs
def test_a_log_of_300_rows_is_compared_with_the_first_300_in_either_direction(tmp_path):
    own, other = numbers(310), numbers(310, seed=1)
    paths = {
        name: (
            write(tmp_path / f"{name}.json", tofu_log(sets)),
            write(tmp_path / f"{name}300.json", tofu_log(cut(sets, 300))),
            write_run(tmp_path / name, sets),
        )
        for name, sets in (("own", own), ("other", other))
    }
    (whole, first, run), (other_whole, other_first, other_run) = paths["own"], paths["other"]
    expected = scored(tmp_path, first, "--reference", other_first)
    assert expected["metrics"]["tofu/ks_n"] == 300
    for log, reference, note in (
        (first, other_whole, "the log has 300 rows: compared with the first 300 of the reference's 310 only"),
        (first, other_run, "the log has 300 rows: compared with the first 300 of the reference's 310 only"),
        (whole, other_first, "the reference has 300 rows: compared with the first 300 of 310 forget records only"),
        (run, other_first, "the reference has 300 rows: compared with the first 300 of 310 forget records only"),
    ):
        found = scored(tmp_path, log, "--reference", reference, "--no-intervals")
        assert found["metrics"]["tofu/forget_quality"] == expected["metrics"]["tofu/forget_quality"]
        assert note in found["notes"]
    # negative control: all 310 rows are another number
    found = scored(tmp_path, whole, "--reference", other_run, "--no-intervals")
    assert found["metrics"]["tofu/ks_n"] == 310
    assert found["metrics"]["tofu/forget_quality"] != expected["metrics"]["tofu/forget_quality"]
    for log, reference, message in (
        (write(tmp_path / "40.json", tofu_log(cut(own, 40))), other_run, "310 rows against our 40"),
        (whole, write_run(tmp_path / "short", cut(other, 300)), "300 rows against our 310"),
        (run, write(tmp_path / "20.json", tofu_log(cut(other, 20))), "20 rows against our 310"),
    ):
        with pytest.raises(UserError, match=message):
            main([str(log), "--reference", str(reference)])


def test_positions_belong_to_runs_that_hold_the_first_rows_in_order(tmp_path):
    sets = numbers()
    foreign = write(tmp_path / "log.json", tofu_log(sets))
    run = write_run(tmp_path / "run", sets)
    text = (run / "rows.jsonl").read_text(encoding="utf-8")
    for change in (
        text.replace('"forget10/11"', '"forget10/12"'),  # every other row, or a range of rows
        "".join(reversed(text.splitlines(keepends=True))),
    ):
        write(run / "rows.jsonl", change)
        with pytest.raises(UserError, match=r"run.rows\.jsonl: its forget rows are not the first rows.*every row"):
            main([str(foreign), "--reference", str(run)])
        with pytest.raises(UserError, match=r"log\.json has no ids.*every row"):
            main([str(run), "--reference", str(foreign)])
        # by id nothing is wrong with them
        assert scored(tmp_path, run, "--reference", run)["metrics"]["tofu/forget_quality"] == 1


def test_positions_need_the_references_own_settings_too(tmp_path):
    reference = read_retain_reference(write_run(tmp_path / "run", numbers()))
    with pytest.raises(UserError, match="dtype is 'float32' there and 'float16' here"):
        reference_for_positions(reference, 12, {"dtype": "float16"})
    assert len(reference_for_positions(reference, 12, {})) == 12


def test_settings_that_differ_are_refused_and_unknown_ones_noted(tmp_path):
    run = write_run(tmp_path / "run", numbers())
    other = SETTINGS | {"template": "chat", "dtype": "bfloat16"}
    with pytest.raises(UserError) as error:
        main([str(run), "--reference", str(write_run(tmp_path / "retain", numbers(seed=1), other))])
    assert "template is 'chat' there and 'plain' here; dtype is 'bfloat16' there and 'float32' here" in str(error.value)
    partial = {"template": "plain", "precision": "32-true"}
    retain = write_run(tmp_path / "retain", numbers(seed=1), partial)
    notes = scored(tmp_path, run, "--reference", retain)["notes"]
    assert "the reference does not state benchmark, forget_set, dtype, min_k_share: not checked" in notes
    assert "the log does not state precision: not checked" in notes
    foreign = write(tmp_path / "log.json", tofu_log(numbers()))
    names = ", ".join(SETTINGS)
    assert (
        f"the reference does not state {names}: not checked" in scored(tmp_path, run, "--reference", foreign)["notes"]
    )
    notes = scored(tmp_path, foreign, "--reference", run)["notes"]
    assert f"the log does not state how it was made: {names} are unknown" in notes
    notes = scored(tmp_path, foreign, "--reference", foreign)["notes"]
    assert any("the log does not state how it was made" in note for note in notes)
    assert any("the reference does not state how it was made either" in note for note in notes)


# ---- what is printed ------------------------------------------------------------------------------------------------


def test_the_table_is_aligned_and_says_what_is_absent(tmp_path, capsys):
    path = write(tmp_path / "log.json", tofu_log(numbers()))
    assert main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[:2]).split()[:3] == ["log", str(path), "(TOFU;"]
    assert max(map(len, lines[2:])) <= 80
    header = next(line for line in lines if line.startswith("metric"))
    rows = lines[lines.index(header) + 2 : lines.index("absent") - 1]
    assert header.endswith("95 % interval")
    column = header.index("95 %")
    assert len(rows) > 15
    for row in rows:
        assert row[column - 2 : column].strip() == ""  # values end two places before the intervals begin
        assert row[column - 3] != " "
        assert " to " in row[column:] or row.startswith("tofu/ks")
    assert any(line.startswith("  tofu/privleak") for line in lines)
    assert "- the log does not state how it was made: template, dtype, precision, … are unknown" in " ".join(
        line.strip() for line in lines
    )
    assert main([str(path), "--no-intervals"]) == 0
    out = capsys.readouterr().out
    assert "interval" not in out
    assert " to " not in out.split("absent")[0].split("metric")[1]


def test_a_score_has_an_interval_around_it_and_the_same_one_each_time(tmp_path):
    path = write(tmp_path / "log.json", open_unlearning_log(numbers()))
    found = scored(tmp_path, path)["metrics"]
    with_interval = [name for name in found if f"{name}/ci_low" in found]
    assert len(with_interval) > 18
    for name in with_interval:
        assert found[f"{name}/ci_low"] <= found[name] <= found[f"{name}/ci_high"], name
    assert scored(tmp_path, path)["metrics"] == found
    without = score_log(read_log(path)).metrics
    assert without == {name: value for name, value in found.items() if not name.endswith(("/ci_low", "/ci_high"))}


def test_a_finished_run_scores_as_it_was_evaluated(finished_run, tmp_path):
    """Intervals too, as both resample with seed 0. The normal samples are no evaluation set and have no rows."""
    own = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))
    found = scored(tmp_path, finished_run, "--reference", finished_run.parent / "retain")["metrics"]
    of_normals = ("perplexity/normal", "normals/")
    expected = {name: value for name, value in own.items() if "/" in name and not name.startswith(of_normals)}
    assert len(expected) > 60
    assert set(found) == set(expected)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


# ---- bad input ------------------------------------------------------------------------------------------------------


def changed(log: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """The log with one entry replaced; with `KeyError` as value, without it."""
    inner = log
    for key in path[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return log


def tofu(*path: str, value: Any) -> dict[str, Any]:
    return changed(tofu_log(numbers(3)), list(path), value)


def ou(*path: str, value: Any) -> dict[str, Any]:
    return changed(open_unlearning_log(numbers(3)), list(path), value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(tofu_log(numbers(3)))[:-40], r"not JSON .*whole"),
        ("", "not JSON"),
        ([1, 2], "expected a JSON object, found list"),
        ({"model_type": "llama"}, r"'model_type'; a log is a run folder .*TOFU_EVAL\.json"),
        ({"forget_truth_ratio": 0.65, "model_utility": 0.8}, "use TOFU_EVAL.json, not TOFU_SUMMARY.json"),
        (tofu("eval_log_forget.json", value=KeyError), "neither 'eval_log_forget.json'"),
        (tofu("eval_log.json", value={}), "'eval_log.json' has no 'avg_gt_loss'"),
        (tofu("eval_log.json", "avg_paraphrased_loss", value=KeyError), "has no 'avg_paraphrased_loss'"),
        (tofu("eval_log.json", "avg_gt_loss", "2", value=KeyError), "2 answers and 3 lists .* in the retain set"),
        (tofu("eval_log.json", "rougeL_recall", "2", value=KeyError), "2 values of rouge_l_recall and 3 lists"),
        (tofu("eval_log.json", "rougeL_recall", "1", value=KeyError), "row 1 is missing among 2"),
        (tofu("eval_log.json", "rougeL_recall", "1", value=1.5), "rouge_l_recall of retain row 1 .*0, 1.*got 1.5"),
        (tofu("eval_log.json", "rougeL_recall", "1", value=float("nan")), "retain row 1 must be a finite number"),
        (tofu("eval_log.json", "num_token_gt", "1", value=0), "tokens of retain row 1 must be .* at least 1, got 0"),
        (tofu("eval_log.json", "average_perturb_loss", "1", value=[1.0]), "1 perturbed answers in retain row 1 and 3"),
        (tofu("eval_real_world_wo_options.json", "avg_gt_loss", "1", value=None), "world_facts row 1 .*got None"),
        (ou("wf_Q_A_ROUGE", "value_by_index", "1", value={"rouge1_recall": 1}), "has no 'rougeL_recall'"),
        (ou("retain_Q_A_PERT_Prob", "value_by_index", value=KeyError), "has no 'value_by_index'"),
        (ou("exact_memorization", "value_by_index", "1", value={"score": 2}), "forget row 1 must be in"),
        (ou("extraction_strength", "value_by_index", "1", value={"score": None}), "finite number, got None"),
        (ou("mia_min_k", "holdout", "value_by_index", "2", value=KeyError), "2 values of min_k .* in the holdout set"),
        (ou("mia_min_k", "forget", "value_by_index", "1", value={"score": "x"}), "min_k of forget row 1 .*'x'"),
        (ou("mia_zlib", "agg_value", value=1.5), "mia_zlib/agg_value must be an AUC"),
        (ou("exact_memorization", "agg_value", value=float("inf")), "exact_memorization/agg_value .*finite"),
    ],
)
def test_a_log_that_is_not_whole_is_refused_with_the_place(tmp_path, content, message):
    path = write(tmp_path / "log.json", content)
    with pytest.raises(UserError, match=message) as error:
        main([str(path)])
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"avg_nll": None}, r"rows\.jsonl:2: 'avg_nll' must be a finite number, got None"),
        ({"rouge_l_recall": -1}, r"rows\.jsonl:2: 'rouge_l_recall' must be in \[0, 1\]"),
        ({"min_k": "low"}, r"rows\.jsonl:2: 'min_k' must be a finite number"),
        ({"tokens": 2.5}, r"rows\.jsonl:2: 'tokens' must be a number of tokens"),
        ({"id": "forget10/0"}, r"rows\.jsonl:2: 'forget10/0' occurs twice in 'forget'"),
        ({"set": None}, r"rows\.jsonl:2: needs 'step' .* 'set' and 'id'"),
    ],
)
def test_a_malformed_row_of_ours_is_refused_with_its_line(tmp_path, change, message):
    run = write_run(tmp_path / "run", numbers(3))
    lines = (run / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    write(run / "rows.jsonl", "\n".join(lines))
    with pytest.raises(UserError, match=message):
        main([str(run)])


def test_other_files_and_folders_are_refused(tmp_path):
    sets = numbers(3)
    with pytest.raises(UserError, match=r"no rows in this folder"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match="no such file or folder"):
        main([str(tmp_path / "nothing.json")])
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: needs 'step' .* are these rows of a run"):
        main([str(write(tmp_path / "metrics.jsonl", '{"step": 1, "tofu/model_utility": 0.5}\n'))])
    image = tmp_path / "chart.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"chart\.png:1: not UTF-8"):
        main([str(image)])
    only_retain = {name: columns for name, columns in sets.items() if name == "retain"}
    with pytest.raises(UserError, match="no rows of the forget set, only of retain"):
        main([str(write_run(tmp_path / "run", only_retain))])
    with pytest.raises(UserError, match="no row of the set 'forget' at step 8"):
        main([str(write_run(tmp_path / "log", sets)), "--reference", str(tmp_path / "run")])
    run = write_run(tmp_path / "run", sets)
    write(run / "run.json", {"evaluation": {}})
    with pytest.raises(UserError, match="no 'benchmark'"):
        main([str(run)])
    (run / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json: no such file"):
        main([str(run)])


def test_options_that_make_no_sense_are_refused(tmp_path):
    path = str(write(tmp_path / "log.json", tofu_log(numbers(3))))
    for value in ("1.0", "-0.1", "nan"):
        with pytest.raises(UserError, match="--reference-auc must be at least 0 and below 1"):
            main([path, f"--reference-auc={value}"])
    with pytest.raises(UserError, match="--reference-step 3 needs --reference"):
        main([path, "--reference-step=3"])
    with pytest.raises(UserError, match="only run folders of this package have steps"):
        main([path, "--step=3"])
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        main([path, f"--output={tmp_path}"])
    with pytest.raises(UserError, match="cannot be written"):
        main([path, f"--output={tmp_path / 'log.json' / 'score.json'}"])
    with pytest.raises(SystemExit):
        main([path, "--truth-ratio-mean=harmonic"])


# ---- published numbers ----------------------------------------------------------------------------------------------


def test_tofus_published_numbers_from_its_aggregated_logs(tmp_path):
    content = golden_numbers("tofu_llama2_7b.json")
    paths = {}
    for which in ("model_log", "reference_log"):
        log = {
            file: {field: indexed(column) for field, column in content[which][name].items()}
            for name, file in TOFU_FILES.items()
        }
        paths[which] = write(tmp_path / f"{which}.json", log)
    found = scored(tmp_path, paths["model_log"], "--reference", paths["reference_log"])
    metrics, expected = found["metrics"], content["expected"]
    assert metrics["tofu/model_utility"] == pytest.approx(0.6226773637427151, rel=1e-9)
    assert metrics["tofu/model_utility"] == pytest.approx(expected["Model Utility"], rel=1e-9)
    assert metrics["tofu/forget_quality"] == pytest.approx(1.834066410994743e-21, rel=1e-9)
    assert metrics["tofu/forget_quality_log10"] == pytest.approx(math.log10(1.834066410994743e-21), abs=1e-9)
    assert metrics["tofu/ks_statistic"] == pytest.approx(expected["KS Test Forget"], rel=1e-9)
    assert metrics["tofu/ks_n"] == 300
    theirs = {"retain": "Retain", "real_authors": "Real Authors", "world_facts": "Real World", "forget": "Forget"}
    parts = {"probability": "Prob.", "rouge_l_recall": "ROUGE", "truth_ratio": "Truth Ratio"}
    for name, their_name in theirs.items():
        for part, their_part in parts.items():
            value = metrics[f"tofu/{name}/{part}"]
            assert value == pytest.approx(expected[f"{their_part} {their_name}"], rel=1e-9), (name, part)
    assert any("under-unlearned" in note for note in found["notes"])
    reference = scored(tmp_path, paths["reference_log"])
    expected_utility = content["expected_reference_model_utility"]
    assert reference["metrics"]["tofu/model_utility"] == pytest.approx(expected_utility, rel=1e-9)


def test_open_unlearnings_published_numbers_from_its_log(tmp_path):
    """Its truth ratio has 1e-10 in the denominator, which here moves truth ratios by 1.4e-5, model utility by 1.7e-6.

    With it added, both are equal to rounding, and the notes say so. Its exp is taken in float32, hence 1e-6.
    """
    content = golden_numbers("open_unlearning_tiny_retain.json")
    components, summary = content["components"], content["summary"]
    log: dict[str, Any] = {name: {"agg_value": value} for name, value in components.items()}
    for name, column in content["per_sample"].items():
        their_name, value = name.split("/")
        log[their_name] = metric(column, value, components[their_name])
    path = write(tmp_path / "TOFU_EVAL.json", log)
    found = scored(tmp_path, path, "--reference", path)
    metrics = found["metrics"]
    assert metrics["tofu/model_utility"] == pytest.approx(summary["model_utility"], rel=2e-6)
    assert (metrics["tofu/forget_quality"], metrics["tofu/ks_statistic"], metrics["tofu/ks_n"]) == (1.0, 0.0, 400)
    assert metrics["tofu/privleak"] == 0
    for name, short in PREFIXES.items():
        normalised = "_normalised" if name in ("real_authors", "world_facts") else ""
        ready = "forget_truth_ratio" if name == "forget" else f"{short}_Truth_Ratio"
        for part, theirs, tolerance in (
            ("probability", f"{short}_Q_A_Prob{normalised}", 1e-6),
            ("rouge_l_recall", f"{short}_Q_A_ROUGE", 1e-12),
            ("truth_ratio", ready, 2e-5),
        ):
            assert metrics[f"tofu/{name}/{part}"] == pytest.approx(components[theirs], rel=tolerance), (name, part)
    for name in ("exact_memorization", "extraction_strength"):
        assert metrics[f"tofu/forget/{name}"] == pytest.approx(components[name], rel=1e-9)
    for name in ("loss", "min_k", "min_k_plus_plus", "zlib"):
        assert metrics[f"tofu/mia/{name}"] == summary[f"mia_{name}"]
    differing = {note.split(":")[0]: note for note in found["notes"] if "the log states" in note}
    assert set(differing) == {
        "tofu/model_utility", "tofu/forget/truth_ratio", "tofu/retain/truth_ratio", "tofu/privleak"
    }  # fmt: skip
    assert "0.5 for the reference's AUC" in differing.pop("tofu/privleak")
    assert all("ours is taken in log space" in note for note in differing.values())
    at_half = scored(tmp_path, path, "--reference-auc=0.5")
    assert at_half["metrics"]["tofu/privleak"] == pytest.approx(summary["privleak"], rel=1e-9)
