"""A stretch of a topic, read from stated offsets to where the topic ended at one moment.

For those who look and do not follow: `trace`, exports, the dashboard, a trainer at its start.
Offsets are compared, never counted: between records may lie what is none (the end of a transaction,
what was taken back in one, damage), and behind the end more is written meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from streams.errors import LogUnavailable
from streams.log.contract import Log, Reader, Record

LOOK_S = 0.25  # a read that meets nothing but ends of transactions returns after this long


class Stretch:
    """From `starts` to `ends`, both offsets by partition. Read once, by one thread."""

    def __init__(
        self, log: Log, topic: str, starts: Mapping[int, int], ends: Mapping[int, int]
    ) -> None:
        """Nothing is read yet."""
        self.n_damaged = 0  # records that can't be read, as far as it was read
        self.at = {p: starts[p] for p in ends}  # where each partition goes on
        self._log, self._topic, self._ends = log, topic, ends

    @property
    def left(self) -> int:
        """Offsets between here and the end; at most so many records."""
        return sum(max(0, end - self.at[p]) for p, end in self._ends.items())

    def batches(self, records_max: int, patience_s: float) -> Iterator[list[Record]]:
        """All records, in offset order within each partition, at most `records_max` together.

        Raises LogTruncated, and LogUnavailable after `patience_s` without any way made.
        """
        ours = {p: offset for p, offset in self.at.items() if offset < self._ends[p]}
        reader = self._log.reader(self._topic, ours)
        until_s = time.monotonic() + patience_s
        try:
            while left := self.left:
                records = self._taken(reader, reader.read(records_max, LOOK_S))
                if self.left < left:
                    until_s = time.monotonic() + patience_s
                elif time.monotonic() > until_s:
                    raise LogUnavailable(
                        f"{left} records of {self._topic} did not come within {patience_s:g} s: "
                        f"nobody answers, or a producer keeps a transaction open"
                    )
                if records:
                    yield records
        finally:
            reader.close()

    def _taken(self, reader: Reader, records: list[Record]) -> list[Record]:
        """Those records that lie in the stretch; it goes on behind all that was read or passed."""
        for damage in reader.damaged:
            self._reach(damage.partition, damage.end_offset)
            self.n_damaged += damage.end_offset - damage.first_offset
        for record in records:
            self._reach(record.partition, record.offset + 1)
        for partition, offset in reader.passed.items():
            self._reach(partition, offset)
        reader.damaged.clear()
        reader.passed.clear()
        return [record for record in records if record.offset < self._ends[record.partition]]

    def _reach(self, partition: int, offset: int) -> None:
        self.at[partition] = max(self.at[partition], offset)
