"""What would become of feedback if it were written now: the trainer's own checks, without a log.

    lines ─▶ Ingest ─▶ seen before in these lines? ─▶ accepted │ duplicate │ refused, with why

Producers run it over what they are about to send. Without the router's key a ticket can't be
opened; then only its shape is checked, and nothing that depends on what is in it.

With the key, what is accepted here is what a trainer that reads it now learns from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np

from streams.errors import BadFeedback
from streams.feedback.feedback import DeadLetter, FeedbackOptions, Ingest
from streams.feedback.report import QUALITY_BIT, REPORTED, Reason, Report
from streams.feedback.seen import Seen
from streams.feedback.ticket import Sealer, check_shape, split_ids, ticket_bytes
from streams.log.contract import Record

LINES_PER_BATCH = 4096  # keeps memory flat however long the file is


@dataclass(frozen=True, slots=True)
class Refused:
    """One line that would become a dead letter."""

    line: int  # the first is 1
    reason: str  # a `Reason`
    detail: str


@dataclass(slots=True, kw_only=True)
class Checked:
    """What would become of all lines: `records = accepted + duplicate + len(refused)`."""

    tickets_opened: bool
    records: int = 0
    accepted: int = 0
    duplicate: int = 0  # reports only what earlier lines have reported; harmless
    refused: list[Refused] = field(default_factory=list)

    def by_reason(self) -> dict[str, int]:
        """How many lines are refused for each reason, the most frequent first."""
        return dict(Counter(refused.reason for refused in self.refused).most_common())

    def as_dict(self) -> dict[str, object]:
        """Plain data, as `--json` prints it."""
        return {**asdict(self), "by_reason": self.by_reason()}


def check(
    lines: Iterable[bytes],
    sealer: Sealer | None,
    encoder: int,
    options: FeedbackOptions,
    now_ms: int,
) -> Checked:
    """Check records, one per line, as if they were written at `now_ms`; empty lines don't count.

    Without a `sealer`, tickets are checked for their shape only and `encoder` plays no part.
    """
    found, seen = Checked(tickets_opened=sealer is not None), Seen()
    ingest = Ingest(sealer or _Keyless(), encoder, options)
    sort = _opened if sealer is not None else _unopened
    for records in _batches(lines, now_ms):
        parts, dead = sort(ingest, records)
        ids, bits = [part.decision_id for part in parts], [part.bits for part in parts]
        times = np.full(len(parts), now_ms)
        fresh = seen.claim(*split_ids(ids), np.array(bits, np.uint8), times)
        corrected = seen.learned(
            split_ids(ids),
            np.zeros(len(parts), np.int64),
            np.array([part.revision for part in parts], np.uint8),
            np.zeros(len(parts), np.uint8),
            (fresh & QUALITY_BIT) > 0,
        )
        news = {part.line for i, part in enumerate(parts) if fresh[i] or i in corrected}
        found.records += len(records)
        found.accepted += len(news)
        found.duplicate += len({part.line for part in parts} - news)
        found.refused += [
            Refused(letter.record.offset, str(letter.reason), letter.detail)
            for letter in sorted(dead, key=lambda letter: letter.record.offset)
        ]
    return found


class Part(NamedTuple):
    """What one line says of one decision."""

    line: int
    decision_id: bytes
    bits: int
    revision: int


Sorted = tuple[list[Part], Sequence[DeadLetter]]


def _opened(ingest: Ingest, records: Sequence[Record]) -> Sorted:
    ingested = ingest.take(records)
    each = zip(ingested.records, ingested.bits.tolist(), ingested.reports, strict=True)
    found = [
        Part(record.offset, check_shape(ticket_bytes(report.ticket)), bits, report.revision or 0)
        for record, bits, report in each
    ]
    return found, ingested.dead


def _unopened(ingest: Ingest, records: Sequence[Record]) -> Sorted:
    found: list[Part] = []
    dead = []
    for record in records:
        try:
            parts = ingest.parts(record.value)
        except BadFeedback as error:
            dead.append(DeadLetter(record, Reason(error.reason), error.detail))
            continue
        found += [
            Part(record.offset, decision_id, _bits(report), report.revision or 0)
            for report, decision_id, _ in parts
        ]
    return found, dead


def _bits(report: Report) -> int:
    return sum(1 << i for i, name in enumerate(REPORTED) if getattr(report, name) is not None)


def _batches(lines: Iterable[bytes], now_ms: int) -> Iterator[list[Record]]:
    """Records whose offsets are the numbers of their lines."""
    numbered = ((number, line.rstrip(b"\r\n")) for number, line in enumerate(lines, 1))
    records = (Record(0, n, now_ms, None, line) for n, line in numbered if line.strip())
    while batch := list(islice(records, LINES_PER_BATCH)):
        yield batch


class _Keyless:
    """Stands in for a `Sealer` where there is no key: tickets keep their secrets."""

    def open_body(self, ticket: bytes) -> tuple[bytes, bytes]:
        """Decision id, and no body. Raises BadTicket."""
        return check_shape(ticket), b""

    def proves(self, decision_id: bytes, proof: bytes) -> bool:
        """Who holds no key takes others at their word."""
        del decision_id, proof
        return True
