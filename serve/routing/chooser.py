"""Decides for one replica: what the pure router needs of its past, and what a batch leaves behind.

requests ─▶ load of pools, draws, tries, budgets ─▶ route ─▶ a change under trial ─▶ Choices
▲                                                                      │
└──────── what was sent to pools, to new models, of budgets ◀──────────┘
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from learners.policies.newcomers import NewcomerOptions, Trials, Tries
from learners.policies.policy import Policy, draw
from serve.budgets.ledger import Ledger
from serve.budgets.spending import NONE, Purse, Spending
from serve.changes.trial import BY_CANDIDATE, Split, Trial
from serve.routing.choices import Choices
from serve.routing.eligible import RequestBatch, Verdict
from serve.routing.live import Live
from serve.routing.load_tracker import LoadTracker
from serve.routing.placement import PlacementOptions, spread_of
from serve.routing.router import route

Floats = NDArray[np.float64]


def tries_of(live: Live, trials: Trials, now_ms: int) -> Tries | None:
    """What unproven models may take now; None where there are none."""
    if not trials.needed(live.n_proving):
        return None
    keys, sent = live.catalogue.keys, live.sent_ever()
    return trials.tries(keys, live.n_outcomes, live.n_proving, sent, live.n_replicas(), now_ms)


class Chooser:
    """Decides for one replica. Used from one thread."""

    def __init__(
        self,
        policy: Policy,
        options: PlacementOptions,
        rng: np.random.Generator,
        newcomers: NewcomerOptions | None = None,
        source: str = "",
        trial: Trial | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """`source` is what telemetry knows this replica by: its slices of budgets go by it."""
        self.trial = trial
        self.policy, self._options, self._rng = policy, options, rng
        self.spending = Spending(options.pricing.budgets, source, ledger)
        self._tracker, self._trials = (
            LoadTracker(options.pricing),
            Trials(newcomers or NewcomerOptions()),
        )

    def choose(self, requests: RequestBatch, live: Live, now_ms: int) -> Choices:
        """Decide a batch against one view."""
        pool_load = self._tracker.now(live, now_ms)
        uniform = self._rng.random((len(requests), 2))
        spread = spread_of(len(requests), live, pool_load, self._options, self._rng)
        tries, purse = tries_of(live, self._trials, now_ms), self._purse(live, now_ms)
        turns = self._turns(requests, live)
        policy = turns[0] if turns else self.policy
        choices = route(
            requests, live, pool_load, policy, uniform, spread, self._options, tries, purse
        )
        if self.trial is not None:
            choices = _changed(choices, requests, self.trial, turns, uniform[:, 0], tries)
        if tries is not None or live.loads or purse is not None:
            self._note(choices, live, tries, purse, now_ms)
        return choices

    def _note(
        self, choices: Choices, live: Live, tries: Tries | None, purse: Purse | None, now_ms: int
    ) -> None:
        """Remember what a batch took of trials, pools and budgets."""
        sent = np.flatnonzero(choices.fits & ~choices.shed)
        at = sent, choices.chosen[sent]
        if tries is not None:
            usd = np.maximum(choices.cost_usd[at], choices.expected_cost_usd[at])
            self._trials.sent(live.catalogue.keys, at[1], usd, now_ms)
        if live.loads:
            self._tracker.sent(live, choices.pool[sent], choices.work_s[sent], now_ms)
        if purse is not None:
            barred = np.where(choices.verdict == Verdict.ELIGIBLE, choices.utility, -np.inf)
            purse.spend(*at, barred.argmax(axis=1)[sent])

    def _turns(self, requests: RequestBatch, live: Live) -> tuple[Split, str] | None:
        """Whose turn each request is, of a change under trial; None where all are one policy's."""
        trial = self.trial
        if trial is None or trial.candidate is None or trial.options.mode not in BY_CANDIDATE:
            return None
        draws = self._rng.random(len(requests)) if requests.draws is None else requests.draws
        return trial.split(self.policy, draws, live.counts)

    def _purse(self, live: Live, now_ms: int) -> Purse | None:
        """What budgets leave for a batch; None where there are none."""
        if not self.spending.budgets:
            return None
        routers = {source: one.record.budgets for source, one in live.fleet.routers.items()}
        return self.spending.purse(live.prices.accounts, routers, now_ms)


def _changed(
    choices: Choices,
    requests: RequestBatch,
    trial: Trial,
    turns: tuple[Split, str] | None,
    uniform: Floats,
    tries: Tries | None,
) -> Choices:
    """What a change makes of choices: marked, with what another would have chosen, or replaced."""
    mode = trial.options.mode
    if mode in ("observe", "bypass"):
        stated = np.full(len(requests), NONE) if requests.stated is None else requests.stated
        if mode == "bypass":
            return _as_stated(choices, np.where(stated == NONE, trial.otherwise, stated))
        seen = _as_stated(choices, stated)
        return replace(seen, beside=choices.propensity, suggested=choices.chosen)
    if turns is None:
        return choices
    split, stage = turns
    if split.first is None:
        return choices
    if mode == "shadow":
        theirs = split.first[1]
        return replace(choices, beside=theirs, suggested=draw(theirs, uniform))
    first = np.ones(len(requests), bool) if requests.first is None else requests.first
    alike = split.alike(uniform, choices.propensity, _touched(choices, requests, split, tries))
    return replace(choices, arm=trial.arms(split, stage, alike, first))


def _touched(
    choices: Choices, requests: RequestBatch, split: Split, tries: Tries | None
) -> NDArray[np.bool_]:
    """Rows (n,) in which more than a policy decides, whichever of the two it is.

    A budget has barred a model, the strong one is there only sometimes, or one of them would call
    a newcomer, which has so many tries. None of it follows from the row's own policy or draw.
    """
    touched = (choices.verdict == Verdict.OVER_BUDGET).any(axis=1)
    touched |= requests.strong_share_max < 1.0
    if tries is not None and split.first is not None:
        likely = (split.first[0] > 0.0) | (split.first[1] > 0.0)
        touched |= (likely & tries.limited).any(axis=1)
    return np.asarray(touched)


def _as_stated(choices: Choices, stated: NDArray[np.intp]) -> Choices:
    """The same where callers' own choices stand: nobody else's are possible."""
    stands = stated != NONE
    chosen = np.where(stands, stated, choices.chosen)
    at = np.arange(len(chosen)), chosen
    alone = np.zeros_like(choices.propensity)
    alone[at] = 1.0
    return replace(
        choices,
        chosen=chosen,
        pool=np.where(stands, choices.pools[at], choices.pool),
        fits=choices.fits | stands,
        budget=np.where(stands, NONE, choices.budget),
        shed=choices.shed & ~stands,
        propensity=np.where(stands[:, None], alone, choices.propensity),
    )
