"""Noticing that a model is no longer what it was: tests on the residuals of the estimates.

    residuals r in the order of time, in standard deviations

    S ← max(0, S + r − slack)         one test for more than estimated, one (with −r) for less
    alarm while S ≥ threshold          the change began where S last was zero

(Page 1954.) With the defaults, a shift of 1.5 deviations is noticed after 20 outcomes, one of half
a deviation after 100, and a model that does not change raises an alarm once in millions.

The other detector is ADWIN (Bifet & Gavaldà 2007; river's): it cuts a sequence where the means
before and after differ by more than chance. It needs no slack and is slower; see docs/decisions.md.

The tests keep no state of their own: they are computed from rows and sums that are exact, whenever
a snapshot is solved. So an alarm does not depend on when anybody looked, and it ends by itself when
what was learned since has outweighed what was believed before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.option import option

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftOptions:
    """When a model is taken to have changed."""

    detector: str = option(
        "cusum",
        "Which test: `cusum`, or `adwin` of the library river, which needs twice as many outcomes.",
        key="drift_detector",
        choices=("cusum", "adwin"),
    )
    slack: float = option(
        0.25,
        "Standard deviations of error that estimates may have for ever.",
        key="drift_slack",
        gt=0,
        le=10,
    )
    threshold: float = option(
        25.0,
        "Summed deviations beyond the slack after which a model is taken to have changed.",
        key="drift_threshold",
        gt=0,
        le=1e6,
    )
    rows: int = option(
        2048,
        "Newest outcomes that are looked at for changes: half of any model, half of each in turn.",
        key="drift_rows",
        ge=64,
        le=100_000,
    )
    # Versions are released together: what was known of the other models may no longer hold either.
    doubted: float = option(
        20.0,
        "When a model has changed, the others' past counts as so many outcomes at most.",
        key="drift_doubted",
        ge=1,
        le=1e12,
    )
    # Its bound on false alarms is per look; of 1 in 500 none was seen in 500,000 outcomes.
    adwin_delta: float = 0.002
    outlier: float = 5.0  # a residual counts as at most this: no single report is a change
    # Failures are 0 or 1 and mean the same for every model: in failures, not deviations.
    error_slack: float = 0.15
    error_threshold: float = 4.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """A model changed: `target` is "quality", "cost", "latency" or "error"."""

    model: int  # key
    target: str
    since_ms: int  # decision time of the first outcome after the change
    outcomes: int  # since then
    shift: float  # mean residual since then, in standard deviations or failures per call

    def __str__(self) -> str:
        return f"{self.target} moved by {self.shift:+.2f} over {self.outcomes} outcomes"


def change_point(residuals: Floats, options: DriftOptions) -> int | None:
    """Where in `residuals` (n,) the change that is under way began; None if none is.

    >>> calm, low = [0.5, -0.5] * 20, [-3.0] * 12
    >>> change_point(np.array(calm), DriftOptions())
    >>> change_point(np.array(calm + low), DriftOptions())
    39
    >>> change_point(np.array(calm * 4 + low * 2), DriftOptions(detector="adwin"))
    160
    """
    return DETECTORS[options.detector](residuals, options)


def cusum(residuals: Floats, options: DriftOptions) -> int | None:
    """Page's test, for more and for less than estimated."""
    starts = [_rise(sign * residuals, options.slack, options.threshold) for sign in (1.0, -1.0)]
    found = [start for start in starts if start is not None]
    return max(found, default=None)


def adwin(residuals: Floats, options: DriftOptions) -> int | None:
    """Since ADWIN's cut, if what came since is off by more than the slack."""
    from river import drift  # a second to import

    make: Any = drift.ADWIN  # it has no types
    window = make(delta=options.adwin_delta, clock=8)
    found = False
    for residual in residuals.tolist():
        window.update(residual)
        found |= window.drift_detected
    start = _split(residuals) if found else None
    return start if found and abs(residuals[start:].mean()) > options.slack else None


def _split(residuals: Floats) -> int:
    """Where the means before and after differ most surely: what ADWIN drops is coarser."""
    n = np.arange(1, len(residuals))
    total = np.cumsum(residuals)
    departure = total[:-1] - total[-1] * n / len(residuals)
    return 1 + int((departure**2 / (n * (len(residuals) - n))).argmax())


DETECTORS: Mapping[str, Callable[[Floats, DriftOptions], int | None]] = {
    "cusum": cusum,
    "adwin": adwin,
}


def _rise(residuals: Floats, slack: float, threshold: float) -> int | None:
    if not len(residuals):
        return None
    walk = np.concatenate([[0.0], np.cumsum(residuals - slack)])
    lowest = np.minimum.accumulate(walk)
    if walk[-1] - lowest[-1] < threshold:
        return None
    return int(len(walk) - 1 - walk[::-1].argmin())


@dataclass(frozen=True, slots=True, eq=False)
class Failures:
    """Expected share of failed calls of one model, and how surely it is known."""

    share: float
    since_bucket: int | None  # of a change that is under way
    n_good: float  # calls that did not fail since the change; infinite without one


def failures(
    buckets: NDArray[np.int64],
    failed: NDArray[np.float64],
    calls: NDArray[np.float64],
    usual: float,
    *,
    now_bucket: float,
    options: DriftOptions,
    half_life: float = 120.0,
) -> Failures:
    """From a model's calls per bucket of time (b,), and the share that `usual`ly fails.

    While failures are not more than usual, that share is the estimate. Since a change they are
    what counts, fading by `half_life` buckets, so that the model is tried again now and then.
    """
    excess = failed - calls * (usual + options.error_slack)
    start = _rise(excess, 0.0, options.error_threshold)
    if start is None:
        return Failures(usual, None, np.inf)
    age = np.maximum(now_bucket - buckets[start:], 0.0)  # a clock may have been ahead
    weight = np.exp2(-age / half_life)
    known = float(weight @ calls[start:])
    share = (float(weight @ failed[start:]) + 2.0 * usual) / (known + 2.0)
    good = float((calls[start:] - failed[start:]).sum())
    return Failures(share, int(buckets[start]), good)
