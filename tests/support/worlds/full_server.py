"""A server that takes so many requests at once, in virtual time, and what is known of it.

    arrivals ─▶ refused, if as many are held as are let in ─▶ queue ─▶ slots ─▶ finished
                                ▲                                        │
                                └── Capacity ◀── FleetState ◀── records ─┘   a second, and 2 s late

Who reports is either its page (a look a second) or its callers (each answer). Its page may be that of
a kind of server: written as that kind writes it, and read as it is read.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infra.server_metrics.pages import Reading, read_page
from infra.server_metrics.since import since
from learners.servers.held import HeldRequests, Stated
from load.bench.pools.pages import KINDS, Doing
from serve.health.turns import Turn, Turns
from streams.telemetry.capacity import Capacity, capacities
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.pool_reports import FROM
from streams.telemetry.pool_window import PoolWindow, ReplicaIdentity
from streams.telemetry.records import PoolState
from streams.telemetry.window import Reporter

LAG_S = 2
Held = tuple[float, float, int, float, Turn]  # ends, came, found, began (never: inf), its turn
FIRST_TOKEN_S = 2.0
NOON_MS = 1_790_000_000_000


@dataclass
class Run:
    """What came of it."""

    refused: int = 0
    answered_s: list[float] = field(default_factory=list)  # when
    waited_s: list[float] = field(default_factory=list)  # for a slot
    worked: list[tuple[float, float]] = field(default_factory=list)  # from, to, in a slot
    known: list[Capacity | None] = field(default_factory=list)  # each second

    def answered_per_s(self, since_s: float, until_s: float) -> float:
        return sum(since_s <= at < until_s for at in self.answered_s) / (until_s - since_s)

    def busy(self, since_s: float, until_s: float) -> float:
        """Slots at work, mean."""
        worked = (max(0.0, min(end, until_s) - max(at, since_s)) for at, end in self.worked)
        return sum(worked) / (until_s - since_s)


def run(
    per_s: float,
    seconds: int,
    *,
    slots: int = 8,
    answer_s: float = 2.0,
    page: bool = True,
    kind: str = "",
    spread: float = 0.0,
    patience_s: float = math.inf,
    stated: Stated | None = None,
    seed: int = 0,
    faster_at_s: float = math.inf,
) -> Run:
    """Requests at random times (Poisson); `spread` of answers' lengths, to either side.

    `kind` is of whose page it has; "": none in particular.
    At `faster_at_s` answers begin to take half as long. Who has waited for `patience_s` leaves.
    """
    rng, found = np.random.default_rng(seed), Run()
    meter, fleet = HeldRequests(stated or Stated()), FleetState()
    replica = "host:1" if page else f"host:1{FROM}{'a' * 16}"
    window = PoolWindow(ReplicaIdentity(pool="p", model="m", replica=replica))
    reporter = Reporter("a" * 16, NOON_MS)
    arrivals = np.cumsum(rng.exponential(1.0 / per_s, int(per_s * seconds * 1.5)))
    free = [0.0] * slots  # when each slot is free
    under_way: list[Held] = []
    turns = Turns()
    doing, last = Doing(slots), None
    finished, coming = 0, iter(arrivals[arrivals < seconds])
    at = next(coming, math.inf)
    for second in range(1, seconds + 1):
        known = found.known[-LAG_S] if len(found.known) >= LAG_S else None
        most = math.inf if known is None else max(1.0, known.held_most)
        while at < second:
            finished += _end(under_way, at, found, meter, page)
            if len(under_way) >= most:
                found.refused += 1
            else:
                began = max(at, free[0])
                took = answer_s * (1.0 + spread * rng.uniform(-1.0, 1.0))
                took /= 2.0 if at > faster_at_s else 1.0
                stays = began - at <= patience_s
                if stays:
                    heapq.heapreplace(free, began + took)
                ends = began + took if stays else at + patience_s
                began = began if stays else math.inf
                heapq.heappush(under_way, (ends, at, len(under_way) + 1, began, turns.begin()))
            at = next(coming, math.inf)
        finished += _end(under_way, second, found, meter, page)
        waiting = sum(began > second for _, _, _, began, _ in under_way)
        ends = reporter.window(NOON_MS + 1000 * second)
        if kind:
            last, fields = _by_page(kind, doing, last, meter, len(under_way), waiting, finished)
        elif page:
            meter.lengths(finished, 7 * finished, 8 * finished)
            fields = meter.window(len(under_way), 1000, waiting=waiting, finished=finished)
        else:
            meter.lengths(finished, 7 * finished, 8 * finished)
            fields = meter.answers(len(under_way), 1000)
        window.count_tokens(8 * finished)
        record = PoolState(
            by="page" if page else "callers",
            running=len(under_way) - waiting,
            queued=waiting,
            prompt_tokens=7 * finished,
            **fields,
            **window.take(reporter, ends),
        )
        fleet.fold(record, ends[1])
        finished = 0
        found.known.append(capacities(fleet, FIRST_TOKEN_S).get("p"))
    return found


def _by_page(
    kind: str,
    doing: Doing,
    last: Reading | None,
    meter: HeldRequests,
    held: int,
    waiting: int,
    finished: int,
) -> tuple[Reading, dict[str, Any]]:
    """A page of that kind, as it is read; and a record's fields, as `ServerMeter` makes them."""
    doing.running, doing.waiting = held - waiting, waiting
    for _ in range(finished):
        doing.note(1.0, 7, 8)
    now = read_page(KINDS[kind](doing))
    new = since(last, now)
    meter.lengths(new.finished or 0, new.prompt_tokens, new.output_tokens)
    seen = now.running + now.waiting
    return now, meter.window(seen, 1000, waiting=now.waiting, finished=new.finished)


def _end(
    under_way: list[Held],
    now: float,
    found: Run,
    meter: HeldRequests,
    page: bool,
) -> int:
    n = 0
    while under_way and under_way[0][0] <= now:
        end, came, place, began, turn = heapq.heappop(under_way)
        if began == math.inf:
            turn.leave()
            continue
        found.answered_s.append(end)
        found.waited_s.append(began - came)
        found.worked.append((began, end))
        if not page:
            meter.answer(max(1, place - turn.passed), end - came)
        n += 1
    return n
