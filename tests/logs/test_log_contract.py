"""The log's contract, kept by every implementation: SQLite, Kafka, and the one in memory."""

from __future__ import annotations

import pickle
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from log_benches import (
    KafkaBench,
    MemoryBench,
    SqliteBench,
    by_partition,
    pairs,
    read_all,
    read_topic,
    within,
)
from waiting import PATIENCE_S

from streams import errors
from streams.errors import LogTruncated, LogUnavailable, OptionRefused, RecordTooLarge, TopicUnfit
from streams.log.contract import Log


@pytest.fixture(params=["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryBench | SqliteBench | KafkaBench:
    if request.param == "memory":
        return MemoryBench()
    if request.param == "sqlite":
        return SqliteBench(tmp_path)
    return request.getfixturevalue("kafka")


@pytest.fixture
def topic(bench: MemoryBench | SqliteBench | KafkaBench) -> str:
    return bench.topic()


@pytest.fixture
def log(bench: MemoryBench | SqliteBench | KafkaBench) -> Iterator[Log]:
    log = bench.log()
    yield log
    log.close()


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


def test_reading_nothing_takes_no_longer_than_asked(bench, log, topic):
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
