"""What a run folder says of the command that made it."""

from __future__ import annotations

import pytest

from sga.runs.provenance import command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--trainer.logger.init_args.api_key", "abc", "--seed", "1"],
            "sga fit --trainer.logger.init_args.api_key … --seed 1",
        ),
        (["--trainer.logger.api_key=abc"], "sga fit --trainer.logger.api_key=…"),
        (["--set", "trainer.logger.init_args.password=abc"], "sga fit --set trainer.logger.init_args.password=…"),
        (["--trainer.logger", '{"api_key": "abc", "x": 1}'], """sga fit --trainer.logger '{"api_key": …, "x": 1}'"""),
        (["--key-variable", "NAME", "--fluency.tokens=8"], "sga fit --key-variable NAME --fluency.tokens=8"),
        (["--model.loss.average", "token", "x"], "sga fit --model.loss.average token x"),
    ],
)
def test_keys_and_passwords_are_left_out(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/sga", "fit", *arguments])
    found = command()
    assert found is not None and "abc" not in found
    assert found.replace("'…'", "…").replace("=…'", "=…").replace("'--", "--").replace("'trainer", "trainer") == said
