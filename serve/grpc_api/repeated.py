"""Refuses messages with too many parts before they are parsed.

    bytes ──tags of the top level──▶ how often each field comes ──▶ one too often: InvalidRequest
        └───tags within, too───────▶ how many there are in all ──▶ too many: InvalidRequest

A part takes two bytes and half a microsecond: 16 MB hold eight million, which kept the event loop
for eleven seconds. So tags are counted on the wire, without a look into what they hold, and never
further than the limit. What is too short to have too many parts is not walked through: most
messages, and of the others all but what surrounds an embedding or a text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serve.errors import InvalidRequest
from serve.routing.request import BATCH_MAX, MODELS_LISTED_MAX, TAGS_MAX

PARTS_MAX = 100_000  # of any other field: they are counted in 0.08 s
LIMITS = {
    "fairlead.v1.RouteRequest": {
        "allowed_models": MODELS_LISTED_MAX,
        "denied_models": MODELS_LISTED_MAX,
        "tags": TAGS_MAX,
    },
    "fairlead.v1.RouteArmRequest": {"groups": MODELS_LISTED_MAX},
    "fairlead.v1.RouteBatchRequest": {"requests": BATCH_MAX},
    "fairlead.v1.RouteArmBatchRequest": {"requests": BATCH_MAX},
    "fairlead.v1.FeedbackRequest": {"outcomes": BATCH_MAX},
    "fairlead.v1.DispatchRequest": {"messages": PARTS_MAX},
}
# Of all that a message holds, at any depth: what its limits allow, or as many as of one field.
PARTS_MAX_WITHIN = {
    "fairlead.v1.RouteBatchRequest": 2 * BATCH_MAX * MODELS_LISTED_MAX + PARTS_MAX,
    "fairlead.v1.RouteArmBatchRequest": 3 * BATCH_MAX * MODELS_LISTED_MAX + PARTS_MAX,
}
UNSEEN = 64  # parts at most in a rest that is taken to hold as many as it can
# What is only a little too long is parsed, so that its refusal can name the request it came in.
SLACK = 16
PART_BYTES_MIN = 2  # a tag, and a length or value
VARINT, FIXED_64, BYTES, GROUP, GROUP_END, FIXED_32 = range(6)
VARINT_BITS_MAX = 64
FIXED_BYTES = {FIXED_64: 8, GROUP: 0, GROUP_END: 0, FIXED_32: 4}


def part_check(message: Any) -> Callable[[bytes], None]:
    """What raises InvalidRequest for bytes of this message with too many parts."""
    named = LIMITS.get(message.full_name, {})
    limits = {message.fields_by_name[name].number: borne(most) for name, most in named.items()}
    short_bytes = PART_BYTES_MIN * min(limits.values(), default=PARTS_MAX)
    most_within = PARTS_MAX_WITHIN.get(message.full_name, PARTS_MAX)

    def check(content: bytes) -> None:
        if len(content) <= short_bytes:
            return
        check_top_level(content)
        if len(content) > PART_BYTES_MIN * most_within and not _fits(content, message, most_within):
            problem = f"more than {most_within:,} parts, with those within parts"
            raise InvalidRequest("message", problem, f"of at most {most_within:,}")

    def check_top_level(content: bytes) -> None:
        number = first_in_excess(content, limits)
        if number is not None:
            known = message.fields_by_number.get(number)
            name = known.name if known else f"field {number}"
            most, n_min = named.get(name, PARTS_MAX), limits.get(number, PARTS_MAX) + 1
            raise InvalidRequest(name, f"at least {n_min:,} long", f"at most {most:,} long")

    return check


def borne(most: int) -> int:
    """How many parts are parsed, of which `most` are allowed."""
    return min(SLACK * most, PARTS_MAX)


def first_in_excess(content: bytes, limits: dict[int, int]) -> int | None:
    """The number of the first field that comes more often than it may.

    None also where the bytes are no message: whoever parses them says so.
    """
    counts: dict[int, int] = {}
    at, end = 0, len(content)
    try:
        while at < end:
            tag, at = _varint(content, at)
            at = _behind(content, at, tag & 7)
            number = tag >> 3
            counts[number] = n = counts.get(number, 0) + 1
            if n > limits.get(number, PARTS_MAX):
                return number
    except (IndexError, KeyError):
        pass
    return None


def _fits(content: bytes, message: Any, most: int) -> bool:
    """Whether a message and all within it have no more than so many parts."""
    try:
        return _left(content, 0, len(content), message, most) >= 0
    except (IndexError, KeyError):
        return True  # it is none, and the parser says so


def _left(content: bytes, at: int, end: int, message: Any, left: int) -> int:
    """What is left of so many parts after those from `at` to `end`; below zero: too few."""
    while at < end and left >= 0:
        if (rest := (end - at) // PART_BYTES_MIN) <= UNSEEN:
            return left - rest
        tag, value = _varint(content, at)
        at, left = _behind(content, value, tag & 7), left - 1
        field = message.fields_by_number.get(tag >> 3)
        if field is not None and field.message_type is not None and tag & 7 == BYTES:
            length, begins = _varint(content, value)
            left = _left(content, begins, begins + length, field.message_type, left)
    return left


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends.

    Raises IndexError where it does not end.
    """
    value = shift = 0
    while (byte := content[at]) >= 0x80:
        if shift >= VARINT_BITS_MAX:
            raise IndexError
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | byte << shift, at + 1


def _behind(content: bytes, at: int, kind: int) -> int:
    """Where a field's value ends that begins at `at`. Raises KeyError for a kind there is not."""
    if kind == BYTES:
        length, at = _varint(content, at)
        return at + length
    if kind == VARINT:
        return _varint(content, at)[1]
    return at + FIXED_BYTES[kind]
