"""The log: topics of partitions of records, appended at the end and read from any offset.

Two implementations keep this contract, and one set of tests checks both: `sqlite_log` (a file,
for one machine) and `kafka_log` (a real broker).

An append that returned is durable; one that raised may or may not be in the log.
Readers keep their own offsets (they live in snapshots), so there are no consumer groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

DECISIONS = "fairlead.decisions"
FEEDBACK = "fairlead.feedback"
DEAD_LETTER = "fairlead.feedback.dead-letter"
TELEMETRY = "fairlead.telemetry"
TOPICS = (DECISIONS, FEEDBACK, DEAD_LETTER, TELEMETRY)


class Record(NamedTuple):
    """One record as read back."""

    partition: int
    offset: int
    appended_at_ms: int  # Unix time on the log's clock, which may jump: see `streams.clock`
    key: bytes | None
    value: bytes | None  # None only where another producer wrote a null


class Damage(NamedTuple):
    """Records that are in the log but can't be read: their bytes fail the checksum."""

    partition: int
    first_offset: int  # the first that can't be read
    end_offset: int  # the next that can


class Reader(Protocol):
    """Reads one topic from stated offsets on. Used by one thread at a time."""

    # What was skipped because it can't be read, oldest first; whoever counts it takes it out.
    # `read` goes on after it, so the offsets to go on from lie after both records and damage.
    damaged: list[Damage]
    # Offsets, by partition, that reading has come to over what is no record, such as the end of a
    # transaction: nothing lies between them and the last record. Whoever notes them takes them out.
    passed: dict[int, int]

    def read(self, records_max: int, timeout_s: float) -> list[Record]:
        """The next records of any partition, in offset order within each; [] after `timeout_s`.

        Raises LogUnavailable (try again) and LogTruncated (the next offset is gone).
        """

    def close(self) -> None:
        """Let go of connections. Safe to call twice."""


class Log(Protocol):
    """Safe to use from several threads."""

    def ensure_topics(self) -> None:
        """Make missing topics. Raises LogUnavailable, and TopicUnfit for one that won't do."""

    def append(
        self,
        topic: str,
        records: Sequence[tuple[bytes | None, bytes]],
        timeout_s: float = 30.0,
        partitions: Sequence[int] | None = None,
    ) -> None:
        """Append (key, value) pairs; on return all are durable. Raises LogUnavailable.

        Records of one key keep their order and share a partition: the one that
        `partitioner.partitions_of` says, or each the one in `partitions`. A record larger than the
        log takes raises RecordTooLarge.
        """

    def reader(self, topic: str, offsets: Mapping[int, int]) -> Reader:
        """Read exactly the partitions in `offsets`, each from its offset on."""

    def end_offsets(self, topic: str) -> dict[int, int]:
        """For every partition, the offset its next record will get. Raises LogUnavailable."""

    def first_offsets(self, topic: str) -> dict[int, int]:
        """For every partition, the oldest offset still held. Raises LogUnavailable."""

    def topic_id(self, topic: str) -> str:
        """Identity of the topic: changes when it is deleted and made again."""

    def problems(self) -> list[str]:
        """What keeps the log from keeping its promises now, such as a topic set up otherwise since.

        Raises LogUnavailable.
        """

    def retain(self, kept_from: Mapping[str, Mapping[int, int]], before_ms: int) -> int:
        """Drop what is older than `before_ms` or beyond the log's size; return how many records.

        Of each topic in `kept_from` nothing from the offsets there on. A log that keeps its bounds
        by itself does nothing. Raises LogUnavailable.
        """

    def close(self) -> None:
        """Let go of files and connections. Safe to call twice."""
