"""Outcomes taken in over gRPC, and what became of them told.

    Outcome, … ─▶ checked as the trainer will ─▶ outbox ─▶ feedback log      durable on return
    ticket ────▶ `Tracing` ─▶ what the newest snapshot has learned of it, and its newest records

All outcomes of a call are written, or none. Looking is one call's at a time: it takes a thread some
hundredths of a second, which decisions should not have to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from serve.errors import InvalidRequest, QueueFull
from serve.grpc_api.asking.bulk import check_count, slices
from serve.proto.fairlead.v1 import router_pb2 as pb
from streams.errors import BadTicket
from streams.feedback.feedback import Ingest
from streams.feedback.report import BOUNDS, REPORTED, SOURCE_CHARS_MAX, as_text, encode_report
from streams.feedback.ticket import Sealer
from streams.log.contract import Record
from streams.log.outbox import Outbox

TICKETS_AT_ONCE = 128  # are opened in 6 ms

Tracing = Callable[[bytes], Mapping[str, Any]]  # of a decision's id; blocks


class Reporting:
    """Of one replica. Used from its event loop."""

    def __init__(
        self,
        sealer: Sealer,
        ingest: Ingest,
        outbox: Outbox[tuple[bytes, bytes]],
        tracing: Tracing | None,
        now_ms: Callable[[], int],
        traceparent: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`traceparent` is that of the call under way, where it has a span."""
        self._traceparent = traceparent
        self._sealer, self._ingest, self._outbox = sealer, ingest, outbox
        self._tracing, self._now_ms = tracing, now_ms
        self._looking, self._checking = asyncio.Lock(), asyncio.Lock()

    async def send(self, request: pb.FeedbackRequest) -> int:
        """Write outcomes; how many. Raises InvalidRequest and what the outbox raises."""
        check_count("outcomes", len(request.outcomes))
        records = await self._checked(request.outcomes)
        written = [asyncio.wrap_future(self._outbox.submit(record)) for record in records]
        await asyncio.gather(*written)
        return len(records)

    async def _checked(self, outcomes: Sequence[pb.Outcome]) -> list[tuple[bytes, bytes]]:
        """All records, or the first problem. Raises InvalidRequest.

        65,536 tickets, with the steps of sessions, take two seconds: so some are opened at a time,
        between which others have their turn, and of such long calls one after the other.
        """
        size = max(1, TICKETS_AT_ONCE // (1 + max(len(one.steps) for one in outcomes)))
        turn = self._checking if size < len(outcomes) else contextlib.nullcontext()
        records = []
        async with turn:
            async for rows in slices(len(outcomes), size):
                numbered = enumerate(outcomes[rows], rows.start)
                found = [self._record(i, outcome) for i, outcome in numbered]
                self._check_learnable(found, rows.start)
                records += found
        return records

    async def trace(self, ticket: bytes) -> pb.FeedbackTrace:
        """What became of a decision's outcomes. Raises BadTicket, QueueFull, LogUnavailable."""
        assert self._tracing is not None, "a replica is given one"
        decision_id, _ = self._sealer.open_body(ticket)
        if self._looking.locked():
            raise QueueFull("another trace is being looked up on this replica; try again")
        async with self._looking:
            return written(await asyncio.to_thread(self._tracing, decision_id))

    def _record(self, position: int, outcome: pb.Outcome) -> tuple[bytes, bytes]:
        """Key and value of one feedback record. Raises InvalidRequest."""
        reported = {name: getattr(outcome, name) for name in REPORTED if outcome.HasField(name)}
        for name in ("confidence", "weight", "revision"):
            if outcome.HasField(name):
                reported[name] = getattr(outcome, name)
        for name, value in reported.items():
            if not math.isfinite(value):
                raise InvalidRequest(f"outcomes[{position}].{name}", value, "finite")
            least, most = BOUNDS.get(name, (value, value))
            if not least <= value <= most:
                limit = f"{least:,.0f} to {most:,.0f}"
                raise InvalidRequest(f"outcomes[{position}].{name}", value, limit)
        if (n_chars := len(outcome.source)) > SOURCE_CHARS_MAX:
            limit = f"at most {SOURCE_CHARS_MAX} characters"
            raise InvalidRequest(f"outcomes[{position}].source", f"{n_chars} characters", limit)
        try:
            decision_id, _ = self._sealer.open_body(outcome.ticket)
        except BadTicket as error:
            raise InvalidRequest(
                f"outcomes[{position}].ticket", error, "as it came with a decision"
            ) from error
        named: dict[str, Any] = {
            "source": outcome.source or None,
            "steps": [*map(as_text, outcome.steps)] or None,
            "traceparent": self._traceparent(),
        }
        named["better_than"] = as_text(outcome.better_than) if outcome.better_than else None
        record = encode_report(outcome.ticket, **reported, **named)
        return decision_id.hex().encode(), record

    def _check_learnable(self, pairs: Sequence[tuple[bytes, bytes]], first: int) -> None:
        """Refuse what the trainer would set aside, were it written now. Raises InvalidRequest."""
        now_ms = self._now_ms()
        records = [Record(0, i, now_ms, key, value) for i, (key, value) in enumerate(pairs, first)]
        for letter in self._ingest.take(records).dead:
            raise InvalidRequest(
                f"outcomes[{letter.record.offset}]",
                f"{letter.reason}: {letter.detail}",
                "feedback that can be learned from",
            )


def written(found: Mapping[str, Any]) -> pb.FeedbackTrace:
    """What `streams.feedback.trace` found, as a message."""
    return pb.FeedbackTrace(
        decision_id=found["decision_id"],
        snapshot_version=found["snapshot_version"],
        learned=[name for name, is_so in found["learned"].items() if is_so],
        quality=found["quality"],
        revision=found["revision"],
        complete=found["complete"],
        records=[
            pb.TracedRecord(
                **{name: value for name, value in one.items() if name != "said"},
                said_json=msgspec.json.encode(one["said"]).decode(),
            )
            for one in found["records"]
        ],
    )
