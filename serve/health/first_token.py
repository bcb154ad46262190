"""How long a pool takes to its first token: recent quantiles, and whether that is unusual.

    waits ──▶ FirstTokens  ──▶ p95: when to hedge     p99: when to give an attempt up
          └─▶ Pace         ──▶ slow? against its own past and against its peers

Waits are counted in buckets, each 10 % wider than the one before, and fade with time. Nothing is
multiplied down: a newer wait enters with a larger weight, 2^(t / half_life), which gives the same
quantiles (forward decay, Cormode et al. 2009).

With too few recent waits there is no estimate, and the default of the settings holds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

from learners.option import option

WAIT_S_MIN = 0.001  # below a millisecond all are alike
GROWTH = 1.1  # from one bucket to the next: quantiles are right to 10 %
LOG_GROWTH = math.log(GROWTH)
N_BUCKETS = 142  # up to 680 s; longer waits share the last bucket
WEIGHT_LOG2_MAX = 64.0  # then weights are scaled back, long before they would overflow


USUAL_TOKENS = 2_000.0  # of a prompt, until some have come
USUAL_PROMPTS = 256  # prompts that the usual length is the mean of, about


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstTokenOptions:
    """From waits to time-outs."""

    half_life_s: float = 60.0  # a queue builds up and drains within minutes
    samples_min: float = 20.0  # fewer have no 95th percentile to speak of
    reread_s: float = 1.0  # quantiles are computed anew at most this often, for 3 µs each
    hedge_quantile: float = 0.95  # "The Tail at Scale" (CACM 2013): 5 % more requests, no more
    hedge_delay_default_s: float = 2.0  # of a pool not known yet: late enough to be rare
    timeout_quantile: float = 0.99
    timeout_factor: float = 3.0  # of the p99: what takes longer is stuck rather than slow
    # A long prompt on a fast pool is no failure.
    timeout_s_min: float = option(
        2.0,
        "Seconds that an endpoint may always take to its first token.",
        key="first_token_s_min",
        gt=0,
        le=3600,
    )
    timeout_default_s: float = 30.0  # of a pool not known yet: a cold start with a long prompt


class FirstTokens:
    """Recent waits for the first token, by size.

    >>> waits = FirstTokens(FirstTokenOptions())
    >>> for wait_s in range(1, 101):
    ...     waits.add(wait_s / 100, now_s=0.0)
    >>> round(waits.quantile_s(0.95, now_s=0.0), 2)  # the upper edge of the bucket of 0.95
    0.96
    """

    __slots__ = (
        "_hedge", "_landmark_s", "_n_prompts", "_options", "_timeout", "_total", "_usual_tokens",
        "_weights",
    )  # fmt: skip

    def __init__(self, options: FirstTokenOptions) -> None:
        self._options = options
        self._weights = [0.0] * N_BUCKETS
        self._total = 0.0
        self._landmark_s = 0.0  # when a wait weighs one
        self._hedge = self._timeout = (-math.inf, 0.0)  # (computed at, seconds)
        self._usual_tokens, self._n_prompts = USUAL_TOKENS, 0  # of a prompt

    def add(self, wait_s: float, *, now_s: float, prompt_tokens: float = 0.0) -> None:
        """Count one wait, for a prompt of so many tokens; 0: not known."""
        weight = self._weight(now_s)
        if prompt_tokens > 0:
            share = 1 / min(self._n_prompts + 1, USUAL_PROMPTS)
            self._usual_tokens += share * (prompt_tokens - self._usual_tokens)
            self._n_prompts += 1
        self._weights[bucket(wait_s)] += weight
        self._total += weight

    def samples(self, now_s: float) -> float:
        """How many waits there are, each halved per half-life."""
        weight = self._weight(now_s)  # first: it may scale the total
        return self._total / weight

    def quantile_s(self, q: float, *, now_s: float) -> float | None:
        """The wait that a share `q` of recent ones did not exceed, up to its bucket's upper edge.

        None when there are too few.
        """
        if self.samples(now_s) < self._options.samples_min:
            return None
        summed = list(accumulate(self._weights))
        # A hair less than q: sums of weights are not exact.
        return upper_edge_s(min(bisect_left(summed, q * summed[-1] * (1 - 1e-9)), N_BUCKETS - 1))

    def stretch(self, prompt_tokens: float) -> float:
        """How many times the usual wait a prompt may take: as it is longer than the usual prompt.

        Reading a prompt takes time in proportion to its length at the most, so this is generous.
        """
        return max(1.0, prompt_tokens / max(self._usual_tokens, 1.0))

    def hedge_delay_s(self, now_s: float, *, prompt_tokens: float = 0.0) -> float:
        """How long to wait for a first token before a second attempt is worth its cost."""
        if not 0.0 <= now_s - self._hedge[0] < self._options.reread_s:
            found_s = self.quantile_s(self._options.hedge_quantile, now_s=now_s)
            self._hedge = (now_s, found_s or self._options.hedge_delay_default_s)
        return self._hedge[1] * self.stretch(prompt_tokens)

    def timeout_s(self, now_s: float, *, prompt_tokens: float = 0.0) -> float:
        """How long an attempt may wait for its first token before it is taken to be stuck.

        Whoever asks may have less time; but running out of that is no fault of the pool.
        """
        options = self._options
        if not 0.0 <= now_s - self._timeout[0] < options.reread_s:
            p99_s = self.quantile_s(options.timeout_quantile, now_s=now_s)
            wanted_s = options.timeout_factor * p99_s if p99_s else options.timeout_default_s
            self._timeout = (now_s, max(options.timeout_s_min, wanted_s))
        return self._timeout[1] * self.stretch(prompt_tokens)

    def _weight(self, now_s: float) -> float:
        log2 = (now_s - self._landmark_s) / self._options.half_life_s
        if log2 > WEIGHT_LOG2_MAX:
            self._weights = [weight * 2.0**-log2 for weight in self._weights]
            self._total = sum(self._weights)
            self._landmark_s, log2 = now_s, 0.0
        return 2.0**log2


def bucket(wait_s: float) -> int:
    """Index of the bucket: waits up to and including its upper edge."""
    if wait_s <= WAIT_S_MIN:
        return 0
    return min(math.ceil(math.log(wait_s / WAIT_S_MIN) / LOG_GROWTH - 1e-9), N_BUCKETS - 1)


def upper_edge_s(index: int) -> float:
    """The longest wait of a bucket."""
    return WAIT_S_MIN * GROWTH**index


# Shares of the newest wait in the two averages below: about the last 8, and the last 256.
RECENT, USUAL = 1 / 8, 1 / 256


class Pace:
    """Whether the last few waits are far longer than they used to be.

    Two exponential averages of log(wait): a wait counts by its ratio, so that one of a minute
    among seconds does not decide. The slow average follows in the end: a change that stays for a
    few hundred requests becomes the usual. Against peers, see `Endpoints.slow`, it stays unusual.
    """

    __slots__ = ("last_s", "n", "recent", "usual")

    def __init__(self) -> None:
        self.n = 0
        self.recent = self.usual = 0.0  # of log seconds
        self.last_s = -math.inf

    def note(self, wait_s: float, *, now_s: float) -> None:
        """Take one wait into account."""
        log_wait = math.log(max(wait_s, WAIT_S_MIN))
        self.n += 1
        # Plain means at first, so that the first wait is not the measure of all.
        self.recent += max(RECENT, 1 / self.n) * (log_wait - self.recent)
        self.usual += max(USUAL, 1 / self.n) * (log_wait - self.usual)
        self.last_s = now_s
