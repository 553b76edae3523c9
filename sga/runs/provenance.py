"""Provenance of a run: the commit of this package, and the command line."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import sga

_SECRET = r"(?:api[_-]?key|token|password|secret)"
_OPTION_OF_SECRET = re.compile(rf"--\S*{_SECRET}", re.IGNORECASE)
_VALUE_OF_SECRET = re.compile(rf"""({_SECRET}["']?\s*[:=]\s*)[^,}}]+""", re.IGNORECASE)


def commit() -> str | None:
    """Commit of this package, with ``-dirty`` if files were changed since; None if unknown.

    A wheel and a source archive have it in a file that setup.py writes; in a checkout git is asked.
    """
    package = Path(sga.__file__).parent
    noted = package / "commit.txt"
    if noted.is_file():
        return noted.read_text(encoding="utf-8").strip() or None
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "-C", str(package.parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def command() -> str | None:
    """Command line of this process, as ``sga …``, without keys and passwords; None if another program runs this."""
    program = Path(sys.argv[0])
    if program.name != "sga" and not (program.name == "__main__.py" and program.parent.name == "sga"):
        return None
    words = ["sga"]
    for word in sys.argv[1:]:
        secret = _OPTION_OF_SECRET.fullmatch(words[-1])  # such as that of a logger; the card is for everybody
        words.append("…" if secret else _VALUE_OF_SECRET.sub(r"\1…", word))
    return shlex.join(words)
