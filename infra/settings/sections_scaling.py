"""The part of the settings that says what is promised, what is scarce, and how the fleet is sized.

    [targets]     ──▶ LatencyTarget        what a replica's load of 1 means, what is planned for
    [prices]      ──▶ PlacementOptions     how routers charge capacity, power and the budget
                  └─▶ PricingOptions       how the trainer lets prices follow loads
    [autoscaling] ──▶ AutoscalingOptions   how many replicas of pools and routers there are

The one rule: zero means "no limit" for what may be spent or taken; inside it is infinity.
"""

from __future__ import annotations

import math

from pydantic import Field

from infra.capacity.latency_target import LatencyTarget
from infra.settings.scaling_options import AutoscalingOptions
from infra.settings.sections_fleet import Section
from serve.routing.placement import PlacementOptions
from streams.training.prices import PricingOptions


class TargetsSection(Section):
    """How soon answers begin, and how fast they go on. Replicas are sized and priced by it."""

    ttft_s: float = Field(
        LatencyTarget().ttft_s, gt=0, le=3600, description="Seconds to an answer's first token."
    )
    ttft_s_per_1k_prompt_tokens: float = Field(
        LatencyTarget().ttft_s_per_1k_prompt_tokens,
        ge=0,
        le=3600,
        description="And so many more per 1,000 tokens of the prompt: they have to be read.",
    )
    tpot_s: float = Field(
        LatencyTarget().tpot_s,
        gt=0,
        le=60,
        description="Seconds per token after the first; people read five a second.",
    )

    def target(self) -> LatencyTarget:
        """As one value."""
        return LatencyTarget(**self.model_dump())


class PricesSection(Section):
    """What scarce capacity costs requests. docs/prices.md has the mathematics."""

    load_target: float = Field(
        PricingOptions().load_target,
        gt=0,
        le=1,
        description="Share of what a replica carries within target above which it gets a price.",
    )
    budget_usd_per_hour: float = Field(
        0.0, ge=0, le=1e9, description="What answers may cost, USD per hour. 0: no limit."
    )
    power_w_max: float = Field(
        0.0, ge=0, le=1e9, description="What all pools may draw, watts. 0: no limit."
    )
    value_usd: float = Field(
        PlacementOptions().value_usd,
        gt=0,
        le=1e6,
        description="USD that a point of quality is worth to callers who do not weigh cost.",
    )
    usd_per_kwh: float = Field(
        PlacementOptions().usd_per_kwh,
        gt=0,
        le=1000,
        description="USD per kilowatt-hour; the price of power is a multiple of it.",
    )

    def pricing(self) -> PricingOptions:
        """How prices follow loads."""
        return PricingOptions(
            load_target=self.load_target,
            budget_usd_per_hour=self.budget_usd_per_hour or math.inf,
            power_w_max=self.power_w_max or math.inf,
        )

    def placement(self) -> PlacementOptions:
        """How requests are charged."""
        return PlacementOptions(
            pricing=self.pricing(), value_usd=self.value_usd, usd_per_kwh=self.usd_per_kwh
        )


class AutoscalingSection(Section):
    """Pools and routers follow demand. Off: there are as many replicas as are stated."""

    enabled: bool = Field(False, description="Whether to scale.")
    step_s: float = Field(
        AutoscalingOptions().step_s, gt=0, lt=60, description="Seconds between plans."
    )
    routers_max: int = Field(
        AutoscalingOptions().routers_max,
        ge=1,
        le=1000,
        description="Router replicas at most; at least there are `router.replicas`.",
    )

    def options(self, routers: int) -> AutoscalingOptions:
        """With `routers` at the least."""
        return AutoscalingOptions(
            enabled=self.enabled,
            step_s=self.step_s,
            routers_min=routers,
            routers_max=max(routers, self.routers_max),
        )
