"""What is particular to the log on Kafka: a real broker, which is also frozen, killed and restarted."""

from __future__ import annotations

import logging
import pickle
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import (
    InvalidReplicationFactorError,
    LogTruncationError,
    UnknownBrokerIdError,
)
from kafka.structs import OffsetAndMetadata
from local_kafka.broker import Broker
from log_benches import (
    pairs,
    read_all,
    read_topic,
    within,
)
from waiting import PATIENCE_S, until

from streams.errors import LogTruncated, LogUnavailable, OptionRefused, RecordTooLarge, TopicUnfit
from streams.log import kafka_reader
from streams.log.contract import TOPICS, Log, Reader, Record
from streams.log.kafka_log import KafkaLog
from streams.log.kafka_options import SECURITY_KEYS, KafkaOptions
from streams.log.kafka_reader import SILENCE_S, KafkaReader

# --- what other producers do


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
    kafka.transactions(topic, (b"aborted", False), (b"done", True))

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
def test_a_partition_that_nobody_leads_for_a_moment_is_asked_again(kafka, monkeypatch):
    """
    As after a broker that did not answer for a while: kafka-python then names broker -1, and does
    not call that an error that passes.
    """
    topic = kafka.topic(n_partitions=1)
    log = kafka.log()
    log.append(topic, pairs(3))
    errors, ask = [UnknownBrokerIdError(-1)], KafkaAdminClient.list_partition_offsets

    def list_partition_offsets(admin, *asked, **how):
        if errors:
            raise errors.pop()
        return ask(admin, *asked, **how)

    monkeypatch.setattr(KafkaAdminClient, "list_partition_offsets", list_partition_offsets)

    assert log.end_offsets(topic) == {0: 3}
    assert not errors


@pytest.mark.kafka
def test_a_topic_is_made_when_a_broker_that_was_away_counts_again(kafka, monkeypatch):
    """
    A broker that missed its heartbeats is fenced: for a moment there is nobody to keep a copy.
    """
    errors = [InvalidReplicationFactorError(), UnknownBrokerIdError(-1)]
    make = KafkaAdminClient.create_topics

    def made(admin, *asked, **how):
        if errors:
            raise errors.pop()
        return make(admin, *asked, **how)

    monkeypatch.setattr(KafkaAdminClient, "create_topics", made)

    assert kafka.log().end_offsets(kafka.topic(n_partitions=1)) == {0: 0}
    assert not errors


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


def test_a_consumer_that_replaces_a_silent_one_has_as_long_to_bring_something(monkeypatch):
    """
    One that is silent although there is more is replaced; the next one is slow, too, as where others
    have the cores. Given up at its first empty answer, as it once was, none would ever read on.
    """
    made: list[Mock] = []

    def connect(*_: object) -> Mock:
        consumer = Mock()
        consumer.assignment.return_value = [TopicPartition("t", 0)]
        consumer.position.return_value = 3
        consumer.end_offsets.return_value = {TopicPartition("t", 0): 5}
        consumer.poll.return_value = {}
        made.append(consumer)
        return consumer

    at_s = [0.0]
    monkeypatch.setattr(kafka_reader, "time", Mock(monotonic=lambda: at_s[0]))
    monkeypatch.setattr(kafka_reader, "connect_consumer", connect)
    reader = KafkaReader(KafkaOptions(bootstrap_servers="127.0.0.1:1"), "t", {0: 3})

    def read(seconds: float) -> list[int]:
        at_s[0] = seconds
        return [record.offset for record in reader.read(10, 0.0)]

    assert read(0.0) == read(1.1 * SILENCE_S) == []
    with pytest.raises(LogUnavailable, match="ended at 5"):
        read(2.2 * SILENCE_S)

    assert read(2.3 * SILENCE_S) == []
    record = Mock(offset=3, timestamp=1, key=None, value=b"x")
    made[1].poll.side_effect = [{("t", 0): [record]}, {}]

    assert read(2.4 * SILENCE_S) == [3]
    assert len(made) == 2


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
def test_a_frozen_broker_stands_still_at_once(frozen):
    """
    None of its threads runs on after `pause`: what is appended then can't be acknowledged.
    """
    for _ in range(20):
        frozen.pause()
        threads = Path(f"/proc/{frozen.pid}/task").glob("*/stat")
        assert {stat.read_text().rpartition(")")[2].split()[0] for stat in threads} == {"T"}
        frozen.resume()


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
    Appends that gave up still count, so the next ones fail at once; room comes back in time. They
    don't expire meanwhile, however long this test is kept waiting.
    """
    topic = kafka.topic(n_partitions=1)
    patience = {"request_timeout_s": 1.0, "delivery_timeout_s": PATIENCE_S}
    log = kafka.log(**patience, buffer_bytes_max=10_000)
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
