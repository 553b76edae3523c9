"""Kept answers: found again for the same content, never for another one, and never in the way."""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_LLAMA, TinyNetwork, all_rows, write_rows
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from sga.cli import UnlearningCLI, run_verb
from sga.errors import UserError
from sga.evaluation.cache import AnswerCache, model_key
from sga.evaluation.request_batches import GenerateJob, Job, ScoreJob
from sga.evaluation.requests import Answer, Generation, TokenScores

KEY = "0123456789abcdef" * 4

JOBS: list[Job] = [
    ScoreJob((1, 5, 6, 7, 2), 2, detail=True, ends=True, cut=False),
    ScoreJob((1, 5, 6, 8, 2), 2, detail=False, ends=True, cut=False),
    ScoreJob((1, 9, 2), 1, detail=True, ends=False, cut=True),
    GenerateJob((1, 5), 7, cut=False),
    GenerateJob((1, 5), 8, cut=False),
]


def invented(jobs: list[Job], seed: int = 0) -> dict[int, Answer]:
    rng = np.random.default_rng(seed)
    found: dict[int, Answer] = {}
    for index, job in enumerate(jobs):
        if isinstance(job, GenerateJob):
            found[index] = Generation(tuple(int(token) for token in rng.integers(3, 99, job.limit - 3)))
        else:
            count = len(job.ids) - job.prompt_length
            details = (rng.random(count) < 0.5, rng.normal(size=count), rng.random(count)) if job.detail else ()
            found[index] = TokenScores(-rng.random(count), *details)
    return found


def assert_same(found: Mapping[int, Answer], expected: Mapping[int, Answer]) -> None:
    """To the last bit."""
    assert found.keys() == expected.keys()
    for index, answer in expected.items():
        other = found[index]
        if isinstance(answer, Generation):
            assert other == answer
            continue
        assert isinstance(other, TokenScores)
        for name in ("log_probs", "hits", "means", "variances"):
            ours, theirs = getattr(other, name), getattr(answer, name)
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours, theirs)


# ---- the folder -----------------------------------------------------------------------------------------------------


def test_what_was_added_is_found_to_the_last_bit(tmp_path: Path) -> None:
    answers = invented(JOBS)
    assert AnswerCache(tmp_path, KEY).find(JOBS) == {}
    AnswerCache(tmp_path, KEY).add(JOBS, answers)
    assert_same(AnswerCache(tmp_path, KEY).find(JOBS), answers)
    order = [4, 2, 0, 3, 1]
    found = AnswerCache(tmp_path, KEY).find([JOBS[index] for index in order])
    assert_same(found, {place: answers[index] for place, index in enumerate(order)})
    assert AnswerCache(tmp_path, KEY[::-1]).find(JOBS) == {}, "another model"
    assert not [path for path in tmp_path.rglob(".*")], "no temporary file is left"


def test_other_tokens_another_prompt_length_or_limit_are_not_found(tmp_path: Path) -> None:
    store = AnswerCache(tmp_path, KEY)
    store.add(JOBS, invented(JOBS))
    score, generate = JOBS[0], JOBS[3]
    assert isinstance(score, ScoreJob) and isinstance(generate, GenerateJob)
    others = [replace(score, prompt_length=3), replace(score, ids=(1, 5, 6, 7, 3)), replace(score, ids=score.ids[:-1])]
    assert store.find([*others, replace(generate, limit=9), replace(generate, ids=(1, 6))]) == {}
    said = [replace(score, ends=False), replace(score, cut=True), replace(generate, cut=True)]
    for job in said:
        assert store.find([job]), "what is only said about an answer is not part of what it depends on"


def test_details_that_are_wanted_and_not_there_make_an_answer_absent(tmp_path: Path) -> None:
    """And an answer with details is found by whoever wants none, in whatever order the two were kept."""
    plain, detailed = JOBS[1], replace(JOBS[1], detail=True)  # type: ignore[type-var]
    few, many = invented([plain])[0], invented([detailed])[0]
    for first, second in (((plain, few), (detailed, many)), ((detailed, many), (plain, few))):
        shutil.rmtree(tmp_path)
        store = AnswerCache(tmp_path, KEY)
        store.add([first[0]], {0: first[1]})
        assert bool(store.find([detailed])) == (first[0] is detailed)
        assert store.find([plain]).keys() == {0}
        store.add([second[0]], {0: second[1]})
        assert_same(store.find([detailed]), {0: many})
        assert store.find([plain]).keys() == {0}


def test_nothing_to_keep_makes_no_file(tmp_path: Path) -> None:
    AnswerCache(tmp_path, KEY).add(JOBS, {})
    assert not list(tmp_path.rglob("*.npz"))


def test_files_hold_numbers_only_and_are_read_without_code(tmp_path: Path) -> None:
    AnswerCache(tmp_path, KEY).add(JOBS, invented(JOBS))
    [path] = tmp_path.rglob("*.npz")
    with np.load(path, allow_pickle=False) as file:
        kinds = {name: file[name].dtype.kind for name in file.files}
    assert {name for name, kind in kinds.items() if kind not in "bif"} == {"score_keys", "generation_keys"}  # hashes


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "renamed"])
def test_a_damaged_file_is_said_and_its_answers_are_computed_again(tmp_path: Path, damage: str) -> None:
    store, answers = AnswerCache(tmp_path, KEY), invented(JOBS)
    store.add(JOBS[:2], {0: answers[0], 1: answers[1]})
    [whole] = tmp_path.rglob("*.npz")
    store.add(JOBS, {3: answers[3]})
    content = whole.read_bytes()
    if damage == "flipped":
        rng = random.Random(0)
        for _ in range(200):
            broken = bytearray(content)
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
            whole.write_bytes(broken)
            with pytest.warns(UserWarning, match=r"\.npz: cannot be read .*computed again"):
                assert_same(store.find(JOBS), {3: answers[3]})
        return
    if damage == "renamed":
        whole = whole.rename(whole.with_name("copy.npz"))
    else:
        whole.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"not an archive"}[damage])
    with pytest.warns(UserWarning, match=r"\.npz: cannot be read .*computed again"):
        assert_same(store.find(JOBS), {3: answers[3]})
    store.add(JOBS, {0: answers[0]})
    with pytest.warns(UserWarning, match="cannot be read"):
        assert_same(store.find(JOBS), {0: answers[0], 3: answers[3]})


def test_a_file_of_another_form_is_left_alone(tmp_path: Path) -> None:
    store = AnswerCache(tmp_path, KEY)
    store.add(JOBS, {3: Generation((4, 5))})
    [path] = tmp_path.rglob("*.npz")
    np.savez(path.with_name("0000000000000000.npz"), something=np.arange(3))
    with pytest.warns(UserWarning, match="cannot be read"):
        assert_same(store.find(JOBS), {3: Generation((4, 5))})


def test_two_writers_do_not_get_in_each_other_s_way(tmp_path: Path) -> None:
    """Sixteen at once, whose answers overlap, while others read."""
    jobs: list[Job] = [GenerateJob((1, number), 9, cut=False) for number in range(40)]
    answers = invented(jobs)

    def work(number: int) -> None:
        store = AnswerCache(tmp_path, KEY)
        store.add(jobs, {index: answers[index] for index in range(2 * number, 2 * number + 10)})
        found = store.find(jobs)
        assert_same(found, {index: answers[index] for index in found})
        assert set(range(2 * number, 2 * number + 10)) <= found.keys()

    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(work, range(16)))
    assert_same(AnswerCache(tmp_path, KEY).find(jobs), answers)


# ---- the model's key ------------------------------------------------------------------------------------------------

SETTINGS: dict[str, str | None] = {"precision": "32-true", "device": "cpu", "revision": None}


def test_the_same_model_has_the_same_key(tiny_network: TinyNetwork) -> None:
    model = tiny_network.model(torch.float32)
    key = model_key(model, SETTINGS)
    assert len(key) == 64
    assert key == model_key(tiny_network.model(torch.float32), dict(reversed(SETTINGS.items())))
    model.config._name_or_path = model.name_or_path = "somewhere/else"
    assert key == model_key(model, SETTINGS), "where it was loaded from does not matter"
    model.train()
    assert key == model_key(model.eval(), SETTINGS)


def test_one_bit_of_any_parameter_is_another_model(tiny_network: TinyNetwork) -> None:
    keys = {model_key(tiny_network.model(torch.float32), SETTINGS)}
    names = [name for name, _ in tiny_network.model().named_parameters()]
    for name in names:
        model = tiny_network.model(torch.float32)
        model.get_parameter(name).data.view(torch.int32).view(-1)[-1] ^= 1
        keys.add(model_key(model, SETTINGS))
    assert len(keys) == len(names) + 1


def test_type_shape_name_buffers_configuration_and_settings_matter(tiny_network: TinyNetwork) -> None:
    def configured(**values: Any) -> PreTrainedModel:
        model = tiny_network.model(torch.float32)
        model.config.update(values)
        return model

    class Holder(nn.Module):
        def __init__(self, name: str, tensor: torch.Tensor, buffer: bool = False) -> None:
            super().__init__()
            if buffer:
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor))

    zeros = torch.zeros(4)
    found = [
        model_key(tiny_network.model(torch.float32), SETTINGS),
        model_key(tiny_network.model(torch.bfloat16), SETTINGS),
        model_key(configured(rms_norm_eps=1e-5), SETTINGS),
        model_key(configured(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}), SETTINGS),
        *(model_key(tiny_network.model(torch.float32), {**SETTINGS, name: "other"}) for name in SETTINGS),
        model_key(tiny_network.model(torch.float32), {**SETTINGS, "new": None}),
        model_key(Holder("a", zeros), SETTINGS),
        model_key(Holder("b", zeros), SETTINGS),
        model_key(Holder("a", zeros.reshape(2, 2)), SETTINGS),
        model_key(Holder("a", zeros + 1, buffer=True), SETTINGS),
        model_key(Holder("a", zeros.half().repeat(2)), SETTINGS),
        model_key(Holder("a", torch.empty(0)), SETTINGS),
    ]
    assert len(set(found)) == len(found)


# ---- whole evaluations ----------------------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of all forward passes of Llama models."""
    found: list[int] = []
    forward = LlamaForCausalLM.forward

    @functools.wraps(forward)  # whoever asks for the signature sees the original's
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(kwargs["input_ids"].numel())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    yield found


class Validation:
    """`sga validate` of one model into folders beside each other."""

    def __init__(self, root: Path, options: list[str], finished: Path | None = None) -> None:
        self.root, self.options, self.finished = root, options, finished

    def start(self) -> None:
        """What validating into the folder ``first`` leaves, copied from where that was done."""
        assert self.finished is not None
        shutil.copytree(self.finished, self.root, dirs_exist_ok=True)

    def __call__(self, name: str, *options: str) -> UnlearningCLI:
        return run_verb(["validate", *self.options, f"--run.folder={self.root / name}", *options])

    def metrics(self, name: str) -> dict[str, Any]:
        found = json.loads((self.root / name / "metrics.json").read_text(encoding="utf-8"))
        return {key: value for key, value in found.items() if key != "seconds"}

    def rows(self, name: str) -> list[dict[str, Any]]:
        return all_rows(self.root / name)

    def kept(self) -> list[Answer]:
        """Everything that is in the folder of kept answers."""
        found: list[Answer] = []
        for path in sorted(self.root.rglob("*.npz")):
            with np.load(path) as file:
                found += [TokenScores(np.zeros(length)) for length in file["score_lengths"]]
                found += [Generation((0,) * int(length)) for length in file["generation_lengths"]]
        return found


@pytest.fixture(scope="module")
def finished(own_options: list[str], own_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Validation:
    """With one finished evaluation, ``first``."""
    model = ["--model.language_model=sga.Pretrained"]
    options = [*own_options, *model, f"--model.language_model.name_or_path={own_target}"]
    validation = Validation(tmp_path_factory.mktemp("finished"), options)
    validation("first")
    return validation


@pytest.fixture
def validate(finished: Validation, tmp_path: Path) -> Validation:
    return Validation(tmp_path, finished.options, finished.root)


JOB_COUNT = 6 * 5 + 10 * 5 + 4 + 4 * 3 + 20
"""Five answers of each forget and retain question, holdout, three of general knowledge; 20 greedy answers."""


def test_a_second_evaluation_runs_nothing_and_gives_the_same_to_the_last_bit(
    validate: Validation, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    validate("first")
    assert passes and "already" not in capsys.readouterr().out
    assert len(validate.kept()) == JOB_COUNT
    passes.clear()
    validate("second")
    assert passes == []
    assert f"{JOB_COUNT} of {JOB_COUNT} answers of this model are in" in capsys.readouterr().out
    assert validate.metrics("second") == validate.metrics("first")
    assert validate.rows("second") == validate.rows("first")
    assert len(validate.kept()) == JOB_COUNT, "and nothing is kept twice"


def test_a_changed_metric_takes_the_kept_answers(validate: Validation, passes: list[int]) -> None:
    validate.start()
    validate("second", "--membership_inference.min_k_share=0.1", "--evaluation.resamples=50")
    assert passes == []
    first, second = validate.metrics("first"), validate.metrics("second")
    assert validate.rows("first")[0]["min_k"] != validate.rows("second")[0]["min_k"]
    assert first["own/forget/avg_nll"] == second["own/forget/avg_nll"]
    assert first["own/forget/avg_nll/ci_low"] != second["own/forget/avg_nll/ci_low"]


def test_what_a_changed_setting_changes_is_computed_again_and_nothing_else(
    validate: Validation, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    validate.start()
    validate("longer", "--model_utility.max_new_tokens=14")
    assert passes
    assert f"{JOB_COUNT - 20} of {JOB_COUNT} answers" in capsys.readouterr().out, "the greedy answers"
    template = ("--data.template=PlainTemplate", "--data.template.text=Q: {question} A: {answer}")
    validate("template", *template)
    assert "answers of this model" not in capsys.readouterr().out, "other tokens throughout"
    validate("alone", "--evaluation.answers=null", *template)
    assert validate.metrics("template") == validate.metrics("alone") != validate.metrics("first")


def test_what_moves_between_sets_is_found_with_its_details(
    own_root: Path, validate: Validation, passes: list[int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A question that was in the retain set and is the holdout set now: its answer is there, with details."""
    validate.start()
    data = tmp_path / "data"
    shutil.copytree(own_root, data)
    retain = (data / "retain.jsonl").read_text().splitlines()
    write_rows(data / "retain.jsonl", [json.loads(line) for line in retain[1:]])
    write_rows(data / "holdout.jsonl", [json.loads(retain[0])])
    validate("moved", f"--data.root={data}")
    asked = JOB_COUNT - 4 - 5 - 1 + 1  # four in the holdout set, five and a greedy one of that question, and it again
    assert f"{asked} of {asked} answers" in capsys.readouterr().out
    assert not passes
    validate("alone", f"--data.root={data}", "--evaluation.answers=null")
    found, expected = (
        {key: value for key, value in validate.metrics(name).items() if isinstance(value, float)}
        for name in ("moved", "alone")
    )
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)  # float32 in other batches


def test_other_weights_find_nothing(
    validate: Validation, own_reference: Path, capsys: pytest.CaptureFixture[str], passes: list[int]
) -> None:
    validate.start()
    validate("other", f"--model.language_model.name_or_path={own_reference}")
    assert passes
    assert "answers of this model" not in capsys.readouterr().out
    assert len(list((validate.root / ".answers").iterdir())) == 2


@pytest.mark.parametrize("option", ["--model.language_model.attention=eager", "--trainer.precision=bf16-mixed"])
def test_the_same_weights_run_otherwise_find_nothing(
    validate: Validation, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    validate.start()
    validate("other", "--model_utility.generate=false", option)
    assert "answers of this model" not in capsys.readouterr().out
    validate("again", "--model_utility.generate=false", option)
    assert f"{JOB_COUNT - 20} of {JOB_COUNT - 20} answers of this model" in capsys.readouterr().out


def test_without_a_folder_nothing_is_kept(validate: Validation, passes: list[int]) -> None:
    validate("first", "--evaluation.answers=null")
    ran = len(passes)
    assert {path.name for path in validate.root.iterdir()} == {"first"}
    validate("second", "--evaluation.answers=null")
    assert len(passes) == 2 * ran


def test_a_folder_of_one_s_own_is_taken(validate: Validation, passes: list[int]) -> None:
    own = f"--evaluation.answers={validate.root / 'deep' / 'answers'}"
    validate("first", own)
    passes.clear()
    validate("second", own)
    assert passes == []
    assert list((validate.root / "deep" / "answers").rglob("*.npz")) and not (validate.root / ".answers").exists()


def test_a_folder_that_cannot_be_one_is_refused_before_anything_runs(validate: Validation, passes: list[int]) -> None:
    (validate.root / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"--evaluation\.answers .*file"):
        validate("first", f"--evaluation.answers={validate.root / 'file'}")
    assert passes == []


def test_a_folder_that_becomes_unwritable_costs_a_warning_and_not_the_evaluation(
    validate: Validation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sga.evaluation.cache.write_bytes", full)
    with pytest.warns(UserWarning, match=r"answers are not kept.*No space left"):
        validate("first")
    monkeypatch.undo()
    assert not list(validate.root.rglob("*.npz"))
    assert validate.metrics("first")["own/model_utility"] > 0


def test_without_texts_no_generation_is_kept(validate: Validation, passes: list[int]) -> None:
    """Token ids are text to whoever has the tokenizer; numbers are kept as always."""
    validate("first", "--run.texts=false")
    assert len(validate.kept()) == JOB_COUNT - 20
    assert all(isinstance(answer, TokenScores) for answer in validate.kept())
    passes.clear()
    validate("second", "--run.texts=false")
    assert passes, "greedy answers are made again"
    assert len(validate.kept()) == JOB_COUNT - 20
    assert validate.metrics("second") == validate.metrics("first")


def test_a_damaged_file_costs_a_warning_and_a_computation(validate: Validation, passes: list[int]) -> None:
    validate.start()
    [path] = validate.root.rglob("*.npz")
    path.write_bytes(path.read_bytes()[:-100])
    passes.clear()
    with pytest.warns(UserWarning, match="computed again"):
        validate("second")
    assert passes
    assert validate.metrics("second") == validate.metrics("first")


def test_a_training_run_keeps_the_answers_of_its_start_only(
    unlearn_options: list[str], validate: Validation, passes: list[int], tmp_path: Path
) -> None:
    run_verb(["fit", *unlearn_options, f"--run.folder={tmp_path / 'run'}", "--export.enabled=false"])
    assert len(list((tmp_path / ".answers").iterdir())) == 1
    assert len(validate.kept()) == JOB_COUNT
    passes.clear()
    validate("start")
    assert passes == [], "the model that the run started from"
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["own/model_utility"] == validate.metrics("start")["own/model_utility"]


@pytest.mark.runs
def test_a_model_from_scratch_is_keyed_by_what_was_drawn(
    own_options: list[str], passes: list[int], tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        passes.clear()
        options = [*own_options, *SMALL_LLAMA, f"--seed_everything={seed}", f"--run.folder={tmp_path / name}"]
        run_verb(["validate", *options])
        assert bool(passes) == (name != "b")
