"""Contexts: small integers that keep what matters of a prompt, the same for the same prompt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import contexts, lightly

from learners.context import (
    BIAS,
    BIAS_FEATURE,
    N_DIRECTIONS,
    N_FEATURES,
    RMS,
    STEP,
    TOKENS_FEATURE,
    Projection,
    real,
    unit_directions,
)

DIM = 96


def embeddings(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """Vectors off centre and stronger in some directions, as encoders make them."""
    rng = np.random.default_rng(seed)
    strength = np.geomspace(3.0, 0.3, dim)
    return (rng.standard_normal((n, dim)) * strength + 0.5).astype(np.float32)


def tokens(*counts: float) -> np.ndarray:
    return np.array(counts, np.float32)


PROJECTIONS = {
    "fitted": lambda: Projection.fit(embeddings(400)),
    "random": lambda: Projection.random(DIM, np.random.default_rng(1)),
}


@pytest.fixture(params=PROJECTIONS, name="projection")
def _projection(request: pytest.FixtureRequest) -> Projection:
    return PROJECTIONS[request.param]()


@pytest.mark.parametrize("dim", [4, 33])
def test_embeddings_shorter_than_a_context_are_kept_whole(dim):
    """
    A table whose embeddings are four numbers long could not be simulated, nor played in a demo.
    """
    short = embeddings(50, dim)
    projection = Projection.fit(short)
    found = projection.contexts(short, tokens(*[9.0] * 50))
    assert found.shape == (50, N_FEATURES) and len(np.unique(found, axis=0)) == 50
    kept = projection.directions[:, :dim]
    assert np.allclose(kept.T @ kept, np.eye(dim), atol=1e-5)
    assert not projection.directions[:, dim:].any()


# --- integers -----------------------------------------------------------------------------------


@lightly
@given(
    st.integers(0, 2**32),
    st.sampled_from([1e-9, 1e-3, 1.0, 1e3, 1e9]),
    st.floats(-1e9, 1e38) | st.sampled_from([0.0, math.inf, math.nan]),
)
def test_whatever_the_embedding_the_context_is_64_bounded_integers(seed, scale, prompt_tokens):
    """
    Any direction, length and token count end in int8 within ±127, with the constant in its place.
    """
    projection = Projection.random(DIM, np.random.default_rng(1))
    spiky = np.random.default_rng(seed).standard_normal((3, DIM)) ** 5

    made = projection.contexts((spiky * scale).astype(np.float32), np.full(3, prompt_tokens))

    assert made.shape == (3, N_FEATURES)
    assert made.dtype == np.int8
    assert (made >= -127).all()
    assert (made[:, BIAS_FEATURE] == BIAS).all()


def test_a_direction_that_is_all_there_is_saturates_and_keeps_its_sign():
    """
    An embedding along one direction alone is beyond what int8 holds: it is cut off, not wrapped.
    """
    projection = Projection.random(DIM, np.random.default_rng(1))
    along = projection.directions[:, 5]

    made = projection.contexts(np.stack([along, -along]), tokens(256, 256))

    assert made[:, 5].tolist() == [127, -127]
    assert not np.delete(made[:, :N_DIRECTIONS], 5, axis=1).any()


def test_rounding_again_changes_nothing():
    """
    A context's real numbers are whole steps: rounded a second time they are the same integers,
    for every integer there is.
    """
    every = np.resize(np.arange(-127, 128), (255, N_FEATURES)).astype(np.int8)

    again = np.rint(real(every) / STEP).astype(np.int8)

    np.testing.assert_array_equal(again, every)
    assert real(every).dtype == np.float32
    assert float(real(every)[0, 0]) == every[0, 0] * STEP


def test_the_length_of_an_embedding_does_not_matter(projection):
    """
    Embeddings are directions: scaled by a power of two they give the very same context.
    """
    vectors = embeddings(20, seed=3)

    scaled = projection.contexts(vectors * np.float32(1024), tokens(*[100] * 20))

    np.testing.assert_array_equal(scaled, projection.contexts(vectors, tokens(*[100] * 20)))


def test_directions_are_as_large_on_average_as_promised(projection):
    """
    The root mean square over all directions is `RMS`, on the real scale.
    """
    made = real(projection.contexts(embeddings(500, seed=4), tokens(*[100] * 500)))

    rms = np.sqrt(np.mean(made[:, :N_DIRECTIONS] ** 2))
    assert rms == pytest.approx(RMS, rel=0.02)


def test_a_context_alone_is_within_a_step_of_the_same_in_a_batch(projection):
    """
    A product of other height may round another way; never by more than one step.
    """
    vectors, counts = embeddings(64, seed=5), tokens(*range(1, 65))

    together = projection.contexts(vectors, counts).astype(int)

    alone = np.concatenate(
        [projection.contexts(vectors[i : i + 1], counts[i : i + 1]) for i in range(64)]
    )
    assert np.abs(together - alone).max() <= 1
    assert (together == alone).mean() > 0.999


# --- tokens -------------------------------------------------------------------------------------


def test_a_longer_prompt_never_has_a_smaller_feature(projection):
    """
    The feature grows with the number of tokens, over all lengths a prompt may have.
    """
    counts = np.arange(1, 200_000, 37, dtype=np.float32)

    feature = projection.contexts(embeddings(len(counts)), counts)[:, TOKENS_FEATURE].astype(int)

    assert (np.diff(feature) >= 0).all()
    assert feature[-1] - feature[0] > 100


@pytest.mark.parametrize(
    ("count", "feature"),
    [(256, 0.0), (512, 0.25), (128, -0.25), (8, -1.25), (8192, 1.25), (1, -2.0), (1e38, 127 / 32)],
)
def test_each_doubling_of_a_prompt_moves_a_quarter(projection, count, feature):
    """
    256 tokens are the middle.
    """
    made = projection.contexts(embeddings(1), tokens(count))

    assert real(made)[0, TOKENS_FEATURE] == feature


@pytest.mark.parametrize("unknown", [0.0, -1.0, math.nan, -math.inf])
def test_an_unknown_length_is_neutral(projection, unknown):
    """
    A count of zero or less, or none at all, leaves the feature in the middle and the rest alone.
    """
    known, neutral = projection.contexts(np.repeat(embeddings(1), 2, axis=0), tokens(8192, unknown))

    assert neutral[TOKENS_FEATURE] == 0
    np.testing.assert_array_equal(neutral[:N_DIRECTIONS], known[:N_DIRECTIONS])


def test_an_embedding_of_zeros_has_no_direction(projection):
    """
    A text without a single token resembles nothing, rather than whatever lies opposite the mean;
    its length still counts, and its neighbours in the batch are not affected.
    """
    vectors = embeddings(3)
    want = projection.contexts(vectors, tokens(8, 8, 8))
    vectors[1] = 0.0

    made = projection.contexts(vectors, tokens(8, 8, 8))

    assert not made[1, :N_DIRECTIONS].any()
    assert not unit_directions(made)[1].any()
    np.testing.assert_array_equal(made[:, N_DIRECTIONS:], want[:, N_DIRECTIONS:])
    np.testing.assert_array_equal(made[[0, 2]], want[[0, 2]])


# --- similarity ---------------------------------------------------------------------------------


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def test_unit_directions_leave_length_and_constant_out():
    """
    Similarity is the cosine of the directions alone.
    """
    made = contexts(20, np.random.default_rng(0))

    unit = unit_directions(made)

    assert unit.dtype == np.float32
    assert not unit[:, N_DIRECTIONS:].any()
    want = cosines(made[:, :N_DIRECTIONS].astype(np.float64))
    np.testing.assert_allclose(unit @ unit.T, want, atol=1e-6)
    assert (made[:, BIAS_FEATURE] == BIAS).all(), "the contexts themselves are left as they were"


@pytest.mark.parametrize("dim", [40, N_DIRECTIONS])
def test_a_small_encoder_keeps_its_cosines(dim):
    """
    Up to 62 dimensions nothing is projected away, so only rounding moves a cosine.
    """
    vectors = np.random.default_rng(2).standard_normal((100, dim)).astype(np.float32)
    projection = Projection.random(dim, np.random.default_rng(1))

    unit = unit_directions(projection.contexts(vectors, tokens(*[100] * 100)))

    np.testing.assert_allclose(unit @ unit.T, cosines(vectors), atol=0.02)
    assert projection.dim == dim


def test_a_fitted_projection_keeps_the_cosines_of_what_it_was_fitted_to():
    """
    Vectors of 30 strong directions among 384 keep their cosines around the mean.
    """
    rng = np.random.default_rng(3)
    basis = rng.standard_normal((30, 384))
    vectors = rng.standard_normal((500, 30)) @ basis + 0.05 * rng.standard_normal((500, 384)) + 1
    unit_rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    projection = Projection.fit(vectors)
    unit = unit_directions(projection.contexts(vectors.astype(np.float32), tokens(*[9] * 500)))

    np.testing.assert_allclose(unit @ unit.T, cosines(unit_rows - unit_rows.mean(0)), atol=0.05)


def test_a_random_projection_keeps_cosines_roughly():
    """
    From 384 dimensions to 62 the error of a cosine is about 1/√62, and there is no bias.
    """
    rng = np.random.default_rng(4)
    vectors = (rng.standard_normal((100, 384)) + 0.7 * rng.standard_normal(384)).astype("f4")
    projection = Projection.random(384, np.random.default_rng(1))

    unit = unit_directions(projection.contexts(vectors, tokens(*[9] * 100)))

    error = (unit @ unit.T - cosines(vectors))[np.triu_indices(100, 1)]
    assert np.sqrt(np.mean(error**2)) < 1.5 / math.sqrt(N_DIRECTIONS)


# --- projections --------------------------------------------------------------------------------


def test_a_fit_finds_the_principal_directions_strongest_first():
    """
    The directions span what a singular value decomposition of the centred unit vectors finds.
    """
    vectors = embeddings(400).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    projection = Projection.fit(vectors)

    np.testing.assert_allclose(projection.mean, unit.mean(axis=0), atol=1e-7)
    _, _, rows = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    overlap = np.abs(rows[:N_DIRECTIONS] @ projection.directions)
    np.testing.assert_allclose(overlap, np.eye(N_DIRECTIONS), atol=1e-4)


def test_directions_are_orthonormal_and_signed_by_their_largest_entry():
    """
    An eigenvector may point either way; here its largest entry is positive.
    """
    directions = Projection.fit(embeddings(400)).directions

    np.testing.assert_allclose(directions.T @ directions, np.eye(N_DIRECTIONS), atol=1e-5)
    largest = np.abs(directions).argmax(axis=0)
    assert (directions[largest, np.arange(N_DIRECTIONS)] > 0).all()


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_the_same_data_or_seed_give_the_same_projection(kind):
    """
    Made twice, it has the same bits and so the same digest.
    """
    first, second = PROJECTIONS[kind](), PROJECTIONS[kind]()

    assert first.digest() == second.digest()
    np.testing.assert_array_equal(first.directions, second.directions)


@pytest.mark.parametrize("part", ["mean", "directions"])
def test_any_other_number_gives_another_digest(part):
    """
    The last entry of either part changes the digest: it names this very projection.
    """
    projection = Projection.fit(embeddings(400))
    columns = {"mean": projection.mean.copy(), "directions": projection.directions.copy()}
    columns[part].flat[-1] = np.nextafter(columns[part].flat[-1], np.float32(1))

    assert Projection(**columns).digest() != projection.digest()
    assert len(projection.digest()) == 8
