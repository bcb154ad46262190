"""What came of a simulation: every request, the fleet over time, and the figures they add up to.

    columns of n requests ─┬─▶ share within target, quality
    replicas over time  ───┼─▶ changes per hour
    bill, energy ──────────┴─▶ US dollars, joules per request

Every request has one fate. Whatever is not finished is not within target, and its quality is 0.

The digest is over all that happened, so two runs with the same one are the same. Requests may be
added to it in parts, of any size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.capacity.latency_target import LatencyTarget
from load.data.traffic import Traffic
from streams.training.budgets import Accounts

Floats = NDArray[np.float64]


class Fate(IntEnum):
    """What became of a request."""

    UNFINISHED = 0  # at the end of the simulation
    FINISHED = 1
    REFUSED = 2  # no model fits, the fleet is full, or no pool has a replica
    LOST = 3  # with its replica, and with the one it was tried on again
    RULED_OUT = 4  # by the operator's rules: nobody wants it answered


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """Columns of n requests, in the order of the traffic."""

    fate: NDArray[np.uint8]  # (n,) `Fate`
    model: NDArray[np.int16]  # (n,) column of the table; −1: none
    pool: NDArray[np.int16]  # (n,) index into the fleet's pools; −1: none
    tried: NDArray[np.uint8]  # (n,) how many replicas
    shed: NDArray[np.bool_]  # (n,) refused because the fleet was too full
    ttft_s: Floats  # (n,) from arrival to first token; NaN where there was none
    tpot_s: Floats  # (n,) mean per token after the first; NaN where it is not finished
    finished_s: Floats  # (n,) when; NaN likewise
    quality: Floats  # (n,) of the answer, 0 where there is none

    def within(self, traffic: Traffic, target: LatencyTarget) -> NDArray[np.bool_]:
        """Which requests (n,) were finished within the target; see `LatencyTarget.met`."""
        finished = self.fate == Fate.FINISHED
        first_s = target.first_token_s(traffic.prompt_tokens)  # type: ignore[arg-type]  # (n,)
        in_time = (self.ttft_s <= first_s) & (self.tpot_s <= target.tpot_s)
        return finished & in_time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplicaSeries:
    """How many replicas there were, looked at t times, by pool."""

    at_s: Floats  # (t,)
    pools: tuple[str, ...]  # (P,)
    ready: NDArray[np.int32]  # (t, P)
    starting: NDArray[np.int32]
    draining: NDArray[np.int32]


class Digest:
    """SHA-256 over what became of requests, column by column, and over the rest of a run."""

    def __init__(self) -> None:
        self._columns = {one.name: hashlib.sha256() for one in fields(Answers)}

    def add(self, answers: Answers) -> None:
        """Those that came next."""
        for name, digest in self._columns.items():
            digest.update(np.ascontiguousarray(getattr(answers, name)).tobytes())

    def of(self, happened: Happened) -> str:
        """With all else that happened."""
        digest = hashlib.sha256()
        for name, column in self._columns.items():
            digest.update(name.encode() + column.digest())
        for one in fields(happened.replicas):
            digest.update(one.name.encode())
            digest.update(np.ascontiguousarray(getattr(happened.replicas, one.name)).tobytes())
        usd = sorted(happened.gpu_usd.items())
        rest = (happened.lines, usd, happened.joules, happened.replica_changes)
        digest.update(repr((rest, happened.end_s)).encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Enforced:
    """What rules, budgets and the guard did."""

    met: Mapping[str, int] = field(default_factory=dict)  # requests, by rule
    refused: Mapping[str, int] = field(default_factory=dict)  # that rules leave no model, by rule
    over_budget: Mapping[str, int] = field(default_factory=dict)  # requests refused, by budget
    guarded: int = 0  # requests that went to the guard's model, or would have
    accounts: Accounts = field(default_factory=dict)  # of budgets, by window, at last


NOTHING_ENFORCED = Enforced()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Happened:
    """All but what became of each request."""

    target: LatencyTarget
    n_requests: int
    replicas: ReplicaSeries
    lines: tuple[str, ...]  # of plans, each with its time
    gpu_usd: Mapping[str, float]  # by type
    gpu_prices: Mapping[str, tuple[list[float], list[float]]]  # since when, and dollars an hour
    joules: float
    replica_changes: int
    end_s: float
    ended_ms: int = 0  # Unix time of it
    ruled: Enforced = NOTHING_ENFORCED
    cpu_s: float  # that the simulation took; not part of the digest

    @property
    def gpu_cost_usd(self) -> float:
        """Of all GPUs, from launch to end."""
        return sum(self.gpu_usd.values())

    @property
    def replica_changes_per_h(self) -> float:
        """Replicas launched, or let go, per hour; those that died are not counted."""
        return self.replica_changes / (self.end_s / 3600.0)

    @property
    def simulated_requests_per_s(self) -> float:
        """Requests per second of processor time."""
        return self.n_requests / max(self.cpu_s, 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run(Happened):
    """And every request."""

    traffic: Traffic
    requests: Answers

    @property
    def within_target(self) -> float:
        """Share of the requests that were to be answered."""
        wanted = self.requests.fate != Fate.RULED_OUT
        return _mean(self.requests.within(self.traffic, self.target)[wanted])

    @property
    def quality(self) -> float:
        """Mean over finished requests."""
        return _mean(self.requests.quality[self.requests.fate == Fate.FINISHED])

    @property
    def joules_per_request(self) -> float:
        """Of all replicas, idle ones too, per finished request."""
        return self.joules / max(1, self.count(Fate.FINISHED))

    def count(self, fate: Fate) -> int:
        """Requests of a fate."""
        return int(np.count_nonzero(self.requests.fate == fate))

    def figures(self) -> dict[str, float]:
        """For JSON."""
        return {
            "within_target": self.within_target,
            "gpu_cost_usd": self.gpu_cost_usd,
            "quality": self.quality,
            "joules_per_request": self.joules_per_request,
            "replica_changes_per_h": self.replica_changes_per_h,
        }

    def digest(self) -> str:
        """SHA-256 over all columns, lines and sums."""
        digest = Digest()
        digest.add(self.requests)
        return digest.of(self)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else 0.0
