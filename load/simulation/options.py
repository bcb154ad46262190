"""What is simulated, and how finely.

The one rule: together with the arguments of `simulate` this says all; there are no other settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.capacity.latency_target import LatencyTarget
from learners.policies.policy import Policy, SquareCb
from serve.routing.placement import PlacementOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """What is simulated, and how finely."""

    target: LatencyTarget = field(default_factory=LatencyTarget)
    # Weights of quality, US dollars, seconds, kilojoules: the router's own defaults.
    preference: tuple[float, float, float, float] = (1.0, 20.0, 0.01, 0.0)
    policy: Policy = field(default_factory=SquareCb)
    placement: PlacementOptions = field(default_factory=PlacementOptions)
    router_priced: bool = True  # False: it is blind to pools, knows neither loads nor prices
    routers: int = 1  # to begin with
    decision_s: float = 3e-4  # of a router's event loop; only the scaler of routers sees it
    feedback_share: float = 0.05  # of requests whose outcome somebody reports …
    feedback_s: float = 10.0  # … in lumps, so often
    publish_s: float = 300.0  # between views of what was learned, at most
    telemetry_s: float = 2.0  # between records of a replica, and between views of them
    scale_s: float = 10.0  # between steps of the scaler
    # As in a real batch: what is known is so old, and so many requests, at most.
    tick_s: float = 0.5
    tick_requests: int = 64
    tail_s: float = 60.0  # after the last arrival, so that late answers come to their end
    seed: int = 0
