"""The list of edits as a file: appended by whoever holds its lock, safely stored, never changed.

    lock ─▶ cut off a torn end ─▶ read, check, append ─▶ fsync ─▶ unlock

The lock is of the file system, so replicas on one host or one shared folder take turns, and a
replica that dies lets go of it. A reader needs no lock: a line counts once it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.settings.edits import Edit

OWNER_ALONE = 0o600


@contextmanager
def appending(path: Path) -> Iterator[int]:
    """Hold the list: the file to append to, cut behind its last whole line. Raises OSError."""
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, OWNER_ALONE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # let go when the descriptor is closed
        if new:
            _store_name(path.parent)
        whole = path.read_bytes().rpartition(b"\n")
        os.ftruncate(descriptor, len(whole[0]) + len(whole[1]))
        yield descriptor
    finally:
        os.close(descriptor)


def append(descriptor: int, edit: Edit) -> None:
    """Add one edit; it is stored when this returns, and does not count if it raises OSError."""
    before = os.fstat(descriptor).st_size
    try:
        _write(descriptor, edit.line())
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _write(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]


def _store_name(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
