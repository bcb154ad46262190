"""One tenant's outcomes move what others are routed by no further than the stated bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import changed, contexts, joined, lightly, whole

from learners.drift import DriftOptions
from learners.estimates import ema
from learners.estimates.estimator import BlendOptions, Estimator
from learners.estimates.history import History, HistoryOptions, by_turns
from learners.estimates.learned import Learned, MemoryOptions
from learners.estimates.sums.influence import (
    EARLIER,
    N_GROUPS,
    N_UNNAMED,
    InfluenceOptions,
    by_agreement,
    by_volume,
    groups_of,
    hash_of,
    producer_of,
)
from learners.outcomes import Outcomes
from learners.targets import ONE, Target

BEST, OTHER = 7, 8
MODELS = [BEST, OTHER]
NOW_MS = 1_700_000_000_000
HONEST = [f"tenant-{i}".encode() for i in range(20)]
LIAR = b"liar"


def reports(
    tenant: bytes,
    model: int,
    quality: float,
    n: int,
    rng: np.random.Generator,
    source: str | None = None,
) -> Outcomes:
    """Outcomes of one tenant: right or wrong, right as often as `quality` says."""
    known = np.zeros((n, 3), bool)
    known[:, Target.QUALITY] = True
    targets = np.zeros((n, 3), np.int64)
    targets[:, Target.QUALITY] = ONE * (rng.random(n) < quality)
    return whole(
        {
            "issuers": np.full(n, rng.integers(2**50), np.uint64),
            "sequences": np.arange(n, dtype=np.uint64),
            "decided_at_ms": NOW_MS + rng.integers(0, 60_000, n),
            "models": np.full(n, model, np.uint64),
            "pools": np.full(n, model, np.uint64),
            "tenant_hashes": np.full(n, hash_of(tenant), np.uint8),
            "producers": np.full(n, producer_of(source), np.uint8),
            "contexts": contexts(n, rng),
            "targets": targets,
            "known": known,
            "figures": np.zeros((n, 4), np.int64),
            "figures_known": np.zeros((n, 4), bool),
        }
    )


def honest(rng: np.random.Generator, n: int = 100, source: str | None = None) -> Outcomes:
    """Of twenty tenants: the best model is right nine times in ten, the other seven."""
    return joined(
        [
            reports(tenant, model, quality, n, rng, source)
            for tenant in HONEST
            for model, quality in ((BEST, 0.9), (OTHER, 0.7))
        ]
    )


def learned(*batches: Outcomes) -> Learned:
    state = Learned(MemoryOptions())
    for batch in batches:
        state.update(batch)
    state.history.settle()
    return state


def estimator(state: Learned, options: BlendOptions | None = None) -> Estimator:
    return Estimator(state, MODELS, np.full(2, np.nan), options or BlendOptions())


def quality(state: Learned, options: BlendOptions | None = None) -> np.ndarray:
    """Estimates (1000, 2) for prompts of other tenants."""
    asked = contexts(1000, np.random.default_rng(99))
    return estimator(state, options).estimate(asked).mean[:, :, Target.QUALITY]


def share_of_best(estimates: np.ndarray) -> float:
    return float((estimates[:, 0] > estimates[:, 1]).mean())


# --- the attack ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_false", "seed"), [(2_000, 0), (2_000, 1), (10_000, 2)])
def test_one_tenants_false_outcomes_do_not_take_a_model_from_the_others(n_false, seed):
    """
    Against 2,000 honest outcomes of twenty tenants, one tenant says of as many, or of five times
    as many, that the best model was always wrong. The others are still sent to it, and its
    estimate moves by less than the stated bound.
    """
    rng = np.random.default_rng(seed)
    before = honest(rng)
    lies = reports(LIAR, BEST, 0.0, n_false, rng)

    calm, attacked = quality(learned(before)), quality(learned(before, lies))

    assert share_of_best(calm) > 0.95
    assert share_of_best(attacked) > 0.9
    assert abs((calm - attacked)[:, 0].mean()) < 0.1


def test_praise_of_a_poor_model_is_bounded_alike():
    """
    One tenant says of the worse model that it was always right, 5,000 times.
    """
    rng = np.random.default_rng(2)
    praise = reports(LIAR, OTHER, 1.0, 5_000, rng)

    attacked = quality(learned(honest(rng), praise))

    assert share_of_best(attacked) > 0.9


def test_without_a_bound_the_same_attack_takes_the_model():
    """
    With as many outcomes allowed as anybody reports, no weighing by agreement and no test for
    changes, which weighs tenants alike as well, the attack succeeds: so what stops it above is the
    bound.
    """
    rng = np.random.default_rng(0)
    state = learned(honest(rng), reports(LIAR, BEST, 0.0, 5_000, rng))
    unbounded = InfluenceOptions(outcomes_min=1e12, rounds=0)

    never = DriftOptions(threshold=1e9)

    attacked = quality(state, BlendOptions(influence=unbounded, drift=never))

    assert share_of_best(attacked) < 0.1


def test_the_attack_raises_no_alarm_that_the_model_changed():
    """
    The newest outcomes are all false, which looks like a change; but the other tenants' outcomes
    show none.
    """
    rng = np.random.default_rng(3)
    lies = reports(LIAR, BEST, 0.0, 2_000, rng)
    late = changed(lies, decided_at_ms=lies.decided_at_ms + 120_000)

    assert estimator(learned(honest(rng), late)).alarms == []


def test_a_change_that_all_tenants_see_is_noticed():
    """
    The same fall, reported by everybody.
    """
    rng = np.random.default_rng(4)
    fallen = joined([reports(tenant, BEST, 0.1, 20, rng) for tenant in HONEST])
    late = changed(fallen, decided_at_ms=fallen.decided_at_ms + 120_000)

    alarms = estimator(learned(honest(rng), late)).alarms

    assert [(alarm.model, alarm.target) for alarm in alarms] == [(BEST, "quality")]


def test_means_count_no_group_for_more_than_the_second_largest():
    """
    What is scaled is the weight of a group; the mean is then that of the scaled outcomes.
    """
    rng = np.random.default_rng(5)
    rows = joined([honest(rng), reports(LIAR, BEST, 0.0, 5_000, rng)])
    sizes = np.bincount(
        groups_of(rows.tenant_hashes, rows.producers)[rows.models == BEST], minlength=N_GROUPS
    )
    cap = max(np.sort(sizes)[-2], 500)

    state = ema.new_statistics(86_400_000)
    ema.update(state, rows.models, rows)

    means = ema.read(state, [BEST], NOW_MS)

    total = np.minimum(sizes, cap).sum()
    assert means.weights[0, 0] == pytest.approx(total, rel=0.01)
    assert means.means[0, 0] > 0.85 * (total - cap) / total  # all but the liar's group are right


# --- producers ----------------------------------------------------------------------------------


def judged(rng: np.random.Generator, n_false: int, source: str = "judge") -> Outcomes:
    """One producer says of all tenants' answers that the best model was always wrong."""
    each = n_false // len(HONEST)
    return joined([reports(tenant, BEST, 0.0, each, rng, source) for tenant in HONEST])


@pytest.mark.parametrize(("n_false", "seed"), [(2_000, 0), (10_000, 1), (20_000, 2)])
def test_one_producer_that_speaks_for_all_tenants_does_not_take_a_model_from_them(n_false, seed):
    """
    It counts as at most what is said without a name, so what is believed of the model falls by no
    more than half of the distance between them: it keeps all of the requests for which it was
    better by more, and nothing is believed that half of all reports contradict.
    """
    rng = np.random.default_rng(seed)
    before, lies = honest(rng), judged(rng, n_false)

    calm, attacked = quality(learned(before)), quality(learned(before, lies))

    assert abs((calm - attacked)[:, 0].mean()) <= 0.5 * 0.9 + 0.02
    assert attacked[:, 0].mean() > 0.4


def test_of_three_producers_the_odd_one_counts_least():
    """
    Two judges and the callers themselves: the one that disagrees moves what is believed by less
    than the stated bound, as one tenant among others does.
    """
    rng = np.random.default_rng(3)
    before = joined([honest(rng), honest(rng, source="user")])
    assert producer_of("user") != producer_of("judge")

    calm, attacked = quality(learned(before)), quality(learned(before, judged(rng, 10_000)))

    assert share_of_best(attacked) > 0.9
    assert abs((calm - attacked)[:, 0].mean()) < 0.1


def test_without_a_bound_on_producers_the_same_attack_takes_the_model():
    rng = np.random.default_rng(1)
    unnamed = changed(lies := judged(rng, 20_000), producers=np.zeros(len(lies), np.uint8))

    assert quality(learned(honest(rng), unnamed))[:, 0].mean() < 0.2


def test_where_all_reports_name_their_producer_tenants_are_bounded_as_before():
    """
    To name a producer does not lift the bound on the tenant that does so.
    """
    rng = np.random.default_rng(4)
    lies = joined([reports(LIAR, BEST, 0.0, 3_000, rng, source) for source in ("judge", "user")])

    for source in (None, "judge"):
        attacked = quality(learned(honest(rng, source=source), lies))
        assert share_of_best(attacked) > 0.9


def test_a_change_that_one_producer_alone_reports_is_no_alarm():
    rng = np.random.default_rng(5)
    lies = judged(rng, 2_000)
    said = honest(rng, 20)
    late = [changed(one, decided_at_ms=one.decided_at_ms + 120_000) for one in (lies, said)]

    assert estimator(learned(honest(rng), *late)).alarms == []
    assert estimator(learned(honest(rng), late[0])).alarms  # nobody else has said anything since


def test_honest_rows_stay_in_history_when_one_producer_floods_it():
    rng = np.random.default_rng(6)
    rows, flood = honest(rng), judged(rng, 112_500)
    history = History(HistoryOptions(exact_rows_max=10**9))  # without an index

    history.update(rows)
    history.update(changed(flood, decided_at_ms=flood.decided_at_ms + 120_000))
    history.settle()

    assert np.isin(rows.issuers, history.canonical()["issuers"]).all()


def test_sums_of_before_producers_were_noted_read_as_they_did():
    """
    Where no report names its producer there is nothing but groups of tenants.
    """
    state = learned(honest(np.random.default_rng(7)))

    groups = state.quality.read_groups(MODELS, NOW_MS)

    assert groups.shape[1] == N_UNNAMED


# --- who is alone -------------------------------------------------------------------------------


def test_a_tenant_that_is_alone_counts_in_full():
    """
    All outcomes of one tenant: nothing is scaled, the state reads as without groups, to the bit.
    """
    rng = np.random.default_rng(6)
    alone = reports(LIAR, BEST, 0.8, 3_000, rng)
    earlier = changed(alone, tenant_hashes=np.full(3_000, EARLIER, np.uint8))

    np.testing.assert_array_equal(quality(learned(alone)), quality(learned(earlier)))


def test_one_outcome_of_another_tenant_leaves_the_first_its_floor():
    """
    Who was alone still counts as `outcomes_min` when somebody else reports a first outcome.
    """
    counts = np.array([[0.0, 1e6, 1.0, 0.0, 0.0]])

    scaled = counts * by_volume(counts, 500.0)

    assert scaled.tolist() == [[0.0, 500.0, 1.0, 0.0, 0.0]]


# --- scales -------------------------------------------------------------------------------------


@lightly
@given(st.lists(st.integers(0, 10**6), min_size=N_UNNAMED - 1, max_size=N_UNNAMED - 1))
def test_no_group_counts_for_more_than_the_floor_or_the_second_largest(sizes):
    """
    Unless it is alone. And no group counts more than it has, or more than a larger one.
    """
    counts = np.array([[0.0, *sizes]])

    scaled = (counts * by_volume(counts, 500.0))[0, 1:]

    if (counts > 0).sum() > 1:
        assert scaled.max() <= max(np.sort(sizes)[-2], 500) * (1 + 1e-12)
    assert (scaled <= np.array(sizes) * (1 + 1e-12)).all()
    assert (np.diff(scaled[np.argsort(sizes)]) >= -1e-6).all()


def test_what_was_learned_before_groups_were_noted_is_not_scaled():
    """
    It is of all tenants, so it can't be taken for one.
    """
    counts = np.array([[1e6, 1e5, 10.0, 0.0, 0.0]])

    assert by_volume(counts, 500.0)[0].tolist() == [1.0, 0.005, 1.0, 1.0, 1.0]


def test_the_group_that_disagrees_is_the_one_that_counts_less():
    """
    By tolerance over distance from the weighted median; the others keep their weight.
    """
    counts = np.full((1, 5, 1), 1000.0)
    residuals = np.array([0.0, 0.01, -0.01, 0.02, -0.8]).reshape(1, 5, 1)

    weights = by_agreement(residuals, np.full((1, 1), 0.4), counts, counts, InfluenceOptions())

    assert weights.ravel().tolist() == pytest.approx([1, 1, 1, 1, 0.1 / 0.8])


# --- history ------------------------------------------------------------------------------------


def test_honest_rows_stay_in_history_when_one_tenant_floods_it():
    """
    112,501 newer outcomes of one tenant, where 100,000 rows are kept: all the honest rows stay.
    """
    rng = np.random.default_rng(7)
    rows = honest(rng)
    flood = reports(LIAR, BEST, 0.0, 112_501, rng)
    late = changed(flood, decided_at_ms=flood.decided_at_ms + 120_000)

    history = History(HistoryOptions(exact_rows_max=10**9))  # without an index

    history.update(rows)
    history.update(late)
    history.settle()

    kept = history.canonical()

    assert len(kept["issuers"]) == 100_000
    assert np.isin(rows.issuers, kept["issuers"]).all()


@lightly
@given(st.integers(0, 2**32))
def test_what_stays_does_not_depend_on_when_others_were_forgotten(seed):
    """
    Whatever the order and the batches, rows of several groups end in the same history.
    """
    rng = np.random.default_rng(seed)
    rows = reports(LIAR, BEST, 0.5, 60, rng)
    rows = changed(rows, tenant_hashes=rng.choice([1, 1, 1, 2, 3], 60).astype(np.uint8))
    options = HistoryOptions(rows_max=8, exact_rows_max=10_000)
    ends = []
    for size in (60, 1, 7):
        order = rng.permutation(60)
        history = History(options)
        for start in range(0, 60, size):
            history.update(rows.take(order[start : start + size]))
            history.settle()
        ends.append(history.canonical()["sequences"].tolist())

    assert ends[0] == ends[1] == ends[2]


def test_turns_give_the_place_that_some_do_not_need_to_the_others():
    """
    Of the last eight, the two groups with few rows keep all theirs, the large one has the rest.
    """
    groups = np.array([2, 3, *[1] * 20, 2])

    last = by_turns(np.arange(23), groups)[-8:]

    assert np.bincount(groups[last]).tolist() == [0, 5, 2, 1]
    assert sorted(last[groups[last] == 1]) == [17, 18, 19, 20, 21]
