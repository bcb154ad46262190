"""Which pools can be expected to answer, and which endpoint of a pool takes the next attempt.

    ranked pools ──order──▶ the same, those that can't answer at the end
    pool ──pick──▶ EndpointLease ──▶ first_token? ──▶ succeeded | failed | cancelled
                                                          │
    order, pick ◀── endpoints out, waits, in flight ◀─────┘

Everything is learned from the attempts themselves; nothing is sent to find out. A pool can't
answer when none of its endpoints is healthy (see `outliers`), when it has as many requests in
flight as it may, or when it has no endpoints. It is moved behind the others, never removed: our
suspicion must not be the reason that a request is refused. When its time is up it takes its place
again for one request, the probe, and if that succeeds for all.

Not locked: made for one event loop.

No pool is ever refused for good. It comes last, and gets a probe when its time is up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from learners.option import option
from serve.health.first_token import FirstTokenOptions, FirstTokens
from serve.health.lease import EndpointLease, Pool
from serve.health.outliers import Endpoint, Endpoints, Event, OutlierOptions, log_event, slow

Reason = Literal["", "no endpoints", "unhealthy", "probing", "full", "overloaded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthOptions:
    """What a pool may take, and whom to trust."""

    # Envoy's max_requests (config.cluster.v3.CircuitBreakers)
    in_flight_max: int = option(1024, "Requests per pool at once.", ge=1, le=1_000_000)
    # A session's last endpoint has its prefix cached, which saves most of the wait. It is kept
    # until it has both so many more in flight than another, and so many times as many.
    prefer_excess_max: int = 8
    prefer_ratio_max: float = 1.5
    event_s: float = 10.0  # a full breaker and a panic over pools are logged this often
    outliers: OutlierOptions = field(default_factory=OutlierOptions)
    first_token: FirstTokenOptions = field(default_factory=FirstTokenOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """One endpoint, for people and telemetry."""

    address: str
    in_flight: int
    out: bool  # not healthy
    ejected: bool  # and gets no requests but probes, unless in panic
    until_s: float  # when it is probed; 0 if healthy
    ejections: int
    successes: int
    cancelled: int
    failures: dict[str, int]  # by kind
    slow: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """One pool, for people and telemetry. Counts include endpoints that have gone."""

    pool: str
    reason: Reason
    in_flight: int
    refusals: int  # by the breaker
    panic: bool
    slow: bool
    successes: int
    cancelled: int
    failures: dict[str, int]
    endpoints: tuple[EndpointStatus, ...]


class Health:
    """What all dispatching of one process knows of its pools.

    >>> health = Health()
    >>> health.set_endpoints("gpu", ["10.0.0.1:80"], now_s=0.0)
    >>> for _ in range(5):
    ...     health.pick("gpu", now_s=1.0, uniform=0.5).failed(now_s=1.0, kind="reset")
    >>> health.order(["gpu", "api"], now_s=2.0), health.reason("gpu", now_s=2.0)
    (['gpu', 'api'], 'unhealthy')
    >>> health.set_endpoints("api", ["10.0.0.2:80"], now_s=2.0)
    >>> health.order(["gpu", "api"], now_s=2.0)
    ['api', 'gpu']
    """

    def __init__(
        self,
        options: HealthOptions | None = None,
        on_event: Callable[[Event], None] = log_event,
    ) -> None:
        self._options = options or HealthOptions()
        self._pools: dict[str, Pool] = {}
        self._on_event = on_event
        self._logged_s: dict[tuple[str, str], float] = {}  # by kind and pool

    def set_endpoints(self, pool: str, addresses: Sequence[str], now_s: float) -> None:
        """Say which endpoints a pool has now. Those that stay keep their state."""
        held = self._pools.get(pool)
        if held is None:
            endpoints = Endpoints(pool, self._options.outliers, self._on_event)
            held = self._pools[pool] = Pool(endpoints, FirstTokens(self._options.first_token))
        held.endpoints.set(addresses, now_s)

    def order(
        self, pools: Sequence[str], now_s: float, most: Mapping[str, float] | None = None
    ) -> list[str]:
        """The same pools in the same order, but those that can't answer now at the end.

        Only where none can answer the order is left as it is. Envoy does so from half of the hosts
        on, but those share one load; pools are one another's fallback, and between those Envoy
        disregards the threshold as well (docs, "Panic threshold"). Simulated, with two of three
        pools dead and 100 requests a second of 2 s each: at a half 98 of 100 requests fail, because
        two failures each use up the retries; so none does.

        `most` is how many requests an endpoint of each pool may hold for this one to join them.
        """
        most = most or {}
        able: list[str] = []
        unable: list[str] = []
        for pool in pools:
            (unable if self.reason(pool, now_s, most=most.get(pool, math.inf)) else able).append(
                pool
            )
        if not unable:
            return able
        if not able:
            self._note("panic", "", now_s, f"none of {len(pools)} candidates can answer")
            return list(pools)
        return able + unable

    def reason(self, pool: str, now_s: float, *, most: float = math.inf) -> Reason:
        """Why a pool can't be expected to answer a request now; "" if it can."""
        held = self._pools.get(pool)
        if held is None or not held.endpoints.by_address:
            return "no endpoints"
        if held.in_flight >= self._options.in_flight_max or held.holds(most, now_s=now_s):
            return "full"
        if held.endpoints.paused_for_s(now_s):
            return "overloaded"
        if held.endpoints.n_healthy or held.endpoints.due_s <= now_s:
            return ""
        return "probing" if held.endpoints.probed else "unhealthy"

    def paused_for_s(self, pool: str, now_s: float) -> float | None:
        """Seconds until the first of its endpoints wants to be asked again; None: one does now."""
        held = self._pools.get(pool)
        return (held.endpoints.paused_for_s(now_s) or None) if held else None

    def pick(
        self,
        pool: str,
        now_s: float,
        *,
        uniform: float,
        prefer: str = "",
        avoid: str = "",
        prompt_tokens: float = 0.0,
        most: float = math.inf,
    ) -> EndpointLease | None:
        """Choose an endpoint; None when the pool is full, has none, or all want to be left alone.

        An endpoint that has `most` requests in flight gets no further one: it would wait too long.

        `uniform` in [0, 1) draws the two of which the less loaded is taken. `prefer` is where the
        session was last, `avoid` where this request already is or failed. A probe that is due
        takes precedence over both: else a pool whose sessions all prefer would never be probed.
        A pool that can't answer still gives a lease: whoever asks for one has no better pool.
        """
        held = self._pools.get(pool)
        if held is None or not held.endpoints.by_address:
            return None
        if held.in_flight >= self._options.in_flight_max:
            held.refusals += 1
            self._note("breaker open", pool, now_s, f"{held.in_flight} requests are in flight")
            return None
        held.most = most
        endpoints = held.endpoints
        open_ = [one for one in endpoints.open(now_s) if one.in_flight < most]
        if probe := endpoints.due_s <= now_s:
            chosen = endpoints.begin_probe(now_s)
        elif open_:
            chosen = self._choose(open_, endpoints.by_address.get(prefer), uniform, avoid)
        elif probe := bool(endpoints.needed(now_s)):
            chosen = endpoints.begin_early_probe(now_s)
        else:
            held.refusals += held.holds(most, now_s=now_s)
            return None
        return EndpointLease(held, chosen, now_s, probe=probe, prompt_tokens=prompt_tokens)

    def _choose(
        self, open_: Sequence[Endpoint], last: Endpoint | None, uniform: float, avoid: str
    ) -> Endpoint:
        chosen = less_loaded(open_, uniform, avoid)
        if last is None or last not in open_ or last.out or last.address == avoid:
            return chosen
        options, excess = self._options, last.in_flight - chosen.in_flight
        overloaded = last.in_flight > options.prefer_ratio_max * chosen.in_flight
        return chosen if overloaded and excess > options.prefer_excess_max else last

    def hedge_delay_s(self, pool: str, now_s: float, *, prompt_tokens: float = 0.0) -> float:
        """How long to wait for a pool's first token before a second attempt."""
        return self._pools[pool].waits.hedge_delay_s(now_s, prompt_tokens=prompt_tokens)

    def first_token_timeout_s(
        self, pool: str, now_s: float, *, prompt_tokens: float = 0.0
    ) -> float:
        """How long an attempt may wait for its first token before it is taken to be stuck."""
        return self._pools[pool].waits.timeout_s(now_s, prompt_tokens=prompt_tokens)

    def slow(self, pool: str, now_s: float) -> bool:
        """Whether a pool's first tokens come far later than they used to."""
        return slow(self._pools[pool].pace, self._options.outliers, now_s)

    def status(self, now_s: float) -> list[PoolStatus]:
        """All counts of all pools."""
        return [self._status(name, pool, now_s) for name, pool in self._pools.items()]

    def _status(self, name: str, pool: Pool, now_s: float) -> PoolStatus:
        return PoolStatus(
            pool=name,
            reason=self.reason(name, now_s),
            in_flight=pool.in_flight,
            refusals=pool.refusals,
            panic=pool.endpoints.panic,
            slow=self.slow(name, now_s),
            successes=pool.successes,
            cancelled=pool.cancelled,
            failures=dict(pool.failures),
            endpoints=tuple(
                EndpointStatus(
                    address=e.address,
                    in_flight=e.in_flight,
                    out=e.out,
                    ejected=e.ejected,
                    until_s=e.until_s,
                    ejections=e.ejections,
                    successes=e.successes,
                    cancelled=e.cancelled,
                    failures=dict(e.failures),
                    slow=pool.endpoints.slow(e.address, now_s),
                )
                for e in pool.endpoints.by_address.values()
            ),
        )

    def _note(
        self, kind: Literal["panic", "breaker open"], pool: str, now_s: float, why: str
    ) -> None:
        logged_s = self._logged_s.get((kind, pool))
        if logged_s is None or now_s - logged_s >= self._options.event_s:
            self._logged_s[kind, pool] = now_s
            self._on_event(Event(kind=kind, pool=pool, why=why))


class Loaded(Protocol):
    """What can be told apart, and be busy."""

    @property
    def address(self) -> str:
        """Its name."""

    @property
    def in_flight(self) -> int:
        """Requests that it has and has not answered."""


AnyLoaded = TypeVar("AnyLoaded", bound=Loaded)


def less_loaded(endpoints: Sequence[AnyLoaded], uniform: float, avoid: str = "") -> AnyLoaded:
    """Of two different ones drawn by `uniform`, the one with fewer requests in flight.

    The power of two choices (Mitzenmacher 2001), as Envoy's LEAST_REQUEST with choice_count 2.
    """
    assert 0.0 <= uniform < 1.0, uniform
    n = len(endpoints)
    if n == 1:
        return endpoints[0]
    first, rest = divmod(uniform * n, 1.0)
    i, j = int(first), int(rest * (n - 1))
    one, other = endpoints[i], endpoints[j + (j >= i)]
    if avoid and avoid in {one.address, other.address}:
        return other if one.address == avoid else one
    return other if other.in_flight < one.in_flight else one
