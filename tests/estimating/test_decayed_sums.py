"""Sums that fade: as a direct weighted sum has it, and the same bytes however they were made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cuts, lightly

from learners.estimates.sums.decayed_sums import EPOCHS_KEPT, FRACTION_ONE, DecayedSums

HALF_LIFE_MS = 1000
SHAPE = (2, 3)
KEYS = (0, 7, 2**64 - 1)
AS_OF_MS = 50_000

# (key, time, seed of the summed array): few keys, times that meet the edges of epochs.
events = st.lists(
    st.tuples(
        st.sampled_from(KEYS),
        st.integers(0, AS_OF_MS) | st.sampled_from([0, 999, 1000, 1001, AS_OF_MS]),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=12,
)
Event = tuple[int, int, int]


def value_of(event: Event) -> np.ndarray:
    return np.random.default_rng(event[2]).integers(-(2**30), 2**30, SHAPE)


def fold(sums: DecayedSums, batch: list[Event]) -> DecayedSums:
    """Add a batch the way learners do: grouped by key and epoch, weights applied before."""
    epochs, weights = sums.epochs_and_weights(np.array([t_ms for _, t_ms, _ in batch]))
    totals: dict[tuple[int, int], np.ndarray] = {}
    for event, epoch, weight in zip(batch, epochs.tolist(), weights.tolist(), strict=True):
        at = (event[0], epoch)
        totals[at] = totals.get(at, np.zeros(SHAPE, np.int64)) + weight * value_of(event)
    for (key, epoch), total in totals.items():
        sums.add(key, epoch, total)
    return sums


def folded(*runs: list[Event]) -> DecayedSums:
    sums = DecayedSums(SHAPE, HALF_LIFE_MS)
    for batch in runs:
        fold(sums, batch)
    return sums


def as_bytes(sums: DecayedSums) -> dict[str, tuple]:
    return {
        name: (array.shape, array.dtype, array.tobytes()) for name, array in sums.arrays().items()
    }


# --- what is read -------------------------------------------------------------------------------


@lightly
@given(events, st.integers(0, 30_000))
def test_sums_are_what_a_direct_weighted_sum_gives(history, later_ms):
    """
    An outcome of age a counts 2^(−a / half-life), short of it by less than 1/256 because weights
    are whole numbers; and not at all if its epoch is sixteen or more before that of the question.
    """
    as_of_ms = AS_OF_MS + later_ms
    now = as_of_ms // HALF_LIFE_MS

    read = folded(history).read(list(KEYS), as_of_ms)

    for row, key in enumerate(KEYS):
        want, bound = np.zeros(SHAPE), np.zeros(SHAPE)
        for event in history:
            if event[0] == key and event[1] // HALF_LIFE_MS > now - EPOCHS_KEPT:
                weight = 0.5 ** ((as_of_ms - event[1]) / HALF_LIFE_MS)
                want += weight * value_of(event)
                bound += weight * np.abs(value_of(event))
        assert (np.abs(read[row] - want) <= bound / FRACTION_ONE + 1e-9 * bound + 1e-300).all()


@pytest.mark.parametrize(
    ("t_ms", "epoch", "weight"),
    [
        (0, 0, 256),
        (1, 0, 256),
        (500, 0, 362),  # 256·√2 = 362.04
        (999, 0, 511),
        (1000, 1, 256),
        (1999, 1, 511),
        (-1, -1, 511),
        (10**15 + 500, 10**12, 362),
    ],
)
def test_a_weight_grows_from_256_to_511_within_an_epoch_and_starts_again(t_ms, epoch, weight):
    """
    Time is cut at whole half-lives; within one, the weight is the floor of 256·2^fraction.
    """
    epochs, weights = DecayedSums(SHAPE, HALF_LIFE_MS).epochs_and_weights(np.array([t_ms]))

    assert (epochs.tolist(), weights.tolist()) == ([epoch], [weight])


def test_weights_of_a_batch_are_those_of_its_rows():
    """
    A weight does not depend on the company it is computed in, nor on its memory layout.
    """
    sums = DecayedSums(SHAPE, 86_400_000)
    t_ms = np.random.default_rng(0).integers(0, 10**13, 1001)

    epochs, weights = sums.epochs_and_weights(t_ms)

    alone = [sums.epochs_and_weights(t_ms[i : i + 1]) for i in range(len(t_ms))]
    np.testing.assert_array_equal(epochs, np.concatenate([e for e, _ in alone]))
    np.testing.assert_array_equal(weights, np.concatenate([w for _, w in alone]))
    np.testing.assert_array_equal(weights[::3], sums.epochs_and_weights(t_ms[::3])[1])


def test_a_key_never_seen_reads_as_zero_among_others():
    """
    Keys come back in the order asked for, unknown ones as zeros.
    """
    sums = folded([(7, 0, 1)])

    read = sums.read([5, 7, 6], 0)

    assert not read[[0, 2]].any()
    np.testing.assert_array_equal(read[1], value_of((7, 0, 1)))


def test_empty_sums_read_as_zero_and_have_empty_arrays():
    """
    Nothing learned is a state like any other: it can be read, saved and loaded.
    """
    sums = DecayedSums(SHAPE, HALF_LIFE_MS)
    restored = DecayedSums(SHAPE, HALF_LIFE_MS)

    restored.load(sums.arrays())

    assert sums.read([1], 10**12).shape == (1, *SHAPE)
    assert not restored.read([1], 10**12).any()
    assert as_bytes(restored) == as_bytes(sums)


# --- the same bytes -----------------------------------------------------------------------------


@lightly
@given(events, st.data())
def test_any_order_and_any_batches_give_the_same_bytes(history, data):
    """
    The state depends on which outcomes were added, not on when or together with which.
    """
    shuffled = data.draw(st.permutations(history))
    runs = [shuffled[rows] for rows in data.draw(cuts(len(history)))]

    assert as_bytes(folded(*runs)) == as_bytes(folded(history))


@lightly
@given(events, st.data())
def test_any_shards_merged_in_any_order_give_the_same_bytes(history, data):
    """
    Shards that each saw some of the outcomes add up to one that saw them all, even if each has
    forgotten by its own clock before.
    """
    of_shard = data.draw(st.lists(st.integers(0, 2), min_size=len(history), max_size=len(history)))
    shards = [
        folded([event for event, shard in zip(history, of_shard, strict=True) if shard == s])
        for s in data.draw(st.permutations(range(3)))
        if s in of_shard
    ]
    for shard in shards:
        shard.forget()

    merged = DecayedSums(SHAPE, HALF_LIFE_MS)
    for shard in shards:
        merged.merge(shard)

    assert as_bytes(merged) == as_bytes(folded(history))


@lightly
@given(events, st.data())
def test_saved_and_restored_anywhere_on_the_way_it_ends_in_the_same_bytes(history, data):
    """
    A restart between any two batches, from what was saved there, changes nothing.
    """
    sums = DecayedSums(SHAPE, HALF_LIFE_MS)
    for rows in data.draw(cuts(len(history))):
        saved = sums.arrays()
        sums = DecayedSums(SHAPE, HALF_LIFE_MS)
        sums.load(saved)
        fold(sums, history[rows])

    assert as_bytes(sums) == as_bytes(folded(history))


@pytest.mark.parametrize("forget_between", [False, True])
@pytest.mark.parametrize("newest_first", [False, True])
def test_the_newest_epochs_are_kept(newest_first, forget_between):
    """
    Sixteen of them, whatever lies between. It does not matter in which order outcomes came, nor
    whether something was forgotten in between.
    """
    history = [(0, 3 * i * HALF_LIFE_MS, i + 1) for i in range(EPOCHS_KEPT + 4)]
    sums = DecayedSums(SHAPE, HALF_LIFE_MS)

    for event in reversed(history) if newest_first else history:
        fold(sums, [event])
        if forget_between:
            sums.forget()

    assert sums.arrays()["epochs"].tolist() == [3 * i for i in range(4, EPOCHS_KEPT + 4)]


@pytest.mark.parametrize("age_epochs", [EPOCHS_KEPT - 1, EPOCHS_KEPT, 40])
def test_an_epoch_of_long_ago_counts_for_nothing(age_epochs):
    """
    Sixteen epochs count, that of the question among them.
    """
    sums = folded([(0, 5 * HALF_LIFE_MS, 1), (0, (5 + age_epochs) * HALF_LIFE_MS, 2)])

    read = sums.read([0], (5 + age_epochs) * HALF_LIFE_MS)[0]

    old = value_of((0, 0, 1)) * 2.0**-age_epochs if age_epochs < EPOCHS_KEPT else 0.0
    np.testing.assert_allclose(read, value_of((0, 0, 2)) + old, rtol=1e-12)


@pytest.mark.parametrize("ahead_epochs", [2, 17, 87_600])
def test_an_outcome_from_the_future_neither_counts_nor_erases(ahead_epochs):
    """
    A clock that was hours or years ahead for a moment: the past is read as if nothing had been,
    before and after a restart, and so is what comes next.
    """
    sums = folded([(0, i * HALF_LIFE_MS, 1) for i in range(5)])
    now_ms = 4 * HALF_LIFE_MS
    before = sums.read([0], now_ms)

    fold(sums, [(0, now_ms + ahead_epochs * HALF_LIFE_MS, 9)])
    restored = DecayedSums(SHAPE, HALF_LIFE_MS)
    restored.load(sums.arrays())
    np.testing.assert_array_equal(restored.read([0], now_ms), before)

    fold(restored, [(0, now_ms, 1)])
    want = folded([(0, i * HALF_LIFE_MS, 1) for i in (*range(5), 4)]).read([0], now_ms)
    np.testing.assert_array_equal(restored.read([0], now_ms), want)


# --- nothing is shared --------------------------------------------------------------------------


def test_what_was_added_or_given_away_stays_the_givers():
    """
    Neither the caller's arrays nor another shard's nor a saved copy change when a sum goes on.
    """
    total = np.ones(SHAPE, np.int64)
    first, second = DecayedSums(SHAPE, HALF_LIFE_MS), DecayedSums(SHAPE, HALF_LIFE_MS)
    first.add(7, 0, total)
    second.merge(first)
    saved = second.arrays()
    third = DecayedSums(SHAPE, HALF_LIFE_MS)
    third.load(saved)

    for sums in (second, third):
        sums.add(7, 0, total)

    assert total.tolist() == np.ones(SHAPE).tolist()
    assert saved["sums"].tolist() == [np.ones(SHAPE).tolist()]
    np.testing.assert_array_equal(first.read([7], 0)[0], np.ones(SHAPE) / FRACTION_ONE)


@pytest.mark.parametrize(("shape", "half_life_ms"), [((2, 2), HALF_LIFE_MS), (SHAPE, 999)])
def test_sums_of_another_kind_are_not_merged(shape, half_life_ms):
    """
    Adding sums of another shape or half-life would be meaningless, and is refused.
    """
    sums = DecayedSums(SHAPE, HALF_LIFE_MS)

    with pytest.raises(AssertionError):
        sums.merge(DecayedSums(shape, half_life_ms))
