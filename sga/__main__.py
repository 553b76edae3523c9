"""The command line: `sga VERB …`, also `python -m sga VERB …`. Heavy imports happen inside the verbs."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

from sga import __version__

VERBS = {
    "fit": "train: unlearn, or make a target or retain model",
    "validate": "evaluate a Hugging Face folder or a checkpoint, without training",
    "test": "evaluate every row once after training",
    "predict": "write greedy answers as JSON Lines",
    "unlearn": "two files and a model: train, choose, export and measure, all in one",
    "attack": "what paraphrases, rounding, relearning or sampling bring back",
    "sweep": "many fits: a grid or a search, times seeds, with one table",
    "sequence": "unlearning requests one after the other, each from the last result",
    "data": "print what the model sees: tokens, answer tokens, groups",
    "normals": "retrieve, generate, check and show normal data",
    "plan": "memory, disk and time of a run, before anything is loaded",
    "rate": "what gradients say about the smoothing rate, before training",
    "score": "compute the metrics of a log: a run's, TOFU's or open-unlearning's",
    "compare": "say whether two evaluations of the same rows differ, or it is noise",
    "report": "draw runs as one self-contained HTML page",
    "ask": "what one or two models answer to a question, side by side",
    "methods": "the methods that there are, with paper and configuration",
    "config": "list and copy the configurations that come with the package",
    "demo": "do all of it on built-in data, with nothing to download",
}
"""Verbs with what they do. Each is a module of its name in `sga.commands`, but for those of Lightning."""

_HEADINGS = {"fit": "train and evaluate", "data": "look", "demo": "try it"}
"""Headings of the list, by the verb that follows them."""

_LIGHTNING = ("fit", "validate", "test", "predict")

_MENU = """\
Make a language model forget chosen data and keep everything else.

  sga demo                                      try it, nothing to download
  sga unlearn MODEL --forget FILE --retain FILE your own data in one command
  sga report RUN ...                            one HTML page of finished runs
  sga ask RUN "QUESTION"                        talk to the result
  sga attack RUN                                is it forgotten, or only hidden?

sga --help lists all verbs, sga VERB --help the options of one. With --verbose
you also see what libraries print.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code.

    The code is 0, 2 for wrong input, 1 for a run that failed, or 128 plus the number of a signal that ended it. Errors
    are messages of one line; with SGA_TRACEBACK=1 in the environment they are tracebacks. If the reader of the output
    has gone (``| head``), the program ends silently, as by SIGPIPE.
    """
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _has_no_reader(sys.stdout):
            raise
        # What is left in the buffer would be complained about when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _has_no_reader(stream: TextIO) -> bool:
    """True if a stream is a pipe without a reader; a broken pipe may also be one within the program."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no file behind it
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _main(arguments: Sequence[str] | None) -> int:
    arguments = _verbose(sys.argv[1:] if arguments is None else arguments)
    if not arguments:
        print(_MENU, end="")
        return 2
    if arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from sga.runs.provenance import commit

        print(f"sga {__version__}{f' ({known})' if (known := commit()) else ''}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in (*VERBS, _COMPLETION):
        meant = _MEANT.get(verb) or next(iter(difflib.get_close_matches(verb, VERBS, 1)), None)
        hint = f"; did you mean sga {meant}?" if meant else ";"
        print(f"sga: error: there is no verb {verb!r}{hint} choose from {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        return _run(verb, rest)
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader(sys.stdout):
            raise
        end = _end(error)
        if end is None or (os.environ.get("SGA_TRACEBACK") and not isinstance(error, SystemExit)):
            raise
        code, message = end
        print(f"sga: {message}", file=sys.stderr)
        return code


def _verbose(arguments: Sequence[str]) -> list[str]:
    """The arguments without ``--verbose``, which holds for this process and those that it starts.

    The ``--verbose true|false`` of Lightning's verbs is another option.
    """
    found = list(arguments)
    for place, word in enumerate(found):
        if word == "--verbose" and found[place + 1 : place + 2] not in (["true"], ["false"]):
            os.environ["SGA_VERBOSE"] = "1"
            del found[place]
            break
    return found


def _end(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message for what ended a verb; None for a defect, and for an exit with its own message."""
    from sga.errors import Interruption, StoppedError, UserError

    if isinstance(error, Interruption):
        return 128 + error.number, str(error)
    # Lightning turns an interrupt into an exit with code 1, and SIGTERM into one with code 0.
    ended = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(ended, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    if isinstance(error, SystemExit) and type(error).__name__ == "SIGTERMException":
        return 128 + signal.SIGTERM, "stopped by SIGTERM; a run goes on from its last checkpoint with --ckpt_path last"
    if isinstance(error, StoppedError):
        return 1, f"stopped: {error}"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = _wrapped(cause)
    if cause is not None:
        return 2, f"error: {cause}"
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return 1, f"stopped: {error}; {_REFUSALS[error.errno]}"
    return None


def _wrapped(error: BaseException) -> BaseException | None:
    """Cause of an exception, such as the one that a constructor raised under jsonargparse's.

    An exception that came up while another was handled is a defect of its own, unless its type only wraps others.
    """
    wrapper = f"{type(error).__module__.partition('.')[0]}.{type(error).__name__}" in _WRAPPERS
    return error.__cause__ or (error.__context__ if wrapper and not error.__suppress_context__ else None)


_MEANT = {
    "train": "fit",
    "finetune": "fit",
    "eval": "validate",
    "evaluate": "validate",
    "chat": "ask",
    "help": "--help",
}
"""Verbs by their names in other programs."""

_WRAPPERS = ("argparse.ArgumentError", "lightning.MisconfigurationException")

_FULL = "make room and go on (a run: with --ckpt_path last)"
_FILE = "a file stands where a folder is to be; choose another place"
_CLOSED = "choose a place where files can be written"
_REFUSALS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _CLOSED,
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.ENOTDIR: _FILE,
    errno.EEXIST: _FILE,
    errno.EISDIR: "a folder stands where a file is to be; choose another place",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EIO: "the disk fails; copy what is there",
    errno.EPIPE: "what read the output has gone",
}
"""Refusals of the operating system by error number, with their cures."""


def usage() -> str:
    """The list of verbs."""
    lines = ["usage: sga VERB [options]        (sga VERB --help lists a verb's options)"]
    for name, said in VERBS.items():
        lines += ["", _HEADINGS[name]] if name in _HEADINGS else []
        lines.append(f"  {'data show' if name == 'data' else name:<9}  {said}")
    return "\n".join(lines)


_COMPLETION = "--print-completion"


def _run(verb: str, arguments: Sequence[str]) -> int:
    if verb == _COMPLETION:
        from sga.commands.completion import completion_script

        print(completion_script(" ".join(arguments), VERBS))
        return 0
    module = importlib.import_module(f"sga.commands.{'fit' if verb in _LIGHTNING else verb}")
    code: int = module.main([verb, *arguments] if verb in _LIGHTNING else arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
