"""How full each pool is, and how many requests its replicas should hold, whatever serves it.

    PoolReports.load, from who knows itself ────────────────┐
    PoolReports.held ─┐                                     ├─▶ Capacity of each pool
    FleetState.service ┴─▶ what a server can do ─▶ load ────┘

A server that can't say how full it is, is as full as what it holds: n requests, of which it works
on N at once when it is just full: as many as run while others wait, if its page says so, else what
its throughput says (`learners.servers.service`). Up to N the load is the share of it,
0.95 at N: any more waits. A short queue is no harm, it keeps the server busy; the load is 1 where
it is as long as it should stand, and beyond that it grows as n / N.

    n ≤ N          load = 0.95 n / N
    n ≤ N + S      load = 0.95 + 0.05 (n − N) / S
    beyond         load = 1 + (n − N − S) / N             at most by Q / N, if dispatchers call it

So where it is dear to be in such a pool, and where requests are refused for it, it is busy all the
time: what settles at a load of 1 is a standing queue, not an idle server. (As in PIE, RFC 8033: the
price integrates what the queue's delay is off.)

With Q, what is finished in a quarter of the time that a first token may take: dispatchers let no
queue longer than 2 Q come about, which bounds waits whatever the price is. Under that limit S is
7/4 Q. Two servers of eight slots that were asked for 1.25 times what they do, at random times, did
0.957 of that with S = Q (a price that holds the mean of a random queue there leaves servers idle
while it is empty), 0.991 with 3/2 Q and 0.997 with 7/4 Q, in a simulation; who waited longest, of
twenty, waited 1.10, 1.15 and 1.13 s. Where nobody dispatches the price is the only limit: S is Q.

What is held beyond the limit came before it was known: no price can undo it, and one that tried
would refuse requests for minutes after.

While a server was never seen to be full, and nothing is stated, its load is below 1: nobody is
refused for a limit that nobody knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from learners.criticality import Criticality
from learners.work import WorkRates
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.pool_reports import PoolReports, pool_reports
from streams.telemetry.service_sums import PoolService, learned

BUSY = 0.95  # the load of a server that is just full
QUEUE_SHARE = 0.25  # of the time a first token may take: Q
WAITING_MOST = 2.0  # times Q: dispatchers let no more wait
STANDING = 1.75  # times Q, under that limit
# Of the queue that a server may have, by criticality from the lowest; the last class is never
# refused because the fleet is full.
QUEUE_SHARES = (0.0, 0.5, 1.0, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Of one pool."""

    reports: PoolReports
    of: PoolService  # what one of its servers can do
    load: float | None  # 1: as full as it should be; None: not known
    held_least: float  # requests that a server works on at once when just full; 0: not known
    held_most: float  # and with as long a queue as it may have; infinite where no limit is known

    def held_for(self, criticality: Criticality) -> float:
        """Requests that a server may hold, all dispatchers' together, to be given another one.

        Those that are less critical make do with a shorter queue, or none: it is the others'.
        """
        share = QUEUE_SHARES[criticality]
        if math.isinf(self.held_most) or math.isinf(share):
            return math.inf
        return self.held_least + share * (self.held_most - self.held_least)

    def work_factor(self, rates: WorkRates) -> float:
        """How much more work requests are to it than these rates say, by what was learned of it.

        1 where it says of itself how full it is: it knows its rates.
        """
        of = self.of
        if self.reports.load is not None or not of.service.capacity_per_s or not of.prompt_tokens:
            return 1.0
        stated_s = rates.work_s(of.prompt_tokens, output_tokens=of.output_tokens)
        return 1.0 / (of.service.capacity_per_s * stated_s) if stated_s else 1.0


def capacities(fleet: FleetState, first_token_s: float) -> Mapping[str, Capacity]:
    """Of every pool with live replicas; `first_token_s` is what a first token may take."""

    def found(fleet: FleetState) -> Mapping[str, Capacity]:
        return {
            pool: capacity(
                reports, learned(fleet.service.get(pool, {}), reports.n_callers), first_token_s
            )
            for pool, reports in pool_reports(fleet).items()
        }

    return fleet.read((capacities, first_token_s), found)


def capacity(reports: PoolReports, of: PoolService, first_token_s: float) -> Capacity:
    """Of one pool."""
    n_full = of.held_max or of.at_once or of.service.concurrency
    queue = of.service.capacity_per_s * first_token_s * QUEUE_SHARE
    limited = bool(of.held_max) or (of.service.full and n_full > 0.0)
    return Capacity(
        reports=reports,
        of=of,
        load=_load(reports, n_full, queue, limited=limited),
        held_least=n_full,
        held_most=of.held_max or (n_full + WAITING_MOST * queue if limited else math.inf),
    )


def _load(reports: PoolReports, n_full: float, queue: float, *, limited: bool) -> float | None:
    if reports.load is not None:
        return reports.load
    if reports.held is None or n_full <= 0.0:
        return None
    waiting = reports.held - n_full
    if waiting <= 0.0:
        return BUSY * reports.held / n_full
    if not limited:
        return BUSY
    standing = STANDING * queue if reports.n_callers else queue
    if waiting <= standing:
        return BUSY + (1.0 - BUSY) * waiting / standing
    beyond = waiting - standing
    return 1.0 + (min(beyond, queue) if reports.n_callers else beyond) / n_full
