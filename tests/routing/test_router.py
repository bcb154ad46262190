"""The router as a pure function: every number by hand, every verdict enumerated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from estimated import Estimated, requests
from hypothesis import given, settings
from hypothesis import strategies as st
from router_bench import NOON_MS, catalogue, outcomes

from learners.context import BIAS, BIAS_FEATURE, N_FEATURES
from learners.estimates.learned import Learned, MemoryOptions
from learners.policies.greedy import EpsilonGreedy, Greedy
from learners.policies.inverse_gap import SquareCb
from learners.policies.policy import Policy
from learners.policies.thompson import Thompson
from learners.policies.upper_confidence import LinUcb
from serve.routing.catalogue import Model, Pool
from serve.routing.choices import FIGURES, Choices
from serve.routing.eligible import RequestBatch, Verdict
from serve.routing.live import Live, LiveOptions
from serve.routing.load_tracker import LoadTracker
from serve.routing.placement import PlacementOptions
from serve.routing.router import route as route_in_crowd
from streams.training.prices import PricingOptions

POLICIES = (Greedy(), EpsilonGreedy(), LinUcb(), Thompson(), SquareCb())
lightly = settings(max_examples=60)


def route(asked: RequestBatch, live: Live, policy: Policy, draws: np.ndarray) -> Choices:
    """Decide where no pool is crowded; nobody is shed."""
    pool_load = LoadTracker(PricingOptions()).now(live, 0)
    uniform = np.stack([draws, np.full(len(draws), 0.99)], axis=1)
    return route_in_crowd(asked, live, pool_load, policy, uniform, None, PlacementOptions())


TWO = [
    Model(name="cheap", usd_per_call=0.001, latency_ms=500.0),
    Model(name="dear", usd_per_call=0.010, latency_ms=2000.0),
]


def taught(n_outcomes: int = 40) -> Live:
    """A real view of three models, of which something has been learned."""
    learned = Learned(MemoryOptions())
    rng = np.random.default_rng(5)
    for model, quality in (("small", 0.2), ("medium", 0.5), ("large", 0.9)):
        batch = outcomes(model, n=n_outcomes, quality=quality, latency_ms=700.0)
        contexts = rng.integers(-40, 40, batch.contexts.shape).astype(np.int8)
        contexts[:, BIAS_FEATURE] = BIAS
        batch.contexts[:] = contexts
        learned.update(batch)
    learned.history.settle()
    return Live(catalogue(), learned, "encoder", LiveOptions())


# --- the formula -----------------------------------------------------------------------------------


def test_utility_is_the_documented_formula():
    """
    quality · predicted quality − cost · predicted USD − latency · predicted seconds, where cost
    and latency are the learned ratios of what the catalogue states.
    """
    mean = [[[0.8, math.log(2), math.log(0.5)], [0.9, 0.0, math.log(3)]]]
    noise = [[0.1, 0.4, 0.6], [0.1, 0.2, 0.0]]
    live = Estimated(mean, noise=noise, error_share=[0.25, 0.0], models=TWO)

    choices = route(requests(preference=[[2.0, 30.0, 0.5, 0.0]]), live, Greedy(), np.zeros(1))

    quality = [0.8 * 0.75, 0.9]  # a failed call is worth nothing
    cost = [0.001 * 2, 0.010]
    latency = [500 * 0.5, 2000 * 3.0]
    by_hand = [
        2 * q - 30 * c - 0.5 * t / 1000 for q, c, t in zip(quality, cost, latency, strict=True)
    ]
    np.testing.assert_allclose(choices.utility, [by_hand], rtol=1e-6)
    np.testing.assert_allclose(choices.quality, [quality], rtol=1e-6)
    np.testing.assert_allclose(choices.cost_usd, [cost], rtol=1e-6)
    np.testing.assert_allclose(choices.latency_ms, [latency], rtol=1e-6)


def test_deviations_are_those_of_single_outcomes():
    """
    Quality: doubt about the estimate and noise around it, together. Cost and latency: the
    ratio's, times what is stated.
    """
    live = Estimated(
        [[[0.5, 0.0, 0.0]] * 2],
        deviation=[[0.3, 0.0]],
        noise=[[0.4, 0.5, 0.2], [0.1, 0.0, 1.0]],
        models=TWO,
    )

    choices = route(requests(), live, Greedy(), np.zeros(1))

    np.testing.assert_allclose(choices.quality_deviation, [[0.5, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(choices.cost_usd_deviation, [[0.001 * 0.5, 0.0]], rtol=1e-5)
    np.testing.assert_allclose(choices.latency_ms_deviation, [[500 * 0.2, 2000 * 1.0]], rtol=1e-5)


@pytest.mark.parametrize(("estimated", "counted"), [(-0.4, 0.0), (0.4, 0.4), (1.7, 1.0)])
def test_quality_stays_between_zero_and_one(estimated, counted):
    """
    A linear model may point beyond the scale; a decision never does.
    """
    live = Estimated([[[estimated, 0, 0], [0.5, 0, 0]]], models=TWO)

    choices = route(requests(), live, Greedy(), np.zeros(1))

    assert choices.quality[0, 0] == pytest.approx(counted)


def test_longer_prompts_cost_more_and_unknown_ones_the_stated_length():
    """
    Tokens × price per token, plus what an answer and a call cost; 0 tokens means the catalogue's.
    """
    models = [
        Model(
            name="m",
            usd_per_1m_input_tokens=2.0,
            usd_per_1m_output_tokens=8.0,
            output_tokens=250,
            usd_per_call=0.001,
        )
    ]
    live = Estimated([[[0.5, 0, 0]]] * 3, models=models)

    choices = route(requests(3, 1, prompt_tokens=[0, 500, 10_000]), live, Greedy(), np.zeros(3))

    fixed = 250 * 8e-6 + 0.001
    by_hand = [[500 * 2e-6 + fixed], [500 * 2e-6 + fixed], [10_000 * 2e-6 + fixed]]
    np.testing.assert_allclose(choices.expected_cost_usd, by_hand)
    np.testing.assert_allclose(choices.cost_usd, by_hand)


# --- who is eligible -------------------------------------------------------------------------------

ORDER = (Verdict.NOT_ALLOWED, Verdict.PROMPT_TOO_LONG, Verdict.TOO_DEAR, Verdict.TOO_SLOW)


@pytest.mark.parametrize("against", list(itertools.product([False, True], repeat=4)))
def test_verdict_names_what_the_caller_can_do_least_about(against):
    """
    Every combination of reasons against a model gives the first of: not allowed, prompt too long,
    too dear, too slow; none of them gives eligible. The other model is not affected.
    """
    denied, too_long, too_dear, too_slow = against
    models = [
        Model(name="m", usd_per_call=0.01, latency_ms=1000, context_tokens_max=100),
        Model(name="other", usd_per_call=1e-6, latency_ms=1),
    ]
    asked = requests(
        allowed=[[not denied, True]],
        prompt_tokens=[101.0 if too_long else 100.0],
        cost_usd_max=[0.0099 if too_dear else 0.01],
        latency_ms_max=[999.0 if too_slow else 1000.0],
    )

    choices = route(asked, Estimated([[[0.5, 0, 0]] * 2], models=models), Greedy(), np.zeros(1))

    expected = next((v for v, holds in zip(ORDER, against, strict=True) if holds), 0)
    assert choices.verdict.tolist() == [[expected, Verdict.ELIGIBLE]]
    assert choices.fits.tolist() == [True]


def test_verdicts_keep_their_numbers():
    """
    Tickets of last week carry them.
    """
    assert {v.name: v.value for v in Verdict} == {
        "ELIGIBLE": 0,
        "NOT_ALLOWED": 1,
        "TOO_DEAR": 2,
        "TOO_SLOW": 3,
        "PROMPT_TOO_LONG": 4,
        "NO_REPLICA": 5,
        "BELOW_QUALITY": 6,
        "STRONG_SHARE": 7,
        "OVER_BUDGET": 8,
        "RULED_OUT": 9,
        "NOT_PREFERRED": 10,
        "DRAINING": 11,
    }


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_ineligible_model_has_probability_zero_whatever_it_scored(policy):
    """
    The one rule, for every policy, against the best imaginable score, for every draw.
    """
    draws = np.linspace(0.0, 1.0, 101)[:-1]
    n = len(draws)
    live = Estimated([[[1.0, -8, -8], [0.01, 0, 0]]] * n, deviation=[[9.0, 0.0]] * n, models=TWO)

    choices = route(requests(n, allowed=[[False, True]] * n), live, policy, draws)

    assert (choices.propensity[:, 0] == 0.0).all()
    assert (choices.propensity[:, 1] == 1.0).all()
    assert (choices.chosen == 1).all()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_a_model_that_is_not_allowed_does_not_change_exploration_among_the_others(policy):
    """
    Though it costs 600 USD a call, which would dwarf what the others differ by.
    """
    dear = Model(name="dearest", usd_per_call=600.0, latency_ms=90_000.0)
    estimates = [[0.8, 0, 0], [0.85, 0, 0]]
    weights = [[1.0, 20.0, 0.01, 0.0]]
    two = Estimated([estimates], deviation=[[0.1, 0.1]], models=TWO)
    three = Estimated([[*estimates, [0.9, 0, 0]]], deviation=[[0.1] * 3], models=[*TWO, dear])

    alone = route(requests(preference=weights), two, policy, np.zeros(1))
    beside = route(
        requests(1, 3, preference=weights, allowed=[[True, True, False]]),
        three,
        policy,
        np.zeros(1),
    )

    np.testing.assert_allclose(beside.propensity[0, :2], alone.propensity[0], atol=1e-12)


def test_request_that_nothing_fits_is_flagged_and_its_neighbours_are_not():
    """
    A row without a model says so; the rows around it are decided as if it were not there.
    """
    live = Estimated([[[0.5, 0, 0], [0.6, 0, 0]]] * 3, models=TWO)
    asked = requests(3, cost_usd_max=[np.inf, 1e-9, np.inf])

    choices = route(asked, live, SquareCb(), np.full(3, 0.5))

    assert choices.fits.tolist() == [True, False, True]
    assert choices.verdict[1].tolist() == [Verdict.TOO_DEAR] * 2
    np.testing.assert_array_equal(choices.propensity[0], choices.propensity[2])


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_cost_limit_holds_against_any_preference(policy):
    """
    Someone who would pay anything for quality still never gets a model above their limit.
    """
    draws = np.linspace(0.0, 1.0, 101)[:-1]
    n = len(draws)
    live = Estimated([[[0.0, 0, 0], [1.0, 0, 0]]] * n, models=TWO)
    asked = requests(n, preference=[[1e6, 0.0, 0.0, 0.0]] * n, cost_usd_max=np.full(n, 0.005))

    choices = route(asked, live, policy, draws)

    assert (choices.chosen == 0).all()


# --- probabilities ---------------------------------------------------------------------------------


def test_squarecb_explores_by_the_gap_in_shares_of_what_is_at_stake():
    """
    p = 1 / (k + γ · gap / stake); the stake is the weights times what the models cost and take on
    average, so a policy means the same whatever the caller's units.
    """
    live = Estimated([[[0.9, 0, 0], [0.5, 0, 0]]], models=TWO)
    weights = [1.0, 20.0, 0.1, 0.0]

    choices = route(requests(preference=[weights]), live, SquareCb(gamma=10.0), np.zeros(1))

    utility = [0.9 - 20 * 0.001 - 0.1 * 0.5, 0.5 - 20 * 0.010 - 0.1 * 2.0]
    stake = 1.0 + 20 * (0.001 + 0.010) / 2 + 0.1 * (0.5 + 2.0) / 2
    other = 1 / (2 + 10.0 * (utility[0] - utility[1]) / stake)
    np.testing.assert_allclose(choices.propensity, [[1 - other, other]], rtol=1e-6)


def test_a_model_that_only_its_price_rules_out_is_not_tried_for_doubts_about_the_price():
    """
    No call costs less than nothing: at most a quarter of a cost, or of a time, counts as deviation.
    """
    models = [TWO[0], Model(name="dear", usd_per_call=0.010, latency_ms=5000.0)]
    live = Estimated([[[0.8, 0, 0], [0.9, 0, 0]]], models=models)
    live.estimates.mean_deviation[1, 1:] = 5.0  # single bills, and times, that lie far apart

    for weights in ([1.0, 1000.0, 0.0, 0.0], [1.0, 0.0, 2.0, 0.0]):
        asked = requests(preference=[weights])
        by_price = route(asked, live, Thompson(), np.zeros(1)).propensity[0, 1]
        assert by_price == 0.0

    # What it may be worth is another matter.
    live.estimates.mean_deviation[1, 0], live.estimates.deviation[0, 1] = 8.0, 8.0
    assert route(asked, live, Thompson(), np.zeros(1)).propensity[0, 1] > 0.0


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
@given(
    weights=st.tuples(*[st.floats(0.01, 100)] * 4),
    factor=st.sampled_from([1e-4, 0.1, 10.0, 1000.0]),
    qualities=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
)
@lightly
def test_scale_of_the_weights_does_not_matter(policy, weights, factor, qualities):
    """
    Ten times all weights are the same preference, and give the same probabilities.
    """
    models = [
        Model(name=f"m{i}", usd_per_call=0.001 * (i + 1), latency_ms=300.0 * (3 - i))
        for i in range(3)
    ]
    live = Estimated([[[q, 0, 0] for q in qualities]], deviation=[[0.1, 0.2, 0.3]], models=models)

    def probabilities(scale: float):
        preference = [np.array(weights) * scale]
        return route(requests(k=3, preference=preference), live, policy, np.zeros(1)).propensity

    if isinstance(policy, Greedy | EpsilonGreedy | LinUcb):
        utilities = route(requests(k=3, preference=[weights]), live, policy, np.zeros(1)).utility
        best = np.sort(utilities + weights[0] * np.array([0.1, 0.2, 0.3]))
        if best[0, -1] - best[0, -2] < 1e-9 or np.ptp(np.sort(utilities)[0, -2:]) < 1e-9:
            return  # equals share, and rounding decides who is equal
    np.testing.assert_allclose(probabilities(factor), probabilities(1.0), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
@given(
    rows=st.lists(
        st.tuples(
            st.tuples(*[st.sampled_from([0.0, 1e-320, 1e-9, 1.0, 1e6])] * 4),
            st.lists(st.booleans(), min_size=3, max_size=3),
            st.sampled_from([5e-324, 1e-4, 0.01, np.inf]),
            st.sampled_from([5e-324, 600.0, np.inf]),
            st.sampled_from([0.0, 1.0, 1e7]),
            st.floats(0, 1, exclude_max=True),
        ),
        min_size=1,
        max_size=6,
    )
)
@lightly
def test_decision_is_sound_for_any_request(policy, rows):
    """
    Whatever is asked: finite figures, probabilities that sum to one over the eligible, and a
    choice that had a chance. Checked against the real estimator.
    """
    weights, allowed, cost, latency, tokens, uniform = map(np.array, zip(*rows, strict=True))
    asked = requests(
        len(rows),
        3,
        preference=weights,
        allowed=allowed,
        cost_usd_max=cost,
        latency_ms_max=latency,
        prompt_tokens=tokens,
    )

    choices = route(asked, TAUGHT, policy, uniform)

    figures = (choices.utility, choices.quality, choices.cost_usd, choices.latency_ms)
    deviations = (
        choices.quality_deviation,
        choices.cost_usd_deviation,
        choices.latency_ms_deviation,
    )
    assert all(np.isfinite(figure).all() for figure in (*figures, *deviations))
    fits, eligible = choices.fits, choices.verdict == Verdict.ELIGIBLE
    np.testing.assert_array_equal(fits, eligible.any(axis=1))
    assert (choices.propensity[fits] >= 0).all()
    assert (choices.propensity[fits][~eligible[fits]] == 0).all()
    np.testing.assert_allclose(choices.propensity[fits].sum(axis=1), 1.0, rtol=1e-9)
    chosen = choices.propensity[np.arange(len(rows)), choices.chosen]
    assert (chosen[fits] > 0).all()


TAUGHT = taught()


# --- the same bits ---------------------------------------------------------------------------------


def columns(choices: Choices) -> dict[str, np.ndarray]:
    names = {*Choices.__slots__, *FIGURES} - {"figures"}
    found = {name: getattr(choices, name) for name in sorted(names)}
    return {name: column for name, column in found.items() if column is not None}


def some_requests(n: int) -> RequestBatch:
    rng = np.random.default_rng(11)
    contexts = rng.integers(-60, 60, (n, N_FEATURES)).astype(np.int8)
    contexts[:, BIAS_FEATURE] = BIAS
    return requests(
        n,
        3,
        contexts=contexts,
        preference=rng.uniform(0.1, 2, (n, 4)),
        prompt_tokens=rng.integers(0, 5000, n).astype(float),
        allowed=rng.random((n, 3)) < 0.8,
        switch_ms=rng.choice([0.0, 200.0], (n, 3)),
    )


def row(asked: RequestBatch, i: int) -> RequestBatch:
    return asked[np.array([i])]


def test_same_input_gives_the_same_bits():
    """
    A decision can be replayed: requests, view and uniform numbers determine every bit.
    """
    asked, uniform = some_requests(32), np.random.default_rng(3).random(32)

    first = route(asked, taught(), SquareCb(), uniform)
    second = route(asked, taught(), SquareCb(), uniform)

    for name, column in columns(first).items():
        np.testing.assert_array_equal(column, columns(second)[name], err_msg=name)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_batch_is_decided_as_its_requests_one_by_one(policy):
    """
    A neighbour in the batch changes nothing but the last bits of a product.
    """
    asked, uniform = some_requests(32), np.random.default_rng(3).random(32)

    batch = columns(route(asked, TAUGHT, policy, uniform))
    alone = [columns(route(row(asked, i), TAUGHT, policy, uniform[i : i + 1])) for i in range(32)]

    fits = batch["fits"]
    for name, column in batch.items():
        single = np.concatenate([one[name] for one in alone])
        np.testing.assert_allclose(column[fits], single[fits], rtol=1e-4, atol=1e-6, err_msg=name)


# --- pools -----------------------------------------------------------------------------------------


def pool_of(live: Live) -> str:
    """The pool that a request for "small" alone goes to."""
    asked = requests(
        k=len(live.catalogue), allowed=[[name == "small" for name in live.catalogue.names]]
    )
    return live.catalogue.pool_names[route(asked, live, Greedy(), np.zeros(1)).pool[0]]


def pool_chosen(*learned_of: tuple[str, dict[str, float]]) -> str:
    """Which of two pools of model "small" a view takes, after 50 outcomes in some of them."""
    learned = Learned(MemoryOptions())
    for pool, values in learned_of:
        learned.update(outcomes("small", pool, **values))
    learned.history.settle()
    pools = [Pool(name=name, model="small") for name in ("near", "far")]
    return pool_of(Live(catalogue(pools=pools), learned, "encoder", LiveOptions()))


def test_first_pool_is_taken_while_nothing_is_known():
    assert pool_chosen() == "near"


def test_faster_pool_is_taken():
    """
    Of two pools of one model, the one that has recently answered faster.
    """
    near, far = ("near", {"latency_ms": 900.0}), ("far", {"latency_ms": 500.0})

    assert pool_chosen(near, far) == "far"


def test_pool_that_fails_is_left_for_a_slower_one():
    """
    A pool that refuses half its calls takes twice as long to an answer, however fast it refuses.
    """
    near = ("near", {"latency_ms": 300.0, "error": 0.8})
    far = ("far", {"latency_ms": 700.0, "error": 0.0})

    assert pool_chosen(near, far) == "far"


def test_pool_nobody_has_tried_is_taken_when_the_other_is_slower_than_stated():
    """
    What is not known is taken to be as stated (400 ms here).
    """
    assert pool_chosen(("near", {"latency_ms": 800.0})) == "far"
    assert pool_chosen(("near", {"latency_ms": 390.0})) == "near"


def test_old_outcomes_of_a_pool_fade_within_hours():
    """
    A pool that was slow this morning is judged by how it is now.
    """
    learned = Learned(MemoryOptions())
    learned.update(outcomes("small", "near", at_ms=NOON_MS - 12 * 3_600_000, latency_ms=5000.0))
    learned.update(outcomes("small", "far", latency_ms=600.0))
    learned.history.settle()
    pools = [Pool(name=name, model="small") for name in ("near", "far")]

    live = Live(catalogue(pools=pools), learned, "encoder", LiveOptions())

    assert pool_of(live) == "near"
