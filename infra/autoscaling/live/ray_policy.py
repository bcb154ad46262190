"""The policies that Ray Serve's controller calls: they say what the planner planned.

    {deployment: context} ─▶ PlannedPools   ─▶ {deployment: replicas}     of the pools' application
    context               ─▶ PlannedRouters ─▶ replicas                   of the router's deployment

A deployment that no plan speaks of keeps the number that it has. Ray holds what is said here
between the bounds of each deployment, and goes to zero by way of one.

Ray takes a copy of this file into its controller and makes one of each there, however often it
calls.

They answer at once and never raise: they run on the controller's own event loop.
"""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

from infra.autoscaling.live.plan_reader import PlanReader


class PlannedPools:
    """An application-level policy."""

    def __init__(self, reader: PlanReader | None = None) -> None:
        self._reader = reader or PlanReader()

    def __call__(self, contexts: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Replicas by deployment, and a state that is not used.

        `contexts` are `AutoscalingContext` by Ray's `DeploymentID`.
        """
        plan = self._reader.latest()
        planned = plan.replicas if plan else {}
        return {
            deployment: planned.get(deployment.name, context.target_num_replicas)
            for deployment, context in contexts.items()
        }, {}


class PlannedRouters:
    """A policy of one deployment."""

    def __init__(self, reader: PlanReader | None = None) -> None:
        self._reader = reader or PlanReader()

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Replicas, and a state that is not used."""
        plan = self._reader.latest()
        return (plan.routers if plan else context.target_num_replicas), {}
