"""What scaler and router are told of the fleet by who runs it, and not by telemetry.

    telemetry, prices ──observe──▶ Observed ─┐
    replicas as they are ────────────────────┴─▶ observed, for the scaler
    prices of GPUs ─────────────────────────────▶ repriced, the catalogue that settings would state

The one rule: what Ray Serve or an operator would know at once is known at once, and nothing else.
"""

from __future__ import annotations

from dataclasses import replace

from infra.autoscaling.contract import Observed
from infra.autoscaling.live.observe import observe
from infra.capacity.fleet import Fleet
from load.simulation.machines.fleet import VirtualFleet
from serve.routing.catalogue import Catalogue
from serve.routing.live import Live
from streams.training.state import State


def observed(state: State, live: Live, fleet: VirtualFleet, routers: int, now_ms: int) -> Observed:
    """What there is to see, with replicas as whoever runs them counts them."""
    tokens = dict(zip(live.catalogue.names, live.output_tokens.tolist(), strict=True))
    lost = frozenset(fleet.regions_lost)
    told = observe(state.fleet, state.prices, fleet.described(), tokens, now_ms, lost)
    pools = {
        pool.plan.name: replace(
            told.pools[pool.plan.name],
            ready=len(pool.ready),
            starting=pool.n("starting"),
            draining=pool.n("draining"),
            available=fleet.available(pool),
        )
        for pool in fleet.pools
    }
    return replace(told, pools=pools, routers=routers)


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
