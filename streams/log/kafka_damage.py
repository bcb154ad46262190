"""How far a batch reaches that can't be read: found by asking for single offsets.

No offset is asked for twice, because kafka-python spins on what the first try left.
"""

from __future__ import annotations

import time
from typing import Self

from kafka import TopicPartition
from kafka.errors import CorruptRecordError, UnsupportedCodecError

from streams.errors import LogUnavailable
from streams.log.kafka_client import CLOSE_S, close_client, connect_consumer, in_ms
from streams.log.kafka_options import KafkaOptions

# A batch that is damaged, unpacks to too much, or is compressed by what is not installed here.
UNREADABLE = (CorruptRecordError, UnsupportedCodecError)


class Probe:
    """Reads single batches of one partition to find out which of them can't be read.

    kafka-python says that a batch is damaged, but not how far it reaches. What is certain: asked
    for any offset of a batch, a broker sends that batch, and the complaint about it is the same
    for all of its offsets.
    """

    def __init__(self, options: KafkaOptions, place: TopicPartition, deadline: float) -> None:
        """Connect. Raises LogUnavailable."""
        self._place, self._deadline = place, deadline
        # A broker never sends less than one whole batch, however little it is asked for. What is
        # asked ahead, at the end of the log, must not keep the next question waiting.
        self._consumer = connect_consumer(
            options, 0.0, max_partition_fetch_bytes=1, fetch_max_wait_ms=1
        )
        self._consumer.assign([place])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        close_client(self._consumer, CLOSE_S)

    def end_of_damage(self, first: int) -> int:
        """The offset after the damaged batch that holds `first`; `first` if it can be read."""
        try:
            end = self._consumer.end_offsets([self._place], timeout_ms=self._left_ms())[self._place]
            complaint = self._complaint(first) if first < end else None
            return first if complaint is None else self._search(first, end, complaint)
        except LogUnavailable:
            raise
        except Exception as error:
            raise LogUnavailable(f"{self._place} can't be examined: {error!r}") from error

    def _search(self, low: int, end: int, complaint: str) -> int:
        """Double the step while still inside the batch, then halve what is in doubt."""
        high = low + 1
        while high < end and self._complaint(high) == complaint:
            low, high = high, high + 2 * (high - low)
        high = min(high, end)
        while high - low > 1:  # `low` is inside, `high` is not
            middle = (low + high) // 2
            if self._complaint(middle) == complaint:
                low = middle
            else:
                high = middle
        return high

    def _complaint(self, offset: int) -> str | None:
        """What is wrong with the batch that holds `offset`; None if it can be read.

        Never asked twice for one offset: kafka-python would spin on what is left of the first try.
        """
        self._consumer.seek(self._place, offset)
        while self._consumer.position(self._place, timeout_ms=self._left_ms()) == offset:
            try:
                if self._consumer.poll(min(self._left_ms(), 200), 1):
                    return None
            except UNREADABLE as error:
                return str(error)
        return None  # only markers of transactions, which are not records

    def _left_ms(self) -> int:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise LogUnavailable(f"no answer in time on how far damage of {self._place} reaches")
        return in_ms(left_s)
