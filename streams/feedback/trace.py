"""What became of one decision's outcomes: where they are in the log, and what of them was learned.

    ticket ─▶ decision id ─┬─▶ feedback topic: its records, by partition and offset
                           ├─▶ dead letters: those that were refused, with why
                           └─▶ newest snapshot: the values that were learned, and up to where

No key is needed: a ticket has its decision's id in the clear. A record that names several
decisions is found by each of them.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from learners.targets import ONE
from streams.errors import BadTicket, LogUnavailable
from streams.feedback.dead_letters import came_from
from streams.feedback.report import QUALIFIED, REPORTED, Report
from streams.feedback.seen import Seen
from streams.feedback.ticket import check_shape, split_ids, ticket_bytes
from streams.log.contract import DEAD_LETTER, FEEDBACK, Log, Record

READ_S, RECORDS_MAX = 10.0, 1000
LEARNED, REFUSED, WAITING = "read", "refused", "waiting"  # what became of a record


def trace(
    log: Log, seen: Seen | None, offsets: Mapping[int, int], decision_id: bytes
) -> dict[str, Any]:
    """As JSON; `seen` and `offsets` are of the newest snapshot. Raises LogUnavailable."""
    letters = {
        came_from(one): msgspec.json.decode(one.value or b"{}") for one in _all(log, DEAD_LETTER)
    }
    records = [
        _record(record, letters.get((record.partition, record.offset)), offsets)
        for record in _all(log, FEEDBACK)
        if decision_id in _named(record)
    ]
    issuers, sequences = split_ids([decision_id])
    bits = 0 if seen is None else int(seen.claimed(issuers, sequences)[0])
    kept = None if seen is None else seen.kept(int(issuers[0]), int(sequences[0]))
    return {
        "decision_id": decision_id.hex(),
        "learned": {name: bool(bits >> i & 1) for i, name in enumerate(REPORTED)},
        "quality": None if kept is None else kept[0] / ONE,
        "revision": None if kept is None else kept[1],
        "records": records,
    }


def _record(
    record: Record, letter: dict[str, Any] | None, offsets: Mapping[int, int]
) -> dict[str, Any]:
    report = msgspec.json.decode(record.value or b"", type=Report)
    tickets = ("better_than", "steps")
    said = {
        name: value
        for name in (*REPORTED, *QUALIFIED)
        if name not in tickets and (value := getattr(report, name)) is not None
    }
    passed = record.offset < offsets.get(record.partition, 0)
    became = REFUSED if letter else LEARNED if passed else WAITING
    return {
        "partition": record.partition,
        "offset": record.offset,
        "appended_at_unix_ms": record.appended_at_ms,
        "became": became,
        "reason": letter["reason"] if letter else "",
        "detail": letter["detail"] if letter else "",
        "decisions": len(_named(record)),
        "said": said,
    }


def _named(record: Record) -> set[bytes]:
    """The decisions that a record names; none where it can't be read."""
    try:
        report = msgspec.json.decode(record.value or b"", type=Report)
        texts = [report.ticket, *(report.steps or ()), *filter(None, [report.better_than])]
        return {check_shape(ticket_bytes(text)) for text in texts}
    except (msgspec.DecodeError, UnicodeDecodeError, BadTicket, binascii.Error, ValueError):
        return set()


def _all(log: Log, topic: str) -> Iterator[Record]:
    """What a topic holds now. Raises LogUnavailable."""
    firsts, ends = log.first_offsets(topic), log.end_offsets(topic)
    left = sum(ends[p] - firsts[p] for p in ends)
    reader = log.reader(topic, firsts)
    try:
        while left > 0:
            records = reader.read(RECORDS_MAX, READ_S)
            lost = sum(damage.end_offset - damage.first_offset for damage in reader.damaged)
            reader.damaged.clear()
            if not records and not lost:
                raise LogUnavailable(f"{left} records of {topic} did not come within {READ_S} s")
            left -= len(records) + lost
            yield from records
    finally:
        reader.close()
