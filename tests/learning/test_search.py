"""The compiled search of an index finds what FAISS finds in it."""

from __future__ import annotations

import gc
import weakref

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.context import N_FEATURES
from learners.estimates.nearest import ivf, lists
from learners.estimates.nearest.lists import Lists, searched
from learners.kernels import search

ROUNDING = 2e-4  # of a direction in 16 bits: a tenth of what 8 bits round of a vector


def directions(n: int, rng: np.random.Generator, n_topics: int = 40) -> np.ndarray:
    topics = np.random.default_rng(7).normal(size=(n_topics, N_FEATURES))
    found = topics[rng.integers(0, n_topics, n)] + rng.normal(0, 0.7, (n, N_FEATURES))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


INDEX = ivf.built(directions(6_000, np.random.default_rng(1)))
THINNED = ivf.thinned(INDEX, np.arange(0, 6_000, 7))  # many of its lists are short or empty


@given(
    n=st.integers(1, 40),
    wanted=st.sampled_from([1, 2, 12, 64, 1000]),
    seed=st.integers(0, 2**32),
    index=st.sampled_from([INDEX, THINNED]),
)
@settings(max_examples=40, deadline=None)
def test_the_nearest_are_those_that_faiss_finds(n, wanted, seed, index):
    """
    The same similarities to rounding, and each is that of the row it is said of; where the lists
    run out there is nobody.
    """
    asked = directions(n, np.random.default_rng(seed))

    similarity, found = searched(index, compiled=True).search(asked, wanted)

    want, _ = index.search(asked, wanted)
    there = found >= 0
    assert there.sum(axis=1).tolist() == (want > -2).sum(axis=1).tolist()
    np.testing.assert_allclose(
        -np.sort(-similarity, axis=1)[want > -2], want[want > -2], atol=ROUNDING
    )
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found)
    whole = index.reconstruct_n(0, index.ntotal)
    cosines = np.einsum("nd,njd->nj", asked, whole[np.where(there, found, 0)])
    np.testing.assert_allclose(similarity[there], cosines[there], atol=ROUNDING)


@given(
    values=st.one_of(
        *(
            st.lists(st.integers(-reach, reach), min_size=1, max_size=1500)
            for reach in (3, 600, 2**30)
        )
    ),
    wanted=st.integers(1, 70),
)
@settings(deadline=None)
def test_the_best_of_any_values_are_found_by_counting(values, wanted):
    """
    Of close and of far values, of many that are equal, of fewer than are wanted.
    """
    rows, counts = np.full(wanted, -1), np.zeros(search.BINS, np.int64)

    n = search._best(np.array(values, np.int32), counts, rows)

    found = rows[:n].tolist()
    assert n == len({*found}) == min(wanted, len(values))
    assert sorted(values[row] for row in found) == sorted(values)[-n:]


def test_what_is_found_has_the_same_bits_alone_and_in_any_batch():
    """
    So a decision does not depend on who else asked at the moment.
    """
    asked, of = directions(37, np.random.default_rng(3)), searched(INDEX, compiled=True)

    similarity, found = of.search(asked, 64)

    for rows in (slice(0, 1), slice(5, 21), slice(36, 37)):
        part, numbers = of.search(asked[rows], 64)
        np.testing.assert_array_equal(part, similarity[rows])
        np.testing.assert_array_equal(numbers, found[rows])


def test_where_lists_lie_is_looked_up_once_as_long_as_somebody_searches():
    """
    A view is made of every snapshot, most often over the same index; an index that nobody
    searches any more is let go.
    """
    index = ivf.thinned(INDEX, np.arange(100))
    first = searched(index, compiled=True)

    assert searched(index, compiled=True) is first
    gone = weakref.ref(index)
    del index, first
    gc.collect()
    assert gone() is None


def test_of_equal_vectors_as_many_as_are_wanted_are_found():
    """
    A thousand times the same vector: none is better than another.
    """
    same = np.repeat(directions(1, np.random.default_rng(4)), 1_000, axis=0)
    index = ivf.built(np.concatenate([same, directions(1_000, np.random.default_rng(5))]))

    similarity, found = searched(index, compiled=True).search(same[:1], 64)

    assert len({*found[0].tolist()}) == 64
    assert (found[0] < 1_000).all()
    np.testing.assert_allclose(similarity[0], 1.0, atol=0.02)


@pytest.mark.parametrize("compiled", [True, False])
def test_what_the_kernel_was_not_made_for_is_searched_by_faiss(compiled):
    """
    Snapshots of before have lists of 32-bit floats.
    """
    quantizer = faiss.IndexFlatIP(N_FEATURES)
    floats = faiss.IndexIVFFlat(quantizer, N_FEATURES, 16, faiss.METRIC_INNER_PRODUCT)

    assert searched(floats, compiled=compiled) is floats
    assert isinstance(searched(INDEX, compiled=compiled), Lists) == compiled


def test_the_kernel_is_there_before_the_first_index(monkeypatch):
    """
    It takes seconds to compile: not while a replica that has begun to answer swaps its views.
    """
    asked = []
    monkeypatch.setattr(lists, "kernels", lambda module: asked.append(module) or None)

    assert searched(None, compiled=True) is None
    assert asked == [lists.MODULE]


def test_a_direction_of_zeros_is_like_nobody():
    """
    A context without direction: every cosine is 0, none is NaN.
    """
    nowhere = np.zeros((1, N_FEATURES), np.float32)

    similarity, _ = searched(INDEX, compiled=True).search(nowhere, 64)

    np.testing.assert_array_equal(similarity, 0.0)
