"""Reads a Kafka topic from stated offsets on, trusting kafka-python with little.

* *Position*: the reader knows the next offset of each partition itself. After anything unexpected
  the consumer is thrown away and a new one is sent to where the reader is. Kept, a consumer that
  met a damaged batch spins inside `poll` for ever.
* *Silence*: no records may mean that there are none, or that nobody answers. Now and then it asks.

No record is passed over without LogTruncated or an entry in `damaged`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import LogTruncationError, OffsetOutOfRangeError

from streams.errors import LogTruncated, LogUnavailable
from streams.log.contract import Damage, Record
from streams.log.kafka_client import CLOSE_S, close_client, connect_consumer, in_ms
from streams.log.kafka_damage import UNREADABLE, Probe
from streams.log.kafka_options import KafkaOptions

logger = logging.getLogger(__name__)

READ_BYTES, POLL_RECORDS = 16 << 20, 256  # of values together, and of records per question
SILENCE_S = 10.0  # after this long without records, a reader asks whether there are any


class KafkaReader:
    """See `streams.log.contract.Reader` for the contract. Connects when first read from."""

    def __init__(self, options: KafkaOptions, topic: str, offsets: Mapping[int, int]) -> None:
        """Start at `offsets`, the next offset of each partition to be read."""
        self.damaged: list[Damage] = []
        self.passed: dict[int, int] = {}
        self._options, self._topic = options, topic
        self._next = dict(offsets)
        self._consumer: KafkaConsumer | None = None
        self._asked_at_s = time.monotonic()  # when it was last known that somebody answers
        self._ends: dict[TopicPartition, int] = {}  # as they were then
        self._lost: LogTruncated | None = None  # once records are gone, they stay gone

    def read(self, records_max: int, timeout_s: float) -> list[Record]:
        """The next records, or [] after `timeout_s`. Raises LogUnavailable and LogTruncated.

        It may take `connect_s_min` to connect, and `request_timeout_s` to pass over damage.
        """
        if self._lost is not None:
            raise self._lost
        if not self._next:
            time.sleep(timeout_s)
            return []
        deadline = time.monotonic() + timeout_s
        consumer = self._connected(timeout_s)
        found: list[Record] = []
        try:
            found = self._poll(consumer, records_max, deadline)
            if not found:
                self._pass_what_is_no_record(consumer)
                self._check_silence(consumer)
        except UNREADABLE as error:
            logger.error("%s holds bytes that can't be read: %s", self._topic, error)
            self._forget_consumer()
            self._pass_damage()
            return []
        except OffsetOutOfRangeError as error:
            self._raise_truncated(consumer, next(iter(error.args[0])), error)
        except LogTruncationError as error:
            self._raise_truncated(consumer, next(iter(error.divergent_offsets)), error)
        except Exception as error:
            self._forget_consumer()
            raise LogUnavailable(f"{self._topic} can't be read: {error!r}") from error
        return found

    def close(self) -> None:
        """Let go of connections. Safe to call twice."""
        self._forget_consumer()

    def _poll(self, consumer: KafkaConsumer, records_max: int, deadline: float) -> list[Record]:
        """Poll a few records at a time, and no more once they are `READ_BYTES`."""
        found: list[Record] = []
        n_bytes = 0
        while len(found) < records_max and n_bytes < READ_BYTES:
            wait_ms = 0 if found else in_ms(max(0.0, deadline - time.monotonic()))
            try:
                polled = consumer.poll(wait_ms, min(POLL_RECORDS, records_max - len(found)))
            except Exception:
                if not found:
                    raise
                self._forget_consumer()  # the next one meets it again, and nothing else before
                break
            taken = self._take(polled)
            if not taken:
                break
            found += taken
            n_bytes += sum(len(record.value or b"") for record in taken)
        return found

    def _take(self, polled: Mapping[TopicPartition, list[Any]]) -> list[Record]:
        """kafka-python's records as ours; reading goes on after them."""
        records: list[Record] = []
        for (_, partition), found in polled.items():
            records += [Record(partition, r.offset, r.timestamp, r.key, r.value) for r in found]
            self._next[partition] = found[-1].offset + 1
        if records:
            self._asked_at_s, self._ends = time.monotonic(), {}
        return records

    def _connected(self, timeout_s: float) -> KafkaConsumer:
        """The consumer, made and sent to `_next` if there is none. Raises LogUnavailable."""
        if self._consumer is None:
            consumer = connect_consumer(self._options, timeout_s)
            places = {TopicPartition(self._topic, p): offset for p, offset in self._next.items()}
            consumer.assign(list(places))
            for place, offset in places.items():
                consumer.seek(place, offset)
            self._consumer = consumer
            # It may be silent as long as any before it: on a slow line, or a busy machine, its
            # first records come later than one `read` waits. Judged at once, it brings none, ever.
            self._asked_at_s = time.monotonic()
        return self._consumer

    def _forget_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            close_client(consumer, CLOSE_S)

    def _raise_truncated(
        self, consumer: KafkaConsumer, place: TopicPartition, cause: Exception
    ) -> NoReturn:
        """Raise LogTruncated with what the partition holds now, or LogUnavailable."""
        wanted = self._next[place.partition]
        try:
            wait_ms = in_ms(self._options.connect_s_min)
            first = consumer.beginning_offsets([place], timeout_ms=wait_ms)[place]
            end = consumer.end_offsets([place], timeout_ms=wait_ms)[place]
        except Exception as error:
            raise LogUnavailable(f"{self._topic} can't be read: {error!r}") from error
        finally:
            self._forget_consumer()
        if isinstance(cause, LogTruncationError):
            # The log has grown again since, with other records: what was read ends where it forked.
            fork = cause.divergent_offsets[place]
            end = min(end, wanted - 1 if fork is None else fork.offset)
        if first <= wanted <= end:
            raise LogUnavailable(f"{self._topic}: a broker was behind the others: {cause}")
        self._lost = LogTruncated(self._topic, place.partition, wanted, first, end)
        raise self._lost from cause

    def _pass_what_is_no_record(self, consumer: KafkaConsumer) -> None:
        """Go on behind ends of transactions, and what was taken back in them."""
        wait_ms = in_ms(self._options.connect_s_min)
        for place in consumer.assignment():
            at = consumer.position(place, timeout_ms=wait_ms)
            if at is not None and at > self._next[place.partition]:
                self._next[place.partition] = self.passed[place.partition] = at

    def _check_silence(self, consumer: KafkaConsumer) -> None:
        """After a while without records, ask for the ends; complain if they were there before.

        So that a topic that is gone, a cluster that moved, or a partition that is stuck shows.
        """
        if time.monotonic() - self._asked_at_s < SILENCE_S:
            return
        places = sorted(consumer.assignment())
        wait_ms = in_ms(self._options.connect_s_min)
        for place, end in self._ends.items():
            if (at := consumer.position(place, timeout_ms=wait_ms)) < end:
                raise LogUnavailable(
                    f"{place} has ended at {end} for {SILENCE_S:.0f} s, yet reading stays at {at}"
                )
        self._ends = consumer.end_offsets(places, timeout_ms=wait_ms)
        self._asked_at_s = time.monotonic()

    def _pass_damage(self) -> None:
        """Find which partitions can't be read where they are, and go on behind the damage."""
        deadline = time.monotonic() + self._options.request_timeout_s
        for partition, first in list(self._next.items()):
            with Probe(self._options, TopicPartition(self._topic, partition), deadline) as probe:
                end = probe.end_of_damage(first)
            if end > first:
                self.damaged.append(Damage(partition, first, end))
                self._next[partition] = end
