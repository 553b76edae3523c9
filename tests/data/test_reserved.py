"""Reserved rows: drawn from data and seed alone, and out of the reach of everything that unlearns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import all_rows

import sga
from sga.cli import run_verb
from sga.data.records import Benchmark, Record
from sga.data.reserved import RETAIN_UNSEEN, reserved_and_pool, with_reserved
from sga.errors import UserError
from sga.files import read_json_object, write_json
from sga.runs.folder import RunFolder
from sga.runs.restart import check_reserved_rows

QUICK = ("--model_utility.generate=false", "--export.enabled=false", "--evaluation.answers=null")


def benchmark(rows: int = 10) -> Benchmark:
    """Retain rows that stand in the pool and in the evaluation set under different ids, as TOFU's do."""
    pool = tuple(Record(f"retain90/{i}", f"Who is {i}?", f"Number {i}.") for i in range(rows))
    evaluated = tuple(replace(record, id=f"retain_perturbed/{i}") for i, record in enumerate(pool))
    return Benchmark("tofu", {"forget": (), "retain": pool}, {"retain": evaluated})


def ids(found: Benchmark) -> list[str]:
    return [record.id for record in found.evaluation[RETAIN_UNSEEN]]


def test_rows_follow_from_data_and_seed_and_leave_the_pool() -> None:
    found = with_reserved(benchmark(), 0.3, 7)
    assert len(ids(found)) == 3 and ids(found) == ids(with_reserved(benchmark(), 3, 7))
    assert ids(found) == sorted(ids(found), key=lambda name: int(name.split("/")[1])), "the data's order"
    assert len({tuple(ids(with_reserved(benchmark(), 3, seed))) for seed in range(8)}) > 4
    assert found.evaluation["retain"] == benchmark().evaluation["retain"], "published utility is over every row"
    reserved, pool = reserved_and_pool(found)
    assert {record.content for record in reserved} == {record.content for record in found.evaluation[RETAIN_UNSEEN]}
    assert len(pool) == 7 and not {record.content for record in pool} & {record.content for record in reserved}


def test_nothing_is_reserved_where_nothing_can_be() -> None:
    assert with_reserved(benchmark(), 0, 0).absent[RETAIN_UNSEEN] == "no retain row is reserved (--data.reserved 0)"
    with pytest.warns(UserWarning, match=r"0.2 of 4 retain questions is less than one; utility cannot be measured"):
        assert RETAIN_UNSEEN not in with_reserved(benchmark(4), 0.2, 0).evaluation
    with pytest.raises(UserError, match=r"--data.reserved 11: .* only 10 are in the retain pool"):
        with_reserved(benchmark(), 11, 0)
    texts = tuple(Record(str(i), "", f"text {i}") for i in range(10))
    found = with_reserved(Benchmark("own", {"forget": (), "retain": texts}, {"retain": texts}), 0.2, 0)
    assert found.absent[RETAIN_UNSEEN] == "plain text has no question to answer"


@pytest.mark.parametrize("amount", [-0.1, 1.5, float("nan"), float("inf")])
def test_an_amount_that_is_neither_share_nor_number_is_refused(amount: float) -> None:
    with pytest.raises(UserError, match="reserved must be a share"):
        sga.UnlearningData(sga.Pretrained("x"), reserved=amount)


def test_of_tofu_a_fifth_of_the_evaluated_rows_is_reserved(tofu_root: Path) -> None:
    found = with_reserved(sga.TOFU("forget10").load(tofu_root), 0.2, 0)
    reserved, pool = reserved_and_pool(found)
    assert len(found.evaluation[RETAIN_UNSEEN]) == len(reserved) == 80 and len(pool) == 3520
    assert len(found.evaluation["retain"]) == 400


def reserved_of(run: Path) -> set[str]:
    return set(read_json_object(run / "run.json")["reserved"])


@pytest.mark.parametrize("loss", ["SmoothedGradientAscent", "SmoothedGradientDifference", "LLMU"])
def test_no_sampler_draws_a_reserved_row(loss: str, unlearn_options: list[str], tmp_path: Path) -> None:
    """The same rows for every method; one that draws every retain row that is left draws none of them."""
    options = [option for option in unlearn_options if not option.startswith("--model.loss")]
    options += [f"--model.loss={loss}", "--trainer.max_epochs=1", f"--run.folder={tmp_path}", *QUICK]
    if loss == "SmoothedGradientDifference":
        options.append("--model.loss.retain_samples=5")
    trainer = run_verb(["fit", *options]).trainer
    data = trainer.datamodule
    reserved = reserved_of(tmp_path)
    assert len(reserved) == 2 and {record.id for record in reserved_and_pool(data.benchmark)[0]} == reserved
    drawn = {record.id for group in data.groups for record in (*group.normals, *group.retain)}
    contents = {record.answer for group in data.groups for record in group.alternatives}
    assert drawn and not drawn & reserved
    assert not contents & {record.answer for record in data.benchmark.evaluation[RETAIN_UNSEEN]}
    if loss == "SmoothedGradientDifference":
        assert len(drawn) == 8, "all that are left"
    others = {row["id"] for row in all_rows(tmp_path) if row["set"] == RETAIN_UNSEEN}
    assert others == reserved


def test_utility_on_reserved_rows_is_that_of_their_rows(unlearn_options: list[str], tmp_path: Path) -> None:
    run = run_verb(["fit", *unlearn_options, "--trainer.max_epochs=1", f"--run.folder={tmp_path}", QUICK[2]])
    metrics = read_json_object(tmp_path / "metrics.json")
    reserved = reserved_of(tmp_path)
    last = run.trainer.global_step
    rows = [row for row in all_rows(tmp_path) if row["step"] == last]
    of_retain = [row for row in rows if row["set"] == "retain" and row["id"] in reserved]
    for name in ("probability", "rouge_l_recall"):
        expected = sum(row[name] for row in of_retain) / len(reserved)
        assert metrics[f"own/{RETAIN_UNSEEN}/{name}"] == pytest.approx(expected, rel=1e-12)
    sets = (RETAIN_UNSEEN, "real_authors", "world_facts")
    parts = [metrics[f"own/{s}/{part}"] for s in sets for part in ("probability", "rouge_l_recall", "truth_ratio")]
    expected = 9 / sum(1 / part for part in parts) if min(parts) > 0 else 0.0
    assert metrics["own/model_utility_unseen"] == pytest.approx(expected, rel=1e-12)
    assert metrics["own/model_utility"] != metrics["own/model_utility_unseen"]


def test_a_target_learns_all_rows_and_unlearning_by_tuning_leaves_them_out(
    own_target: Path, own_options: list[str], unlearn_options: list[str], tmp_path: Path
) -> None:
    assert len(reserved_of(own_target)) == 2 and read_json_object(own_target / "run.json")["retain_records"] == 10
    options = [option for option in unlearn_options if not option.startswith("--model.loss")]
    options += ["--model.loss=FineTuning", "--data.train_on=[retain]", "--data.group_size=1", *QUICK]
    for role, count in (("retain", 10), ("unlearn", 8)):
        folder = tmp_path / role
        run = run_verb(["fit", *options, "--trainer.max_epochs=1", f"--run.folder={folder}", f"--run.role={role}"])
        trained = {group.forget.id for group in run.trainer.datamodule.groups}
        assert len(trained) == count and (role == "retain" or not trained & reserved_of(folder))


def test_a_reserved_row_in_a_normal_data_file_is_refused(unlearn_options: list[str], tmp_path: Path) -> None:
    options = [*unlearn_options, "--trainer.max_epochs=1", *QUICK]
    run_verb(["fit", *options, f"--run.folder={tmp_path / 'all'}", "--data.reserved=0"])
    with pytest.raises(UserError, match=r"pairs.jsonl:\d+: normal .* is one of the reserved rows"):
        run_verb(["fit", *options, f"--run.folder={tmp_path / 'new'}", f"--data.pairs={tmp_path / 'all/pairs.jsonl'}"])


def test_a_run_resumes_with_the_rows_it_began_with(unlearn_options: list[str], tmp_path: Path) -> None:
    options = [*unlearn_options, "--data.group_size=2", *QUICK, f"--run.folder={tmp_path}"]
    run_verb(["fit", *options, "--trainer.max_epochs=1"])
    reserved, pairs = reserved_of(tmp_path), (tmp_path / "pairs.jsonl").read_bytes()
    last = f"--ckpt_path={tmp_path / 'checkpoints/last.ckpt'}"
    run_verb(["fit", *options, "--trainer.max_epochs=2", last])
    assert reserved_of(tmp_path) == reserved and (tmp_path / "pairs.jsonl").read_bytes() == pairs
    info = read_json_object(tmp_path / "run.json")
    write_json(tmp_path / "run.json", info | {"reserved": ["retain/none"]})  # as if the data had changed since
    with pytest.raises(UserError, match="had 1 rows reserved for measuring utility"):
        run_verb(["fit", *options, "--trainer.max_epochs=3", last])


def test_nor_does_a_checkpoint_go_on_with_others_in_another_folder(unlearn_options: list[str], tmp_path: Path) -> None:
    """What the weights have been trained on may not be measured as unseen; checkpoints of before reserved nothing."""
    options = [*unlearn_options, "--data.group_size=2", *QUICK]
    run_verb(["fit", *options, "--trainer.max_epochs=1", f"--run.folder={tmp_path / 'a'}"])
    last = tmp_path / "a/checkpoints/last.ckpt"
    there = [*options, "--trainer.max_epochs=2", f"--run.folder={tmp_path / 'b'}", f"--ckpt_path={last}"]
    with pytest.raises(UserError, match=r"2 rows reserved .* give 5 now, .*: go on with its configuration$"):
        run_verb(["fit", *there, "--data.reserved=0.5"])
    run_verb(["fit", *there])
    state = torch.load(last, weights_only=False)
    del state["UnlearningData"]["reserved"]
    torch.save(state, last)
    with pytest.raises(UserError, match="had 0 rows reserved"):
        run_verb(["fit", *there, f"--run.folder={tmp_path / 'c'}"])
    run_verb(["fit", *there, f"--run.folder={tmp_path / 'd'}", "--data.reserved=0"])


def test_a_run_of_before_there_were_reserved_rows_had_none(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    check_reserved_rows(RunFolder(tmp_path), with_reserved(benchmark(), 0, 0))
    with pytest.raises(UserError, match=r"had 0 rows reserved .* give 3"):
        check_reserved_rows(RunFolder(tmp_path), with_reserved(benchmark(), 3, 0))


def test_too_few_rows_for_the_groups_says_what_to_do() -> None:
    found = with_reserved(benchmark(4), 2, 0)
    reserved, pool = reserved_and_pool(found)
    with pytest.raises(UserError, match=r"has 2 beside 2 reserved rows; lower .* or reserve fewer \(--data.reserved\)"):
        sga.make_groups([Record("f", "Q?", "A")], pool, 4, sga.RandomNormals(), 0, reserved=reserved)
