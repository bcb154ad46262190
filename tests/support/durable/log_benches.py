"""A log of each kind, with the means to do to it what a log itself can't; and reading it to its end."""

from __future__ import annotations

import struct
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka_topics import PATIENT
from local_kafka.broker import Broker
from memory_log import MemoryLog, Storage
from waiting import until

from streams.errors import LogUnavailable
from streams.log.contract import Log, Reader, Record
from streams.log.kafka_log import KafkaLog
from streams.log.kafka_options import KafkaOptions
from streams.log.sqlite_log import SqliteLog

# Added to every limit that is checked: a busy machine may keep anyone waiting that long. Still less than
# the 30 s and more that kafka-python's own waits take, which the limits are there to find.
BUSY_S = 20.0


class SqliteBench:
    """One SQLite file, and the means to do to it what a log itself can't."""

    n_partitions = 1

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.sqlite"

    def topic(self) -> str:
        return f"topic-{uuid.uuid4().hex}"

    def log(self) -> Log:
        return SqliteLog(self.path, lambda: time.time_ns() // 1_000_000)

    def drop_before(self, topic: str, partition: int, offset: int) -> None:
        assert partition == 0
        self.log().delete_before(topic, offset)

    def make_again(self, topic: str) -> None:
        self.log().delete_topic(topic)


class KafkaBench:
    """Topics of one broker, and the means to do to them what a log itself can't."""

    n_partitions = 3

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)

    def topic(self, n_partitions: int = n_partitions, **options: object) -> str:
        topic = f"topic-{uuid.uuid4().hex}"
        log = self.log(partitions={topic: n_partitions}, **(PATIENT | options))
        log.ensure_topics()
        log.close()
        return topic

    def log(self, **options: object) -> KafkaLog:
        return KafkaLog(KafkaOptions(bootstrap_servers=self.broker.bootstrap_servers, **options))

    def drop_before(self, topic: str, partition: int, offset: int) -> None:
        self._admin.delete_records({TopicPartition(topic, partition): offset})

    def make_again(self, topic: str) -> None:
        self._admin.delete_topics([topic])
        made = {"num_partitions": self.n_partitions, "replication_factor": 1}
        until(lambda: topic not in self._admin.list_topics())
        self._admin.create_topics({topic: made}, wait_for_metadata=True)

    def producer(self, **settings: object) -> KafkaProducer:
        """Somebody else's producer."""
        return KafkaProducer(bootstrap_servers=self.broker.bootstrap_servers, **settings)

    def transactions(self, topic: str, *ended: tuple[bytes, bool]) -> None:
        """Somebody else's: each of one record, which is kept or taken back."""
        other = self.producer(transactional_id=topic)
        other.init_transactions()
        for value, kept in ended:
            other.begin_transaction()
            other.send(topic, value=value)
            other.flush()
            (other.commit_transaction if kept else other.abort_transaction)()
        other.close()

    def settings(self, topic: str) -> dict[str, str]:
        asked = [ConfigResource(ConfigResourceType.TOPIC, topic)]
        found = self._admin.describe_configs(asked, config_filter="all")["topic"][topic]
        return {name: setting["value"] for name, setting in found.items()}

    def make(self, topic: str, **settings: object) -> None:
        """A topic made by somebody else; underscores in the names of settings are dots."""
        configs = {name.replace("_", "."): value for name, value in settings.items()}
        made = {"num_partitions": 1, "replication_factor": 1, "configs": configs}
        self._admin.create_topics({topic: made}, wait_for_metadata=True)

    def close(self) -> None:
        self._admin.close()


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    """The block takes no longer than that, on a machine that is not busy."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < limit_s + BUSY_S


def read_all(reader: Reader, n: int, records_max: int = 10_000) -> list[Record]:
    """The next `n` records, however many reads and reconnections it takes."""
    records: list[Record] = []

    def enough() -> bool:
        with suppress(LogUnavailable):
            records.extend(reader.read(min(records_max, n - len(records)), 1.0))
        return len(records) >= n

    until(enough)
    return records


def read_topic(log: Log, topic: str) -> list[Record]:
    """Everything in the topic, and not a record more."""
    first, end = log.first_offsets(topic), log.end_offsets(topic)
    reader = log.reader(topic, first)
    try:
        records = read_all(reader, sum(end.values()) - sum(first.values()))
        assert reader.read(10, 0.0) == []
        return records
    finally:
        reader.close()


def by_partition(records: list[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        found[record.partition].append(record)
    return found


def pairs(n: int, start: int = 0) -> list[tuple[bytes, bytes]]:
    return [(b"key %d" % (i % 7), b"value %d" % i) for i in range(start, start + n)]


BATCH_HEADER = struct.Struct(">qiibIhi")  # up to lastOffsetDelta; the CRC is the fifth


class Batch:
    """Where one batch is in its file, and which offsets it holds."""

    def __init__(self, raw: bytes, at: int) -> None:
        base, length, _, _, _, _, delta = BATCH_HEADER.unpack_from(raw, at)
        self.at, self.size = at, 12 + length
        self.first, self.end = base, base + delta + 1


def batches(raw: bytes) -> list[Batch]:
    found: list[Batch] = []
    while (at := found[-1].at + found[-1].size if found else 0) < len(raw):
        found.append(Batch(raw, at))
    return found


class MemoryBench:
    """See `test_log.SqliteBench`."""

    n_partitions = 3

    def __init__(self) -> None:
        self.storage = Storage(self.n_partitions)

    def topic(self) -> str:
        return f"topic-{uuid.uuid4().hex}"

    def log(self) -> MemoryLog:
        return MemoryLog(self.storage)

    def drop_before(self, topic: str, partition: int, offset: int) -> None:
        self.log().drop_before(topic, partition, offset)

    def make_again(self, topic: str) -> None:
        self.log().delete_topic(topic)
