"""A forecast that was too low: service times and prices other than planned with.

Site ─▶ the same site whose replicas take 1.5 times as long, or whose GPUs cost more
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from infra.capacity.fleet import Emulation, GpuType, PoolPlan
from infra.emulator.performance import Performance
from load.planning.site import HOSTED, Site

TIMES = (
    "fixed_s",
    "experts_s",
    "per_sequence_s",
    "per_context_token_s",
    "per_prompt_token_s",
    "request_s",
    "request_per_prompt_token_s",
    "request_contention_s",
)


def slower(site: Site, factor: float) -> Site:
    """Every replica takes so many times as long for everything, others' machines too."""
    return _with_pools(
        site,
        lambda plan: (
            plan
            if plan.emulation is None
            else replace(plan, emulation=_slower(plan.emulation, factor))
        ),
    )


def _slower(emulation: Emulation, factor: float) -> Emulation:
    performance = emulation.performance
    times = {name: factor * getattr(performance, name) for name in TIMES}
    changed: Performance = replace(performance, **times)
    return replace(emulation, performance=changed)


def dearer(site: Site, factor: float) -> Site:
    """Every GPU costs so many times as much."""

    def priced(gpu: GpuType) -> GpuType:
        return gpu if gpu == HOSTED else replace(gpu, usd_per_hour=factor * gpu.usd_per_hour)

    found = _with_pools(site, lambda plan: replace(plan, gpu=priced(plan.machine)))
    return replace(found, fleet=replace(found.fleet, gpus=tuple(map(priced, site.fleet.gpus))))


def _with_pools(site: Site, change: Callable[[PoolPlan], PoolPlan]) -> Site:
    """The site with its pools changed, which routers know of."""
    pools = tuple(change(plan) for plan in site.fleet.pools)
    catalogue = type(site.catalogue)(
        site.catalogue.models,
        [plan.for_router(reports=True) for plan in pools],
        site.catalogue.prompt_tokens,
    )
    return replace(site, fleet=replace(site.fleet, pools=pools), catalogue=catalogue)
