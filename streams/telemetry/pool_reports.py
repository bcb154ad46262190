"""What the replicas of a pool reported last, for whoever reads a pool's gauges.

    FleetState ──pool_reports──▶ PoolReports of each pool ─▶ routers, prices, planner, status

The records themselves are handed on. A gauge is declared in `records.PoolState`; who needs it takes
a sum or a mean over `replicas`, and nobody between has to know of it.

One server may be reported on by several: by itself or by whoever reads its metrics page, which sees
all of it, and by every dispatcher that calls it, each of which sees its own part. What sees all of
it counts; where nothing does, the parts are summed up. So a server is one replica here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from msgspec.structs import replace

from streams.telemetry.fleet_state import FleetState
from streams.telemetry.received import SILENT_MS, Received
from streams.telemetry.records import PoolState

# More makes no sense. A burst that comes to a few small replicas at once is in the hundreds: not
# believed, it would be no load at all, and who knows no load of a pool goes on sending.
LOAD_MAX = 10_000.0
FROM = " from "  # in a replica's name, between a server's address and the caller that reports on it


@dataclass(frozen=True)
class PoolReports:
    """The latest records of one pool's live replicas, in the order of the replicas' names.

    Sums over them are made once, however often they are asked for.
    """

    replicas: tuple[PoolState, ...] = ()
    n_callers: int = 0  # that report on servers, each on its own part

    def in_state(self, state: str) -> int:
        """Replicas that start, are ready, or drain."""
        return sum(replica.state == state for replica in self.replicas)

    @cached_property
    def queued(self) -> int:
        """Requests that wait."""
        return sum(replica.queued for replica in self.replicas)

    @cached_property
    def running(self) -> int:
        """Requests being answered."""
        return sum(replica.running for replica in self.replicas)

    @cached_property
    def watts(self) -> float:
        """Power."""
        return sum(replica.watts for replica in self.replicas)

    @cached_property
    def watts_from(self) -> str:
        """Whether all of it is `measured`, or some by `figures`; "": there is none."""
        said = {replica.watts_from for replica in self.replicas if replica.watts}
        return "figures" if "figures" in said else "".join(said)

    @cached_property
    def energy_share(self) -> float:
        """Of a server's energy, what each of its callers counts: none where it is seen otherwise.

        Each of them sees whether it is at work, and none of them what it draws for the others.
        """
        alone = all(r.by == "callers" and not _metered(r) for r in self.replicas)
        return 1.0 / self.n_callers if alone and self.n_callers else 0.0

    @cached_property
    def load(self) -> float | None:
        """Mean of the ready replicas that report one; None where that is no load.

        1 is as much as they carry within the latency target.
        """
        found = [r.load for r in self.replicas if r.state == "ready" and r.load is not None]
        mean = sum(found) / len(found) if found else -1.0
        return mean if 0.0 <= mean <= LOAD_MAX else None

    @cached_property
    def held(self) -> float | None:
        """Requests in a ready replica over the last seconds, mean; None where nobody says."""
        found = [r.held for r in self.replicas if r.state == "ready" and r.held is not None]
        return sum(found) / len(found) if found else None


def by_pool(
    replicas: Iterable[tuple[str, Received[PoolState]]],
) -> dict[str, list[Received[PoolState]]]:
    """Items of `FleetState.replicas` by their pool."""
    found: dict[str, list[Received[PoolState]]] = {}
    for _, one in replicas:
        found.setdefault(one.record.pool, []).append(one)
    return found


def live(received: Iterable[Received[PoolState]], at_ms: int) -> PoolReports:
    """Of those that reported within ten seconds of a time of the log."""
    records = [r.record for r in received if at_ms - r.received_ms <= SILENT_MS]
    if not any(FROM in record.replica for record in records):  # each of a server of its own
        return PoolReports(tuple(_one([r]) if r.refuses else r for r in records))
    servers: dict[str, list[PoolState]] = {}
    for record in records:
        servers.setdefault(record.replica.partition(FROM)[0], []).append(record)
    callers = {r.source for r in records if FROM in r.replica}
    return PoolReports(tuple(map(_one, servers.values())), len(callers))


def _one(records: list[PoolState]) -> PoolState:
    """What is known of one server."""
    parts = [record for record in records if FROM in record.replica]
    whole = [record for record in records if FROM not in record.replica]
    refuses = sorted({feature for record in records for feature in record.refuses})
    if whole and (not parts or whole[0].by != "callers"):  # it is seen from within
        return replace(whole[0], refuses=refuses)
    # Whoever runs it knows its state, and its callers what it does.
    first = (whole or parts)[0]
    held = [record.held for record in parts if record.held is not None]
    powered = max(records, key=_known_power)
    return replace(
        first,
        running=sum(record.running for record in parts),
        queued=sum(record.queued for record in parts),
        held=sum(held) if held else None,
        watts=powered.watts,
        watts_from=powered.watts_from,
        refuses=refuses,
    )


def _metered(record: PoolState) -> bool:
    return record.watts > 0.0 and record.watts_from == "measured"


def _known_power(record: PoolState) -> tuple[bool, float]:
    """What was metered before what figures say: a caller sees its own requests alone."""
    return _metered(record), record.watts


def pool_reports(fleet: FleetState) -> Mapping[str, PoolReports]:
    """Of every pool with live replicas; cheap, for whoever asks at every snapshot.

    Replicas are live if they reported within ten seconds of whatever reported last: so all of them
    while telemetry as a whole is silent.
    """
    return fleet.read(pool_reports, _pool_reports)


def _pool_reports(fleet: FleetState) -> Mapping[str, PoolReports]:
    replicas = fleet.replicas
    found = by_pool((key, replicas[key]) for key in sorted(replicas))
    reports = {pool: live(received, fleet.received_ms) for pool, received in found.items()}
    return {pool: of for pool, of in reports.items() if of.replicas}
