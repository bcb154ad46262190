"""The engines of all replicas of a simulation, each an `infra.emulator.engine` of its own.

They stand in for `CompiledEngines` where there is no numba, and are what those are compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from infra.capacity.fleet import Emulation
from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import rates_of
from infra.emulator.engine import FINISHED, FIRST_TOKEN, Engine
from infra.emulator.gauges import EngineGauges
from learners.work import WorkRates
from load.simulation.machines.offered import Answered, Counted, Ints, Lost, Offered
from serve.health.health import less_loaded
from streams.telemetry.histogram import LATENCY_MS


class Flight:
    """A request on its way: the engine's name for it, and what is known of it so far."""

    __slots__ = ("at_s", "first_s", "number", "output_tokens")

    def __init__(self, number: int, at_s: float, output_tokens: int) -> None:
        self.number, self.at_s, self.output_tokens = number, at_s, output_tokens
        self.first_s = 0.0  # when its first token came


class PlainReplica:
    """One engine, its requests, and what was counted since somebody asked."""

    __slots__ = (
        "address", "context_tokens_max", "engine", "flights", "last_end_s", "latencies", "rates",
        "sums",
    )  # fmt: skip

    def __init__(self, engine: Engine, context_tokens_max: int, rates: WorkRates) -> None:
        self.engine, self.context_tokens_max, self.rates = engine, context_tokens_max, rates
        self.address = ""
        self.flights: dict[Flight, None] = {}  # that it has, in the order they came
        self.last_end_s = 0.0
        self.begin()

    def begin(self) -> None:
        """Count from zero."""
        self.sums = [0.0] * 5
        self.latencies: tuple[Counter[int], Counter[int]] = (Counter(), Counter())

    @property
    def in_flight(self) -> int:
        """Requests it has not finished, as far as is known."""
        return len(self.flights)

    def take(
        self, number: int, at_s: float, prompt: int, output: int, priority: int, begin_s: float,
        *, slow: float,
    ) -> bool:  # fmt: skip
        """Begin to answer a request; False if its prompt is too long."""
        room = self.context_tokens_max - prompt
        if room < 1:
            return False
        output = min(output, room)
        flight = Flight(number, at_s, output)
        self.engine.submit(flight, prompt, output, begin_s, priority=priority, slow=slow)
        self.flights[flight] = None
        work_s = self.rates.work_s(prompt, output_tokens=output)
        came = (1.0, prompt, output, work_s, work_s * work_s)
        self.sums = [before + new for before, new in zip(self.sums, came, strict=True)]
        return True

    def advance(self, to_s: float, answered: list[tuple[Flight, float]]) -> None:
        """Let time pass; who was answered is appended."""
        ttft, tpot = self.latencies
        for flight, kind, at_s in self.engine.advance(to_s):
            if kind is FIRST_TOKEN:
                flight.first_s = at_s
                ttft[LATENCY_MS.index((at_s - flight.at_s) * 1000.0)] += 1
            elif kind is FINISHED:
                del self.flights[flight]
                answered.append((flight, at_s))
                self.last_end_s = at_s
                if flight.output_tokens > 1:
                    tpot_s = (at_s - flight.first_s) / (flight.output_tokens - 1)
                    tpot[LATENCY_MS.index(tpot_s * 1000.0)] += 1


class PlainEngines:
    """All of them. Used by one fleet."""

    def __init__(self, target: LatencyTarget) -> None:
        self._target = target
        self._replicas: dict[int, PlainReplica] = {}
        self._n = 0

    def open(
        self, emulation: Emulation, context_tokens_max: int, now_s: float
    ) -> tuple[int, EngineGauges]:
        """See `Engines`."""
        engine = Engine(emulation.performance, emulation.power, now_s)
        rates = rates_of(emulation.performance, self._target)
        self._n += 1
        self._replicas[self._n] = PlainReplica(engine, context_tokens_max, rates)
        return self._n, engine

    def take(
        self,
        offered: Offered,
        first: int,
        ready: Sequence[Sequence[int]],
        now_s: float,
        taken: Ints,
    ) -> int:
        """See `Engines`."""
        pools = [[self._replicas[row] for row in rows] for rows in ready]
        asked = zip(*(column[first:].tolist() for column in offered.columns()), strict=True)
        for row, (number, at_s, prompt, output, priority, uniform, slow, place) in enumerate(
            asked, first
        ):
            if place < 0:
                continue
            if not pools[place]:
                return row
            replica = less_loaded(pools[place], uniform)
            begin_s = max(at_s, now_s)
            if not replica.take(number, at_s, prompt, output, priority, begin_s, slow=slow):
                return row
            taken[row] = place
        return len(taken)

    def advance(self, rows: Sequence[int], to_s: float) -> Answered:
        """See `Engines`."""
        answered: list[tuple[Flight, float]] = []
        for row in rows:
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

    def look(self, rows: Sequence[int], now_s: float) -> None:
        """See `Engines`."""
        for row in rows:
            engine = self._replicas[row].engine
            if engine.now_s < now_s:
                engine.advance(now_s)

    def counted(self, rows: Sequence[int]) -> list[Counted]:
        """See `Engines`."""
        replicas = [self._replicas[row] for row in rows]
        found = [Counted(replica.sums, *replica.latencies) for replica in replicas]
        for replica in replicas:
            replica.begin()
        return found

    def close(self, row: int) -> Lost:
        """See `Engines`."""
        flights = list(self._replicas.pop(row).flights)
        numbers = np.array([flight.number for flight in flights], np.int64)
        return Lost(numbers, np.array([flight.first_s for flight in flights]))
