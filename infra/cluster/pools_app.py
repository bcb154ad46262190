"""Pools as an application of Ray Serve: one deployment for each, on the GPUs its replicas need.

    PoolPlan ─▶ deployment "<pool>", resources {gpu_<type>: n} ─▶ replicas, on any raylet
                     ▲ so many replicas as the plan says
    planner ─▶ PlannedPools, the policy of the whole application

Ray Serve places, checks, replaces and scales them; requests do not pass through it. A machine that
states its GPUs as logical resources runs the same configuration as a cluster that has them.

Pools are one application because one policy then sees them all. Without autoscaling each has the
number of replicas that the settings say.

What a pool is comes from its `PoolPlan`, how many replicas it has from the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.config import AutoscalingPolicy
from ray.serve.schema import ServeApplicationSchema

from infra.autoscaling.live.plan_reader import find_planner
from infra.capacity.fleet import PoolPlan
from infra.cluster.declared_apps import declare
from infra.pools.directory import POOLS_APP, open_directory
from infra.pools.pool_replica import PoolDeployment
from infra.pools.site import LocalSite
from infra.settings.scaling_options import AutoscalingOptions
from serve.deploy.watched import COMMON, GRACE_S

POLICY = "infra.autoscaling.live.ray_policy:PlannedPools"
ROUTERS_POLICY = "infra.autoscaling.live.ray_policy:PlannedRouters"
# Plans have their own hysteresis; a second one would only make them late.
AT_ONCE = {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0, "downscale_to_zero_delay_s": 0.0}


def deploy_pools(site: LocalSite, telemetry_s: float, *, scaled: bool = False) -> None:
    """Run the pools that Ray is to run; returns when all have their first replicas.

    Where they are to be scaled, the planner must be there (see `planner_actor`). Raises what Ray
    raises when one can't start, with the replica's error in its text; scaled, ClusterFailed.
    """
    if not _run_by_ray(site, scaled=scaled):
        return
    open_directory()
    if scaled:
        declare(_declaration())
    else:
        app = _application(site, telemetry_s, scaled=False)
        ray_serve.run_many([ray_serve.RunTarget(app, POOLS_APP, route_prefix=None)])


def routers_scaling(options: AutoscalingOptions) -> dict[str, object]:
    """Ray's autoscaling configuration of the router's deployment."""
    return {
        "min_replicas": options.routers_min,
        "initial_replicas": options.routers_min,
        "max_replicas": options.routers_max,
        "policy": AutoscalingPolicy(policy_function=ROUTERS_POLICY),
        **AT_ONCE,
    }


def _declaration() -> ServeApplicationSchema:
    """The application as Ray is told of it where a policy comes with it.

    It goes by import path, and its arguments are logged, so what there are secrets in does not
    travel this way: `scaled_pools` asks the planner.
    """
    return ServeApplicationSchema(
        name=POOLS_APP,
        route_prefix=None,
        import_path="infra.cluster.pools_app:scaled_pools",
        autoscaling_policy={"policy_function": POLICY},
    )


def scaled_pools(arguments: dict[str, Any]) -> ray_serve.Application:
    """Called by Ray Serve to make the application, in a process of its own."""
    del arguments
    site: LocalSite
    telemetry_s: float
    site, telemetry_s = ray.get(find_planner().deployed.remote())
    return _application(site, telemetry_s, scaled=True)


def _run_by_ray(site: LocalSite, *, scaled: bool) -> Sequence[PoolPlan]:
    """Pools without replicas are deployed if they can get some."""
    return [plan for plan in site.fleet.pools if plan.deployed and (plan.replicas or scaled)]


def _application(site: LocalSite, telemetry_s: float, *, scaled: bool) -> ray_serve.Application:
    """Ray finds an application's deployments as arguments of one that is its entrance.

    Nobody enters here, so that is any of them.
    """
    first, *others = _run_by_ray(site, scaled=scaled)
    bound = [_deployment(plan, scaled=scaled).bind(plan, site, telemetry_s) for plan in others]
    return _deployment(first, scaled=scaled).bind(first, site, telemetry_s, *bound)


def _deployment(plan: PoolPlan, *, scaled: bool) -> ray_serve.Deployment:
    return ray_serve.deployment(PoolDeployment).options(  # type: ignore[attr-defined]  # decorates
        **COMMON
        | (_bounds(plan) if scaled else {"num_replicas": plan.replicas})
        | {
            # Ray ends what takes longer.
            "graceful_shutdown_timeout_s": GRACE_S + (plan.drain_s if plan.command else 0.0),
            "name": plan.name,  # of characters that Ray takes, see `infra.settings.fleet_plans`
            "ray_actor_options": {
                "num_cpus": 0,
                "num_gpus": plan.device_gpus,
                "resources": plan.resources(),
            },
        }
    )


def _bounds(plan: PoolPlan) -> dict[str, object]:
    return {
        "autoscaling_config": {
            "min_replicas": plan.replicas_min,
            "initial_replicas": plan.replicas,
            "max_replicas": max(1, plan.replicas_max),
            **AT_ONCE,
        }
    }
