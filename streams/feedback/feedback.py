"""From bytes to outcomes: what a producer wrote is either believed whole or set aside whole.

    record ─▶ JSON ─▶ fields in bounds ─▶ ticket opens ─▶ same encoder ─▶ not too late ─▶ outcome
                └──────────┴──────────────────┴───────────────┴───────────────┴──▶ dead letter

Whether a record is accepted depends on the record alone (its bytes and the time the
log gave it), so that any reader at any time comes to the same answer.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from learners.estimates import calibration
from learners.estimates.ema import FIGURE_UNITS
from learners.estimates.sums.influence import EARLIER, hash_of, producer_of
from learners.option import option
from learners.outcomes import Outcomes
from learners.targets import COST_USD_MIN, LATENCY_MS_MIN, Target, ratio, to_fixed, winsorised
from learners.traits import SLOTS, Traits, traits_of
from streams.errors import BadFeedback, BadTicket
from streams.feedback import shapes
from streams.feedback.report import (
    IMPORT,
    LEARNED_BITS,
    MEASURED,
    NANO_USD,
    OUTPUT_TOKENS_LEARNED_MAX,
    PROBE,
    REPORTED,
    Reason,
    Report,
    read_report,
)
from streams.feedback.said import split
from streams.feedback.ticket import (
    heads_of,
    is_measured,
    key_of,
    pairs_of,
    rest_of,
    split_ids,
    ticket_bytes,
)
from streams.log.contract import Record

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackOptions:
    """What feedback is believed."""

    # The window in which repeats are recognised is as long: about 3 bytes per decision made in it.
    age_s_max: float = option(
        7 * 86_400.0,
        "Seconds after its decision that feedback still counts. Until then it takes 3 bytes.",
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

    records: list[Record]  # (n,) what each outcome was read from, alone if others were, too
    outcomes: Outcomes
    bits: NDArray[np.uint8]  # (n,) which of `REPORTED`, bit i for the i-th
    # (n, 4) cost of an answer and wasted spend; then both of what was bought to learn from
    spent_nano_usd: NDArray[np.int64]
    dead: list[DeadLetter]
    bodies: list[bytes]  # (n,) of the tickets
    reports: list[Report]  # (n,) each of one decision

    @property
    def revisions(self) -> NDArray[np.uint8]:
        """Of the qualities (n,)."""
        return np.array([report.revision or 0 for report in self.reports], np.uint8)


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
        report = read_report(value)
        try:
            ticket = ticket_bytes(report.ticket)
            decision_id, body = self._sealer.open_body(ticket)
            proven = not is_measured(ticket) or self._proven(report, decision_id)
        except (BadTicket, binascii.Error, ValueError) as error:
            raise BadFeedback(Reason.BAD_TICKET, str(error)) from None
        if not proven:
            # What was measured here is not overwritten by who asked: counted as a repetition.
            for name in MEASURED:
                setattr(report, name, None)
        return report, decision_id, body

    def parts(self, value: bytes | None) -> list[tuple[Report, bytes, bytes]]:
        """What one record says of each decision it names. Raises BadFeedback."""
        part = self.check(value)
        return [part] if is_plain(part[0]) else self._several(*part)

    def _several(
        self, report: Report, decision_id: bytes, body: bytes
    ) -> list[tuple[Report, bytes, bytes]]:
        """The same of a report that is not plain."""
        others = report.steps or [one for one in (report.better_than,) if one]
        opened = [(report.ticket, decision_id, body)]
        try:
            opened += [(text, *self._sealer.open_body(ticket_bytes(text))) for text in others]
        except (BadTicket, binascii.Error, ValueError) as error:
            raise BadFeedback(Reason.BAD_TICKET, str(error)) from None
        if len({one for _, one, _ in opened}) < len(opened):
            raise BadFeedback(Reason.BAD_FIELD, "one decision is named twice")
        qualities = _qualities(report, [one for _, _, one in opened])
        plain: dict[str, Any] = {
            "weight": report.weight,
            "source": report.source,
            "revision": report.revision,
        }
        first = msgspec.structs.replace(
            report, quality=qualities[0], confidence=None, better_than=None, steps=None
        )
        rest = [
            (Report(ticket=text, quality=quality, **plain), one, found)
            for (text, one, found), quality in zip(opened[1:], qualities[1:], strict=True)
        ]
        return [(first, decision_id, body), *rest]

    def _proven(self, report: Report, decision_id: bytes) -> bool:
        return report.proof is not None and self._sealer.proves(
            decision_id, ticket_bytes(report.proof)
        )

    def take(self, records: Sequence[Record]) -> Ingested:
        """Sort records into outcomes and dead letters."""
        dead: list[DeadLetter] = []
        origin: list[int] = []  # of each part, the number of its record
        found: list[tuple[Report, bytes, bytes]] = []
        for number, record in enumerate(records):
            try:
                part = self.check(record.value)
                if is_plain(part[0]):  # as nearly all are
                    origin.append(number)
                    found.append(part)
                    continue
                parts = self._several(*part)
            except BadFeedback as error:
                dead.append(DeadLetter(record, Reason(error.reason), error.detail))
                continue
            origin += [number] * len(parts)
            found += parts
        heads = heads_of([body for _, _, body in found])
        wrong = self._wrong(heads, np.array([records[i].appended_at_ms for i in origin], np.int64))
        # A record is believed whole or set aside whole.
        bad = {origin[row]: wrong[row] for row in sorted(wrong)}
        dead += [DeadLetter(records[number], *why) for number, why in bad.items()]
        if bad:
            right = [row for row, number in enumerate(origin) if number not in bad]
            origin, found = [origin[i] for i in right], [found[i] for i in right]
            heads = heads[right]
        reports = [report for report, _, _ in found]
        kept = [records[number] for number in origin]
        for row in _of_several(origin):
            kept[row] = kept[row]._replace(value=_encode(reports[row]))
        ids, bodies = [one for _, one, _ in found], [body for _, _, body in found]
        reported = _reported(reports)
        known = ~np.isnan(reported)
        tenants, traits = _tenants_and_traits(bodies, heads["policy"] == key_of(IMPORT))
        outcomes = _outcomes(ids, np.nan_to_num(reported), known, heads, tenants, traits, bodies)
        # Corrections are of no named producer: `Seen` has no room to tell who corrected what.
        named = [row for row, r in enumerate(reports) if r.source is not None and not r.revision]
        for row in named:
            outcomes.producers[row] = producer_of(reports[row].source)
        bits = np.packbits(known, axis=1, bitorder="little").reshape(-1)
        weighed = [(row, r.weight) for row, r in enumerate(reports) if r.weight is not None]
        light = [row for row, weight in weighed if not shapes.counts(ids[row], weight)]
        outcomes.known[light, Target.QUALITY], outcomes.targets[light, Target.QUALITY] = False, 0
        spent = _spent_nano_usd(reported, heads)
        return Ingested(kept, outcomes, bits, spent, dead, bodies, reports)

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


def is_plain(report: Report) -> bool:
    """Whether it says something of one decision alone, and for sure."""
    return report.steps is None and report.better_than is None and report.confidence is None


def _of_several(origin: Sequence[int]) -> list[int]:
    """Rows of records that several rows are of; `origin` are the records' numbers, ascending."""
    same = [row for row, (number, again) in enumerate(pairwise(origin)) if number == again]
    return sorted({*same, *(row + 1 for row in same)})


def _qualities(report: Report, bodies: Sequence[bytes]) -> list[float | None]:
    """Of each decision that a record names."""
    expected = shapes.predicted(bodies)
    if report.better_than is not None:
        found = shapes.compared(expected[0], loser=expected[1])
    elif report.quality is None:
        return [None]
    elif report.steps:
        found = shapes.shared_out(report.quality, expected)
    else:
        found = [report.quality]
    sure = 1.0 if report.confidence is None else report.confidence
    pairs = zip(found, expected, strict=True)
    return [shapes.believed(quality, expected=of, confidence=sure) for quality, of in pairs]


def _reported(reports: Sequence[Report]) -> NDArray[np.float64]:
    """What was reported (n, 6), in the order of `REPORTED`; NaN where it was not."""
    columns = [  # by name: five times as quick as getattr
        [r.quality for r in reports],
        [r.cost_usd for r in reports],
        [r.latency_ms for r in reports],
        [r.output_tokens for r in reports],
        [r.error for r in reports],
        [r.paid_usd for r in reports],
    ]
    return np.array(columns, np.float64).T  # None becomes NaN


def _spent_nano_usd(reported: NDArray[np.float64], heads: NDArray[np.void]) -> NDArray[np.int64]:
    """What answers cost (n, 4), apart by whose they were: see `Ingested`."""
    cost, wasted = (np.nan_to_num(reported[:, REPORTED.index(n)]) for n in ("cost_usd", "paid_usd"))
    probe, imported = (heads["policy"] == key_of(name) for name in (PROBE, IMPORT))
    own = ~probe & ~imported
    spent = np.stack([cost * own, wasted * own, cost * probe, wasted * probe], axis=1)
    return np.rint(spent * NANO_USD).astype(np.int64)


def _tenants_and_traits(
    bodies: Sequence[bytes], imported: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], Traits]:
    """Hashes of tenants (n,), and what requests said of themselves (n, slots)."""
    each = zip(bodies, imported.tolist(), strict=True)
    found = b"".join([_tenant_and_traits(rest_of(body), imported=one) for body, one in each])
    columns = np.frombuffer(found, np.uint8).reshape(len(bodies), 1 + SLOTS)
    return columns[:, 0].copy(), np.ascontiguousarray(columns[:, 1:])


@lru_cache(maxsize=4096)
def _tenant_and_traits(rest: bytes, *, imported: bool) -> bytes:
    """Of one body, a byte for each; those of one tenant are mostly alike.

    What an operator imports is no tenant's: it counts in full, as what all have reported.
    """
    tenant, said = split(rest)
    if imported:
        return bytes([EARLIER, *traits_of(said.task, said.tags, "")])
    return bytes([hash_of(tenant), *traits_of(said.task, said.tags, tenant.decode())])


def _outcomes(
    ids: Sequence[bytes],
    reported: NDArray[np.float64],
    known: NDArray[np.bool_],
    heads: NDArray[np.void],
    tenant_hashes: NDArray[np.uint8],
    traits: Traits,
    bodies: Sequence[bytes],
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
        traits=traits,
        contexts=np.ascontiguousarray(heads["context"]),
        targets=to_fixed(targets * related),
        known=related,
        figures=np.rint(figures).astype(np.int64),
        figures_known=np.ascontiguousarray(known[:, [4, 3, 1, 2]]),
        estimated=calibration.fixed(
            heads["estimated_quality"].astype(np.float64),
            heads["estimated_cost_usd"].astype(np.float64),
        ),
        pairs=pairs_of(bodies),
    )


def qualities_alone(
    outcomes: Outcomes, targets: NDArray[np.int64], producers: NDArray[np.uint8]
) -> Outcomes:
    """The same decisions with these qualities (n,) of these producers, and nothing else known."""
    known = np.zeros_like(outcomes.known)
    known[:, Target.QUALITY] = True
    placed = np.zeros_like(outcomes.targets)
    placed[:, Target.QUALITY] = targets
    figures_known = np.zeros_like(outcomes.figures_known)
    said = replace(outcomes, producers=producers)
    return replace(said, targets=placed, known=known, figures_known=figures_known)


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
