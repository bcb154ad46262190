"""Requests a second of each tenant: beyond its rate and a burst they are refused, at once.

    request ──take(tenant)──▶ let in
                 └─ RateExceeded, with when to try again

A token bucket, kept as one number (GCRA, as in networks): the time at which all that a tenant was
let in for is paid off at its rate. Ahead of now by less than the burst, it is let in and the number
moves on by one request. A tenant whose number is past is at rest: forgetting it changes nothing, so
memory is bounded by the tenants that are active, whatever names callers invent.

Each replica grants its share, the rate divided by the replicas of its kind: nothing is asked of
others on the way of a request. So a caller has its whole rate where its connections spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from learners.option import option, required
from serve.errors import RateExceeded
from serve.routing.request import TENANT_BYTES_MAX

EVERY_OTHER = ""  # the tenant of the rate that each tenant without one of its own has
KEPT_MIN = 1024  # tenants, before those at rest are looked for
BURST_S = 1.0  # of the rate, where no burst is stated


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How many requests a tenant may send."""

    tenant: str = option(
        "",
        "Whose requests; empty: of each tenant that has no entry of its own, nobody's included.",
        max_length=TENANT_BYTES_MAX,
    )
    requests_per_s: float = required("Requests a second, in the long run.", gt=0, le=1e6)
    burst: float = option(
        0.0, "Requests at once, after a pause. 0: those of one second, at least one.", ge=0, le=1e6
    )

    @property
    def burst_requests(self) -> float:
        """How many it may send at once."""
        return self.burst or max(1.0, self.requests_per_s * BURST_S)


class Rates:
    """Counts the requests of one replica. Used from one event loop.

    >>> rates = Rates([Rate(requests_per_s=2.0)], lambda: 1)
    >>> rates.take("acme", now_s=0.0), rates.take("acme", now_s=0.0)
    (None, None)
    >>> rates.take("acme", now_s=0.0)
    Traceback (most recent call last):
    serve.errors.RateExceeded: tenant 'acme' sends more than 2 requests/s; try again in 0.5 s
    """

    def __init__(self, rates: Sequence[Rate], n_replicas: Callable[[], int]) -> None:
        """`n_replicas` share the rates now, this one included."""
        self._of = {rate.tenant: rate for rate in rates}
        self._other = self._of.pop(EVERY_OTHER, None)
        self._n_replicas = n_replicas
        self._paid_s: dict[str, float] = {}  # by tenant, when it is at rest again
        self._look_at = KEPT_MIN  # so many kept tenants are reason to look for those at rest

    def take(self, tenant: str, n: int = 1, *, now_s: float) -> None:
        """Let `n` requests in. Raises RateExceeded.

        Many at once are let in whole where one would be, and paid off before the next.
        """
        rate = self._of.get(tenant, self._other)
        if rate is None:
            return
        each_s = self._n_replicas() / rate.requests_per_s
        # A burst of less than one request would let none in.
        ahead_s_max = max(1.0, rate.burst_requests / self._n_replicas()) * each_s
        paid_s = max(self._paid_s.get(tenant, now_s), now_s)
        wait_s = paid_s + each_s - now_s - ahead_s_max
        if wait_s > 1e-9 * each_s:  # as far as sums of floats can tell
            raise RateExceeded(tenant, f"{rate.requests_per_s:g} requests/s", wait_s)
        self._paid_s[tenant] = paid_s + n * each_s
        if len(self._paid_s) > self._look_at:
            self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        self._paid_s = {name: at_s for name, at_s in self._paid_s.items() if at_s > now_s}
        self._look_at = max(KEPT_MIN, 2 * len(self._paid_s))

    def __len__(self) -> int:
        """Tenants that are kept."""
        return len(self._paid_s)
