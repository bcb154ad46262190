"""What is learned about a call, and the scale on which it is learned.

Three targets are predicted for every model: its *quality* as reported, and its *cost* and
*latency* as their ratio to what the catalogue expects. A ratio, because then a new list price takes
effect at once and what was learned (this model writes twice as long as stated) stays true.

The mean of ratios is learned, not of their logarithms: what is paid is a sum, and a sum over free
calls, refunds and long answers has the mean of the ratios, whatever their distribution. A ratio
counts as at most `RATIO_MAX` (winsorised), which bounds what one report can do. Where nothing is
expected (a list price of zero) there is no ratio: plain means in dollars stand in (`ema`).

A value enters the statistics as an integer (`to_fixed`), so that sums are exact.
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
VALUE_MAX = 8.0  # |value| on the learned scale
RATIO_UNIT = 4.0  # a ratio is learned in these: 1/1024 to 32
RATIO_MAX = VALUE_MAX * RATIO_UNIT

# An expectation below these is none: a ratio to it would say nothing about a model.
COST_USD_MIN = 1e-9
LATENCY_MS_MIN = 1e-3
# A deviation counts as at most this share of a cost or a time, so that four of them reach down to
# nothing: no call costs less. Else bills that lie far apart, as long prompts' from short ones'
# would, have a model tried for ever that its price alone rules out.
UNSURE_SHARE_MAX = 0.25


def ratio(measured: Floats, expected: Floats, floor: float) -> Floats:
    """Return measured / expected in `RATIO_UNIT`s, at most `VALUE_MAX`; 0 if less is expected
    than `floor`.
    """
    usable = expected >= floor
    found = np.divide(measured, expected, out=np.zeros_like(measured), where=usable)
    return np.clip(found, 0.0, RATIO_MAX) / RATIO_UNIT


def winsorised(measured: Floats, expected: Floats, floor: float) -> Floats:
    """`measured`, at most `RATIO_MAX` times what is expected, where at least `floor` is."""
    return np.where(expected >= floor, np.minimum(measured, RATIO_MAX * expected), measured)


def to_fixed(values: Floats) -> Ints:
    """Round to integers of 1/4096, any shape. Values must be finite and within ±`VALUE_MAX`."""
    assert np.isfinite(values).all(), "a non-finite value reached the statistics"
    assert (np.abs(values) <= VALUE_MAX).all(), "a value beyond the learned scale"
    return np.rint(values * ONE).astype(np.int64)
