"""What a benchmark ran on and how fast that multiplies matrices: for results that can be compared later."""

from __future__ import annotations

import datetime
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import sga


def described(device: torch.device) -> dict[str, Any]:
    """Date, command, commit, device and versions."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": "python " + " ".join(_shown(part) for part in sys.argv),
        "commit": _commit(),
        "device": device_name(device),
        "versions": {
            "sga": sga.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def device_name(device: torch.device) -> str:
    """Of the GPU, or the number of threads on a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def wait_for(device: torch.device) -> None:
    """Until what was asked of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square matrix product, the median of nine."""
    size = 8192 if device.type == "cuda" else 1536
    one, two = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(12):
        wait_for(device)
        start = time.perf_counter()
        one @ two
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[3:])


def _shown(part: str) -> str:
    """An argument without this machine's folders."""
    return Path(part).name if Path(part).is_absolute() else part


def _commit() -> str | None:
    """Of the working tree, with a plus where files differ from it; None outside a repository."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
