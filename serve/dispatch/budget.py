"""How much extra work a dispatcher may make: retries and hedges, each from a budget.

    request ──▶ attempt ──fails──▶ another?   RetryBudget: so many at once, of the requests at hand
                   └───is late───▶ a second?  HedgeBudget: so many per hundred requests

When a backend is overloaded, every request fails, and three attempts each would treble its load
just then. A budget keeps the sum small however many fail. The retry budget is Envoy's, the hedging
budget follows Dean and Barroso, "The Tail at Scale" (CACM 2013): a second attempt only after the
95th percentile of the wait, which then costs about 5 % more requests.

What is not within the budget is not tried, whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from learners.option import option


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions:
    """How often one request is tried, and how many requests may be at a retry at once.

    Defaults of Envoy are from envoyproxy.io/docs, config.cluster.v3.CircuitBreakers.Thresholds
    .RetryBudget; the attempts from Beyer et al., "Site Reliability Engineering" (2016), chapter 21.
    """

    # SRE: what failed three times most likely fails everywhere
    attempts_max: int = option(
        3, "Calls made for one request before its first token, hedges included.", ge=1, le=10
    )
    # Envoy's budget_percent
    share_max: float = option(
        0.20, "Ongoing retries, as a share of ongoing requests.", key="retry_share_max", ge=0, le=1
    )
    concurrent_min: int = 3  # Envoy's min_retry_concurrency: a quiet router may always retry


class RetryBudget:
    """Counts requests and retries in flight, and says whether one more retry may begin.

    >>> budget = RetryBudget()
    >>> for _ in range(20):
    ...     budget.request_began()
    >>> [budget.try_retry(attempts_made=1) for _ in range(5)]  # 20 % of 20
    [True, True, True, True, False]
    """

    def __init__(self, options: RetryOptions | None = None) -> None:
        self._options = options or RetryOptions()
        self.requests_in_flight = 0
        self.retries_in_flight = 0
        self.refusals = 0

    def request_began(self) -> None:
        """Begin a request; it stays in flight through all its attempts."""
        self.requests_in_flight += 1

    def request_ended(self) -> None:
        """End a request, however it went."""
        self.requests_in_flight -= 1
        assert self.requests_in_flight >= 0, "more requests ended than began"

    def try_retry(self, attempts_made: int) -> bool:
        """Whether a request may be tried again. True takes a place: give it to `retry_ended`."""
        if attempts_made >= self._options.attempts_max:
            return False
        if self.retries_in_flight >= self.retries_max:
            self.refusals += 1
            return False
        self.retries_in_flight += 1
        return True

    @property
    def retries_max(self) -> int:
        """How many retries may be in flight now."""
        share = int(self._options.share_max * self.requests_in_flight)
        return max(self._options.concurrent_min, share)

    def retry_ended(self) -> None:
        """End one retry, however it went."""
        self.retries_in_flight -= 1
        assert self.retries_in_flight >= 0, "more retries ended than began"


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeOptions:
    """How many requests may be sent a second time because the first attempt is late."""

    # A delay at the 95th percentile asks for just this many.
    share_max: float = option(
        0.05,
        "Second calls beside late ones, as a share of all requests. 0: none.",
        key="hedge_share_max",
        ge=0,
        le=1,
    )
    burst_max: float = 5.0  # a pause of one replica hits several requests at once


class HedgeBudget:
    """A token bucket: every request puts in a share of a token, every hedge takes one out.

    It starts empty, so that hedges are at most the share of all requests so far, and at most the
    share of any stretch of requests plus the burst.

    >>> budget = HedgeBudget()
    >>> for _ in range(20):
    ...     budget.request_began()
    >>> budget.try_hedge(), budget.try_hedge()
    (True, False)
    """

    def __init__(self, options: HedgeOptions | None = None) -> None:
        self._options = options or HedgeOptions()
        self.tokens = 0.0
        self.hedges = 0
        self.refusals = 0

    def request_began(self) -> None:
        """Earn a request's share of a hedge."""
        self.tokens = min(self._options.burst_max, self.tokens + self._options.share_max)

    def try_hedge(self) -> bool:
        """Whether one more attempt may be sent alongside a late one; True takes a token."""
        if self.tokens < 1.0 - 1e-9:  # twenty times 0.05 is not quite one in binary
            self.refusals += 1
            return False
        self.tokens = max(0.0, self.tokens - 1.0)
        self.hedges += 1
        return True
