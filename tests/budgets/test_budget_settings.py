"""Budgets in the settings: what is refused, and what reaches routers and trainers."""

from __future__ import annotations

import math

import pytest

from infra.settings.settings import Settings
from streams.errors import OptionRefused
from streams.training.budgets import Budget


def test_routers_and_trainers_get_the_same_budgets():
    """One that is hard by default, and that of [prices], which is not."""
    settings = Settings(
        budgets=[{"name": "all", "amount": 5.0}], prices={"budget_usd_per_hour": 7.0}
    )
    found = settings.deployment()
    soft = Budget(name="budget_usd_per_hour", amount=7.0, hard=False)
    assert found.trainer.pricing.budgets == (Budget(name="all", amount=5.0), soft)
    assert found.replica.placement.pricing == found.trainer.pricing
    assert math.isinf(found.trainer.pricing.budget_usd_per_hour), "it is not priced twice"


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ([{"name": "a", "amount": 1, "scope": "tenant"}], "budgets.a.value"),
        ([{"name": "a", "amount": 1, "value": "x"}], "budgets.a.value"),
        ([{"name": "a", "amount": 1}, {"name": "a", "amount": 2}], "budgets.name"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused_by_its_key(stated, named):
    """Before anything is started."""
    with pytest.raises(OptionRefused, match=named):
        Settings(budgets=stated).deployment()


def test_a_hard_budget_needs_telemetry():
    """Slices are granted by what replicas report."""
    stated = {"budgets": [{"name": "a", "amount": 1}], "telemetry": {"period_s": 0}}
    with pytest.raises(OptionRefused, match="telemetry"):
        Settings(**stated).deployment()
