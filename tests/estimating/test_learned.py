"""Learning is a fold: the same outcomes end in the same state, and any others in another."""

from __future__ import annotations

import io
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, changed, cuts, joined, lightly, outcomes

from learners.estimates.history import HistoryOptions
from learners.estimates.learned import Learned, MemoryOptions
from learners.outcomes import Outcomes

# Short enough that `batches` spans forty half-lives of a pool and that rows are forgotten.
OPTIONS = MemoryOptions(
    model_half_life_s=5.0, pool_half_life_s=1.0, history=HistoryOptions(rows_max=6)
)
ROOMY = replace(OPTIONS, history=HistoryOptions())
lighter = settings(lightly, max_examples=25)  # a state is 100 kB a model and epoch


def learned(*parts: Outcomes, options: MemoryOptions = OPTIONS) -> Learned:
    state = Learned(options)
    for part in parts:
        state.update(part)
    return state


def saved_and_restored(state: Learned) -> Learned:
    """Through bytes and back, as a snapshot does it."""
    state.history.settle()
    groups = {name: through_bytes(arrays) for name, arrays in state.statistics().items()}
    return Learned.restore(state.options, groups, through_bytes(state.history.rows))


def through_bytes(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as loaded:
        return dict(loaded)


# --- the same outcomes --------------------------------------------------------------------------


@lighter
@given(batches(), st.data())
def test_any_order_and_any_batches_end_in_the_same_state(rows, data):
    """
    The digest depends on which outcomes were learned, not on their order, on how many came at a
    time, or on when somebody looked.
    """
    n = len(rows)
    shuffled = rows.take(np.array(data.draw(st.permutations(range(n)))))
    state = Learned(OPTIONS)

    for batch in data.draw(cuts(n)):
        state.update(shuffled.take(batch))
        if data.draw(st.booleans()):
            state.digest()

    assert state.digest() == learned(rows).digest()


@lighter
@given(batches(), st.data())
def test_any_shards_merged_in_any_order_end_in_the_same_state(rows, data):
    """
    Trainers that each learned some of the outcomes add up to one that learned them all.
    """
    of_shard = np.array(data.draw(st.lists(st.integers(0, 2), min_size=10, max_size=10)))
    shards = [learned(rows.take(of_shard[: len(rows)] == shard)) for shard in range(3)]

    merged = Learned(OPTIONS)
    for shard in data.draw(st.permutations(range(3))):
        merged.merge(shards[shard])

    assert merged.digest() == learned(rows).digest()
    assert merged.as_of_ms == rows.decided_at_ms.max()


@lighter
@given(batches(), st.data())
def test_saved_and_restored_between_any_batches_it_ends_in_the_same_state(rows, data):
    """
    A restart from a snapshot, anywhere on the way, changes nothing.
    """
    state = Learned(OPTIONS)

    for batch in data.draw(cuts(len(rows))):
        state = saved_and_restored(state)
        state.update(rows.take(batch))

    assert saved_and_restored(state).digest() == state.digest() == learned(rows).digest()


def test_hundreds_of_outcomes_end_in_the_same_state_too():
    """
    The same at a size where forgetting, merging and groups of rows all take part.
    """
    rng = np.random.default_rng(0)
    rows = outcomes(900, rng, span_ms=100_000)
    options = replace(OPTIONS, history=HistoryOptions(rows_max=200, exact_rows_max=64))
    shards = [Learned(options) for _ in range(4)]
    order = rng.permutation(900)

    for start in range(0, 900, 37):
        shards[start % 4].update(rows.take(order[start : start + 37]))
        shards[start % 4].history.settle()
    merged = shards.pop()
    for shard in shards:
        merged.merge(saved_and_restored(shard))

    assert merged.digest() == learned(rows, options=options).digest()


def test_a_restored_state_reads_as_it_was():
    """
    Not the digest alone: counts, time, rows and sums are what they were.
    """
    state = learned(outcomes(200, np.random.default_rng(1)), options=ROOMY)

    restored = saved_and_restored(state)

    assert restored.as_of_ms == state.as_of_ms
    np.testing.assert_array_equal(restored.n_values, state.n_values)
    keys = [3, 1, 2**63]
    for name in ("quality", "cost", "latency", "models", "pools", "traits"):
        one, other = getattr(state, name), getattr(restored, name)
        np.testing.assert_array_equal(one.read(keys, 10**4), other.read(keys, 10**4))
    for name, column in state.history.rows.items():
        np.testing.assert_array_equal(restored.history.rows[name], column)
        assert restored.history.rows[name].dtype == column.dtype


def test_a_batch_of_nothing_changes_nothing():
    """
    An empty batch leaves the state as it was, and so does merging an empty shard.
    """
    rows = outcomes(20, np.random.default_rng(2))
    state = learned(rows)

    state.update(rows.take(np.zeros(20, bool)))
    state.merge(Learned(OPTIONS))

    assert state.digest() == learned(rows).digest()
    assert Learned(OPTIONS).digest() == saved_and_restored(Learned(OPTIONS)).digest()


# --- other outcomes -----------------------------------------------------------------------------

N = 5


def everything_reported() -> Outcomes:
    """N outcomes with every value known, so that any difference ought to be noticed."""
    rows = outcomes(N, np.random.default_rng(3), span_ms=900)
    return changed(
        rows,
        known=np.ones((N, 3), bool),
        figures_known=np.ones((N, 4), bool),
        sequences=np.arange(N, dtype=np.uint64),
    )


ALTERATIONS = {
    "issuers": (),
    "sequences": (),
    "decided_at_ms": (),
    "models": (),
    "pools": (),
    "tenant_hashes": (),
    "contexts": (0,),
    "targets": (0, 1, 2),
    "known": (0, 1, 2),
    "figures": (0, 1, 2, 3),
    "figures_known": (0, 1, 2, 3),
    "estimated": (0, 1),
    "traits": (0, 7),
    "producers": (),
}


def test_alterations_cover_every_column_of_an_outcome():
    """
    A column added to outcomes must be added to what is altered below; `pairs` are of arms alone,
    whose outcomes are not learned here.
    """
    assert [*ALTERATIONS, "pairs"] == [f.name for f in fields(Outcomes)]


@pytest.mark.parametrize("row", range(N))
@pytest.mark.parametrize(
    ("name", "place"),
    [(name, place) for name, places in ALTERATIONS.items() for place in places or (None,)],
)
def test_one_value_altered_gives_another_digest(name, place, row):
    """
    The least change of any value of any outcome is noticed.
    """
    rows = everything_reported()
    column = getattr(rows, name).copy()
    at = row if place is None else (row, place)
    column[at] = ~column[at] if column.dtype == bool else column[at] + column.dtype.type(1)

    altered = learned(changed(rows, **{name: column}), options=ROOMY)

    assert altered.digest() != learned(rows, options=ROOMY).digest()


@pytest.mark.parametrize("row", range(N))
def test_one_outcome_dropped_or_learned_twice_gives_another_digest(row):
    """
    Whichever outcome is lost or counted twice, the digest tells; and the two differ.
    """
    rows = everything_reported()
    whole = learned(rows, options=ROOMY).digest()

    dropped = learned(rows.take(np.arange(N) != row), options=ROOMY).digest()
    doubled = learned(joined([rows, rows.take([row])]), options=ROOMY).digest()

    assert len({whole, dropped, doubled}) == 3


@pytest.mark.parametrize("row", range(N))
def test_a_report_of_figures_alone_lost_or_doubled_gives_another_digest(row):
    """
    Also an outcome without any target, which leaves no row of history, is accounted for.
    """
    rows = changed(everything_reported(), known=np.zeros((N, 3), bool))
    whole = learned(rows, options=ROOMY).digest()

    dropped = learned(rows.take(np.arange(N) != row), options=ROOMY).digest()
    doubled = learned(joined([rows, rows.take([row])]), options=ROOMY).digest()

    assert len({whole, dropped, doubled}) == 3


# --- counts and time ----------------------------------------------------------------------------


def test_values_are_counted_for_ever_and_per_target():
    """
    `n_values` counts reported values, forgotten ones included; `as_of_ms` is the newest decision,
    whichever came last.
    """
    rng = np.random.default_rng(4)
    old = changed(outcomes(40, rng), decided_at_ms=np.arange(40))
    new = changed(outcomes(30, rng), decided_at_ms=np.arange(30) + 10**6)

    state = learned(new, old)
    state.digest()

    np.testing.assert_array_equal(state.n_values, old.known.sum(0) + new.known.sum(0))
    assert state.as_of_ms == 10**6 + 29
    other = learned(old)
    other.merge(state)
    np.testing.assert_array_equal(other.n_values, 2 * old.known.sum(0) + new.known.sum(0))
    assert other.as_of_ms == 10**6 + 29


# --- nothing is shared --------------------------------------------------------------------------


def test_neither_a_snapshot_nor_another_shard_changes_when_learning_goes_on():
    """
    What was restored from, given away or merged stays as it was: others hold it still. Nor does
    a snapshot follow the state it was taken of.
    """
    rng = np.random.default_rng(5)
    first, more = outcomes(50, rng), outcomes(50, rng)
    shard = learned(first, options=ROOMY)
    before = shard.digest()
    snapshot, rows = shard.statistics(), shard.history.rows
    restored = Learned.restore(ROOMY, snapshot, rows)
    merged = Learned(ROOMY)
    merged.merge(shard)

    for state in (restored, merged):
        state.update(more)
        assert state.digest() == learned(first, more, options=ROOMY).digest()
    assert shard.digest() == before

    shard.update(more)
    assert Learned.restore(ROOMY, snapshot, rows).digest() == before


@pytest.mark.parametrize("change", ["model_half_life_s", "pool_half_life_s", "history"])
def test_shards_with_other_options_are_not_merged(change):
    """
    Sums with another half-life can't be added.
    """
    value = HistoryOptions(rows_max=7) if change == "history" else 77.0

    with pytest.raises(AssertionError, match="same options"):
        Learned(OPTIONS).merge(Learned(replace(OPTIONS, **{change: value})))
