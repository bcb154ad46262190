"""The log's contract, kept by both implementations, and what is particular to each.

Kafka is a real broker on this machine, which these tests also freeze, kill, restart and damage.
"""

from __future__ import annotations

import logging
import pickle
import random
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import LogTruncationError
from kafka.structs import OffsetAndMetadata
from local_kafka.broker import Broker

from streams import errors
from streams.errors import LogTruncated, LogUnavailable, OptionRefused, RecordTooLarge, TopicUnfit
from streams.log import kafka_reader
from streams.log.contract import TOPICS, Damage, Log, Reader, Record
from streams.log.kafka_damage import Probe
from streams.log.kafka_log import KafkaLog
from streams.log.kafka_options import SECURITY_KEYS, KafkaOptions
from streams.log.sqlite_log import SqliteLog

# Added to every limit that is checked: a busy machine may keep anyone waiting that long.
BUSY_S = 5.0
PATIENCE_S = 30.0  # for what must come; a test that waits this long has failed


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
        log = self.log(partitions={topic: n_partitions}, **options)
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


@pytest.fixture
def kafka(kafka_broker: Broker) -> Iterator[KafkaBench]:
    kafka_broker.start()  # if the test before this one failed while it was stopped
    bench = KafkaBench(kafka_broker)
    yield bench
    bench.close()


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteBench | KafkaBench:
    if request.param == "sqlite":
        return SqliteBench(tmp_path)
    return request.getfixturevalue("kafka")


@pytest.fixture
def topic(bench: SqliteBench | KafkaBench) -> str:
    return bench.topic()


@pytest.fixture
def log(bench: SqliteBench | KafkaBench) -> Iterator[Log]:
    log = bench.log()
    yield log
    log.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for it; fail if it does not come."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


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
        try:
            records.extend(reader.read(min(records_max, n - len(records)), 1.0))
        except LogUnavailable:
            pass
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


# --- the contract


def test_what_was_appended_is_read_back_in_order(bench, log, topic):
    """
    Keys and values are the same bytes; offsets have no gaps; time does not run backwards.
    """
    odd = [
        (None, b"no key"),
        (b"", b"empty key"),
        (b"empty value", b""),
        (bytes(range(256)), bytes(range(255, -1, -1))),
        ("ключ".encode(), b"\x00\xff\x00"),
    ]
    before_ms = time.time() * 1000

    log.append(topic, odd)
    log.append(topic, pairs(100))

    records = read_topic(log, topic)
    assert sorted((r.key or b"", r.value) for r in records) == sorted(
        (key or b"", value) for key, value in [*odd, *pairs(100)]
    )
    assert [r.key for r in records if r.value == b"no key"] == [None]
    assert [r.key for r in records if r.value == b"empty key"] == [b""]
    for found in by_partition(records).values():
        assert [r.offset for r in found] == list(range(len(found)))
        times = [r.appended_at_ms for r in found]
        assert times == sorted(times)
        assert abs(times[0] - before_ms) < 60_000


def test_records_of_one_key_share_a_partition_and_keep_their_order(bench, log, topic):
    """
    Whatever else is appended between them, and from however many calls.
    """
    for start in range(0, 300, 60):
        log.append(topic, pairs(60, start))

    records = read_topic(log, topic)
    for key in {r.key for r in records}:
        mine = [r for r in records if r.key == key]
        assert len({r.partition for r in mine}) == 1
        numbers = [int(r.value.split()[1]) for r in mine]
        assert numbers == sorted(numbers)
    if bench.n_partitions > 1:
        assert len({r.partition for r in records}) > 1, "all keys in one partition"


def test_reading_starts_exactly_where_it_is_told(bench, log, topic):
    """
    Also in the middle of what was written together.
    """
    log.append(topic, pairs(200))
    ends = log.end_offsets(topic)
    middle = {partition: end // 2 for partition, end in ends.items()}

    reader = log.reader(topic, middle)
    records = read_all(reader, sum(ends.values()) - sum(middle.values()))

    for partition, found in by_partition(records).items():
        assert [r.offset for r in found] == list(range(middle[partition], ends[partition]))
    reader.close()


def test_only_the_partitions_asked_for_are_read(bench, log, topic):
    """
    A shard of a trainer reads its own; a reader of none reads nothing, in time.
    """
    log.append(topic, pairs(200))
    ends = log.end_offsets(topic)
    chosen = max(ends, key=ends.__getitem__)

    reader, nobody = log.reader(topic, {chosen: 0}), log.reader(topic, {})

    assert {r.partition for r in read_all(reader, ends[chosen])} == {chosen}
    with within(0.1):
        assert reader.read(10, 0.1) == []
        assert nobody.read(10, 0.1) == []
    reader.close()
    nobody.close()


def test_readers_do_not_disturb_each_other(bench, log, topic):
    """
    There are no groups: each reads everything, at its own pace.
    """
    log.append(topic, pairs(100))
    fast, slow = (
        log.reader(topic, log.first_offsets(topic)),
        log.reader(topic, log.first_offsets(topic)),
    )

    of_slow = read_all(slow, 10, records_max=10)
    of_fast = read_all(fast, 100)
    of_slow += read_all(slow, 90, records_max=10)

    assert sorted(of_slow) == sorted(of_fast)
    fast.close()
    slow.close()


def test_no_more_records_than_asked_for(bench, log, topic):
    """
    `records_max` is a limit, not a wish.
    """
    log.append(topic, pairs(50))
    reader = log.reader(topic, log.first_offsets(topic))
    read_all(reader, 1, records_max=1)

    for _ in range(5):
        assert len(reader.read(3, 1.0)) <= 3
    reader.close()


def test_reading_nothing_takes_no_longer_than_told(bench, log, topic):
    """
    Neither much shorter, which would be a busy loop, nor longer.
    """
    reader = log.reader(topic, log.first_offsets(topic))
    reader.read(10, 0.0)  # connects

    begin = time.monotonic()
    with within(0.5):
        assert reader.read(10, 0.5) == []
    assert time.monotonic() - begin > 0.4
    reader.close()


def test_a_waiting_reader_sees_what_is_appended_meanwhile(bench, log, topic):
    """
    Long before its time is up.
    """
    reader = log.reader(topic, log.first_offsets(topic))
    reader.read(10, 0.0)
    appending = threading.Timer(0.2, log.append, (topic, [(b"late", b"but here")]))

    with within(1.0):
        appending.start()
        records = reader.read(10, PATIENCE_S)

    assert [(r.key, r.value) for r in records] == [(b"late", b"but here")]
    appending.join()
    reader.close()


def test_offsets_of_an_empty_topic_and_after_appending(bench, log, topic):
    """
    First and end are equal while there is nothing; then they span what is held.
    """
    empty = dict.fromkeys(range(bench.n_partitions), 0)
    assert log.first_offsets(topic) == log.end_offsets(topic) == empty

    log.append(topic, pairs(70))

    assert log.first_offsets(topic) == empty
    assert sum(log.end_offsets(topic).values()) == 70


def test_appending_nothing_changes_nothing(bench, log, topic):
    """
    An outbox may have nothing to write.
    """
    log.append(topic, [])

    assert sum(log.end_offsets(topic).values()) == 0


def test_reading_what_retention_dropped_raises(bench, log, topic):
    """
    With the numbers, again and again, and never by skipping. What is left can be read.
    """
    log.append(topic, [(b"same key", b"%d" % i) for i in range(10)])
    ends = log.end_offsets(topic)
    (partition,) = (p for p, end in ends.items() if end)
    bench.drop_before(topic, partition, 4)

    late = log.reader(topic, {partition: 2})
    for _ in range(2):
        with pytest.raises(LogTruncated) as caught:
            late.read(10, PATIENCE_S)
        assert (caught.value.wanted, caught.value.first, caught.value.end) == (2, 4, 10)
    assert log.first_offsets(topic)[partition] == 4
    assert [r.offset for r in read_all(log.reader(topic, {partition: 4}), 6)] == list(range(4, 10))


def test_reading_beyond_the_end_raises(bench, log, topic):
    """
    A log that ends before the offset has lost records: it was restored, or made again.
    """
    log.append(topic, [(b"same key", b"%d" % i) for i in range(3)])
    (partition,) = (p for p, end in log.end_offsets(topic).items() if end)

    with pytest.raises(LogTruncated) as caught:
        log.reader(topic, {partition: 5}).read(10, PATIENCE_S)
    assert (caught.value.wanted, caught.value.first, caught.value.end) == (5, 0, 3)


def test_a_topic_made_again_is_another_one(bench, log, topic):
    """
    Its identity differs, its offsets begin anew, and the log goes on working.
    """
    log.append(topic, pairs(10))
    was = log.topic_id(topic)
    assert log.topic_id(topic) == was
    reader = log.reader(topic, log.end_offsets(topic))
    assert reader.read(1, 0.1) == []

    bench.make_again(topic)

    with pytest.raises(LogTruncated):
        read_all(reader, 1)
    reader.close()
    assert log.topic_id(topic) != was
    assert sum(log.end_offsets(topic).values()) == 0
    log.append(topic, pairs(10))
    assert len(read_topic(log, topic)) == 10


def test_appends_of_several_threads_lose_nothing(bench, log, topic):
    """
    One log serves all threads of a process.
    """

    def append(thread: int) -> None:
        for call in range(5):
            log.append(topic, [(b"%d" % thread, b"%d %d" % (call, i)) for i in range(50)])

    threads = [threading.Thread(target=append, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    records = read_topic(log, topic)
    assert len(records) == 4 * 5 * 50
    for thread in range(4):
        mine = [r.value for r in records if r.key == b"%d" % thread]
        assert mine == [b"%d %d" % (call, i) for call in range(5) for i in range(50)]


def test_a_value_of_a_mebibyte_is_carried(bench, log, topic):
    """
    Of bytes that can't be compressed.
    """
    value = random.Random(1).randbytes(1 << 20)

    log.append(topic, [(b"big", value), (b"small", b"beside it")])

    assert value in {r.value for r in read_topic(log, topic)}


def test_twenty_thousand_records_at_once(bench, log, topic):
    """
    All or an error: here, all.
    """
    log.append(topic, pairs(20_000))

    assert sorted(r.value for r in read_topic(log, topic)) == sorted(v for _, v in pairs(20_000))


def test_a_healthy_log_reports_no_damage(bench, log, topic):
    """
    The list is there, and empty.
    """
    log.append(topic, pairs(10))
    reader = log.reader(topic, log.first_offsets(topic))
    read_all(reader, 10)

    assert reader.damaged == []
    reader.close()


def test_closing_twice_is_fine_and_using_a_closed_log_is_an_error(bench, log, topic):
    """
    LogUnavailable, as for any log that can't be reached.
    """
    reader = log.reader(topic, log.first_offsets(topic))
    reader.read(1, 0.0)
    log.append(topic, pairs(1))

    for closable in (reader, reader, log, log):
        with within(1.0):
            closable.close()

    with pytest.raises(LogUnavailable):
        log.append(topic, pairs(1))


@pytest.mark.parametrize(
    "error",
    [
        LogTruncated("t", 1, 2, 3, 4),
        RecordTooLarge("t", 10, 5),
        TopicUnfit("t", "s", "a", "b"),
        OptionRefused("o", 1, "2"),
    ],
)
def test_errors_survive_pickling_and_speak_of_their_numbers(error):
    """
    Ray sends them between processes.
    """
    again = pickle.loads(pickle.dumps(error))

    assert (str(again), vars(again)) == (str(error), vars(error))
    assert all(str(argument) in str(error) for argument in error.args[:-1])
    assert isinstance(error, errors.StreamError)


# --- SQLite


def test_two_processes_append_to_one_file(tmp_path):
    """
    Every record gets its own offset, and each process's records keep their order.
    """
    bench = SqliteBench(tmp_path)
    program = """if True:
        import sys
        from pathlib import Path
        from streams.log.sqlite_log import SqliteLog
        log = SqliteLog(Path(sys.argv[1]), lambda: 0)
        for i in range(100):
            log.append("shared", [(sys.argv[2].encode(), b"%d" % i)])
    """
    command = [sys.executable, "-c", program, str(bench.path)]
    running = [subprocess.Popen([*command, name]) for name in ("one", "two")]

    assert [process.wait(PATIENCE_S) for process in running] == [0, 0]

    records = read_topic(bench.log(), "shared")
    assert [r.offset for r in records] == list(range(200))
    for name in (b"one", b"two"):
        assert [r.value for r in records if r.key == name] == [b"%d" % i for i in range(100)]


# --- Kafka: what other producers do


@pytest.mark.kafka
@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_nulls_and_any_compression_of_other_producers_are_read(kafka, compression):
    """
    The broker stores one codec, whatever it is sent.
    """
    topic, log = kafka.topic(), kafka.log()
    other = kafka.producer(compression_type=compression)
    other.send(topic, key=b"key", value=None)
    for i in range(20):
        other.send(topic, value=b"value %d" % i)
    other.close()

    records = read_topic(log, topic)

    assert sorted((r.key, r.value) for r in records if r.key) == [(b"key", None)]
    assert len([r for r in records if r.key is None]) == 20
    log.close()


@pytest.mark.kafka
def test_what_its_producer_took_back_is_not_read(kafka):
    """
    Records of an aborted transaction are skipped; those of a committed one are not.
    """
    topic, log = kafka.topic(n_partitions=1), kafka.log()
    other = kafka.producer(transactional_id=topic)
    other.init_transactions()
    for word, end in ((b"aborted", other.abort_transaction), (b"done", other.commit_transaction)):
        other.begin_transaction()
        other.send(topic, value=word)
        other.flush()
        end()
    other.close()

    reader = log.reader(topic, {0: 0})
    assert [r.value for r in read_all(reader, 1)] == [b"done"]
    reader.close()
    log.close()


@pytest.mark.kafka
def test_the_clock_of_a_producer_does_not_count(kafka):
    """
    The broker stamps records as they come in.
    """
    topic, log = kafka.topic(n_partitions=1), kafka.log()
    other = kafka.producer()
    other.send(topic, value=b"from the past", timestamp_ms=1_000_000)
    other.close()

    (record,) = read_topic(log, topic)
    assert abs(record.appended_at_ms - time.time() * 1000) < 60_000
    log.close()


# --- Kafka: topics


@pytest.mark.kafka
def test_topics_are_made_once_and_as_promised(kafka):
    """
    Also when several processes start at the same time.
    """
    topic = f"topic-{uuid.uuid4().hex}"
    logs = [kafka.log(partitions={topic: 2}, retention_ms=5_000_000) for _ in range(3)]
    threads = [threading.Thread(target=log.ensure_topics) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(logs[0].end_offsets(topic)) == 2
    settings = kafka.settings(topic)
    assert settings["message.timestamp.type"] == "LogAppendTime"
    assert settings["cleanup.policy"] == "delete"
    assert settings["retention.ms"] == "5000000"
    assert settings["compression.type"] == "zstd"
    assert int(settings["max.message.bytes"]) > logs[0]._options.record_bytes_max
    for log in logs:
        log.ensure_topics()
        log.close()


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("message.timestamp.type", "CreateTime"),
        ("cleanup.policy", "compact"),
        ("max.message.bytes", "1000"),
    ],
)
def test_a_topic_that_breaks_the_promises_is_refused(kafka, setting, found):
    """
    At start-up, with the command that repairs it.
    """
    topic = f"topic-{uuid.uuid4().hex}"
    kafka.make(topic, **{setting.replace(".", "_"): found})
    log = kafka.log(partitions={topic: 1})

    with pytest.raises(TopicUnfit, match=f"{setting}={found}.*kafka-configs.sh --alter"):
        log.ensure_topics()
    log.close()


@pytest.mark.kafka
def test_a_topic_that_does_not_exist_is_an_error_within_time(kafka, monkeypatch):
    """
    For everyone who asks; the reader finds out after a silence.
    """
    log, nowhere = kafka.log(request_timeout_s=2.0), "no-such-topic"
    with within(0.5), pytest.raises(LogUnavailable, match="no-such-topic"):
        log.append(nowhere, pairs(1), timeout_s=0.5)
    for ask in (log.end_offsets, log.first_offsets, log.topic_id):
        with within(2.0), pytest.raises(LogUnavailable, match="no-such-topic"):
            ask(nowhere)

    monkeypatch.setattr(kafka_reader, "SILENCE_S", 0.0)
    reader = log.reader(nowhere, {0: 0})
    with within(2.5), pytest.raises(LogUnavailable, match="no-such-topic"):
        reader.read(1, 0.1)
    reader.close()
    log.close()


@pytest.mark.kafka
def test_a_silence_is_questioned_and_found_to_be_just_that(kafka, monkeypatch):
    """
    Asking again and again for the ends does not disturb reading.
    """
    monkeypatch.setattr(kafka_reader, "SILENCE_S", 0.0)
    topic, log = kafka.topic(), kafka.log()
    reader = log.reader(topic, log.first_offsets(topic))

    for n in range(3):
        assert reader.read(10, 0.05) == []
        assert reader.read(10, 0.05) == []
        log.append(topic, pairs(5, n))
        assert len(read_all(reader, 5)) == 5
    reader.close()
    log.close()


@pytest.mark.kafka
def test_a_log_that_forked_counts_as_truncated(kafka, monkeypatch):
    """
    After an unclean election the offsets read last hold other records. It stays an error.
    """
    topic, log = kafka.topic(n_partitions=1), kafka.log()
    log.append(topic, pairs(5))
    reader = log.reader(topic, {0: 0})
    read_all(reader, 4, records_max=4)
    fork = {TopicPartition(topic, 0): OffsetAndMetadata(2, "", 0)}

    def poll(*_: object) -> None:
        raise LogTruncationError(fork)

    monkeypatch.setattr(KafkaConsumer, "poll", poll)
    for _ in range(2):
        with pytest.raises(LogTruncated) as caught:
            reader.read(10, 1.0)
        assert (caught.value.wanted, caught.value.first, caught.value.end) == (4, 0, 2)
        monkeypatch.undo()
    log.close()


# --- Kafka: records that are too large, options that can't be


@pytest.mark.kafka
def test_a_record_too_large_is_refused_before_anything_is_sent(kafka):
    """
    And is no poison: the next append works.
    """
    topic, log = (
        kafka.topic(n_partitions=1, record_bytes_max=1000),
        kafka.log(record_bytes_max=1000),
    )

    with pytest.raises(RecordTooLarge, match="1001 bytes"):
        log.append(topic, [(None, b"fine"), (b"k", b"x" * 1000)])
    log.append(topic, [(b"k", b"x" * 999)])

    assert [len(r.value) for r in read_topic(log, topic)] == [999]
    log.close()


@pytest.mark.kafka
def test_a_record_too_large_for_the_broker_is_no_poison_either(kafka):
    """
    A topic made by somebody else may take less than we do.
    """
    topic, log = f"topic-{uuid.uuid4().hex}", kafka.log()
    kafka.make(topic, max_message_bytes=10_000)

    with pytest.raises(RecordTooLarge, match=r"20000 bytes .* 10000 bytes"):
        log.append(topic, [(None, random.Random(1).randbytes(20_000))])
    log.append(topic, [(None, b"fine")])

    assert [r.value for r in read_topic(log, topic)] == [b"fine"]
    log.close()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"security": {"ssl_context": "x"}}, "ssl_context"),
        ({"security": {"sasl_plain_pasword": "x"}}, "sasl_plain_pasword"),
        ({"compression": "lz4"}, "lz4"),
        ({"delivery_timeout_s": 1.0}, "1.0"),
    ],
)
def test_options_that_can_not_be_are_refused_by_name(options, named):
    """
    A misspelt password would otherwise be an anonymous connection.
    """
    with pytest.raises(OptionRefused, match=named):
        KafkaOptions(**options)


def test_options_travel_between_processes_and_keep_their_secrets():
    """
    Ray pickles them; log files get their `repr`.
    """
    options = KafkaOptions(security={"sasl_plain_password": "hunter2"})

    assert pickle.loads(pickle.dumps(options)) == options
    assert "hunter2" not in repr(options)
    assert set(options.partitions) == set(TOPICS)


def test_security_keys_are_kafka_pythons():
    """
    Every one of them is understood by all three kinds of client.
    """
    for client in (KafkaProducer, KafkaConsumer, KafkaAdminClient):
        assert set(client.DEFAULT_CONFIG) >= SECURITY_KEYS


def test_kafka_python_never_logs_below_info():
    """
    At DEBUG it prints the records.
    """
    assert logging.getLogger("kafka").level >= logging.INFO


# --- Kafka: a broker that is away


@pytest.mark.kafka
def test_without_a_broker_everything_fails_in_time_and_leaves_nothing_behind(monkeypatch):
    """
    No thread of kafka-python survives a failed try to connect.
    """
    log = KafkaLog(
        KafkaOptions(bootstrap_servers="127.0.0.1:1", connect_s_min=0.3, request_timeout_s=0.5)
    )
    reader = log.reader("t", {0: 0})
    before = threading.active_count()

    for attempt in (
        lambda: log.append("t", pairs(1), timeout_s=0.3),
        lambda: log.end_offsets("t"),
        lambda: log.topic_id("t"),
        lambda: reader.read(1, 0.3),
    ):
        with within(0.5), pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:1"):
            attempt()
    until(lambda: threading.active_count() <= before)
    reader.close()
    log.close()


@pytest.fixture
def frozen(kafka_broker: Broker) -> Iterator[Broker]:
    """A broker that a test may freeze; it runs on afterwards."""
    yield kafka_broker
    kafka_broker.resume()


@pytest.mark.kafka
def test_a_frozen_broker_is_an_error_in_time_and_then_forgotten(kafka, frozen):
    """
    Nothing hangs, nothing acknowledged is lost, and all goes on by itself when the broker does.
    """
    topic = kafka.topic(n_partitions=1)
    log = kafka.log(request_timeout_s=1.0, delivery_timeout_s=2.0, connect_s_min=0.5)
    reader = log.reader(topic, {0: 0})
    log.append(topic, pairs(3))
    read_all(reader, 3)

    frozen.pause()
    with within(0.5), pytest.raises(LogUnavailable):
        log.append(topic, [(None, b"perhaps")], timeout_s=0.5)
    with within(2.0), pytest.raises(LogUnavailable):
        log.end_offsets(topic)
    with within(0.3):
        assert reader.read(10, 0.3) == []
    frozen.resume()

    until(lambda: _appended(log, topic, b"again"))
    until(
        lambda: _answers(log.end_offsets, topic)
    )  # another connection, which has waited longer each time
    values = [r.value for r in read_topic(log, topic)]
    assert values[:3] == [v for _, v in pairs(3)]
    assert set(values[3:]) in ({b"again"}, {b"perhaps", b"again"})
    assert [r.value for r in read_all(reader, len(values) - 3)] == values[3:]
    reader.close()
    log.close()


@pytest.mark.kafka
def test_memory_is_bounded_while_the_broker_is_frozen(kafka, frozen):
    """
    Appends that gave up still count, so the next ones fail at once; room comes back in time.
    """
    topic = kafka.topic(n_partitions=1)
    log = kafka.log(request_timeout_s=1.0, delivery_timeout_s=1.0, buffer_bytes_max=10_000)
    log.append(topic, pairs(1))

    frozen.pause()
    with pytest.raises(LogUnavailable):
        log.append(topic, [(None, bytes(9_000))], timeout_s=0.1)
    with within(0.0), pytest.raises(LogUnavailable, match="9000 bytes wait"):
        log.append(topic, [(None, bytes(9_000))], timeout_s=PATIENCE_S)
    frozen.resume()

    until(lambda: _appended(log, topic, bytes(9_000)))
    log.append(topic, [(None, bytes(50_000))])  # alone, one may be larger than the bound
    log.close()


@pytest.mark.kafka
@pytest.mark.parametrize("broken", ["closed", "in trouble"])
def test_a_client_that_broke_is_replaced(kafka, broken):
    """
    One error, not one for ever: of those who append, of those who ask, and of those who read.
    """
    topic = kafka.topic(n_partitions=1)
    log = kafka.log(request_timeout_s=1.0, delivery_timeout_s=1.0)
    log.append(topic, pairs(2))
    log.end_offsets(topic)
    reader = log.reader(topic, {0: 0})
    read_all(reader, 1, records_max=1)

    def trouble() -> None:
        time.sleep(0.1)
        raise RuntimeError

    for client in (log._producer.get(1.0), log._admin.get(1.0), reader._consumer):
        if broken == "closed":
            client.close()
        elif isinstance(client, KafkaProducer):
            client._sender.run_once = trouble
        else:
            client._client.close()

    until(lambda: _appended(log, topic, b"again", timeout_s=0.5))
    assert [r.offset for r in read_all(reader, 2)] == [1, 2]
    until(lambda: _answers(log.end_offsets, topic))
    assert log.end_offsets(topic) == {0: 3}
    reader.close()
    log.close()


@pytest.mark.kafka
@pytest.mark.slow
def test_records_that_expired_on_their_way_do_not_stop_the_producer(kafka, frozen):
    """
    Their numbers in the idempotent sequence are missing for ever; later records go through, once.
    """
    topic = kafka.topic(n_partitions=1)
    log = kafka.log(request_timeout_s=0.5, delivery_timeout_s=0.5, connect_s_min=0.5)
    log.append(topic, [(None, b"before")])

    frozen.pause()
    for i in range(3):
        with pytest.raises(LogUnavailable):
            log.append(topic, [(None, b"lost %d" % i)], timeout_s=1.5)
    frozen.resume()

    for i in range(10):
        until(lambda i=i: _appended(log, topic, b"after %d" % i))
    values = [r.value for r in read_topic(log, topic) if not r.value.startswith(b"lost")]
    assert values[0] == b"before"
    assert list(dict.fromkeys(values[1:])) == [b"after %d" % i for i in range(10)]
    log.close()


@pytest.mark.kafka
@pytest.mark.slow
def test_a_killed_broker_keeps_what_it_acknowledged(kafka, kafka_broker):
    """
    Writers and readers find it again by themselves.
    """
    topic, log = kafka.topic(n_partitions=1), kafka.log(request_timeout_s=2.0)
    reader = log.reader(topic, {0: 0})
    log.append(topic, pairs(500))
    read_all(reader, 100, records_max=100)

    kafka_broker.kill()
    with within(0.5), pytest.raises(LogUnavailable):
        log.append(topic, pairs(1, 500), timeout_s=0.5)
    with within(0.2):
        _read_or_nothing(reader)
    kafka_broker.restart()

    until(lambda: _appended(log, topic, b"after"))
    values = [r.value for r in read_topic(log, topic)]
    assert values[:500] == [v for _, v in pairs(500)]
    assert values[-1] == b"after"
    log.close()
    reader.close()


def _appended(log: Log, topic: str, value: bytes, timeout_s: float = 2.0) -> bool:
    try:
        log.append(topic, [(None, value)], timeout_s)
    except LogUnavailable:
        return False
    return True


def _answers(ask: Callable[[str], object], topic: str) -> bool:
    try:
        ask(topic)
    except LogUnavailable:
        return False
    return True


def _read_or_nothing(reader: Reader) -> list[Record]:
    try:
        return reader.read(1, 0.2)
    except LogUnavailable:
        return []


# --- Kafka: damage on disk

BATCH_HEADER = struct.Struct(">qiibIhi")  # up to lastOffsetDelta; the CRC is the fifth
BATCH_RECORDS = (1, 2, 3, 26, 31, 7)  # per batch: the search for an end must not rely on luck


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


class Damaged:
    """Topics of one partition whose batches were damaged on disk while the broker was stopped."""

    def __init__(self, kafka: KafkaBench) -> None:
        self._kafka, self._hits = kafka, {}
        self.batches: dict[str, list[Batch]] = {}

    def topic(self, *hits: int) -> str:
        """A topic of some six batches, of which those in `hits` will be damaged."""
        topic = self._kafka.topic(n_partitions=1)
        other = self._kafka.producer(compression_type="zstd", linger_ms=1000)
        for batch, n_records in enumerate(BATCH_RECORDS):
            for i in range(n_records):
                other.send(topic, value=b"%d %d" % (batch, i))
            other.flush()
        other.close()
        self._hits[topic] = hits
        return topic

    def damage(self) -> None:
        """Stop the broker, flip a bit in each batch to be hit, and start it."""
        broker = self._kafka.broker
        broker.stop()
        for topic, hits in self._hits.items():
            path = broker.data / f"{topic}-0" / f"{0:020d}.log"
            raw = bytearray(path.read_bytes())
            self.batches[topic] = batches(raw)
            for hit in hits:
                batch = self.batches[topic][hit]
                raw[batch.at + batch.size - 1] ^= 1
            path.write_bytes(raw)
        broker.start()


@pytest.fixture(scope="module")
def damage(kafka_broker: Broker) -> Iterator[tuple[KafkaLog, dict[str, str], Damaged]]:
    """One restart for all kinds of damage: a log, the topic of each kind, their batches."""
    bench = KafkaBench(kafka_broker)
    damaged = Damaged(bench)
    kinds = {"first": (0,), "middle": (4,), "two apart": (1, 3), "adjacent": (2, 3), "last": (-1,)}
    topics = {kind: damaged.topic(*hits) for kind, hits in kinds.items()}
    damaged.damage()
    log = bench.log()
    yield log, topics, damaged
    log.close()
    bench.close()


def _read_around(reader: Reader, end: int) -> tuple[list[int], list[Damage]]:
    """Offsets of all records up to `end`, and the damage, until both together reach it."""
    offsets: list[int] = []
    reached = [0]

    def at_end() -> bool:
        with within(2.0):  # no read hangs
            offsets.extend(r.offset for r in reader.read(1000, 0.5))
        reached.extend([*(o + 1 for o in offsets[-1:]), *(d.end_offset for d in reader.damaged)])
        return max(reached) >= end

    until(at_end)
    return offsets, reader.damaged


@pytest.mark.kafka
@pytest.mark.parametrize("kind", ["first", "middle", "two apart", "adjacent", "last"])
def test_a_damaged_batch_is_passed_over_exactly_and_reported(damage, kind):
    """
    Every other record is read, once and in order; reading does not stall.
    """
    log, topics, damaged = damage
    found = damaged.batches[topics[kind]]
    hit = [found[i] for i in damaged._hits[topics[kind]]]
    reader = log.reader(topics[kind], {0: 0})

    offsets, reported = _read_around(reader, found[-1].end)

    bad = {offset for batch in hit for offset in range(batch.first, batch.end)}
    assert reported == [Damage(0, batch.first, batch.end) for batch in hit]
    assert offsets == [o for o in range(found[-1].end) if o not in bad]
    log.append(topics[kind], [(None, b"and on it goes")])
    assert [r.value for r in read_all(reader, 1)] == [b"and on it goes"]
    reader.close()


@pytest.mark.parametrize("n_bad", range(1, 70))
def test_the_end_of_damage_is_found_whatever_follows_it(n_bad):
    """
    Good batches, other damage, or nothing; and no offset is asked for twice.
    """
    first = 1000
    for end in (first + n_bad, first + n_bad + 1, first + n_bad + 50):
        for after in (None, "other damage"):
            asked = [first]

            def complaint(offset: int, after=after, asked=asked, end=end) -> str | None:
                assert first < offset < end
                asked.append(offset)
                return "this damage" if offset < first + n_bad else after

            probe = object.__new__(Probe)
            probe._complaint = complaint
            assert probe._search(first, end, "this damage") == first + n_bad
            assert len(asked) == len(set(asked)) <= 2 * 7 + 2


@pytest.mark.kafka
def test_reading_that_starts_inside_damage_goes_on_behind_it(damage):
    """
    What is reported begins where reading was to begin.
    """
    log, topics, damaged = damage
    hit = damaged.batches[topics["middle"]][4]
    inside = (hit.first + hit.end) // 2
    assert hit.first < inside < hit.end
    reader = log.reader(topics["middle"], {0: inside})

    offsets, reported = _read_around(reader, damaged.batches[topics["middle"]][-1].end)

    assert reported == [Damage(0, inside, hit.end)]
    assert offsets[0] == hit.end
    reader.close()
