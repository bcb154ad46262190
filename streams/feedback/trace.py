"""What became of one decision's outcomes: where they are in the log, and what of them was learned.

    ticket ─▶ decision id ─┬─▶ feedback topic: its records, by partition and offset
                           ├─▶ dead letters: those that were refused, with why
                           └─▶ newest snapshot: the values that were learned, and up to where

No key is needed: a ticket has its decision's id in the clear. A record that names several
decisions is found by each of them. Who serves others looks at the newest records only, so that
nobody can make it read a log of years; then `complete` is false where there are more.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from learners.targets import ONE
from streams.errors import BadTicket
from streams.feedback.dead_letters import came_from
from streams.feedback.report import QUALIFIED, REPORTED
from streams.feedback.seen import Seen
from streams.feedback.ticket import check_shape, split_ids, ticket_bytes
from streams.log.contract import DEAD_LETTER, FEEDBACK, Log, Record
from streams.log.stretch import Stretch

READ_S, RECORDS_MAX = 10.0, 1000
SHOWN = [name for name in (*REPORTED, *QUALIFIED) if name not in ("better_than", "steps")]
_parts_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
LEARNED, REFUSED, WAITING = "read", "refused", "waiting"  # what became of a record


def trace(
    log: Log,
    seen: Seen | None,
    offsets: Mapping[int, int],
    decision_id: bytes,
    newest: int | None = None,
) -> dict[str, Any]:
    """As JSON; `seen` and `offsets` are of the newest snapshot. Raises LogUnavailable.

    Of each topic's partitions the `newest` records are looked at; None: all.
    """
    likely = _likely(decision_id)
    named = [
        record
        for record in _all(log, FEEDBACK, newest)
        if any(part in (record.value or b"") for part in likely) and decision_id in _named(record)
    ]
    places = {(record.partition, record.offset) for record in named}
    letters = {
        at: msgspec.json.decode(one.value or b"{}")
        for one in (_all(log, DEAD_LETTER, newest) if places else ())
        if (at := came_from(one)) in places
    }
    records = [
        _record(one, letters.get((one.partition, one.offset)), offsets, decision_id)
        for one in named
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
        "complete": newest is None or _holds_at_most(log, newest),
    }


def _likely(decision_id: bytes) -> tuple[bytes, bytes]:
    """What a ticket of this decision has in it, in both alphabets of base64.

    Three bytes are four characters. The id begins at a ticket's third byte, so the nine bytes after
    its first are the same characters in each.
    """
    part = base64.b64encode(decision_id[1:10])
    return part, base64.urlsafe_b64encode(decision_id[1:10])


def _holds_at_most(log: Log, n: int) -> bool:
    """Whether no partition of the feedback topic has more than n records."""
    firsts, ends = log.first_offsets(FEEDBACK), log.end_offsets(FEEDBACK)
    return all(ends[p] - firsts[p] <= n for p in ends)


def _record(
    record: Record, letter: dict[str, Any] | None, offsets: Mapping[int, int], decision_id: bytes
) -> dict[str, Any]:
    whole = _parts_of(record.value or b"")
    said = {name: value for name in SHOWN if (value := _value(whole.get(name))) is not None}
    said |= _others(record, decision_id)
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


def _value(part: msgspec.Raw | None) -> object:
    """One value as it was said; its text where it can't be read, which is why it was refused."""
    if part is None:
        return None
    try:
        return msgspec.json.decode(part)
    except (msgspec.DecodeError, RecursionError):
        return bytes(part).decode(errors="replace")


class _Named(msgspec.Struct):
    """The tickets of a record, whatever else it says: it may have been refused for that."""

    ticket: str
    steps: list[str] | None = None
    better_than: str | None = None


def _others(record: Record, decision_id: bytes) -> dict[str, Any]:
    """The other decisions that a record names, by id: tickets are nobody else's to see."""
    report = msgspec.json.decode(record.value or b"", type=_Named)
    said_of = _id_of(report.ticket)
    found: dict[str, Any] = {} if said_of == decision_id.hex() else {"decision_id": said_of}
    if report.better_than is not None:
        found["better_than"] = _id_of(report.better_than)
    if report.steps:
        found["steps"] = [_id_of(step) for step in report.steps]
    return found


def _id_of(ticket: str) -> str:
    return check_shape(ticket_bytes(ticket)).hex()


def _named(record: Record) -> set[bytes]:
    """The decisions that a record names; none where it can't be read."""
    try:
        report = msgspec.json.decode(record.value or b"", type=_Named)
        texts = [report.ticket, *(report.steps or ()), *filter(None, [report.better_than])]
        return {check_shape(ticket_bytes(text)) for text in texts}
    except (msgspec.DecodeError, UnicodeDecodeError, BadTicket, binascii.Error, ValueError):
        return set()


def _all(log: Log, topic: str, newest: int | None) -> Iterator[Record]:
    """What a topic holds now, or the newest of it. Raises LogUnavailable."""
    firsts, ends = log.first_offsets(topic), log.end_offsets(topic)
    if newest is not None:
        firsts = {p: max(first, ends[p] - newest) for p, first in firsts.items()}
    for records in Stretch(log, topic, firsts, ends).batches(RECORDS_MAX, READ_S):
        yield from records
