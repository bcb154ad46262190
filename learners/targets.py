"""What is learned about a call, and the scale on which it is learned.

Three targets are predicted for every model: its *quality* as reported, and its *cost* and
*latency* as the logarithm of their ratio to what the catalogue expects. A ratio, because models
differ by factors of hundreds while one model varies by factors of two; to the catalogue's own
expectation, because then a new list price takes effect at once and what was learned stays true.

The one rule: a value enters the statistics as an integer (`to_fixed`), so that sums are exact.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Target(IntEnum):
    """Columns of every `(…, 3)` array of targets."""

    QUALITY = 0
    COST = 1
    LATENCY = 2


N_TARGETS = len(Target)

FRACTION_BITS = 12
ONE = 1 << FRACTION_BITS  # the integer that stands for 1.0
VALUE_MAX = 8.0  # |value| on the learned scale; e^8 = 2,981 covers any real cost ratio

# Below these a ratio says nothing about a model, only about rounding in the report.
COST_USD_MIN = 1e-9
LATENCY_MS_MIN = 1e-3


def log_ratio(measured: Floats, expected: Floats, floor: float) -> Floats:
    """Return ln(measured / expected), both first raised to `floor`, clipped to ±`VALUE_MAX`."""
    ratio = np.log(np.maximum(measured, floor)) - np.log(np.maximum(expected, floor))
    return np.clip(ratio, -VALUE_MAX, VALUE_MAX)


def to_fixed(values: Floats) -> Ints:
    """Round to integers of 1/4096, any shape. Values must be finite and within ±`VALUE_MAX`."""
    assert np.isfinite(values).all(), "a non-finite value reached the statistics"
    assert (np.abs(values) <= VALUE_MAX).all(), "a value beyond the learned scale"
    return np.rint(values * ONE).astype(np.int64)
