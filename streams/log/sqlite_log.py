"""The log in one SQLite file: durable, shared by processes of one machine, nothing to install.

Write-ahead logging lets readers and one writer work side by side; `synchronous=FULL` makes an
append durable before it returns. Every topic has one partition, 0: a file has one writer anyway.

Offsets are assigned inside the writing transaction, so they have no gaps.

A file that was deleted, or that another one was put in the place of, takes no more records: whoever
has it open could go on writing for days, and all of it would be gone with the last process. So does
one whose `-wal` was: there is what was written last.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from streams.errors import LogTruncated, LogUnavailable
from streams.log.contract import Damage, Record
from streams.log.retention import CHUNK, chunk_time_ms

SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (name TEXT PRIMARY KEY, id TEXT NOT NULL, end INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    topic TEXT NOT NULL, offset INTEGER NOT NULL, appended_at_ms INTEGER NOT NULL,
    key BLOB, value BLOB, PRIMARY KEY (topic, offset)) WITHOUT ROWID;
"""
# How long a reader pauses between looks. Twenty looks a second cost under 1 % of a core.
POLL_S = 0.05
# Python gives the interpreter up at each step of a statement: row by row, an event loop beside the
# writer would lose it as often. SQLite takes 32,766 values a statement.
ROWS_TOGETHER = 256
CHUNKS_PER_CALL = 64  # of records that retention drops
OPEN_S_MAX = 30.0  # to wait for other processes that use the file


class SqliteLog:
    """See `streams.log.contract.Log` for the contract."""

    def __init__(self, path: Path, now_ms: Callable[[], int], bytes_max: float = math.inf) -> None:
        """Open or create the file at `path`; `now_ms` stamps what is appended.

        `bytes_max` is how much `retain` leaves, as far as that may be dropped.
        """
        self._path, self._now_ms, self._bytes_max = path, now_ms, bytes_max
        self._lock = threading.Lock()  # one connection, used by whoever holds this
        self._connection = _connect(path)
        with _unavailable():
            self._connection.executescript(SCHEMA)
            self._files = _files_at(path)

    def ensure_topics(self) -> None:
        """Nothing to do: a topic is made when it is first used."""

    def append(
        self,
        topic: str,
        records: Sequence[tuple[bytes | None, bytes]],
        timeout_s: float = 30.0,
        partitions: Sequence[int] | None = None,
    ) -> None:
        """Append all records in one transaction. Raises LogUnavailable."""
        del partitions  # there is one
        with self._transaction(timeout_s) as run:
            _, end = _topic(run, topic)
            at_ms = self._now_ms()  # as it is: readers judge it, see `streams.clock`
            for first in range(0, len(records), ROWS_TOGETHER):
                rows = records[first : first + ROWS_TOGETHER]
                values = [(topic, end + first + i, at_ms, *record) for i, record in enumerate(rows)]
                insert = f"INSERT INTO records VALUES {_places(len(rows))}"  # noqa: S608 - only "?"
                run(insert, [*chain(*values)])
            run("UPDATE topics SET end = ? WHERE name = ?", (end + len(records), topic))

    def reader(self, topic: str, offsets: Mapping[int, int]) -> SqliteReader:
        """Read partition 0 from its offset on; with no partitions, read nothing."""
        with _unavailable():
            _check_are_there(self._path, self._files)
        return SqliteReader(self._path, self._files, topic, offsets.get(0))

    def end_offsets(self, topic: str) -> dict[int, int]:
        """The next offset of partition 0."""
        with self._transaction() as run:
            return {0: _topic(run, topic)[1]}

    def first_offsets(self, topic: str) -> dict[int, int]:
        """The oldest offset of partition 0 still held."""
        with self._transaction() as run:
            return {0: _first(run, topic, _topic(run, topic)[1])}

    def topic_id(self, topic: str) -> str:
        """A random identity given when the topic was first used."""
        with self._transaction() as run:
            return _topic(run, topic)[0]

    def problems(self) -> list[str]:
        """None: a file has no settings that others could change."""
        return []

    def retain(self, kept_from: Mapping[str, Mapping[int, int]], before_ms: int) -> int:
        """Drop chunks that are old, and the oldest while the file holds too much. LogUnavailable.

        So many at a time that nobody waits long; the next call goes on. What is dropped makes room
        in the file, which then grows no further.
        """
        for n_dropped in range(CHUNKS_PER_CALL):
            oldest = min(self._chunks(kept_from), default=None)
            if oldest is None or not (oldest[0] < before_ms or self._bytes() > self._bytes_max):
                return n_dropped * CHUNK
            self.delete_before(oldest[1], oldest[2])
        return CHUNKS_PER_CALL * CHUNK

    def _chunks(self, kept_from: Mapping[str, Mapping[int, int]]) -> Iterator[tuple[int, str, int]]:
        """Time, topic and end offset of each topic's first chunk, where it may be dropped."""
        for topic, offsets in kept_from.items():
            with self._transaction() as run:
                rows = run(
                    "SELECT appended_at_ms, offset FROM records WHERE topic = ? ORDER BY offset "
                    "LIMIT ?",
                    (topic, CHUNK),
                ).fetchall()
            time_ms = chunk_time_ms([at_ms for at_ms, _ in rows])
            if time_ms is not None and rows[-1][1] < offsets.get(0, 0):
                yield time_ms, topic, rows[-1][1] + 1

    def _bytes(self) -> int:
        """Bytes in use within the file."""
        with self._transaction() as run:
            pages, free, size = (
                run(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * size

    def delete_before(self, topic: str, offset: int) -> None:
        """Retention: drop records below `offset`."""
        with self._transaction() as run:
            run("DELETE FROM records WHERE topic = ? AND offset < ?", (topic, offset))

    def delete_topic(self, topic: str) -> None:
        """Drop a topic and all its records; its next use makes a new one."""
        with self._transaction() as run:
            run("DELETE FROM records WHERE topic = ?", (topic,))
            run("DELETE FROM topics WHERE name = ?", (topic,))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self, timeout_s: float = 30.0) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Run statements as one writing transaction."""
        with self._lock, _unavailable():
            self._connection.execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:  # commits, or rolls back on an exception
                yield self._connection.execute
                _check_are_there(self._path, self._files)


class SqliteReader:
    """See `streams.log.contract.Reader`. Its own connection never waits for a writer."""

    def __init__(
        self, path: Path, files: list[tuple[int, int]], topic: str, offset: int | None
    ) -> None:
        self._path, self._files, self._topic, self._next = path, files, topic, offset
        self.passed: dict[int, int] = {}
        self.damaged: list[Damage] = []  # stays empty: a file is whole or it can't be read at all
        self._connection = _connect(path)

    def read(self, records_max: int, timeout_s: float) -> list[Record]:
        """The next records, or [] after `timeout_s`. Raises LogUnavailable and LogTruncated."""
        # Another process writes: there is nothing to wait on, so this looks again and again.
        deadline = time.monotonic() + timeout_s
        while not (found := self._look(records_max)):
            rest_s = deadline - time.monotonic()
            if rest_s <= 0:
                break
            time.sleep(min(POLL_S, rest_s))
        return found

    def _look(self, records_max: int) -> list[Record]:
        if self._next is None:
            return []
        run = self._connection.execute
        with _unavailable():
            _check_are_there(self._path, self._files)
            run("BEGIN")  # so that both statements see the same moment
            with self._connection:
                rows = run(
                    "SELECT 0, offset, appended_at_ms, key, value FROM records "
                    "WHERE topic = ? AND offset >= ? ORDER BY offset LIMIT ?",
                    (self._topic, self._next, records_max),
                ).fetchall()
                held = run("SELECT end FROM topics WHERE name = ?", (self._topic,)).fetchone()
                end = held[0] if held else 0
                if (rows[0][1] if rows else end) != self._next:
                    first = _first(run, self._topic, end)
                    raise LogTruncated(self._topic, 0, self._next, first, end)
        if rows:
            self._next = rows[-1][1] + 1
        return [Record(*row) for row in rows]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _topic(run: Callable[..., sqlite3.Cursor], topic: str) -> tuple[str, int]:
    """Identity and end offset, making the topic if needed."""
    run("INSERT OR IGNORE INTO topics VALUES (?, ?, 0)", (topic, uuid.uuid4().hex))
    return run("SELECT id, end FROM topics WHERE name = ?", (topic,)).fetchone()


def _places(n: int) -> str:
    """So many rows of `records`, to be filled in."""
    return ", ".join(["(?, ?, ?, ?, ?)"] * n)


def _first(run: Callable[..., sqlite3.Cursor], topic: str, end: int) -> int:
    """The oldest offset held; the end when nothing is."""
    found = run("SELECT MIN(offset) FROM records WHERE topic = ?", (topic,)).fetchone()[0]
    return end if found is None else found


def _files_at(path: Path) -> list[tuple[int, int]]:
    """Which files have the names of the log and its `-wal` now. Raises OSError."""
    found = [path.stat(), path.with_name(f"{path.name}-wal").stat()]
    return [(one.st_dev, one.st_ino) for one in found]


def _check_are_there(path: Path, files: list[tuple[int, int]]) -> None:
    """Raise LogUnavailable unless these very files have those names."""
    try:
        if _files_at(path) == files:
            return
        problem = "another file lies in its place"
    except FileNotFoundError as error:
        problem = f"{error.filename} is not there any more"
    raise LogUnavailable(
        f"{path} was removed while it was in use: {problem}. What is written to it would be lost. "
        "Put it back where it was; or stop `fairlead up` and start it again with what is there now"
    )


def _connect(path: Path) -> sqlite3.Connection:
    """A connection in WAL mode whose commits are durable. Raises LogUnavailable."""
    with _unavailable():
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=OPEN_S_MAX, check_same_thread=False)
        connection.isolation_level = None  # transactions are begun here, by name
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous = FULL")
        return connection


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch, trying again while others do: processes that make one file at the same time block
    each other here, and SQLite then gives up without waiting, whatever its time-out.
    """
    deadline = time.monotonic() + OPEN_S_MAX
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return


@contextmanager
def _unavailable() -> Iterator[None]:
    """SQLite's and the disk's errors become LogUnavailable."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LogUnavailable(f"the SQLite log failed: {error}") from error
