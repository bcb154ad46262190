"""Which requests get a *probe*: an extra answer of another model, bought to learn from.

    Choices ─knowledge gradient per dollar─▶ the most worthwhile rows, within the budget ─▶ tickets

A probe is a decision of its own: it has its own ticket, under which its outcome is learned, and
nothing about the request's own decision changes. Its propensity is one: given the request, nothing
is drawn.

The budget fills evenly over the day (`serve.budgets.allowance`): each replica has an equal part, by
the number of replicas that the snapshot's telemetry knows.

Which rows are worth it depends on what others are worth: the bar is set where the best offers of
the last requests would have spent what came in with them and what is left. So as models become
known, and offers poorer, the bar follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from learners.policies.probes import ProbeOptions, Worth, gradient, worth
from serve.budgets.allowance import Allowance
from serve.routing.choices import Choices
from serve.routing.eligible import RequestBatch, Verdict
from serve.routing.live import Live
from serve.routing.writing.records import Decisions
from streams.feedback.report import PROBE

RECENT, BAR_EVERY = 64, 16  # requests that the bar is set by, and how often it is set anew


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """Rows (p,) of a batch that get a probe, and of which model (p,)."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]

    def decisions(self, of: Decisions) -> Decisions:
        """The probes as decisions of their own."""
        choices, at = of.choices[self.rows], (np.arange(len(self.rows)), self.columns)
        propensity = np.zeros_like(choices.propensity)
        propensity[at] = 1.0
        probed = replace(
            choices, chosen=self.columns, pool=choices.pools[at], propensity=propensity
        )
        return replace(of[self.rows], choices=probed, policy=PROBE)


NO_PROBES = Probes(np.zeros(0, np.intp), np.zeros(0, np.intp))


class Prober:
    """Buys for one replica. Used from one thread."""

    def __init__(self, options: ProbeOptions) -> None:
        self.options = options
        self._allowance = Allowance(options.budget_usd_per_day)
        # Of recent requests: points per dollar, dollars, and what came in with it; a ring.
        self._offers = np.zeros((3, RECENT))
        self._n_seen, self._n_probed, self._bar, self._bar_at = 0, 0, 0.0, 0

    @property
    def buys(self) -> bool:
        """Whether there is a budget at all."""
        return self.options.budget_usd_per_day > 0

    def pick(
        self,
        requests: RequestBatch,
        choices: Choices,
        live: Live,
        now_ms: int,
        wanted: NDArray[np.bool_] | None = None,
    ) -> Probes:
        """The probes of a batch that was just decided; their cost is taken from the budget.

        `wanted` (n,) says which requests take one; None: all.
        """
        if not self.buys or len(live.catalogue) < 2:
            return NO_PROBES
        came = self._allowance.fill(live.n_replicas(), now_ms)
        if not len(choices.chosen):
            return NO_PROBES
        found = self._worth(requests, choices, live)
        found.per_usd[~choices.fits | choices.shed] = 0.0
        if wanted is not None:
            found.per_usd[~wanted] = 0.0
        self._note(found, came)
        return self._bought(found)

    def _worth(self, requests: RequestBatch, choices: Choices, live: Live) -> Worth:
        weights = requests.preference
        eligible = choices.verdict == Verdict.ELIGIBLE
        noise = weights[:, :1] * live.estimator.noise[:, 0]
        value = gradient(choices.utility, choices.unsure, noise, eligible)
        usd = np.maximum(choices.cost_usd, choices.expected_cost_usd)
        horizon = self.options.horizon_requests
        return worth(value, usd, weights[:, 1], choices.chosen, horizon)

    def _note(self, found: Worth, came_usd: float) -> None:
        """Remember what was on offer; now and then set the bar by it."""
        n = len(found.usd)
        at = (self._n_seen + np.arange(n)) % RECENT
        self._offers[:, at] = found.per_usd, found.usd, np.full(n, came_usd / n)
        self._n_seen += n
        if self._n_seen < RECENT or self._n_seen - self._bar_at >= BAR_EVERY:
            self._bar, self._bar_at = self._bar_of_recent(), self._n_seen

    def _bar_of_recent(self) -> float:
        """What an answer must be worth per dollar, so that all money goes, to the best offers."""
        per_usd, usd, came = self._offers[:, : min(self._n_seen, RECENT)]
        order = np.argsort(-per_usd, kind="stable")
        spent = np.cumsum(usd[order])
        n = int(np.searchsorted(spent, came.sum() + self._allowance.usd, side="right"))
        return float(per_usd[order[n]]) if n < len(order) else 0.0

    def _bought(self, found: Worth) -> Probes:
        rows: list[int] = []
        for row in np.argsort(-found.per_usd, kind="stable").tolist():
            within = self._n_probed < self.options.share_max * self._n_seen
            if not within or found.per_usd[row] <= 0.0 or found.per_usd[row] < self._bar:
                break
            if self._allowance.take(float(found.usd[row])):
                self._n_probed += 1
                rows.append(row)
        at = np.array(sorted(rows), np.intp)
        return Probes(at, found.column[at])
