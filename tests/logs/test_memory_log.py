"""The log in memory keeps the contract of the real ones, and crashes where it is told."""

from __future__ import annotations

import pytest
from memory_log import Crash, Fuse, MemoryLog

from streams.errors import LogUnavailable, RecordTooLarge
from streams.log.contract import Damage


def test_a_crash_comes_before_the_stated_call_and_stays():
    """
    Whatever the call is; what came before it has happened, nothing comes after it.
    """
    log = MemoryLog(crash_at=3)
    log.append("t", [(None, b"first")])
    log.append("t", [(None, b"second")])

    for call in (lambda: log.append("t", [(None, b"third")]), lambda: log.end_offsets("t")):
        with pytest.raises(Crash):
            call()

    restarted = MemoryLog(log.storage)
    assert [r.value for r in restarted.records("t")] == [b"first", b"second"]
    assert log.fuse.steps == ["append", "append"]


def test_every_call_is_a_step():
    """
    So that enumerating crash points misses none.
    """
    fuse = Fuse()
    log = MemoryLog(fuse=fuse)

    log.append("t", [(None, b"x")])
    log.first_offsets("t")
    log.reader("t", log.end_offsets("t")).read(1, 0.0)
    log.topic_id("t")

    assert fuse.steps == ["append", "first_offsets", "end_offsets", "reader", "read", "topic_id"]


def test_damage_is_passed_over_and_reported():
    """
    As a Kafka reader does with a batch that fails its checksum.
    """
    log = MemoryLog()
    log.append("t", [(None, b"%d" % i) for i in range(6)])
    log.damage("t", 0, 2, 4)
    reader = log.reader("t", {0: 0})

    assert [r.offset for r in reader.read(10, 0.0)] == [0, 1, 4, 5]
    assert reader.damaged == [Damage(0, 2, 4)]


def test_too_much_is_refused_as_by_the_real_log():
    """
    One record over the limit is RecordTooLarge, a backlog over its limit LogUnavailable.
    """
    log = MemoryLog(record_bytes_max=10, append_bytes_max=15)

    with pytest.raises(RecordTooLarge):
        log.append("t", [(None, b"x" * 11)])
    with pytest.raises(LogUnavailable):
        log.append("t", [(None, b"x" * 8)] * 2)
    assert log.records("t") == []
