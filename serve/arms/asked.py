"""A request for an arm: an ordinary request, and the groups that may answer it.

    RouteArmRequest ─▶ RouteInput's checks ─▶ what says nothing of arms is refused ─▶ ArmInput

Fields are those of `RouteFields`: here `allowed_models` and `denied_models` name arms, and
`cost_usd_max` is about their prices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from learners.criticality import Criticality
from serve.errors import InvalidRequest
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.request import (
    LIMITS,
    NAME_BYTES_MAX,
    PreferenceDefaults,
    RouteInput,
    models,
    read_request,
    text_of,
)

# Of an ordinary request, what is about models, their answers or their pools.
NOT_OF_ARMS = (
    *("session", "latency_ms_max", "quality_min", "strong_share_max"),
    *("probe", "modality", "chosen_model"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmInput:
    """One request for an arm, checked but for what the file of arms and the encoder know."""

    route: RouteInput
    groups: tuple[str, ...] = ()
    denied_groups: tuple[str, ...] = ()  # by rules

    @property
    def text(self) -> str | None:
        """The prompt, where it came as a text."""
        return self.route.text

    @property
    def embedding(self) -> bytes | None:
        """The prompt, where it came as numbers."""
        return self.route.embedding

    @property
    def tenant(self) -> str:
        """On whose behalf."""
        return self.route.tenant

    @property
    def criticality(self) -> Criticality:
        """What may happen to it where too many ask."""
        return self.route.criticality

    def with_embedding(self, embedding: bytes) -> ArmInput:
        """The same, its text encoded."""
        return replace(self, route=self.route.with_embedding(embedding))


def read_arm_request(
    request: pb.RouteArmRequest, defaults: PreferenceDefaults, latest_ms: float = math.inf
) -> ArmInput:
    """Check one request. Raises InvalidRequest."""
    for said, _ in request.request.ListFields():
        if said.name in NOT_OF_ARMS:
            limit = "left out: it says nothing of arms"
            raise InvalidRequest(f"request.{said.name}", "said", limit)
    # The operator's limits are about calls of models.
    unlimited = {name: getattr(_NO_LIMITS, name) for name in LIMITS}
    route = read_request(request.request, replace(defaults, **unlimited), latest_ms)
    return ArmInput(route=route, groups=_groups(request.groups))


_NO_LIMITS = PreferenceDefaults()


def _groups(listed: Sequence[str]) -> tuple[str, ...]:
    return tuple(text_of(4 * NAME_BYTES_MAX, "groups", one) for one in models("groups", listed))
