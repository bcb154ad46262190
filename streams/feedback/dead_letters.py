"""Dead letters: feedback that could not be learned, kept with the reason and where it came from.

The key is `partition/offset` of the feedback record, so every reader can tell repetitions.

A dead letter is never larger than the log takes. Very long originals are cut; where
they came from says where the whole is.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from streams.feedback.feedback import DeadLetter
from streams.feedback.report import RECORD_BYTES_MAX, Reason
from streams.log.contract import Damage, Record

VALUE_BYTES_MAX = RECORD_BYTES_MAX  # what is longer can't be learned from, whatever the rest says


def dead_letter(letter: DeadLetter) -> tuple[bytes, bytes]:
    """Key and value on the dead-letter topic; the original's bytes are base64 in the JSON."""
    record = letter.record
    value = {
        "reason": letter.reason,
        "detail": letter.detail[:1000],
        "partition": record.partition,
        "offset": record.offset,
        "appended_at_ms": record.appended_at_ms,
        "key": record.key[:VALUE_BYTES_MAX] if record.key is not None else None,
        "value": record.value[:VALUE_BYTES_MAX] if record.value is not None else None,
        "value_bytes": len(record.value or b""),
    }
    return f"{record.partition}/{record.offset}".encode(), msgspec.json.encode(value)


def came_from(record: Record) -> tuple[int, int]:
    """Partition and offset of the feedback record a dead letter was made of."""
    assert record.key is not None, "the dead-letter topic is written by trainers alone"
    partition, _, offset = record.key.partition(b"/")
    return int(partition), int(offset)


def unreadable(damage: Damage) -> Iterable[DeadLetter]:
    """A dead letter for every record that can't be read, so that each is accounted for."""
    for offset in range(damage.first_offset, damage.end_offset):
        record = Record(damage.partition, offset, 0, None, None)
        yield DeadLetter(record, Reason.DAMAGED, "its bytes in the log fail the checksum")
