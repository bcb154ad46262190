"""A live view whose estimates a test sets, and requests of which a test sets some columns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from router_bench import catalogue

from learners.context import BIAS, BIAS_FEATURE, N_FEATURES
from learners.estimates.estimator import Estimates
from learners.estimates.learned import Learned, MemoryOptions
from serve.routing.catalogue import Model
from serve.routing.eligible import RequestBatch
from serve.routing.live import Live, LiveOptions


def requests(n: int = 1, k: int = 2, **columns) -> RequestBatch:
    """N requests without limits that weigh quality alone, but for `columns`."""
    contexts = np.zeros((n, N_FEATURES), np.int8)
    contexts[:, BIAS_FEATURE] = BIAS
    plain = {
        "contexts": contexts,
        "prompt_tokens": np.zeros(n),
        "preference": np.tile([1.0, 0.0, 0.0, 0.0], (n, 1)),
        "allowed": np.ones((n, k), bool),
        "cost_usd_max": np.full(n, np.inf),
        "latency_ms_max": np.full(n, np.inf),
        "criticality": np.full(n, 2, np.int8),
        "quality_min": np.zeros(n),
        "strong_share_max": np.ones(n),
    }
    return RequestBatch(**plain | {name: np.asarray(value) for name, value in columns.items()})


class Estimated(Live):
    """A live view whose estimator says what a test tells it."""

    def __init__(
        self, mean, *, deviation=None, noise=None, error_share=None, models: list[Model]
    ) -> None:
        super().__init__(catalogue(models), Learned(MemoryOptions()), "encoder", LiveOptions())
        mean = np.array(mean, np.float32)  # (n, k, 3); ratios are logarithms
        mean[:, :, 1:] = np.exp(mean[:, :, 1:])
        n, k, _ = mean.shape
        self.estimates = Estimates(
            mean,
            np.zeros((n, k), np.float32) if deviation is None else np.asarray(deviation),
            np.zeros((k, 3), np.float32),
            np.zeros((k, 3), np.float32) if noise is None else np.asarray(noise, np.float32),
        )
        self.estimator = SimpleNamespace(
            estimate=lambda contexts, traits=None: self.estimates, effects=None
        )
        self.error_share = np.zeros(k) if error_share is None else np.asarray(error_share)
