"""`bench control`, key `cascades`: what it measures, on a made-up table."""

from __future__ import annotations

import numpy as np
import pytest

from load.bench.control.cascades import CascadesBench, measure, played
from load.data.tables import OutcomeTable

QUICK = CascadesBench(seeds=2, prompts=200, batch=25, same_errors=(0.0,), prices=(0.3,))


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    """The cheap model is right on every other prompt, the dear one on all; nothing tells which."""
    rng, n = np.random.default_rng(3), 200
    right = rng.random(n) < 0.5
    return OutcomeTable(
        name="made up",
        models=("cheap", "dear"),
        embeddings=rng.standard_normal((n, 96)).astype(np.float32),
        prompt_tokens=np.full(n, 50),
        quality=np.stack([right, np.ones(n)], axis=1).astype(np.float64),
        cost_usd=np.tile([1e-6, 1e-3], (n, 1)),
    )


def test_where_answers_tell_what_contexts_do_not_the_cascade_beats_every_single_call(table):
    (found,) = measure(QUICK, [table], lambda text: None)["made up"].values()

    assert set(found["gain_over"]) == {"always_cheap", "always_dear", "one_call", "best_fixed"}
    assert all(mean > 0 for mean, _, _ in found["gain_over"].values())
    assert found["gain_over"]["best_fixed"][1] > 0
    assert 30 < found["escalated"][0] < 80


def test_a_seed_gives_the_same_figures(table):
    assert played(table, 1, QUICK, price=0.3, same=0.0) == played(
        table, 1, QUICK, price=0.3, same=0.0
    )


def test_what_is_not_worth_its_price_is_not_bought(table):
    """
    At ten times what the dear model gains nothing is escalated for long.
    """
    assert played(table, 1, QUICK, price=10.0, same=0.0)["escalated"] < 0.1
