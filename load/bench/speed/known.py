"""What a router knows that has served for a while: made-up outcomes of every model.

A model that nobody knows is tried with care, which costs time of its own; that is not what a router
does all day.
"""

from __future__ import annotations

import numpy as np

from learners.context import BIAS, BIAS_FEATURE, N_FEATURES, STEP, Contexts
from learners.estimates.ema import FIGURES
from learners.estimates.landmarks import landmarks_of
from learners.estimates.learned import Learned, MemoryOptions
from learners.estimates.sums.influence import hash_of
from learners.outcomes import Outcomes
from learners.targets import N_TARGETS, to_fixed
from streams.feedback.ticket import key_of

OUTCOMES = 2_000  # of each model
SPREAD = 0.6 / STEP  # of a feature, as a real encoder's


def contexts(n: int, rng: np.random.Generator) -> Contexts:
    """Contexts as those of a real encoder are spread."""
    found = np.clip(rng.normal(0.0, SPREAD, (n, N_FEATURES)), -127, 127).astype(np.int8)
    found[:, BIAS_FEATURE] = BIAS
    return found


def known(
    models: list[str],
    encoder: str,
    at_ms: int,
    rng: np.random.Generator,
    n: int = OUTCOMES,
    memory: MemoryOptions | None = None,
) -> Learned:
    """What is learned from `n` outcomes of each model."""
    learned = Learned(memory or MemoryOptions(), landmarks_of(encoder))
    for model in models:
        learned.update(_outcomes(model, at_ms, rng, n))
    learned.history.settle()
    return learned


def _outcomes(model: str, at_ms: int, rng: np.random.Generator, n: int) -> Outcomes:
    targets = np.ones((n, N_TARGETS))
    targets[:, 0] = rng.random(n)
    figures = np.zeros((n, len(FIGURES)), np.int64)
    return Outcomes(
        issuers=np.full(n, key_of(model) >> 8, np.uint64),
        sequences=np.arange(n, dtype=np.uint64),
        decided_at_ms=np.full(n, at_ms),
        models=np.full(n, key_of(model), np.uint64),
        pools=np.full(n, key_of(model), np.uint64),
        tenant_hashes=np.full(n, hash_of(b""), np.uint8),
        contexts=contexts(n, rng),
        targets=to_fixed(targets),
        known=np.ones((n, N_TARGETS), bool),
        figures=figures,
        figures_known=np.zeros(figures.shape, bool),
    )
