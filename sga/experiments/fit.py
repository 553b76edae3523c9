"""`python -m sga.experiments.fit VERB OPTIONS`: `sga VERB OPTIONS` that ends with the process that started it.

Otherwise the run of a killed command would go on alone, beside the one that takes its place. A command that is stopped
asks it to end, so that it writes a checkpoint first.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def end_with_parent() -> None:
    """Ends this process at once when its standard input, a pipe that the parent holds open, is closed.

    What the parent writes there counts as SIGTERM, unless a signal that went to both has come before: `SignalWatch`,
    which gives both signals back at the first one, would take it for the second one, which ends a run at once.
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
