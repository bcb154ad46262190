"""One replica in virtual time: an emulated engine, and when it was launched, ready and gone.

    launch ──start-up, load──▶ ready ──drain──▶ draining ──last answer──▶ gone
       └────────── stopped, or dies with its machine ───────────────────▶ gone

It is powered, and paid for, from its launch until it is gone.

A replica that drains gets no more requests, and finishes those it has.
"""

from __future__ import annotations

from typing import Literal

from infra.capacity.fleet import Emulation, PoolPlan
from infra.emulator.engine import WATERMARK
from load.simulation.machines.offered import Engines
from streams.telemetry.records import ReplicaPhase

State = Literal["starting", "ready", "draining", "gone"]


class VirtualReplica:
    """See above. Times are seconds of the simulation."""

    __slots__ = (
        "_engines", "address", "gone_s", "joules", "launched_s", "plan", "ready_s", "row", "state",
    )  # fmt: skip

    def __init__(
        self,
        plan: PoolPlan,
        number: int,
        launched_s: float,
        *,
        ready_s: float,
        engines: Engines,
    ) -> None:
        """`engines` run its own among others."""
        self.plan, self.launched_s, self.ready_s = plan, launched_s, ready_s
        self.address = f"{plan.name}/{number}"
        self.gone_s = float("inf")
        self.state: State = "starting"
        self.joules = 0.0  # that it used, when it is gone
        self._engines = engines
        self.row = engines.open(
            _emulation(plan), context_tokens_max(plan), launched_s, plan.held_max
        )

    @property
    def reports_s(self) -> float:
        """From when on there is a machine that reports on it."""
        return self.ready_s - self.plan.load_s

    def begin(self) -> None:
        """Be ready; its load is measured from now on."""
        self._engines.begin(self.row, self.ready_s)
        self.state = "ready"

    @property
    def phase(self) -> ReplicaPhase:
        """Its state, to telemetry: a replica that is gone had its last word as it drained."""
        return "draining" if self.state == "gone" else self.state

    @property
    def in_flight(self) -> int:
        """Requests it has not finished, as far as is known."""
        return self._engines.in_flight(self.row)

    def leave(self, at_s: float) -> None:
        """Be gone from a time on."""
        gauges = self._engines.look(self.row, at_s)
        over_s = max(0.0, gauges.now_s - at_s)  # it was idle then
        self.joules = gauges.energy_j - over_s * _emulation(self.plan).power.idle_w
        self.state, self.gone_s = "gone", at_s


def context_tokens_max(plan: PoolPlan) -> int:
    """The longest prompt with its answer that a pool's replicas take."""
    emulation = _emulation(plan)
    # The engine never admits a prompt that leaves nothing of its cache free.
    room = int(emulation.performance.kv_tokens_max * (1 - WATERMARK))
    return min(emulation.context_tokens_max, room)


def _emulation(plan: PoolPlan) -> Emulation:
    assert plan.emulation is not None, f"{plan.name}: only emulated pools run in virtual time"
    return plan.emulation
