"""Counts what a pool's replica makes, and what a dispatcher does, until taken as records.

    first token, answer, joules ─▶ PoolWindow.take ─▶ one `pool` record, with gauges of that moment
    attempt, failure, reroute   ─▶ DispatchWindow.take ─▶ one `dispatch` record

Counts begin at zero with every window.
"""

from __future__ import annotations

from collections import Counter
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal

from streams.telemetry import records as telemetry
from streams.telemetry.histogram import LATENCY_MS, Counts, added, pairs
from streams.telemetry.records import KINDS_MAX, OTHER, POOLS_MAX, DispatchState, PoolState
from streams.telemetry.window import Reporter, clean

What = Literal[
    "attempts",
    "answered",
    "cancelled",
    "retried",
    "hedged",
    "escalated",
    "ejections",
    "refusals",
    "last_resort",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaIdentity:
    """Which replica of which pool."""

    pool: str
    model: str
    replica: str  # its id or address, the same from whoever reports on it
    gpu: str = ""
    region: str = ""
    derived: bool = False  # emulated, with parameters that were not measured


class PoolWindow:
    """The open window of one replica. Used from one thread."""

    def __init__(self, identity: ReplicaIdentity) -> None:
        self._identity: dict[str, Any] = {
            "pool": clean(identity.pool),
            "model": clean(identity.model),
            "replica": clean(identity.replica),
            "gpu": identity.gpu,
            "region": identity.region,
            "derived": identity.derived,
        }
        self._blank = PoolState(
            source="", sequence=0, from_unix_ms=0, to_unix_ms=0, **self._identity
        )
        self._begin()

    def _begin(self) -> None:
        self._ttft_ms: Counts = {}
        self._tpot_ms: Counts = {}
        self._tokens, self._joules = 0, 0.0

    def count_first_token(self, ttft_ms: float) -> None:
        """Count the time to a first token."""
        _count(self._ttft_ms, LATENCY_MS.index(ttft_ms), 1)

    def count_answer(self, tpot_ms: float) -> None:
        """Count an ended answer's time per token after the first; it had two at least."""
        _count(self._tpot_ms, LATENCY_MS.index(tpot_ms), 1)

    def count_latencies(self, ttft_ms: Counts, tpot_ms: Counts) -> None:
        """Count what somebody else has counted in buckets."""
        self._ttft_ms, self._tpot_ms = added(self._ttft_ms, ttft_ms), added(self._tpot_ms, tpot_ms)

    def count_tokens(self, n: int) -> None:
        """Count tokens made."""
        self._tokens += n

    def count_joules(self, joules: float) -> None:
        """Count energy used."""
        self._joules += joules

    def take(self, reporter: Reporter, window: tuple[int, int]) -> dict[str, Any]:
        """All of a `PoolState` but its gauges; a new window begins.

        `window` is what `Reporter.window` gave.
        """
        found = {
            **self._identity,
            **reporter.head(window),
            "joules": self._joules,
            "tokens": self._tokens,
        }
        if self._ttft_ms:
            found["ttft_ms"] = pairs(self._ttft_ms)
        if self._tpot_ms:
            found["tpot_ms"] = pairs(self._tpot_ms)
        self._begin()
        return found

    def record(self, reporter: Reporter, window: tuple[int, int]) -> PoolState:
        """The same as a record, whose gauges are to be filled in: sooner made, for who has many."""
        found = copy(self._blank)
        reporter.sign(found, window)
        found.joules, found.tokens = self._joules, self._tokens
        if self._ttft_ms:
            found.ttft_ms = pairs(self._ttft_ms)
        if self._tpot_ms:
            found.tpot_ms = pairs(self._tpot_ms)
        self._begin()
        return found


@dataclass(slots=True)
class _Dispatched:
    counts: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    rerouted: Counter[str] = field(default_factory=Counter)


class DispatchWindow:
    """The open window of a dispatcher. Used from one thread, its event loop's."""

    def __init__(self) -> None:
        self._pools: dict[str, _Dispatched] = {}

    def count(self, pool: str, what: What, n: int = 1) -> None:
        """Count something that happened to what was dispatched to a pool."""
        self._pool(pool).counts[what] += n

    def count_failed(self, pool: str, kind: str) -> None:
        """Count an attempt that failed."""
        _count_bounded(self._pool(pool).failed, clean(kind))

    def count_rerouted(self, pool: str, target: str) -> None:
        """Count a request that went to `target` although it was decided for `pool`."""
        _count_bounded(self._pool(pool).rerouted, clean(target))

    def take(self, reporter: Reporter, window: tuple[int, int]) -> DispatchState | None:
        """The record of the window, None if nothing happened in it; a new one begins."""
        found, self._pools = self._pools, {}
        if not found:
            return None
        windows = [
            telemetry.DispatchWindow(
                pool=name,
                failed=dict(pool.failed),
                rerouted=dict(pool.rerouted),
                **pool.counts,
            )
            for name, pool in found.items()
        ]
        return DispatchState(pools=windows, **reporter.head(window))

    def _pool(self, name: str) -> _Dispatched:
        shown = clean(name)
        if shown not in self._pools and len(self._pools) >= POOLS_MAX:
            shown = OTHER
        return self._pools.setdefault(shown, _Dispatched())


def _count(counts: Counts, index: int, n: int) -> None:
    counts[index] = counts.get(index, 0) + n


def _count_bounded(counts: Counter[str], name: str) -> None:
    full = name not in counts and len(counts) >= KINDS_MAX - 1
    counts[OTHER if full else name] += 1
