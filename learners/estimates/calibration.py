"""How true estimates turned out to be, and estimates made truer by it.

    estimate in the ticket, outcome ─▶ exact sums by model and bin ─▶ a curve per model
                                                                          │
    estimate of quality ──────────────────────────────────────────────────┴─▶ P(success), deviation
    estimate of cost ─────────────── · paid / estimated, by model ──────────▶ expected cost

A linear model's number is not a probability: it is too bold for some prompts and too timid for
others, and of the model that was chosen it is too high, because high errors are chosen (the
optimiser's curse). Both are seen when what was estimated before a call is laid beside what came of
it. The correction is an isotonic regression on bins (Zadrozny & Elkan 2002): first one curve for
all models, then each model's own departure from it, both pulled to no correction by a number of
imagined outcomes. The same bins know how far single outcomes lie from the curve.

Corrected is what is *said* of a model and what limits compare. Models are compared with each other
by what was estimated: a correction that the chosen get more than the others, because they were
chosen, would make the router leave them for those it knows less of.

What is learned from is the estimate *before* calibration, which the ticket carries. So the curves
do not learn from themselves, and the same outcomes give the same curves in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.estimates.ema import FIGURE_UNITS, FIGURES
from learners.estimates.ridge import SQUARE_UNIT
from learners.estimates.sums.decayed_sums import DecayedSums
from learners.estimates.sums.influence import InfluenceOptions, by_volume, groups_of
from learners.outcomes import NOT_ESTIMATED, Outcomes
from learners.targets import ONE, Target

Floats = NDArray[np.float64]

BINS = 16  # of estimated quality, equally wide
COST = BINS  # the row of sums in which costs are
# Columns of sums: outcomes, what was estimated of them, what came, and squares of the difference
# (of quality alone; in units of 64 / ONE², as in `ridge`).
N, ESTIMATED, CAME, SQUARES = range(4)
SHARED_WEIGHT, OWN_WEIGHT = 50.0, 100.0  # outcomes of a bin that no correction counts as
COST_WEIGHT = 50.0  # likewise, of costs
# Costs are corrected by so much at most. What having been chosen makes of them is a few percent
# (measured: 2). Calls that cost ten times what was estimated were estimated before anybody knew:
# the estimator has learned that by itself, and a factor of ten would count it twice.
COST_FACTOR_MAX = 1.05
STEPS = 64  # a solved curve is a table of so many straight pieces
COST_FIGURE = FIGURES.index("cost_usd")


def new_statistics(half_life_ms: int) -> DecayedSums:
    """Empty sums: for every model, a row for each bin and one for cost."""
    return DecayedSums((BINS + 1, 4), half_life_ms)


def update(statistics: DecayedSums, outcomes: Outcomes) -> None:
    """Fold a batch in: each value that was estimated and has been reported."""
    quality, cost = outcomes.estimated.T
    judged = outcomes.known[:, Target.QUALITY] & (quality != NOT_ESTIMATED)
    paid = outcomes.figures_known[:, COST_FIGURE] & (cost != NOT_ESTIMATED)
    bins = np.clip(quality * BINS // ONE, 0, BINS - 1)
    _add(statistics, outcomes.take(judged), bins[judged], Target.QUALITY)
    _add(statistics, outcomes.take(paid), np.full(int(paid.sum()), COST), Target.COST)


def _add(
    statistics: DecayedSums, outcomes: Outcomes, rows: NDArray[np.int64], target: Target
) -> None:
    of_quality = target == Target.QUALITY
    came = outcomes.targets[:, target] if of_quality else outcomes.figures[:, COST_FIGURE]
    estimated = outcomes.estimated[:, target]
    squares = np.rint((came - estimated) ** 2 / SQUARE_UNIT).astype(np.int64) * of_quality
    terms = np.stack([np.ones(len(rows), np.int64), estimated, came, squares], axis=1)
    epochs, weights = statistics.epochs_and_weights(outcomes.decided_at_ms)
    groups = groups_of(outcomes.tenant_hashes, outcomes.producers)
    for key, epoch, group in set(
        zip(outcomes.models.tolist(), epochs.tolist(), groups.tolist(), strict=True)
    ):
        at = (outcomes.models == np.uint64(key)) & (epochs == epoch) & (groups == group)
        total = np.zeros((BINS + 1, 4), np.int64)
        np.add.at(total, rows[at], terms[at] * weights[at, None])
        statistics.add(key, epoch, total, group)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Solved curves of k models."""

    curves: Floats  # (k, STEPS + 1): calibrated quality at equally spaced estimates
    cost_factor: Floats  # (k,)
    squares: Floats  # (k, BINS) summed squares of outcomes around the curve
    counts: Floats  # (k, BINS) of so many outcomes

    def quality(self, estimates: Floats) -> Floats:
        """P(success) (n, k) for estimates (n, k) in [0, 1]."""
        place = estimates * STEPS
        below = np.minimum(place.astype(np.intp), STEPS - 1)
        part, models = place - below, np.arange(len(self.curves))
        low, high = self.curves[models, below], self.curves[models, below + 1]
        return low + part * (high - low)

    def deviation(self, estimates: Floats, believed: Floats) -> Floats:
        """Of single outcomes around `quality` (n, k), pulled to what is `believed` (n, k)."""
        at = np.minimum((estimates * BINS).astype(np.intp), BINS - 1)
        models = np.arange(len(self.curves))
        squares, counts = self.squares[models, at], self.counts[models, at]
        return np.sqrt((squares + OWN_WEIGHT * believed**2) / (counts + OWN_WEIGHT))


def solve(
    statistics: DecayedSums,
    models: Sequence[int],
    as_of_ms: int,
    influence: InfluenceOptions,
    changed: Collection[int] = (),
) -> Calibration:
    """The curves of `models` (k keys); of those `changed` what came before says nothing."""
    groups = statistics.read_groups(list(models), as_of_ms)  # (k, g, BINS + 1, 4)
    counts = groups[..., :COST, N].sum(axis=2)
    sums = (groups * by_volume(counts, influence.outcomes_min)[..., None, None]).sum(axis=1)
    sums[[key in changed for key in models]] = 0.0
    quality, cost = sums[:, :COST] / [1.0, ONE, ONE, ONE**2 / SQUARE_UNIT], sums[:, COST]
    at, shared = _nodes(quality.sum(axis=0)), _residual(quality.sum(axis=0), SHARED_WEIGHT)
    common = rising(at + shared, quality.sum(axis=0)[:, N] + SHARED_WEIGHT)
    curves = [_curve(own, at, common - at) for own in quality]
    # Around the mean of the bin, which the curve goes through.
    bias = quality[..., CAME] - quality[..., ESTIMATED]
    squares = quality[..., SQUARES] - bias**2 / np.maximum(quality[..., N], 1e-9)
    return Calibration(
        np.array(curves), _cost_factor(cost), np.maximum(squares, 0.0), quality[..., N]
    )


def _nodes(sums: Floats) -> Floats:
    """The mean estimate of each bin (BINS,); of an empty one, its middle."""
    middle = (np.arange(BINS) + 0.5) / BINS
    return np.where(sums[:, N] > 0, sums[:, ESTIMATED] / np.maximum(sums[:, N], 1e-9), middle)


def _residual(sums: Floats, weight: float) -> Floats:
    """How much more came than was estimated (BINS,), pulled to nothing."""
    return (sums[:, CAME] - sums[:, ESTIMATED]) / (sums[:, N] + weight)


def _curve(own: Floats, at: Floats, shared: Floats) -> Floats:
    """One model's curve (STEPS + 1,): the common correction, and how it departs from that."""
    nodes = _nodes(own)
    common = np.interp(nodes, at, shared)
    departure = (own[:, CAME] - own[:, ESTIMATED] - own[:, N] * common) / (own[:, N] + OWN_WEIGHT)
    level = rising(nodes + common + departure, own[:, N] + OWN_WEIGHT)
    grid = np.linspace(0.0, 1.0, STEPS + 1)
    # A correction is carried beyond the outermost bins, so that order is kept there, too.
    return np.clip(grid + np.interp(grid, nodes, level - nodes), 0.0, 1.0)


def rising(level: Floats, weight: Floats) -> Floats:
    """The nearest levels that do not fall: isotonic regression, pooling adjacent violators."""
    blocks: list[list[float]] = []  # level, weight, length
    for value, mass in zip(level.tolist(), weight.tolist(), strict=True):
        blocks.append([value, mass, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (low, low_mass, n), (high, high_mass, m) = blocks[-2:]
            both = low_mass + high_mass
            blocks[-2:] = [[(low * low_mass + high * high_mass) / both, both, n + m]]
    return np.concatenate([np.full(int(length), value) for value, _, length in blocks])


def _cost_factor(sums: Floats) -> Floats:
    """What was paid over what was estimated (k,), pulled to one."""
    imagined = COST_WEIGHT * sums[:, ESTIMATED] / np.maximum(sums[:, N], 1e-9)
    below = sums[:, ESTIMATED] + imagined
    factor = (sums[:, CAME] + imagined) / np.where(below > 0, below, 1.0)
    found = np.clip(factor, 1.0 / COST_FACTOR_MAX, COST_FACTOR_MAX)
    return np.where(below > 0, found, 1.0)


def fixed(quality: Floats, cost_usd: Floats) -> NDArray[np.int64]:
    """Estimates (n,) as the integers (n, 2) that are summed; NaN is not estimated."""
    cost_max = 100.0  # as much as a report may say
    scaled = np.stack(
        [np.clip(quality, 0, 1) * ONE, np.clip(cost_usd, 0, cost_max) / FIGURE_UNITS[COST_FIGURE]],
        axis=1,
    )
    known = np.isfinite(scaled)
    return np.where(known, np.rint(np.where(known, scaled, 0.0)), NOT_ESTIMATED).astype(np.int64)
