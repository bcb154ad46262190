"""History: the right rows are kept, found, and weighed as a plain loop would weigh them."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import MODELS, changed, contexts, cuts, lightly, outcomes

from learners.context import BIAS, BIAS_FEATURE, N_DIRECTIONS, N_FEATURES, unit_directions
from learners.estimates.history import (
    COLUMNS,
    Directions,
    Evidence,
    History,
    HistoryOptions,
    Neighbours,
    Rows,
    copies,
    no_rows,
)
from learners.estimates.nearest import ivf
from learners.outcomes import Outcomes
from learners.targets import N_TARGETS, ONE, Target

OPTIONS = HistoryOptions(neighbours=12)
MEANS = np.array([[0.5, -0.3, 1.0], [0.7, 0.1, -2.0], [0.2, 0.0, 0.4]])
KEYS = list(MODELS)


def related(n: int, rng: np.random.Generator, n_topics: int = 8) -> np.ndarray:
    """Contexts (n, 64) about a few topics, so that some resemble each other."""
    topics = np.random.default_rng(7).normal(0, 17, (n_topics, N_FEATURES))
    mixed = topics[rng.integers(0, n_topics, n)] + rng.normal(0, 10, (n, N_FEATURES))
    made = np.clip(np.rint(mixed), -127, 127).astype(np.int8)
    made[:, BIAS_FEATURE] = BIAS
    return made


def rows_of(n: int, rng: np.random.Generator, **columns: np.ndarray) -> Rows:
    """N rows as a history holds them, each with a target or more."""
    held = settled(outcomes(3 * n, rng, contexts=related(3 * n, rng))).rows
    return {name: column[:n] for name, column in held.items()} | columns


def settled(rows: Outcomes, options: HistoryOptions = OPTIONS) -> History:
    history = History(options)
    history.update(rows)
    history.settle()
    return history


def evidence_of(
    rows: Rows,
    asked: np.ndarray,
    options: HistoryOptions = OPTIONS,
    *,
    index: object = None,
    fade: np.ndarray | None = None,
    keys: list[int] = KEYS,
) -> Evidence:
    fade = np.ones(len(rows["models"])) if fade is None else fade
    return Neighbours(rows, index, keys, MEANS[: len(keys)], fade, options).evidence(asked)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), cut=st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_rows_that_were_given_out_stay_as_they_were_whatever_comes_after_them(sizes, cut):
    """
    Rows are appended in place, also to some that are not all of those appended last.
    """
    rng, history, seen = np.random.default_rng(3), History(replace(OPTIONS, rows_max=1000)), []
    for size in sizes:
        history.append(rows_of(size, rng))
        history.settle()
        copied = {name: column.copy() for name, column in history.rows.items()}
        seen.append((history.rows, copied))
    history.rows = {name: column[:cut] for name, column in history.rows.items()}
    history.append(rows_of(5, rng))
    history.settle()

    assert len(history) == min(cut, sum(sizes)) + 5
    for given_out, copied in seen:
        for name, column in given_out.items():
            np.testing.assert_array_equal(column, copied[name], name)


def same(one: Evidence, other: Evidence, atol: float = 1e-5) -> None:
    for name in ("deviation", "weight", "similarity"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol)


ROUNDED = 0.015  # of a cosine, by 8 bits for a number


# --- evidence -----------------------------------------------------------------------------------


def brute_force(
    rows: Rows, asked: np.ndarray, options: HistoryOptions, fade: np.ndarray, keys: list[int]
) -> Evidence:
    """The same in loops over requests, neighbours and targets, in double precision."""
    directions = rows["contexts"][:, :N_DIRECTIONS].astype(float)
    deviation = np.zeros((len(asked), len(keys), N_TARGETS))
    weight = np.zeros_like(deviation)
    nearest = np.zeros(len(asked))
    for i, context in enumerate(asked[:, :N_DIRECTIONS].astype(float)):
        lengths = np.linalg.norm(directions, axis=1) * np.linalg.norm(context)
        cosine = directions @ context / np.where(lengths > 0, lengths, 1.0)
        total = np.zeros((len(keys), N_TARGETS))
        for row in np.argsort(-cosine, kind="stable")[: options.neighbours]:
            if cosine[row] <= options.similarity_min:
                continue
            nearest[i] = max(nearest[i], cosine[row])
            if int(rows["models"][row]) not in keys:
                continue
            model = keys.index(int(rows["models"][row]))
            for target in np.flatnonzero(rows["known"][row]):
                share = cosine[row] ** 4 * fade[row]
                residual = rows["targets"][row, target] / ONE - MEANS[model, target]
                weight[i, model, target] += share
                total[model, target] += share * residual
        shared = total.sum(0) / (weight[i].sum(0) + options.shared_shrink)
        own = (total - weight[i] * shared) / (weight[i] + options.own_shrink)
        deviation[i] = shared + own
    return Evidence(deviation, weight, nearest)


@pytest.mark.parametrize("indexed", [0, 250, 400])
@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        replace(OPTIONS, neighbours=1),
        replace(OPTIONS, similarity_min=0.6),
        replace(OPTIONS, shared_shrink=0.5, own_shrink=20.0),
    ],
)
def test_evidence_is_that_of_a_plain_loop(options, indexed):
    """
    With no row indexed, some, or all: similar rows of listed models count by the fourth power of
    their cosine and by their age; shrunk twice, to what all models share and to the mean.
    """
    rng = np.random.default_rng(0)
    rows = rows_of(400, rng)
    fade, asked = rng.uniform(0.1, 1.0, 400), related(30, rng)

    found = evidence_of(rows, asked, options, index=exhaustive(rows, indexed), fade=fade)

    want = brute_force(rows, asked, options, fade, KEYS)
    assert want.weight.max() > 0.3
    same(found, want)
    assert {a.dtype for a in (found.deviation, found.weight, found.similarity)} == {np.dtype("f4")}


def exhaustive(rows: Rows, n: int) -> object:
    """An index over the first n rows that misses nothing and rounds nothing."""
    if n == 0:
        return None
    index = faiss.IndexFlatIP(N_FEATURES)
    index.add(unit_directions(rows["contexts"][:n]))
    return index


def test_an_index_and_a_tail_find_what_an_exact_search_finds():
    """
    Wherever the border between indexed rows and the tail lies, the evidence is the same.
    """
    rng = np.random.default_rng(1)
    rows = rows_of(300, rng)
    asked = related(40, rng)

    exact = evidence_of(rows, asked)

    for border in (100, 200, 299, 300):
        same(evidence_of(rows, asked, index=exhaustive(rows, border)), exact)


def test_the_index_finds_nearly_all_neighbours_among_many_topics():
    """
    At 8 probes recall of the nearest 64 is at least 0.95 on rows that come in clusters.
    """
    rng = np.random.default_rng(2)
    vectors = unit_directions(related(12_000, rng, n_topics=150))
    asked = unit_directions(related(200, rng, n_topics=150))

    assert recall_of(ivf.built(vectors).search(asked, 64)[1], asked, vectors) >= 0.95


def test_an_index_looks_into_more_lists_where_few_find_little():
    """
    Where a topic has more rows than are wanted, eight lists do. Where it has fewer, the others lie
    anywhere, and more are looked into, as far as a search may cost: also as an index is extended
    by such as it was not built for.
    """
    rng = np.random.default_rng(12)
    large = unit_directions(related(12_000, rng, n_topics=150))
    small = unit_directions(related(12_000, rng, n_topics=600))
    asked = unit_directions(related(200, rng, n_topics=600))

    few, many = ivf.built(large), ivf.built(small)

    assert few.nprobe == ivf.PROBES_MIN
    assert few.nprobe < many.nprobe
    assert many.nprobe * many.ntotal / many.nlist <= ivf.READ_MIN
    assert recall_of(many.search(asked, 32)[1], asked, small) >= 0.94
    assert ivf.extended(few, small).nprobe > few.nprobe


def recall_of(found: np.ndarray, asked: np.ndarray, vectors: np.ndarray) -> float:
    """The part of the truly nearest that was found."""
    n = found.shape[1]
    exact = np.argsort(-(asked @ vectors.T), axis=1)[:, :n]
    return np.mean([len(set(f) & set(e)) / n for f, e in zip(found, exact, strict=True)])


def test_the_same_rows_give_the_same_index():
    """
    Built twice, an index gives the same answers to the last bit.
    """
    vectors = unit_directions(related(3000, np.random.default_rng(3)))

    first, second = ivf.built(vectors), ivf.built(vectors)

    for one, other in zip(first.search(vectors, 5), second.search(vectors, 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_vectors_made_some_at_a_time_give_the_index_of_all_at_once(monkeypatch):
    """
    To the last byte, built and extended: so neither takes the memory of all.
    """
    contexts, more = np.split(related(4000, np.random.default_rng(3)), [3000])
    at_once = ivf.extended(ivf.built(unit_directions(contexts)), unit_directions(more))
    made, making = [], Directions.__getitem__
    monkeypatch.setattr(ivf, "TOGETHER", 700)
    monkeypatch.setattr(
        Directions, "__getitem__", lambda *at: made.append(found := making(*at)) or found
    )

    some = ivf.extended(ivf.built(Directions(contexts)), Directions(more))

    np.testing.assert_array_equal(faiss.serialize_index(some), faiss.serialize_index(at_once))
    trained, *added = (len(vectors) for vectors in made)
    assert (trained, max(added)) == (3000, 700)


def test_centroids_of_many_are_those_of_some(monkeypatch):
    """
    They are found among some of the vectors, from the first to the last, where there are more.
    """
    rng = np.random.default_rng(2)
    contexts = related(12_000, rng, n_topics=150)
    vectors = unit_directions(contexts[np.argsort(contexts[:, 0], kind="stable")])
    monkeypatch.setattr(ivf, "TRAINED_MAX", 2_000)

    index = ivf.built(vectors)

    asked = vectors[::97]
    assert recall_of(index.search(asked, 64)[1], asked, vectors) >= 0.95


def test_an_extended_index_finds_what_a_built_one_finds():
    """
    Centroids of the first half serve the second: recall of the nearest 64 stays at 0.95.
    """
    rng = np.random.default_rng(4)
    vectors = unit_directions(related(12_000, rng, n_topics=150))
    asked = unit_directions(related(200, rng, n_topics=150))

    extended = ivf.extended(ivf.built(vectors[:6000]), vectors[6000:])

    assert recall_of(extended.search(asked, 64)[1], asked, vectors) >= 0.95


def test_a_thinned_index_answers_as_if_the_others_had_never_been():
    """
    What stays has its new number; the index that it was made of still has all.
    """
    rng = np.random.default_rng(5)
    vectors = unit_directions(related(4000, rng, n_topics=50))
    asked = unit_directions(related(100, rng, n_topics=50))
    index = ivf.built(vectors)
    before = index.search(asked, 5)
    kept = np.sort(rng.choice(4000, 3000, replace=False))

    thinned = ivf.thinned(index, kept)

    assert thinned.ntotal == 3000
    assert recall_of(thinned.search(asked, 32)[1], asked, vectors[kept]) >= 0.95
    again = ivf.extended(thinned, vectors[:10])
    np.testing.assert_array_equal(again.search(vectors[:10], 1)[1][:, 0] >= 0, True)
    for one, other in zip(index.search(asked, 5), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_cosine_found_is_off_by_what_eight_bits_round():
    """
    And by no more; the numbers of a vector lie between those seen in training.
    """
    vectors = unit_directions(related(3000, np.random.default_rng(6)))
    similarity, row = ivf.built(vectors).search(vectors, 5)
    exact = np.einsum("nd,njd->nj", vectors, vectors[row])
    np.testing.assert_allclose(similarity, exact, atol=ROUNDED)


def test_rows_of_a_model_that_is_gone_count_for_nothing():
    """
    A model no longer in the catalogue is still found and shows in the similarity, but neither it
    nor what it shares with others enters an estimate; least of all the first model's.
    """
    rng = np.random.default_rng(4)
    rows = rows_of(200, rng)
    asked = related(20, rng)
    gone = rows["models"] == np.uint64(KEYS[1])
    silenced = rows | {"known": rows["known"] & ~gone[:, None]}
    left = [KEYS[0], KEYS[2]]

    found = evidence_of(rows, asked, keys=left)

    same(found, evidence_of(silenced, asked, keys=left), atol=0.0)
    np.testing.assert_array_equal(found.similarity, evidence_of(rows, asked).similarity)


def test_models_never_seen_get_what_all_models_share():
    """
    A new model's deviation is the shared one alone, and has weight zero.
    """
    rng = np.random.default_rng(5)
    rows = rows_of(200, rng, models=np.full(200, KEYS[0], np.uint64))
    asked = related(20, rng)

    found = evidence_of(rows, asked, keys=[KEYS[0], 99])

    assert not found.weight[:, 1].any()
    shared = found.deviation[:, 1]
    weight, own = found.weight[:, 0], found.deviation[:, 0]
    total = shared * (weight + OPTIONS.shared_shrink)
    np.testing.assert_allclose(
        own - shared, (total - weight * shared) / (weight + OPTIONS.own_shrink), atol=1e-5
    )
    assert np.abs(shared).max() > 0.01


def test_columns_follow_the_order_of_the_models_asked_for():
    """
    Listed the other way round, the evidence is the same the other way round.
    """
    rng = np.random.default_rng(6)
    rows, asked, fade = rows_of(100, rng), related(10, rng), np.ones(100)

    forward = Neighbours(rows, None, KEYS, MEANS, fade, OPTIONS).evidence(asked)
    backward = Neighbours(rows, None, KEYS[::-1], MEANS[::-1], fade, OPTIONS).evidence(asked)

    np.testing.assert_allclose(backward.deviation[:, ::-1], forward.deviation, atol=1e-6)
    np.testing.assert_allclose(backward.weight[:, ::-1], forward.weight, atol=1e-6)


def test_a_prompt_that_is_asked_again_and_again_is_one_neighbour():
    """
    Of equal outcomes ten copies say what one says; of unequal ones their mean.
    """
    rng = np.random.default_rng(8)
    rows, asked = rows_of(1, rng), related(5, rng)
    many = {name: np.repeat(column, 10, axis=0) for name, column in rows.items()}

    one, ten = evidence_of(rows, asked), evidence_of(many, asked)

    same(one, ten)
    assert (copies(many) == 10).all()
    assert (copies(rows_of(50, rng)) == 1).all()


# --- little or nothing to go by -----------------------------------------------------------------


def test_an_empty_history_says_nothing():
    """
    No rows: deviation, weight and similarity are zero.
    """
    found = evidence_of(no_rows(), related(3, np.random.default_rng(0)))

    assert found.deviation.shape == found.weight.shape == (3, 3, N_TARGETS)
    assert found.similarity.shape == (3,)
    assert not any(a.any() for a in (found.deviation, found.weight, found.similarity))


@pytest.mark.parametrize("n", [1, 2, 11])
def test_fewer_rows_than_neighbours_are_all_used(n):
    """
    With fewer rows than neighbours wanted, places left over count for nothing.
    """
    rng = np.random.default_rng(7)
    rows = rows_of(n, rng)
    asked = np.concatenate([rows["contexts"], related(5, rng)])

    found = evidence_of(rows, asked)

    same(found, brute_force(rows, asked, OPTIONS, np.ones(n), KEYS))


def test_lists_of_an_index_that_run_out_count_for_nothing():
    """
    An index that looks into one small list finds fewer than wanted; the first row, which an
    unwary −1 would stand for, is not mistaken for a neighbour.
    """
    rng = np.random.default_rng(8)
    rows = rows_of(300, rng)
    index = ivf.built(unit_directions(rows["contexts"]))
    index.nprobe = 1
    options = replace(OPTIONS, neighbours=100, similarity_min=-1.0)
    asked = related(30, rng)

    found = evidence_of(rows, asked, options, index=index)

    similarity, row = index.search(unit_directions(asked), 100)
    assert (row == -1).any()
    weight = np.zeros((30, 3, N_TARGETS))
    for i, j in np.argwhere((row >= 0) & (similarity > -1.0)):
        known = rows["known"][row[i, j]]
        weight[i, KEYS.index(int(rows["models"][row[i, j]]))] += known * similarity[i, j] ** 4
    np.testing.assert_allclose(found.weight, weight, atol=1e-4)


@pytest.mark.parametrize("indexed", [False, True])
def test_contexts_without_direction_are_finite_and_unlike_everything(indexed):
    """
    A prompt of no direction is similar to nothing, on either side of the search, and nothing is
    divided by its length.
    """
    rng = np.random.default_rng(9)
    rows = rows_of(200, rng)
    rows["contexts"][::2, :N_DIRECTIONS] = 0
    index = exhaustive(rows, 200) if indexed else None
    asked = related(4, rng)
    asked[:2, :N_DIRECTIONS] = 0

    found = evidence_of(rows, asked, index=index)

    assert all(np.isfinite(a).all() for a in (found.deviation, found.weight, found.similarity))
    assert not found.deviation[:2].any()
    assert found.similarity.tolist()[:2] == [0.0, 0.0]
    same(found, brute_force(rows, asked, OPTIONS, np.ones(200), KEYS))


def test_below_the_similarity_floor_nothing_counts():
    """
    Rows at right angles or opposite have no say, though there are no others.
    """
    context = contexts(1, np.random.default_rng(10))
    opposite = np.repeat(-context, 5, axis=0)
    rows = rows_of(5, np.random.default_rng(0), contexts=opposite, known=np.ones((5, 3), bool))

    found = evidence_of(rows, context)

    assert not any(a.any() for a in (found.deviation, found.weight, found.similarity))


def test_a_row_faded_to_nothing_has_no_weight():
    """
    Age is a factor of the weight.
    """
    rng = np.random.default_rng(11)
    rows, asked = rows_of(100, rng), related(5, rng)

    found = evidence_of(rows, asked, fade=np.zeros(100))

    assert not found.deviation.any()
    assert not found.weight.any()
    assert found.similarity.all()


# --- what is kept -------------------------------------------------------------------------------


def test_rows_are_those_with_a_target_as_they_came():
    """
    Outcomes that report no target are of no use to neighbours; of the others every column stays.
    """
    rows = outcomes(60, np.random.default_rng(12))
    useful = rows.take(rows.known.any(axis=1))
    assert 0 < len(useful) < 60

    kept = settled(rows).rows

    for name, (dtype, _) in COLUMNS.items():
        np.testing.assert_array_equal(kept[name], getattr(useful, name))
        assert kept[name].dtype == dtype


@lightly
@given(st.integers(0, 2**32), st.data())
def test_which_rows_count_does_not_depend_on_when_they_came(seed, data):
    """
    Whatever the order and the batches, and wherever forgetting ran, the newest `rows_max` by time
    of decision count; among equal times the decision's id decides.
    """
    rng = np.random.default_rng(seed)
    options = HistoryOptions(rows_max=8, exact_rows_max=10_000)
    n = 24
    rows = outcomes(n, rng, decided_at_ms=rng.integers(0, 6, n // 2).repeat(2))
    shuffled = rows.take(np.array(data.draw(st.permutations(range(n)))))
    history = History(options)

    for batch in data.draw(cuts(n)):
        history.update(shuffled.take(batch))
        if data.draw(st.booleans()):
            history.settle()
    history.settle()

    pattern = rows.known @ [1, 2, 4]
    order = sorted(
        np.flatnonzero(pattern).tolist(),
        key=lambda i: (rows.decided_at_ms[i], rows.issuers[i], rows.sequences[i], pattern[i]),
    )[-8:]
    assert len(history) <= 9
    for name, column in history.canonical().items():
        np.testing.assert_array_equal(column, getattr(rows, name)[order])


def test_a_late_outcome_older_than_all_that_is_kept_is_not_counted():
    """
    What was forgotten stays forgotten when its like comes late.
    """
    rng = np.random.default_rng(13)
    options = HistoryOptions(rows_max=8)
    known = np.ones((10, N_TARGETS), bool)
    recent = changed(outcomes(10, rng), known=known, decided_at_ms=np.arange(10) + 100)
    history = settled(recent, options)
    before = history.canonical()

    history.update(changed(outcomes(10, rng), known=known, decided_at_ms=np.arange(10)))
    history.settle()

    for name, column in history.canonical().items():
        np.testing.assert_array_equal(column, before[name])


# --- the index ----------------------------------------------------------------------------------


def test_an_index_is_replaced_rarely_and_never_changed():
    """
    Over 6,000 rows in sixty batches there is another index for every 400 rows; each still covers
    what it covered when it was new, those replaced included; what none covers is never much.
    """
    options = HistoryOptions(exact_rows_max=400)
    history, rng = History(options), np.random.default_rng(14)
    built: list[tuple[object, int, np.ndarray]] = []
    asked = unit_directions(related(20, rng))

    for _ in range(60):
        history.update(full(100, rng))
        history.settle()
        if history.index is not None and (not built or history.index is not built[-1][0]):
            answer = history.index.search(asked, 5)[1]
            built.append((history.index, history.index.ntotal, answer))
        assert len(history) - history.n_indexed <= 400

    assert len(history) == 6000
    assert 2 <= len(built) <= 15
    assert [n for _, n, _ in built] == sorted({n for _, n, _ in built})
    for index, n, answer in built:
        assert index.ntotal == n
        np.testing.assert_array_equal(index.search(asked, 5)[1], answer)


def full(n: int, rng: np.random.Generator, since_ms: int = 0) -> Outcomes:
    """Outcomes that all report every target."""
    rows = outcomes(n, rng, contexts=related(n, rng))
    times = rows.decided_at_ms + since_ms
    return changed(rows, known=np.ones((n, N_TARGETS), bool), decided_at_ms=times)


def test_rows_that_nobody_searches_are_not_indexed():
    """
    Where neighbours have no share: neither those that come, nor what a former setting indexed.
    """
    rows = full(1000, np.random.default_rng(16))
    searched = HistoryOptions(exact_rows_max=200)
    before = settled(rows, searched)

    history = settled(rows, replace(searched, neighbours_share=0.0))
    history.index = before.index
    history.settle()

    assert before.index is not None
    assert history.index is None
    assert len(history) == 1000


def test_the_index_always_covers_the_first_rows():
    """
    Also after rows were forgotten and moved: a row found is the row meant.
    """
    options = HistoryOptions(rows_max=1000, exact_rows_max=200)
    history, rng = History(options), np.random.default_rng(15)

    for step in range(20):
        history.update(full(100, rng, since_ms=step * 1000))
        history.settle()
        if history.index is not None:
            vectors = unit_directions(history.rows["contexts"][: history.n_indexed])
            similarity, row = history.index.search(vectors, 1)
            found = np.einsum("nd,nd->n", vectors[row[:, 0]], vectors)
            np.testing.assert_allclose(found, similarity[:, 0], atol=ROUNDED)
            assert (found > 0.999).mean() > 0.99

    assert history.generation >= 5
    assert history.index is not None


def test_forgetting_is_rare_and_counted():
    """
    Rows move only when an eighth too many have come; each time counts as a new generation.
    """
    options = HistoryOptions(rows_max=800)
    history, rng = History(options), np.random.default_rng(16)
    generations, sizes = [], []

    for step in range(20):
        history.update(full(100, rng, since_ms=step * 1000))
        before = history.generation
        history.settle()
        assert (len(history) == 800) or history.generation == before
        generations.append(history.generation)
        sizes.append(len(history))

    assert sizes[:12] == [100, 200, 300, 400, 500, 600, 700, 800, 900, 800, 900, 800]
    assert generations[:12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2]


def test_a_corrected_quality_stays_when_more_outcomes_come():
    """
    The rows are those of who learned the right qualities at once; who was given them before holds
    what they were.
    """
    rng = np.random.default_rng(18)
    first, second, third = (
        changed(full(50, rng), sequences=np.arange(at, at + 50, dtype=np.uint64))
        for at in (0, 50, 100)
    )
    first.known[5, Target.QUALITY] = False  # its decision has another row, with the quality
    first.issuers[5], first.sequences[5] = first.issuers[10], first.sequences[10]
    second = changed(second, sequences=first.sequences, issuers=first.issuers + 1)
    right, producers = first.targets.copy(), first.producers.copy()
    right[10:20, Target.QUALITY] += 5
    producers[10:20] += 1
    corrected = changed(first, targets=right, producers=producers)
    calm = History(OPTIONS)
    for rows in (corrected, second, third):
        calm.update(rows)
        calm.settle()

    history = settled(first, OPTIONS)
    given = history.rows
    history.update(second)
    history.replace(corrected.take(np.arange(10, 20)))
    history.update(third)
    history.settle()

    for name, column in calm.rows.items():
        np.testing.assert_array_equal(history.rows[name], column)
    np.testing.assert_array_equal(given["targets"], first.targets)


def test_a_searcher_is_not_disturbed_by_what_the_history_learns_later():
    """
    Neighbours made before more rows arrive answer the same afterwards.
    """
    rng = np.random.default_rng(17)
    history = settled(full(300, rng), HistoryOptions(rows_max=400, exact_rows_max=100))
    fade = np.ones(300)
    neighbours = Neighbours(history.rows, history.index, KEYS, MEANS, fade, history.options)
    asked = related(10, rng)
    before = neighbours.evidence(asked)

    for step in range(1, 5):
        history.update(full(100, rng, since_ms=step * 10_000))
        history.settle()

    assert history.generation >= 1
    same(neighbours.evidence(asked), before, atol=0.0)
