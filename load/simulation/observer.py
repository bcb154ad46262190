"""What scaler and router know of the fleet from who runs it, and not from telemetry.

    telemetry, prices ──observe──▶ Observed ─┐
    replicas as they are ────────────────────┴─▶ observed, for the scaler
    prices of GPUs ─────────────────────────────▶ repriced, the catalogue that settings would state
    replicas, the plan's lines ─────────────────▶ Series, for whoever reads the run

What Ray Serve or an operator would know at once is known at once, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from infra.autoscaling.contract import Observed
from infra.autoscaling.live.observe import observe
from infra.capacity.fleet import Fleet
from load.simulation.loop.results import ReplicaSeries
from load.simulation.machines.fleet import VirtualFleet
from serve.routing.catalogue import Catalogue
from serve.routing.live import Live
from streams.training.state import State


def observed(state: State, live: Live, fleet: VirtualFleet, routers: int, now_ms: int) -> Observed:
    """What there is to see, with replicas as whoever runs them counts them."""
    tokens = dict(zip(live.catalogue.names, live.output_tokens.tolist(), strict=True))
    lost = frozenset(fleet.regions_lost)
    reported = observe(state.fleet, state.prices, fleet.described(), tokens, now_ms, lost)
    pools = {
        pool.plan.name: replace(
            reported.pools[pool.plan.name],
            ready=len(pool.ready),
            starting=pool.n("starting"),
            draining=pool.n("draining"),
            available=fleet.available(pool),
        )
        for pool in fleet.pools
    }
    return replace(reported, pools=pools, routers=routers)


def repriced(catalogue: Catalogue, fleet: Fleet) -> Catalogue:
    """The catalogue with these prices of GPUs, as settings that are read again state them."""
    usd_per_hour = {
        plan.name: plan.gpu.usd_per_hour * plan.gpus_per_replica for plan in fleet.pools if plan.gpu
    }
    pools = [
        replace(pool, usd_per_hour=usd_per_hour[pool.name]) if pool.usd_per_hour else pool
        for pool in catalogue.pools
    ]
    return Catalogue(catalogue.models, pools, catalogue.prompt_tokens)


STATES = ("ready", "starting", "draining")


class Series:
    """Replicas over time, as they are when a plan has been taken up; columns at the end."""

    def __init__(self, fleet: VirtualFleet) -> None:
        self._fleet = fleet
        self._at_s: list[float] = []
        self._counts: list[NDArray[np.int32]] = []  # by time, each (P, states)
        self._lines: list[str] = []

    def look(self, now_s: float, lines: Sequence[str] = ()) -> None:
        """Note replicas as they are, and a plan's lines with their time."""
        self._at_s.append(now_s)
        counts = [[pool.n(state) for state in STATES] for pool in self._fleet.pools]
        self._counts.append(np.array(counts, np.int32))
        self._lines += [f"{now_s:.0f} s: {line}" for line in lines]

    def columns(self) -> ReplicaSeries:
        """All that was seen."""
        counts = np.array(self._counts)
        return ReplicaSeries(
            at_s=np.array(self._at_s),
            pools=tuple(pool.plan.name for pool in self._fleet.pools),
            **{state: counts[:, :, i] for i, state in enumerate(STATES)},
        )

    def lines(self) -> tuple[str, ...]:
        """All that was said."""
        return tuple(self._lines)
