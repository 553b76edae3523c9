"""One process at a time writes to a run folder: the lock, and what a second start is told.

The lock of ``runs/x`` is on the file ``runs/.x.lock``, beside the folder: a start that is refused leaves no folder, and
a folder that is taken away stays locked until its run has ended. The file names its holder. The operating system ends
the lock together with the process that holds it, also after SIGKILL; a file that is left then locks nothing.

Machines that share a file system keep each other out as far as its locks (flock) do:

* NFS does so by default. If a machine is gone, its locks are kept until the server gives up on it (NFS 4: 90 seconds
  unless it is set otherwise).
* Mounts that keep locks to themselves (NFS with ``nolock`` or ``local_lock``, Lustre with ``localflock``) keep out
  processes of the same machine only.
* Where there are no locks, or the lock's file cannot be written, there is a warning and no lock.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from sga.errors import UserError
from sga.files import read_json_object

PATIENCE = 1.0
"""Seconds before a start is refused: others hold the lock for a moment when they look whether a folder is free."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EROFS)


class LockedError(UserError):
    """Another process writes there.

    Attributes:
        held: Where, by whom and since when; the beginning of the message.
    """

    def __init__(self, held: str, option: str) -> None:
        super().__init__(f"{held}; wait for it, stop it, or choose another {option}")
        self.held = held


@contextmanager
def write_lock(path: Path, option: str = "--run.folder") -> Iterator[bool]:
    """Keeps other processes from writing to a folder or a file, which need not be there yet.

    Args:
        path: The folder or file.
        option: What the user gives it by.

    Yields:
        Whether there is a lock; False where the file system has none.

    Raises:
        LockedError: another process has the lock.
    """
    place = path.resolve()
    file = place.with_name(f".{place.name}.lock")
    made: list[Path] = []
    deadline = time.monotonic() + 2 * PATIENCE
    lock = FileLock(file, timeout=PATIENCE, on_acquired=_write_holder)
    try:
        try:
            while not lock.is_locked:
                made += [folder for folder in file.parents if not folder.exists()]
                try:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    lock.acquire()
                except (FileNotFoundError, FileExistsError):
                    if time.monotonic() > deadline or file.parent.is_file():
                        raise
                    continue  # whoever had the lock has just taken its empty folders away
        except Timeout:
            raise LockedError(f"{path} is being written by {_holder(file)}", option) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(f"{path} cannot be locked ({error.strerror}): start nothing else on it", stacklevel=3)
        yield lock.is_locked
    finally:
        if lock.is_locked:
            file.unlink(missing_ok=True)  # first: whoever waits for the old file finds that it is none any more
            lock.release()
        for folder in made:
            with suppress(OSError):  # something is in it
                folder.rmdir()


def _write_holder(descriptor: int) -> None:
    """Writes down this process in the lock's file."""
    now = datetime.now().astimezone().isoformat()
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": now}).encode())


def _holder(file: Path) -> str:
    """The process that holds a lock, in words."""
    try:
        holder = read_json_object(file)
        since = datetime.fromisoformat(holder["started"]).astimezone()
        return f"process {holder['pid']} on {holder['host']} since {since:%Y-%m-%d %H:%M}"
    except (OSError, ValueError, KeyError, TypeError):  # gone by now, or another program's
        return "another process"
