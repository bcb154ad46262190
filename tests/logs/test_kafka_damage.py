"""Batches damaged on a real broker's disk: passed over exactly, and reported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from local_kafka.broker import Broker
from log_benches import (
    Batch,
    KafkaBench,
    batches,
    read_all,
    within,
)
from waiting import until

from streams.log.contract import Damage, Reader
from streams.log.kafka_damage import Probe
from streams.log.kafka_log import KafkaLog

BATCH_RECORDS = (1, 2, 3, 26, 31, 7)  # per batch: the search for an end must not rely on luck


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
