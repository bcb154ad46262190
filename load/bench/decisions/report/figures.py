"""From what contenders chose on a table to its figures, as they stand in the JSON.

    chosen (orders, dials, prompts) ─▶ outcomes ─▶ one number per order ─▶ [mean, low, high]

The interval is a bootstrap over the orders by chance; the drifting order stands apart. Where a
difference is reported it is taken order by order first, so that lucky orders cancel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from load.bench.decisions.options import REFERENCE
from load.bench.decisions.orders import Orders
from load.bench.decisions.report import metrics
from load.bench.decisions.report.metrics import Floats, Span, Triple, Values
from load.bench.decisions.variants import FAIRLEAD

Outcome = list[tuple[Floats, Floats]]  # quality and cost (prompts, models), by order

SHARES = (0.98, 1.0)
N_STEPS = 20  # of a learning curve
DEVIATIONS = (1.0, 1.96)  # 68 and 95 % of a normal distribution


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """What a contender's choices gave: (orders, settings of the dial, prompts) each."""

    chosen: np.ndarray
    quality: Floats
    cost_usd: Floats
    utility: Floats

    @property
    def half(self) -> slice:
        """The second half of the prompts."""
        return slice(self.quality.shape[-1] // 2, None)


def played(orders: Orders, penalties: tuple[float, ...], chosen: np.ndarray) -> Played:
    """Look up what came of the choices; a lost prompt gives and costs nothing."""
    rows, columns = orders.rows[:, None, :], np.maximum(chosen, 0)
    got = chosen >= 0
    quality = np.where(got, orders.table.quality[rows, columns], 0.0)
    cost = np.where(got, orders.table.cost_usd[rows, columns], 0.0)
    weight = np.array(penalties)[None, :, None] / orders.best_single_usd
    return Played(chosen, quality, cost, quality - weight * cost)


def name_of(penalty: float) -> str:
    """The key of a preference."""
    return f"{penalty:g}"


class TableFigures:
    """All contenders of one table."""

    def __init__(
        self,
        orders: Orders,
        penalties: tuple[float, ...],
        chosen: Mapping[str, np.ndarray],
        predicted: Mapping[str, Floats],
    ) -> None:
        """`chosen` by contender; `predicted` quality, deviation and cost, by those that predict."""
        self._predicted = predicted
        self._orders, self._penalties = orders, penalties
        self.played = {name: played(orders, penalties, one) for name, one in chosen.items()}
        self._seeds = range(orders.n_seeds)
        self._reference = penalties.index(REFERENCE)
        outcome = [(orders.table.quality[r], orders.table.cost_usd[r]) for r in orders.rows]
        half = slice(orders.n_prompts // 2, None)
        self._spans = [metrics.span_of(q[half], c[half]) for q, c in outcome]
        self._halves = [(q[half], c[half]) for q, c in outcome]
        weights = [penalty / orders.best_single_usd for penalty in penalties]
        # (orders, dials): what the best fixed model gives, in hindsight, per stretch of prompts.
        self._fixed_half = self._best_fixed(outcome, weights, half)
        self._fixed_whole = self._best_fixed(outcome, weights, slice(None))
        self._fixed_along = self._best_fixed_along(outcome, weights[self._reference])
        best = [
            (q[:, None, :] - w * c[:, None, :]).max(axis=2).mean()
            for q, c in outcome
            for w in weights
        ]
        self._oracle = np.array(best).reshape(len(outcome), -1)

    def json(self) -> dict[str, dict[str, object]]:
        """Figures by contender."""
        return {name: self._figures(name) for name in self.played}

    @staticmethod
    def _best_fixed(outcome: Outcome, weights: list[float], stretch: slice) -> Floats:
        return np.array(
            [
                [float((q[stretch] - w * c[stretch]).mean(axis=0).max()) for w in weights]
                for q, c in outcome
            ]
        )

    @staticmethod
    def _best_fixed_along(outcome: Outcome, weight: float) -> Floats:
        """Utility (orders, prompts) of the model that is best over the whole stream."""
        worth = [q - weight * c for q, c in outcome]
        return np.stack([one[:, one.mean(axis=0).argmax()] for one in worth])

    def _figures(self, name: str) -> dict[str, object]:
        one = self.played[name]
        whole, half = one.utility.mean(axis=2), one.utility[..., one.half].mean(axis=2)
        found: dict[str, object] = {
            "quality": self._triple(one.quality.mean(axis=2)[:, self._reference]),
            "cost_usd": self._triple(one.cost_usd.mean(axis=2)[:, self._reference]),
            "utility": self._by_preference(whole),
            "utility_second_half": self._by_preference(half),
            "utility_over_best_fixed": self._by_preference(half - self._fixed_half),
            "utility_over_best_fixed_whole": self._by_preference(whole - self._fixed_whole),
            "worst_order_below_median": self._worst(whole),
            "regret": self._triple((self._oracle - whole)[:, self._reference]),
            "rci": self._triple([self._collapse(one, order) for order in self._seeds]),
            **self._frontier_figures(one),
            "frontier": self._frontier(one),
            "learning_curve": self._curve(one),
            "drifting_order": self._drifting(whole, half),
        }
        if name in self._predicted:
            found |= self._calibration(one, self._predicted[name])
        if name != FAIRLEAD and FAIRLEAD in self.played:
            ours = self.played[FAIRLEAD].utility.mean(axis=2)
            found["fairlead_over"] = self._by_preference(ours - whole)
        return found

    def _triple(self, by_order: Values) -> Triple:
        return metrics.interval(np.asarray(by_order)[: self._orders.n_seeds])

    def _by_preference(self, by_order: Floats) -> dict[str, Triple]:
        return {
            name_of(penalty): self._triple(by_order[:, dial])
            for dial, penalty in enumerate(self._penalties)
        }

    def _worst(self, whole: Floats) -> dict[str, float]:
        chance = whole[: self._orders.n_seeds]
        below = np.median(chance, axis=0) - chance.min(axis=0)
        return {name_of(p): float(b) for p, b in zip(self._penalties, below, strict=True)}

    def _collapse(self, one: Played, order: int) -> float:
        quality, cost = self._halves[order]
        return metrics.collapse(one.chosen[order, 0, one.half], quality, cost)

    def _frontier_figures(self, one: Played) -> dict[str, object]:
        """What is read off the frontier of the second half."""
        points = [
            (one.cost_usd[o][:, one.half].mean(axis=1), one.quality[o][:, one.half].mean(axis=1))
            for o in self._seeds
        ]
        spans = self._spans
        each = list(zip(points, spans, strict=False))
        found: dict[str, object] = {
            "aiq": self._triple([metrics.aiq(*p, span) for p, span in each]),
            "nauc": self._triple([metrics.nauc(*p, span) for p, span in each]),
        }
        for share in SHARES:
            found |= _cost_shares([metrics.cost_share(*p, span, share) for p, span in each], share)
        found["qnc"] = found["cost_share_at_100pct"]
        paid_back = [self._break_even(one, o, *points[o], spans[o]) for o in self._seeds]
        found["sa_bep"] = metrics.median_interval(paid_back)
        found["sa_bep_reached"] = [int(np.isfinite(paid_back).sum()), len(paid_back)]
        return found

    def _break_even(
        self, one: Played, order: int, cost: Floats, quality: Floats, span: Span
    ) -> float:
        """Requests until what the first half cost too much is saved, at 98 % of the quality."""
        enough = np.flatnonzero(quality >= SHARES[0] * span.best_quality)
        if not len(enough):
            return float("inf")
        dial = enough[cost[enough].argmin()]
        first = one.cost_usd[order, dial, : one.half.start]
        learning_usd = float(first.sum() - len(first) * cost[dial])
        return metrics.break_even_requests(
            learning_usd, best_usd=span.best_cost_usd, routed_usd=float(cost[dial])
        )

    def _calibration(self, one: Played, predicted: Floats) -> dict[str, object]:
        """How true predictions were, of what was chosen in the second half."""
        dial, half = self._reference, one.half
        said, paid = predicted[:, dial, half], one.cost_usd[:, dial, half]
        quality = one.quality[:, dial, half]
        errors, by_chance = (
            self._triple([measure(said[o, :, 0], quality[o]) for o in self._seeds])
            for measure in (metrics.calibration_error, metrics.calibration_error_by_chance)
        )
        ratios = [said[o, :, 2].sum() / max(paid[o].sum(), 1e-12) for o in self._seeds]
        return {
            "calibration_error": errors,
            "calibration_error_by_chance": by_chance,
            "quality_coverage": {
                f"{z:g}": self._triple(
                    [
                        metrics.coverage(said[o, :, 0], said[o, :, 1], quality[o], z)
                        for o in self._seeds
                    ]
                )
                for z in DEVIATIONS
            },
            "cost_predicted_over_paid": self._triple(ratios),
        }

    def _frontier(self, one: Played) -> list[dict[str, float]]:
        """Means over the orders of the second half, by setting of the dial."""
        chance = slice(0, self._orders.n_seeds)
        quality = one.quality[chance, :, one.half].mean(axis=(0, 2))
        cost = one.cost_usd[chance, :, one.half].mean(axis=(0, 2))
        return [
            {"preference": p, "quality": float(q), "cost_usd": float(c)}
            for p, q, c in zip(self._penalties, quality, cost, strict=True)
        ]

    def _curve(self, one: Played) -> list[float]:
        """Utility at the reference preference along the stream, over the best fixed model's."""
        over = one.utility[:, self._reference] - self._fixed_along
        parts = np.array_split(over[: self._orders.n_seeds], N_STEPS, axis=1)
        return [round(float(part.mean()), 6) for part in parts]

    def _drifting(self, whole: Floats, half: Floats) -> dict[str, dict[str, float]]:
        """The one order in which subjects drift: no interval, it is one."""
        return {
            name_of(p): {
                "utility": float(whole[-1, dial]),
                "utility_over_best_fixed": float(half[-1, dial] - self._fixed_half[-1, dial]),
            }
            for dial, p in enumerate(self._penalties)
        }


def _cost_shares(values: list[float], share: float) -> dict[str, object]:
    """A share that was not reached, or is above 1, counts as 1: one would call the best model."""
    name = f"cost_share_at_{share * 100:.0f}pct"
    return {
        name: metrics.interval(np.minimum(values, 1.0)),
        f"{name}_median": metrics.median_interval(values),
        f"{name}_reached": [int(np.isfinite(values).sum()), len(values)],
    }
