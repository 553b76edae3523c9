"""The command line: `sga VERB …`, also `python -m sga VERB …`. Heavy imports happen inside the verbs."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence

from sga import __version__

USAGE = """\
usage: sga VERB [options]        (sga VERB --help lists a verb's options)

Make a causal language model forget chosen data and keep everything else,
by Smoothed Gradient Ascent and its controls.

train and evaluate (LightningCLI: --config FILE, and any setting as a flag)
  fit        train: unlearn, or make a target or retain model
  validate   evaluate a Hugging Face folder or a checkpoint, without training
  test       evaluate every row once after training
  predict    write greedy answers as JSON Lines
  sweep      many fits: a grid or a search, times seeds, with one table
  sequence   unlearning requests one after the other, each from the last result

look
  data show  print what the model sees: tokens, answer tokens, groups
  normals    retrieve, generate, check and show normal data
  plan       memory, disk and time of a run, before anything is loaded
  rate       what gradients say about the smoothing rate, before training
  score      compute the metrics of a log: a run's, TOFU's or open-unlearning's
  compare    say whether two evaluations of the same rows differ, or it is noise
  report     draw runs as one self-contained HTML page

try it
  demo       do all of it on built-in data, with nothing to download

  sga demo
  sga fit --config configs/tofu/phi-1.5-sga.yaml --data.root PATH/TO/TOFU
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code.

    0; 2 for what the user can mend; 1 for a run that failed; 128 plus its number for a signal that ended it. With a
    message of one line each; with SGA_TRACEBACK=1 in the environment the traceback is there instead.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"sga {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    run = _verbs().get(verb)
    if run is None:
        print(f"sga: error: there is no verb {verb!r}; choose from {', '.join(_verbs())}", file=sys.stderr)
        return 2
    try:
        return run(rest)
    except BaseException as error:
        end = _end(error)
        if end is None or (os.environ.get("SGA_TRACEBACK") and not isinstance(error, SystemExit)):
            raise
        code, message = end
        print(f"sga: {message}", file=sys.stderr)
        return code


def _end(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message of what ended a verb; None for a defect, and for an exit that has said all itself."""
    from sga.errors import Interruption, StoppedError, UserError

    if isinstance(error, Interruption):
        return 128 + error.number, str(error)
    # Lightning turns an interrupt into an exit with code 1, and SIGTERM into one with code 0.
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    if isinstance(error, SystemExit) and type(error).__name__ == "SIGTERMException":
        return 128 + signal.SIGTERM, "stopped by SIGTERM; a run goes on from its last checkpoint with --ckpt_path last"
    if isinstance(error, StoppedError):
        return 1, f"stopped: {error}"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__  # jsonargparse wraps what constructors raise
    if cause is not None:
        return 2, f"error: {cause}"
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return 1, f"stopped: {error}; {_REFUSALS[error.errno]}"
    return None


_FULL = "make room and go on (a run: with --ckpt_path last)"
_CLOSED = "choose a place where files can be written"
_REFUSALS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _CLOSED,
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.ENOTDIR: "a file stands where a folder is to be; choose another place",
    errno.EISDIR: "a folder stands where a file is to be; choose another place",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EIO: "the disk fails; copy what is there",
    errno.EPIPE: "what read the output has gone",
}
"""What an operating system may refuse whatever the program does, and what helps."""


def _verbs() -> dict[str, Callable[[Sequence[str]], int]]:
    lightning = {verb: _lightning(verb) for verb in ("fit", "validate", "test", "predict")}
    return {
        **lightning,
        "data": _data,
        "normals": _normals,
        "plan": _plan,
        "rate": _rate,
        "score": _score,
        "compare": _compare,
        "report": _report,
        "sweep": _sweep,
        "sequence": _sequence,
        "demo": _demo,
    }


def _lightning(verb: str) -> Callable[[Sequence[str]], int]:
    def run(arguments: Sequence[str]) -> int:
        from sga.cli import run_verb

        run_verb([verb, *arguments])
        return 0

    return run


def _data(arguments: Sequence[str]) -> int:
    from sga.show import main as show

    return show(arguments)


def _plan(arguments: Sequence[str]) -> int:
    from sga.plan.command import main as plan

    return plan(arguments)


def _rate(arguments: Sequence[str]) -> int:
    from sga.rate.command import main as rate

    return rate(arguments)


def _normals(arguments: Sequence[str]) -> int:
    from sga.normals.command import main as normals

    return normals(arguments)


def _score(arguments: Sequence[str]) -> int:
    from sga.score import main as score

    return score(arguments)


def _compare(arguments: Sequence[str]) -> int:
    from sga.compare import main as compare

    return compare(arguments)


def _report(arguments: Sequence[str]) -> int:
    from sga.report.command import main as report

    return report(arguments)


def _sweep(arguments: Sequence[str]) -> int:
    from sga.sweep.command import main as sweep

    return sweep(arguments)


def _sequence(arguments: Sequence[str]) -> int:
    from sga.sequence import main as sequence

    return sequence(arguments)


def _demo(arguments: Sequence[str]) -> int:
    from sga.demo import main as demo

    return demo(arguments)


if __name__ == "__main__":
    sys.exit(main())
