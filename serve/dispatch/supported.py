"""Keeps requests from models that are stated not to do what they ask for.

    what it asks for (`features_of`) ──`supports` of the catalogue──▶ denied models, before deciding

Nothing is stated of most models: they are asked, and what a pool refuses is remembered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from serve.dispatch.features import Feature
from serve.errors import NoModelFits
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Catalogue


def deny_unable(route: pb.RouteRequest, asked: Collection[Feature], catalogue: Catalogue) -> None:
    """Add what can't do what is asked for to the request's denied models.

    Raises NoModelFits, naming what is asked for, where that leaves none of those allowed.
    """
    lacking = {m.name: lacks for m in catalogue.models if (lacks := m.lacks(asked))}
    if not lacking:
        return
    denied = set(route.denied_models)
    left = [name for name in route.allowed_models or catalogue.names if name not in denied]
    if left and all(name in lacking for name in left):
        raise NoModelFits(_none_left({name: lacking[name] for name in left}))
    route.denied_models.extend(name for name in lacking if name not in denied)


def _none_left(lacking: Mapping[str, list[str]]) -> str:
    reasons = [f"{name} does not support {', '.join(lacks)}" for name, lacks in lacking.items()]
    return (
        f"no model that is allowed does all that is asked for: {'; '.join(reasons[:20])}. "
        f"`supports` in the settings' `[[models]]` says so"
    )
