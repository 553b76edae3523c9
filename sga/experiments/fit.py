"""`python -m sga.experiments.fit VERB OPTIONS`: `sga VERB OPTIONS` that ends when what started it is gone.

Otherwise the run of a killed command would go on alone, beside the one that takes its place.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def end_with_parent() -> None:
    """Ends this process when its standard input, a pipe that the parent holds open, is closed."""

    def watch() -> None:
        while os.read(0, 1024):
            continue
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with parent").start()


if __name__ == "__main__":
    end_with_parent()
    sys.argv = ["sga", *sys.argv[1:]]
    runpy.run_module("sga", run_name="__main__", alter_sys=True)
