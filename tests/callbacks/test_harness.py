"""What the harness gives that is no number: absent with its reason, so that the results can be written."""

from __future__ import annotations

import json
import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import TinyNetwork

from sga.callbacks.harness import Harness
from sga.datamodule import EvaluationData
from sga.evaluation.evaluation import Evaluation
from sga.evaluation.requests import Answers


def test_a_standard_error_that_is_no_number_is_absent(
    monkeypatch: pytest.MonkeyPatch, tiny_network: TinyNetwork
) -> None:
    """As the harness gives it for a single item, after everything else has been evaluated."""
    results = {"boolq": {"alias": "boolq", "acc,none": 1.0, "acc_stderr,none": math.nan, "f1,strict": math.inf}}
    modules: dict[str, Any] = {
        name: ModuleType(name) for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface")
    }
    modules["lm_eval"].simple_evaluate = lambda **_: {"results": results}
    modules["lm_eval.models.huggingface"].HFLM = lambda **_: None
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    callback = Harness(["boolq"])
    callback._module = SimpleNamespace(model=None, data=SimpleNamespace(tokenizer=None))
    evaluation = Evaluation("book")
    callback.evaluate(EvaluationData("book", {}, {}, (), {}, tiny_network.encoder), Answers({}), evaluation)
    assert evaluation.metrics == {"harness/boolq/acc": 1.0}
    assert evaluation.absent == {
        "harness/boolq/acc_stderr": "not a finite number: nan",
        "harness/boolq/f1/strict": "not a finite number: inf",
    }
    json.dumps(evaluation.metrics, allow_nan=False)
