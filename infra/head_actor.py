"""An actor of which a cluster has one, under a name: it lives as long as the cluster.

Ray starts it again when it dies. It is on the head node, because without that Ray is gone anyway.
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray

NAMESPACE = "serve"


def open_actor(
    kind: type, name: str, *arguments: object, if_missing: bool = False
) -> ray.actor.ActorHandle[Any]:
    """Make it of these arguments, in the place of one that is there unless `if_missing`."""
    if not if_missing:
        close_actor(name)
    made: Any = ray.remote(kind).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=if_missing,
        max_restarts=-1,
        num_cpus=0,
        resources={"node:__internal_head__": 0.001},
    )
    handle: ray.actor.ActorHandle[Any] = made.remote(*arguments)
    return handle


def find_actor(name: str) -> ray.actor.ActorHandle[Any]:
    """Raises ValueError while there is none."""
    return ray.get_actor(name, namespace=NAMESPACE)


def close_actor(name: str) -> None:
    """End it, if it is there."""
    with contextlib.suppress(ValueError):
        ray.kill(find_actor(name))
