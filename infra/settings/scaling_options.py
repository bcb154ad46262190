"""How the fleet is scaled: how often it is thought about, and between which bounds.

What a pool may have is in its settings; here is what concerns all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from learners.option import option, same_as


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingOptions:
    """Of the planner, and of what follows its plans."""

    enabled: bool = option(False, "Whether to scale.")
    # A replica takes longer to come than this; telemetry is a second or two old.
    step_s: float = option(5.0, "Seconds between plans.", gt=0, lt=60)
    routers_min: int = same_as(2, "router.replicas")
    routers_max: int = option(
        8, "Router replicas at most; at least there are `router.replicas`.", ge=1, le=1000
    )
    ready_s_max: float = option(
        600.0,
        "Seconds beyond their stated start that replicas are waited for. If none has become ready "
        "by then, their GPU type in that region is planned without for half an hour.",
        gt=0,
        le=86_400,
    )
    # The plan of a planner that was away for longer is not gone back to: the settings are.
    plan_kept_s: float = 900.0
    lines_kept: int = 200  # of what was done and why
    # Then a step is taken to hang, and the planner is started anew. Solving has its own limit.
    step_s_max: float = 60.0

    def __post_init__(self) -> None:
        assert 0.0 < self.step_s < self.step_s_max
        assert 1 <= self.routers_min <= self.routers_max
