"""By what a router of `router_bench` with a greedy policy decided: to make its decisions once more."""

from __future__ import annotations

from router_bench import Router

from learners.estimates.learned import MemoryOptions
from learners.policies.greedy import Greedy
from load.evaluation.replayed import Deciding
from serve.routing.live import LiveOptions
from serve.routing.placement import PlacementOptions


def decided_by(up: Router) -> Deciding:
    return Deciding(
        catalogue=up.source.now,
        policy=Greedy(),
        placement=PlacementOptions(),
        encoder=up.encoder,
        memory=MemoryOptions(),
        live=LiveOptions(),
    )
