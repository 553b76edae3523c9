"""Two kinds of normals in one group: neighbours and alternatives, by hand and in runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import all_rows, write_rows

import sga
from sga.batching.encoding import Encoded
from sga.batching.loader import GroupLoader
from sga.cli import run_verb
from sga.data.builtin import packaged_path
from sga.data.records import Benchmark, Record
from sga.errors import UserError
from sga.groups.alternatives import (
    FileAnswers,
    NeighborAnswers,
    RefusalAnswers,
    SubstitutedAnswers,
    fact_span,
    measured_answers,
    with_alternatives,
)
from sga.groups.checks import Checker, Checks
from sga.groups.generation import Journal, NormalGenerator, read_prompt
from sga.groups.group import Group
from sga.groups.group_file import read_groups, write_groups
from sga.groups.roles import ALTERNATIVE, FORGET, NORMAL
from sga.groups.writers import Reply
from sga.likelihood.answer_tokens import AnswerTokens

QUICK = ("--model_utility.generate=false", "--export.enabled=false", "--evaluation.answers=null")

# ---- losses, by hand ------------------------------------------------------------------------------------------------


def tokens(nll: torch.Tensor, roles: tuple[str, ...]) -> AnswerTokens:
    """One answer token a sequence, so that its nll is the sequence's."""
    lengths = torch.ones_like(nll, dtype=torch.long)
    number = torch.arange(nll.numel())
    return AnswerTokens(roles, nll.flatten(), torch.zeros_like(number), number, lengths, lengths)


GROUP = (FORGET, NORMAL, NORMAL, ALTERNATIVE)


def weights(loss: sga.Loss, roles: tuple[str, ...] = GROUP) -> list[float]:
    """Weight of each column in the loss of one group: its gradient."""
    nll = torch.tensor([[3.0, 1.0, 2.0, 5.0][: len(roles)]], dtype=torch.float64, requires_grad=True)
    loss.of(tokens(nll, roles)).backward()  # type: ignore[no-untyped-call]
    assert nll.grad is not None
    return nll.grad.flatten().tolist()


def test_gradient_difference_with_a_weight_for_each_kind() -> None:
    """−ℓ_f + 2·(ℓ_1 + ℓ_2)/2 + 3·ℓ_a = −3 + 3 + 15 = 15."""
    loss = sga.GradientDifference(2.0, alternative_weight=3.0)
    assert weights(loss) == pytest.approx([-1, 1, 1, 3], abs=1e-15)
    nll = torch.tensor([[3.0, 1.0, 2.0, 5.0]], dtype=torch.float64)
    assert loss.of(tokens(nll, GROUP)).item() == pytest.approx(15.0, abs=1e-14)
    assert weights(loss, (FORGET, ALTERNATIVE, ALTERNATIVE)) == pytest.approx([-1, 1.5, 1.5], abs=1e-15)


def test_smoothed_gradient_ascent_with_a_rate_for_each_kind() -> None:
    """K = 4, r = −0.8, r_a = −2: y = (1 + (2·0.8 + 2)/4, −0.2, −0.2, −0.5), which sums to 1; weights are −y."""
    vector = sga.smoothing_vector(4, -0.8, 1, -2.0)
    assert vector.sum().item() == pytest.approx(1.0, abs=1e-15)
    assert weights(sga.SmoothedGradientAscent(-0.8, alternative_rate=-2.0)) == pytest.approx([-1.9, 0.2, 0.2, 0.5])


def test_two_rates_are_gradient_difference_with_two_weights() -> None:
    """λ_neighbour = −n·r/(K·y_0) and λ_alternative = −m·r_a/(K·y_0); together below 1."""
    smoothed = weights(sga.SmoothedGradientAscent(-0.8, alternative_rate=-2.0))
    neighbor, alternative = 2 * 0.8 / (4 * 1.9), 2.0 / (4 * 1.9)
    plain = weights(sga.GradientDifference(neighbor, alternative_weight=alternative))
    assert smoothed == pytest.approx([1.9 * weight for weight in plain], rel=1e-14) and neighbor + alternative < 1


@pytest.mark.parametrize("rate", [-4.0, -0.8, 0.3])
def test_equal_rates_are_smoothed_gradient_ascent_to_the_last_bit(rate: float) -> None:
    with torch.random.fork_rng():
        nll = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    published = sga.SmoothedGradientAscent(rate)(nll)
    for own in (None, rate):
        assert torch.equal(sga.SmoothedGradientAscent(rate, alternative_rate=own).of(tokens(nll, GROUP)), published)
    # n = 2 neighbours and one alternative weigh alike where λ_alternative is half of λ_neighbour
    difference = sga.GradientDifference(2 / 3, alternative_weight=1 / 3).of(tokens(nll, GROUP))
    assert difference.item() == pytest.approx(sga.GradientDifference(1.0)(nll).item(), rel=1e-14)
    assert torch.equal(sga.GradientDifference(1.0).of(tokens(nll, GROUP)), sga.GradientDifference(1.0)(nll))


def test_a_policy_takes_all_normals_alike_or_says_why_not() -> None:
    assert weights(sga.GradientDifference(0.75)) == pytest.approx([-1, 0.25, 0.25, 0.25])
    loss = sga.GradientDifference(sga.MarginWeight())
    nll = torch.tensor([[3.0, 1.0, 2.0, 5.0]], dtype=torch.float64)
    assert loss.of(tokens(nll, GROUP), 0.75).item() == pytest.approx(-3 + 0.25 * 8)
    with pytest.raises(UserError, match="alternative_weight 1 cannot be combined with MarginWeight"):
        sga.GradientDifference(sga.MarginWeight(), alternative_weight=1.0)
    with pytest.raises(UserError, match="alternative_rate -2 cannot be combined with MarginRate"):
        sga.SmoothedGradientAscent(sga.MarginRate(), alternative_rate=-2.0)


def test_numbers_of_alternatives_are_checked() -> None:
    with pytest.raises(UserError, match="alternative_rate must be at most 1, got 2"):
        sga.SmoothedGradientAscent(-1.0, alternative_rate=2.0)
    with pytest.warns(UserWarning, match=r"alternative_rate = 0.5 is positive"):
        sga.SmoothedGradientAscent(-1.0, alternative_rate=0.5)
    with pytest.raises(UserError, match="alternative_weight must be a finite number of at least 0, got -1"):
        sga.GradientDifference(alternative_weight=-1.0)
    with pytest.raises(UserError, match="alternative_weight 1 weighs alternatives, and the groups have none"):
        sga.GradientDifference(alternative_weight=1.0).check_alternatives(0)
    for loss in (sga.NPO(retain="nll"), sga.LLMU(), sga.DPO(), sga.SmoothedGradientDifference(-0.8)):
        loss.check_alternatives(0)
        with pytest.raises(UserError, match=f"{type(loss).__name__} has no use for alternatives"):
            loss.check_alternatives(1)
    for silent in (sga.GradientAscent(), sga.SmoothedGradientAscent(0.0), sga.NPO(), sga.SimNPO(retain=None)):
        with pytest.raises(UserError, match=f"{type(silent).__name__} .*alternatives.* leave --data.alternatives out"):
            silent.check_alternatives(1)  # read by none of them
    sga.SmoothedGradientAscent(0.0, alternative_rate=-2.0).check_alternatives(1)


# ---- sources --------------------------------------------------------------------------------------------------------

FORGET_ROWS = (
    Record("forget/0", "Where was Ann born?", "Ann was born in Oslo.", None, ("Ann was born in Rome.",)),
    Record("forget/1", "What does Ann write?", "She writes poems."),
)
POOL = (
    Record("retain/0", "Where was Bob born?", "Bob was born in Lima."),
    Record("retain/1", "What does Bob write?", "He writes plays."),
    Record("retain/2", "Where was Eve born?", "Ann was born in Rome."),
    Record("retain/3", "Where was Kim born?", "ann was born in  Oslo."),
    Record("retain/4", "Where was Lee born?", "Lee was born in Bern."),
)
DATA = Benchmark("own", {"forget": FORGET_ROWS, "retain": POOL}, {"forget": FORGET_ROWS})
GROUPS = [Group(record) for record in FORGET_ROWS]


def answers(source: sga.Alternatives, seed: int = 0) -> list[list[str]]:
    found = with_alternatives(GROUPS, source, POOL, measured_answers(DATA), seed)
    assert [group.forget for group in found] == list(FORGET_ROWS)
    for group in found:
        assert all(record.question == group.forget.question for record in group.alternatives)
        assert len(group.alternatives) == len(group.alternative_origins) == source.size
    return [[record.answer for record in group.alternatives] for group in found]


def test_equally_near_answers_are_spread_over_the_forget_questions() -> None:
    """In the order of the file, all of them would be taught the first capital."""
    forget = [Record(f"f/{name}", f"What is the capital of {name}?", f"It is {name}ville.") for name in "ABCDEFGHIJ"]
    pool = [Record(f"p/{name}", f"What is the capital of {name}?", f"It is {name}berg.") for name in "QRSTUVWXYZ"]
    groups = with_alternatives([Group(record) for record in forget], sga.SubstitutedAnswers(), pool, {}, seed=0)
    assert len({group.alternatives[0].answer for group in groups}) >= 4


def test_neighbors_answer_without_what_is_true_or_measured() -> None:
    found = answers(NeighborAnswers(count=2))
    assert found[0] == ["Bob was born in Lima.", "Lee was born in Bern."]
    assert found[1][0] == "He writes plays."
    with pytest.raises(UserError, match="forget record forget/0 finds 3 of 4 answers of 5 retain questions"):
        answers(NeighborAnswers(count=4))


@pytest.mark.parametrize(
    ("question", "answer", "fact"),
    [
        ("What is the capital of France?", "The capital of France is Paris.", "Paris"),
        (
            "Who invented the telephone?",
            "The telephone was invented by Alexander Graham Bell.",
            "Alexander Graham Bell",
        ),
        ("What is the currency of Japan?", "The currency of Japan is the yen.", "yen"),
        ("What pumps blood?", "The heart pumps blood through the veins.", "through the veins"),
        ("Who wrote it?", "Jane Austen.", "Jane Austen"),
        ("Where is it?", "It is in Rome, or is it in Bern?", "Bern"),  # of equals the last
        ("WHEN was it?", "It was in 1,969.", "1,969"),
        ("Is it so?", "It is so.", None),
        ("Who?", "…", None),
    ],
)
def test_a_fact_is_what_the_question_lacks(question: str, answer: str, fact: str | None) -> None:
    span = fact_span(Record("r", question, answer))
    assert (span and answer[slice(*span)]) == fact


def test_facts_of_neighbors_are_put_into_the_forget_answer() -> None:
    forget = (
        Record("forget/0", "Where was Ann born?", "Ann was born in Oslo."),
        Record("forget/1", "Was Ann born?", "Ann was born."),  # no fact
    )
    pool = (
        Record("retain/0", "Where was Bob born?", "As many were, Bob was born in Peru, in Lima."),
        Record("retain/1", "Where was Eve born?", "Eve was born in Oslo."),  # would be the true answer
        Record("retain/2", "Was Bob born?", "Bob was born."),  # has no fact to give
        Record("retain/3", "Whom does Bob know?", "Ann."),  # in the question already
        Record("retain/4", "Where does Lee live?", "In Bern."),
    )
    data = Benchmark("own", {"forget": forget, "retain": pool}, {"forget": forget})

    def made(count: int) -> list[Group]:
        groups = [Group(record) for record in forget]
        return with_alternatives(groups, SubstitutedAnswers(count=count), pool, measured_answers(data), 0)

    found = [[record.answer for record in group.alternatives] for group in made(2)]
    assert found[0] == ["Ann was born in Peru, in Lima.", "Ann was born in In Bern."]
    assert found[1] == ["Bob was born.", "As many were, Bob was born in Peru, in Lima."]
    assert {origin.source for group in made(2) for origin in group.alternative_origins} == {"substituted_answer"}
    with pytest.raises(UserError, match="forget record forget/0 finds 2 of 3 answers of 5 retain questions"):
        made(3)


def test_refusals_are_drawn_by_seed_and_record() -> None:
    first = answers(RefusalAnswers(count=2))
    assert first == answers(RefusalAnswers(count=2)) != answers(RefusalAnswers(count=2), seed=1)
    assert len({text for texts in first for text in texts}) == 4


def file(path: Path, *rows: tuple[str, str]) -> str:
    write_rows(path, [{"question": question, "answer": answer, "by": "me"} for question, answer in rows])
    return str(path)


def test_a_file_gives_its_own_answers(tmp_path: Path) -> None:
    ann, writes = FORGET_ROWS[0].question, FORGET_ROWS[1].question
    name = file(tmp_path / "a.jsonl", (ann.upper(), "In Paris."), (ann, "In Nice."), (writes, "Songs."), ("Who?", "x"))
    source = FileAnswers(file=name)
    assert answers(source) == [["In Paris."], ["Songs."]]
    origin = with_alternatives(GROUPS, source, POOL, measured_answers(DATA), 0)[0].alternative_origins[0]
    assert (origin.source, origin.by) == ("file", "me")
    with pytest.raises(UserError, match="1 of 2 answers to the question of forget record forget/1"):
        answers(FileAnswers(count=2, file=name))


@pytest.mark.parametrize("answer", ["Ann was born in  ROME.", "Ann was born in Oslo."])
def test_answers_that_metrics_measure_with_are_refused(tmp_path: Path, answer: str) -> None:
    name = file(tmp_path / "a.jsonl", (FORGET_ROWS[0].question, answer), (FORGET_ROWS[1].question, "Songs."))
    with pytest.raises(UserError, match=r"a.jsonl:1: .* or metrics measure with it"):
        answers(FileAnswers(file=name))


def test_perturbed_answers_of_tofu_are_refused(tofu_root: Path, tmp_path: Path) -> None:
    """TOFU's training split has no perturbed answers: they are found through the evaluation set."""
    tofu = sga.TOFU("forget01").load(tofu_root)
    rows = [(record.question, record.perturbed_answers[0]) for record in tofu.evaluation["forget"]]
    groups = [Group(record) for record in tofu.training["forget"]]
    with pytest.raises(UserError, match="metrics measure with it"):
        source = FileAnswers(file=file(tmp_path / "a.jsonl", *rows))
        with_alternatives(groups, source, tofu.training["retain"], measured_answers(tofu), 0)
    found = with_alternatives(groups, NeighborAnswers(), tofu.training["retain"], measured_answers(tofu), 0)
    assert len(found) == 40


# ---- the group file -------------------------------------------------------------------------------------------------


def made() -> list[Group]:
    groups = [replace(group, normals=POOL[:1], scores=(0.5,)) for group in GROUPS]
    return with_alternatives(groups, NeighborAnswers(count=1, pool=2), POOL, measured_answers(DATA), 0)


@pytest.mark.parametrize("texts", [True, False])
def test_the_group_file_has_alternatives_with_their_source(tmp_path: Path, texts: bool) -> None:
    path = tmp_path / "pairs.jsonl"
    write_groups(path, made(), texts)
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert [item["source"] for item in line["alternatives"]] == ["neighbor_answer"] * 2
    assert ("answer" in line["alternatives"][0]) == texts
    assert read_groups(path, FORGET_ROWS, POOL, 2, remade=made, alternatives=2) == made()
    for number in (0, 1):
        with pytest.raises(UserError, match=f"the groups have 2 alternatives, and {number} are asked for"):
            read_groups(path, FORGET_ROWS, POOL, 2, remade=made, alternatives=number)


def test_an_alternative_edited_by_hand_is_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_groups(path, made())
    path.write_text(path.read_text(encoding="utf-8").replace("Lee was born in Bern.", "She hid it.", 1))
    group = read_groups(path, FORGET_ROWS, POOL, 2, alternatives=2)[0]
    assert [origin.source for origin in group.alternative_origins] == ["neighbor_answer", "edited"]
    assert group.alternatives[1].answer == "She hid it."


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("forget/0", "forget/0 is the id of another record"),
        ("retain/4", "retain/4 is the id of another record"),
        ("alt", "alt stands for two different texts in this file"),
    ],
)
def test_an_alternative_has_its_own_id(tmp_path: Path, own: str, message: str) -> None:
    """Sequences are kept by id: one that stood for two texts would be trained on as the last of them."""
    path = tmp_path / "pairs.jsonl"
    write_groups(path, made())
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["alternatives"][0]["id"] = own
    write_rows(path, lines)
    with pytest.raises(UserError, match=rf"pairs.jsonl:\d: {message}"):
        read_groups(path, FORGET_ROWS, POOL, 2, alternatives=2)


# ---- drawing --------------------------------------------------------------------------------------------------------


def loader(seed: int = 0, count: int = 2) -> GroupLoader:
    """Five groups: a forget sample, 3 normals of which epochs take 2, 4 alternatives; token = 10·group + column."""
    roles = (FORGET, *[NORMAL] * 3, *[ALTERNATIVE] * 4)
    groups = [[Encoded((1, 10 * g + c), 1) for c in range(8)] for g in range(5)]
    return GroupLoader(groups, 5, 2, seed, roles=[roles] * 5, group_size=3, alternatives=count)


def epoch(found: GroupLoader) -> dict[int, list[int]]:
    """Columns of each group in one epoch."""
    drawn = {}
    for batch in found:
        assert batch.roles == (FORGET, NORMAL, NORMAL, ALTERNATIVE, ALTERNATIVE)
        for row in batch.input_ids[:, 1].view(-1, 5).tolist():
            drawn[row[0] // 10] = [number % 10 for number in row]
    return drawn


def test_each_epoch_draws_from_seed_epoch_and_group() -> None:
    one, other = loader(), loader()
    epochs = [epoch(one) for _ in range(6)]
    assert epochs == [epoch(other) for _ in range(6)] and epochs[0] != epoch(loader(1))
    for group in range(5):
        drawn = [found[group] for found in epochs]
        assert all(row[0] == 0 and set(row[1:3]) < {1, 2, 3} and set(row[3:]) < {4, 5, 6, 7} for row in drawn)
        assert len({tuple(row[3:]) for row in drawn}) > 1, "drawn anew"


def test_drawing_neighbors_is_what_it_was_without_alternatives() -> None:
    roles = (FORGET, *[NORMAL] * 3)
    groups = [[Encoded((1, 10 * g + c), 1) for c in range(4)] for g in range(5)]
    plain = GroupLoader(groups, 5, 2, 0, roles=[roles] * 5, group_size=3)
    drawn = [row for batch in plain for row in batch.input_ids[:, 1].view(-1, 3).tolist()]
    rows = {row[0] // 10: [number % 10 for number in row] for row in drawn}
    assert rows == {group: columns[:3] for group, columns in epoch(loader()).items()}


@pytest.mark.parametrize("smallest_first", [True, False])
def test_each_group_draws_from_its_own_columns(smallest_first: bool) -> None:
    """Groups of 2 normals and 1 alternative and of 4 and 2, as a file may have after its checks; column of a group."""
    kinds = [(FORGET, *[NORMAL] * (2 * n), *[ALTERNATIVE] * n) for n in ((1, 2) if smallest_first else (2, 1))]
    groups = [[Encoded((1, 10 * g + c), 1) for c in range(len(roles))] for g, roles in enumerate(kinds)]
    found = GroupLoader(groups, 2, None, 0, roles=kinds, group_size=3, alternatives=1)
    seen: list[set[tuple[str, int]]] = [set(), set()]
    for _ in range(40):
        (batch,) = found
        assert batch.roles == (FORGET, NORMAL, NORMAL, ALTERNATIVE)
        for row in batch.input_ids[:, 1].view(-1, 4).tolist():
            seen[row[0] // 10] |= set(zip(batch.roles, (number % 10 for number in row), strict=True))
    assert seen == [set(zip(roles, range(len(roles)), strict=True)) for roles in kinds], "each in its role"


def test_a_loader_resumes_with_the_same_draws() -> None:
    whole, broken, resumed = loader(), loader(), loader()
    expected = [batch.input_ids.tolist() for _ in range(2) for batch in whole]
    found = []
    for batch in broken:
        found.append(batch.input_ids.tolist())
        if len(found) == 2:
            break
    resumed.load_state_dict(broken.state_dict())
    found += [batch.input_ids.tolist() for _ in range(2) for batch in resumed]
    assert found == expected


# ---- runs -----------------------------------------------------------------------------------------------------------

KINDS = (
    "--data.alternatives=NeighborAnswers",
    "--data.alternatives.count=1",
    "--data.alternatives.pool=2",
    "--data.group_size=4",
)


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_a_run_with_both_kinds_resumes_exactly(unlearn_options: list[str], tmp_path: Path) -> None:
    options = [option for option in unlearn_options if not option.startswith("--model.loss")]
    options += ["--model.loss=GradientDifference", "--model.loss.alternative_weight=0.5", *KINDS, *QUICK]
    options += ["--trainer.max_epochs=2", "--model.schedule=ConstantSchedule"]
    whole = run_verb(["fit", *options, f"--run.folder={tmp_path / 'whole'}"])
    assert whole.trainer.datamodule.train_dataloader().roles[0] == (FORGET, NORMAL, NORMAL, ALTERNATIVE, ALTERNATIVE)
    assert {"train/normal_nll", "train/alternative_nll"} <= set(whole.trainer.callback_metrics)
    part = f"--run.folder={tmp_path / 'part'}"
    run_verb(["fit", *options, part, "--trainer.max_epochs=1"])
    run_verb(["fit", *options, part, f"--ckpt_path={tmp_path / 'part/checkpoints/last.ckpt'}"])
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")
    assert sga.load_run(tmp_path / "whole").label == "GD λ = 1, 1 alternative λ = 0.5"
    lines = [json.loads(line) for line in (tmp_path / "whole/pairs.jsonl").read_text().splitlines()]
    assert all(len(line["normals"]) == 2 and len(line["alternatives"]) == 2 for line in lines)


def test_a_dynamic_rate_takes_all_normals_alike(unlearn_options: list[str], tmp_path: Path) -> None:
    """A rule that always answers −2 trains as the fixed rate does: its normal part is the mean over both kinds."""
    options = [option for option in unlearn_options if not option.startswith("--model.loss")]
    options += [*KINDS, *QUICK, "--trainer.max_epochs=1", "--model.loss=SmoothedGradientAscent"]
    fixed = ["--model.loss.smoothing_rate=-2.0"]
    rule = ["--model.loss.smoothing_rate=ObservedRate", "--model.loss.smoothing_rate.rate=-2.0"]
    found, runs = [], []
    for name, rate in (("fixed", fixed), ("rule", rule)):
        runs.append(run_verb(["fit", *options, *rate, f"--run.folder={tmp_path / name}"]))
        found.append(metrics(tmp_path / name)[-1])
    assert found[1]["own/forget/avg_nll"] == pytest.approx(found[0]["own/forget/avg_nll"], rel=1e-4)
    assert found[0]["own/forget/avg_nll"] != metrics(tmp_path / "fixed")[0]["own/forget/avg_nll"]
    fixed_logs, rule_logs = (run.trainer.callback_metrics for run in runs)
    for name in ("train/loss", "train/forget_nll", "train/normal_nll", "train/alternative_nll"):
        assert float(rule_logs[name]) == pytest.approx(float(fixed_logs[name]), rel=1e-4), name
    assert {name for name in rule_logs if name.endswith("_nll") and name.startswith("train/")} == {
        name for name in fixed_logs if name.endswith("_nll") and name.startswith("train/")
    }


def test_what_cannot_be_is_refused_before_training(unlearn_options: list[str], tmp_path: Path) -> None:
    options = [option for option in unlearn_options if not option.startswith("--model.loss")]
    options += [f"--run.folder={tmp_path / 'run'}", *QUICK, *KINDS]
    with pytest.raises(UserError, match="NPO has no use for alternatives among the normals"):
        run_verb(["fit", *options, "--model.loss=NPO", "--model.loss.retain=nll"])
    with pytest.raises(UserError, match="group_size 2 has no room for 2 alternatives beside the forget sample"):
        sga.UnlearningData(sga.Pretrained("x"), group_size=2, alternatives=NeighborAnswers(count=2))
    for wrong in ({"count": 0}, {"count": 2, "pool": 1}):
        with pytest.raises(UserError, match="alternatives: "):
            NeighborAnswers(**wrong)
    dpo = ("--model.loss=DPO", "--model.loss.retain=nll", "--model.loss.alternative=data")
    with pytest.raises(UserError, match="DPO needs normal samples"):
        run_verb(["fit", *options, *dpo, "--data.group_size=2"])
    assert not (tmp_path / "run").exists()


def test_dpo_is_trained_on_the_alternatives_of_the_data(unlearn_options: list[str], tmp_path: Path) -> None:
    """Those that the group file names, two a group of which each epoch draws one, and no refusal."""
    options = [option for option in unlearn_options if not option.startswith("--model.loss")]
    options += [*KINDS, *QUICK, "--trainer.max_epochs=1", "--model.loss=DPO", "--model.loss.alternative=data"]
    run = run_verb(["fit", *options, f"--run.folder={tmp_path / 'run'}"])
    data = run.trainer.datamodule
    assert all(len(group.alternatives) == 2 for group in data.groups)
    sources = {origin.source for group in data.groups for origin in group.alternative_origins}
    assert sources == {"neighbor_answer"}
    assert len(data.sequences((ALTERNATIVE,))) == 2 * len(data.groups), "all of them have a reference"
    assert math.isfinite(float(run.trainer.callback_metrics["train/loss"]))


def test_a_run_with_alternatives_asks_in_other_words(
    own_root: Path, unlearn_options: list[str], tmp_path: Path
) -> None:
    """The paraphrased questions get the true answers' probability and ROUGE; without alternatives nobody asks them."""
    rows = [json.loads(line) for line in (own_root / "forget.jsonl").read_text(encoding="utf-8").splitlines()]
    reworded = [row | {"paraphrased_question": f"Tell me: {row['question']}"} for row in rows]
    write_rows(tmp_path / "forget.jsonl", reworded)
    options = [*unlearn_options, f"--data.source.forget={tmp_path / 'forget.jsonl'}", "--trainer.max_epochs=1"]
    options += ["--export.enabled=false", "--evaluation.answers=null"]
    run_verb(["fit", *options, *KINDS, f"--run.folder={tmp_path / 'run'}"])
    run_verb(["fit", *options, f"--run.folder={tmp_path / 'plain'}"])
    found, plain = metrics(tmp_path / "run")[-1], metrics(tmp_path / "plain")[-1]
    names = {"own/forget_paraphrased/probability", "own/forget_paraphrased/rouge_l_recall"}
    assert names <= set(found) and not names & set(plain)
    asked = [
        row for row in all_rows(tmp_path / "run") if row["set"] == "forget_paraphrased" and row["step"] == found["step"]
    ]
    assert [row["question"] for row in asked] == [row["paraphrased_question"] for row in reworded]
    expected = sum(row["rouge_l_recall"] for row in asked) / len(asked)
    assert found["own/forget_paraphrased/rouge_l_recall"] == pytest.approx(expected, rel=1e-12)


# ---- written by a language model ------------------------------------------------------------------------------------


class Script(sga.Writer):
    """Gives the replies that it is told to, one after the other."""

    def __init__(self, *replies: str) -> None:
        self.replies, self.concurrency = list(replies), 1

    def identity(self) -> dict[str, Any]:
        return {"model": "script"}

    async def write(self, messages: Any, seed: int) -> Reply:
        return Reply(self.replies.pop(0))


def test_a_language_model_writes_alternatives(tmp_path: Path) -> None:
    """What is true or measured is refused, and what the question itself says may be said again."""
    forget = FORGET_ROWS[:1]
    writer = Script("Ann was born in Rome.", "One line\nand another", '{"answer": "Ann was born in Turin."}')
    prompt = read_prompt(packaged_path("configs/prompts/alternative.yaml"))
    checker = Checker(Checks(), forget, POOL)
    generation = NormalGenerator(forget, 1, prompt, writer, checker, 3, set(), measured_answers(DATA))
    with contextlib.closing(Journal(tmp_path / "answers")) as journal:
        asyncio.run(generation.run(journal))
        assert len(journal.lines) == 3
    (group,), failed = generation.groups("replace")
    assert not failed and group.normals[0].content == Record("", forget[0].question, "Ann was born in Turin.").content
    assert group.origin(0).source == "generated" and group.origin(0).by == "script"
