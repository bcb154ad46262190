"""Policies: a contract for all of them, the formula of each, and a draw that keeps to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from river.bandit import LinUCBDisjoint
from scipy import stats
from scipy.integrate import quad_vec
from strategies import contexts, lightly, outcomes

from learners.context import real
from learners.estimates import ridge
from learners.estimates.learned import examples
from learners.estimates.ridge import RidgeOptions
from learners.outcomes import Outcomes
from learners.policies.doubt import Doubt
from learners.policies.greedy import EpsilonGreedy, Greedy
from learners.policies.inverse_gap import FastCb, SquareCb
from learners.policies.policy import POLICIES as REGISTERED
from learners.policies.policy import Policy, Scores, draw
from learners.policies.thompson import Thompson, normal_table
from learners.policies.upper_confidence import LinUcb
from learners.targets import ONE, Target

POLICIES = {
    **{f"{name}, as registered": kind() for name, kind in REGISTERED.items()},
    "greedy": Greedy(),
    "ε-greedy": EpsilonGreedy(),
    "ε-greedy, never": EpsilonGreedy(epsilon=0.0),
    "ε-greedy, always": EpsilonGreedy(epsilon=1.0),
    "LinUCB": LinUcb(),
    "LinUCB, without bonus": LinUcb(alpha=0.0),
    "Thompson": Thompson(),
    "Thompson, hardly": Thompson(scale=1e-9),
    "SquareCB": SquareCb(),
    "SquareCB, uniform": SquareCb(gamma=0.0),
    "SquareCB, hardly": SquareCb(gamma=1e12),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
named_policies = st.sampled_from(list(POLICIES))
thoroughly = settings(lightly, max_examples=200)
Case = tuple[np.ndarray, np.ndarray, np.ndarray]


def weigh(policy: Policy, utility: np.ndarray, deviation: np.ndarray, allowed: np.ndarray):
    return policy.probabilities(Scores(utility, deviation, allowed))


UTILITIES = (0.0, 0.5, 1.0, -1e6, 1e6, 1e-9)  # equals, gaps of a million, near-equals
DEVIATIONS = (0.0, 1e-12, 1e-3, 0.3, 1e3)


@st.composite
def cases(draw_: st.DrawFn) -> Case:
    """A few requests, as awkward as Hypothesis makes them."""
    n, k = draw_(st.integers(1, 3)), draw_(st.integers(1, 5))
    utilities = st.sampled_from(UTILITIES) | st.floats(-1e6, 1e6)
    deviations = st.sampled_from(DEVIATIONS) | st.floats(0, 2)
    allowed = draw_(arrays(bool, (n, k)))
    allowed[np.arange(n), draw_(arrays(int, n, elements=st.integers(0, k - 1)))] = True
    utility = draw_(arrays(float, (n, k), elements=utilities))
    return utility, draw_(arrays(float, (n, k), elements=deviations)), allowed


def many(k: int, seed: int = 0, n: int = 200) -> Case:
    """Hundreds of requests at once: half are awkward, half like real ones."""
    rng = np.random.default_rng(seed)
    awkward = (rng.random(n) < 0.5)[:, None]
    utility = np.where(awkward, rng.choice(UTILITIES, (n, k)), rng.normal(0.6, 0.2, (n, k)))
    deviation = np.where(awkward, rng.choice(DEVIATIONS, (n, k)), rng.gamma(2, 0.05, (n, k)))
    allowed = rng.random((n, k)) < 0.7
    allowed[np.arange(n), rng.integers(0, k, n)] = True
    return utility, deviation, allowed


every_width = pytest.mark.parametrize("case", [many(k) for k in (1, 2, 5)], ids=lambda _: "")


# --- the contract -------------------------------------------------------------------------------


@thoroughly
@given(cases(), named_policies)
def test_probabilities_are_finite_sum_to_one_and_are_zero_where_not_allowed(case, name):
    """
    Whatever the utilities and deviations, in every row.
    """
    utility, deviation, allowed = case

    p = weigh(POLICIES[name], utility, deviation, allowed)

    assert p.shape == utility.shape
    assert np.isfinite(p).all()
    assert (p >= 0).all()
    assert (p[~allowed] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-12)


@every_policy
@every_width
def test_the_contract_holds_for_hundreds_of_requests_at_once(policy, case):
    """
    The same for a table of awkward and ordinary requests; and what was handed in is not changed.
    """
    before = [matrix.copy() for matrix in case]

    p = weigh(policy, *case)

    assert np.isfinite(p).all()
    assert (p >= 0).all()
    assert (p[~case[2]] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-12)
    for matrix, copy in zip(case, before, strict=True):
        np.testing.assert_array_equal(matrix, copy)


@every_policy
@every_width
def test_the_only_model_allowed_is_certain(policy, case):
    """
    One allowed model gets all, however poor it looks.
    """
    utility, deviation, allowed = case
    only = np.zeros_like(allowed)
    only[np.arange(len(allowed)), allowed.argmax(axis=1)] = True

    assert (weigh(policy, utility, deviation, only)[only] == 1.0).all()


@every_policy
@every_width
def test_a_model_that_is_not_allowed_changes_nothing_for_the_others(policy, case):
    """
    The others' probabilities are as if it were not in the list, though it looked best of all.
    """
    utility, deviation, allowed = case

    p = weigh(policy, utility, deviation, allowed)

    for row in range(0, len(p), 4):
        columns = np.ix_([row], allowed[row])
        alone = weigh(policy, utility[columns], deviation[columns], allowed[columns])
        np.testing.assert_allclose(p[row, allowed[row]], alone[0], atol=1e-12)


@every_policy
@every_width
def test_rows_do_not_influence_each_other(policy, case):
    """
    A request's probabilities are to the bit those it has in a batch of its own.
    """
    p = weigh(policy, *case)

    for row in range(0, len(p), 4):
        alone = weigh(policy, *(matrix[row : row + 1] for matrix in case))
        np.testing.assert_array_equal(p[row], alone[0])


@every_policy
@pytest.mark.parametrize("step", [-4.0, 0.25, 1024.0])
def test_only_differences_of_utility_matter(policy, step):
    """
    The same added to all utilities of a row changes nothing; but for FastCB, which explores less
    where little can be lost.
    """
    if isinstance(policy, FastCb):
        return
    utility, deviation, allowed = many(5)
    # Multiples of 1/64, so that adding is exact and equals stay equals.
    utility, deviation = (np.round(np.clip(m, -4, 4) * 64) / 64 for m in (utility, deviation))

    moved = weigh(policy, utility + step, deviation, allowed)

    want = weigh(policy, utility, deviation, allowed)
    np.testing.assert_allclose(moved, want, atol=1e-9)


@every_policy
def test_probabilities_follow_the_models_into_another_order(policy):
    """
    Which column a model has does not matter, but where equals must be told apart.
    """
    utility, deviation, allowed = many(5)
    utility = utility + np.random.default_rng(1).normal(0, 0.1, utility.shape)  # no equals
    order = [3, 0, 4, 1, 2]

    p = weigh(policy, utility[:, order], deviation[:, order], allowed[:, order])

    want = weigh(policy, utility, deviation, allowed)[:, order]
    np.testing.assert_allclose(p, want, atol=1e-9)


# --- greedy and ε-greedy ------------------------------------------------------------------------

UTILITY = np.array([[0.3, 0.9, 0.9, 0.1], [0.3, 0.9, 0.8, 5.0]])
ALLOWED = np.array([[True, True, True, True], [True, True, True, False]])


def test_greedy_shares_among_equals_and_ignores_what_is_barred():
    """
    Two equally good models get half each; the best of the allowed ones gets all.
    """
    p = weigh(Greedy(), UTILITY, np.ones((2, 4)), ALLOWED)

    np.testing.assert_array_equal(p, [[0, 0.5, 0.5, 0], [0, 1, 0, 0]])


def test_epsilon_greedy_spreads_epsilon_over_the_allowed_models():
    """
    A share ε goes to all allowed models alike, the best among them; the rest to the best.
    """
    p = weigh(EpsilonGreedy(epsilon=0.12), UTILITY, np.ones((2, 4)), ALLOWED)

    np.testing.assert_allclose(p, [[0.03, 0.47, 0.47, 0.03], [0.04, 0.92, 0.04, 0.0]])


# --- SquareCB -----------------------------------------------------------------------------------


@lightly
@given(cases(), st.sampled_from([1.0, 100.0, 1000.0]))
def test_squarecb_is_inverse_gap_weighting(case, gamma):
    """
    1 / (k + γ·gap) for all but the best, which takes the rest (Foster & Rakhlin 2020).
    """
    utility, deviation, allowed = case

    p = weigh(SquareCb(gamma=gamma), utility, deviation, allowed)

    for row in range(len(utility)):
        columns = np.flatnonzero(allowed[row]).tolist()
        best = max(columns, key=lambda column, row=row: utility[row, column])
        want = np.zeros(utility.shape[1])
        for column in columns:
            if column != best:
                gap = utility[row, best] - utility[row, column]
                want[column] = 1 / (len(columns) + gamma * gap)
        want[best] = 1 - want.sum()
        np.testing.assert_allclose(p[row], want, rtol=1e-12, atol=1e-15)
        assert p[row, best] >= 1 / len(columns) - 1e-12


def test_squarecb_tries_the_others_as_rarely_as_its_docstring_says():
    """
    At 1,000, with four models: 0.02 worse once in 24 times, 0.3 worse once in 304.
    """
    p = weigh(
        SquareCb(), np.array([[0.9, 0.88, 0.6, 0.6]]), np.zeros((1, 4)), np.ones((1, 4), bool)
    )

    np.testing.assert_allclose(1 / p[0, 1:], [24, 304, 304])


# --- Thompson -----------------------------------------------------------------------------------


def exact(utility: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Probability of each of k independent Gaussians to be the largest, by adaptive quadrature."""

    def density(z: float) -> np.ndarray:
        below = (utility[:, None] + spread[:, None] * z - utility) / spread  # (a, b)
        others = np.where(np.eye(len(utility), dtype=bool), 1.0, stats.norm.cdf(below))
        return stats.norm.pdf(z) * others.prod(axis=1)

    # Where one integrand jumps: spreads may differ a hundredfold.
    jumps = ((utility - utility[:, None]) / spread[:, None]).ravel()
    p = quad_vec(density, -9, 9, epsabs=1e-9, points=jumps[np.abs(jumps) < 9])[0]
    return p / p.sum()


def as_stated(k: int) -> float:
    """The scale at which deviations are taken as they are, for k models."""
    return float(np.sqrt(np.log(k) / np.log(3)))


@pytest.mark.parametrize("ratio", [1, 8, 100])
@pytest.mark.parametrize("seed", range(6))
def test_thompson_is_the_integral_it_stands_for(seed, ratio):
    """
    With a table of 65,536 rows to 0.005, with the 128 of the default to four standard errors.
    """
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 7))
    deviation = 0.2 * float(ratio) ** -rng.uniform(0, 1, (1, k))
    deviation[0, :2] = 0.2, 0.2 / ratio
    utility = rng.normal(0, 0.2, (1, k))
    allowed, want = np.ones((1, k), bool), exact(utility[0], deviation[0])

    np.testing.assert_allclose(
        weigh(Thompson(draws=65_536, scale=as_stated(k)), utility, deviation, allowed)[0],
        want,
        atol=0.005,
    )
    np.testing.assert_allclose(
        weigh(Thompson(scale=as_stated(k)), utility, deviation, allowed)[0],
        want,
        atol=4 * np.sqrt(0.25 / 128),
    )


def test_a_propensity_is_a_share_of_the_table():
    """
    Whole numbers of rows, and the table is the same in every process: propensities in old logs
    can be computed again.
    """
    p = weigh(Thompson(draws=128), *many(5, n=50))

    np.testing.assert_array_equal(p * 128, np.rint(p * 128))
    np.testing.assert_allclose(normal_table(4, 2).ravel(), TABLE, atol=1e-6)


def test_what_is_unknown_of_the_model_is_sampled_in_full_and_of_the_context_in_part():
    """
    At a context scale of zero only the mean's deviation counts.
    """
    utility, allowed = np.array([[0.5, 0.45]]), np.ones((1, 2), bool)
    mean, whole = np.array([[0.05, 0.05]]), np.array([[0.5, 0.5]])

    p = Thompson(context_scale=0.0).probabilities(
        Scores(utility, whole, allowed, mean_deviation=mean)
    )

    np.testing.assert_array_equal(p, weigh(Thompson(), utility, mean, allowed))


def test_thompson_of_equals_that_are_certain_takes_the_first():
    """
    The table's rows are counted for one model each, also where several levels are the same bits.
    """
    utility = np.array([[0.2, 0.7, 0.7], [0.5, 0.4, 0.3]])
    p = weigh(Thompson(deviation_min=0.0), utility, 0 * utility, np.ones((2, 3), bool))
    np.testing.assert_array_equal(p, [[0, 1, 0], [1, 0, 0]])


def test_thompson_scales_deviations_and_keeps_them_from_vanishing():
    """
    At half the scale it is what half the deviations are at full scale; without any deviation
    equals still share, and a clear best is certain.
    """
    utility, deviation = np.array([[0.5, 0.4, 0.1]]), np.array([[0.3, 0.2, 0.1]])
    allowed = np.ones((1, 3), bool)

    halved = weigh(Thompson(scale=0.5), utility, deviation, allowed)
    certain = weigh(Thompson(), np.array([[0.7, 0.7, 0.1]]), 0 * deviation, allowed)

    np.testing.assert_allclose(halved, weigh(Thompson(), utility, deviation / 2, allowed))
    np.testing.assert_allclose(certain, [[0.5, 0.5, 0.0]], atol=4 * np.sqrt(0.25 / 128))
    assert certain[0, 2] == 0.0


# --- LinUCB -------------------------------------------------------------------------------------

TABLE = [-0.67449, 0.67449, 0.67449, -0.67449, 0.67449, -0.67449, -0.67449, 0.67449]
ALPHA, BETA = 1.0, 4.0  # of river: a prior precision and a noise precision
ARMS = (0, 1, 2)


def qualities(n: int, rng: np.random.Generator) -> Outcomes:
    """N outcomes of three models whose quality is linear in the context, all of one time."""
    rows = outcomes(n, rng, among=ARMS, span_ms=1)
    lines = rng.normal(0, 0.1, (3, 64))
    quality = np.einsum("nd,nd->n", rows.contexts / 32, lines[rows.models.astype(int)])
    targets = np.zeros((n, 3), np.int64)
    targets[:, Target.QUALITY] = np.rint((quality + rng.normal(0, 0.1, n)) * ONE)
    known = np.zeros((n, 3), bool)
    known[:, Target.QUALITY] = True
    return Outcomes(
        **{
            **{name: getattr(rows, name) for name in Outcomes.__slots__},
            "targets": targets,
            "known": known,
        }
    )


def named(context: np.ndarray) -> dict[str, float]:
    return {f"x{i}": float(value) for i, value in enumerate(context / 32)}


def test_linucb_on_our_models_chooses_what_river_chooses():
    """
    On the same outcomes, our linear models with nothing shared and our upper confidence bounds
    pick the very arms that river's LinUCB picks.
    """
    rng = np.random.default_rng(0)
    rows, asked = qualities(150, rng), contexts(100, rng)
    theirs = LinUCBDisjoint(alpha=ALPHA, beta=BETA, burn_in=0, seed=1)
    theirs.reward_scaler = None  # river 0.26 mistakes `burn_in` for it
    for i in range(len(rows)):
        quality = rows.targets[i, Target.QUALITY] / ONE
        theirs.update(int(rows.models[i]), named(rows.contexts[i]), quality)
    statistics = ridge.new_statistics(1, 64, half_life_ms=10**6)
    ridge.update(statistics, examples(rows, rows.contexts, [Target.QUALITY]))
    nothing_shared = RidgeOptions(
        shared_penalty=1e12, own_penalty=ALPHA / BETA, prior_weight=ALPHA / BETA
    )
    prior, at_ms = np.full(1, 0.3), int(rows.decided_at_ms.max())
    ours = ridge.solve(statistics.read(list(ARMS), at_ms), np.zeros((3, 1)), prior, nothing_shared)

    # River's bound is of an outcome, noise included: (1 + xᵀ(S + α/β)⁻¹x) / β.
    x = real(asked)
    width = np.sqrt((1 + (ours.deviation(x) / ours.noise[:, 0]) ** 2) / BETA)
    p = weigh(LinUcb(alpha=1.0), ours.predict(x)[:, :, 0], width, np.ones((100, 3), bool))

    pulled = [theirs.pull(list(ARMS), named(context)) for context in asked]
    # Their noise is stated, ours estimated and pulled to all models': one near-tie may differ.
    assert (p.argmax(axis=1) == pulled).mean() >= 0.99
    assert (p.max(axis=1) == 1.0).all()
    assert set(pulled) == set(ARMS), "the comparison is worth little unless all arms are pulled"
    assert p.argmax(axis=1).tolist() != ours.predict(x)[:, :, 0].argmax(axis=1).tolist()


@pytest.mark.parametrize(("alpha", "best"), [(0.0, 0), (1.0, 1), (10.0, 2)])
def test_linucb_trades_what_seems_best_for_what_might_be(alpha, best):
    """
    The larger α, the more a deviation counts.
    """
    p = weigh(
        LinUcb(alpha=alpha),
        np.array([[0.8, 0.7, 0.2, 0.9]]),
        np.array([[0.0, 0.2, 0.3, 9.0]]),
        np.array([[True, True, True, False]]),
    )

    assert p[0].tolist() == np.eye(4)[best].tolist()


# --- the draw -----------------------------------------------------------------------------------

LAST = 1 - 2**-53  # the largest number a generator draws


@every_policy
@every_width
def test_a_model_of_probability_zero_is_never_drawn(policy, case):
    """
    At both ends of the unit interval too, and wherever the zeros stand.
    """
    p = weigh(policy, *case)

    for uniform in (0.0, 2**-53, 0.5, LAST):
        chosen = draw(p, np.full(len(p), uniform))
        assert (p[np.arange(len(p)), chosen] > 0).all()


@thoroughly
@given(arrays(float, (3, 5), elements=st.just(0.0) | st.floats(1e-300, 1.0)), st.floats(0, LAST))
def test_whatever_the_probabilities_and_the_number_the_draw_is_possible(weights, uniform):
    """
    Any non-negative weights, normalised, with zeros anywhere: what is drawn has a probability.
    """
    weights[:, 2] += (weights.sum(axis=1) == 0).astype(float)
    p = weights / weights.sum(axis=1, keepdims=True)

    chosen = draw(p, np.full(3, uniform))

    assert (p[np.arange(3), chosen] > 0).all()


@pytest.mark.parametrize(
    ("uniform", "column"),
    [(0.0, 1), (0.25 - 1e-12, 1), (0.25, 3), (0.5 - 1e-12, 3), (0.5, 4), (LAST, 4)],
)
def test_a_number_falls_to_the_column_whose_share_of_the_interval_it_lies_in(uniform, column):
    """
    Shares lie side by side, each with its lower end and without its upper.
    """
    p = np.array([[0.0, 0.25, 0.0, 0.25, 0.5, 0.0]])

    assert draw(p, np.array([uniform])).tolist() == [column]


@pytest.mark.parametrize("total", [1.0, 1 - 1e-12, 1 + 1e-12])
@pytest.mark.parametrize("k", [1, 3, 7, 49, 255])
def test_a_sum_a_hair_beside_one_does_not_reach_beyond_the_last_column(k, total):
    """
    Rounding of the probabilities does not let the extremes miss the first or last allowed model.
    """
    p = np.zeros((1, k + 2))
    p[:, 1:-1] = total / k

    assert draw(p, np.array([0.0])).tolist() == [1]
    assert draw(p, np.array([LAST])).tolist() == [k]


@pytest.mark.parametrize(
    "policy",
    [SquareCb(gamma=10.0), Thompson(), EpsilonGreedy(epsilon=0.3), Doubt(), FastCb(gamma=10.0)],
)
def test_models_are_drawn_as_often_as_their_propensity_says(policy):
    """
    Over 100,000 seeded draws a χ² test finds nothing.
    """
    rng, n = np.random.default_rng(1), 100_000
    utility = np.array([[0.5, 0.45, 0.3, 0.9, 0.48]])
    allowed = np.array([[True, True, True, False, True]])
    p = weigh(policy, utility, np.full((1, 5), 0.2), allowed)

    chosen = draw(np.repeat(p, n, axis=0), rng.random(n))

    seen = np.bincount(chosen, minlength=5)
    assert seen[3] == 0
    assert stats.chisquare(seen[allowed[0]], n * p[0, allowed[0]]).pvalue > 1e-3


def test_each_row_is_drawn_by_its_own_number():
    """
    Rows of a batch do not share a draw.
    """
    p = np.array([[0.5, 0.5], [0.5, 0.5], [0.1, 0.9]])

    assert draw(p, np.array([0.4, 0.6, 0.4])).tolist() == [0, 1, 1]
