"""A stretch of a topic is read to its end, whatever lies in it and whoever writes meanwhile."""

from __future__ import annotations

import pytest
from memory_log import MemoryLog

from streams.errors import LogUnavailable
from streams.log.memory_log import Storage
from streams.log.stretch import Stretch

TOPIC = "t"


def stretch_of(log, topic: str = TOPIC) -> Stretch:
    return Stretch(log, topic, log.first_offsets(topic), log.end_offsets(topic))


def values_of(stretch: Stretch, records_max: int = 2) -> list[bytes]:
    return [r.value for records in stretch.batches(records_max, 10.0) for r in records]


def test_what_is_written_meanwhile_keeps_nothing_from_being_read():
    """
    Of two partitions the first is written to while it is read: the second is read whole, and what
    came later is not in it.
    """
    log = MemoryLog(Storage(n_partitions=2))
    log.append(TOPIC, [(None, b"first")] * 2, partitions=[0, 0])
    log.append(TOPIC, [(None, b"second")] * 3, partitions=[1, 1, 1])
    stretch = stretch_of(log)

    found = []
    for records in stretch.batches(2, 10.0):
        found += [record.value for record in records]
        log.append(TOPIC, [(None, b"later")] * 9, partitions=[0] * 9)

    assert sorted(found) == [b"first"] * 2 + [b"second"] * 3
    assert (stretch.at[1], stretch.left) == (3, 0)


def test_damage_is_counted_and_gone_on_behind():
    """
    So that the next look does not meet it again, at the very end, too.
    """
    log = MemoryLog()
    log.append(TOPIC, [(None, b"%d" % i) for i in range(6)])
    log.damage(TOPIC, 0, 4, 6)
    stretch = stretch_of(log)

    assert values_of(stretch) == [b"0", b"1", b"2", b"3"]
    assert (stretch.n_damaged, stretch.at) == (2, {0: 6})


def test_an_end_that_does_not_come_is_said():
    """
    Nobody waits longer than stated without a record.
    """
    log = MemoryLog()
    log.append(TOPIC, [(None, b"x")])
    stretch = Stretch(log, TOPIC, {0: 0}, {0: 2})

    with pytest.raises(LogUnavailable, match="1 records of t did not come within 0 s"):
        list(stretch.batches(10, 0.0))


@pytest.mark.kafka
def test_transactions_are_no_records_to_wait_for(kafka):
    """
    A topic whose last records were taken back ends with the ones before them.
    """
    topic, log = kafka.topic(n_partitions=1), kafka.log()
    kafka.transactions(topic, (b"done", True), (b"back", False))
    stretch = stretch_of(log, topic)

    assert stretch.left == 4
    assert values_of(stretch) == [b"done"]
    assert stretch.at == {0: 4}
    log.close()
