"""The latest report of each process and each replica: its record, and when the log took it.

    record ──keep_latest──▶ Tables: sources, routers, replicas of pools; each bounded

Of two reports on one thing the later one stays, by the log's clock; at the same time, the one of
the greater source and sequence; of one record, its last word. So what stays does not depend on
which was read first. Times are the log's: a process whose own clock is wrong is known to be there
all the same.

A record is kept as it came, without its counts. So a gauge that a record declares is in every
snapshot, and whoever needs it reads it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from heapq import heappop, heappush
from typing import Generic, TypeVar

import msgspec
from msgspec.structs import replace

from streams.telemetry.records import GAUGES, PoolState, ReplicaStates, RouterState
from streams.telemetry.service_sums import ServiceTable
from streams.telemetry.tally import Tally

SILENT_MS = 10_000  # a process that reported nothing for longer is taken to be gone

# Of a pool's record: counts of its window, which are not how things stand.
POOL_COUNTS = ("tokens", "prompt_tokens", "cached_tokens", "preempted")

# Of replicas that are reported on together: what is the same of all.
OF_ALL = (
    "source", "sequence", "from_unix_ms", "to_unix_ms", "pool", "model", "gpu", "region", "derived",
    "watts_from",
)  # fmt: skip
NO_COUNTS = dict.fromkeys(POOL_COUNTS, 0)

Reported = TypeVar("Reported", PoolState, RouterState)


class Source(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How far a process was read."""

    received_ms: int  # when the log took its last record, Unix time
    sequence: int


class Received(msgspec.Struct, Generic[Reported], array_like=True, frozen=True):
    """The latest record of, or on, one thing."""

    received_ms: int
    record: Reported


class Tables(msgspec.Struct):
    """All of the fleet's state but its slots."""

    newest_ms: int = 0  # the latest end of a window
    received_ms: int = 0  # the latest time that the log took a record
    missing: int = 0  # records that sequences say there were
    sources: dict[str, Source] = {}
    replicas: dict[str, Received[PoolState]] = {}  # by pool and replica, see `tally.joined`
    routers: dict[str, Received[RouterState]] = {}  # by source
    totals: Tally = msgspec.field(default_factory=Tally)
    service: ServiceTable = {}  # what pools' servers can do


# A heap of when each key of a full table reported; what is not so any more is passed over.
Ages = list[tuple[int, str]]
STALE_MAX = 4  # times as many entries as keys
Latest = TypeVar("Latest", Source, Received[PoolState], Received[RouterState])


def gauges_of(record: Reported) -> Reported:
    """A record without its counts: they are in the tallies."""
    if isinstance(record, PoolState):
        return replace(
            record, joules=0.0, ttft_ms=[], tpot_ms=[], served=[], squared=[], paced=[],
            batched=[], first_tokens=[], **NO_COUNTS,
        )  # fmt: skip
    return replace(record, mix=[], refused=0)


def gauges_of_each(record: ReplicaStates) -> list[PoolState]:
    """What records of its own would say of each replica, without counts."""
    head = {name: getattr(record, name) for name in OF_ALL}
    columns = zip(record.replica, *(getattr(record, name) for name in GAUGES), strict=True)
    blank, found = PoolState(replica="", **head), []
    for column in columns:
        one = copy(blank)  # a third of the time that a new one takes
        one.replica, one.state, one.queued, one.running, one.kv_use, one.load, one.watts = column
        found.append(one)
    return found


def keep_latest(
    table: dict[str, Latest], found: Mapping[str, Latest], most: int, ages: Ages
) -> None:
    """Keep the latest under each key; of more than `most` keys, those that reported last.

    `ages` are kept from call to call: where they are empty, all of the table is looked at for them.
    """
    if len(ages) > STALE_MAX * most:
        ages.clear()
    for key, one in found.items():
        held = table.get(key)
        if held is None or one.received_ms > held.received_ms or _order(one) > _order(held):
            table[key] = one
            if ages:
                heappush(ages, (one.received_ms, key))
    if len(table) > most and not ages:
        ages += sorted((one.received_ms, key) for key, one in table.items())
    while len(table) > most:
        at_ms, key = heappop(ages)
        if key in table and table[key].received_ms == at_ms:
            del table[key]


def _order(found: Latest) -> tuple[int, str, int]:
    if isinstance(found, Source):
        return found.received_ms, "", found.sequence
    return found.received_ms, found.record.source, found.record.sequence
