"""One replica in virtual time: an emulated engine, and when it was launched, ready and gone.

    launch ──start-up, load──▶ ready ──drain──▶ draining ──last answer──▶ gone
       └────────── stopped, or dies with its machine ───────────────────▶ gone

It is powered, and paid for, from its launch until it is gone. What it reports is what a
real one's `PoolVitals` would.

A replica that drains gets no more requests, and finishes those it has.
"""

from __future__ import annotations

from typing import Literal

from infra.capacity.fleet import Emulation, PoolPlan
from infra.capacity.latency_target import LatencyTarget
from infra.emulator.engine import WATERMARK, Engine
from infra.pools.replica_meter import ReplicaMeter
from streams.telemetry.pool_window import ReplicaIdentity
from streams.telemetry.records import PoolState
from streams.telemetry.window import Reporter

State = Literal["starting", "ready", "draining", "gone"]


class Flight:
    """A request on its way: the engine's name for it, and what is known of it so far."""

    __slots__ = (
        "at_s", "class_name", "first_s", "number", "output_tokens", "priority", "retried", "ticket",
    )  # fmt: skip

    def __init__(self, number: int, at_s: float, class_name: str, priority: int = 0) -> None:
        self.number, self.at_s, self.class_name = number, at_s, class_name  # position in traffic
        self.priority = priority  # lower is served earlier
        self.first_s = 0.0  # when its first token came
        self.output_tokens = 0
        self.retried = False
        self.ticket: bytes | None = None  # of one who will report


class VirtualReplica:
    """See above. Times are seconds of the simulation."""

    __slots__ = (
        "_looked_s", "_meter", "_reporter", "address", "context_tokens_max", "engine", "flights",
        "gone_s", "launched_s", "plan", "ready_s", "state",
    )  # fmt: skip

    def __init__(
        self,
        plan: PoolPlan,
        number: int,
        launched_s: float,
        *,
        ready_s: float,
        target: LatencyTarget,
        reporter: Reporter,
    ) -> None:
        self.plan, self.launched_s, self.ready_s = plan, launched_s, ready_s
        self.address = f"{plan.name}/{number}"
        self.gone_s = float("inf")
        self.state: State = "starting"
        self.flights: dict[Flight, None] = {}  # that it has, in the order they came
        emulation = _emulation(plan)
        self.engine = Engine(emulation.performance, emulation.power, launched_s)
        self._meter = ReplicaMeter(_identity(plan, self.address), self.engine, target)
        self.context_tokens_max = context_tokens_max(plan)
        self._reporter, self._looked_s = reporter, launched_s  # the time of the last report

    @property
    def reports_s(self) -> float:
        """From when on there is a machine that reports on it."""
        return self.ready_s - self.plan.load_s

    def begin(self) -> None:
        """Be ready; its load is measured from now on."""
        self.engine.advance(self.ready_s)
        self._meter.begin()
        self.state = "ready"

    @property
    def in_flight(self) -> int:
        """Requests it has not finished, as far as is known."""
        return len(self.flights)

    def take(self, flight: Flight, prompt_tokens: int, output_tokens: int, at_s: float) -> bool:
        """Begin to answer a request; False if its prompt is too long.

        An answer ends where the context does, as a real one.
        """
        room = self.context_tokens_max - prompt_tokens
        if room < 1:
            return False
        flight.output_tokens = min(output_tokens, room)
        self.engine.submit(
            flight, prompt_tokens, flight.output_tokens, at_s, priority=flight.priority
        )
        self._meter.count_request(prompt_tokens, flight.output_tokens)
        self.flights[flight] = None
        return True

    def count_first_token(self, flight: Flight, at_s: float) -> None:
        """Note a first token."""
        flight.first_s = at_s
        self._meter.count_first_token((at_s - flight.at_s) * 1000.0)

    def count_answer(self, flight: Flight, at_s: float) -> None:
        """Note the end of an answer: the request is no longer here."""
        del self.flights[flight]
        if flight.output_tokens > 1:
            tpot_s = (at_s - flight.first_s) / (flight.output_tokens - 1)
            self._meter.count_answer(tpot_s * 1000.0)

    def leave(self, at_s: float) -> None:
        """Be gone from a time on."""
        if at_s > self.engine.now_s:
            self.engine.advance(at_s)
        self.state, self.gone_s = "gone", at_s

    @property
    def joules(self) -> float:
        """Energy used so far; if it is gone, until then."""
        over_s = max(0.0, self.engine.now_s - self.gone_s)  # it was idle then
        return self.engine.energy_j - over_s * _emulation(self.plan).power.idle_w

    def report(self, now_s: float, now_ms: int) -> PoolState:
        """What it reports of itself. Of an engine that is behind `now_s`, nothing is to come."""
        engine, window = self.engine, self._reporter.window(now_ms)
        if engine.now_s < now_s:
            engine.advance(now_s)
        elapsed_s, self._looked_s = engine.now_s - self._looked_s, engine.now_s
        assert self.state != "gone", f"{self.address}: what is gone reports nothing"
        return self._meter.report(self._reporter, window, self.state, elapsed_s)


def context_tokens_max(plan: PoolPlan) -> int:
    """The longest prompt with its answer that a pool's replicas take."""
    emulation = _emulation(plan)
    # The engine never admits a prompt that leaves nothing of its cache free.
    room = int(emulation.performance.kv_tokens_max * (1 - WATERMARK))
    return min(emulation.context_tokens_max, room)


def _emulation(plan: PoolPlan) -> Emulation:
    assert plan.emulation is not None, f"{plan.name}: only emulated pools run in virtual time"
    return plan.emulation


def _identity(plan: PoolPlan, address: str) -> ReplicaIdentity:
    return ReplicaIdentity(
        pool=plan.name,
        model=plan.model,
        replica=address,
        gpu=plan.gpu.name if plan.gpu else "",
        region=plan.region,
        derived=plan.derived,
    )
