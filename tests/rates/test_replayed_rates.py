"""Numbers of one run in another one, and the file that they are in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from processes import EXACT, RECORD, rates

from sga.__main__ import main
from sga.cli import UnlearningCLI, run_verb
from sga.errors import UserError
from sga.losses.ascent import GradientDifference, SmoothedGradientAscent
from sga.rates.policies import RateState
from sga.rates.replayed import ReplayedRate, write_rates
from sga.runs.folder import RunFolder

VALUES = [0.5, 2.0, 1.0, 4.5]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rates.json"
    write_rates(path, "normal_weight", VALUES)
    return path


def taken(policy: ReplayedRate) -> list[float | None]:
    return [policy.decide(RateState(), step, 4, None).value for step in range(4)]


def test_the_same_the_mean_and_shuffled_numbers(file: Path) -> None:
    assert taken(ReplayedRate(str(file))) == VALUES
    assert taken(ReplayedRate(str(file.parent))) == VALUES, "a run folder stands for its file"
    assert taken(ReplayedRate(str(file), "mean")) == [2.0] * 4
    found = [tuple(ReplayedRate(str(file), "shuffled", seed).values) for seed in range(20)]
    assert all(sorted(order) == sorted(VALUES) for order in found)
    assert len(set(found)) > 5 and found[0] == tuple(ReplayedRate(str(file), "shuffled", 0).values)
    assert ReplayedRate(str(file), "shuffled").bounds == (0.5, 4.5)
    assert GradientDifference(ReplayedRate(str(file))).policy is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file"),
        ({"parameter": "normal_weight", "values": []}, "'values' must be numbers"),
        ({"parameter": "normal_weight", "values": [1.0, "2"]}, "'values' must be numbers"),
        ({"parameter": "lr", "values": [1.0]}, "'parameter' must be smoothing_rate or normal_weight"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: object, said: str) -> None:
    path = tmp_path / "rates.json"
    if content is not None:
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"rates.json: {said}"):
        GradientDifference(ReplayedRate(str(path)))


def test_settings_that_do_not_fit_are_refused(file: Path) -> None:
    with pytest.raises(UserError, match="order must be same, shuffled or mean"):
        ReplayedRate(str(file), "reversed")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="use it with GradientDifference"):
        SmoothedGradientAscent(ReplayedRate(str(file)))
    with pytest.raises(UserError, match="numbers of 4 optimiser steps, and this run takes 5"):
        ReplayedRate(str(file)).check_steps(5)


def weights(run: UnlearningCLI) -> torch.Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in run.model.parameters()])


def test_a_rule_s_numbers_replayed_are_the_rule_s_run(
    unlearn_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In float64 to 1e-9, and not if they are shuffled; a resumed run has the whole file; other steps are refused."""
    plain = [option for option in unlearn_options if not option.startswith("--model.loss")]
    plain += [*EXACT, RECORD, "--model_utility.generate=false", "--export.enabled=false"]
    plain += ["--model.loss=GradientDifference", "--model.schedule=ConstantSchedule"]

    def fit(name: str, *options: str) -> UnlearningCLI:
        return run_verb(["fit", *plain, f"--run.folder={tmp_path / name}", *options])

    rule = ("--model.loss.normal_weight=sga.MarginWeight", "--model.loss.normal_weight.margin=1")
    expected = weights(fit("rule", *rule))
    kept = json.loads(RunFolder(tmp_path / "rule").rates_path.read_text())
    assert kept == {"parameter": "normal_weight", "values": rates(tmp_path / "rule")}
    assert len(set(kept["values"])) == 4

    fit("part", *rule, "--trainer.max_epochs=1")
    assert len(json.loads(RunFolder(tmp_path / "part").rates_path.read_text())["values"]) == 2
    fit("part", *rule, "--ckpt_path=last")
    assert json.loads(RunFolder(tmp_path / "part").rates_path.read_text()) == kept

    replay = ("--model.loss.normal_weight=sga.ReplayedRate", f"--model.loss.normal_weight.file={tmp_path / 'rule'}")
    torch.testing.assert_close(weights(fit("again", *replay)), expected, rtol=0, atol=1e-9)
    shuffled = (*replay, "--model.loss.normal_weight.order=shuffled", "--model.loss.normal_weight.seed=2")
    found = weights(fit("shuffled", *shuffled))
    assert sorted(rates(tmp_path / "shuffled")) == sorted(kept["values"]) and (found - expected).abs().max() > 1e-6

    options = [*plain, *replay, f"--run.folder={tmp_path / 'longer'}", "--trainer.max_epochs=3"]
    assert main(["fit", *options]) == 2
    assert "numbers of 4 optimiser steps, and this run takes 6" in capsys.readouterr().err
    assert not (tmp_path / "longer" / "config.yaml").exists()
