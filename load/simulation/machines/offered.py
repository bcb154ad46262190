"""What a fleet is given and gives back, as columns: requests on their way, and answers.

Offered ─▶ replicas ─▶ Answered
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.capacity.fleet import Emulation
from infra.emulator.gauges import EngineGauges
from infra.emulator.performance import WITHOUT_END
from learners.criticality import Criticality
from streams.telemetry.histogram import Counts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Offered:
    """n requests of a batch, on their way to pools."""

    numbers: Ints  # (n,) of the traffic
    at_s: Floats  # (n,) when they came
    prompt_tokens: Ints
    output_tokens: Ints
    priority: Ints
    uniform: Floats  # (n,) in [0, 1): draws two replicas, of which the less loaded is taken
    slow: Floats  # (n,) times as long as usual its first token takes, see `Performance.slow`
    place: Ints  # (n,) of the fleet's pools; −1: nowhere

    def columns(self) -> tuple[NDArray[Any], ...]:
        """All of them, as declared."""
        return tuple(getattr(self, one.name) for one in fields(self))

    def only(self, row: int, place: int) -> Offered:
        """One request, to another pool."""
        columns = {one.name: getattr(self, one.name)[row : row + 1] for one in fields(self)}
        return replace(self, **columns | {"place": np.array([place])})


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """Requests that were answered, in the order of replicas, and then of time."""

    numbers: Ints
    output_tokens: Ints
    first_s: Floats
    ended_s: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """Requests whose replicas are gone."""

    numbers: Ints
    first_s: Floats  # when their first token came; 0: it did not

    def __add__(self, other: Lost) -> Lost:
        return Lost(
            np.concatenate([self.numbers, other.numbers]),
            np.concatenate([self.first_s, other.first_s]),
        )


NOBODY = Lost(np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of replicas by pool: those of pool p are `rows[starts[p] : starts[p + 1]]`."""

    rows: Ints
    starts: Ints  # (P + 1,)

    @classmethod
    def of(cls, pools: Sequence[Sequence[int]]) -> Rows:
        """Of each pool's rows."""
        flat = np.array([row for pool in pools for row in pool], np.int64)
        return cls(flat, np.cumsum([0, *map(len, pools)]))

    def by_pool(self) -> list[list[int]]:
        """Each pool's rows."""
        return [self.rows[a:b].tolist() for a, b in pairwise(self.starts.tolist())]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reported:
    """What replicas of a pool report of themselves, in columns as `ReplicaStates` has them."""

    queued: list[int]
    running: list[int]
    kv_use: list[float]
    load: list[float]
    watts: list[float]
    joules: list[float]
    tokens: int  # of all together, as what follows
    ttft_ms: Counts
    tpot_ms: Counts


def held_by_priority(held_max: Sequence[int]) -> list[int]:
    """What a replica may hold for another request to be given to it, by the request's priority.

    `held_max` is by criticality from the lowest; 0, as where nothing is said, is without end.

    >>> held_by_priority((4, 6, 8, 0))[1:]
    [8, 6, 4]
    """
    stated = zip(Criticality, held_max or (0,) * len(Criticality), strict=True)
    by_priority = {level.priority: most or WITHOUT_END for level, most in stated}
    return [by_priority[priority] for priority in sorted(by_priority)]


class Engines(Protocol):
    """The engines of all replicas; `rows` are what `open` gave. Times never go back."""

    def open(
        self,
        emulation: Emulation,
        context_tokens_max: int,
        now_s: float,
        held_max: Sequence[int] = (),
    ) -> int:
        """A replica more: its row. It is given no more requests than `held_max`, see below."""

    def begin(self, row: int, now_s: float) -> None:
        """Measure a replica's load from now on: it is ready."""

    def take(self, offered: Offered, first: int, ready: Rows, now_s: float, taken: Ints) -> int:
        """Give rows from `first` on to `ready` replicas of their pools, until one is not taken: its
        row, or n. `taken` gets the pools. An answer ends where the context does.

        It is not taken where its prompt is too long, or all replicas hold as many as they may.
        """

    def advance(self, rows: Ints, to_s: float) -> Answered:
        """Let time pass in replicas that have requests."""

    def in_flight(self, row: int) -> int:
        """Requests a replica has not finished, as far as is known."""

    def last_end_s(self, row: int) -> float:
        """When it last ended an answer."""

    def look(self, row: int, now_s: float) -> EngineGauges:
        """One replica's gauges; if it is behind a time it is moved there."""

    def report(self, pools: Rows, now_s: float) -> list[Reported]:
        """What the replicas of each pool did since they reported last, and how they are."""

    def close(self, row: int) -> Lost:
        """A replica is gone, and what it had, in the order it came."""
