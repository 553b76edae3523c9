"""Hiding of library output that a user of the command line can do nothing about."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VARIABLE = "SGA_VERBOSE"
_PACKAGE = str(Path(__file__).parents[1])
_WARNINGS = (
    ".*LightningCLI's args parameter.*",
    ".*does not have many workers.*",
    ".*treespec.*",
    ".*`weights_only` was not set.*",
)


def hide_noise() -> None:
    """Hides progress bars of loading and writing weights, and information of Lightning and datasets.

    Bars of downloads stay, and so do warnings, each as one line. Verbs call this before they load a model;
    ``sga --verbose`` (SGA_VERBOSE=1 in the environment) shows everything.
    """
    if os.environ.get(_VARIABLE):
        return
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # HF_HUB_DISABLE_PROGRESS_BARS wins, as it should
        disable_progress_bar()  # type: ignore[no-untyped-call]
        enable_progress_bars()  # shows bars of downloads again, which the line before has hidden too
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    for name in ("", "lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:  # the filters of a logger do not see its children's records
            handler.addFilter(_is_of_use)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = _one_line


@contextmanager
def warnings_as_before() -> Iterator[None]:
    """Context, or decorator, at whose end warnings are shown as before; for functions that other programs call."""
    before = warnings.formatwarning, threading.excepthook
    try:
        with warnings.catch_warnings():
            yield
    finally:
        warnings.formatwarning, threading.excepthook = before


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {message}\n"


def _is_of_use(record: logging.LogRecord) -> bool:
    """True for warnings, and for messages of this package through Lightning's logger."""
    lightning = record.name.startswith("lightning") and not record.pathname.startswith(_PACKAGE)
    return not lightning or record.levelno > logging.INFO
