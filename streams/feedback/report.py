"""One feedback record as producers write it: its fields, their bounds, what goes together.

    bytes ─▶ JSON ─▶ fields in bounds ─▶ something is said ─▶ Report

What is published as JSON schema is this declaration; docs/feedback.md explains it.
"""

from __future__ import annotations

import base64
import codecs
import re
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from streams.errors import BadFeedback
from streams.feedback.shapes import STEPS_MAX

# Also said in the proto and the published schema; a test compares the three.
COST_USD_MAX = 100.0  # dearer calls exist; as a routing signal they say the same
LATENCY_MS_MAX = 86_400_000.0
OUTPUT_TOKENS_MAX = 10_000_000
OUTPUT_TOKENS_LEARNED_MAX = 65_536  # more counts as this: no model in use answers at more length
RECORD_BYTES_MAX = 65_536
REVISION_MAX = 7
SOURCE_CHARS_MAX = 64
TRACEPARENT_CHARS_MAX = 128  # 55 now; what can't be read is no reason to refuse an outcome


class Reason(StrEnum):
    """Why a record was set aside. Stable names: dashboards and producers match on them."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    BAD_FIELD = "bad_field"
    NOTHING_REPORTED = "nothing_reported"
    BAD_TICKET = "bad_ticket"
    FOREIGN_ENCODER = "foreign_encoder"
    TOO_LATE = "too_late"
    FROM_THE_FUTURE = "from_the_future"
    DAMAGED = "damaged"


# Without `gc`, the collector leaves them alone: they hold strings and numbers, so no cycles.
class Report(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False
):
    """One feedback record: a ticket and what is known so far about what became of it."""

    ticket: Annotated[str, Meta(min_length=1, description="The decision's ticket, base64url.")]
    quality: Annotated[float, Meta(ge=0.0, le=1.0, description="0 useless, 1 perfect.")] | None = (
        None
    )
    cost_usd: (
        Annotated[float, Meta(ge=0.0, le=COST_USD_MAX, description="US dollars for the call.")]
        | None
    ) = None
    latency_ms: (
        Annotated[
            float,
            Meta(ge=0.0, le=LATENCY_MS_MAX, description="Milliseconds to the complete answer."),
        ]
        | None
    ) = None
    output_tokens: (
        Annotated[int, Meta(ge=0, le=OUTPUT_TOKENS_MAX, description="Tokens generated.")] | None
    ) = None
    error: Annotated[bool, Meta(description="The call failed; leave quality out.")] | None = None
    paid_usd: (
        Annotated[
            float,
            Meta(
                ge=0.0,
                le=COST_USD_MAX,
                description="US dollars paid for a call that answered nobody (failed, cancelled, "
                "not sure enough): counted, not learned. Leave cost_usd out then.",
            ),
        ]
        | None
    ) = None

    # How the quality was come by, see `shapes`.
    confidence: (
        Annotated[float, Meta(ge=0.0, le=1.0, description="How likely the quality is right.")]
        | None
    ) = None
    weight: (
        Annotated[
            float, Meta(ge=0.0, le=1.0, description="As how much of an outcome quality counts.")
        ]
        | None
    ) = None
    source: (
        Annotated[
            str,
            Meta(min_length=1, max_length=SOURCE_CHARS_MAX, description="Who says so."),
        ]
        | None
    ) = None
    revision: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=REVISION_MAX,
                description="0, or left out: first said; more: in place of a lower one.",
            ),
        ]
        | None
    ) = None
    better_than: (
        Annotated[
            str,
            Meta(min_length=1, description="Ticket of an answer this one was better than."),
        ]
        | None
    ) = None
    steps: (
        Annotated[
            list[Annotated[str, Meta(min_length=1)]],
            Meta(
                min_length=1,
                max_length=STEPS_MAX - 1,
                description="Tickets of a session's other steps; quality is the session's.",
            ),
        ]
        | None
    ) = None

    traceparent: (
        Annotated[
            str,
            Meta(
                max_length=TRACEPARENT_CHARS_MAX,
                description="W3C's trace context of who reports; the trainer goes on with it.",
            ),
        ]
        | None
    ) = None
    proof: (
        Annotated[
            str,
            Meta(
                description="Written by dispatchers alone: without it, only the quality of a call "
                "that a dispatcher made and measured is taken."
            ),
        ]
        | None
    ) = None


# The least and the most that a number may be, by the field's name.
BOUNDS = {
    name: (float(field["minimum"]), float(field["maximum"]))
    for name, whole in msgspec.json.schema(Report)["$defs"]["Report"]["properties"].items()
    for field in whole.get("anyOf", ())
    if "minimum" in field
}
# What says how the quality was come by, and of which other decisions.
QUALIFIED = ("confidence", "weight", "source", "revision", "better_than", "steps")
REPORTED = ("quality", "cost_usd", "latency_ms", "output_tokens", "error", "paid_usd")
MEASURED = tuple(name for name in REPORTED if name != "quality")  # by who makes the call
LEARNED_BITS = 0b011111  # of those, the ones that are learned; wasted spend only counts
QUALITY_BIT, COST_BIT, ERROR_BIT, PAID_BIT = (
    1 << REPORTED.index(name) for name in ("quality", "cost_usd", "error", "paid_usd")
)
# Policies, by the names in tickets, of what no router chose a model for: an answer bought to learn
# from, one read from a file, which somebody else has paid, and the use of an arm.
PROBE, IMPORT, ARMS = "probe", "import", "arms"
NANO_USD = 1e9  # money is counted in whole billionths of a dollar: exact, in any order
_decode = msgspec.json.Decoder(Report).decode
SHOWN_BYTES = 40  # of what is wrong: enough to find it by
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def as_text(ticket: bytes) -> str:
    """A ticket as records have it."""
    return base64.urlsafe_b64encode(ticket).decode()


def encode_report(ticket: bytes, *, proof: bytes | None = None, **reported: Any) -> bytes:
    """A feedback record's value, from a ticket and any of `REPORTED`."""
    proven: dict[str, Any] = (
        {} if proof is None else {"proof": base64.urlsafe_b64encode(proof).decode()}
    )
    text = as_text(ticket)
    return _encode(Report(ticket=text, **proven, **reported))


def read_report(value: bytes | None) -> Report:
    """One record's value. Raises BadFeedback."""
    if not value:
        raise BadFeedback(Reason.EMPTY, "the record has no value")
    if len(value) > RECORD_BYTES_MAX:
        raise BadFeedback(
            Reason.TOO_LARGE, f"{len(value)} bytes; a record has at most {RECORD_BYTES_MAX}"
        )
    try:
        report = _decode(value)
    except msgspec.ValidationError as error:
        raise BadFeedback(Reason.BAD_FIELD, f"{error}{_found(value, str(error))}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadFeedback(Reason.NOT_JSON, _why_no_json(value, str(error))) from None
    if (
        report.quality is None
        and report.cost_usd is None
        and report.latency_ms is None
        and report.output_tokens is None
        and report.error is None
        and report.paid_usd is None
        and report.better_than is None
    ):
        raise BadFeedback(Reason.NOTHING_REPORTED, f"none of {', '.join(REPORTED)} is given")
    _check_shape(report)
    return report


def _check_shape(report: Report) -> None:
    """What does not go together. Raises BadFeedback."""
    if report.better_than is not None and (report.quality is not None or report.steps):
        raise BadFeedback(Reason.BAD_FIELD, "better_than comes without quality and steps")
    if report.steps and (report.quality is None or any(_measured(report))):
        why = "steps come with quality alone; what calls cost and took is reported of each"
        raise BadFeedback(Reason.BAD_FIELD, why)


def _measured(report: Report) -> list[bool]:
    return [getattr(report, name) is not None for name in MEASURED]


def _why_no_json(value: bytes, message: str) -> str:
    """What the decoder says, with what stands at that place, or how to write it instead."""
    if value.startswith(codecs.BOM_UTF8):
        return "it begins with a byte order mark; write UTF-8 without one"
    if b"\0" in value:
        return "it has zero bytes, as UTF-16 has; write UTF-8"
    if "codec can't decode" in message:
        return f"{message}; write UTF-8"
    place = re.search(r"\(byte (\d+)\)$", message)
    at = value[int(place[1]) :][:SHOWN_BYTES].decode(errors="replace") if place else ""
    return f"{message}: {at}" if at else message


def _found(value: bytes, message: str) -> str:
    """What the record has in the field that msgspec's message names; "" if that is unclear."""
    field = message.rpartition("$.")[2].rstrip("`")
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return f", found {bytes(_decode_raw(value)[field])[:SHOWN_BYTES].decode(errors='replace')}"
    return ""


def schema() -> dict[str, Any]:
    """The JSON schema of a feedback record, as published."""
    return msgspec.json.schema(Report)
