"""What happened in a stretch of time, as counts that add up: of one record, a slot, or all time.

    record ──tally_of──▶ Tally ──add──▶ the slot of its window      (the last five minutes)
                           └───bare───▶ totals                      (since the state began)

All counts are integers and addition has no order, so neither has what comes of it. Tables are
bounded: of more names than a table takes, those that sort last are summed under `other`. So which
ones those are depends on the names alone, not on who came first.

What is in a table is never changed, only replaced; tallies may share it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec.structs import astuple, replace

from streams.telemetry.histogram import Counts, count_into, counted
from streams.telemetry.records import (
    CLASS_COUNTS,
    CLASSES_MAX,
    KINDS_MAX,
    MODELS_MAX,
    OTHER,
    POOLS_MAX,
    AnyTelemetry,
    ClassWindow,
    DispatchState,
    DispatchWindow,
    PoolState,
    ReplicaStates,
    RouterState,
    Workload,
)

LARGEST = 2**63 - 1  # what the snapshot's format holds; adding stops there, in any order
BETWEEN = "\x1f"  # joins two names in one key; no name has it
JOULE = 1000  # energy is counted in millijoules

Value = TypeVar("Value")  # an int, a `Summed`, or a table of either


class Summed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Counts that are added field by field."""

    def __add__(self, other: Summed) -> Summed:
        # Most counts of most records are nothing: what they are added to stays as it is.
        pairs = zip(astuple(self), astuple(other), strict=True)
        return type(self)(*[_plus(a, b) if a and b else a or b for a, b in pairs])


class DemandTally(Summed, frozen=True):
    """Requests that prefer one model."""

    requests: int = 0
    prompt_tokens: int = 0
    fixed: int = 0  # of the requests, those that no other model may answer


class ClassTally(Summed, frozen=True):
    """Requests of one class."""

    arrivals: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prompt_lengths: Counts = {}
    output_lengths: Counts = {}
    shed: int = 0
    demand: dict[str, DemandTally] = {}  # by model
    criticality: int = 0  # see `ClassWindow.criticality_sum`
    guarded: int = 0

    def bare(self) -> ClassTally:
        """Without histograms."""
        return replace(self, prompt_lengths={}, output_lengths={})


class MixTally(Summed, frozen=True):
    """Decisions for one model in one pool."""

    decisions: int = 0
    explored: int = 0

    def bare(self) -> MixTally:
        """Itself: it has no histograms."""
        return self


class PoolTally(Summed, frozen=True):
    """What one pool made, and what was dispatched to it."""

    tokens: int = 0
    millijoules: int = 0
    attempts: int = 0
    answered: int = 0
    cancelled: int = 0
    retried: int = 0
    hedged: int = 0
    escalated: int = 0
    ejections: int = 0
    refusals: int = 0
    failed: dict[str, int] = {}  # by kind
    rerouted: dict[str, int] = {}  # by target
    ttft_ms: Counts = {}
    tpot_ms: Counts = {}
    last_resort: int = 0

    def bare(self) -> PoolTally:
        """Without histograms."""
        return replace(self, ttft_ms={}, tpot_ms={}) if self.ttft_ms or self.tpot_ms else self

    def and_made(self, made: PoolTally) -> PoolTally:
        """With what a replica made, of which a dispatcher counts nothing: as `+`, but quick."""
        return replace(
            self,
            tokens=min(self.tokens + made.tokens, LARGEST),
            millijoules=min(self.millijoules + made.millijoules, LARGEST),
            ttft_ms=_plus(self.ttft_ms, made.ttft_ms),
            tpot_ms=_plus(self.tpot_ms, made.tpot_ms),
        )


class Made:
    """What replicas of one pool made, of many records: added up in place."""

    __slots__ = ("millijoules", "tokens", "tpot_ms", "ttft_ms")

    def __init__(self) -> None:
        self.tokens = self.millijoules = 0
        self.ttft_ms: Counts = {}
        self.tpot_ms: Counts = {}

    def add(self, record: PoolState | ReplicaStates) -> None:
        """Count one record."""
        joules = record.joules if isinstance(record, ReplicaStates) else [record.joules]
        self.tokens += record.tokens
        self.millijoules += sum(round(of_one * JOULE) for of_one in joules)
        count_into(self.ttft_ms, record.ttft_ms)
        count_into(self.tpot_ms, record.tpot_ms)

    def tally(self) -> PoolTally:
        """All of it. It is not to be added to any more: the tally has its tables."""
        return PoolTally(
            tokens=min(self.tokens, LARGEST),
            millijoules=min(self.millijoules, LARGEST),
            ttft_ms=self.ttft_ms,
            tpot_ms=self.tpot_ms,
        )


class Tally(msgspec.Struct, array_like=True):
    """Counts by class, by pair of model and pool, and by pool."""

    classes: dict[str, ClassTally] = {}
    mix: dict[str, MixTally] = {}  # by model, BETWEEN, pool
    pools: dict[str, PoolTally] = {}
    refused: int = 0
    reports: int = 0  # of routers, also of those that had nothing to do

    def add(self, other: Tally) -> None:
        """Add what happened elsewhere or later."""
        for name, of_class in other.classes.items():
            add_under(self.classes, name, of_class, CLASSES_MAX)
        for name, of_pair in other.mix.items():
            add_under(self.mix, name, of_pair, POOLS_MAX)
        for name, of_pool in other.pools.items():
            add_under(self.pools, name, of_pool, POOLS_MAX)
        self.refused = _plus(self.refused, other.refused)
        self.reports = _plus(self.reports, other.reports)

    def add_made(self, name: str, made: PoolTally) -> None:
        """Add what a pool's replica made: most of all that is added, and of few counts."""
        held = self.pools.get(name)
        if held is None:
            add_under(self.pools, name, made, POOLS_MAX)
        else:
            self.pools[name] = held.and_made(made)

    def bare(self) -> Tally:
        """Without histograms."""
        return Tally(
            {name: tally.bare() for name, tally in self.classes.items()},
            self.mix.copy(),
            {name: tally.bare() for name, tally in self.pools.items()},
            self.refused,
            self.reports,
        )

    def forget_latencies(self) -> None:
        """Drop the pools' histograms, which are most of the bytes."""
        self.pools = {name: tally.bare() for name, tally in self.pools.items()}


def tally_of(record: AnyTelemetry) -> Tally:
    """What one record counts."""
    tally = Tally()
    if isinstance(record, Workload):
        for one in record.classes:
            found = ClassTally(
                prompt_tokens=one.prompt_tokens_sum,
                output_tokens=one.output_tokens_sum,
                prompt_lengths=counted(one.prompt_tokens),
                output_lengths=counted(one.output_tokens),
                demand=_demand(one),
                criticality=one.criticality_sum,
                **{name: getattr(one, name) for name in CLASS_COUNTS},
            )
            add_under(tally.classes, one.name, found, CLASSES_MAX)
    elif isinstance(record, RouterState):
        tally.refused, tally.reports = record.refused, 1
        for pair in record.mix:
            decided = MixTally(pair.decisions, pair.explored)
            add_under(tally.mix, joined(pair.model, pair.pool), decided, POOLS_MAX)
    elif isinstance(record, PoolState | ReplicaStates):
        made = Made()
        made.add(record)
        tally.pools[record.pool] = made.tally()
    elif isinstance(record, DispatchState):
        for window in record.pools:
            add_under(tally.pools, window.pool, _dispatched(window), POOLS_MAX)
    return tally


def _demand(window: ClassWindow) -> dict[str, DemandTally]:
    found: dict[str, DemandTally] = {}
    for one in window.demand:
        add_under(
            found,
            one.model,
            DemandTally(one.requests, one.prompt_tokens_sum, one.fixed),
            MODELS_MAX,
        )
    return found


def _dispatched(window: DispatchWindow) -> PoolTally:
    same = ("attempts", "answered", "cancelled", "retried", "hedged", "escalated", "ejections")
    return PoolTally(
        **{name: getattr(window, name) for name in same},
        refusals=window.refusals,
        last_resort=window.last_resort,
        failed=window.failed,
        rerouted=window.rerouted,
    )


def joined(first: str, second: str) -> str:
    """The key of a pair of names."""
    return f"{first}{BETWEEN}{second}"


def parted(key: str) -> tuple[str, str]:
    """The pair of names of a key; of `other`, twice that."""
    first, _, second = key.partition(BETWEEN)
    return first, second or first


def add_under(table: dict[str, Value], name: str, value: Value, most: int) -> None:
    """Add a value under a name; of more than `most` names, those that sort last become `other`."""
    held = table.get(name)
    table[name] = value if held is None else _plus(held, value)
    while len(table) - (OTHER in table) > most:
        last = max(n for n in table if n != OTHER)
        add_under(table, OTHER, table.pop(last), most)


def _plus(one: Any, other: Any) -> Any:
    if not one or not other:  # most counts of most records are nothing
        return one or other
    if isinstance(one, int):
        return min(one + other, LARGEST)
    if not isinstance(one, dict):
        return one + other
    if isinstance(next(iter(one)), int):
        counts = dict(one)
        count_into(counts, other.items())  # in ten seconds it can't come to LARGEST
        return counts
    table = dict(one)
    most = KINDS_MAX if isinstance(next(iter(one.values())), int) else MODELS_MAX
    for name, n in other.items():
        add_under(table, name, n, most)
    return table
