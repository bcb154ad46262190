"""A log in memory: for virtual time, where a disk would only cost time, and for tests.

    Storage ──topics of partitions, what outlives a handle
       ▲
    MemoryLog ──append, reader, offsets: the contract of `streams.log.contract`

A record's time is the clock's that is handed in. What has been read may be dropped (`drop_before`),
as retention does, so that days of virtual time fit into memory.

It keeps the contract of the real ones; one set of tests checks all three.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from streams.errors import LogTruncated, LogUnavailable, RecordTooLarge
from streams.log.contract import TOPICS, Damage, Record
from streams.log.partitioner import partitions_of
from streams.log.retention import CHUNK, chunk_time_ms


@dataclass(slots=True)
class Partition:
    """Records from `first` on; those in `damaged` ranges can't be read."""

    number: int
    first: int = 0
    records: list[Record] = field(default_factory=list)
    damaged: list[Damage] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The offset its next record will get."""
        return self.first + len(self.records)


class Storage:
    """What outlives processes: topics of partitions, and the condition readers wait on."""

    def __init__(self, n_partitions: int | Mapping[str, int] = 1) -> None:
        """`n_partitions` of every topic, or by topic; one where it is not named."""
        self.n_partitions = n_partitions
        self.topics: dict[str, list[Partition]] = {}
        self.ids: dict[str, str] = {}
        self.changed = threading.Condition()

    def topic(self, name: str) -> list[Partition]:
        """The topic's partitions, made at first use. Call with `changed` held."""
        if name not in self.topics:
            n = self.n_partitions
            n = n if isinstance(n, int) else n.get(name, 1)
            self.topics[name] = [Partition(number) for number in range(n)]
            self.ids[name] = uuid.uuid4().hex
        return self.topics[name]


class MemoryLog:
    """One process's handle on a `Storage`. See `streams.log.contract.Log` for the contract."""

    def __init__(
        self,
        storage: Storage,
        now_ms: Callable[[], int],
        *,
        record_bytes_max: int = 8 << 20,
        append_bytes_max: int = 64 << 20,
    ) -> None:
        """The limits are those of `kafka_log`: of one record, and of one append's backlog."""
        self.storage, self.now_ms = storage, now_ms
        self.record_bytes_max, self.append_bytes_max = record_bytes_max, append_bytes_max
        self._closed = False

    # --- the contract

    def ensure_topics(self) -> None:
        """Make those of `streams.log.contract.TOPICS` that are missing."""
        self._called("ensure_topics")
        with self.storage.changed:
            for topic in TOPICS:
                self.storage.topic(topic)

    def append(
        self,
        topic: str,
        records: Sequence[tuple[bytes | None, bytes]],
        timeout_s: float = 30.0,
        partitions: Sequence[int] | None = None,
    ) -> None:
        """Append (key, value) pairs; durable as long as the storage."""
        del timeout_s
        self._called("append")
        sizes = [len(key or b"") + len(value) for key, value in records]
        if max(sizes, default=0) > self.record_bytes_max:
            raise RecordTooLarge(topic, max(sizes), self.record_bytes_max)
        if sum(sizes) > self.append_bytes_max:
            raise LogUnavailable(f"{sum(sizes)} bytes are more than may wait at once")
        with self.storage.changed:
            n, now_ms = len(self.storage.topic(topic)), self.now_ms()
            chosen = partitions or partitions_of([key or b"" for key, _ in records], n)
            for partition, (key, value) in zip(chosen, records, strict=True):
                self._place(topic, partition, key, value, now_ms)
            self.storage.changed.notify_all()
        self._returns("append")

    def reader(self, topic: str, offsets: Mapping[int, int]) -> MemoryReader:
        """Read the partitions in `offsets`, each from its offset on."""
        self._called("reader")
        return MemoryReader(self, topic, offsets)

    def end_offsets(self, topic: str) -> dict[int, int]:
        """The offset every partition's next record will get."""
        self._called("end_offsets")
        with self.storage.changed:
            return {p.number: p.end for p in self.storage.topic(topic)}

    def first_offsets(self, topic: str) -> dict[int, int]:
        """The oldest offset that every partition still holds."""
        self._called("first_offsets")
        with self.storage.changed:
            return {p.number: p.first for p in self.storage.topic(topic)}

    def topic_id(self, topic: str) -> str:
        """Changes when the topic is deleted and made again."""
        self._called("topic_id")
        with self.storage.changed:
            self.storage.topic(topic)
            return self.storage.ids[topic]

    def problems(self) -> list[str]:
        """None."""
        return []

    def retain(self, kept_from: Mapping[str, Mapping[int, int]], before_ms: int) -> int:
        """Drop chunks from before a time that lie before `kept_from`."""
        n = 0
        for topic, offsets in kept_from.items():
            for partition, limit in offsets.items():
                while first := self._end_of_old(topic, partition, limit, before_ms):
                    self.drop_before(topic, partition, first)
                    n += CHUNK
        return n

    def _end_of_old(self, topic: str, partition: int, limit: int, before_ms: int) -> int:
        """Where the first chunk ends, if it is old and lies before `limit`; else 0."""
        with self.storage.changed:
            chunk = self.storage.topic(topic)[partition].records[:CHUNK]
        time_ms = chunk_time_ms([record.appended_at_ms for record in chunk])
        old = time_ms is not None and time_ms < before_ms and chunk[-1].offset < limit
        return chunk[-1].offset + 1 if old else 0

    def close(self) -> None:
        """Every further call raises LogUnavailable."""
        self._closed = True

    # --- what a log itself can't do

    def place(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        at_ms: int | None = None,
    ) -> None:
        """Append as another producer would: to any partition, nulls included."""
        with self.storage.changed:
            self._place(topic, partition, key, value, self.now_ms() if at_ms is None else at_ms)
            self.storage.changed.notify_all()

    def drop_before(self, topic: str, partition: int, offset: int) -> None:
        """Retention."""
        with self.storage.changed:
            held = self.storage.topic(topic)[partition]
            del held.records[: offset - held.first]
            held.first = offset

    def drop_from(self, topic: str, partition: int, offset: int) -> None:
        """A log restored from a backup: it ends earlier than it did."""
        with self.storage.changed:
            held = self.storage.topic(topic)[partition]
            del held.records[offset - held.first :]

    def delete_topic(self, topic: str) -> None:
        """Its next use makes a new one."""
        with self.storage.changed:
            self.storage.topics.pop(topic, None)

    def damage(self, topic: str, partition: int, first: int, end: int) -> None:
        """Flip a bit in a batch of records."""
        with self.storage.changed:
            held = self.storage.topic(topic)[partition]
            held.damaged.append(Damage(partition, first, end))

    def records(self, topic: str) -> list[Record]:
        """Everything held."""
        with self.storage.changed:
            return [record for p in self.storage.topic(topic) for record in p.records]

    # --- inside

    def _called(self, name: str) -> None:
        """Before a call of the contract does anything."""
        del name
        if self._closed:
            raise LogUnavailable("the log is closed")

    def _returns(self, name: str) -> None:
        """After it has done what it was asked."""

    def _place(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, at_ms: int
    ) -> None:
        held = self.storage.topic(topic)[partition]
        held.records.append(Record(partition, held.end, at_ms, key, value))


class MemoryReader:
    """See `streams.log.contract.Reader`. Partitions take turns at being read first."""

    def __init__(self, log: MemoryLog, topic: str, offsets: Mapping[int, int]) -> None:
        self._log, self._topic, self._next = log, topic, dict(offsets)
        self.passed: dict[int, int] = {}
        self.damaged: list[Damage] = []

    def read(self, records_max: int, timeout_s: float) -> list[Record]:
        """See `streams.log.contract.Reader`."""
        self._log._called("read")
        storage = self._log.storage
        with storage.changed:
            found = self._look(records_max)
            if not found and timeout_s > 0.0:
                found = self._await(records_max, time.monotonic() + timeout_s)
        self._log._returns("read")
        return found

    def close(self) -> None:
        """Nothing is held."""

    def _await(self, records_max: int, until_s: float) -> list[Record]:
        while not (found := self._look(records_max)):
            rest_s = until_s - time.monotonic()
            if rest_s <= 0 or not self._log.storage.changed.wait(rest_s):
                break
        return found

    def _look(self, records_max: int) -> list[Record]:
        partitions = self._log.storage.topic(self._topic)
        found: list[Record] = []
        for number in list(self._next):
            held, wanted = partitions[number], self._next[number]
            if not held.first <= wanted <= held.end:
                raise LogTruncated(self._topic, number, wanted, held.first, held.end)
            if not held.damaged:  # as almost always
                end = min(wanted + records_max - len(found), held.end)
                found += held.records[wanted - held.first : end - held.first]
                self._next[number] = end
            while len(found) < records_max and self._next[number] < held.end:
                self._take(held, found)
        if self._next:
            last = next(iter(self._next))
            self._next[last] = self._next.pop(last)
        return found

    def _take(self, held: Partition, found: list[Record]) -> None:
        """The partition's next record, or the damage that is there instead."""
        offset = self._next[held.number]
        damage = next((d for d in held.damaged if d.first_offset <= offset < d.end_offset), None)
        if damage:
            self.damaged.append(Damage(held.number, offset, damage.end_offset))
            self._next[held.number] = damage.end_offset
        else:
            found.append(held.records[offset - held.first])
            self._next[held.number] = offset + 1
