"""The requests of a model that has hardly been tried."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from learners.policies.newcomers import NewcomerOptions, Trials, Tries, draw_within

KEYS = [11, 22, 33]
PROVEN = np.full(3, 99.0)
NONE = np.zeros(3)
FREE = np.full(3, np.inf)
RNG = np.random.default_rng(0)


def tries(trials, known, *, proving=None, sent=NONE, replicas=1, at_s=0):
    """What the last of three models may take when so many of its outcomes are known."""
    n_outcomes = np.array([99.0, 99.0, known])
    n_proving = n_outcomes if proving is None else np.array([99.0, 99.0, proving])
    return trials.tries(KEYS, n_outcomes, n_proving, sent, replicas, at_s * 1000)


def send(trials, columns, usd=0.01, *, at_s=0):
    """Note requests at a cost each."""
    cost_usd = np.broadcast_to(usd, len(columns))
    trials.sent(KEYS, np.asarray(columns), cost_usd, at_s * 1000)


def drawn(limit, n=50, p=(0.1, 0.3, 0.6), cost=None):
    """n requests that all may have all three models."""
    cost_usd = np.full((n, 3), 0.01) if cost is None else cost
    return draw_within(np.tile(p, (n, 1)), np.ones((n, 3), bool), limit, cost_usd, RNG.random(n))


def test_an_untried_model_gets_its_tries_and_then_nothing_until_outcomes_come():
    """
    As many requests as the policy gives it, one after the other, then none.
    """
    trials = Trials(NewcomerOptions())

    p, chosen = drawn(tries(trials, 0))

    at = np.flatnonzero(chosen == 2)
    assert len(at) == 3
    np.testing.assert_allclose(p[: at[2] + 1, 2], 0.6)
    assert not p[at[2] + 1 :, 2].any()


def test_what_is_cut_off_goes_to_the_proven_models_as_they_were_weighed():
    """
    A third of what is left to the first, two thirds to the second, here 1 : 3.
    """
    p, _ = drawn(Tries(np.array([np.inf, np.inf, 0.0]), FREE, np.ones(3)))

    np.testing.assert_allclose(p, np.tile([0.25, 0.75, 0.0], (50, 1)))


@pytest.mark.parametrize("known", [0.0, 1.0, 1.9])
def test_tries_are_given_back_after_a_while_and_two_outcomes_end_the_limit(known):
    """
    Not by outcomes: the first few say little, and a bad model would go on.
    """
    trials = Trials(NewcomerOptions())
    tries(trials, 0.0)
    send(trials, [2, 2])

    found = [tries(trials, known, at_s=at_s).requests[2] for at_s in (0, 59, 61)]

    assert found == [1.0, 1.0, 3.0]
    assert tries(trials, 2.0).requests[2] == np.inf


def test_the_budget_in_requests_is_never_exceeded_however_long_no_outcome_comes():
    """
    Also not with outcomes that come one at a time.
    """
    trials, n_sent = Trials(NewcomerOptions(requests_max=10)), 0
    for round_ in range(40):
        _, chosen = drawn(tries(trials, min(1.9, round_ * 0.1), at_s=100 * round_))
        send(trials, chosen, at_s=100 * round_)
        n_sent += int((chosen == 2).sum())

    assert n_sent == 10


def test_the_budget_in_dollars_is_never_exceeded():
    """
    A call is reserved at what it is expected to cost; one that does not fit goes elsewhere, cheaper
    ones may still fit.
    """
    trials, spent = Trials(NewcomerOptions(usd_max=0.1, tries_at_once=100)), 0.0
    for _ in range(20):
        cost = RNG.uniform(0.001, 0.05, (50, 3))
        p, chosen = drawn(tries(trials, 0), cost=cost)
        usd = cost[np.arange(50), chosen]
        send(trials, chosen, usd)
        spent += float(usd[chosen == 2].sum())
        assert (p[np.arange(50), chosen] > 0).all()

    assert 0.09 < spent <= 0.1


@pytest.mark.parametrize("replicas", [2, 3, 7])
def test_replicas_share_the_budget_without_talking(replicas):
    """
    All together send no more than it.
    """
    options = NewcomerOptions(requests_max=20, tries_at_once=100)
    n_sent = 0
    for _ in range(replicas):
        trials = Trials(options)
        for _ in range(5):
            _, chosen = drawn(tries(trials, 0, replicas=replicas))
            send(trials, chosen)
            n_sent += int((chosen == 2).sum())

    assert 20 - replicas < n_sent <= 20


def test_a_replica_that_starts_anew_knows_from_telemetry_what_was_spent():
    """
    Unless the model was known once and has faded.
    """
    options, sent = NewcomerOptions(requests_max=20), np.array([0.0, 0.0, 20.0])

    assert tries(Trials(options), 0, sent=sent).requests[2] == 0.0
    assert tries(Trials(options), 0.5, sent=sent).requests[2] > 0.0


def test_a_model_that_is_proven_begins_with_a_new_budget_when_it_has_faded():
    """
    What it was sent while it was known is no exploration.
    """
    trials = Trials(NewcomerOptions(requests_max=3))
    trials_before = tries(trials, 0)
    send(trials, [2, 2, 2])
    tries(trials, 2.0)

    again = tries(trials, 0.5)

    assert trials_before.requests[2] == 3.0 and again.requests[2] == 3.0


@pytest.mark.parametrize(("n_good", "cap"), [(0, 0.04), (1, 0.2), (2, 1.0)])
def test_a_model_whose_calls_fail_keeps_a_share_that_grows_with_successes(n_good, cap):
    """
    From the stated share to all of it at two; it needs no tries.
    """
    limit = tries(Trials(NewcomerOptions()), 50.0, proving=n_good)

    p, _ = drawn(limit, p=(0.0, 0.0, 1.0))

    np.testing.assert_allclose(p[:, 2], cap)


def test_where_all_are_new_nothing_is_cut():
    """
    There is nothing to protect. Likewise where the proven ones may not be had.
    """
    p, allowed = np.array([[0.5, 0.5, 0.0]]), np.array([[True, True, False]])
    limit = Tries(np.array([0.0, 0.0, np.inf]), FREE, np.ones(3))

    found, _ = draw_within(p, allowed, limit, np.zeros((1, 3)), np.zeros(1))

    np.testing.assert_array_equal(found, p)


@pytest.mark.parametrize("left", [0.0, 1.0, np.inf])
@pytest.mark.parametrize("share", [0.04, 1.0])
def test_where_one_model_alone_may_be_had_it_is_chosen_as_by_the_rule_for_all(left, share):
    """
    Whether its tries are used up or not. Beside a request that has a choice the rule for all
    decides, and gives the lone one's the same.
    """
    p, allowed = np.eye(3)[[2, 0, 2]], np.eye(3, dtype=bool)[[2, 0, 2]]
    choice = np.vstack([p, [[0.0, 0.0, 1.0]]]), np.vstack([allowed, [[True, False, True]]])
    limit = Tries(np.array([np.inf, np.inf, left]), FREE, np.array([1.0, 1.0, share]))

    alone, chosen = draw_within(p, allowed, limit, np.zeros((3, 3)), np.full(3, 0.5))
    beside, _ = draw_within(*choice, limit, np.zeros((4, 3)), np.full(4, 0.5))

    np.testing.assert_array_equal(alone, p)
    np.testing.assert_array_equal(beside[:3], p)
    assert chosen.tolist() == [2, 0, 2]
    assert (beside[3, 2] < 1.0) == (left <= 1.0 or share < 1.0)


def test_where_all_are_new_what_is_remembered_does_not_grow_with_requests():
    """
    All requests go to unproven models then: each costs as much as the first, and tries are as they
    would be.
    """
    trials, sizes = Trials(NewcomerOptions(requests_max=1_000_000)), []
    for second in range(50):
        found = trials.tries(KEYS, NONE, NONE, NONE, 1, second * 1000)
        send(trials, [0, 1, 2] * 64, usd=0.0, at_s=second)
        sizes.append(len(pickle.dumps(trials)))

    assert found.requests.tolist() == [0.0] * 3
    assert max(sizes[5:]) <= sizes[4] + 100
    assert trials.tries(KEYS, NONE, NONE, NONE, 1, 110_000).requests.tolist() == [3.0] * 3


def test_propensities_are_what_is_drawn_from_also_as_tries_run_out():
    """
    Over many draws, each row's model is as frequent as its probabilities say on average.
    """
    rng, rounds, n = np.random.default_rng(7), 1500, 5
    limit = Tries(np.array([np.inf, np.inf, 2.0]), FREE, np.ones(3))
    stated, counted = np.zeros((n, 3)), np.zeros((n, 3))
    for _ in range(rounds):
        p, chosen = draw_within(
            np.tile((0.1, 0.3, 0.6), (n, 1)),
            np.ones((n, 3), bool),
            limit,
            np.zeros((n, 3)),
            rng.random(n),
        )
        stated += p / rounds
        counted[np.arange(n), chosen] += 1 / rounds

    np.testing.assert_allclose(counted, stated, atol=4 * np.sqrt(0.25 / rounds))
