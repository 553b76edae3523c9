"""Memory that a finished run still holds: it goes back to the operating system."""

from __future__ import annotations

import ctypes
import gc


def release_memory() -> None:
    """Frees objects that only refer to each other, and returns the freed memory to the operating system.

    Call it between two runs in one process. Trainer, module and optimiser of a finished run refer to each other, so
    that its weights and Adam's states live until Python happens to look for such cycles. And the C library of Linux
    (glibc) keeps the pages of freed blocks of up to 32 MiB, activations for instance, which count as resident memory.
    """
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library (macOS, Alpine, Windows) has none
        return
    trim(0)
