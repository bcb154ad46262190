"""The planner as benchmarks of pools run it: its times fit into minutes, all else is by default."""

from __future__ import annotations

from functools import partial

from infra.autoscaling.demand.expected import ExpectedOptions
from infra.autoscaling.live.planner_actor import Scaling
from infra.autoscaling.live.site_scaling import observe_site, planner_of
from infra.autoscaling.planner import PlannerOptions, RouterOptions
from infra.autoscaling.sizing.sizing import SizingOptions
from infra.autoscaling.sizing.stabilisation import StabilisationOptions
from infra.settings.scaling_options import AutoscalingOptions

STEP_S = 1.0


def scaling(*, idle_s: float, down_s: float) -> Scaling:
    """A planner that lets go of a model after `idle_s`, and of a replica after `down_s`."""
    options = PlannerOptions(
        expected=ExpectedOptions(idle_s=idle_s),
        sizing=SizingOptions(lead_s=5.0),
        stabilisation=StabilisationOptions(down_s=down_s, grow_s=20.0, fresh_s=down_s),
        routers=RouterOptions(least=1, most=1),
    )
    return Scaling(
        options=AutoscalingOptions(enabled=True, step_s=STEP_S, routers_min=1, routers_max=1),
        observe=observe_site,
        make=partial(planner_of, options=options),
    )
