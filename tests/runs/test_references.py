"""Reading retain references: the three formats, what is refused, and the cut to our rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import golden_numbers

from sga.errors import UserError
from sga.evaluation.metrics import forget_quality, log_truth_ratio
from sga.evaluation.reference import are_first_rows, reference_for
from sga.runs.references import read_retain_reference

SETTINGS = {"template": "plain", "benchmark": "tofu", "forget_split": "forget10", "dtype": "float32"}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def losses(rows: int, seed: int = 0) -> tuple[list[float], list[float], list[list[float]]]:
    """(answer, paraphrase, five perturbed answers) of each row."""
    rng = np.random.default_rng(seed)
    draw = rng.uniform(0.5, 4.0, size=(rows, 7)).tolist()
    return [row[0] for row in draw], [row[1] for row in draw], [row[2:] for row in draw]


def indexed(values: list[Any]) -> dict[str, Any]:
    return {str(index): value for index, value in enumerate(values)}


def tofu_log(rows: int, seed: int = 0) -> dict[str, Any]:
    answer, right, wrong = losses(rows, seed)
    columns = {"avg_gt_loss": answer, "avg_paraphrased_loss": right, "average_perturb_loss": wrong}
    forget = {name: indexed(column) for name, column in columns.items()}
    return {"eval_log.json": {}, "eval_log_forget.json": forget | {"rougeL_recall": {}}}


def open_unlearning_log(rows: int, seed: int = 0) -> dict[str, Any]:
    answer, right, wrong = losses(rows, seed)
    log: dict[str, Any] = {
        name: {"agg_value": 0.1, "value_by_index": indexed([{"prob": 0.5, "avg_loss": x} for x in column])}
        for name, column in (
            ("forget_Q_A_Prob", answer),
            ("forget_Q_A_PARA_Prob", right),
            ("forget_Q_A_PERT_Prob", wrong),
        )
    }
    ratio = np.exp(log_truth_ratio(right, wrong))
    log["forget_truth_ratio"] = {"agg_value": 0.6, "value_by_index": indexed([{"score": x} for x in ratio])}
    log["mia_min_k"] = {"agg_value": 0.47}
    return log


def sga_rows(rows: int, seed: int = 0, step: int = 10) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "set": "forget",
            "id": f"forget10/{index}",
            "avg_nll": answer,
            "paraphrased_nll": right,
            "perturbed_nll": wrong,
            "rouge_l_recall": 0.5,
        }
        for index, (answer, right, wrong) in enumerate(zip(*losses(rows, seed), strict=True))
    ]


def write_run(folder: Path, rows: list[dict[str, Any]], settings: Any = SETTINGS, **files: Any) -> Path:
    """A run folder; `files` are further JSON files by their stem."""
    folder.mkdir(exist_ok=True)
    write(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(folder / "run.json", {"name": "retain", "evaluation": settings})
    for stem, content in files.items():
        write(folder / f"{stem}.json", content)
    return folder


def ids(rows: int) -> list[str]:
    return [f"forget10/{index}" for index in range(rows)]


# The three formats


def test_the_same_numbers_in_all_three_formats_give_the_same_reference(tmp_path):
    answer, right, wrong = losses(6)
    paths = [
        write(tmp_path / "a.json", tofu_log(6)),
        write(tmp_path / "b.json", open_unlearning_log(6)),
        write_run(tmp_path / "run", sga_rows(6)),
    ]
    references = [read_retain_reference(path) for path in paths]
    assert [reference.kind for reference in references] == ["tofu", "open-unlearning", "sga"]
    for reference in references:
        assert len(reference) == 6
        assert reference.answer_nll == pytest.approx(answer)
        assert reference.log_truth_ratio() == pytest.approx(log_truth_ratio(right, wrong))
        assert reference.log_truth_ratio("arithmetic") == pytest.approx(log_truth_ratio(right, wrong, "arithmetic"))


def test_a_foreign_log_is_known_by_its_content_not_by_its_name(tmp_path):
    assert read_retain_reference(write(tmp_path / "TOFU_EVAL.json", tofu_log(3))).kind == "tofu"
    log = open_unlearning_log(3)
    assert read_retain_reference(write(tmp_path / "eval_log_aggregated.json", log)).kind == "open-unlearning"


def test_rows_of_a_foreign_log_are_ordered_by_number_not_by_place_or_text(tmp_path):
    """ "10" stands before "2" as text; the file may list rows in any order."""
    log = tofu_log(12)
    for name in ("avg_gt_loss", "avg_paraphrased_loss"):
        column = log["eval_log_forget.json"][name]
        log["eval_log_forget.json"][name] = {key: column[key] for key in sorted(column)}
    assert read_retain_reference(write(tmp_path / "log.json", log)).right_nll == pytest.approx(losses(12)[1])


def test_tofu_columns_may_be_plain_lists(tmp_path):
    log = tofu_log(4)
    log["eval_log_forget.json"] = dict(
        zip(("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss"), losses(4), strict=True)
    )
    assert read_retain_reference(write(tmp_path / "log.json", log)).right_nll == pytest.approx(losses(4)[1])


def test_ready_made_truth_ratios_do_where_the_losses_are_missing_and_say_so(tmp_path):
    log = open_unlearning_log(5)
    del log["forget_Q_A_PERT_Prob"]
    reference = read_retain_reference(write(tmp_path / "log.json", log))
    assert len(reference) == 5
    assert reference.log_truth_ratio() == pytest.approx(log_truth_ratio(*losses(5)[1:]))
    assert "1e-10" in reference.notes[0]
    assert "forget_Q_A_PERT_Prob" in reference.notes[0]
    with pytest.raises(UserError, match="geometric"):
        reference.log_truth_ratio("arithmetic")


def test_open_unlearning_gives_its_aucs_and_no_answer_loss_where_it_has_none(tmp_path):
    log = open_unlearning_log(5)
    del log["forget_Q_A_Prob"]
    reference = read_retain_reference(write(tmp_path / "log.json", log))
    assert reference.membership_auc == {"min_k": 0.47}
    assert reference.answer_nll is None
    assert read_retain_reference(write(tmp_path / "tofu.json", tofu_log(5))).membership_auc is None


# Our own runs


def test_a_run_folder_and_its_rows_file_are_the_same_reference(tmp_path):
    folder = write_run(tmp_path / "run", sga_rows(4))
    by_folder, by_file = read_retain_reference(folder), read_retain_reference(folder / "rows.jsonl")
    assert by_folder.forget_ids == by_file.forget_ids == tuple(ids(4))
    assert by_folder.settings == SETTINGS
    assert by_folder.source == str(folder / "rows.jsonl")


def test_the_last_step_is_taken_unless_one_is_named_and_other_sets_are_left_alone(tmp_path):
    other = [row | {"set": "retain", "id": f"retain/{row['id']}", "perturbed_nll": []} for row in sga_rows(3, seed=9)]
    rows = sga_rows(4, seed=1, step=0) + other + sga_rows(4, seed=2, step=40) + sga_rows(4, seed=3, step=8)
    folder = write_run(tmp_path / "run", rows)
    assert read_retain_reference(folder).right_nll == pytest.approx(losses(4, seed=2)[1])
    assert read_retain_reference(folder, step=8).right_nll == pytest.approx(losses(4, seed=3)[1])
    with pytest.raises(UserError, match=r"no rows of step 9; it has 0, 8, 10, 40"):
        read_retain_reference(folder, step=9)
    with pytest.raises(UserError, match=r"no row of the set 'forget' at step 10"):
        read_retain_reference(folder, step=10)


def test_the_answer_stands_in_where_there_is_no_paraphrase(tmp_path):
    rows = sga_rows(3)
    rows[1]["paraphrased_nll"] = None
    del rows[2]["paraphrased_nll"]
    answer, right, _ = losses(3)
    reference = read_retain_reference(write_run(tmp_path / "run", rows))
    assert reference.right_nll == pytest.approx([right[0], answer[1], answer[2]])


def test_our_own_rows_may_have_different_numbers_of_perturbed_answers(tmp_path):
    rows = sga_rows(2)
    rows[1]["perturbed_nll"] = [1.0]
    reference = read_retain_reference(write_run(tmp_path / "run", rows))
    assert reference.log_truth_ratio()[1] == pytest.approx(rows[1]["paraphrased_nll"] - 1.0)


def test_a_run_without_perturbed_answers_is_a_reference_for_aucs_alone(tmp_path):
    rows = [row | {"perturbed_nll": []} for row in sga_rows(3)]
    folder = write_run(tmp_path / "run", rows, metrics={"step": 10, "muse_news/mia/min_k": 0.43})
    reference = read_retain_reference(folder)
    assert reference.membership_auc == {"min_k": 0.43}
    with pytest.raises(UserError, match="no perturbed answers"):
        reference.log_truth_ratio()


def test_aucs_are_those_of_the_step_that_is_read(tmp_path):
    rows = sga_rows(3, step=0) + sga_rows(3, step=10)
    chosen = {"step": 0, "tofu/mia/min_k": 0.9, "tofu/mia/loss": 0.8, "tofu/model_utility": 0.5, "absent": {}}
    folder = write_run(tmp_path / "run", rows, metrics=chosen)
    assert read_retain_reference(folder).membership_auc is None
    assert read_retain_reference(folder, step=0).membership_auc == {"min_k": 0.9, "loss": 0.8}
    lines = [{"step": 0, "tofu/mia/min_k": 0.9}, {"step": 10, "tofu/mia/min_k": 0.6}]
    write(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert read_retain_reference(folder).membership_auc == {"min_k": 0.6}


def test_losses_of_holdout_records_come_from_our_own_runs_only(tmp_path):
    holdout = [{"step": 10, "set": "holdout", "id": f"holdout10/{index}", "avg_nll": 1.0 + index} for index in range(3)]
    earlier = [row | {"step": 0, "avg_nll": 9.0} for row in holdout]
    folder = write_run(tmp_path / "run", earlier + sga_rows(4) + holdout)
    reference = read_retain_reference(folder)
    assert reference.holdout_nll == {"holdout10/0": 1.0, "holdout10/1": 2.0, "holdout10/2": 3.0}
    assert reference.step == 10
    # it does not shrink with the forget records
    assert reference_for(reference, ids(2), SETTINGS).holdout_nll == reference.holdout_nll
    assert read_retain_reference(write_run(tmp_path / "without", sga_rows(4))).holdout_nll is None
    assert read_retain_reference(write(tmp_path / "log.json", open_unlearning_log(4))).holdout_nll is None
    holdout[1]["avg_nll"] = "low"
    with pytest.raises(UserError, match=r"rows\.jsonl:6: 'avg_nll' must be a finite number, got 'low'"):
        read_retain_reference(write_run(tmp_path / "bad", sga_rows(4) + holdout))


# What is refused


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


TOFU = "eval_log_forget.json"
OU_RIGHT = ["forget_Q_A_PARA_Prob", "value_by_index"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(tofu_log(3))[:-40], r"not JSON .*whole"),
        ("", "not JSON"),
        ([1, 2], "expected a JSON object, found list"),
        ({}, "nothing"),
        ({"accuracy": 1}, r"'accuracy'.*eval_log_aggregated"),
        (changed(tofu_log(3), [TOFU], None), "avg_gt_loss"),
        (changed(tofu_log(3), [TOFU, "average_perturb_loss"], KeyError), "average_perturb_loss"),
        (changed(tofu_log(3), [TOFU, "avg_paraphrased_loss"], {}), "one entry a row"),
        (changed(tofu_log(3), [TOFU, "avg_paraphrased_loss", "2"], KeyError), "2 paraphrased answers and 3 lists"),
        (changed(tofu_log(3), [TOFU, "avg_gt_loss", "2"], KeyError), "2 answers and 3"),
        (changed(tofu_log(3), [TOFU, "avg_paraphrased_loss", "1"], KeyError), "row 1 is missing among 2"),
        (changed(tofu_log(3), [TOFU, "avg_paraphrased_loss", "x"], 1.0), "row numbers, got 'x'"),
        (changed(tofu_log(3), [TOFU, "avg_paraphrased_loss", "1"], "high"), r"forget row 1 .*number, got 'high'"),
        (changed(tofu_log(3), [TOFU, "avg_paraphrased_loss", "1"], None), "got None"),
        (changed(tofu_log(3), [TOFU, "avg_paraphrased_loss", "1"], True), "got True"),
        (changed(tofu_log(3), [TOFU, "avg_paraphrased_loss", "1"], float("nan")), "finite number, got nan"),
        (changed(tofu_log(3), [TOFU, "avg_paraphrased_loss", "1"], 10**400), "finite number, got 1000"),
        (changed(tofu_log(3), [TOFU, "avg_paraphrased_loss", "1"], -2.0), "log-probability"),
        (changed(tofu_log(3), [TOFU, "average_perturb_loss", "1"], [1.0, 2.0]), "2 perturbed answers in forget row 1"),
        (changed(tofu_log(3), [TOFU, "average_perturb_loss", "1"], 1.0), "list of numbers, got 1.0"),
        (changed(tofu_log(3), [TOFU, "average_perturb_loss", "1"], [1, 2, 3, 4, "x"]), "entry 4"),
        (changed(open_unlearning_log(3), [*OU_RIGHT, "2"], KeyError), "2 paraphrased answers and 3 lists"),
        (changed(open_unlearning_log(3), [*OU_RIGHT, "1"], None), "value_by_index/1 has no 'avg_loss', got None"),
        (changed(open_unlearning_log(3), [*OU_RIGHT, "1"], {"prob": 0.1}), "has no 'avg_loss'"),
        (changed(open_unlearning_log(3), ["mia_min_k", "agg_value"], 1.5), r"mia_min_k/agg_value must be an AUC"),
        ({"forget_truth_ratio": 0.65, "model_utility": 0.8}, "TOFU_SUMMARY"),
        ({"forget_Q_A_PARA_Prob": {}}, "forget_Q_A_PERT_Prob is missing, and forget_truth_ratio too"),
        ({"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.0}}}}, "above 0, got 0.0"),
    ],
)
def test_a_foreign_log_that_is_not_whole_is_refused_with_the_place(tmp_path, content, message):
    path = write(tmp_path / "log.json", content)
    with pytest.raises(UserError, match=message) as error:
        read_retain_reference(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"avg_nll": "low"}, r"rows.jsonl:2: 'avg_nll' must be a finite number, got 'low'"),
        ({"avg_nll": None}, r"rows.jsonl:2: 'avg_nll'"),
        ({"paraphrased_nll": [1.0]}, r"rows.jsonl:2: 'paraphrased_nll'"),
        ({"perturbed_nll": [1.0, None]}, r"rows.jsonl:2: 'perturbed_nll', entry 1"),
        ({"perturbed_nll": 1.0}, r"rows.jsonl:2: 'perturbed_nll' must be a list"),
        ({"perturbed_nll": []}, r"'forget10/1' has an empty 'perturbed_nll'"),
        ({"id": 1}, r"rows.jsonl:2: needs 'step' .* 'set' and 'id'"),
        ({"id": "forget10/0"}, r"'forget10/0' occurs twice"),
        ({"step": "10"}, r"rows.jsonl:2: needs 'step'"),
        ({"set": None}, r"rows.jsonl:2: needs 'step' .* 'set' and 'id'"),
    ],
)
def test_a_malformed_row_of_ours_is_refused_with_its_line(tmp_path, change, message):
    rows = sga_rows(3)
    rows[1] |= change
    with pytest.raises(UserError, match=message):
        read_retain_reference(write_run(tmp_path / "run", rows))


def test_a_run_folder_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no rows in this folder"):
        read_retain_reference(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_retain_reference(tmp_path / "absent.json")
    folder = write_run(tmp_path / "run", sga_rows(3))
    text = (folder / "rows.jsonl").read_text(encoding="utf-8")
    write(folder / "rows.jsonl", text[:-30])
    with pytest.raises(UserError, match=r"rows\.jsonl:3: not JSON"):
        read_retain_reference(folder)
    write(folder / "rows.jsonl", "")
    with pytest.raises(UserError, match="holds no row"):
        read_retain_reference(folder)
    write(folder / "rows.jsonl", text)
    write(folder / "run.json", {"name": "retain"})
    with pytest.raises(UserError, match="'evaluation' must be an object of strings"):
        read_retain_reference(folder)
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json: no such file"):
        read_retain_reference(folder)


def test_a_run_without_forget_rows_and_a_step_of_a_foreign_log_are_refused(tmp_path):
    rows = [row | {"set": "retain"} for row in sga_rows(3)]
    with pytest.raises(UserError, match="no row of the set 'forget'"):
        read_retain_reference(write_run(tmp_path / "run", rows))
    with pytest.raises(UserError, match="step 5"):
        read_retain_reference(write(tmp_path / "log.json", tofu_log(3)), step=5)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "log.json"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="UTF-8"):
        read_retain_reference(path)


# Cutting and ordering


def test_our_rows_are_ordered_and_cut_by_id(tmp_path):
    rows = sga_rows(6)
    reference = read_retain_reference(
        write_run(tmp_path / "run", rows[::-1], metrics={"step": 10, "tofu/mia/loss": 0.4})
    )
    _, right, wrong = losses(6)
    wanted = ["forget10/4", "forget10/0", "forget10/2"]
    cut = reference_for(reference, wanted, SETTINGS)
    assert cut.forget_ids == tuple(wanted)
    assert cut.right_nll == pytest.approx([right[4], right[0], right[2]])
    assert cut.wrong_nll == tuple(tuple(wrong[row]) for row in (4, 0, 2))
    assert cut.answer_nll == pytest.approx([losses(6)[0][row] for row in (4, 0, 2)])
    # AUCs are of all six records
    assert cut.membership_auc is None
    assert "AUCs are of 6 forget records" in cut.notes[0]
    whole = reference_for(reference, ids(6), SETTINGS)
    assert (whole.membership_auc, whole.notes) == ({"loss": 0.4}, ())


def test_missing_ids_are_refused_by_name(tmp_path):
    reference = read_retain_reference(write_run(tmp_path / "run", sga_rows(3)))
    with pytest.raises(UserError, match=r"4 of 7 .*forget10/3, forget10/4, forget10/5, …"):
        reference_for(reference, ids(7), SETTINGS)
    with pytest.raises(UserError, match="no forget record"):
        reference_for(reference, [], SETTINGS)


def test_every_setting_that_both_state_must_agree(tmp_path):
    reference = read_retain_reference(write_run(tmp_path / "run", sga_rows(3)))
    here = SETTINGS | {"template": "llama2", "dtype": "bfloat16", "schema_version": "1"}
    with pytest.raises(UserError) as error:
        reference_for(reference, ids(3), here)
    for part in ("template is 'plain' there and 'llama2' here", "dtype is 'float32' there and 'bfloat16' here"):
        assert part in str(error.value)
    assert "schema_version" not in str(error.value)
    assert "forget_split" not in str(error.value)


@pytest.mark.parametrize("theirs", [{}, {"fluency_tokens": "48"}])
def test_nothing_of_a_reference_depends_on_the_tokens_of_fluency(tmp_path, theirs):
    reference = read_retain_reference(write_run(tmp_path / "run", sga_rows(3), SETTINGS | theirs))
    assert reference_for(reference, ids(3), SETTINGS | {"fluency_tokens": "64"}).notes == ()


def test_another_share_of_min_k_costs_that_auc_and_nothing_else(tmp_path):
    """The share decides nothing but Min-K %."""
    aucs = {"step": 10, "tofu/mia/min_k": 0.4, "tofu/mia/loss": 0.3}
    settings = SETTINGS | {"min_k_share": "0.2"}
    reference = read_retain_reference(write_run(tmp_path / "run", sga_rows(3), settings, metrics=aucs))
    here = reference_for(reference, ids(3), SETTINGS | {"min_k_share": "0.4"})
    assert here.membership_auc == {"loss": 0.3}
    assert here.notes == ("min_k_share is 0.2 in the reference and 0.4 here: the reference's AUC of min_k is not used",)
    same = reference_for(reference, ids(3), settings)
    assert (same.membership_auc, same.notes) == ({"min_k": 0.4, "loss": 0.3}, ())
    unknown = reference_for(reference, ids(3), SETTINGS)
    assert unknown.membership_auc == same.membership_auc
    del aucs["tofu/mia/loss"]
    alone = read_retain_reference(write_run(tmp_path / "run", sga_rows(3), settings, metrics=aucs))
    assert reference_for(alone, ids(3), SETTINGS | {"min_k_share": "0.4"}).membership_auc is None
    without = read_retain_reference(write_run(tmp_path / "other", sga_rows(3), settings))
    assert reference_for(without, ids(3), SETTINGS | {"min_k_share": "0.4"}).notes == ()
    with pytest.raises(UserError, match="template is 'plain' there and 'chat' here; evaluate"):
        reference_for(reference, ids(3), {"template": "chat", "min_k_share": "0.4"})


def test_first_rows_are_numbered_without_a_gap():
    assert are_first_rows(ids(12))
    assert are_first_rows(["0", "1"])
    assert not are_first_rows(ids(12)[::-1])
    assert not are_first_rows(ids(12)[::2])
    assert not are_first_rows(ids(12)[1:])


def test_what_a_log_does_not_state_is_unknown_and_noted(tmp_path):
    settings = {"template": "plain", "dtype": None}
    ours = reference_for(read_retain_reference(write_run(tmp_path / "run", sga_rows(3), settings)), ids(3), SETTINGS)
    assert ours.notes == ("the reference does not state benchmark, forget_split, dtype: not checked",)
    foreign = reference_for(read_retain_reference(write(tmp_path / "log.json", tofu_log(3))), ids(3), SETTINGS)
    assert foreign.notes == ("the reference does not state template, benchmark, forget_split, dtype: not checked",)
    assert reference_for(foreign, ids(3), {"dtype": None}).notes == foreign.notes


def test_a_foreign_log_of_300_rows_cuts_ours_to_300_with_a_note(tmp_path):
    reference = read_retain_reference(write(tmp_path / "log.json", tofu_log(300)))
    cut = reference_for(reference, ids(400), {})
    assert len(cut) == 300
    assert cut.notes == ("the reference has 300 rows: compared with the first 300 of 400 forget records only",)
    assert reference_for(reference, ids(300), {}).notes == ()


@pytest.mark.parametrize(("rows", "ours"), [(40, 400), (299, 400), (400, 40), (300, 200)])
def test_other_numbers_of_rows_are_another_split_and_refused(tmp_path, rows, ours):
    """The first 40 rows of forget10 are not forget01, and 200 rows of forget05 are not in the first 300 of forget10."""
    reference = read_retain_reference(write(tmp_path / "log.json", tofu_log(rows)))
    with pytest.raises(UserError, match=f"{rows} rows against our {ours}"):
        reference_for(reference, ids(ours), {})


def test_ready_made_ratios_can_be_cut_too(tmp_path):
    log = open_unlearning_log(300)
    del log["forget_Q_A_PARA_Prob"], log["mia_min_k"]
    cut = reference_for(read_retain_reference(write(tmp_path / "log.json", log)), ids(400), {})
    assert len(cut) == len(cut.log_truth_ratio()) == 300
    assert len(cut.notes) == 2


# Published numbers through the file formats


def test_tofus_forget_quality_from_two_aggregated_logs(tmp_path):
    content = golden_numbers("tofu_llama2_7b.json")
    paths = []
    for which in ("model_log", "reference_log"):
        forget = {name: indexed(column) for name, column in content[which]["forget"].items()}
        paths.append(write(tmp_path / f"{which}.json", {"eval_log.json": {}, "eval_log_forget.json": forget}))
    own, reference = (read_retain_reference(path) for path in paths)
    reference = reference_for(reference, ids(300), {})
    assert own.answer_nll is not None
    assert reference.answer_nll is not None
    quality = forget_quality(
        own.log_truth_ratio(), reference.log_truth_ratio(), own.answer_nll.mean(), reference.answer_nll.mean()
    )
    assert quality.p_value == pytest.approx(content["expected"]["Forget Quality"], rel=1e-9)
    assert quality.direction == "under-unlearned"


def test_open_unlearnings_log_with_and_without_its_losses(tmp_path):
    """nll below 16.2, so that its epsilon moves a ready-made ratio by at most 1e-3."""
    content = golden_numbers("open_unlearning_tiny_retain.json")
    log: dict[str, Any] = {}
    for name, column in content["per_sample"].items():
        metric, value = name.split("/")
        log[metric] = {
            "agg_value": content["components"][metric],
            "value_by_index": indexed([{value: entry} for entry in column]),
        }
    log |= {name: {"agg_value": value} for name, value in content["summary"].items() if name.startswith("mia_")}
    with_losses = read_retain_reference(write(tmp_path / "whole.json", log))
    assert with_losses.membership_auc == pytest.approx(
        {"loss": 0.5976375, "min_k": 0.51751875, "min_k_plus_plus": 0.50420625, "zlib": 0.40120625}
    )
    del log["forget_Q_A_PARA_Prob"]
    without = read_retain_reference(write(tmp_path / "part.json", log))
    assert len(with_losses) == len(without) == 400
    assert without.log_truth_ratio() == pytest.approx(with_losses.log_truth_ratio(), abs=1.1e-3)
    assert forget_quality(with_losses.log_truth_ratio(), without.log_truth_ratio()).ks_statistic < 0.01
