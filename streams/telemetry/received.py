"""The latest word of each process and each replica: gauges, and when the log took them.

    record ──replica_of, router_of──▶ word ──keep_latest──▶ table, bounded

Of two words on one thing the later one stays, by the log's clock; at the same time, the one of the
greater source and sequence. So what stays does not depend on which was read first.

The one rule: times are the log's. A process whose own clock is wrong is heard of all the same.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from streams.telemetry.records import PoolState, RouterState


class Source(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How far a process was heard."""

    heard_ms: int  # when the log took its last record, Unix time
    sequence: int


class Replica(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The latest word of, or on, one replica of a pool."""

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
    load: float | None = None  # 1: as much as it carries within the latency target


class Router(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The latest word of one router replica."""

    heard_ms: int
    sequence: int
    snapshot_version: int
    snapshot_age_ms: int
    loop_lag_ms_max: float
    loop_busy_share: float


Latest = TypeVar("Latest", Source, Replica, Router)


def keep_latest(table: dict[str, Latest], key: str, found: Latest, most: int) -> None:
    """Keep the latest word under a key; of more than `most` keys, those last heard of."""
    held = table.get(key)
    if held is None or _time(found) > _time(held):
        table[key] = found
    if len(table) > most:
        del table[min(table, key=lambda k: (table[k].heard_ms, k))]


def _time(found: Latest) -> tuple[int, str, int]:
    return found.heard_ms, getattr(found, "source", ""), found.sequence


def replica_of(record: PoolState, heard_ms: int) -> Replica:
    """The word of one record that the log took at a time."""
    return Replica(
        heard_ms,
        record.source,
        record.sequence,
        record.model,
        record.gpu,
        record.region,
        record.state,
        record.queued,
        record.running,
        record.kv_use,
        record.watts,
        record.derived,
        record.load,
    )


def router_of(record: RouterState, heard_ms: int) -> Router:
    """Likewise, of a router replica."""
    return Router(
        heard_ms,
        record.sequence,
        record.snapshot_version,
        record.snapshot_age_ms,
        record.loop_lag_ms_max,
        record.loop_busy_share,
    )
