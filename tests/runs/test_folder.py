"""The one door to a run folder: what is written is read back, old folders are, damaged ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sga
from sga import RunFolder, load_run
from sga.cli import run_verb
from sga.errors import UserError
from sga.files import write_json, write_json_lines, write_text
from sga.likelihood.forward import sequence_nll
from sga.module import UnlearningModule

INFO = {
    "name": "mine",
    "role": "unlearn",
    "method": "GradientAscent",
    "parameters": {},
    "seed": 0,
    "group_size": 2,
    "benchmark": "own",
    "evaluation": {"benchmark": "own"},
}


def rows_at(step: int, count: int = 2) -> list[dict[str, Any]]:
    return [{"step": step, "set": "forget", "id": f"forget/{i}", "avg_nll": step + i / 4} for i in range(count)]


def point(step: int) -> dict[str, Any]:
    return {"step": step, "epoch": step / 2, "seconds": 1.0, "own/forget/avg_nll": step + 0.125}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with three evaluations, as a run writes it."""
    run = RunFolder(tmp_path / "run")
    run.write_info(INFO)
    run.write_config("seed_everything: 0\n")
    for step in (0, 2, 4):
        points = run.write_evaluation(point(step), rows_at(step))
    run.write_chosen({**points[-1], "absent": {}})
    return run.path


@pytest.fixture
def old(written: Path) -> Path:
    """The same folder as runs of before wrote it: the rows of all evaluations in one file."""
    write_json_lines(written / "rows.jsonl", [row for step in (0, 2, 4) for row in rows_at(step)])
    shutil.rmtree(written / "rows")
    return written


def test_what_is_written_is_read_back(written: Path) -> None:
    run = sga.load_run(written)
    assert run.info == INFO and run.config == {"seed_everything": 0}
    assert run.evaluations == [point(0), point(2), point(4)]
    assert run.chosen["step"] == run.chosen_step == 4
    assert run.row_steps == [0, 2, 4] and run.groups == []
    assert run.row_dicts(2) == rows_at(2) == run.row_dicts(2, "forget") and run.row_dicts(2, "retain") == []
    table = run.rows(4)
    assert list(table.columns) == ["step", "set", "id", "avg_nll"]
    assert table["avg_nll"].mean() == pytest.approx(4.125)
    assert sorted(path.name for path in (written / "rows").iterdir()) == [
        "000000.jsonl",
        "000002.jsonl",
        "000004.jsonl",
    ]


def test_old_folders_stay_readable(old: Path) -> None:
    run = load_run(old)
    assert run.row_steps == [0, 2, 4]
    assert [run.row_dicts(step) for step in run.row_steps] == [rows_at(step) for step in (0, 2, 4)]
    assert list(run.rows(2)["id"]) == ["forget/0", "forget/1"]


@pytest.mark.parametrize("kind", ["written", "old"])
def test_an_evaluation_that_is_made_again_replaces_its_own_and_later_ones(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    run = RunFolder(folder)
    assert len(run.evaluations) == 3
    before = (folder / "rows" / "000000.jsonl").stat().st_mtime_ns if kind == "written" else None
    assert run.write_evaluation({**point(2), "seconds": 9.0}, rows_at(2, 3)) == [point(0), {**point(2), "seconds": 9.0}]
    for reader in (run, RunFolder(folder)):
        assert [line["step"] for line in reader.evaluations] == reader.row_steps == [0, 2]
        assert reader.row_dicts(0) == rows_at(0) and reader.row_dicts(2) == rows_at(2, 3)
    assert not (folder / "rows.jsonl").exists()
    if before is not None:
        assert (folder / "rows" / "000000.jsonl").stat().st_mtime_ns == before, "others' rows are not written again"


def test_a_folder_that_is_not_whole_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such run folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no run\.json; name the run folders in it: .*run"):
        load_run(tmp_path)
    with pytest.raises(UserError, match=r"000003\.jsonl: no rows of step 3; it has 0, 2, 4"):
        load_run(written).rows(3)
    rows = (written / "rows" / "000002.jsonl").read_text()
    write_text(written / "rows" / "000002.jsonl", rows[:-9])
    with pytest.raises(UserError, match=r"000002\.jsonl:2: not JSON"):
        load_run(written).rows(2)
    write_json_lines(written / "rows" / "000002.jsonl", rows_at(4))
    with pytest.raises(UserError, match=r"000002\.jsonl: holds rows of step 4"):
        load_run(written).rows(2)
    (written / "rows" / "000002.jsonl").unlink()
    with pytest.raises(UserError, match=r"000002\.jsonl: no such file; the run folder is incomplete"):
        load_run(written)
    write_text(written / "config.yaml", "3\n")
    with pytest.raises(UserError, match="not a run's configuration"):
        _ = RunFolder(written).config
    write_json(written / "metrics.json", {"step": 4, "absent": []})
    with pytest.raises(UserError, match="'absent' must be an object"):
        load_run(written)
    (written / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"has not finished \(no metrics\.json; evaluated up to step 4\)"):
        load_run(written)


def test_a_repeated_row_is_refused(written: Path) -> None:
    write_json_lines(written / "rows" / "000002.jsonl", rows_at(2) + rows_at(2, 1))
    with pytest.raises(UserError, match=r"000002\.jsonl:3: 'forget/0' occurs twice in 'forget' at step 2"):
        load_run(written).row_dicts(2)


# ---- weights --------------------------------------------------------------------------------------------------------


def forget_nll(run: RunFolder, *arguments: str | Path) -> float:
    """Mean negative log-likelihood per token of the forget answers, computed by hand from texts of the rows."""
    model, tokenizer = run.load_model(*arguments)
    assert not model.training
    template = sga.PlainTemplate(**run.config["data"]["template"].get("init_args", {}))
    encoder = sga.Encoder(tokenizer, template, 512)
    rows = run.row_dicts(0, "forget")
    batch = sga.collate([[encoder.encode(row["question"], row["answer"])] for row in rows])
    with torch.no_grad():
        return float(sequence_nll(model, batch).mean())


def test_load_model_gives_the_weights_that_were_evaluated(
    unlearn_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    """By default the result; by name or path a checkpoint's. The metrics of the run say which is which."""
    folder = tmp_path / "run"
    run_verb(["fit", *unlearn_options, f"--run.folder={folder}", "--checkpoint.keep_epochs=true"])
    run = load_run(folder)
    first, *_, last = [line["own/forget/avg_nll"] for line in run.evaluations]
    assert abs(first - last) > 1e-3
    epoch = next(line for line in run.evaluations if line["step"])
    [saved] = folder.glob(f"checkpoints/epoch-*-step-{epoch['step']:06}.ckpt")
    assert forget_nll(run) == pytest.approx(last, rel=1e-5)
    assert forget_nll(run, "last") == pytest.approx(last, rel=1e-5)
    assert forget_nll(run, saved) == pytest.approx(epoch["own/forget/avg_nll"], rel=1e-5)
    shutil.rmtree(folder / "model")
    assert forget_nll(load_run(folder)) == pytest.approx(last, rel=1e-5), "without an export the last checkpoint"
    with pytest.raises(UserError, match=r"no such checkpoint as .*best\.ckpt"):
        run.load_model("best")
    config = (folder / "config.yaml").read_text()
    write_text(folder / "config.yaml", config.replace("sga.Pretrained", "sga.Nothing"))
    with pytest.raises(UserError, match=r"config\.yaml: model\.language_model: .*Nothing"):
        load_run(folder).load_model()
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="holds neither an exported model nor a checkpoint"):
        load_run(folder).load_model()


def test_a_tokenizer_that_was_trained_on_the_data_has_to_be_there(written: Path) -> None:
    described = {"class_path": "sga.SmallLlama", "init_args": {"hidden_size": 32, "layers": 1}}
    RunFolder(written).write_config(json.dumps({"model": {"language_model": described}}))
    with pytest.raises(UserError, match="its tokenizer was trained on the data and was not exported"):
        load_run(written).load_model()


def test_a_run_of_others_runs_no_code_unless_it_is_trusted(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a module that its configuration names nor what comes with a model."""
    (tmp_path / "of_others.py").write_text(
        "import pathlib, sga\n"
        "pathlib.Path(__file__).with_name('ran').touch()\n"
        "class Model(sga.Pretrained):\n"
        "    def tokenizer(self, texts): raise sga.UserError(f'trusted {self.trust_remote_code}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "code.Config"}, "model_type": "mine"}))
    (model / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    arguments = {"name_or_path": str(model), "trust_remote_code": True}
    for described in (
        {"class_path": "of_others.Model", "init_args": arguments},
        {"class_path": "sga.Pretrained", "init_args": arguments},
        "of_others.Model",
    ):
        RunFolder(written).write_config(json.dumps({"model": {"language_model": described}}))
        with pytest.raises(UserError, match=r"no class of this package|could be loaded"):
            load_run(written).load_model()
        assert not (tmp_path / "ran").exists()
    RunFolder(written).write_config(
        json.dumps({"model": {"language_model": {"class_path": "of_others.Model", "init_args": arguments}}})
    )
    with pytest.raises(UserError, match="trusted True"):
        load_run(written).load_model(trust_code=True)


def test_lightning_s_own_way_to_load_says_what_to_use_instead(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use sga\.load_run\(FOLDER\)\.load_model\(CHECKPOINT\)"):
        UnlearningModule.load_from_checkpoint(tmp_path / "last.ckpt")


def test_a_checkpoint_of_an_adapter_goes_onto_the_model_that_it_belongs_to(
    unlearn_options: list[str], own_target: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    folder = tmp_path / "run"
    lora = ["--model.language_model=sga.LoRA", f"--model.language_model.name_or_path={own_target}"]
    others = [option for option in unlearn_options if not option.startswith("--model.language_model")]
    run_verb(["fit", *others, *lora, f"--run.folder={folder}"])
    run = load_run(folder)
    first, *_, last = [line["own/forget/avg_nll"] for line in run.evaluations]
    assert abs(first - last) > 1e-3
    assert forget_nll(run) == pytest.approx(last, rel=1e-5), "merged"
    assert forget_nll(run, "last") == pytest.approx(last, rel=1e-5), "the adapter beside the model"
    other = tmp_path / "other"
    shutil.copytree(own_target, other)
    weights = load_file(other / "model" / "model.safetensors")
    save_file(
        {name: 1.01 * value for name, value in weights.items()}, other / "model" / "model.safetensors", {"format": "pt"}
    )
    run.write_config(run.config_path.read_text().replace(str(own_target), str(other)))
    with pytest.raises(UserError, match=r"last\.ckpt: made with another model beside its adapter"):
        run.load_model("last")
