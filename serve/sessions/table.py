"""A table of sessions that all processes of a machine read and write, without waiting for another.

    put ──pwrite──▶ file in shared memory, sparse: it takes what is used
                    ┌ bucket of a session ─────────────────────────────┐
    get ◀──pread─── │ 8 × (session, tenant, when last used, check, …)  │
                    └──────────────────────────────────────────────────┘

It is a set-associative cache of fixed size. A session has eight places; where all are taken, the
tenant that has most of them gives up the one of its own that is longest unused. So nobody can push
the sessions of others out, however many there are of its own.

Names are not in it, only their hashes. Reading takes no lock: who reads a record that is just being
written sees by its check that it is none. Writing takes one if it is free at once; two processes
that write the same place in the same microsecond are then the worst that can happen.

The file is read and written, not mapped: a page that there is no room for is then an error, where a
mapped one would end the process.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
import weakref
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from serve.shared_memory import folder, hash_of, opened

HEAD = struct.Struct("<8s8sq")  # session, tenant, when last used
CHECK_BYTES = 4  # a record ends with it
WAYS, BUCKETS = 8, 16_384  # 131,072 sessions


class Record(NamedTuple):
    """What a table has of a session."""

    place: int  # in the file
    key: bytes
    owner: bytes
    at_ms: int
    said: bytes


class SessionTable:
    """Something of the same length for each session. Used from one thread, beside other processes.

    >>> table = SessionTable(n_bytes=2)
    >>> table.get("acme", "s-1")
    >>> table.put("acme", "s-1", b"ok", at_ms=5)
    >>> table.get("acme", "s-1")
    (5, b'ok')
    """

    def __init__(self, n_bytes: int, path: Path | None = None, *, reserved: bool = False) -> None:
        """Without `path` no other process knows of it. `reserved`: never short of memory later.

        Raises OSError.
        """
        self._path, self._file = path, -1
        self._record_bytes = HEAD.size + n_bytes + CHECK_BYTES
        self._bucket_bytes = WAYS * self._record_bytes
        self._is_there(make=reserved)
        if reserved:
            os.posix_fallocate(self._file, 0, BUCKETS * self._bucket_bytes)

    def get(self, tenant: str, session: str) -> tuple[int, bytes] | None:
        """When a session was last written, and what. Raises OSError."""
        if not self._is_there(make=False):
            return None
        key = _key(tenant, session)
        for record in self._records(_bucket(key), key):
            return record.at_ms, record.said
        return None

    def put(self, tenant: str, session: str, said: bytes, at_ms: int) -> None:
        """Say something of a session. Raises OSError, also where there is no memory left."""
        self._write(_key(tenant, session), hash_of(tenant), said, max(1, at_ms))

    def _write(self, key: bytes, owner: bytes, said: bytes, at_ms: int) -> None:
        self._is_there(make=True)
        locked = self._lock()
        try:
            record = HEAD.pack(key, owner, at_ms) + said
            os.pwrite(self._file, record + _check(record), self._place(key, owner))
        finally:
            if locked:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _place(self, key: bytes, owner: bytes) -> int:
        """Where a session is written: where it is, where there is room, or instead of another."""
        bucket = _bucket(key)
        start = bucket * self._bucket_bytes
        found = {record.place: record for record in self._records(bucket)}
        for place in range(start, start + self._bucket_bytes, self._record_bytes):
            if place in found and found[place].key == key:
                return place
        free = start
        while free in found:
            free += self._record_bytes
        return free if free < start + self._bucket_bytes else _given_up(found.values(), owner).place

    def _records(self, bucket: int, key: bytes = b"") -> Iterator[Record]:
        """The sound records of a bucket; of one session, where `key` says which."""
        start, n_bytes = bucket * self._bucket_bytes, self._record_bytes
        held = os.pread(self._file, self._bucket_bytes, start)
        for at in range(0, len(held) - n_bytes + 1, n_bytes):
            if held.startswith(key, at):
                record = held[at : at + n_bytes - CHECK_BYTES]
                found, owner, at_ms = HEAD.unpack_from(record)
                if at_ms and held.startswith(_check(record), at + len(record)):
                    yield Record(start + at, found, owner, at_ms, record[HEAD.size :])

    def _is_there(self, *, make: bool) -> bool:
        """Open the table, if there is one by now or it is to be made."""
        if self._file < 0:
            self._file = self._opened(make=make)
            if self._file >= 0:
                weakref.finalize(self, os.close, self._file)
        return self._file >= 0

    def _opened(self, *, make: bool) -> int:
        """A descriptor; -1 where there is no table yet."""
        if self._path is None:
            return _of_this_process() if make else -1
        return opened(self._path, make=make)

    def _lock(self) -> bool:
        """Whether this process alone may write now: nobody waits for another one."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _given_up(found: Collection[Record], newcomer: bytes) -> Record:
    """Whose place a newcomer gets: of the tenant that has most with it, the longest unused."""
    places = Counter([newcomer, *(record.owner for record in found)])
    return max(found, key=lambda record: (places[record.owner], -record.at_ms))


def _of_this_process() -> int:
    """A table that nobody else can open."""
    with tempfile.TemporaryFile(dir=folder()) as file:
        return os.dup(file.fileno())


def _key(tenant: str, session: str) -> bytes:
    return hash_of(f"{tenant}\0{session}")


def _bucket(key: bytes) -> int:
    return int.from_bytes(key, "little") % BUCKETS


def _check(record: bytes) -> bytes:
    return zlib.crc32(record).to_bytes(CHECK_BYTES, "little")
