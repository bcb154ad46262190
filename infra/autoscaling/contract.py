"""What a scaler sees, and what it plans: the contract between the fleet and whoever sizes it.

    snapshot + fleet + clock ──▶ Observed ──Scaler.step──▶ Plan ──▶ Ray Serve, or the simulation

A scaler is a function of what it has observed, in order. It asks nobody for anything,
and what it remembers can be saved and restored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from learners.criticality import Criticality
from streams.alarms import Condition
from streams.telemetry.pool_reports import PoolReports


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Requests of one class that want one model: as they would choose if every pool were there
    and idle, at the reference prices of GPUs. So a model without replicas has a demand, too.
    """

    class_name: str
    model: str
    requests_per_s: float  # over the last minute, or the last seconds if that is certainly more
    prompt_tokens: float  # mean
    output_tokens: float  # mean
    prompt_cv2: float | None = None  # squared variation of prompts' lengths; None: not known
    fixed_share: float = 0.0  # of the requests, that no other model may answer


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCondition:
    """One pool, as last reported."""

    ready: int = 0  # replicas; as Ray Serve has them where it runs them
    starting: int = 0
    draining: int = 0
    reports: PoolReports = PoolReports()  # all gauges of its live replicas
    load: float | None = None  # mean of its ready replicas, 1: as full as it should be
    price: float = 0.0  # of its capacity, in multiples of what its GPUs cost
    requests_per_s: float = 0.0  # decided for it, over the last minute
    capacity_per_s: float = 0.0  # requests that one server does when full; 0: not known
    work_factor: float = 1.0  # on its rates of work, as learned of its servers
    failing: bool = False  # replicas that had a machine ended while they were starting
    available: bool = True  # False: its region or its type of GPU is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The world at a time."""

    at_s: float  # of the clock that the scaler is stepped by
    demands: tuple[Demand, ...]
    pools: Mapping[str, PoolCondition]
    usd_per_hour: Mapping[str, float]  # of one GPU, by type: prices change
    gpus_available: Mapping[str, int]  # by type
    # As learned by now; of models and classes that are not in it, what was known before counts.
    quality: Mapping[str, float] = field(default_factory=dict)  # 0 to 1, by model
    criticality: Mapping[str, Criticality] = field(default_factory=dict)  # by class
    routers: int = 0  # replicas alive
    router_busy_share: float = 0.0  # of their event loops, summed
    telemetry_age_s: float = 0.0  # since anything was reported; large: all of this is old


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many replicas there should be."""

    replicas: Mapping[str, int]  # by pool
    routers: int
    lines: tuple[str, ...] = field(default=())  # what changed and why, one line each, for people
    conditions: tuple[Condition, ...] = ()  # of pools whose replicas do not become ready


class Scaler(Protocol):
    """Sizes the fleet: ours, and its rivals in the benchmark."""

    def step(self, observed: Observed) -> Plan:
        """The plan from now on. Times of calls never go back."""
