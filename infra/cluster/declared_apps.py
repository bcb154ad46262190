"""Applications that Ray Serve is told of by a configuration: the only ones that may have a policy.

    declare(app)     ─▶ all that is declared, with it     ─▶ running
    withdraw(name)   ─▶ all that is declared, without it  ─▶ gone

Ray takes a configuration for all there is to be declared: what is not in it any more is deleted.
So others' applications are repeated in ours. (Whoever declares his own without ours, by `serve
deploy`, deletes ours.) And Ray remembers the configuration: an application that is only deleted
comes back when Ray's controller is restarted, so it is withdrawn.

What others have declared stays as it is.
"""

from __future__ import annotations

import logging
import time

from ray import serve as ray_serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeApplicationSchema, ServeDeploySchema

from infra.autoscaling.live.ray_status import applications
from infra.errors import ClusterFailed

logger = logging.getLogger(__name__)

LOOK_S = 0.25  # asking takes the very controller that starts what is waited for
GONE_S_MAX = 60.0  # several times what a replica may take that has nothing to drain
FAILED = {ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY}


def declare(app: ServeApplicationSchema) -> None:
    """Run it; returns when all its deployments have their first replicas. Raises ClusterFailed."""
    _apply(app.name, [app])
    said = ""
    while (seen := _status(app.name)) is None or seen.status != ApplicationStatus.RUNNING:
        if seen and seen.status in FAILED:
            raise ClusterFailed(f"application {app.name} could not be started: {problem(seen)}")
        if seen and (waits := problem(seen)) != said:
            said = waits
            logger.warning("application %s is waiting: %s", app.name, said)
        time.sleep(LOOK_S)


def withdraw(name: str, gone_s_max: float = GONE_S_MAX) -> None:
    """End an application, declared or not; returns when it is gone, or after so long.

    Ray gives every replica the time that it may take to end, also one that waits for a machine.
    """
    if _is_declared(name):
        _apply(name, [])
    ray_serve.delete(name, _blocking=False)
    until_s = time.monotonic() + gone_s_max
    while name in applications():
        if time.monotonic() > until_s:
            logger.warning("application %s is not gone after %.0f s", name, gone_s_max)
            return
        time.sleep(LOOK_S)


def _apply(name: str, apps: list[ServeApplicationSchema]) -> None:
    """Declare `apps` in the place of the one of that name."""
    client = _get_global_client()  # there is no public call for it but the dashboard's
    assert client is not None, "Ray Serve runs"
    known = client.get_serve_details()
    others = [
        ServeApplicationSchema.model_validate(of["deployed_app_config"])
        for of in known["applications"].values()
        if of["name"] != name and of["source"] == "declarative" and of["deployed_app_config"]
    ]
    capacity = known.get("target_capacity")
    client.deploy_apps(ServeDeploySchema(applications=[*others, *apps], target_capacity=capacity))


def _is_declared(name: str) -> bool:
    client = _get_global_client()
    assert client is not None, "Ray Serve runs"
    of = client.get_serve_details()["applications"].get(name)
    return of is not None and of["source"] == "declarative"


def _status(name: str) -> ray_serve.schema.ApplicationStatusOverview | None:
    return applications().get(name)


def problem(seen: ray_serve.schema.ApplicationStatusOverview) -> str:
    """What it and its deployments say of themselves."""
    said = [seen.message, *(of.message for of in seen.deployments.values())]
    return "\n".join(dict.fromkeys(text for text in said if text))
