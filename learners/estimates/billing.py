"""Whether a model's bills exceed what was predicted of them, with a stated rate of false alarms.

    bill, prediction in the ticket ─▶ x = bill / prediction ─▶ exact sums by model and day ─┐
                                        evidence against "on average at most m" ◀───────────┘

Who sells answers also counts their tokens, and hidden ones (of reasoning) nobody else can count.
But what a request should cost is predicted when it is decided, from the requests before it, and is
in its ticket. So each bill is laid beside its prediction (predictive auditing: PALACE, Wang et al.
2025), and a sequential test says when they are too high for chance.

The null hypothesis is that, given all before it, a bill is on average at most m = 1 + tolerance
times its prediction. With X = x / m − 1 ≥ −1 and any λ in (0, 1),

    exp(λ ΣX + (λ + ln(1 − λ)) ΣX²)

is then a supermartingale (Fan, Grama and Liu 2015), and so is its mean over several λ. By Ville's
inequality it ever exceeds 1/α with probability at most α, however often one looks, and whatever the
bills' distribution. It needs sums alone, so it does not depend on their order. A test begins each
day, so that an old good time does not hide a bad week; each has a 365th of the yearly rate.

Ratios count as at most 8: that costs power, never more false alarms. What it can't see: a bill that
was always too high, since then so are the predictions; and who reports costs is believed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learners.estimates.ema import FIGURES
from learners.estimates.sums.buckets import Buckets
from learners.option import option
from learners.outcomes import Outcomes
from learners.targets import Target

DAY_MS, DAYS = 86_400_000, 32  # how long a test goes on
RATIO_ONE, RATIO_MAX = 256, 8.0
PREDICTED_MIN = 100  # nano-dollars: of less a ratio says nothing
LAMBDAS = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.7])
COST = FIGURES.index("cost_usd")


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingOptions:
    """When bills are an alarm."""

    false_alarms_per_year: float = option(
        0.1,
        "Alarms `model_overbilled` by mere chance, per model and year, at most.",
        key="billing_false_alarms_per_year",
        gt=0,
        le=365,
    )
    # Predictions themselves are off by some per cent on single streams (DESIGN.md).
    tolerance: float = option(
        0.15,
        "Share by which bills may exceed what was predicted, on average.",
        key="billing_tolerance",
        ge=0,
        le=100,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overbilled:
    """A model whose bills are too high for chance."""

    model: int  # its key
    since_ms: int  # the day from which on the evidence is strongest
    outcomes: int
    ratio: float  # bills over predictions since then, on average
    chance: float  # that a test ever shows as much where nothing is wrong

    def __str__(self) -> str:
        return (
            f"{self.outcomes} bills were {self.ratio:.2f} times what was predicted, on average; "
            f"by chance so much is shown at most {self.chance:.1g} times"
        )


def new_statistics() -> Buckets:
    """Empty sums of 1, x and x² by model and day."""
    return Buckets((3,), DAY_MS, DAYS)


def update(statistics: Buckets, outcomes: Outcomes) -> None:
    """Fold in a batch: the bills of which a prediction is known."""
    predicted = outcomes.estimated[:, Target.COST]
    rows = np.flatnonzero(outcomes.figures_known[:, COST] & (predicted >= PREDICTED_MIN))
    if not len(rows):
        return
    billed = outcomes.figures[rows, COST]
    ratios = np.rint(np.minimum(billed / predicted[rows], RATIO_MAX) * RATIO_ONE).astype(np.int64)
    terms = np.stack([np.ones(len(rows), np.int64), ratios, ratios**2], axis=1)
    statistics.update(outcomes.models[rows], outcomes.decided_at_ms[rows], terms)


def overbilled(
    statistics: Buckets, models: Sequence[int], as_of_ms: int, options: BillingOptions
) -> list[Overbilled]:
    """Those of `models` (keys) whose bills are too high for chance."""
    bar = math.log(365.0 / options.false_alarms_per_year)
    found = []
    for model in models:
        days, sums = statistics.of(model)
        kept = (days > as_of_ms // DAY_MS - DAYS) & (days <= as_of_ms // DAY_MS + 1)
        days, since = days[kept], np.cumsum(sums[kept][::-1], axis=0)[::-1].astype(np.float64)
        if not len(days):
            continue
        evidence = log_evidence(since, 1.0 + options.tolerance)
        at = int(evidence.argmax())
        if evidence[at] >= bar:
            n, total, _ = since[at]
            found.append(
                Overbilled(
                    model=model,
                    since_ms=int(days[at]) * DAY_MS,
                    outcomes=int(n),
                    ratio=float(total / n / RATIO_ONE),
                    chance=math.exp(-float(evidence[at])),
                )
            )
    return found


def log_evidence(sums: np.ndarray, most: float) -> np.ndarray:
    """Logarithms (…) of the evidence in sums of 1, x, x² (…, 3) that x is above `most` on average.

    At least −∞, on average at most 0 where it is not.
    """
    n, total, squares = np.moveaxis(sums, -1, 0)
    mean_part = total / RATIO_ONE / most
    first = mean_part - n
    second = squares / (RATIO_ONE * most) ** 2 - 2.0 * mean_part + n
    penalties = LAMBDAS + np.log1p(-LAMBDAS)
    exponents = LAMBDAS * first[..., None] + penalties * second[..., None]
    return np.logaddexp.reduce(exponents, axis=-1) - math.log(len(LAMBDAS))
