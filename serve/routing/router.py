"""The routing decision itself: requests in, decisions out, as arrays. No I/O, no clock, no Ray.

    contexts ──estimator──▶ quality, cost, latency per model
                                  │ preference    ▲ charges of its best pool    │ limits
                                  ▼               │ (`placement`)               ▼
                               utility ───────────┘                    who is eligible
                                  └──── policy ────▶ probabilities ──draw──▶ model ─▶ its pool

Serving and simulation call this very function. For the same requests, live view, pool load and
uniform numbers it gives the same bits.

When every pool that a request could go to costs more than its criticality may pay, it is *shed*:
refused, so that more critical requests are served in time (docs/prices.md).

A model that is not eligible has probability zero, whatever it scored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from learners.estimates.estimator import Estimates
from learners.kernels.compiled import kernels, writable
from learners.policies.limits import good_enough, with_trials
from learners.policies.newcomers import NewcomerOptions, Trials, Tries, draw_within
from learners.policies.policy import Policy, Scores, draw
from learners.prices import shed_share
from learners.targets import Target
from serve.budgets.spending import NONE, Asked, Purse, Spending
from serve.changes.trial import BY_CANDIDATE, Split, Trial
from serve.routing import plain
from serve.routing.eligible import (
    Expected,
    RequestBatch,
    Verdict,
    expected_of,
    left_by,
    preferred_of,
    taken,
    traits_of,
    verdicts_of,
    weights_of,
)
from serve.routing.live import Live
from serve.routing.load_tracker import LoadTracker, PoolLoad
from serve.routing.placement import (
    Placement,
    PlacementOptions,
    charge,
    known_tokens_of,
    least_multiple,
    place,
    spread_of,
)

Floats = NDArray[np.float64]
RECORDS = "learners.kernels.records"


@dataclass(slots=True, kw_only=True, eq=False)
class Choices:
    """Columns of n decisions, and what they were based on, (n, k) each unless it says otherwise.

    Nobody sets a column anew; it is not frozen because that takes as long to make as a kernel runs.
    Where no model is eligible or a budget refuses, `fits` is False; where it is refused for want of
    capacity, `shed` is True. The row's other values then say what would have been.
    """

    chosen: NDArray[np.intp]  # (n,) column of the chosen model
    pool: NDArray[np.intp]  # (n,) of its pool, among `Live.pool_names`
    fits: NDArray[np.bool_]  # (n,)
    budget: NDArray[np.intp]  # (n,) of the budgets, the one that refuses it, or NONE
    shed: NDArray[np.bool_]  # (n,)
    multiple: Floats  # (n,) least price of the pools that it could go to, multiples of their cost
    below_quality: NDArray[np.bool_]  # (n,) no model was good enough for `quality_min`
    preferred: NDArray[np.intp]  # (n,) model chosen if all pools were there and capacity free
    pools: NDArray[np.intp]  # best pool of each model
    verdict: NDArray[np.uint8]
    propensity: Floats
    utility: Floats
    unsure: Floats  # standard deviation of the utility's estimate
    quality: Floats
    cost_usd: Floats
    latency_ms: Floats
    energy_j: Floats  # 0: not known
    work_s: Floats  # (n,) in the chosen pool
    quality_deviation: Floats
    cost_usd_deviation: Floats
    latency_ms_deviation: Floats
    expected_cost_usd: Floats  # by the catalogue
    estimated_quality: Floats  # before calibration, if no call failed; NaN: not estimated
    estimated_cost_usd: Floats  # likewise
    arm: NDArray[np.object_] | None = None  # (n,) of a change under trial; None: there is none
    beside: Floats | None = None  # propensities of a policy that looked on
    suggested: NDArray[np.intp] | None = None  # (n,) whom it would have chosen

    def __getitem__(self, rows: NDArray[np.intp]) -> Choices:
        return taken(self, rows)

    @property
    def sent_all(self) -> bool:
        """Whether none is refused; lists, because a reduction takes twenty times as long."""
        return False not in self.fits.tolist() and True not in self.shed.tolist()


def route(  # noqa: PLR0915 - one sequence of columns, each used below
    requests: RequestBatch,
    live: Live,
    pool_load: PoolLoad,
    policy: Policy,
    uniform: Floats,
    spread: Floats | None,
    options: PlacementOptions,
    tries: Tries | None = None,
    purse: Purse | None = None,
) -> Choices:
    """Decide n requests at once; `uniform` (n, 2) in [0, 1) are the draws.

    `spread` (n, P) are factors on the prices of pools, see `placement`; None: all one. `tries` is
    what models that are not proven may take, `purse` what budgets leave; None: no limit.
    """
    estimates = live.estimator.estimate(requests.contexts, traits_of(requests, live))
    if tries is None and purse is None:
        done = plain.decided(requests, live, estimates, pool_load, policy, uniform, spread, options)
        if done is not None:
            return Choices(**done)
    expected = expected_of(requests, live, estimates)
    cost, latency = expected.cost_usd, expected.latency_ms
    known_tokens = known_tokens_of(requests.prompt_tokens, live)
    charged = charge(requests.preference, known_tokens, live, pool_load, spread, options)
    pools, rows = charged.best, np.arange(len(requests))
    verdict = verdicts_of(requests, live, expected.paid_usd, latency)
    able = verdict == Verdict.ELIGIBLE
    eligible = preferred_of(requests, _with_replicas(able, live, verdict), verdict)
    left = left_by(requests, live, estimates, expected, eligible, verdict)
    weights = weights_of(requests, charged.money, left.below)
    free = weights[:, :1] * expected.quality - weights[:, 1:2] * cost
    free -= weights[:, 2:3] * (latency / 1000.0)
    utility = free - charged.points[rows[:, None], pools]
    budget = live.prices.budget.charged(options.pricing.ascent)
    if budget:
        utility -= charged.money[:, None] * (budget * cost)
    share, eligible = options.limits.probe_share, left.eligible
    fits = np.asarray(eligible.any(axis=1))
    eligible[~fits] = True  # any probabilities will do, the row is refused
    if purse is not None:
        asked = _asked(requests, live, expected, known_tokens, charged.money)
        utility -= purse.charge(asked, utility, eligible)

    def likely(of: NDArray[np.bool_]) -> Floats:
        return policy.probabilities(
            _scores(weights, live, estimates, expected, utility, charges, energy, of)
        )

    at = rows[:, None], pools
    charges, energy = np.abs(charged.points[at]), charged.fixed[at]
    p = likely(eligible)
    if left.without_strong is not None and left.passes is not None:
        passes = left.passes[:, None]
        p = passes * p + (1.0 - passes) * likely(left.without_strong)
    # Who has nothing but trials gets one as often as others would, and is refused otherwise.
    alone = ~fits & left.trials.any(axis=1)
    fits |= alone & (uniform[:, 0] < share)
    eligible = np.where(alone[:, None], left.trials, eligible)
    p = with_trials(p, left.trials, np.where(alone, 1.0, share))
    again = uniform[:, 0] / share % 1.0 if share else uniform[:, 0]  # uniform below the share, too
    drawn = np.where(alone, again, uniform[:, 0])
    reserved = np.maximum(expected.paid_usd, expected.list_usd)
    propensity, chosen = draw_within(p, eligible, tries, reserved, drawn)
    propensity = np.where(alone[:, None], share * propensity, propensity)
    beyond, preferred = _beyond(cost, charged, weights, live), chosen
    able = (verdict == Verdict.ELIGIBLE) | (verdict == Verdict.NO_REPLICA)
    able, _ = good_enough(requests.quality_min, able, expected.success)
    if (utility != free - beyond).any() or (eligible != able).any():
        able[~able.any(axis=1)] = True
        scores = _scores(weights, live, estimates, expected, free - beyond, beyond, energy, able)
        _, preferred = draw_within(policy.probabilities(scores), able, tries, reserved, drawn)
    refused = np.full(len(requests), NONE, np.intp)
    if purse is not None:
        within = fits[:, None] & (eligible | (propensity > 0.0))
        propensity, chosen, refused = purse.draw(propensity, chosen, utility, within, drawn)
        verdict[(verdict == Verdict.ELIGIBLE) & purse.barred] = Verdict.OVER_BUDGET
    least = least_multiple(pool_load, eligible, live)
    shed = shed_share(least, requests.criticality) if live.priced else 0.0
    pool = place(chosen, charged, weights, live, pool_load)
    return Choices(
        chosen=chosen,
        pool=pool,
        fits=fits & (refused == NONE),
        budget=refused,
        shed=fits & (refused == NONE) & (uniform[:, 1] < shed),
        multiple=least,
        below_quality=left.below,
        preferred=preferred,
        pools=pools,
        verdict=verdict,
        propensity=propensity,
        utility=utility,
        unsure=weights[:, :1] * estimates.deviation,
        quality=expected.success,
        cost_usd=expected.paid_usd,
        latency_ms=latency,
        energy_j=charged.energy_j[rows[:, None], pools],
        work_s=charged.work_s[rows, pool],
        quality_deviation=expected.success_deviation,
        cost_usd_deviation=expected.cost_usd_deviation,
        latency_ms_deviation=expected.latency_ms_deviation,
        expected_cost_usd=expected.list_usd,
        estimated_quality=expected.estimated_quality,
        estimated_cost_usd=expected.estimated_usd,
    )


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
    ) -> None:
        """`source` is what telemetry knows this replica by: its slices of budgets go by it."""
        self.trial = trial
        self.policy, self._options, self._rng = policy, options, rng
        self.spending = Spending(options.pricing.budgets, source)
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
            choices = _changed(choices, requests, self.trial, turns, uniform[:, 0])
        if tries is not None or live.loads or purse is not None:
            self._note(choices, live, purse, now_ms)
        return choices

    def _note(self, choices: Choices, live: Live, purse: Purse | None, now_ms: int) -> None:
        """Remember what a batch took of trials, pools and budgets."""
        sent = choices.fits & ~choices.shed
        at = np.flatnonzero(sent), choices.chosen[sent]
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
    alike = split.alike(uniform, choices.propensity)
    return replace(choices, arm=trial.arms(split, stage, alike, first))


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


def _asked(
    requests: RequestBatch, live: Live, expected: Expected, tokens: Floats, money: Floats
) -> Asked:
    """What budgets need to know of n requests."""
    n = len(requests)
    return Asked(
        tenants=[""] * n if requests.tenants is None else requests.tenants.tolist(),
        tags=[()] * n if requests.said is None else [one.tags for one in requests.said.tolist()],
        models=live.catalogue.names,
        cost_usd=expected.paid_usd,
        list_usd=np.broadcast_to(expected.list_usd, expected.paid_usd.shape),
        tokens=np.reshape(tokens, (n, 1)) + live.output_tokens,
        money=money,
    )


def _scores(
    weights: Floats,
    live: Live,
    estimates: Estimates,
    expected: Expected,
    utility: Floats,
    charges: Floats,
    energy: Floats,
    eligible: NDArray[np.bool_],
) -> Scores:
    """What the policy weighs, in units of what is at stake for each request.

    `charges` (n, k) are the points that `utility` has been charged beside cost and latency; of
    them, `energy` those for energy and power.
    """
    cost_points = weights[:, 1:2] * expected.cost_usd
    latency_points = weights[:, 2:3] * (expected.latency_ms / 1000.0)
    scale = _scale(weights, cost_points + latency_points + charges, eligible)
    unsure = estimates.mean_deviation.astype(np.float64)
    money = weights[:, 1:2] * expected.list_usd * unsure[:, Target.COST]
    time = weights[:, 2:3] * (live.catalogue.latency_ms / 1000.0) * unsure[:, Target.LATENCY]
    # Energy comes of output tokens, as costs do: it is as unsure, relative to its size.
    power = energy * unsure[:, Target.COST]
    others = money**2 + time**2 + power**2  # contexts have their say in quality alone
    quality = weights[:, :1] * estimates.deviation
    of_model = weights[:, :1] * unsure[:, Target.QUALITY]
    plain, recent = live.plain_quality, live.recent_quality
    rest = utility - weights[:, :1] * expected.quality
    return Scores(
        utility / scale,
        np.sqrt(quality**2 + others) / scale,
        eligible,
        mean_deviation=np.sqrt(of_model**2 + others) / scale,
        plain_utility=(rest + weights[:, :1] * plain) / scale,
        recent_utility=(rest + weights[:, :1] * recent) / scale,
        n_outcomes=live.n_outcomes,
        n_recent=live.n_recent,
        cost=cost_points / scale,
    )


def explored(choices: Choices, *, compiled: bool = False) -> NDArray[np.bool_]:
    """Of each row (n,), whether another eligible model had a higher utility than the chosen."""
    if compiled and (kernel := kernels(RECORDS)) is not None:
        found = np.empty(len(choices.chosen), np.bool_)
        verdict, chosen = writable(choices.verdict, np.uint8), writable(choices.chosen, np.int64)
        kernel.explored(writable(choices.utility), verdict, chosen, found)
        return found
    eligible = choices.verdict == Verdict.ELIGIBLE
    best = np.where(eligible, choices.utility, -np.inf).max(axis=1)
    of = np.arange(len(best)), choices.chosen
    return np.asarray((choices.utility[of] < best) | ~eligible[of])


def _with_replicas(
    able: NDArray[np.bool_], live: Live, verdict: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Of the models (n, k) that would do, those with replicas; all, where none has any.

    The others' verdict is changed. Our news may be old: a request is not refused for it.
    """
    if live.all_open:
        return able.copy()
    some = (able & live.model_open).any(axis=1)
    gone = able & ~live.model_open & some[:, None]
    verdict[gone] = Verdict.NO_REPLICA
    return able & ~gone


def _beyond(cost: Floats, charged: Placement, weights: Floats, live: Live) -> Floats:
    """What models are charged (n, k), beside their cost, where every pool is there and free.

    Fleets are sized by the demand that would be then. So a model counts with at least what its GPUs
    cost, even if its callers pay nothing, and money with at least what it is worth to the operator:
    callers who do not weigh money would otherwise demand the best model at any price.
    """
    usd = np.maximum(cost, live.least(charged.reference_usd))
    return charged.money[:, None] * usd - weights[:, 1:2] * cost


def _scale(weights: Floats, points: Floats, eligible: NDArray[np.bool_]) -> Floats:
    """The size (n, 1) of what is at stake, so that a policy explores alike whatever the units.

    A caller who weighs cost alone compares fractions of a cent; unscaled, a policy would take
    all models for equals. Only what a request may have counts: a model that is dear and not
    allowed must not make the others look alike.
    """
    mean = np.where(eligible, points, 0.0).sum(axis=1) / eligible.sum(axis=1)
    return np.maximum(weights[:, 0] + mean, 1e-12)[:, None]
