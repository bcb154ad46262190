"""Savings are against a stated baseline, undo the router's own choices, and say how sure they are."""

from __future__ import annotations

import numpy as np
import pytest

from infra.dashboard.savings import EFFECTIVE_MIN, compared, merged, tallied, written


def routed(seed: int, n: int = 4000):
    """A router that gives the dear requests to the small model: `large` is seen with cheap ones alone."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0.0, 0.6, n)
    large = np.where(size > 1.0, 0.05, 0.5)
    drawn = rng.random(n) < large
    models = ["large" if one else "small" for one in drawn]
    cost = size * np.where(drawn, 0.01, 0.001)
    return models, np.where(drawn, large, 1 - large), cost, 0.01 * size, cost.mean()


def test_the_baselines_cost_is_that_of_all_requests_not_of_those_it_got():
    models, chance, cost, everywhere, ours = routed(0)
    found = compared(tallied(models, chance, {"cost_usd": cost}), "large")

    naive = cost[np.array(models) == "large"].mean()
    assert naive < 0.8 * everywhere.mean()
    assert found["baseline_cost_usd"]["mean"] == pytest.approx(everywhere.mean(), rel=0.1)
    assert found["saved_share"]["mean"] == pytest.approx(1 - ours / everywhere.mean(), abs=0.03)


def test_the_interval_covers_the_truth():
    """
    95 % is meant; of 60 orders of requests the truth is within in nine of ten at least.
    """
    truth = 0.01 * np.exp(0.18)
    within = 0
    for seed in range(60):
        models, chance, cost, _, _ = routed(seed)
        found = compared(tallied(models, chance, {"cost_usd": cost}), "large")["baseline_cost_usd"]
        within += found["low"] <= truth <= found["high"]
    assert within >= 54


def test_sums_add_up_over_minutes():
    """
    A day of minutes says what one look at all of them would have said.
    """
    models, chance, cost, _, _ = routed(1)
    quality = np.linspace(0, 1, len(cost))
    quality[::3] = np.nan
    whole = tallied(models, chance, {"cost_usd": cost, "quality": quality})
    parts = [
        written(tallied(models[i : i + 100], chance[i : i + 100], {"cost_usd": cost[i : i + 100], "quality": quality[i : i + 100]}))
        for i in range(0, len(cost), 100)
    ]  # fmt: skip
    one, other = (
        compared(whole, "large"),
        compared(merged([*parts, None, {"cost_usd": {"x": [1]}}]), "large"),
    )
    for key in ("saved_share", "baseline_quality", "router"):
        for name, value in _flat(one[key]).items():
            assert _flat(other[key])[name] == pytest.approx(value, rel=1e-4)


def _flat(value, name=""):
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, one in value.items() for k, v in _flat(one, f"{name}.{key}").items()}


def test_without_evidence_nothing_is_stated():
    """
    A baseline that was hardly ever drawn has no figure, and says how much there is.
    """
    models, chance = ["small"] * 500 + ["large"] * 10, np.full(510, 0.5)
    found = compared(tallied(models, chance, {"cost_usd": np.full(510, 0.01)}), "large")
    assert found["saved_share"] is None
    assert found["effective"] == pytest.approx(10)
    assert found["effective"] < EFFECTIVE_MIN

    nobody = compared({}, "large")
    assert nobody["saved_share"] is None and nobody["requests"] == 0
