"""What routing saved against one model for all requests, and how sure that is.

    outcomes of the router's own draws ──Tally──▶ sums per model ──▶ saved share, with its interval

What a *baseline*, one model for every request, would have cost is estimated from the requests that
the router happened to give it, each weighted by one over its probability (self-normalised
importance weights, SNIPS): that undoes that the router gives it the requests it is good at. The
interval is of the delta method at 95 %; it takes both means for independent, which makes it wide
rather than narrow. Sums add up, over minutes and machines.

What was drawn by no policy (probes, retries, imports) is left out. Where a baseline was hardly ever
drawn there is no figure: `effective` says how many requests' worth of evidence there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

EFFECTIVE_MIN = 30.0  # requests: fewer, and an interval by the normal distribution is none
Z = 1.96
FIGURES = ("cost_usd", "quality")


@dataclass(slots=True)
class Sums:
    """Of one figure, over the outcomes of one model in which it is known."""

    n: float = 0.0
    x: float = 0.0
    xx: float = 0.0
    w: float = 0.0  # weights: one over the probability
    ww: float = 0.0
    wx: float = 0.0
    wwx: float = 0.0
    wwxx: float = 0.0

    def add(self, values: NDArray[np.float64], propensity: NDArray[np.float64]) -> None:
        """Outcomes of this model, and how likely it was to be drawn for each."""
        weight = 1.0 / propensity
        for name, terms in (
            ("n", np.ones_like(values)),
            ("x", values),
            ("xx", values**2),
            ("w", weight),
            ("ww", weight**2),
            ("wx", weight * values),
            ("wwx", weight**2 * values),
            ("wwxx", (weight * values) ** 2),
        ):
            setattr(self, name, getattr(self, name) + float(terms.sum()))

    def plus(self, other: Sequence[float]) -> Sums:
        """The sum with one that was written as a list."""
        mine = [getattr(self, field.name) for field in fields(self)]
        return Sums(*(a + b for a, b in zip(mine, other, strict=True)))

    def listed(self) -> list[float]:
        """For a file."""
        return [float(f"{getattr(self, field.name):.9g}") for field in fields(self)]

    def mean(self) -> tuple[float, float]:
        """Of what was drawn, and its variance."""
        mean = self.x / self.n
        return mean, max(0.0, self.xx / self.n - mean**2) / self.n

    def weighted(self) -> tuple[float, float]:
        """Of all requests, had this model answered them, and its variance."""
        mean = self.wx / self.w
        spread = self.wwxx - 2.0 * mean * self.wwx + mean**2 * self.ww
        return mean, max(0.0, spread) / self.w**2

    @property
    def effective(self) -> float:
        """Requests' worth of evidence."""
        return self.w**2 / self.ww if self.ww else 0.0


Tally = dict[str, dict[str, Sums]]  # by figure, then model


def tallied(
    models: Sequence[str],
    propensity: NDArray[np.float64],
    figures: Mapping[str, NDArray[np.float64]],
) -> Tally:
    """Sums of outcomes (n,); a figure that is not known is NaN."""
    found: Tally = {}
    names = np.array(models)
    for figure, values in figures.items():
        known = ~np.isnan(values)
        for name in sorted(set(names[known].tolist())):
            rows = known & (names == name)
            found.setdefault(figure, {}).setdefault(name, Sums()).add(
                values[rows], propensity[rows]
            )
    return found


def written(tally: Tally) -> dict[str, dict[str, list[float]]]:
    """For a file."""
    return {
        figure: {name: sums.listed() for name, sums in of.items()} for figure, of in tally.items()
    }


def merged(written_ones: Sequence[object]) -> Tally:
    """The sum of what was written; what is not of this form is left out."""
    found: Tally = {}
    for one in written_ones:
        for figure in FIGURES:
            of = one.get(figure) if isinstance(one, dict) else None
            for name, listed in (of if isinstance(of, dict) else {}).items():
                if isinstance(listed, list) and len(listed) == len(fields(Sums)):
                    known = found.setdefault(figure, {})
                    known[name] = known.get(name, Sums()).plus(listed)
    return found


def compared(tally: Tally, baseline: str) -> dict[str, object]:
    """Router and baseline side by side: per request, and the share saved."""
    cost, quality = tally.get("cost_usd", {}), tally.get("quality", {})
    router = {name: _whole(of) for name, of in (("cost_usd", cost), ("quality", quality))}
    found: dict[str, object] = {
        "baseline": baseline,
        "requests": int(sum(sums.n for sums in cost.values())),
        "router": {name: _figure(mean) for name, mean in router.items()},
        "effective": round(cost[baseline].effective, 1) if baseline in cost else 0.0,
    }
    for name, of in (("cost_usd", cost), ("quality", quality)):
        there = baseline in of and of[baseline].effective >= EFFECTIVE_MIN
        found[f"baseline_{name}"] = _figure(of[baseline].weighted()) if there else None
    ours = router["cost_usd"]
    there = found["baseline_cost_usd"] is not None and ours is not None
    found["saved_share"] = _saved(ours, cost[baseline].weighted()) if there and ours else None
    return found


def _whole(of: Mapping[str, Sums]) -> tuple[float, float] | None:
    """The mean over all models, and its variance."""
    n = sum(sums.n for sums in of.values())
    if n < 2:
        return None
    total = Sums(n=n, x=sum(s.x for s in of.values()), xx=sum(s.xx for s in of.values()))
    return total.mean()


def _figure(mean: tuple[float, float] | None) -> dict[str, float] | None:
    if mean is None:
        return None
    half = Z * math.sqrt(mean[1])
    return _interval(mean[0], mean[0] - half, mean[0] + half)


def _saved(router: tuple[float, float], baseline: tuple[float, float]) -> dict[str, float] | None:
    """1 − router / baseline."""
    (a, var_a), (b, var_b) = router, baseline
    if b <= 0.0:
        return None
    ratio = a / b
    half = Z * math.sqrt(var_a / b**2 + ratio**2 * var_b / b**2)
    return _interval(1.0 - ratio, 1.0 - ratio - half, 1.0 - ratio + half)


def _interval(mean: float, low: float, high: float) -> dict[str, float]:
    numbers = {"mean": mean, "low": low, "high": high}
    return {name: float(f"{value:.6g}") for name, value in numbers.items()}
