"""Memory of finished runs goes back to the system."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch

from sga.runs.memory import release_memory

STATUS = Path("/proc/self/status")


def resident() -> int:
    """Resident memory of this process in bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(not STATUS.exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="Linux with glibc")
def test_freed_blocks_below_a_used_one_go_back_to_the_system() -> None:
    """256 MiB in blocks that are too small for pages of their own; the last one holds the heap's end in its place."""
    release_memory()
    before = resident()
    blocks = [torch.ones(1 << 14) for _ in range(1 << 12)]  # 64 KiB each
    assert resident() - before > 200 << 20
    last = blocks.pop()
    blocks.clear()
    assert resident() - before > 200 << 20, "nothing to release: the C library has returned it by itself"
    release_memory()
    assert resident() - before < 50 << 20
    assert last.sum() == 1 << 14


def test_without_the_c_librarys_function_garbage_is_collected_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        """C library of another system."""

    class Garbage:
        gone = False

        def __del__(self) -> None:
            Garbage.gone = True

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    garbage = Garbage()
    garbage.itself = garbage  # type: ignore[attr-defined]
    del garbage
    release_memory()
    assert Garbage.gone
