"""Which calls are taken in when more come than can be answered: adaptive concurrency with shares.

    call ──enter──▶ under way ──leave(took)──▶ answered
           └─ QueueFull, at once, before anything is read or scored

Little's law: calls under way = rate x time. Beyond the capacity more calls under way only take
longer, so their number is limited, and the limit follows the measured time to answer (additive
increase, multiplicative decrease): it grows while answers come soon enough, and falls while they
don't. Soon enough is half of the shortest deadline among the callers of the last second, within
bounds: callers without deadlines wait a quarter of a second, callers in a hurry are not made to
wait behind them. Within the limit:

- *Deadlines.* A call with less time left than answers take at present is refused rather than
  scored for nothing.
- *Criticality.* A class of lower criticality is refused earlier, the top class only at half as much
  again: a limit that falls does not hit those who are never to be lost.
- *Tenants.* Whoever holds less than an equal share is let in even when others fill the limit.

This bounds the wait between here and the answer, and sees a call only once Python has taken it
in. Before that calls wait in gRPC's core, in order of arrival, whatever their class: their number
is bounded by the listener (`pending_max`), and what comes beyond is ended there with CANCELLED, at
next to no cost. To refuse it here instead costs grpc.aio 110 to 230 µs of the event loop, where an
answer costs 400 to 500: from about twice the capacity on that would leave no time to answer.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from serve.errors import DeadlinePassed, QueueFull

PUSHBACK_KEY = "grpc-retry-pushback-ms"  # which gRPC's clients obey where they retry at all


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionOptions:
    """How long answers may take, and who is refused first."""

    # The time to answer that is aimed at. The least is for callers with deadlines of 50 ms and
    # below: nobody can make all others wait for nothing. The most is for callers without deadlines.
    target_s_min: float = 0.025
    target_s_max: float = 0.25
    limit_min: int = 32  # a batch whose scoring costs little more than one request's
    limit_max: int = 4096
    window_s: float = 0.1  # between changes of the limit: some batches
    hurry_s: float = 1.0  # how long a short deadline is remembered
    decrease: float = 0.85
    increase: float = 0.05  # of the limit, while it is in use
    # Share of the limit open to each criticality, sheddable to critical_plus.
    shares: tuple[float, ...] = (0.6, 0.8, 1.0, 1.5)


class Admission:
    """Counts the calls under way. Used from one event loop."""

    def __init__(self, options: AdmissionOptions) -> None:
        self._options = options
        self.limit = math.sqrt(options.limit_min * options.limit_max)
        self.expected_s = 0.0  # to answer, in the last window
        self._under_way: Counter[str] = Counter()  # by tenant
        self._total = 0
        self._peak = 0  # under way in this window
        self._window_end_s = 0.0
        self._took_s, self._n_took = 0.0, 0
        self._shortest_s, self._shortest_at_s = math.inf, 0.0  # time left, of the recent calls

    @property
    def target_s(self) -> float:
        """The time to answer that is aimed at."""
        half = self._shortest_s / 2.0
        return min(max(half, self._options.target_s_min), self._options.target_s_max)

    @property
    def under_way(self) -> int:
        """Requests taken in and not answered yet."""
        return self._total

    def pushback(self) -> tuple[tuple[str, str]]:
        """When to try again, as gRPC's trailing metadata: once what is under way is answered."""
        return pushback_of(max(self.expected_s, self.target_s))

    def enter(
        self, tenant: str, criticality: int, left_s: float, *, now_s: float, n: int = 1
    ) -> None:
        """Take a call in, `left_s` before its deadline. Raises QueueFull; else `leave` follows.

        A call of `n` requests is let in where there is room for one, and then counts as `n`.
        """
        self._note_deadline(left_s, now_s)
        if left_s < self.expected_s and self._total:
            raise QueueFull(
                f"an answer takes {self.expected_s * 1000:.0f} ms at present, and the caller's "
                f"deadline is in {left_s * 1000:.0f} ms; try again later or at another router"
            )
        room = self.limit * self._options.shares[criticality]
        if self._total >= room and self._under_way[tenant] >= self._fair_share(tenant, room):
            raise QueueFull(
                f"{self._total} requests are under way, and answering takes "
                f"{self.expected_s * 1000:.0f} ms; try again later or at another router"
            )
        self._under_way[tenant] += n
        self._total += n
        self._peak = max(self._peak, self._total)

    def _note_deadline(self, left_s: float, now_s: float) -> None:
        forgotten = now_s - self._shortest_at_s > self._options.hurry_s
        if left_s <= self._shortest_s or forgotten:
            self._shortest_s, self._shortest_at_s = left_s, now_s

    def _fair_share(self, tenant: str, room: float) -> float:
        """What each tenant may hold, this one included; nothing where it is the only one."""
        n = len(self._under_way) + (tenant not in self._under_way)
        return room / n if n > 1 else 0.0

    def leave(self, tenant: str, took_s: float, *, now_s: float, n: int = 1) -> None:
        """A call is answered, `took_s` after it came in."""
        self._total -= n
        self._under_way[tenant] -= n
        if not self._under_way[tenant]:
            del self._under_way[tenant]
        self._took_s += took_s
        self._n_took += 1
        if now_s >= self._window_end_s:
            self._adapt(now_s)

    def _adapt(self, now_s: float) -> None:
        """Move the limit by what the last window has shown."""
        options = self._options
        self.expected_s = self._took_s / self._n_took
        if self.expected_s > self.target_s:
            self.limit *= options.decrease
        elif self._peak > self.limit * options.shares[0]:  # it was in use
            self.limit *= 1.0 + options.increase
        self.limit = min(max(self.limit, options.limit_min), options.limit_max)
        self._window_end_s = now_s + options.window_s
        self._took_s, self._n_took, self._peak = 0.0, 0, self._total


def time_left(remaining_s: float | None) -> float:
    """Seconds to the caller's deadline, None being no deadline. Raises DeadlinePassed."""
    if remaining_s is not None and remaining_s <= 0:
        raise DeadlinePassed("the gRPC deadline had passed before the request was scored")
    return math.inf if remaining_s is None else remaining_s


def pushback_of(wait_s: float) -> tuple[tuple[str, str]]:
    """When to try again, as gRPC's trailing metadata."""
    return ((PUSHBACK_KEY, f"{math.ceil(wait_s * 1000.0)}"),)
