"""What outcomes of unusual kinds do to estimates: changes, failures, free calls, outliers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from strategies import contexts, whole

from learners.drift import DETECTORS, DriftOptions, change_point, failures
from learners.estimates.changes import newest
from learners.estimates.estimator import BlendOptions, Estimates, Estimator
from learners.estimates.landmarks import shipped
from learners.estimates.learned import Learned, MemoryOptions
from learners.estimates.sums.buckets import Buckets
from learners.estimates.sums.influence import EARLIER, N_GROUPS, hash_of
from learners.outcomes import Outcomes
from learners.targets import COST_USD_MIN, ONE, Target, ratio, to_fixed

MODEL, OTHER = 11, 12
NOON_MS = 1_760_000_000_000


def reports(
    quality=None, cost_usd=None, failed=None, *, n: int, model: int = MODEL, at_ms: int = 0, seed=0
) -> Outcomes:
    """N outcomes of a model, 100 ms apart, whose catalogue states 0.003 USD per call."""
    targets, known = np.zeros((n, 3)), np.zeros((n, 3), bool)
    figures, figures_known = np.zeros((n, 4), np.int64), np.zeros((n, 4), bool)
    if quality is not None:
        targets[:, Target.QUALITY], known[:, Target.QUALITY] = quality, True
    if cost_usd is not None:
        stated = np.full(n, 0.003)
        targets[:, Target.COST] = ratio(np.broadcast_to(cost_usd, n) * 1.0, stated, COST_USD_MIN)
        known[:, Target.COST] = True
    if failed is not None:
        figures[:, 0], figures_known[:, 0] = np.asarray(failed) * ONE, True
    return whole(
        {
            "issuers": np.full(n, model, np.uint64),
            "sequences": np.arange(n, dtype=np.uint64) + np.uint64(at_ms),
            "decided_at_ms": NOON_MS + at_ms + 100 * np.arange(n),
            "models": np.full(n, model, np.uint64),
            "pools": np.full(n, model, np.uint64),
            "contexts": contexts(n, np.random.default_rng(seed)),
            "targets": to_fixed(targets),
            "known": known,
            "figures": figures,
            "figures_known": figures_known,
        }
    )


def view(*parts: Outcomes, drift: DriftOptions | None = None) -> Estimator:
    learned = Learned(MemoryOptions())
    for part in parts:
        learned.update(part)
    learned.history.settle()
    blend = BlendOptions(drift=drift or DriftOptions())
    return Estimator(learned, [MODEL, OTHER], np.full(2, np.nan), blend)


def estimated(estimator: Estimator) -> Estimates:
    return estimator.estimate(contexts(200, np.random.default_rng(99)))


def right(share: float, n: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(float)


# --- drift --------------------------------------------------------------------------------------


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("n_before", [500, 5000])
def test_a_model_that_falls_is_noticed_and_judged_by_what_came_since(n_before, detector):
    """
    From 0.9 to 0.3: after 60 outcomes there is an alarm that says since when, and the estimate
    rests on those outcomes, whatever came before.
    """
    detected = DriftOptions(detector=detector)
    calm = reports(right(0.9, n_before), n=n_before)
    since_ms = 100 * n_before
    fallen = reports(right(0.3, 60, 2), n=60, at_ms=since_ms, seed=3)

    after = view(calm, fallen, drift=detected)

    (alarm,) = after.alarms
    assert (alarm.model, alarm.target) == (MODEL, "quality")
    assert abs(alarm.since_ms - NOON_MS - since_ms) < 2000
    assert alarm.shift < -0.5
    assert estimated(after).mean[:, 0, 0].mean() < 0.45
    assert after.n_outcomes[0, 0] < 90
    assert not view(calm, drift=detected).alarms


@pytest.mark.parametrize("times", [1 / 30, 0.5, 1, 2, 5, 30])
@pytest.mark.parametrize("n", [100, 400, 1600])
def test_bills_that_were_never_as_stated_are_no_change(times, n):
    """
    Each bill is the same: an estimate that is short of it by half a percent was an alarm.
    """
    assert not view(reports(cost_usd=0.003 * times, n=n)).alarms


def test_a_stretch_of_prompts_of_another_kind_is_no_change_where_bills_are_all_alike():
    usual = reports(cost_usd=0.015, n=800)
    usual = replace(
        usual, contexts=np.where(np.arange(64) < 62, usual.contexts // 8, usual.contexts)
    )
    other = reports(cost_usd=0.015, n=60, at_ms=80_000, seed=3)
    other = replace(other, contexts=np.repeat(other.contexts[:1], 60, axis=0))
    assert not view(usual, other).alarms


@pytest.mark.parametrize("times", [0.5, 1, 5])
def test_a_price_that_rises_by_a_tenth_is_noticed_though_bills_are_all_alike(times):
    price = 0.003 * times
    after = reports(cost_usd=1.1 * price, n=25, at_ms=160_000, seed=3)
    (alarm,) = view(reports(cost_usd=price, n=1600), after).alarms
    assert alarm.target == "cost"
    assert 20 <= alarm.outcomes <= 30


def test_alarms_do_not_depend_on_the_order_of_outcomes():
    """
    Learned in any order, the same alarms.
    """
    parts = reports(right(0.9, 600), n=600), reports(right(0.2, 60), n=60, at_ms=60_000)

    one, other = view(*parts), view(*parts[::-1])

    assert one.alarms == other.alarms != []


def test_a_model_that_broke_is_not_believed_again_because_it_is_hardly_asked():
    """
    After its alarm others get 5,000 requests, more than are looked at: it is still taken to be bad.
    """
    good = reports(right(0.9, 5000), n=5000)
    broken = reports(right(0.3, 40, 2), n=40, at_ms=500_000, seed=3)
    others = reports(right(0.8, 5000, 4), n=5000, model=OTHER, at_ms=504_000, seed=5)

    after = view(good, broken, others)

    assert [(alarm.model, alarm.target) for alarm in after.alarms] == [(MODEL, "quality")]
    assert estimated(after).mean[:, 0, 0].mean() < 0.5


def test_when_one_model_changed_others_are_doubted_until_much_came_since():
    """
    What was known of another model counts as 20 outcomes; its own since then count in full. Once
    all that is looked at of it came after the change, its past counts again.
    """
    good = reports(right(0.9, 3000), n=3000)
    other = reports(right(0.4, 3000, 6), n=3000, model=OTHER, seed=7)
    broken = reports(right(0.3, 60, 2), n=60, at_ms=300_000, seed=3)
    since = reports(right(0.55, 60, 8), n=60, model=OTHER, at_ms=300_000, seed=9)
    much = reports(right(0.4, 3000, 8), n=3000, model=OTHER, at_ms=300_000, seed=9)

    calm, doubted, over = (
        view(good, other),
        view(good, other, broken, since),
        view(good, other, broken, much),
    )

    assert calm.n_outcomes[1, 0] == pytest.approx(3000, rel=0.01)
    # The change is dated a few outcomes too early at most.
    assert 20 + 60 - 1 < doubted.n_outcomes[1, 0] < 20 + 60 + 20
    assert estimated(doubted).mean[:, 1, 0].mean() > 0.47
    assert over.n_outcomes[1, 0] == pytest.approx(6000, rel=0.01)


def test_rows_of_one_time_are_chosen_alike_in_any_order():
    """
    More outcomes than are looked at, all of the same millisecond.
    """
    state, reverse = Learned(MemoryOptions()), Learned(MemoryOptions())
    part = reports(right(0.5, 3000), n=3000)
    part.decided_at_ms[:] = NOON_MS
    state.update(part)
    reverse.update(part.take(np.arange(3000)[::-1]))

    chosen = []
    for learned in (state, reverse):
        learned.history.settle()
        rows = learned.history.rows
        chosen.append(rows["sequences"][newest(rows, [MODEL], 512)])

    assert len(chosen[0]) == 256
    np.testing.assert_array_equal(*chosen)


@pytest.mark.parametrize("seed", range(3))
def test_what_does_not_change_raises_no_alarm(seed):
    """
    100,000 residuals of a fair Gaussian and of a coin of 0.9, looked at after every thousand.
    """
    rng, options = np.random.default_rng(seed), DriftOptions()
    coin = ((rng.random(100_000) < 0.9) - 0.9) / 0.3

    for residuals in (rng.standard_normal(100_000), coin):
        for end in range(1000, 100_001, 1000):
            window = residuals[max(0, end - options.rows) : end]
            assert change_point(window, options) is None


def test_a_bill_ten_times_as_high_is_news_within_ten_calls():
    """
    Only the bills say so; after ten of them the predicted cost is near what is paid.
    """
    usual = reports(1.0, 0.003, n=2000)
    dear = reports(1.0, 0.03, n=10, at_ms=200_000, seed=5)

    after = view(usual, dear)

    assert [alarm.target for alarm in after.alarms] == ["cost"]
    assert estimated(after).mean[:, 0, Target.COST].mean() > 5.0


# --- cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [0.02, 0.1, 0.3])
def test_free_calls_make_a_model_cheaper_by_as_much(free):
    """
    With 2, 10 and 30 % of free calls among 200, the expected cost is what is paid on average.
    """
    cost = np.where(np.arange(200) % 50 < 50 * free, 0.0, 0.003)

    mean = estimated(view(reports(1.0, cost, n=200))).mean[:, 0, Target.COST].mean()

    assert mean == pytest.approx(1.0 - free, rel=0.1)


def test_short_and_long_answers_are_right_on_average():
    """
    Answers of 5 and of 3,000 tokens, half and half, where 430 are stated.
    """
    cost = np.where(np.arange(200) % 2 == 0, 5 / 430, 3000 / 430) * 0.003

    mean = estimated(view(reports(1.0, cost, n=200))).mean[:, 0, Target.COST].mean()

    assert mean == pytest.approx((5 + 3000) / 2 / 430, rel=0.1)


def test_one_absurd_bill_moves_an_estimate_by_a_bounded_amount():
    """
    100 USD where 0.003 are stated counts as 32 times what was stated, once.
    """
    usual = np.full(100, 0.003)
    odd = np.append(usual[1:], 100.0)

    one, other = (
        estimated(view(reports(1.0, c, n=100))).mean[:, 0, 1].mean() for c in (usual, odd)
    )

    assert other - one < 32 / 100 * 1.5


# --- failures -----------------------------------------------------------------------------------


def test_a_model_that_fails_every_call_is_given_up_within_twenty():
    """
    After 300,000 good answers, twenty failures make it expected to fail; ten minutes without
    another call and it is tried again.
    """
    at, failed = np.array([0, 500]), np.array([0.0, 20.0])
    calls = np.array([3000.0, 20.0])

    now = failures(at, failed, calls, 0.0, now_bucket=500.0, options=DriftOptions())
    later = failures(at, failed, calls, 0.0, now_bucket=1300.0, options=DriftOptions())

    assert now.share > 0.85
    assert now.n_good == 0
    assert later.share < 0.15


def test_failing_is_seen_by_the_estimator_with_an_alarm():
    """
    Twenty failures in two seconds; what proves the model is only what succeeded since.
    """
    good = reports(right(0.9, 3000), n=3000)
    bad = reports(failed=np.ones(20), n=20, at_ms=300_000)

    after = view(good, bad)

    assert after.error_share[0] > 0.8
    assert after.error_share[1] < 0.1
    assert after.n_proving[0] < 1
    assert "error" in {alarm.target for alarm in after.alarms}
    assert view(good).error_share[0] == 0.0


def by_tenant(outcomes: Outcomes, tenant: bytes) -> Outcomes:
    return replace(outcomes, tenant_hashes=np.full(len(outcomes), hash_of(tenant), np.uint8))


@pytest.mark.parametrize(("n_others", "left"), [(40, False), (2, True)])
def test_failures_that_one_tenant_alone_reports_cost_others_nothing(n_others, left):
    """
    What makes a call fail may be in what one caller sends, or in what it says. Where hardly anybody
    else called meanwhile, nobody can say otherwise, and the failures count.
    """
    good = by_tenant(reports(right(0.9, 3000), n=3000), b"honest")
    bad = by_tenant(reports(failed=np.ones(100), n=100, at_ms=300_000), b"mallory")
    meanwhile = by_tenant(reports(right(0.9, n_others), n=n_others, at_ms=300_005), b"honest")
    everyone = by_tenant(reports(failed=np.ones(n_others), n=n_others, at_ms=300_005), b"honest")

    attacked, broken = view(good, bad, meanwhile), view(good, bad, everyone)

    assert ("error" in {alarm.target for alarm in attacked.alarms}) is left
    assert bool(attacked.error_share[0] > 0.5) is left
    assert broken.error_share[0] > 0.8


def test_sums_of_before_groups_count_as_the_group_of_earlier():
    """
    Snapshots of then have no groups in them.
    """
    buckets = Buckets((N_GROUPS, 7, 2), width_ms=1000, kept=60)
    sums = np.arange(28).reshape(2, 7, 2)

    buckets.load({"keys": np.array([5, 5]), "buckets": np.array([1, 2]), "sums": sums})

    at, found = buckets.of(5)
    assert at.tolist() == [1, 2]
    assert np.array_equal(found[:, EARLIER], sums)
    assert found.sum() == sums.sum()


@pytest.mark.parametrize("seed", range(3))
def test_a_usual_share_of_failures_is_no_change(seed):
    """
    One call in twenty fails, as ever.
    """
    failed = np.random.default_rng(seed).binomial(10, 0.05, 600).astype(float)

    found = failures(
        np.arange(600), failed, np.full(600, 10.0), 0.05, now_bucket=600.0, options=DriftOptions()
    )

    assert found.share == 0.05


# --- deviations and features --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_deviations_are_of_the_size_of_the_errors(seed):
    """
    Of true qualities, half lie within one deviation of the estimate and 85 % within two. What all
    models share is not in a deviation, as it moves no model past another: so fewer than 68 and 95.
    """
    rng = np.random.default_rng(seed)
    part = reports(0.0, n=600, seed=seed)
    line = shipped("generic").features(part.contexts) @ rng.normal(0, 0.0003, 129)
    part.targets[:, 0] = to_fixed((rng.random(600) < np.clip(0.6 + line, 0, 1)).astype(float))
    asked = contexts(500, np.random.default_rng(98))
    rng = np.random.default_rng(seed)
    truth = 0.6 + shipped("generic").features(asked) @ rng.normal(0, 0.0003, 129)

    found = view(part).estimate(asked)

    error = np.abs(found.mean[:, 0, 0] - np.clip(truth, 0, 1)) / found.deviation[:, 0]
    assert (error < 1).mean() > 0.5
    assert (error < 2).mean() > 0.85


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "wordllama-256", "hashing-1024", "generic"])
def test_landmark_features_do_not_depend_on_the_batch(name):
    """
    To the bit: what is learned one by one and what is learned together adds up to the same.
    """
    asked = contexts(200, np.random.default_rng(7))

    together = shipped(name).features(asked)

    for row in range(0, 200, 17):
        np.testing.assert_array_equal(
            shipped(name).features(asked[row : row + 1])[0], together[row]
        )
    assert together.dtype == np.int8


def test_a_snapshot_of_logarithms_is_learned_again_from_its_history():
    """
    What an older version saved: the sums are made anew from the rows, ratios included.
    """
    state = Learned(MemoryOptions())
    state.update(reports(right(0.8, 300), 0.006, n=300))
    state.history.settle()
    saved = state.statistics()
    rows = {name: column.copy() for name, column in state.history.rows.items()}
    rows["targets"][:, Target.COST] = np.rint(np.log(2.0) * ONE)
    old = {"ridge": {}, "models": saved["models"], "pools": saved["pools"]}
    old["counts"] = {name: saved["counts"][name] for name in ("as_of_ms", "n_values")}

    again = Learned.restore(MemoryOptions(), old, rows)

    assert again.n_relearned == 300
    at_ms = state.as_of_ms
    np.testing.assert_array_equal(
        again.quality.read([MODEL], at_ms), state.quality.read([MODEL], at_ms)
    )
    np.testing.assert_allclose(
        again.models.read([MODEL], at_ms)[0, 1], state.models.read([MODEL], at_ms)[0, 1], rtol=1e-3
    )
