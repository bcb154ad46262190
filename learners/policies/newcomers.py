"""A model that is not proven yet is tried by few requests, whatever its estimate promises.

    tries = tries_at_once − sent in the last `tries_s`          until outcomes_proven are known

Before its first outcomes an estimate is a guess: an untried model that is believed to be as good as
the others and is cheap would take nearly all requests until the first outcomes come back, however
bad it is. So it gets a few *tries*, as many requests as the policy gives it, and then none until
outcomes come; `outcomes_proven` end the limit. A bad model is found out by its first tries; a good
one does not wait for a small share of the traffic. A try is given back after a while: outcomes get
lost, or take days.

A model whose calls began to fail is as unproven as a new one. It is known, so it needs no tries; it
keeps a share that grows with each call that succeeds:

    share at most = share_max ^ (1 − successes / outcomes_proven)

What is cut off goes to the proven models, as the policy weighed them against each other. The
probabilities stay exact: they are what is drawn from, given what was drawn before, and what the
ticket says. Where no proven model may be had there is nothing to protect, and nothing is cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from learners.option import option
from learners.policies.policy import Mask, Matrix, draw

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewcomerOptions:
    """How many requests a model may take before it is known, and what they may cost."""

    tries_at_once: int = option(
        3,
        "Requests that a new model gets, then none until its outcomes are known.",
        ge=1,
        le=1_000_000,
    )
    tries_s: float = option(
        60.0,
        "Seconds after which a try is given back: outcomes may get lost, or take long.",
        gt=0,
        le=1e6,
    )
    outcomes_proven: float = option(
        2.0, "Outcomes after which a model is no longer limited.", gt=0, le=1e6
    )
    share_max: float = option(
        0.04, "Largest share of requests for a model whose calls began to fail.", gt=0, le=1
    )
    requests_max: int = option(
        200,
        "Exploration budget of a new model: requests it may get, of all replicas, until it is "
        "proven.",
        ge=0,
        le=1_000_000_000,
    )
    usd_max: float = option(
        math.inf,
        "The same in US dollars, by what calls are expected to cost. 0: no limit.",
        ge=0,
        le=1e9,
        stands_for=(0.0, math.inf),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Tries:
    """What each model (k,) may still take: requests, and US dollars; infinite for the proven.

    `share` (k,) is the most that one request may give to a model whose calls fail.
    """

    requests: Floats
    usd: Floats
    share: Floats

    @property
    def limited(self) -> Mask:
        """Which models (k,) may not take all that a policy gives them."""
        counted = np.isfinite(self.requests) | np.isfinite(self.usd)
        return np.asarray(counted | (self.share < 1.0))


@dataclass(slots=True)
class _Spent:
    """What one replica sent to one unproven model."""

    known_before: float  # outcomes that were known when it began
    requests: int = 0
    usd: float = 0.0
    recent_ms: list[int] = field(default_factory=list)  # when the last tries were made


class Trials:
    """Counts what one replica sends to models that are not proven. Used from one thread.

    Replicas don't talk to each other: each has an equal part of every budget. What all of them sent
    is known from telemetry a second later, and survives them.
    """

    def __init__(self, options: NewcomerOptions) -> None:
        self._options = options
        self._spent: dict[int, _Spent] = {}  # by model key
        self._looked_at: tuple[Floats | None, bool] = (None, False)  # and whether any is limited

    def needed(self, n_proving: Floats) -> bool:
        """Whether a model is limited at all. An array that was asked about is not changed."""
        if self._looked_at[0] is not n_proving:
            limited = bool((n_proving < self._options.outcomes_proven).any())
            self._looked_at = n_proving, limited
        return bool(self._spent) or self._looked_at[1]

    def tries(
        self,
        keys: Sequence[int],
        n_outcomes: Floats,
        n_proving: Floats,
        sent_by_all: Floats,
        n_replicas: int,
        now_ms: int,
    ) -> Tries:
        """What each model (k,) may take at a time.

        `n_proving` of its outcomes count since its calls began to fail; `sent_by_all` (k,) are
        requests ever, by telemetry.
        """
        options, k = self._options, len(keys)
        is_new = n_outcomes < options.outcomes_proven
        succeeded = np.where(is_new, np.inf, n_proving)
        unproven = np.maximum(1.0 - succeeded / options.outcomes_proven, 0.0)
        found = Tries(np.full(k, np.inf), np.full(k, np.inf), options.share_max**unproven)
        for column in np.flatnonzero(~is_new).tolist():
            self._spent.pop(keys[column], None)
        for column in np.flatnonzero(is_new).tolist():
            spent = self._spent.setdefault(keys[column], _Spent(float(n_outcomes[column])))
            # A model that was known and has faded has been sent much: that is no exploration.
            faded = 0.0 < spent.known_before < 1.0
            used_up = not faded and sent_by_all[column] >= options.requests_max
            budget = 0 if used_up else options.requests_max // n_replicas - spent.requests
            since_ms = now_ms - options.tries_s * 1000.0
            recent_ms = [at_ms for at_ms in spent.recent_ms if since_ms < at_ms <= now_ms]
            spent.recent_ms = recent_ms[-options.tries_at_once :]  # more say nothing more
            at_once = max(1, options.tries_at_once // n_replicas)
            found.requests[column] = max(0, min(budget, at_once - len(spent.recent_ms)))
            found.usd[column] = options.usd_max / n_replicas - spent.usd
        return found

    def sent(
        self, keys: Sequence[int], chosen: NDArray[np.intp], cost_usd: Floats, now_ms: int
    ) -> None:
        """Note n decisions: the models' columns (n,), and what each is expected to cost (n,)."""
        if not self._spent:
            return
        for column, key in enumerate(keys):
            if key in self._spent and (mine := chosen == column).any():
                self._spent[key].requests += int(mine.sum())
                n_tries = min(int(mine.sum()), self._options.tries_at_once)
                self._spent[key].recent_ms += [now_ms] * n_tries
                self._spent[key].usd += float(cost_usd[mine].sum())


def draw_within(
    p: Matrix, allowed: Mask, tries: Tries | None, cost_usd: Matrix, uniform: Floats
) -> tuple[Matrix, NDArray[np.intp]]:
    """Draw row by row, giving no model more than its tries: what was drawn from (n, k), and it.

    A row's probabilities depend on what the rows before it drew, never on its own draw.
    """
    if tries is None or _certain(p, allowed):
        return p, draw(p, uniform)
    p = _cut(p, allowed, tries.share, tries.share < 1.0)
    limited = np.isfinite(tries.requests) | np.isfinite(tries.usd)
    left, usd = tries.requests.copy(), tries.usd.copy()
    cap = np.where(limited & (left < 1.0), 0.0, 1.0)
    p, chosen = p.copy(), np.zeros(len(p), np.intp)
    at = 0
    while at < len(p):
        # Too dear for what is left: barred for these requests alone.
        barred = np.where(cost_usd[at:] > usd, 0.0, cap)
        p[at:] = _cut(p[at:], allowed[at:], barred, limited)
        chosen[at:] = draw(p[at:], uniform[at:])
        first = np.flatnonzero(limited[chosen[at:]] & (np.take(cap, chosen[at:]) > 0.0))
        if not len(first):
            break
        row = at + int(first[0])
        left[chosen[row]] -= 1.0
        usd[chosen[row]] -= cost_usd[row, chosen[row]]
        cap = np.where(limited & (left < 1.0), 0.0, cap)
        at = row + 1
    return p, chosen


def _certain(p: Matrix, allowed: Mask) -> bool:
    """Whether each row has one model that may be had, and it alone: then nothing can be cut."""
    each = np.count_nonzero(allowed) == np.count_nonzero(p) == len(p)
    return each and bool((p[allowed] == 1.0).all())


def _cut(p: Matrix, allowed: Mask, cap: Floats, limited: Mask) -> Matrix:
    """`p` (n, k) with no more than `cap`, (k,) or (n, k); the rest goes to who is not `limited`."""
    proven = allowed & ~limited
    cut = np.where(limited, np.minimum(p, cap), p)
    spare = 1.0 - cut.sum(axis=1, keepdims=True)
    # By the policy's own weights; alike, where it gave the proven ones nothing.
    weight = np.where(proven, p, 0.0)
    total = weight.sum(axis=1, keepdims=True)
    count = np.maximum(proven.sum(axis=1, keepdims=True), 1)
    weight = np.where(total > 0, weight / np.where(total > 0, total, 1.0), proven / count)
    return np.where(proven.any(axis=1, keepdims=True), cut + spare * weight, p)
