"""What goes wrong in a simulation, and when: one thing at a time.

    Shock(at_s, what) ──at that time──▶ GPUs, regions, pools, prices, models, feedback, telemetry

    Repriced      a type of GPU costs something else from now on
    Available     there are so many GPUs of a type from now on; replicas beyond that die, youngest
                  first, and what they were answering is lost
    RegionLost    every replica there dies, and none can be launched there …
    RegionBack    … until now
    PoolLost      the same of one pool …
    PoolBack      … until now
    Drifted       a model's answers are worth so many times what the table says, from now on
    FeedbackLate  outcomes that are reported for so long come so much later
    FeedbackAway  outcomes that would be reported for so long never come
    Silent        no telemetry arrives for so long
    Garbled       what arrives for so long is broken, or says what can't be

A shock changes the world, never the program: it is known by its effects alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Repriced:
    """One GPU of a type costs this from now on."""

    gpu: str
    usd_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Available:
    """There are so many GPUs of a type from now on."""

    gpu: str
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionLost:
    """All replicas of a region die."""

    region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionBack:
    """Replicas can be launched there again."""

    region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLost:
    """All replicas of a pool die."""

    pool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolBack:
    """Replicas of it can be launched again."""

    pool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drifted:
    """A model answers better or worse from now on."""

    model: str
    quality_times: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackLate:
    """Whoever reports outcomes is behind."""

    for_s: float
    late_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackAway:
    """Nobody reports outcomes."""

    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    """No telemetry arrives."""

    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbled:
    """Telemetry is broken bytes and absurd numbers."""

    for_s: float


What = (
    Repriced
    | Available
    | RegionLost
    | RegionBack
    | PoolLost
    | PoolBack
    | Drifted
    | FeedbackLate
    | FeedbackAway
    | Silent
    | Garbled
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shock:
    """Something that happens at a time."""

    at_s: float
    what: What
