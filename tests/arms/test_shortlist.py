"""Arms that are described by text: retrieved by description and history, ranked by a shared model."""

from __future__ import annotations

import numpy as np
import pytest

from learners.arms.experience import COUNT, QUALITY, Experience
from learners.arms.pairs import N_PAIR, pairs
from learners.arms.shortlist import ArmOptions, Arms, Shortlist
from learners.context import BIAS, N_DIRECTIONS, Contexts
from learners.targets import to_fixed
from load.bench.control.arms import ArmsBench, measure

N_ARMS = 300


def contexts(n: int, seed: int) -> Contexts:
    return np.random.default_rng(seed).integers(-60, 61, (n, 64)).astype(np.int8)


def declared(described: Contexts, **more: object) -> Arms:
    return Arms(keys=range(len(described)), descriptions=described, **more)


def outcomes(n: int, seed: int = 0) -> tuple[list[int], Contexts, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = rng.integers(-127, 128, (n, N_PAIR)).astype(np.int8)
    return rng.integers(0, 9, n).tolist(), contexts(n, seed), made, to_fixed(rng.random(n))


def test_sums_are_the_same_bits_in_any_order_and_from_any_shards():
    """One by one backwards, in one batch, or in two shards that are merged."""
    keys, asked, made, quality = outcomes(60)
    whole, single, first, second = (Experience() for _ in range(4))
    whole.update(keys, asked, made, quality)
    for i in reversed(range(60)):
        single.update(keys[i : i + 1], asked[i : i + 1], made[i : i + 1], quality[i : i + 1])
    first.update(keys[:20], asked[:20], made[:20], quality[:20])
    second.update(keys[20:], asked[20:], made[20:], quality[20:])
    first.merge(second)
    for other in (single, first):
        assert other.digest() == whole.digest()


def test_an_outcome_of_one_half_life_ago_counts_half_and_nothing_after_sixteen():
    """Whenever it came, and in what was kept of it by a snapshot."""
    half_life_ms = 1000
    known = Experience(half_life_ms)
    _, asked, made, quality = outcomes(2)
    at_ms = np.array([40 * half_life_ms, 41 * half_life_ms])
    known.update([7, 7], asked, made, quality, at_ms=at_ms)
    kept = Experience.restore([arrays for _, arrays in known.blocks()], half_life_ms, 0)
    assert kept.digest() == known.digest()
    assert kept.outcomes([7]).tolist() == [2]
    for when, expected in ((41, 1.5), (42, 0.75), (70, 0.0)):
        read = kept.read([7, 8], when * half_life_ms)
        assert read.rows[:, COUNT] == pytest.approx([expected, 0.0])
    now = kept.read([7], 41 * half_life_ms)
    assert now.rows[0, QUALITY] == pytest.approx(quality[0] / 2 + quality[1])
    assert now.products == pytest.approx(made[0] * quality[0] / 2 + made[1] * quality[1])


def test_one_tenant_moves_what_is_known_of_an_arm_by_half_at_most_once_others_have_said_enough():
    """A thousand lies of one group, against twenty true outcomes of another."""
    known, n = Experience(), 1000
    for group, quality in ((1, 0.0), (2, 0.8)):
        made = np.zeros((n, N_PAIR), np.int8)
        known.update(
            [7] * n, contexts(n, 1), made, to_fixed(np.full(n, quality)),
            groups=np.full(n, group),
        )  # fmt: skip
        n = 20
    (row,) = known.read([7], 0).rows
    assert row[COUNT] == pytest.approx(40.0)
    assert row[QUALITY] / row[COUNT] == pytest.approx(to_fixed(np.array([0.4]))[0], rel=1e-3)


def test_what_was_learned_before_sums_faded_is_read_as_if_it_had_all_come_when_it_was_saved():
    """Snapshots of before have one sum for each arm, and one for all."""
    keys, asked, made, quality = outcomes(30)
    made[:, -1] = BIAS
    known = Experience()
    known.update(keys, asked, made, quality)
    then = known.read(range(9), 0)
    old = [
        {"squares": then.squares.astype(np.int64), "products": then.products.astype(np.int64)},
        {"keys": np.arange(9, dtype=np.uint64), "sums": then.rows.astype(np.int64)},
    ]
    found = Experience.restore(old, 1000, 5000)
    assert found.outcomes(range(9)).tolist() == known.outcomes(range(9)).tolist()
    read = found.read(range(9), 5000)
    for name in ("squares", "products", "rows"):
        assert getattr(read, name) == pytest.approx(getattr(then, name))


def test_the_arm_whose_description_is_the_request_is_retrieved():
    """Each of them, first of all."""
    described = contexts(N_ARMS, 1)
    shortlist = Shortlist(declared(described), Experience())
    ranked = shortlist.choose(described, np.full(N_ARMS, 0.5))
    assert (ranked.arms[:, 0] == np.arange(N_ARMS)).all()


def test_propensities_are_those_of_the_draw():
    """Over evenly spaced draws each retrieved arm is chosen as often as its propensity says."""
    shortlist = Shortlist(declared(contexts(N_ARMS, 1)), Experience())
    n = 4096
    one = np.tile(contexts(1, 2), (n, 1))
    ranked = shortlist.choose(one, (np.arange(n) + 0.5) / n)
    assert ranked.propensity.sum(axis=1) == pytest.approx(1.0)
    shares = np.bincount(ranked.place, minlength=ranked.arms.shape[1]) / n
    assert shares == pytest.approx(ranked.propensity[0], abs=1e-3)
    assert set(ranked.chosen) <= set(ranked.arms[0])


def learned(described: Contexts, tried: np.ndarray, asked: Contexts, quality) -> Experience:
    """Every arm of `tried` asked everything, at its quality."""
    found, keys = Experience(), np.repeat(tried, len(asked))
    shortlist = Shortlist(declared(described), found, ArmOptions(retrieved=1))
    q = np.tile(asked, (len(tried), 1))
    unit = q[:, :N_DIRECTIONS] / np.linalg.norm(q[:, :N_DIRECTIONS].astype(float), axis=1)[:, None]
    made = pairs(unit, shortlist._described[keys][:, None], np.zeros((len(keys), 1)))[:, 0]
    found.update(keys.tolist(), q, made, to_fixed(quality[keys].astype(float)))
    return found


def test_an_arm_that_was_never_tried_is_judged_by_its_description():
    """Half of the arms say one thing more, and are good; of those untried the same is expected."""
    described = contexts(N_ARMS, 3) // 2
    good = np.arange(N_ARMS) % 2 == 0
    described[:, 0] = np.where(good, 120, -120)
    asked = contexts(8, 4)
    asked[:, 0] = 0
    known = learned(described, np.arange(100), asked, good * 0.8)
    shortlist = Shortlist(
        declared(described), known, ArmOptions(retrieved=255, experience_share=0.0)
    )
    ranked = shortlist.choose(asked, np.full(8, 0.5))
    untried = ranked.arms >= 100
    expected = [
        ranked.quality[untried & (good[ranked.arms] == one)].mean() for one in (True, False)
    ]
    assert expected[0] - expected[1] > 0.3


def test_an_arm_is_found_by_what_it_did_well_where_its_description_says_nothing_of_it():
    """Requests that it failed at do not find it the more."""
    described, asked = contexts(N_ARMS, 5), contexts(2, 6)
    place = [
        Shortlist(declared(described), Experience(), ArmOptions(retrieved=255))
        .choose(asked, np.zeros(2))
        .arms[:, -1]
    ][0]
    known = Experience()
    for at, arm in enumerate(place):
        made = np.zeros((40, N_PAIR), np.int8)
        known.update(
            [int(arm)] * 40, np.tile(asked[at], (40, 1)), made, to_fixed(np.full(40, 1.0 - at))
        )
    options = ArmOptions(retrieved=16, experience_share=2.0)
    ranked = Shortlist(declared(described), known, options).choose(asked, np.zeros(2))
    assert place[0] in ranked.arms[0]
    assert place[1] not in ranked.arms[1]


def test_it_does_better_than_the_naive_ways_on_a_small_world():
    """Nearest description, most successes, and ε-greedy among the nearest."""
    found = measure(ArmsBench(n_arms=400, n_requests=12_288, seeds=2, calls=5), lambda said: None)
    assert found["n"] == 400
    assert found["ms"] > 0.0
    for rival in found["rivals"].values():
        assert found["of_best"][0] > rival["of_best"][0]
