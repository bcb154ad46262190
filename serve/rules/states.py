"""What rules have said of conversations: the state of each session, known to a whole machine.

    rule with a `state` matches ──put──▶ table in shared memory ──of──▶ conditions on `state`, when
                                          of all replicas there         the session's next requests
                                                                        come, at whichever replica

A session is in the state "new" until a rule says otherwise. The table is a set-associative cache of
fixed size: a session has eight places, and where all are taken the longest unused of them goes.
Names are not in it, only their hashes. Reading takes no lock: who reads a record that is just being
written sees by its check that it is none. Writing takes one if it is free at once; two replicas
that write the same place in the same microsecond are then the worst that can happen.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

NEW = "new"
RECORD = struct.Struct("<QQqQ")  # session, state, when last used, check of these
WAYS, BUCKETS = 8, 16_384  # 131,072 sessions in 4 MB
BUCKET_BYTES = WAYS * RECORD.size
TABLE_BYTES = BUCKETS * BUCKET_BYTES
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where it is, what is mapped touches no disk
FRESH = 8  # a record is written again when so much of its time is over
CHECKED = 0x9E3779B97F4A7C15
WHOLE = (1 << 64) - 1


def shared_table(site: str) -> Path:
    """The file of a site's table on this machine, which ends with the machine."""
    folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    return folder / f"fairlead-{os.getuid()}-{_hash(site):016x}.sessions"


class SessionStates:
    """The states of sessions. Used from one thread, beside other processes.

    >>> states = SessionStates(["sensitive"], kept_s=60.0)
    >>> states.of("acme", "s-1", 0)
    'new'
    >>> states.put("acme", "s-1", "sensitive", 0)
    >>> states.of("acme", "s-1", 60_000), states.of("acme", "s-1", 200_000)
    ('sensitive', 'new')
    """

    def __init__(self, names: Iterable[str], kept_s: float, path: Path | None = None) -> None:
        """`names` are those that rules give. Without `path` no other process knows of it.

        Raises OSError.
        """
        self._kept_ms = kept_s * 1000.0
        self._name_of = {_hash(name): name for name in names}
        self._file = -1
        if path is not None:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            _check_is_ours(path, os.fstat(self._file))
            # Now, or never: a page that there is no room for later would end the process.
            os.posix_fallocate(self._file, 0, TABLE_BYTES)
        self._table = mmap.mmap(self._file, TABLE_BYTES)

    def of(self, tenant: str, session: str, now_ms: int) -> str:
        """The state that a session is in; "new" of none, and where it was silent for too long."""
        if not session:
            return NEW
        key = _hash(f"{tenant}\0{session}")
        for _, held, state, at_ms in self._records(key):
            if held == key and now_ms - at_ms <= self._kept_ms:
                if now_ms - at_ms > self._kept_ms / FRESH:
                    self._write(key, state, now_ms)
                return self._name_of.get(state, NEW)
        return NEW

    def put(self, tenant: str, session: str, state: str, now_ms: int) -> None:
        """Say which state a session is in from now on."""
        if session and self.of(tenant, session, now_ms) != state:
            self._write(_hash(f"{tenant}\0{session}"), _hash(state), now_ms)

    def _records(self, key: int) -> Iterator[tuple[int, int, int, int]]:
        """Where each sound record of a session's bucket is, and what it says."""
        start = key % BUCKETS * BUCKET_BYTES
        bucket = self._table[start : start + BUCKET_BYTES]
        for way, (held, state, at_ms, check) in enumerate(RECORD.iter_unpack(bucket)):
            if at_ms and check == _check(held, state, at_ms):
                yield start + way * RECORD.size, held, state, at_ms

    def _write(self, key: int, state: int, at_ms: int) -> None:
        locked = self._lock()
        try:
            found = list(self._records(key))
            mine = [at for at, held, _, _ in found if held == key]
            start = key % BUCKETS * BUCKET_BYTES
            taken = {at for at, *_ in found}
            free = [at for at in range(start, start + BUCKET_BYTES, RECORD.size) if at not in taken]
            oldest = min(found, key=lambda one: one[3], default=(start,))[0]
            record = key, state, max(1, at_ms), _check(key, state, max(1, at_ms))
            RECORD.pack_into(self._table, (mine or free or [oldest])[0], *record)
        finally:
            if locked:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        """Whether this process alone may write now: nobody waits for another one."""
        if self._file < 0:
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _check_is_ours(path: Path, found: os.stat_result) -> None:
    """Anybody may make files where shared memory is. Raises PermissionError."""
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"{path}: sessions' states would be in a file that others may write: owner "
            f"{found.st_uid}, mode {found.st_mode & 0o777:o}; remove it"
        )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _check(key: int, state: int, at_ms: int) -> int:
    return (key ^ (state * CHECKED) ^ (at_ms * 3 * CHECKED)) & WHOLE
