"""Lock by which only one process at a time writes to a run folder, and the message to a second one.

The lock of ``runs/x`` is on the file ``runs/.x.lock``, beside the folder, so that a refused start leaves no folder, and
a deleted folder stays locked until its run has ended. The file names the process that holds the lock. The operating
system releases the lock when that process ends, also after SIGKILL; a file left behind locks nothing.

Between machines on a shared file system the lock works as far as that file system's locks (flock) do:

* NFS shares locks by default. If a machine crashes, its locks last until the server gives up on it (NFS 4: 90 seconds
  by default).
* Mounts with local locks (NFS with ``nolock`` or ``local_lock``, Lustre with ``localflock``) keep out processes of the
  same machine only.
* Without locks, or if the lock's file cannot be written, there is a warning and no lock.
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
"""Seconds to wait before a start is refused: others hold the lock briefly while they check whether a folder is free."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EROFS)


class LockedError(UserError):
    """Error of a start while another process writes to the same folder or file.

    Attributes:
        held: Beginning of the message: what is locked, by which process and since when.
    """

    def __init__(self, held: str, option: str) -> None:
        super().__init__(f"{held}; wait for it, stop it, or choose another {option}")
        self.held = held


@contextmanager
def write_lock(path: Path, option: str = "--run.folder") -> Iterator[bool]:
    """Keeps other processes from writing to a folder or a file, which need not exist yet.

    Args:
        path: Path of the folder or file to lock.
        option: Command-line option that names it, for the message.

    Yields:
        True if the lock is held; False on a file system without locks.

    Raises:
        LockedError: another process holds the lock.
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
                    continue  # the previous holder has just removed its empty folders
        except Timeout:
            raise LockedError(f"{path} is being written by {_holder(file)}", option) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(f"{path} cannot be locked ({error.strerror}): start nothing else on it", stacklevel=3)
        yield lock.is_locked
    finally:
        if lock.is_locked:
            file.unlink(missing_ok=True)  # before the release, so that a waiting process sees that its file is gone
            lock.release()
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _write_holder(descriptor: int) -> None:
    """Writes id, host and start time of this process into the lock's file."""
    now = datetime.now().astimezone().isoformat()
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": now}).encode())


def _holder(file: Path) -> str:
    """Description of the process that holds a lock, for the message."""
    try:
        holder = read_json_object(file)
        since = datetime.fromisoformat(holder["started"]).astimezone()
        return f"process {holder['pid']} on {holder['host']} since {since:%Y-%m-%d %H:%M}"
    except (OSError, ValueError, KeyError, TypeError):  # the file is gone by now, or another program's
        return "another process"
