"""The engines of all replicas of a simulation, each an `infra.emulator.engine` with its own meter.

They stand in for `CompiledEngines` where there is no numba, and are what those are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infra.capacity.fleet import Emulation
from infra.capacity.latency_target import LatencyTarget
from infra.emulator.engine import FINISHED, FIRST_TOKEN, Engine
from infra.emulator.gauges import EngineGauges
from infra.pools.replica_meter import ReplicaMeter
from load.simulation.machines.offered import (
    Answered,
    Ints,
    Lost,
    Offered,
    Reported,
    Rows,
    held_by_priority,
)
from serve.health.health import less_loaded
from streams.telemetry.histogram import Counts, count_into
from streams.telemetry.pool_window import ReplicaIdentity
from streams.telemetry.records import PoolState
from streams.telemetry.window import SOURCE_BYTES, Reporter

NAMELESS = ReplicaIdentity(pool="", model="", replica="")  # who reports it says who it is


class Flight:
    """A request on its way: the engine's name for it, and what is known of it so far."""

    __slots__ = ("at_s", "first_s", "number", "output_tokens")

    def __init__(self, number: int, at_s: float, output_tokens: int) -> None:
        self.number, self.at_s, self.output_tokens = number, at_s, output_tokens
        self.first_s = 0.0  # when its first token came


class PlainReplica:
    """One engine, its requests, and its meter."""

    def __init__(
        self,
        engine: Engine,
        context_tokens_max: int,
        target: LatencyTarget,
        now_s: float,
        held_max: Sequence[int],
    ) -> None:
        self.engine, self.context_tokens_max = engine, context_tokens_max
        self._held_max = held_by_priority(held_max)
        self.meter = ReplicaMeter(NAMELESS, engine, target)
        self.flights: dict[Flight, None] = {}  # that it has, in the order they came
        self.last_end_s, self._reported_s = 0.0, now_s
        self._reporter = Reporter("0" * 2 * SOURCE_BYTES, 0)

    @property
    def in_flight(self) -> int:
        """Requests it has not finished, as far as is known."""
        return len(self.flights)

    def has_room(self, priority: int, at_s: float) -> bool:
        """Whether it may be given one more."""
        return self.engine.held(at_s) < self._held_max[priority]

    def take(
        self, number: int, at_s: float, prompt: int, output: int, priority: int, begin_s: float,
        *, slow: float,
    ) -> bool:  # fmt: skip
        """Begin to answer a request; False if its prompt is too long, or there is no place."""
        room = self.context_tokens_max - prompt
        if room < 1 or not self.has_room(priority, begin_s):
            return False
        output = min(output, room)
        flight = Flight(number, at_s, output)
        self.engine.submit(flight, prompt, output, begin_s, priority=priority, slow=slow)
        self.flights[flight] = None
        self.meter.count_request(prompt, output)
        return True

    def advance(self, to_s: float, answered: list[tuple[Flight, float]]) -> None:
        """Let time pass; who was answered is appended."""
        for flight, kind, at_s in self.engine.advance(to_s):
            if kind is FIRST_TOKEN:
                flight.first_s = at_s
                self.meter.count_first_token((at_s - flight.at_s) * 1000.0)
            elif kind is FINISHED:
                del self.flights[flight]
                answered.append((flight, at_s))
                self.last_end_s = at_s
                if flight.output_tokens > 1:
                    tpot_s = (at_s - flight.first_s) / (flight.output_tokens - 1)
                    self.meter.count_answer(tpot_s * 1000.0)

    def look(self, now_s: float) -> Engine:
        """Bring it up to a time."""
        if self.engine.now_s < now_s:
            self.engine.advance(now_s)
        return self.engine

    def report(self, now_s: float) -> PoolState:
        """What its meter says of it."""
        elapsed_s = self.look(now_s).now_s - self._reported_s
        self._reported_s = self.engine.now_s
        return self.meter.report(self._reporter, (0, 1), "ready", elapsed_s)


class PlainEngines:
    """All of them. Used by one fleet."""

    def __init__(self, target: LatencyTarget) -> None:
        self._target = target
        self._replicas: dict[int, PlainReplica] = {}
        self._n = 0

    def open(
        self,
        emulation: Emulation,
        context_tokens_max: int,
        now_s: float,
        held_max: Sequence[int] = (),
    ) -> int:
        """See `Engines`."""
        engine = Engine(emulation.performance, emulation.power, now_s)
        self._n += 1
        self._replicas[self._n] = PlainReplica(
            engine, context_tokens_max, self._target, now_s, held_max
        )
        return self._n

    def begin(self, row: int, now_s: float) -> None:
        """See `Engines`."""
        self._replicas[row].look(now_s)
        self._replicas[row].meter.begin()

    def take(self, offered: Offered, first: int, ready: Rows, now_s: float, taken: Ints) -> int:
        """See `Engines`."""
        pools = [[self._replicas[row] for row in rows] for rows in ready.by_pool()]
        asked = zip(*(column[first:].tolist() for column in offered.columns()), strict=True)
        for row, (number, at_s, prompt, output, priority, uniform, slow, place) in enumerate(
            asked, first
        ):
            if place < 0:
                continue
            if not pools[place]:
                return row
            replica, begin_s = less_loaded(pools[place], uniform), max(at_s, now_s)
            if not replica.has_room(priority, begin_s):
                others = (one for one in pools[place] if one.has_room(priority, begin_s))
                replica = next(others, replica)
            if not replica.take(number, at_s, prompt, output, priority, begin_s, slow=slow):
                return row
            taken[row] = place
        return len(taken)

    def advance(self, rows: Ints, to_s: float) -> Answered:
        """See `Engines`."""
        answered: list[tuple[Flight, float]] = []
        for row in rows.tolist():
            if self._replicas[row].flights:
                self._replicas[row].advance(to_s, answered)
        flights = [flight for flight, _ in answered]
        return Answered(
            np.array([flight.number for flight in flights], np.int64),
            np.array([flight.output_tokens for flight in flights], np.int64),
            np.array([flight.first_s for flight in flights]),
            np.array([end_s for _, end_s in answered]),
        )

    def in_flight(self, row: int) -> int:
        """Requests a replica has not finished, as far as is known."""
        return self._replicas[row].in_flight

    def last_end_s(self, row: int) -> float:
        """See `Engines`."""
        return self._replicas[row].last_end_s

    def look(self, row: int, now_s: float) -> EngineGauges:
        """See `Engines`."""
        return self._replicas[row].look(now_s)

    def report(self, pools: Rows, now_s: float) -> list[Reported]:
        """See `Engines`."""
        return [
            _together([self._replicas[row].report(now_s) for row in rows])
            for rows in pools.by_pool()
        ]

    def close(self, row: int) -> Lost:
        """See `Engines`."""
        flights = list(self._replicas.pop(row).flights)
        numbers = np.array([flight.number for flight in flights], np.int64)
        return Lost(numbers, np.array([flight.first_s for flight in flights]))


def _together(records: Sequence[PoolState]) -> Reported:
    ttft_ms: Counts = {}
    tpot_ms: Counts = {}
    for record in records:
        count_into(ttft_ms, record.ttft_ms)
        count_into(tpot_ms, record.tpot_ms)
    return Reported(
        queued=[record.queued for record in records],
        running=[record.running for record in records],
        kv_use=[record.kv_use for record in records],
        load=[record.load or 0.0 for record in records],
        watts=[record.watts for record in records],
        joules=[record.joules for record in records],
        tokens=sum(record.tokens for record in records),
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
    )
