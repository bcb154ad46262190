"""What the replicas of a pool reported last, for whoever reads a pool's gauges.

    FleetState ──pool_reports──▶ PoolReports of each pool ─▶ routers, prices, planner, status

The records themselves are handed on. A gauge is declared in `records.PoolState`; who needs it takes
a sum or a mean over `replicas`, and nobody between has to know of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from streams.telemetry.fleet_state import FleetState
from streams.telemetry.received import SILENT_MS, Received
from streams.telemetry.records import PoolState
from streams.telemetry.tally import parted

LOAD_MAX = 100.0  # more makes no sense: a queue of a hundred times what may wait


@dataclass(frozen=True, slots=True)
class PoolReports:
    """The latest records of one pool's live replicas, in the order of the replicas' names."""

    replicas: tuple[PoolState, ...] = ()

    def in_state(self, state: str) -> int:
        """Replicas that start, are ready, or drain."""
        return sum(replica.state == state for replica in self.replicas)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return sum(replica.queued for replica in self.replicas)

    @property
    def running(self) -> int:
        """Requests being answered."""
        return sum(replica.running for replica in self.replicas)

    @property
    def watts(self) -> float:
        """Power."""
        return sum(replica.watts for replica in self.replicas)

    @property
    def load(self) -> float | None:
        """Mean of the ready replicas that report one; None where that is no load.

        1 is as much as they carry within the latency target.
        """
        found = [r.load for r in self.replicas if r.state == "ready" and r.load is not None]
        mean = sum(found) / len(found) if found else -1.0
        return mean if 0.0 <= mean <= LOAD_MAX else None


def by_pool(
    replicas: Iterable[tuple[str, Received[PoolState]]],
) -> dict[str, list[Received[PoolState]]]:
    """Items of `FleetState.replicas` by their pool."""
    found: dict[str, list[Received[PoolState]]] = {}
    for key, one in replicas:
        found.setdefault(parted(key)[0], []).append(one)
    return found


def live(received: Iterable[Received[PoolState]], at_ms: int) -> PoolReports:
    """Of those that reported within ten seconds of a time of the log."""
    return PoolReports(tuple(r.record for r in received if at_ms - r.received_ms <= SILENT_MS))


def pool_reports(fleet: FleetState) -> dict[str, PoolReports]:
    """Of every pool with live replicas; cheap, for whoever asks at every snapshot.

    Replicas are live if they reported within ten seconds of whatever reported last: so all of them
    while telemetry as a whole is silent.
    """
    found = by_pool(sorted(fleet.replicas.items()))
    reports = {pool: live(received, fleet.received_ms) for pool, received in found.items()}
    return {pool: of for pool, of in reports.items() if of.replicas}
