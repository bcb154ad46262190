"""The fleet as telemetry reports it: counts of the last minutes and of all time, and latest gauges.

                       ┌─ totals    counts since the state began
    record ──fold──────┼─ slots     counts of ten seconds each, of the last five minutes
                       ├─ replicas  of pools: the latest report of each, from whoever reports it
                       ├─ routers   the latest report of each
                       ├─ service   what pools' servers finished while they held how much
                       └─ sources   the last sequence number of each: a repeat is ignored

Counts go by the time they happened (never later than the log took their record), gauges by the
time the log took them. What is read out of it at a time is `fleet_view`.

All of it is bounded, and none of it depends on the order in which the records of different sources
come: kept are the latest by time, or the first by name.

The same records make the same bytes. Within a source they come in order.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from streams.telemetry import service_sums
from streams.telemetry.format_1 import upgraded
from streams.telemetry.received import (
    SILENT_MS,
    Ages,
    Received,
    Source,
    Tables,
    gauges_of,
    gauges_of_each,
    keep_latest,
)
from streams.telemetry.records import AnyTelemetry, PoolState, ReplicaStates, RouterState
from streams.telemetry.service_sums import ServiceTable
from streams.telemetry.tally import LARGEST, Made, Tally, joined, tally_of

logger = logging.getLogger(__name__)

FORMAT = 2
SLOT_MS = 10_000
SLOTS = 30  # beside the newest: five minutes, and a part of a slot to interpolate in
LATENCY_SLOTS = 6  # likewise, one minute: percentiles over longer are asked for by nobody
SOURCES_MAX = 4096
REPLICAS_MAX = 4096
MADE_MAX = 4096  # sums that are not in the tallies yet
NO_SLOT = -1  # too long ago for any

Found = TypeVar("Found")


class _Packed(msgspec.Struct):
    format: int
    tables: Raw
    slots: dict[int, Raw]


class FleetState:
    """The folded state. Packed bytes are read when something is first asked of them."""

    def __init__(self, packed: bytes = b"") -> None:
        """`packed` is what `pack` gave; what can't be read is as good as nothing, and is said."""
        self._packed: bytes | None = packed  # None: it has changed since
        self._unread = bool(packed)
        self._tables = Tables()
        self._slots: dict[int, Tally] = {}
        self._raw: dict[int, Raw] = {}  # slots as they were packed, if they have not changed
        self._made: dict[tuple[int, str], Made] = {}  # by slot and pool: not in the tallies yet
        self._ages: defaultdict[str, Ages] = defaultdict(list)  # of keys, by table
        self._read: dict[object, Any] = {}  # what was read out of it since it changed, by question

    # --- what is in it

    @property
    def newest_ms(self) -> int:
        """The latest end of a window, Unix time; 0: nothing was folded."""
        return self._opened().newest_ms

    @property
    def received_ms(self) -> int:
        """The latest time that the log took a record, Unix time; 0: it took none."""
        return self._opened().received_ms

    @property
    def missing(self) -> int:
        """Records that never came, by gaps in sequences."""
        return self._opened().missing

    @property
    def replicas(self) -> Mapping[str, Received[PoolState]]:
        """Replicas of pools, by pool and replica (`tally.parted`)."""
        return self._opened().replicas

    @property
    def routers(self) -> Mapping[str, Received[RouterState]]:
        """Router replicas, by source."""
        return self._opened().routers

    @property
    def live_routers(self) -> tuple[RouterState, ...]:
        """What those say that reported within ten seconds of whatever reported last."""
        return self.read("live routers", _live_routers)

    def knows(self, source: str) -> bool:
        """Whether a process has reported before, and its sequence is remembered."""
        return source in self._opened().sources

    @property
    def n_sources(self) -> int:
        """Processes whose sequence is remembered."""
        return len(self._opened().sources)

    @property
    def totals(self) -> Tally:
        """Counts since the state began, without histograms."""
        self._add_made()
        return self._opened().totals

    def slots(self, first: int, last: int) -> Iterator[tuple[int, Tally]]:
        """Slots from `first` to `last`, oldest first; slot s is the ten seconds from s·SLOT_MS."""
        self._opened()
        self._add_made()
        for number in sorted(n for n in {*self._raw, *self._slots} if first <= n <= last):
            yield number, self._slot(number)

    @property
    def service(self) -> ServiceTable:
        """What is known of pools' servers; see `capacity`."""
        return self._opened().service

    def read(self, question: object, answer: Callable[[FleetState], Found]) -> Found:
        """What `answer` makes of the state, once for each question until the state changes.

        Several ask the same of one state: prices, and every view. Nobody may change the answer.
        """
        kept = self._read
        if question not in kept:
            kept[question] = answer(self)
        found: Found = kept[question]
        return found

    # --- folding

    def fold(self, record: AnyTelemetry, appended_at_ms: int) -> bool:
        """Add one record that the log took at a time; False if it has been added before."""
        tables = self._opened()
        known = tables.sources.get(record.source)
        if known is not None:
            if record.sequence <= known.sequence:
                return False
            left_out = record.sequence - known.sequence - 1
            tables.missing = min(tables.missing + left_out, LARGEST)
        self._packed, self._read = None, {}
        source = Source(appended_at_ms, record.sequence)
        keep_latest(tables.sources, {record.source: source}, SOURCES_MAX, self._ages["sources"])
        at_ms = max(0, min(record.to_unix_ms, appended_at_ms))
        if isinstance(record, PoolState | ReplicaStates):  # as most: they count in one pool alone
            self._made_in(self._slot_until(at_ms), record.pool).add(record)
            if isinstance(record, PoolState):
                service_sums.note(tables.service, record, at_ms, appended_at_ms)
        else:
            tally = tally_of(record)
            tables.totals.add(tally.bare())
            number = self._slot_until(at_ms)
            if number is not None:
                self._slot(number).add(tally)  # pools' latencies are in their own records
        self._note(record, appended_at_ms)
        return True

    def _slot_until(self, at_ms: int) -> int | None:
        """The slot of a window that ended then; what is too long ago counts in none."""
        tables = self._tables
        # A window ends before `at_ms`: one that ends with a slot belongs to it.
        number, newest = _slot_of(at_ms), _slot_of(tables.newest_ms)
        if at_ms > tables.newest_ms:
            tables.newest_ms = at_ms
            if number > newest:
                self._grow_old(number)
                newest = number
        if number < newest - SLOTS:
            return None
        self._slot(number)
        self._raw.pop(number, None)
        return number

    def _made_in(self, number: int | None, pool: str) -> Made:
        """Where to count what a pool made in a slot, until somebody looks."""
        key = NO_SLOT if number is None else number, pool
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= MADE_MAX:
                self._add_made()
            made = self._made[key] = Made()
        return made

    def _add_made(self) -> None:
        """Add what pools made to the tallies: it is many records, and nobody asks after each."""
        made, self._made = self._made, {}
        oldest = _slot_of(self._tables.newest_ms) - LATENCY_SLOTS
        for (number, pool), counts in made.items():
            tally = counts.tally()
            self._tables.totals.add_made(pool, tally.bare())
            if number != NO_SLOT:
                self._slot(number).add_made(pool, tally if number >= oldest else tally.bare())

    def _grow_old(self, newest: int) -> None:
        """Forget what is too long before the newest slot."""
        self._add_made()
        for number in [*self._raw, *self._slots]:
            if number < newest - SLOTS:
                self._raw.pop(number, None)
                self._slots.pop(number, None)
            elif number < newest - LATENCY_SLOTS:
                self._slot(number).forget_latencies()
                self._raw.pop(number, None)

    def _note(self, record: AnyTelemetry, received_ms: int) -> None:
        """Keep the latest gauges."""
        tables = self._tables
        before, tables.received_ms = tables.received_ms, max(received_ms, tables.received_ms)
        if isinstance(record, PoolState | ReplicaStates):
            each = [gauges_of(record)] if isinstance(record, PoolState) else gauges_of_each(record)
            found = {joined(one.pool, one.replica): Received(received_ms, one) for one in each}
            keep_latest(tables.replicas, found, REPLICAS_MAX, self._ages["replicas"])
        elif isinstance(record, RouterState):
            router = {record.source: Received(received_ms, gauges_of(record))}
            keep_latest(tables.routers, router, SOURCES_MAX, self._ages["routers"])
        if received_ms == before:  # as of all but the first that the log took at a time
            return
        horizon_ms = (_slot_of(tables.received_ms) - SLOTS) * SLOT_MS
        if _slot_of(before) != _slot_of(tables.received_ms) or received_ms < horizon_ms:
            for table in (tables.replicas, tables.routers):
                for key in [k for k, gauge in table.items() if gauge.received_ms < horizon_ms]:
                    del table[key]

    def rewind(self, to_ms: int) -> None:
        """Take back what was folded at times later than `to_ms`: the clock had been ahead.

        Counts since the beginning stay, and so does how far each source has come; gauges are
        reported again within seconds.
        """
        tables, self._packed, self._read = self._opened(), None, {}
        self._add_made()
        self._ages.clear()
        tables.newest_ms = min(tables.newest_ms, to_ms)
        tables.received_ms = min(tables.received_ms, to_ms)
        for name, source in tables.sources.items():
            if source.received_ms > to_ms:
                tables.sources[name] = Source(to_ms, source.sequence)
        for table in (tables.replicas, tables.routers):
            for key in [k for k, gauge in table.items() if gauge.received_ms > to_ms]:
                del table[key]
        for number in [n for n in {*self._raw, *self._slots} if n > _slot_of(to_ms)]:
            self._raw.pop(number, None)
            self._slots.pop(number, None)
        service_sums.rewind(tables.service, to_ms)

    def _slot(self, number: int) -> Tally:
        if number not in self._slots:
            raw = self._raw.get(number)
            self._slots[number] = Tally() if raw is None else _decode_tally(raw)
        return self._slots[number]

    # --- as bytes

    def pack(self) -> bytes:
        """All of it, the same bytes for the same state."""
        if self._packed is not None:
            return self._packed
        self._add_made()
        for number, slot in self._slots.items():
            if number not in self._raw:
                self._raw[number] = _ordered(slot)
        slots = {number: self._raw[number] for number in sorted(self._raw)}
        self._packed = _encode(_Packed(FORMAT, _ordered(self._tables), slots))
        return self._packed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FleetState) and self.pack() == other.pack()

    __hash__ = None  # type: ignore[assignment]

    def _opened(self) -> Tables:
        """The tables, unpacked at the first call."""
        if self._unread:
            try:
                packed = _decode_packed(self._packed or b"")
                decode = READERS[packed.format]
                self._tables, self._raw = decode(packed.tables), packed.slots
            except (msgspec.MsgspecError, KeyError, RecursionError) as error:
                logger.error("telemetry in a snapshot can't be read, beginning anew: %s", error)
                self._packed = None
            self._unread = False  # last: another thread may be asking, too
        return self._tables


def _live_routers(fleet: FleetState) -> tuple[RouterState, ...]:
    since_ms = fleet.received_ms - SILENT_MS
    return tuple(one.record for one in fleet.routers.values() if one.received_ms >= since_ms)


def _slot_of(end_ms: int) -> int:
    """The slot of a window that ends before `end_ms`."""
    return (end_ms - 1) // SLOT_MS


_encode = msgspec.msgpack.Encoder().encode
_decode_packed = msgspec.msgpack.Decoder(_Packed).decode
_decode_tally = msgspec.msgpack.Decoder(Tally).decode
READERS = {1: upgraded, FORMAT: msgspec.msgpack.Decoder(Tables).decode}  # of tables, by format


def _ordered(found: object) -> Raw:
    """Encoded with every table in the order of its keys."""
    return Raw(_encode(_in_order(msgspec.to_builtins(found))))


def _in_order(found: object) -> object:
    if isinstance(found, dict):
        return {key: _in_order(found[key]) for key in sorted(found)}
    if isinstance(found, list | tuple):
        return [_in_order(one) for one in found]
    return found
