"""Requests as columns, what they would get of each model, and whom their limits leave.

    RequestBatch, Live ─▶ Expected: quality, cost, latency per model ─▶ verdicts ─▶ Left

Of quality and cost there are two figures. Models are compared by what is *estimated* of them. What
is said of a model, and what a request's limits are compared with, is *calibrated*: corrected by
how true such estimates turned out to be (`learners.estimates.calibration`). What limits mean:
`learners.policies.limits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from learners.context import Contexts
from learners.estimates.estimator import Estimates
from learners.policies.limits import good_enough, stale, strong_of, strong_passes, unsure
from learners.policies.policy import Mask
from learners.targets import COST_USD_MIN, Target
from learners.traits import Traits, columns_of
from serve.errors import ServeError, UnknownModel
from serve.routing.live import Live
from serve.routing.request import COLUMNS, RouteFields, RouteInput
from streams.feedback.said import NOTHING, Said

Floats = NDArray[np.float64]
Columns = TypeVar("Columns")


class Verdict(IntEnum):
    """Why a model was eligible for a request, or not. Stored in tickets: numbers never change."""

    ELIGIBLE = 0
    NOT_ALLOWED = 1
    TOO_DEAR = 2
    TOO_SLOW = 3
    PROMPT_TOO_LONG = 4
    NO_REPLICA = 5
    BELOW_QUALITY = 6
    STRONG_SHARE = 7
    OVER_BUDGET = 8
    RULED_OUT = 9
    NOT_PREFERRED = 10
    DRAINING = 11


# Of the fleet, of a budget or of what else there is now: the request itself excludes no such model.
PASSING = (Verdict.ELIGIBLE, Verdict.NO_REPLICA, Verdict.OVER_BUDGET, Verdict.NOT_PREFERRED)


@dataclass(slots=True, kw_only=True, eq=False)
class RequestBatch:
    """Columns of n requests against a catalogue of k models; not frozen, as `choices.Choices`."""

    contexts: Contexts  # (n, 64)
    prompt_tokens: Floats  # (n,) 0: unknown
    preference: Floats  # (n, 4) weights of quality, US dollars, seconds, kilojoules
    allowed: NDArray[np.bool_]  # (n, k)
    cost_usd_max: Floats  # (n,) infinity: no limit
    latency_ms_max: Floats  # (n,) likewise
    quality_min: Floats  # (n,) 0: no limit
    strong_share_max: Floats  # (n,) 1: no limit
    criticality: NDArray[np.int8]  # (n,) `learners.criticality.Criticality`
    # (n, k) what a session's other models would take longer; None where no session is held.
    switch_ms: Floats | None = None
    saved_usd: Floats | None = None  # (n, k) what models cost less, by what is in their caches
    tenants: NDArray[np.object_] | None = None  # (n,) names; None: nobody's
    said: NDArray[np.object_] | None = None  # (n,) of `Said`; None: nothing
    # (n, k) what the operator's rules leave, and what they prefer; None: no rule.
    left: NDArray[np.bool_] | None = None
    preferred: NDArray[np.bool_] | None = None
    # (n,) of a change under trial: where in [0, 1) each falls, whether it is its session's first
    draws: Floats | None = None
    first: NDArray[np.bool_] | None = None
    stated: NDArray[np.intp] | None = None  # (n,) the caller's own choice, −1: none

    def __len__(self) -> int:
        return len(self.contexts)

    def __getitem__(self, rows: NDArray[np.intp]) -> RequestBatch:
        return taken(self, rows)


def columns(inputs: Sequence[RouteFields]) -> dict[str, NDArray[Any]]:
    """The columns (n,) of the fields that are declared to have one, by name."""
    each = [_SAID(one) for one in inputs]
    if each.count(_NOTHING) == len(each):  # most requests
        return dict(_unsaid(len(each)))
    said = zip(*each, strict=True)
    # As numbers of 64 bits all at once: an array of each would cost a lone request six times that.
    table = np.array(
        [
            [unsaid if one is None else one for one in column]
            for column, unsaid in zip(said, _UNSAID, strict=True)
        ],
        np.float64,
    )
    found = dict(zip(COLUMNS, table, strict=True))
    for name, dtype in _OTHERS:
        found[name] = found[name].astype(dtype)
    return found


_SAID = attrgetter(*COLUMNS)
_UNSAID = [float(column.unsaid) for column in COLUMNS.values()]
_NOTHING = _SAID(RouteInput(weights=(0.0, 0.0, 0.0, 0.0)))
_OTHERS = [(name, column.dtype) for name, column in COLUMNS.items() if column.dtype != "f8"]


def allowed_of(
    asked: Sequence[RouteInput], live: Live, refused: dict[int, ServeError]
) -> NDArray[np.bool_]:
    """Which models each request lets in, (n, k); who names one that is unknown is refused."""
    allowed = np.empty((len(asked), len(live.catalogue)), bool)
    allowed.fill(True)
    for i, one in enumerate(asked):
        if one.allowed_models or one.denied_models or one.chosen_model:
            try:
                _columns_of("chosen_model", [one.chosen_model] * bool(one.chosen_model), live)
                if one.allowed_models:
                    allowed[i] = False
                    allowed[i, _columns_of("allowed_models", one.allowed_models, live)] = True
                allowed[i, _columns_of("denied_models", one.denied_models, live)] = False
            except UnknownModel as error:
                refused[i] = error
    return allowed


def _columns_of(field: str, names: Sequence[str], live: Live) -> list[int]:
    column_of = live.catalogue.column_of
    for name in names:
        if name not in column_of:
            raise UnknownModel(field, name[:100], live.catalogue.names)
    return [column_of[name] for name in names]


def stated_of(asked: Sequence[RouteInput], live: Live) -> NDArray[np.intp]:
    """Columns of the callers' own choices (n,), −1 where there is none. Raises UnknownModel."""
    said = [one.chosen_model for one in asked]
    return np.array(
        [_columns_of("chosen_model", [one], live)[0] if one else -1 for one in said], np.intp
    )


def said_of(asked: Sequence[RouteInput]) -> NDArray[np.object_] | None:
    """What requests say of themselves (n,); None where all say nothing."""
    found: NDArray[np.object_] | None = None
    for i, one in enumerate(asked):
        if one.task or one.tags or one.rules:
            found = np.full(len(asked), NOTHING, object) if found is None else found
            found[i] = Said(one.task, tuple(one.tags), one.rules)
    return found


def traits_of(requests: RequestBatch, live: Live) -> Traits | None:
    """What requests say of themselves, for the learner; None where it knows nothing of it."""
    assert requests.said is None or not live.plain_requests, "this view leaves out what is said"
    if live.estimator.effects is None:
        return None
    n = len(requests)
    tenants = [""] * n if requests.tenants is None else requests.tenants.tolist()
    said = [NOTHING] * n if requests.said is None else requests.said.tolist()
    if requests.said is None and not any(tenants):
        return None
    each = zip(tenants, said, strict=True)
    return columns_of(((one.task, one.tags, tenant) for tenant, one in each), n)


def unsaid_columns(n: int) -> dict[str, NDArray[Any]]:
    """The same of n requests that say nothing."""
    return {name: np.full(n, unsaid, dtype) for name, (unsaid, dtype) in COLUMNS.items()}


@lru_cache(maxsize=64)
def _unsaid(n: int) -> dict[str, NDArray[Any]]:
    """The same, only to be read: it is handed out again."""
    found = unsaid_columns(n)
    for column in found.values():
        column.flags.writeable = False
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What n requests would get of k models, (n, k) each, before any capacity is charged."""

    quality: Floats  # as estimated: models are compared by this and the next
    cost_usd: Floats
    success: Floats  # calibrated: limits are compared with this and the next, and this is said
    success_deviation: Floats  # of a single outcome
    paid_usd: Floats
    cost_usd_deviation: Floats
    latency_ms: Floats
    latency_ms_deviation: Floats
    list_usd: Floats  # the cost by the catalogue, that the learned one is a ratio of
    estimated_quality: Floats  # what calibration is learned from: if no call failed
    estimated_usd: Floats  # likewise; NaN where it was not estimated


def expected_of(requests: RequestBatch, live: Live, estimates: Estimates) -> Expected:
    """Estimate n requests."""
    list_usd = live.catalogue.expected_cost_usd(requests.prompt_tokens)
    if requests.saved_usd is not None:
        list_usd = np.maximum(list_usd - requests.saved_usd, 0.0)
    mean, noise = estimates.mean.astype(np.float64), estimates.noise.astype(np.float64)
    estimated, answered = np.clip(mean[:, :, Target.QUALITY], 0.0, 1.0), 1.0 - live.error_share
    success, off = estimated, np.hypot(estimates.deviation, noise[:, Target.QUALITY])
    estimated_usd = paid = cost = list_usd * mean[:, :, Target.COST]
    if (calibration := estimates.calibration) is not None:
        success, off = calibration.quality(estimated), calibration.deviation(estimated, off)
        paid = cost * calibration.cost_factor
    free = list_usd < COST_USD_MIN
    if free.any():  # where nothing is stated there is no ratio; what was paid on average counts
        cost = paid = np.where(free, live.paid_usd, cost)
        estimated_usd = np.where(free, np.nan, estimated_usd)
    latency = live.catalogue.latency_ms * mean[:, :, Target.LATENCY]
    if requests.switch_ms is not None:
        latency = latency + requests.switch_ms
    return Expected(
        estimated * answered,
        cost,
        success * answered,
        off,
        paid,
        list_usd * noise[:, Target.COST],
        latency,
        live.catalogue.latency_ms * np.ones_like(cost) * noise[:, Target.LATENCY],
        list_usd,
        estimated,
        estimated_usd,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Left:
    """Who is left (n, k) by the limits of n requests, see `learners.policies.limits`."""

    eligible: Mask
    below: Mask  # (n,) nobody is good enough
    trials: Mask
    # With which probability (n,) the strong model is, and who is left without it; None where
    # that is certain for all.
    passes: Floats | None
    without_strong: Mask | None


def left_by(
    requests: RequestBatch,
    live: Live,
    estimates: Estimates,
    expected: Expected,
    eligible: Mask,
    verdict: NDArray[np.uint8],
) -> Left:
    """Apply the limits on quality and on the strong model's share; verdicts are changed."""
    n, share = len(requests), requests.strong_share_max
    good = expected.success >= requests.quality_min[:, None]
    trials = _stale(requests, live, expected, verdict) & good
    passes, strong = np.ones(n), np.zeros(n, np.intp)
    if (share < 1.0).any():
        assert not live.plain_requests, "this view leaves out what is usual"
        price = live.catalogue.expected_cost_usd(np.zeros(1))[0]
        strong = strong_of(eligible, live.reference, price)
        passes = strong_passes(share, eligible, strong, expected.success, live.reference)
        gone = np.flatnonzero(passes == 0.0)
        verdict[gone, strong[gone]] = Verdict.STRONG_SHARE
        eligible[gone, strong[gone]] = False
    left, below = good_enough(requests.quality_min, eligible, expected.success)
    out = eligible & ~left
    if out.any():
        verdict[out] = Verdict.BELOW_QUALITY
        trials |= unsure(
            requests.quality_min,
            out,
            left,
            expected.success,
            estimates.deviation.astype(np.float64),
            expected.paid_usd,
        )
    at = np.flatnonzero((passes > 0.0) & (passes < 1.0))
    if not len(at):
        return Left(left, below, trials, None, None)
    others = eligible.copy()
    others[at, strong[at]] = False
    without = others & left
    without = np.where(without.any(axis=1, keepdims=True), without, others)
    return Left(left, below, trials, np.where(passes == 0.0, 1.0, passes), without)


def _stale(
    requests: RequestBatch, live: Live, expected: Expected, verdict: NDArray[np.uint8]
) -> Mask:
    """Who (n, k) is too dear or too slow by a stale estimate alone."""
    slow, dear = verdict == Verdict.TOO_SLOW, verdict == Verdict.TOO_DEAR
    if not (slow | dear).any():
        return np.zeros(verdict.shape, bool)
    stated_ms = np.broadcast_to(live.catalogue.latency_ms, verdict.shape)
    (cost, latency), (n_cost, n_latency) = live.recent_ratios, live.n_recent_ratios
    ms_max, usd_max, usd = requests.latency_ms_max, requests.cost_usd_max, expected.list_usd
    dated_slow = stale(stated_ms * latency, stated_ms, ms_max, n_latency)
    measured = np.where(usd < COST_USD_MIN, live.recent_usd, usd * cost)
    dated_dear = stale(measured, usd, usd_max, n_cost)
    # A model that is out for two reasons is tried only if both are stale.
    slow_too = expected.latency_ms > ms_max[:, None]
    found = np.where(dear, dated_dear & (dated_slow | ~slow_too), dated_slow) & (slow | dear)
    return found & live.model_open


def weights_of(requests: RequestBatch, money: Floats, below: Mask) -> Floats:
    """What counts (n, 4): the preference; or, by `quality_min`, cost among those good enough, and
    quality where nobody is.
    """
    asked = requests.quality_min > 0.0
    if not asked.any():
        return requests.preference
    cheapest = np.zeros((len(requests), 4))
    cheapest[:, 1], cheapest[:, 3] = money, requests.preference[:, 3]
    weights = np.where(asked[:, None], cheapest, requests.preference)
    weights[below] = [1.0, 0.0, 0.0, 0.0]
    return weights


def verdicts_of(
    requests: RequestBatch, live: Live, cost: Floats, latency: Floats
) -> NDArray[np.uint8]:
    """Verdicts (n, k); where several apply, the one a caller can do least about stays."""
    verdict = np.where(latency > requests.latency_ms_max[:, None], Verdict.TOO_SLOW, 0)
    verdict[cost > requests.cost_usd_max[:, None]] = Verdict.TOO_DEAR
    too_long = requests.prompt_tokens[:, None] > live.catalogue.context_tokens_max
    verdict[too_long] = Verdict.PROMPT_TOO_LONG
    if requests.left is not None:
        verdict[~requests.left] = Verdict.RULED_OUT
    verdict[~requests.allowed] = Verdict.NOT_ALLOWED
    verdict[:, live.catalogue.model_draining] = Verdict.DRAINING
    return verdict.astype(np.uint8)


def guarded(requests: RequestBatch, live: Live, ruled: Sequence[str]) -> RequestBatch:
    """Requests that are far from everything seen are marked, and prefer the guard's model.

    `ruled` (n,) is what rules say of each: "on", "off", or nothing.
    """
    if live.guard is None or live.novelty is None:
        return requests
    far, said = live.novelty.far(requests.contexts), np.array(ruled)
    far = (far | (said == "on")) & (said != "off")
    if not far.any():
        return requests
    every = np.ones(requests.allowed.shape, bool)
    preferred = every if requests.preferred is None else requests.preferred.copy()
    preferred[far] = False
    preferred[far, live.guard] = True
    marked = np.full(len(requests), NOTHING, object) if requests.said is None else requests.said
    marked = marked.copy()
    for row in np.flatnonzero(far).tolist():
        marked[row] = msgspec.structs.replace(marked[row], guarded=True)
    return replace(requests, preferred=preferred, said=marked)


def preferred_of(
    requests: RequestBatch,
    eligible: Mask,
    verdict: NDArray[np.uint8],
    holds: Mask | None = None,
) -> NDArray[np.bool_]:
    """Of the models (n, k) that would do, those that rules prefer; all, where they prefer none.

    Nor is one preferred that no budget `holds`, if it is known. The others' verdict is changed.
    """
    if requests.preferred is None:
        return eligible
    wanted = requests.preferred if holds is None else requests.preferred & holds
    some = (eligible & wanted).any(axis=1, keepdims=True)
    others = eligible & ~requests.preferred & some
    verdict[others] = Verdict.NOT_PREFERRED
    return eligible & ~others


def with_replicas(able: Mask, live: Live, verdict: NDArray[np.uint8]) -> Mask:
    """Of the models (n, k) that would do, those with replicas; all, where none has any.

    The others' verdict is changed. Our news may be old: a request is not refused for it.
    """
    if live.all_open:
        return able.copy()
    some = (able & live.model_open).any(axis=1)
    gone = able & ~live.model_open & some[:, None]
    verdict[gone] = Verdict.NO_REPLICA
    return able & ~gone


def taken(of: Columns, rows: NDArray[np.intp], second: Sequence[str] = ()) -> Columns:
    """Some rows of a dataclass of columns; in those named `second`, rows are the second axis."""
    held: Any = of
    columns = ((field.name, getattr(held, field.name)) for field in fields(held))
    some = {
        name: column[:, rows] if name in second else column[rows]
        for name, column in columns
        if column is not None
    }
    found: Columns = replace(held, **some)
    return found
