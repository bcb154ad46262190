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
from infra.emulator.engine import WATERMARK
from infra.pools.replica_meter import ReplicaMeter
from load.simulation.machines.offered import Counted, Engines
from streams.telemetry.pool_window import ReplicaIdentity
from streams.telemetry.records import PoolState
from streams.telemetry.window import Reporter

State = Literal["starting", "ready", "draining", "gone"]


class VirtualReplica:
    """See above. Times are seconds of the simulation."""

    __slots__ = (
        "_engines", "_looked_s", "_meter", "_reporter", "address", "gauges", "gone_s", "launched_s",
        "plan", "ready_s", "row", "state",
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
        engines: Engines,
    ) -> None:
        """`engines` run its own among others."""
        self.plan, self.launched_s, self.ready_s = plan, launched_s, ready_s
        self.address = f"{plan.name}/{number}"
        self.gone_s = float("inf")
        self.state: State = "starting"
        self._engines = engines
        self.row, self.gauges = engines.open(_emulation(plan), context_tokens_max(plan), launched_s)
        self._meter = ReplicaMeter(_identity(plan, self.address), self.gauges, target)
        self._reporter, self._looked_s = reporter, launched_s  # the time of the last report

    @property
    def reports_s(self) -> float:
        """From when on there is a machine that reports on it."""
        return self.ready_s - self.plan.load_s

    def begin(self) -> None:
        """Be ready; its load is measured from now on."""
        self._engines.look([self.row], self.ready_s)
        self._meter.begin()
        self.state = "ready"

    @property
    def in_flight(self) -> int:
        """Requests it has not finished, as far as is known."""
        return self._engines.in_flight(self.row)

    def leave(self, at_s: float) -> None:
        """Be gone from a time on."""
        self._engines.look([self.row], at_s)
        self.state, self.gone_s = "gone", at_s

    @property
    def joules(self) -> float:
        """Energy used until it was gone."""
        over_s = max(0.0, self.gauges.now_s - self.gone_s)  # it was idle then
        return self.gauges.energy_j - over_s * _emulation(self.plan).power.idle_w

    def report(self, counted: Counted, now_ms: int) -> PoolState:
        """What it reports of itself, when its engine has been looked at."""
        assert self.state != "gone", f"{self.address}: what is gone reports nothing"
        window, now_s = self._reporter.window(now_ms), self.gauges.now_s
        elapsed_s, self._looked_s = now_s - self._looked_s, now_s
        self._meter.count_requests(counted.came)
        self._meter.count_latencies(counted.ttft_ms, counted.tpot_ms)
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
