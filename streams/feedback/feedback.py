"""From bytes to outcomes: what a producer wrote is either believed whole or set aside whole.

    record ─▶ JSON ─▶ fields in bounds ─▶ ticket opens ─▶ same encoder ─▶ not too late ─▶ outcome
                └──────────┴──────────────────┴───────────────┴───────────────┴──▶ dead letter

Whether a record is accepted depends on the record alone (its bytes and the time the
log gave it), so that any reader at any time comes to the same answer.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from learners.estimates import calibration
from learners.estimates.ema import FIGURE_UNITS
from learners.estimates.influence import EARLIER, hash_of
from learners.option import option
from learners.outcomes import Outcomes
from learners.targets import COST_USD_MIN, LATENCY_MS_MIN, Target, ratio, to_fixed, winsorised
from streams.errors import BadFeedback, BadTicket
from streams.feedback.ticket import heads_of, is_measured, key_of, split_ids, tenant_of
from streams.log.contract import Record

# Also said in the proto and the published schema; a test compares the three.
COST_USD_MAX = 100.0  # dearer calls exist; as a routing signal they say the same
LATENCY_MS_MAX = 86_400_000.0
OUTPUT_TOKENS_MAX = 10_000_000
OUTPUT_TOKENS_LEARNED_MAX = 65_536  # more counts as this: no model in use answers at more length
RECORD_BYTES_MAX = 65_536


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


REPORTED = ("quality", "cost_usd", "latency_ms", "output_tokens", "error", "paid_usd")
MEASURED = tuple(name for name in REPORTED if name != "quality")  # by who makes the call
LEARNED_BITS = 0b011111  # of those, the ones that are learned; wasted spend only counts
COST_BIT, PAID_BIT = (1 << REPORTED.index(name) for name in ("cost_usd", "paid_usd"))
# Policies, by the names in tickets, of answers that were not a request's own: one bought to learn
# from, and one read from a file, which somebody else has paid.
PROBE, IMPORT = "probe", "import"
NANO_USD = 1e9  # money is counted in whole billionths of a dollar: exact, in any order
_decode = msgspec.json.Decoder(Report).decode
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def encode_report(ticket: bytes, *, proof: bytes | None = None, **reported: Any) -> bytes:
    """A feedback record's value, from a ticket and any of `REPORTED`."""
    proven: dict[str, Any] = (
        {} if proof is None else {"proof": base64.urlsafe_b64encode(proof).decode()}
    )
    text = base64.urlsafe_b64encode(ticket).decode()
    return _encode(Report(ticket=text, **proven, **reported))


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackOptions:
    """What feedback is believed."""

    # The window in which repeats are recognised is as long: about 1 byte per decision made in it.
    age_s_max: float = option(
        7 * 86_400.0,
        "Seconds after its decision that feedback still counts; 1 byte per decision.",
        ge=60,
        le=90 * 86_400,
    )
    clock_skew_s_max: float = option(
        300.0, "Seconds feedback may seem older than its decision: clocks differ.", ge=0, le=3600
    )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record set aside, with the reason."""

    record: Record
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, eq=False)
class Ingested:
    """What became of a run of records: outcomes with the bits they report, and dead letters."""

    records: list[Record]  # (n,) what each outcome was read from
    outcomes: Outcomes
    bits: NDArray[np.uint8]  # (n,) which of `REPORTED`, bit i for the i-th
    # (n, 4) cost of an answer and wasted spend; then both of what was bought to learn from
    spent_nano_usd: NDArray[np.int64]
    dead: list[DeadLetter]
    bodies: list[bytes]  # (n,) of the tickets


class Opener(Protocol):
    """What opens tickets: a `Sealer`, or who only looks at their shape."""

    def proves(self, decision_id: bytes, proof: bytes) -> bool:
        """Whether a report's proof is that of a holder of the key."""

    def open_body(self, ticket: bytes) -> tuple[bytes, bytes]:
        """Decision id and body. Raises BadTicket."""
        ...


class Ingest:
    """Validates feedback records against one encoder and one set of ticket keys."""

    def __init__(self, sealer: Opener, encoder: int, options: FeedbackOptions) -> None:
        """`encoder` is the key of the encoder whose contexts may be learned from."""
        self._sealer, self._encoder, self._options = sealer, encoder, options

    def check(self, value: bytes | None) -> tuple[Report, bytes, bytes]:
        """Report, decision id and ticket body of one record's value. Raises BadFeedback."""
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
            raise BadFeedback(Reason.NOT_JSON, str(error)) from None
        if (
            report.quality is None
            and report.cost_usd is None
            and report.latency_ms is None
            and report.output_tokens is None
            and report.error is None
            and report.paid_usd is None
        ):
            raise BadFeedback(Reason.NOTHING_REPORTED, f"none of {', '.join(REPORTED)} is given")
        try:
            ticket = _bytes_of(report.ticket)
            decision_id, body = self._sealer.open_body(ticket)
            proven = not is_measured(ticket) or self._proven(report, decision_id)
        except (BadTicket, binascii.Error, ValueError) as error:
            raise BadFeedback(Reason.BAD_TICKET, str(error)) from None
        if not proven:
            # What was measured here is not overwritten by who asked: counted as a repetition.
            for name in MEASURED:
                setattr(report, name, None)
        return report, decision_id, body

    def _proven(self, report: Report, decision_id: bytes) -> bool:
        return report.proof is not None and self._sealer.proves(
            decision_id, _bytes_of(report.proof)
        )

    def take(self, records: Sequence[Record]) -> Ingested:
        """Sort records into outcomes and dead letters."""
        dead: list[DeadLetter] = []
        kept: list[Record] = []
        reports: list[Report] = []
        ids: list[bytes] = []
        bodies: list[bytes] = []
        for record in records:
            try:
                report, decision_id, body = self.check(record.value)
            except BadFeedback as error:
                dead.append(DeadLetter(record, Reason(error.reason), error.detail))
                continue
            kept.append(record)
            reports.append(report)
            ids.append(decision_id)
            bodies.append(body)
        heads = heads_of(bodies)
        wrong = self._wrong(heads, np.array([r.appended_at_ms for r in kept], np.int64))
        dead += [DeadLetter(kept[row], *wrong[row]) for row in sorted(wrong)]
        if wrong:
            right = [row for row in range(len(kept)) if row not in wrong]
            kept, reports = [kept[i] for i in right], [reports[i] for i in right]
            ids, bodies = [ids[i] for i in right], [bodies[i] for i in right]
            heads = heads[right]
        reported = _reported(reports)
        known = ~np.isnan(reported)
        tenants = np.array([hash_of(tenant_of(body)) for body in bodies], np.uint8)
        # What an operator imports is no tenant's: it counts in full, as what all have reported.
        tenants[heads["policy"] == key_of(IMPORT)] = EARLIER
        outcomes = _outcomes(ids, np.nan_to_num(reported), known, heads, tenants)
        bits = np.packbits(known, axis=1, bitorder="little").reshape(-1)
        return Ingested(kept, outcomes, bits, _spent_nano_usd(reported, heads), dead, bodies)

    def _wrong(
        self, heads: NDArray[np.void], appended_at_ms: NDArray[np.int64]
    ) -> dict[int, tuple[Reason, str]]:
        """Rows whose ticket is genuine but can't be learned from, with why."""
        options = self._options
        age_s = (appended_at_ms - heads["decided_at_ms"]) / 1000.0
        wrong: dict[int, tuple[Reason, str]] = {}
        for row in np.flatnonzero(heads["encoder"] != self._encoder).tolist():
            wrong[row] = (
                Reason.FOREIGN_ENCODER,
                f"decided with encoder {heads['encoder'][row]:016x}; "
                f"this router learns with {self._encoder:016x}",
            )
        for name in ("expected_cost_usd", "expected_latency_ms"):
            for row in np.flatnonzero(~np.isfinite(heads[name])).tolist():
                wrong[row] = (
                    Reason.BAD_TICKET,
                    f"{name} is {heads[name][row]}: the router had a broken catalogue",
                )
        for row in np.flatnonzero(age_s > options.age_s_max).tolist():
            wrong[row] = (
                Reason.TOO_LATE,
                f"{age_s[row]:.0f} s after its decision; at most {options.age_s_max:.0f} s",
            )
        for row in np.flatnonzero(age_s < -options.clock_skew_s_max).tolist():
            wrong[row] = (
                Reason.FROM_THE_FUTURE,
                f"{-age_s[row]:.0f} s before its decision; clocks may differ by at most "
                f"{options.clock_skew_s_max:.0f} s",
            )
        return wrong


def _bytes_of(text: str) -> bytes:
    """Base64url. Raises binascii.Error.

    What base64.b64decode does with `altchars` and `validate`, in two thirds of the time.
    """
    text = text.replace("-", "+").replace("_", "/")
    text += "=" * (-len(text) % 4)  # JavaScript and Go leave the padding out
    return binascii.a2b_base64(text, strict_mode=True)


def _found(value: bytes, message: str) -> str:
    """What the record has in the field that msgspec's message names; "" if that is unclear."""
    field = message.rpartition("$.")[2].rstrip("`")
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return f", found {bytes(_decode_raw(value)[field])[:40].decode(errors='replace')}"
    return ""


def _reported(reports: Sequence[Report]) -> NDArray[np.float64]:
    """What was reported (n, 6), in the order of `REPORTED`; NaN where it was not."""
    return np.array(
        [
            (r.quality, r.cost_usd, r.latency_ms, r.output_tokens, r.error, r.paid_usd)
            for r in reports
        ],
        np.float64,  # None becomes NaN
    ).reshape(-1, len(REPORTED))


def _spent_nano_usd(reported: NDArray[np.float64], heads: NDArray[np.void]) -> NDArray[np.int64]:
    """What answers cost (n, 4), apart by whose they were: see `Ingested`."""
    cost, wasted = (np.nan_to_num(reported[:, REPORTED.index(n)]) for n in ("cost_usd", "paid_usd"))
    probe, imported = (heads["policy"] == key_of(name) for name in (PROBE, IMPORT))
    own = ~probe & ~imported
    spent = np.stack([cost * own, wasted * own, cost * probe, wasted * probe], axis=1)
    return np.rint(spent * NANO_USD).astype(np.int64)


def _outcomes(
    ids: Sequence[bytes],
    reported: NDArray[np.float64],
    known: NDArray[np.bool_],
    heads: NDArray[np.void],
    tenant_hashes: NDArray[np.uint8],
) -> Outcomes:
    """Columns for the learners of what was reported (n, 6), zero where it is not known."""
    quality, cost_usd, latency_ms, output_tokens, error, _ = reported.T
    targets = np.zeros((len(ids), len(Target)))
    targets[:, Target.QUALITY] = quality
    targets[:, Target.COST] = ratio(cost_usd, heads["expected_cost_usd"], COST_USD_MIN)
    targets[:, Target.LATENCY] = ratio(latency_ms, heads["expected_latency_ms"], LATENCY_MS_MIN)
    # No expectation, no ratio: a list price of zero is learned as its plain mean in dollars.
    related = known[:, : len(Target)].copy()
    related[:, Target.COST] &= heads["expected_cost_usd"] >= COST_USD_MIN
    related[:, Target.LATENCY] &= heads["expected_latency_ms"] >= LATENCY_MS_MIN
    # One report moves a mean by a bounded amount, as it moves a ratio.
    cost_usd = winsorised(cost_usd, heads["expected_cost_usd"], COST_USD_MIN)
    latency_ms = winsorised(latency_ms, heads["expected_latency_ms"], LATENCY_MS_MIN)
    output_tokens = np.minimum(output_tokens, OUTPUT_TOKENS_LEARNED_MAX)
    figures = np.stack([error, output_tokens, cost_usd, latency_ms], axis=1) / FIGURE_UNITS
    issuers, sequences = split_ids(ids)
    return Outcomes(
        issuers=issuers,
        sequences=sequences,
        decided_at_ms=heads["decided_at_ms"].astype(np.int64),
        models=heads["model"].astype(np.uint64),
        pools=heads["pool"].astype(np.uint64),
        tenant_hashes=tenant_hashes,
        contexts=np.ascontiguousarray(heads["context"]),
        targets=to_fixed(targets * related),
        known=related,
        figures=np.rint(figures).astype(np.int64),
        figures_known=np.ascontiguousarray(known[:, [4, 3, 1, 2]]),
        estimated=calibration.fixed(
            heads["estimated_quality"].astype(np.float64),
            heads["estimated_cost_usd"].astype(np.float64),
        ),
    )


def keep_fresh(outcomes: Outcomes, fresh: NDArray[np.uint8]) -> Outcomes:
    """The outcomes with only the values whose bits (n,) are fresh; rows with none are dropped."""
    bits = np.unpackbits(fresh[:, None], axis=1, bitorder="little")[:, : len(REPORTED)].astype(bool)
    rows = np.flatnonzero(fresh & LEARNED_BITS)
    columns = {name: getattr(outcomes, name)[rows] for name in outcomes.__slots__}
    known = bits[rows, :3]
    columns["known"] &= known
    columns["targets"] = columns["targets"] * columns["known"]
    columns["figures_known"] = bits[rows][:, [4, 3, 1, 2]]
    return Outcomes(**columns)


def schema() -> dict[str, Any]:
    """The JSON schema of a feedback record, as published."""
    return msgspec.json.schema(Report)
