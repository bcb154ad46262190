"""What a replica has spent, where it outlives the replica: so what it had left can come back.

    decide ─▶ Ledger, a file in shared memory, locked while its process lives ─▶ answer
                 │ it dies: the kernel lets go of the lock
                 └──▶ Left, in another replica of the machine ─▶ telemetry ─▶ accounts

A lock that can be had is the kernel's word that nobody spends there any more, and the file has
every decision that was answered. So what is said of the dead is certain, as a silence never is.

A file that can't be written is removed: what it knew too little of is then never given back.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.shared_memory import hash_of, opened
from streams.telemetry.records import ENDED_MAX, EndedReplica
from streams.training.budgets import NO_ACCOUNT, Accounts

logger = logging.getLogger(__name__)

ENTRY = struct.Struct("<8sQ")  # the window, what was spent
MADE = b"fairlead" + bytes(8)  # a file begins with it once it is locked
SAID_MAX = 512  # windows of the dead in one record


class Ledger:
    """What one process has spent. Used from one thread."""

    def __init__(self, folder: Path, source: str) -> None:
        """The file is `folder` with `source` after it. Raises OSError, also if there is one."""
        self._path = ledger_of(folder, source)
        self._file = opened(self._path, make=True)
        self._let_go = weakref.finalize(self, os.close, self._file)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._write(0, MADE)  # from here on others may take it over, if they get the lock

    def note(self, place: int, window: str, spent: int) -> None:
        """Write what was spent in a window by now. A place is used by one window at a time."""
        self._write((1 + place) * ENTRY.size, ENTRY.pack(hash_of(window), spent))

    def close(self) -> None:
        """Let others take it over."""
        self._file = -1
        self._let_go()

    def _write(self, at: int, written: bytes) -> None:
        if self._file < 0:
            return
        try:
            done = os.pwrite(self._file, written, at)
        except OSError:
            done = 0
        if done < len(written):
            logger.warning("no shared memory: what is left of slices is lost if this replica dies")
            self._path.unlink(missing_ok=True)
            self.close()


@dataclass(frozen=True, slots=True)
class _Dead:
    """A process that has left something, and the lock by which it is ours to report."""

    source: str
    path: Path
    file: int
    spent: Mapping[bytes, int]  # by hashes of windows


class Left:
    """What processes of this machine that are dead have left of their slices."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dead: dict[str, _Dead] = {}

    def ended(self, windows: Sequence[str], accounts: Accounts) -> list[EndedReplica]:
        """What each of them had spent in windows, until the accounts know all of it."""
        for dead in [*self._dead.values()]:
            if all(dead.source in accounts.get(w, NO_ACCOUNT).ended for w in windows):
                dead.path.unlink(missing_ok=True)
                os.close(self._dead.pop(dead.source).file)
        most = min(ENDED_MAX - 1, max(1, SAID_MAX // max(1, len(windows))))  # beside this one
        for dead in _taken_over(self._folder, self._dead, most - len(self._dead)):
            self._dead[dead.source] = dead
        return [
            EndedReplica(
                source=dead.source, spent={w: dead.spent.get(hash_of(w), 0) for w in windows}
            )
            for dead in self._dead.values()
        ]

    def close(self) -> None:
        """Leave them to others."""
        while self._dead:
            os.close(self._dead.popitem()[1].file)


def ledger_of(folder: Path, source: str) -> Path:
    """Where a process has its own."""
    return folder.with_name(f"{folder.name}.{source}")


def _taken_over(folder: Path, known: Iterable[str], most: int) -> Iterator[_Dead]:
    """Ledgers of the dead that nobody has taken over yet."""
    for path in sorted(folder.parent.glob(f"{folder.name}.*")):
        source = path.suffix[1:]
        if most > 0 and source not in known and (dead := _if_dead(path, source)) is not None:
            most -= 1
            yield dead


def _if_dead(path: Path, source: str) -> _Dead | None:
    """A ledger with its lock; None where its process lives, or somebody else reports it."""
    try:
        file = opened(path, make=False)
    except OSError:  # somebody else's
        return None
    if file < 0:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.pread(file, os.fstat(file).st_size, 0)
    except OSError:
        held = b""
    if not held.startswith(MADE) or not path.exists():  # is just made, or was just settled
        os.close(file)
        return None
    whole = len(held) // ENTRY.size * ENTRY.size
    return _Dead(source, path, file, dict(ENTRY.iter_unpack(held[len(MADE) : whole])))
