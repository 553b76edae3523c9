"""`python -m sga.experiments.fit VERB OPTIONS`: `sga VERB OPTIONS` that ends with the process that started it.

Without this, the run of a killed command would continue by itself while the next command starts the same run. A command
that is stopped asks its runs to end, so that they write a checkpoint first.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def end_with_parent() -> None:
    """Ends this process at once when its standard input, a pipe that the parent holds open, is closed.

    A message from the parent counts as SIGTERM, unless a signal to both processes has arrived before: `SignalWatch`,
    which restores both handlers at the first signal, would take it for the second one, which ends a run at once.
    """

    def watch() -> None:
        while os.read(0, 1024):
            if signal.getsignal(signal.SIGINT) is not signal.SIG_DFL:
                os.kill(os.getpid(), signal.SIGTERM)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with parent").start()


if __name__ == "__main__":
    end_with_parent()
    sys.argv = ["sga", *sys.argv[1:]]
    runpy.run_module("sga", run_name="__main__", alter_sys=True)
