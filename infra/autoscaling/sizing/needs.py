"""What is needed of each pool, and what of it people are told.

The one rule: it is plain data: a step's result, kept as long as it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Needs:
    """By pool, where not said otherwise."""

    replicas: dict[str, int]
    load_max: dict[str, float]  # how full it may be, with so many
    work_s: dict[str, float]  # of a mean request, corrected by prices
    rate: dict[str, float]  # requests/s that it is to carry when a replica started now is ready
    lead_s: dict[str, float]  # until then
    wished: dict[str, float] = field(default_factory=dict)  # by model: requests/s then
    carried: dict[str, float] = field(default_factory=dict)  # by model: requests/s then
    now: dict[str, float] = field(default_factory=dict)  # by model: requests/s wished at present
    unmet: float = 0.0  # requests/s that nothing is had for


def needs_of(replicas: dict[str, int], lead_s: dict[str, float]) -> Needs:
    """These replicas, with nothing known of why."""
    none = dict.fromkeys(replicas, 0.0)
    return Needs(
        replicas=dict(replicas),
        load_max=dict.fromkeys(replicas, 1.0),
        work_s=dict(none),
        rate=dict(none),
        lead_s=dict(lead_s),
    )
