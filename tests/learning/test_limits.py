"""What a request's limits leave it, and how models are tried that a stale estimate keeps out."""

from __future__ import annotations

import numpy as np
import pytest
from estimated import Estimated, requests
from hypothesis import given, settings
from hypothesis import strategies as st
from router_bench import NOON_MS, catalogue, outcomes
from strategies import changed

from learners.estimates.learned import Learned, MemoryOptions
from learners.outcomes import Outcomes
from learners.policies import limits
from learners.policies.greedy import Greedy
from learners.policies.limits import LimitOptions
from learners.policies.policy import POLICIES, Policy, Scores
from learners.targets import RATIO_UNIT, Target, to_fixed
from serve.routing.catalogue import Model
from serve.routing.choices import Choices
from serve.routing.eligible import Verdict
from serve.routing.live import Live, LiveOptions
from serve.routing.load_tracker import LoadTracker
from serve.routing.placement import PlacementOptions
from serve.routing.router import route
from streams.training.prices import PricingOptions

SEEDS = range(8)
SHARE = LimitOptions().probe_share
THREE = [
    Model(name="tiny", usd_per_call=0.001, latency_ms=500.0),
    Model(name="middle", usd_per_call=0.004, latency_ms=900.0),
    Model(name="large", usd_per_call=0.010, latency_ms=2000.0),
]


def decide(
    live: Live, n: int = 1, *, u: float = 0.5, policy: Policy | None = None, **columns
) -> Choices:
    """N requests like each other, drawn with one number."""
    asked = requests(n, len(live.catalogue), **columns)
    uniform = np.full((n, 2), u)
    pool_load = LoadTracker(PricingOptions()).now(live, NOON_MS)
    return route(asked, live, pool_load, policy or Greedy(), uniform, None, PlacementOptions())


def believed(*quality: float, deviation: float = 0.0) -> Live:
    """A view that believes this of the three models, and costs and latencies as stated."""
    mean = [[[q, 0.0, 0.0] for q in quality]]
    return Estimated(mean, deviation=np.full((1, 3), deviation, np.float32), models=THREE)


# --- quality_min


@pytest.mark.parametrize(
    ("quality_min", "chosen"), [(0.5, 0), (0.61, 1), (0.8, 1), (0.81, 2), (0.94, 2)]
)
def test_the_cheapest_that_is_good_enough_is_chosen(quality_min, chosen):
    """
    However much better a dearer one is. At exactly the limit a model is good enough.
    """
    choices = decide(believed(0.6, 0.8, 0.95), quality_min=[quality_min])

    assert choices.chosen.tolist() == [chosen]
    assert choices.below_quality.tolist() == [False]
    assert (choices.verdict[0, :chosen] == Verdict.BELOW_QUALITY).all()


def test_where_none_is_good_enough_the_best_is_chosen_and_it_is_said():
    """
    The best there is, at any price; the request is not refused.
    """
    choices = decide(believed(0.6, 0.8, 0.7), quality_min=[0.9], preference=[[1.0, 1e6, 0.0, 0.0]])

    assert choices.chosen.tolist() == [1]
    assert (choices.below_quality.tolist(), choices.fits.tolist()) == ([True], [True])
    assert (choices.verdict == Verdict.ELIGIBLE).all()


def test_other_limits_come_before_quality_min():
    """
    The cheapest of those that are fast enough and good enough.
    """
    choices = decide(believed(0.9, 0.5, 0.95), quality_min=[0.8], latency_ms_max=[2500.0])
    denied = decide(believed(0.9, 0.5, 0.95), quality_min=[0.8], allowed=[[False, True, True]])

    assert (choices.chosen[0], denied.chosen[0]) == (0, 2)


def test_failures_count_against_quality_min():
    """
    What is asked for is that the call succeeds: 0.9 in nine of ten calls is 0.81.
    """
    live = Estimated(
        [[[0.9, 0, 0], [0.85, 0, 0], [1.0, 0, 0]]], error_share=[0.1, 0, 0], models=THREE
    )

    assert decide(live, quality_min=[0.84]).chosen.tolist() == [1]


def test_a_cheaper_model_that_may_be_good_enough_is_tried_at_the_stated_share():
    """
    One that is 1.6 deviations below at most; neither a worse one nor a dearer one.
    """
    near = decide(believed(0.75, 0.85, 0.79, deviation=0.05), quality_min=[0.8])
    far = decide(believed(0.7, 0.85, 0.79, deviation=0.05), quality_min=[0.8])
    surely = decide(believed(0.75, 0.85, 0.79, deviation=0.01), quality_min=[0.8])

    np.testing.assert_allclose(near.propensity, [[SHARE, 1.0 - SHARE, 0.0]])
    np.testing.assert_allclose(far.propensity, [[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(surely.propensity, [[0.0, 1.0, 0.0]])


# --- strong_share_max


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("m", [0, 1, 40, 512])
def test_the_share_is_met_exactly_whatever_is_known(share, m):
    """
    Over prompts like the known ones, from none to hundreds, in every draw of those: within the
    error of the mean.
    """
    found = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        n = 300 // (m + 1) + 1
        for _ in range(n):
            quality = rng.random((m + 1, 3)).round(1)  # with ties
            eligible, strong = np.ones((1, 3), bool), np.array([2])
            found += limits.strong_passes(
                np.array([share]), eligible, strong, quality[:1], quality[1:]
            ).tolist()

    assert np.mean(found) == pytest.approx(share, abs=4 * 0.5 / np.sqrt(len(found)))


def test_the_strong_model_goes_where_it_is_furthest_ahead():
    """
    RouteLLM's threshold against mixing at random with the same share: more is gained, in each of
    eight draws.
    """
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        quality = rng.normal([0.5, 0.5, 0.6], 0.1, (1000, 3))
        known, fresh = quality[:500], quality[500:]
        eligible, strong = np.ones((500, 3), bool), np.full(500, 2)

        passes = limits.strong_passes(np.full(500, 0.3), eligible, strong, fresh, known)

        ahead = fresh[:, 2] - fresh[:, :2].max(axis=1)
        assert passes.mean() == pytest.approx(0.3, abs=0.08)
        assert passes @ ahead > 0.3 * ahead.sum() + 10.0


def test_the_threshold_follows_the_newest_prompts():
    """
    Prompts on which the strong model is twice as far ahead are not all given to it once they are
    what comes.
    """
    rng = np.random.default_rng(0)
    fresh = np.stack([np.full(400, 0.5), 0.6 + 0.2 * rng.random(400)], axis=1)
    before = np.stack([np.full(400, 0.5), 0.5 + 0.1 * rng.random(400)], axis=1)
    eligible, strong, share = np.ones((400, 2), bool), np.ones(400, np.intp), np.full(400, 0.25)

    assert limits.strong_passes(share, eligible, strong, fresh, before).mean() > 0.99
    after = limits.strong_passes(share, eligible, strong, fresh, fresh[::-1])
    assert after.mean() == pytest.approx(0.25, abs=0.02)


def test_strong_is_the_best_of_those_that_the_request_may_have():
    """
    On known prompts; before there are any, the dearest.
    """
    eligible = np.array([[True, True, True], [True, True, False]])
    reference = np.array([[0.2, 0.5, 0.9], [0.2, 0.5, 0.7]])
    price = np.array([0.3, 0.1, 0.2])

    assert limits.strong_of(eligible, reference, price).tolist() == [2, 1]
    assert limits.strong_of(eligible, np.zeros((0, 3)), price).tolist() == [0, 0]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_propensities_are_those_of_the_share(share):
    """
    Nothing is known: the strong model, here the dearest, has exactly its share; the verdict says so
    where it is kept out for certain.
    """
    live = believed(0.6, 0.6, 0.9)

    choices = decide(live, strong_share_max=[share])

    np.testing.assert_allclose(choices.propensity[0], [(1 - share) / 2, (1 - share) / 2, share])
    kept_out = choices.verdict[0, 2] == Verdict.STRONG_SHARE
    assert kept_out == (share == 0.0)


def test_who_may_have_one_model_only_gets_it():
    """
    A share of a model can't be kept from who has nothing else.
    """
    choices = decide(
        believed(0.6, 0.6, 0.9), strong_share_max=[0.0], allowed=[[False, False, True]]
    )

    assert choices.chosen.tolist() == [2]


# --- stale estimates


def measured(model: str, n: int, at_ms: int, *, latency_ms: float, seed: int = 0) -> Outcomes:
    """`n` answers of one of the three models that took so long and were good."""
    rows = outcomes(model, n=n, at_ms=at_ms, quality=0.9, latency_ms=latency_ms)
    stated_ms = next(one.latency_ms for one in THREE if one.name == model)
    targets = rows.targets.copy()
    targets[:, Target.LATENCY] = to_fixed(np.full(n, latency_ms / stated_ms / RATIO_UNIT))
    known = rows.known.copy()
    known[:, Target.LATENCY] = True
    return changed(
        rows, targets=targets, known=known, sequences=np.arange(n, dtype=np.uint64) + seed
    )


def view(learned: Learned) -> Live:
    """The three models after what was learned."""
    learned.history.settle()
    return Live(catalogue(THREE), learned, "encoder", LiveOptions())


def test_a_cold_start_does_not_keep_a_model_out_for_good():
    """
    Five slow answers in the first minute, callers with `latency_ms_max`: while they are recent the
    model is not tried; then at the stated share; answers as fast as stated bring it back within 50
    of those, where it would not have been tried at all.
    """
    learned, limit = Learned(MemoryOptions()), [3000.0]
    learned.update(measured("tiny", 5, NOON_MS, latency_ms=15_000.0))
    learned.update(measured("middle", 5, NOON_MS, latency_ms=900.0))

    at_once = decide(view(learned), latency_ms_max=limit)
    assert at_once.verdict[0, 0] == Verdict.TOO_SLOW
    assert at_once.propensity[0, 0] == 0.0

    later_ms = NOON_MS + 15 * 60_000
    learned.update(measured("middle", 5, later_ms, latency_ms=900.0, seed=100))
    stale = decide(view(learned), latency_ms_max=limit)
    assert stale.verdict[0, 0] == Verdict.TOO_SLOW
    assert stale.propensity[0, 0] == pytest.approx(SHARE)

    probes = 0
    while decide(view(learned), latency_ms_max=limit).verdict[0, 0] != Verdict.ELIGIBLE:
        at_ms = later_ms + 1000 * probes
        learned.update(measured("tiny", 5, at_ms, latency_ms=500.0, seed=200 + probes))
        probes += 5
        assert probes <= 50
        if probes:
            assert decide(view(learned), latency_ms_max=limit).propensity[0, 0] > 0.0


def test_a_model_that_is_slow_again_when_tried_is_left_alone():
    """
    Three slow answers in the last minutes are news enough.
    """
    learned = Learned(MemoryOptions())
    learned.update(measured("tiny", 3, NOON_MS, latency_ms=15_000.0))

    assert decide(view(learned), latency_ms_max=[3000.0]).propensity[0, 0] == 0.0


def test_what_the_catalogue_states_is_not_stale():
    """
    The large model states 2,000 ms: a caller with 1,500 never gets it.
    """
    choices = decide(believed(0.6, 0.6, 0.9), latency_ms_max=[1500.0])

    assert choices.propensity[0, 2] == 0.0


@pytest.mark.parametrize(("u", "fits"), [(SHARE / 2, True), (2 * SHARE, False)])
def test_who_has_nothing_but_stale_models_is_refused_except_for_the_share(u, fits):
    """
    Whoever gets one has it with the propensity that says so.
    """
    live = Estimated([[[0.6, 0, 3.0], [0.6, 0, 3.0], [0.9, 0, 3.0]]], models=THREE)

    choices = decide(live, u=u, latency_ms_max=[1000.0])

    assert choices.fits.tolist() == [fits]
    np.testing.assert_allclose(choices.propensity[0], [SHARE / 2, SHARE / 2, 0.0])
    assert choices.chosen[0] in (0, 1)


# --- what a request may not have


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_no_figure_of_a_model_that_is_not_allowed_changes_the_others(name, data):
    """
    Neither its utility, deviations and cost, nor how often it was tried.
    """
    seed = data.draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    allowed = np.array([[True, True, False, True, False]] * 3)

    def scores(other: np.random.Generator) -> Scores:
        def mixed(low: float, high: float) -> np.ndarray:
            return np.where(
                allowed, rng.uniform(low, high, (3, 5)), other.uniform(low, high, (3, 5))
            )

        def of_models(high: float) -> np.ndarray:
            return np.where(allowed[0], rng.uniform(0, high, 5), other.uniform(0, high, 5))

        return Scores(
            mixed(-1, 1), mixed(0, 0.5), allowed, mixed(0, 0.2), mixed(-1, 1), mixed(-1, 1),
            of_models(100), of_models(100), mixed(0, 1),
        )  # fmt: skip

    policy = POLICIES[name]()
    first = policy.probabilities(scores(np.random.default_rng(seed + 1)))
    rng = np.random.default_rng(seed)
    second = policy.probabilities(scores(np.random.default_rng(seed + 2)))

    np.testing.assert_allclose(first, second, atol=1e-12)


@pytest.mark.parametrize("why", ["denied", "dear", "slow", "bad", "strong"])
@given(quality=st.floats(0, 1), usd=st.floats(0.02, 100), deviation=st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_what_a_request_may_not_have_changes_nothing_for_it(why, quality, usd, deviation):
    """
    A third model that is denied, too dear or too slow as stated, not good enough or kept for
    others, at any price, quality and doubt: the other two are as likely as they would be alone.
    """
    quality = min(quality, 0.4) if why == "bad" else quality
    quality = 1.0 if why == "strong" else quality
    third = Model(name="third", usd_per_call=usd, latency_ms=9e4 if why == "slow" else 800.0)
    asked = {
        "denied": {"allowed": [[True, True, False]]},
        "dear": {"cost_usd_max": [0.015]},
        "slow": {"latency_ms_max": [3000.0]},
        "bad": {"quality_min": [0.5]},
        "strong": {"strong_share_max": [0.0], "allowed": [[True, True, True]]},
    }[why]
    models = [*THREE[:2], third]
    mean = np.zeros((1, 3, 3), np.float32)
    mean[0, :, 0] = 0.70, 0.72, quality
    doubt = np.array([[0.05, 0.05, deviation]], np.float32)
    weights = [[1.0, 5.0, 0.01, 0.0]]
    both = {name: value for name, value in asked.items() if name != "allowed"}
    if why == "strong":
        both = {}

    with_third = Estimated(mean, deviation=doubt, models=models)
    alone = Estimated(mean[:, :2], deviation=doubt[:, :2], models=models[:2])
    for policy in POLICIES.values():
        found = decide(with_third, policy=policy(), preference=weights, **asked)
        expected = decide(alone, policy=policy(), preference=weights, **both)
        assert found.propensity[0, 2] == 0.0
        np.testing.assert_allclose(found.propensity[:, :2], expected.propensity, atol=1e-6)
