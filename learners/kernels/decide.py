"""Utilities, probabilities and draws of requests that nothing makes special, in a few calls.

    estimates, catalogue, preferences ─weigh─▶ expected figures, utility, what a policy weighs
    what a policy weighs ─squarecb, thompson─▶ probabilities ──pick──▶ chosen

The same bits as numpy gives (`serve.routing.router`, `learners.policies`): what it adds pairwise
is added pairwise here, and its logarithms come in a table. `weigh` finds out whether a request
needs more than it does: a limit keeps a model out by what was learned alone, or the strong model is
limited.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learners.kernels.compiled import compiled, inlined
from learners.kernels.draws import pick, thompson

__all__ = ["pick", "squarecb", "thompson", "weigh"]  # of which a decision is made

# Columns (n, k) that `weigh` fills in. The first eleven are `serve.routing.choices.FIGURES`. The
# last eight are what a policy weighs (utility, deviation, its part that no context changes; and in
# which unit), and the same if all capacity were there and free.
UTILITY, UNSURE, SUCCESS, PAID, LATENCY, SUCCESS_OFF, COST_OFF, LATENCY_OFF = range(8)
LIST, ESTIMATED, ESTIMATED_USD, FREE, BEYOND, QUALITY, COST = range(8, 15)
SCORED, SCORED_FREE = 15, 19
N_COLUMNS = 23
# Rows (k,) of what is known of each model.
PER_TOKEN, FIXED_USD, STATED_MS, TOKENS_MAX, ANSWERED, PAID_ON_AVERAGE, COST_FACTOR = range(7)
NOISE, OFF = 7, 10  # each of three targets
TAKES = 13  # how a model takes requests now, one of the next three
N_ROWS = 14
OPEN, CLOSED, DRAINED = 0.0, 1.0, 2.0
# What leaving a session's model costs (n, k): milliseconds more, US dollars less.
SWITCH_MS, SAVED_USD = range(2)
# What the operator's rules leave, and what they prefer (n, k).
LEFT, PREFERRED = range(2)
# What of capacity is charged at each model's best pool (n, k): in all, for energy; at list price.
POINTS, ENERGY, REFERENCE_USD = range(3)
# Rows (n,) of what requests say.
TOKENS, USD_MAX, MS_MAX, QUALITY_MIN, STRONG_SHARE_MAX = range(5)
# Settings: a prompt's tokens where none are said, a point's worth, the budget's price; and of
# `learners.estimates.calibration`: steps, bins, weight, of `learners.targets`: the least cost, of
# `learners.policies.limits`: when an estimate is unsure; the largest doubt in costs and times.
TOKENS_USUAL, VALUE_USD, BUDGET, STEPS, BINS, OWN_WEIGHT, COST_USD_MIN, UNSURE_BY, DOUBT = range(9)
# Verdicts, as in `serve.routing.eligible`.
ELIGIBLE, NOT_ALLOWED, TOO_DEAR = np.uint8(0), np.uint8(1), np.uint8(2)
TOO_SLOW, PROMPT_TOO_LONG, BELOW_QUALITY = np.uint8(3), np.uint8(4), np.uint8(6)
NO_REPLICA, DRAINING = np.uint8(5), np.uint8(11)
RULED_OUT, NOT_PREFERRED = np.uint8(9), np.uint8(10)
# What is found of models (n, k): who is eligible, who is to be tried, who would be eligible if all
# had replicas; of requests (n,): whether somebody is eligible, and nobody good enough.
MAY, TRIED, MIGHT = range(3)
FITS, BELOW = range(2)
# Flags. Found: whether it can be done here, whether charges change anything, whether anybody is to
# be tried. Asked for: what a policy weighs if capacity were free also where that is the same.
PLAIN, AGAIN, BOTH, TRIALS = range(4)

MATRIX, CUBE, COLUMN = "float64[:,::1]", "float64[:,:,::1]", "float64[::1]"
MASK, MASKS, FLAGS = "boolean[:,::1]", "boolean[:,:,::1]", "boolean[::1]"


@inlined
def _few(values: Any, first: Any, n: Any) -> Any:
    if n < 8:
        total = 0.0
        for i in range(first, first + n):
            total += values[i]
        return total
    a, b, c, d = values[first], values[first + 1], values[first + 2], values[first + 3]
    e, f, g, h = values[first + 4], values[first + 5], values[first + 6], values[first + 7]
    end = first + n - n % 8
    for i in range(first + 8, end, 8):
        a, b, c, d = a + values[i], b + values[i + 1], c + values[i + 2], d + values[i + 3]
        e, f, g, h = e + values[i + 4], f + values[i + 5], g + values[i + 6], h + values[i + 7]
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(end, first + n):
        total += values[i]
    return total


@inlined
def _some(values: Any, first: Any, n: Any) -> Any:
    if n <= 128:
        return _few(values, first, n)
    half = n // 2 - n // 2 % 8
    return _few(values, first, half) + _few(values, first + half, n - half)


@inlined
def _sum(values: Any, n: Any) -> Any:
    """As numpy adds up to 255 numbers in a row: pairwise, eight at a time."""
    if n <= 128:
        return _few(values, 0, n)
    half = n // 2 - n // 2 % 8
    return _some(values, 0, half) + _some(values, half, n - half)


@compiled(MATRIX, MASK, "float64", MATRIX)
def squarecb(utility: Any, allowed: Any, gamma: Any, p: Any) -> None:
    """Fill in the probabilities of `inverse_gap.SquareCb`."""
    n, k = utility.shape
    for i in range(n):
        best, count = -1, 0
        for m in range(k):
            if allowed[i, m]:
                count += 1
                if best < 0 or utility[i, m] > utility[i, best]:
                    best = m
        for m in range(k):
            gap = utility[i, best] - utility[i, m]
            p[i, m] = 1.0 / (count + gamma * gap) if allowed[i, m] and m != best else 0.0
        p[i, best] = 1.0 - _sum(p[i], k)


@inlined
def _expect(
    c: Any,
    i: Any,
    m: Any,
    mean: Any,
    deviation: Any,
    models: Any,
    curves: Any,
    spreads: Any,
    tokens: Any,
    stays: Any,
    settings: Any,
) -> None:
    """What request i would get of model m: `eligible.expected_of`."""
    list_usd = tokens * models[PER_TOKEN, m] + models[FIXED_USD, m]
    late_ms = 0.0
    if len(stays):
        list_usd = max(list_usd - stays[SAVED_USD, i, m], 0.0)
        late_ms = stays[SWITCH_MS, i, m]
    estimated = min(max(np.float64(mean[i, m, 0]), 0.0), 1.0)
    success = estimated
    off = math.hypot(np.float64(deviation[i, m]), models[NOISE, m])
    cost = list_usd * np.float64(mean[i, m, 1])
    paid = cost
    if len(curves):
        steps, bins = int(settings[STEPS]), int(settings[BINS])
        place = estimated * settings[STEPS]
        below = min(int(place), steps - 1)
        low = curves[m, below]
        success = low + (place - below) * (curves[m, below + 1] - low)
        at = min(int(estimated * settings[BINS]), bins - 1)
        weight = settings[OWN_WEIGHT]
        squares = spreads[0, m, at] + weight * (off * off)
        off = math.sqrt(squares / (spreads[1, m, at] + weight))
        paid = cost * models[COST_FACTOR, m]
    estimated_usd = cost
    if list_usd < settings[COST_USD_MIN]:  # nothing is stated: what was paid on average counts
        cost = paid = models[PAID_ON_AVERAGE, m]
        estimated_usd = math.nan
    c[QUALITY, i, m] = estimated * models[ANSWERED, m]
    c[COST, i, m] = cost
    c[SUCCESS, i, m] = success * models[ANSWERED, m]
    c[SUCCESS_OFF, i, m] = off
    c[PAID, i, m] = paid
    c[COST_OFF, i, m] = list_usd * models[NOISE + 1, m]
    c[LATENCY, i, m] = models[STATED_MS, m] * np.float64(mean[i, m, 2]) + late_ms
    c[LATENCY_OFF, i, m] = models[STATED_MS, m] * models[NOISE + 2, m]
    c[LIST, i, m] = list_usd
    c[ESTIMATED, i, m] = estimated
    c[ESTIMATED_USD, i, m] = estimated_usd


@inlined
def _score(
    c: Any,
    i: Any,
    models: Any,
    utility: Any,
    charges: Any,
    energy: Any,
    weights: Any,
    eligible: Any,
    most: Any,
    into: Any,
    terms: Any,
) -> None:
    """What a policy weighs of request i, in units of what is at stake: `router._scores`."""
    k, n_eligible = len(terms), 0
    for m in range(k):
        terms[m] = 0.0
        if eligible[i, m]:
            n_eligible += 1
            terms[m] = weights[1] * c[COST, i, m] + weights[2] * (c[LATENCY, i, m] / 1000.0)
            terms[m] += charges[m]
    scale = max(weights[0] + _sum(terms, k) / n_eligible, 1e-12)
    for m in range(k):
        money = weights[1] * min(c[LIST, i, m] * models[OFF + 1, m], most * c[COST, i, m])
        time = min(models[STATED_MS, m] * models[OFF + 2, m], most * c[LATENCY, i, m])
        time = weights[2] * (time / 1000.0)
        power = energy[m] * models[OFF + 1, m]
        others = money * money + time * time + power * power
        of_model = weights[0] * models[OFF, m]
        unsure = c[UNSURE, i, m]
        c[into, i, m] = utility[m] / scale
        c[into + 1, i, m] = math.sqrt(unsure * unsure + others) / scale
        c[into + 2, i, m] = math.sqrt(of_model * of_model + others) / scale
        c[into + 3, i, m] = scale


@inlined
def _admit(c: Any, i: Any, models: Any, allowed: Any, asked: Any, ruled: Any, verdict: Any) -> Any:
    """Verdicts of request i; False where a limit keeps a model out that is perhaps to be tried."""
    for m in range(verdict.shape[1]):
        verdict[i, m] = ELIGIBLE
        if models[TAKES, m] == DRAINED:
            verdict[i, m] = DRAINING
        elif not allowed[i, m]:
            verdict[i, m] = NOT_ALLOWED
        elif len(ruled) and not ruled[LEFT, i, m]:
            verdict[i, m] = RULED_OUT
        elif asked[TOKENS, i] > models[TOKENS_MAX, m]:
            verdict[i, m] = PROMPT_TOO_LONG
        elif c[PAID, i, m] > asked[USD_MAX, i]:
            stale = c[LIST, i, m] <= asked[USD_MAX, i]  # perhaps: it is by what was learned alone
            if stale and models[TAKES, m] == OPEN:
                return False
            verdict[i, m] = TOO_DEAR
        elif c[LATENCY, i, m] > asked[MS_MAX, i]:
            if models[STATED_MS, m] <= asked[MS_MAX, i] and models[TAKES, m] == OPEN:
                return False
            verdict[i, m] = TOO_SLOW
    return True


@inlined
def _place(i: Any, models: Any, verdict: Any) -> None:
    """Leave to request i those with replicas, where there are any: `eligible.with_replicas`."""
    some, k = False, verdict.shape[1]
    for m in range(k):
        some |= verdict[i, m] == ELIGIBLE and models[TAKES, m] == OPEN
    for m in range(k):
        if some and verdict[i, m] == ELIGIBLE and models[TAKES, m] != OPEN:
            verdict[i, m] = NO_REPLICA


@inlined
def _might(c: Any, i: Any, least: Any, verdict: Any, eligible: Any, might: Any) -> Any:
    """Who would be left to request i if all had replicas; whether they are others."""
    good, some, differ, k = False, False, False, verdict.shape[1]
    for m in range(k):
        might[i, m] = verdict[i, m] == ELIGIBLE or verdict[i, m] == NO_REPLICA
        some |= might[i, m]
        good |= might[i, m] and c[SUCCESS, i, m] >= least
    for m in range(k):
        might[i, m] = (might[i, m] or not some) and (c[SUCCESS, i, m] >= least or not good)
        differ |= might[i, m] != eligible[i, m]
    return differ


@inlined
def _prefer(i: Any, ruled: Any, verdict: Any) -> None:
    """Leave to request i those that rules prefer, where there are any: `eligible.preferred_of`."""
    some, k = False, verdict.shape[1] if len(ruled) else 0
    for m in range(k):
        some |= verdict[i, m] == ELIGIBLE and ruled[PREFERRED, i, m]
    for m in range(k):
        if some and verdict[i, m] == ELIGIBLE and not ruled[PREFERRED, i, m]:
            verdict[i, m] = NOT_PREFERRED


@inlined
def _enough(
    c: Any, i: Any, deviation: Any, least: Any, unsure: Any, verdict: Any, tried: Any
) -> Any:
    """Leave to request i those that are good enough, and say whom to try: `limits.good_enough`.

    True where nobody is, though somebody is eligible: then all stay.
    """
    some, enough, cheapest = False, False, math.inf
    k = verdict.shape[1]
    if not least > 0.0:
        tried[i] = False
        return False
    for m in range(k):
        some |= verdict[i, m] == ELIGIBLE
        if verdict[i, m] == ELIGIBLE and c[SUCCESS, i, m] >= least:
            enough = True
            cheapest = min(cheapest, c[PAID, i, m])
    for m in range(k):
        out = enough and verdict[i, m] == ELIGIBLE and not c[SUCCESS, i, m] >= least
        perhaps = c[SUCCESS, i, m] + unsure * np.float64(deviation[i, m]) >= least
        tried[i, m] = out and c[PAID, i, m] < cheapest and perhaps
        if out:
            verdict[i, m] = BELOW_QUALITY
    return some and not enough


@inlined
def _weights(said: Any, least: Any, below: Any, money: Any, weights: Any) -> None:
    """What counts for a request: `eligible.weights_of`."""
    weights[:] = said
    if below:
        weights[0], weights[1], weights[2], weights[3] = 1.0, 0.0, 0.0, 0.0
    elif least > 0.0:
        weights[0], weights[1], weights[2] = 0.0, money, 0.0


@inlined
def _value(
    c: Any,
    i: Any,
    weights: Any,
    money: Any,
    charges: Any,
    settings: Any,
    charged: Any,
    energy: Any,
) -> Any:
    """Utilities of request i, also as if capacity were free; whether they differ."""
    differ = False
    for m in range(len(charged)):
        points = reference_usd = 0.0
        if len(charges):
            points, energy[m] = charges[POINTS, i, m], charges[ENERGY, i, m]
            reference_usd = charges[REFERENCE_USD, i, m]
            charged[m] = abs(points)
        cost = c[COST, i, m]
        free = weights[0] * c[QUALITY, i, m] - weights[1] * cost
        free -= weights[2] * (c[LATENCY, i, m] / 1000.0)
        c[UTILITY, i, m] = free - points
        if settings[BUDGET] > 0.0:
            c[UTILITY, i, m] -= money * (settings[BUDGET] * cost)
        beyond = money * max(cost, reference_usd) - weights[1] * cost
        c[BEYOND, i, m], c[FREE, i, m] = beyond, free - beyond
        differ |= c[UTILITY, i, m] != free - beyond
    return differ


@compiled(
    "float32[:,:,::1]",
    "float32[:,::1]",
    MATRIX,
    MATRIX,
    CUBE,
    MATRIX,
    MASK,
    MATRIX,
    CUBE,
    MASKS,
    CUBE,
    COLUMN,
    CUBE,
    "uint8[:,::1]",
    MASKS,
    MASK,
    MATRIX,
    FLAGS,
)
def weigh(
    mean: Any,
    deviation: Any,
    models: Any,
    curves: Any,
    spreads: Any,
    preference: Any,
    allowed: Any,
    asked: Any,
    stays: Any,
    ruled: Any,
    charges: Any,
    settings: Any,
    c: Any,
    verdict: Any,
    models_found: Any,
    requests_found: Any,
    weighed: Any,
    found: Any,
) -> None:
    """Fill in the columns `c`, verdicts, what is found, and what counts for requests (n, 4).

    `curves` (k, steps + 1) and `spreads` (2, k, bins) calibrate; without rows nothing is. Without
    `charges` capacity costs nothing, without `stays` no session is held, without `ruled` nothing is
    ruled. Where nobody is eligible (`FITS` is False) all are taken to be: the request is refused.
    """
    n, k = deviation.shape
    terms, charged, energy = np.empty(k), np.zeros(k), np.zeros(k)
    eligible, tried, fits = models_found[MAY], models_found[TRIED], requests_found[FITS]
    might = models_found[MIGHT]
    found[PLAIN], found[AGAIN], found[TRIALS], most = False, False, False, settings[DOUBT]
    for i in range(n):
        if asked[STRONG_SHARE_MAX, i] < 1.0:
            return
        tokens, least = asked[TOKENS, i], asked[QUALITY_MIN, i]
        tokens = tokens if tokens > 0.0 else settings[TOKENS_USUAL]
        for m in range(k):
            _expect(c, i, m, mean, deviation, models, curves, spreads, tokens, stays, settings)
        if not _admit(c, i, models, allowed, asked, ruled, verdict):
            return
        _place(i, models, verdict)
        _prefer(i, ruled, verdict)
        below = _enough(c, i, deviation, least, settings[UNSURE_BY], verdict, tried)
        found[TRIALS] |= tried[i].any()
        requests_found[BELOW, i], weights = below, weighed[i]
        money = max(preference[i, 1], preference[i, 0] / settings[VALUE_USD])
        _weights(preference[i], least, below, money, weights)
        fits[i] = (verdict[i] == ELIGIBLE).any()
        for m in range(k):
            eligible[i, m] = verdict[i, m] == ELIGIBLE or not fits[i]
            c[UNSURE, i, m] = weights[0] * np.float64(deviation[i, m])
        differ = _value(c, i, weights, money, charges, settings, charged, energy)
        differ |= _might(c, i, least, verdict, eligible, might)
        found[AGAIN] |= differ or not fits[i]
        _score(c, i, models, c[UTILITY, i], charged, energy, weights, eligible, most, SCORED, terms)
    found[PLAIN] = True
    if not (found[AGAIN] or found[BOTH]):
        return
    for i in range(n):
        power = charges[ENERGY, i] if len(charges) else energy
        utility, beyond, weights = c[FREE, i], c[BEYOND, i], weighed[i]
        _score(c, i, models, utility, beyond, power, weights, might, most, SCORED_FREE, terms)
