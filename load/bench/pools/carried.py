"""What a fleet of known servers could have answered of what was asked of it.

    times asked, servers ready ─▶ slots, and a queue ─▶ answers within a span

The measure is a dispatcher that knows from the first moment what each server does: it fills every
slot, lets as many wait as may (`streams.telemetry.capacity`), and turns the others away. It, too,
has nothing to do while nothing is asked, and a new server's slots are empty until somebody comes:
random times have gaps in which even twice as much as can be done leaves servers idle.

Of an answer that lies across the beginning or the end of the span the part counts that its server
worked within.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from load.bench.pools.scenario import ANSWER_S, SLOTS, TRUE_PER_S
from streams.telemetry.capacity import QUEUE_SHARE, WAITING_MOST


@dataclass(slots=True)
class Known:
    """The servers, and a dispatcher that knows them."""

    queue: float  # requests that may wait for each
    since_s: float
    until_s: float
    servers: int = 0
    waiting: int = 0
    ends_s: list[float] = field(default_factory=list)  # of what is worked on; a heap
    answered: float = 0.0

    def pass_to(self, at_s: float) -> None:
        """Slots that become free until then are given to those who wait."""
        while self.ends_s and self.ends_s[0] <= at_s:
            ended_s = heapq.heappop(self.ends_s)
            self._fill(ended_s)

    def ready(self, at_s: float, servers: int) -> None:
        """So many servers are ready from now on."""
        self.servers = servers
        self._fill(at_s)

    def ask(self, at_s: float) -> None:
        """One request: begun, left waiting, or turned away."""
        if len(self.ends_s) < self.servers * SLOTS:
            self._begin(at_s)
        elif self.waiting + 1 <= self.servers * self.queue:
            self.waiting += 1

    def _fill(self, at_s: float) -> None:
        while self.waiting and len(self.ends_s) < self.servers * SLOTS:
            self.waiting -= 1
            self._begin(at_s)

    def _begin(self, at_s: float) -> None:
        heapq.heappush(self.ends_s, at_s + ANSWER_S)
        self.answered += worked(at_s + ANSWER_S, since_s=self.since_s, until_s=self.until_s)


def carried(
    asked_s: Sequence[float],
    ready: Sequence[tuple[float, int]],
    *,
    since_s: float,
    until_s: float,
    first_token_s: float,
) -> float:
    """Answers within a span, of requests asked at these times.

    `ready`: servers at each change; `first_token_s` is what a first token may take.
    """
    queue = WAITING_MOST * QUEUE_SHARE * first_token_s * TRUE_PER_S
    known = Known(queue, since_s, until_s)
    changes = [(at_s, 0, servers) for at_s, servers in ready]
    for at_s, is_request, servers in sorted([*changes, *((at_s, 1, 0) for at_s in asked_s)]):
        known.pass_to(at_s)
        if is_request:
            known.ask(at_s)
        else:
            known.ready(at_s, servers)
    known.pass_to(until_s)
    return known.answered


def worked(ended_s: float, *, since_s: float, until_s: float) -> float:
    """The share of an answer's work that its server did in that time: it ends with the answer."""
    began_s = ended_s - ANSWER_S
    return max(0.0, min(ended_s, until_s) - max(began_s, since_s)) / ANSWER_S
