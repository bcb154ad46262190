"""Our topics under names of their own, so that tests on one broker don't meet.

    Trainer, Outbox … ──"fairlead.feedback"──▶ RenamedLog ──"test-1f3a.fairlead.feedback"──▶ broker

Topics that a test left behind only take room on the broker's disk, for as long as it runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from streams.log.contract import Reader, Record
from streams.log.kafka_log import KafkaLog
from streams.log.kafka_options import PARTITIONS, KafkaOptions

PATIENT = {"request_timeout_s": 100.0, "delivery_timeout_s": 100.0}


class RenamedLog:
    """A `KafkaLog` whose topics have a prefix in front of their names. Implements `Log`."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        prefix: str = "",
        partitions: Mapping[str, int] = PARTITIONS,
        **options: object,
    ) -> None:
        """Without a prefix, one that nobody else has."""
        self.prefix = prefix or f"test-{uuid.uuid4().hex}."
        renamed = {self.prefix + topic: n for topic, n in partitions.items()}
        self._options = KafkaOptions(
            bootstrap_servers=bootstrap_servers, partitions=renamed, **options
        )
        self.kafka = KafkaLog(self._options)

    def ensure_topics(self) -> None:
        """However busy the machine is: a broker that missed its heartbeats has no topics made."""
        with closing(KafkaLog(replace(self._options, **PATIENT))) as patient:
            patient.ensure_topics()

    def append(
        self,
        topic: str,
        records: Sequence[tuple[bytes | None, bytes]],
        timeout_s: float = 30.0,
        partitions: Sequence[int] | None = None,
    ) -> None:
        self.kafka.append(self.prefix + topic, records, timeout_s, partitions)

    def reader(self, topic: str, offsets: Mapping[int, int]) -> Reader:
        return self.kafka.reader(self.prefix + topic, offsets)

    def end_offsets(self, topic: str) -> dict[int, int]:
        return self.kafka.end_offsets(self.prefix + topic)

    def first_offsets(self, topic: str) -> dict[int, int]:
        return self.kafka.first_offsets(self.prefix + topic)

    def topic_id(self, topic: str) -> str:
        return self.kafka.topic_id(self.prefix + topic)

    def problems(self) -> list[str]:
        return self.kafka.problems()

    def retain(self, kept_from: Mapping[str, Mapping[int, int]], before_ms: int) -> int:
        return self.kafka.retain(kept_from, before_ms)

    def close(self) -> None:
        self.kafka.close()

    def read_all(self, topic: str) -> list[Record]:
        """Everything in the topic that can be read now."""
        ends, found = self.end_offsets(topic), []
        reader = self.reader(topic, self.first_offsets(topic))
        reached = self.first_offsets(topic)
        try:
            while any(reached[p] < end for p, end in ends.items()):
                records, damaged = reader.read(10_000, 10.0), list(reader.damaged)
                reader.damaged.clear()
                assert records or damaged, f"{topic} ends at {ends}, reading at {reached}"
                found += records
                for record in records:
                    reached[record.partition] = record.offset + 1
                for damage in damaged:
                    reached[damage.partition] = max(reached[damage.partition], damage.end_offset)
        finally:
            reader.close()
        return found
