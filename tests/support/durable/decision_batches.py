"""Made-up batches of decisions, as a router hands them to its log."""

from __future__ import annotations

import numpy as np

from learners.context import N_FEATURES
from streams.feedback.decisions import DecisionBatch
from streams.feedback.said import NOTHING, Said
from streams.feedback.ticket import Issuer


def batch(
    n: int,
    models: tuple[str, ...] = ("small", "large"),
    *,
    seed: int = 0,
    tenant: str = "acme",
    version: int = 1001,
    policy: str = "Greedy()",
    prompts: list[str | None] | None = None,
    said: Said = NOTHING,
) -> DecisionBatch:
    """n made-up decisions over these models."""
    rng, k = np.random.default_rng(seed), len(models)
    return DecisionBatch(
        ids=Issuer(seed).take(n),
        decided_at_ms=rng.integers(0, 1 << 45, n),
        tenants=[tenant] * n,
        sessions=[f"session {i}" for i in range(n)],
        models=models,
        pools=tuple(f"{model}-pool-{i}" for i in range(3) for model in models),
        chosen=rng.integers(0, k, n),
        pool=rng.integers(0, 3 * k, n),
        propensities=rng.dirichlet(np.ones(k), n).reshape(n, k),
        utility=rng.standard_normal((n, k)),
        quality=rng.uniform(0, 1, (n, k)),
        cost_usd=rng.uniform(0, 1, (n, k)),
        latency_ms=rng.uniform(0, 9000, (n, k)),
        preference=rng.uniform(0, 9, (n, 4)),
        prompt_tokens=rng.integers(0, 5000, n).astype(np.float64),
        snapshot_version=version,
        policy=policy,
        encoder="hashing",
        contexts=rng.integers(-128, 128, (n, N_FEATURES)).astype(np.int8),
        prompts=prompts or [None] * n,
        said=[said] * n,
    )
