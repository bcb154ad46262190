"""Which server of the decided pool: for callers who call it themselves.

    Decision ─▶ its pool's servers, without those that fail or are full ─▶ Placement

As the dispatcher chooses, by the same health; but nobody says when such a call ends, so it does not
count among those in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from learners.criticality import Criticality
from serve.dispatch.backend import Pools
from serve.errors import NoAnswer, PoolsStarting
from serve.health.health import Health
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.live import Live


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A server that is to be called."""

    host: str
    port: int
    replica: str  # its name as whoever runs it has it, or its address


class Placing:
    """Used from the dispatcher's event loop."""

    def __init__(
        self,
        pools: Pools,
        health: Health,
        live: Callable[[], Live],
        now_s: Callable[[], float],
        uniform: Callable[[], float],
    ) -> None:
        self._pools, self._health, self._live = pools, health, live
        self._now_s, self._uniform = now_s, uniform
        self._known: dict[str, tuple[str, ...]] = {}

    def place(self, decision: pb.Decision, criticality: Criticality) -> Placement:
        """A server of the decided pool. Raises NoAnswer where none can take a request."""
        pool, now_s = decision.pool, self._now_s()
        addresses = tuple(self._pools.endpoints(pool))
        if self._known.get(pool) != addresses:
            self._health.set_endpoints(pool, addresses, now_s)
            self._known[pool] = addresses
        most = self._live().held_most(pool, criticality)
        lease = self._health.pick(pool, now_s, uniform=self._uniform(), most=most)
        if lease is None:
            start_s = None if addresses else self._pools.start_s(pool)
            if start_s is not None:
                raise PoolsStarting("route", f"pool {pool}, which was chosen, has none", start_s)
            state = "full" if addresses else "without servers at the moment"
            raise NoAnswer("route", f"pool {pool}, which was chosen, is {state}; ask again")
        lease.cancelled(now_s)
        host, _, port = lease.address.partition("/")[0].rpartition(":")
        return Placement(
            host=host.strip("[]") or lease.address,
            port=int(port) if port.isdigit() else 0,
            replica=self._pools.replica(lease.address),
        )
