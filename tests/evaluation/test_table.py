"""Tables are text, wherever they are made."""

from __future__ import annotations

import pytest

from sga.evaluation.table import fitted_table


def test_a_table_is_text_in_a_notebook_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [["metric", "value"], ["forget/nll", "1.5"]]
    expected = fitted_table(lines, 80)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert fitted_table(lines, 80) == expected and "forget/nll" in "\n".join(expected)
