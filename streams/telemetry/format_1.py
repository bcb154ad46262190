"""Tables of snapshots of format 1, in which gauges had positions instead of names.

    format 1 ──decode──▶ Tables1 ──upgraded──▶ Tables

Nothing writes this format any more. What it did not keep is taken to be as by default.
"""

from __future__ import annotations

import msgspec

from streams.telemetry.received import Received, Source, Tables
from streams.telemetry.records import PoolState, RouterState
from streams.telemetry.tally import Tally, parted


class Replica1(msgspec.Struct, array_like=True):
    """The latest gauges of a pool's replica."""

    heard_ms: int
    source: str
    sequence: int
    model: str
    gpu: str
    region: str
    state: str
    queued: int
    running: int
    kv_use: float
    watts: float
    derived: bool
    load: float | None = None


class Router1(msgspec.Struct, array_like=True):
    """The latest gauges of a router replica."""

    heard_ms: int
    sequence: int
    snapshot_version: int
    snapshot_age_ms: int
    loop_lag_ms_max: float
    loop_busy_share: float


class Tables1(msgspec.Struct):
    """See `Tables`."""

    newest_ms: int = 0
    heard_ms: int = 0
    missing: int = 0
    sources: dict[str, Source] = {}
    replicas: dict[str, Replica1] = {}
    routers: dict[str, Router1] = {}
    totals: Tally = msgspec.field(default_factory=Tally)


def upgraded(packed: bytes | msgspec.Raw) -> Tables:
    """The tables of now. Raises MsgspecError."""
    found = msgspec.msgpack.decode(packed, type=Tables1)
    return Tables(
        newest_ms=found.newest_ms,
        received_ms=found.heard_ms,
        missing=found.missing,
        sources=found.sources,
        replicas={key: _replica(key, one) for key, one in found.replicas.items()},
        routers={source: _router(source, one) for source, one in found.routers.items()},
        totals=found.totals,
    )


def _replica(key: str, found: Replica1) -> Received[PoolState]:
    pool, replica = parted(key)
    same = msgspec.structs.asdict(found)
    at_ms = same.pop("heard_ms")
    named = {"pool": pool, "replica": replica, "from_unix_ms": at_ms, "to_unix_ms": at_ms}
    return Received(at_ms, PoolState(**same, **named))


def _router(source: str, found: Router1) -> Received[RouterState]:
    same = msgspec.structs.asdict(found)
    at_ms = same.pop("heard_ms")
    window = {"from_unix_ms": at_ms, "to_unix_ms": at_ms}
    return Received(at_ms, RouterState(source=source, **same, **window))
